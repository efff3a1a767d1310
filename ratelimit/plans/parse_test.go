package plans

import (
	"fmt"
	"math"
	"strings"
	"testing"
)

const small = `# what teams agreed on
numbers minute month
plan free 60 10000   # everybody
plan gold 600:50 1000000
default free

caller alice gold
caller spiffe://x/ns/a/sa/b 5 0
caller a%20b%25 gold
`

func parsed(t testing.TB, text string) *Table {
	t.Helper()
	table, err := parse(strings.NewReader(text), "t.plans", 1000)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func TestParse(t *testing.T) {
	table := parsed(t, small)
	if table.Callers() != 3 {
		t.Errorf("%d callers", table.Callers())
	}
	for _, c := range []struct {
		caller, column string
		want           Found
	}{
		{"alice", "minute", Found{Number{600, 50}, "gold", byPlan}},
		{"alice", "month", Found{Number{1000000, 0}, "gold", byPlan}},
		{"spiffe://x/ns/a/sa/b", "minute", Found{Number{5, 0}, "", byItself}},
		{"spiffe://x/ns/a/sa/b", "month", Found{Number{0, 0}, "", byItself}},
		{"a b%", "minute", Found{Number{600, 50}, "gold", byPlan}},
		{"a%20b%25", "minute", Found{Number{60, 0}, "free", byDefault}},
		{"", "month", Found{Number{10000, 0}, "free", byDefault}},
		{"alice", "year", Found{}},
		{"alice", "", Found{}}, // which of two?
	} {
		if got := table.Find(c.caller, c.column); got != c.want {
			t.Errorf("%q, %q: %+v, want %+v", c.caller, c.column, got, c.want)
		}
	}
	if got := parsed(t, "numbers n\ndefault refuse\n").Find("x", ""); got != (Found{by: byRefusal}) {
		t.Errorf("refused: %+v", got)
	}
	if got := parsed(t, "numbers n\n").Find("x", ""); got != (Found{}) {
		t.Errorf("no default: %+v", got)
	}
}

// TestBadTables: whatever is wrong is said with its line, and there is no table.
func TestBadTables(t *testing.T) {
	const head = "numbers a\nplan p 1\n"
	for text, want := range map[string]string{
		"":                                "t.plans: a table begins with its columns",
		"caller a p\n":                    "t.plans:1: a table begins with its columns",
		"numbers\n":                       "t.plans:1: a table has 1 to 8 columns",
		"numbers A\n":                     `t.plans:1: "A" is no name of a column`,
		"numbers a a\n":                   "t.plans:1: the column a is there twice",
		head + "numbers b\n":              "t.plans:3: a table has one line numbers",
		head + "plan 9 1\n":               `t.plans:3: "9" is no name of a plan`,
		head + "plan refuse 1\n":          `t.plans:3: "refuse" is no name of a plan`,
		head + "plan p 2\n":               "t.plans:3: the plan p is there twice",
		head + "plan q\n":                 "t.plans:3: 0 numbers are here, the table has 1 columns",
		head + "plan q 1 2\n":             "t.plans:3: 2 numbers are here, the table has 1 columns",
		head + "plan q -1\n":              `t.plans:3: a: "-1" is below 0`,
		head + "plan q 4294967296\n":      `t.plans:3: a: "4294967296" is above 4294967295`,
		head + "plan q 1e3\n":             `t.plans:3: a: "1e3" is not a number`,
		head + "plan q 5:6\n":             "t.plans:3: a: the burst 6 is not between 1 and the requests, 5",
		head + "plan q 5:0\n":             "t.plans:3: a: the burst 0 is not between",
		head + "default q\n":              `t.plans:3: there is no plan "q" above`,
		head + "default p\ndefault p\n":   "t.plans:4: a table has one line default",
		head + "caller\n":                 "t.plans:3: want caller, its name",
		head + "caller a\n":               "t.plans:3: 0 numbers are here",
		head + "caller a q\n":             `t.plans:3: there is no plan "q" above`,
		head + "caller a p\ncaller a p\n": `t.plans:4: the caller "a" is there twice`,
		head + "caller %zz p\n":           "is written %25",
		head + "caller a% p\n":            "is written %25",
		head + "caller %ff p\n":           "the name is not UTF-8",
		head + "caller a%00 p\n":          "the name has a control character",
		head + "caller \xff p\n":          "t.plans:3: this is not UTF-8",
		head + "customer a p\n":           `not with "customer"`,
		head + "caller a p":               "t.plans:3: the last line has no end",
		head + "caller " + strings.Repeat("x", 513) + " p\n": "a caller's name has at most 512 bytes",
		head + "# " + strings.Repeat("x", 5000) + "\n":       "t.plans:3: the line has more than 4096 bytes",
	} {
		table, err := parse(strings.NewReader(text), "t.plans", 1000)
		if table != nil || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60q: %v, want %q", text, err, want)
		}
	}
	var many strings.Builder
	many.WriteString(head)
	for i := range 11 {
		fmt.Fprintf(&many, "caller c%d p\n", i)
	}
	if _, err := parse(strings.NewReader(many.String()), "t.plans", 10); err == nil || !strings.Contains(err.Error(), "t.plans:13: too many callers: a table has at most 10") {
		t.Errorf("too many callers: %v", err)
	}
	if _, err := parse(strings.NewReader(strings.Repeat("x\n", 1000)), "t.plans", 10); err == nil || strings.Count(err.Error(), "\n") != maxProblems-1 {
		t.Errorf("not %d problems: %v", maxProblems, err)
	}
}

// FuzzParse: of any bytes comes an error or a table in which each caller that was
// said is found, with a number that a limit can have.
func FuzzParse(f *testing.F) {
	f.Add([]byte(small))
	f.Add([]byte("numbers n\ndefault refuse\ncaller %2520 4294967295:1\ncaller a 0\n"))
	f.Add([]byte("numbers a b c d e f g h\nplan p 1 2 3 4 5 6 7 8\r\n\tcaller\tx\tp\n#\n"))
	f.Add([]byte("numbers a\ncaller \xff 1\n"))
	f.Add([]byte("numbers a\ncaller a 1:2:3\ncaller %"))
	f.Fuzz(func(t *testing.T, text []byte) {
		table, err := parse(strings.NewReader(string(text)), "t", 100)
		if (table == nil) == (err == nil) {
			t.Fatalf("%v and %v", table, err)
		}
		if table == nil {
			return
		}
		if table.Callers() > 100 || len(table.Columns()) == 0 {
			t.Fatalf("%d callers, columns %q", table.Callers(), table.Columns())
		}
		n := 0
		table.base.each(func(caller []byte, _ entry) {
			n++
			for _, column := range table.Columns() {
				f := table.Find(string(caller), column)
				if f.by != byPlan && f.by != byItself || f.Number.Burst > f.Number.Requests {
					t.Errorf("%q has %+v", caller, f)
				}
			}
		})
		if n != table.Callers() {
			t.Errorf("%d callers of %d", n, table.Callers())
		}
		_ = table.Find(string(text[:min(len(text), 600)]), "a")
	})
}

// FuzzValue: what Redis has for a caller is a plan, numbers or an error.
func FuzzValue(f *testing.F) {
	for _, text := range []string{"free", "60 1", "60:5 1", "", "-1 1", "free free", "\xff", "# free", strings.Repeat("1 ", 4000)} {
		f.Add("alice", text)
	}
	f.Add("\x00", "free")
	head, err := parseHead("numbers minute month\nplan free 60 10000\n", "t")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, caller, text string) {
		e, err := head.changed(caller, text)
		switch {
		case err != nil:
		case e == nobody, e == refused, e&ownRow == 0 && e != 0:
			t.Errorf("%q has the entry %d", text, e)
		case e&ownRow != 0 && int(e&^ownRow) >= len(head.table.own)/2:
			t.Errorf("%q has a row that is not there", text)
		}
		if len(head.table.own) > 1<<16 {
			head.table.own, head.rows = nil, map[[maxColumns]Number]entry{}
		}
	})
}

func TestBounds(t *testing.T) {
	if uint64(maxNames)+maxCaller > math.MaxUint32 {
		t.Error("offsets of names do not fit")
	}
	if MaxCallers >= int(refused) || MaxCallers >= 1<<indexBits-1 {
		t.Error("rows of callers do not fit")
	}
}

package plans

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// TestChangedFilesAreReadAsAnew: whatever was changed in a file, what is read of the
// changes alone comes to the same as the whole file, errors and their lines included.
func TestChangedFilesAreReadAsAnew(t *testing.T) {
	const callers = 800
	parts := 0
	for seed := range uint64(3) {
		random := rand.New(rand.NewPCG(seed, 1))
		lines := strings.SplitAfter("numbers minute month\nplan free 60 10000\nplan gold 600:50 1000000\n# callers\ndefault free\n", "\n")
		lines = lines[:len(lines)-1]
		for i := range callers {
			lines = append(lines, callerLine(random, i))
		}
		var last *source
		good := lines
		for range 20 {
			text := strings.Join(lines, "")
			want, wrong := parse(strings.NewReader(text), "t", 2*callers)
			got, now, err := readText(bytes.NewReader([]byte(text)), "t", 2*callers, last, 0)
			if fmt.Sprint(err) != fmt.Sprint(wrong) {
				t.Fatalf("seed %d: %v, read as a whole %v", seed, err, wrong)
			}
			if err == nil {
				equal(t, got, want)
				if now == last {
					parts++
				}
				last, good = now, lines
			}
			lines = edited(random, good)
		}
	}
	if parts < 12 {
		t.Errorf("%d of 60 files were read in part", parts)
	}
}

func callerLine(random *rand.Rand, i int) string {
	has := []string{"gold", "free", fmt.Sprint(random.IntN(5), " ", i), "7:3 8"}[random.IntN(4)]
	return fmt.Sprintf("caller cluster.local/ns/customers/sa/customer-%07d %s\n", i, has)
}

// edited changes a few lines, mostly to something that is right.
func edited(random *rand.Rand, lines []string) []string {
	lines = slices.DeleteFunc(slices.Clone(lines), func(line string) bool { return line == "plan late 2 2\n" })
	for range 1 + random.IntN(4) {
		at := 5 + random.IntN(len(lines)-5)
		switch random.IntN(24) {
		case 0:
			lines = slices.Insert(lines, at, lines[5+random.IntN(len(lines)-5)]) // there twice
		case 1:
			lines[at] = "caller x\n"
		case 2:
			lines[1] = fmt.Sprintf("plan free %d 10000\n", random.IntN(100))
		case 3:
			lines = slices.Insert(lines, 3, fmt.Sprintf("plan new-%d 1 1\n", random.IntN(1000)))
		case 4:
			lines[4] = []string{"default refuse\n", "default gold\n", "\n"}[random.IntN(3)]
		case 5:
			lines = append(lines, "plan late 2 2\n")
		case 6:
			lines = slices.Delete(lines, 3, 4) // a plan, perhaps one that is had
		case 7, 8, 9, 10:
			lines = slices.Delete(lines, at, min(at+1+random.IntN(3), len(lines)))
		case 11, 12, 13, 14:
			lines = slices.Insert(lines, at, callerLine(random, 10_000+random.IntN(1_000_000)))
		case 15:
			lines = slices.Insert(lines, at, "# a remark\n")
		default:
			name, _, _ := strings.Cut(strings.TrimPrefix(lines[at], "caller "), " ")
			lines[at] = "caller " + strings.TrimSpace(name) + []string{" gold\n", " free\n", " 1 2\n", " 9:9 9\n"}[random.IntN(4)]
		}
	}
	return lines
}

// TestChangesThatSeemRight: what is wrong only beside lines that did not change is found.
func TestChangesThatSeemRight(t *testing.T) {
	_, callers, _ := strings.Cut(million(2000), "default free\n")
	const head = "numbers minute month\nplan free 60 10000\nplan gold 600:50 1000000\n"
	for name, c := range map[string]struct{ before, after string }{
		"all callers twice":        {head + callers, head + callers + callers},
		"a default above another":  {head + callers + "default gold\n", head + "default free\n" + callers + "default gold\n"},
		"a plan above its like":    {head + callers + "plan new 1 1\n", head + "plan new 2 2\n" + callers + "plan new 1 1\n"},
		"a plan that callers have": {head + callers, strings.Replace(head, "plan gold", "plan silver", 1) + callers},
		"other columns":            {head + callers, strings.Replace(head, "month", "year day", 1) + callers},
		"no columns":               {head + callers, "# nothing\n" + callers},
	} {
		_, before, err := readText(strings.NewReader(c.before), "t", 3000, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, wrong := parse(strings.NewReader(c.after), "t", 3000)
		if _, _, err := readText(strings.NewReader(c.after), "t", 3000, before, 0); err == nil || fmt.Sprint(err) != fmt.Sprint(wrong) {
			t.Errorf("%s: %v, read as a whole %v", name, err, wrong)
		}
	}
}

// TestChunkTwice: a chunk that is known and there twice is not taken for one.
func TestChunkTwice(t *testing.T) {
	head, callers, _ := strings.Cut(million(2000), "caller ")
	callers = "caller " + callers
	_, before, err := readText(strings.NewReader(head+callers), "t", 3000, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	chunk, cut := "", cutter{seed: before.seed}
	for line := range strings.Lines(callers) {
		if chunk += line; cut.add([]byte(line)) {
			break
		}
	}
	_, _, err = readText(strings.NewReader(head+chunk+callers), "t", 3000, before, 0)
	if err == nil || !strings.Contains(err.Error(), "is there twice") {
		t.Errorf("%v", err)
	}
}

// equal compares two tables by what is found in them.
func equal(t *testing.T, got, want *Table) {
	t.Helper()
	if got.Callers() != want.Callers() || !slices.Equal(got.columns, want.columns) {
		t.Fatalf("%d callers, columns %v, want %d, %v", got.Callers(), got.columns, want.Callers(), want.columns)
	}
	check := func(caller string) {
		t.Helper()
		for _, column := range want.columns {
			if g, w := got.Find(caller, column), want.Find(caller, column); g != w {
				t.Fatalf("%s, %s: %+v, want %+v", caller, column, g, w)
			}
		}
	}
	check("nobody that is there")
	for _, table := range []*Table{got, want} {
		table.base.each(func(caller []byte, _ entry) { check(string(caller)) })
		for caller := range table.changed {
			check(caller)
		}
	}
}

// BenchmarkChangedMillion reads a million callers one of whom was changed.
func BenchmarkChangedMillion(b *testing.B) {
	text := million(1_000_000)
	_, first, err := readText(strings.NewReader(text), "t", 1_000_000, nil, int64(len(text)))
	if err != nil {
		b.Fatal(err)
	}
	text = strings.Replace(text, "customer-0500001 gold", "customer-0500001 free", 1)
	for b.Loop() {
		if _, now, err := readText(strings.NewReader(text), "t", 1_000_000, first, 0); err != nil || now != first {
			b.Fatalf("%v, or read as a whole", err)
		}
	}
}

// TestOneLineOfMany: of a large file in which a line is another one little is parsed, and
// nothing of the table before is changed.
func TestOneLineOfMany(t *testing.T) {
	text := million(20_000)
	_, first, err := readText(strings.NewReader(text), "t", 30_000, nil, int64(len(text)))
	if err != nil {
		t.Fatal(err)
	}
	if n := len(first.chunks); n < 50 || n > len(text)/minChunk {
		t.Errorf("%d chunks of %d bytes", n, len(text))
	}
	who := "cluster.local/ns/customers/sa/customer-0012345"
	d, ok := first.differences(strings.NewReader(strings.Replace(text, who+" gold", who+" 5 6", 1)))
	if !ok || len(d.lines) > 3*maxChunk || len(d.gone) > 3 || d.head != nil {
		t.Errorf("%v: %d bytes and %d chunks are others", ok, len(d.lines), len(d.gone))
	}
	for range 3 { // the same place again and again leaves nothing behind
		for _, requests := range []string{"5", "6"} {
			table, now, err := readText(strings.NewReader(strings.Replace(text, who+" gold", who+" "+requests+" 7", 1)), "t", 30_000, first, 0)
			if err != nil || now != first || len(table.changed) != 1 {
				t.Fatalf("%v, %d callers are laid over", err, len(table.changed))
			}
			if f := table.Find(who, "minute"); fmt.Sprint(f.Number.Requests) != requests {
				t.Errorf("it has %+v", f)
			}
		}
	}
	if f := first.table.Find(who, "minute"); f.Plan != "gold" {
		t.Errorf("the table before says %+v", f)
	}
}

// FuzzChanged: of any two files in turn comes what each comes to alone.
func FuzzChanged(f *testing.F) {
	f.Add([]byte(small), []byte("numbers minute month\nplan free 1 2\ncaller a free\n"))
	f.Add([]byte("numbers n\ncaller a 1\n"), []byte("numbers n\n#\ncaller a 1\ncaller a 1\n"))
	f.Add([]byte("numbers n\nplan p 1\ncaller a p\nplan q 2\n"), []byte("numbers n\nplan q 1\ncaller a q\n"))
	f.Fuzz(func(t *testing.T, one, other []byte) {
		_, before, err := readText(bytes.NewReader(one), "t", 100, nil, 0)
		if err != nil {
			return
		}
		want, wrong := parse(bytes.NewReader(other), "t", 100)
		got, _, err := readText(bytes.NewReader(other), "t", 100, before, 0)
		if fmt.Sprint(err) != fmt.Sprint(wrong) {
			t.Fatalf("%v, read as a whole %v", err, wrong)
		}
		if err == nil {
			equal(t, got, want)
		}
	})
}

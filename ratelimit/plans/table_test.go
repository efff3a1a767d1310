package plans

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"time"
)

// TestChangesAreAMap: after any changes a table says what a map would, and the tables
// before say what they said.
func TestChangesAreAMap(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	table := parsed(t, "numbers n\nplan p 7\nplan q 8\n")
	want := map[string]Number{}
	type past struct {
		table *Table
		want  map[string]Number
	}
	var before []past
	for step := range 40 {
		b := &builder{max: 1 << 20, rows: map[[maxColumns]Number]entry{}, table: &Table{columns: table.columns, byName: table.byName, own: table.own}}
		changes := map[string]entry{}
		said := map[string]Number{}
		for caller, n := range want {
			said[caller] = n
		}
		for range 100 {
			caller := fmt.Sprint("caller-", random.IntN(3000))
			switch text := []string{"", "p", "q", fmt.Sprint(random.IntN(1000))}[random.IntN(4)]; text {
			case "":
				changes[caller] = nobody
				delete(want, caller)
			default:
				e, err := b.value(text)
				if err != nil {
					t.Fatal(err)
				}
				changes[caller] = e
				switch text {
				case "p":
					want[caller] = Number{7, 0}
				case "q":
					want[caller] = Number{8, 0}
				default:
					n, _ := number([]byte(text)) //nolint:errcheck // a number
					want[caller] = n
				}
			}
		}
		if step%10 == 0 {
			before = append(before, past{table, said})
		}
		table = table.set(changes, b.table.own)
		same(t, table, want)
	}
	for _, p := range before {
		same(t, p.table, p.want)
	}
	if table.base.len() == 0 {
		t.Error("it was never made compact")
	}
}

func same(t *testing.T, table *Table, want map[string]Number) {
	t.Helper()
	if table.Callers() != len(want) {
		t.Fatalf("%d callers, want %d", table.Callers(), len(want))
	}
	for i := range 3000 {
		caller := fmt.Sprint("caller-", i)
		n, known := want[caller]
		if f := table.Find(caller, ""); f.Number != n || (f.by != byNothing) != known {
			t.Fatalf("%s: %+v, want %v %v", caller, f, n, known)
		}
	}
}

// million writes a table of n callers with names as identities have, one in sixteen
// of which has numbers of its own.
func million(n int) string {
	var b strings.Builder
	b.WriteString("numbers minute month\nplan free 60 10000\nplan gold 600:50 1000000\ndefault free\n")
	for i := range n {
		has := "gold"
		if i%16 == 0 {
			has = fmt.Sprint(i%1000, " ", i)
		}
		fmt.Fprintf(&b, "caller cluster.local/ns/customers/sa/customer-%07d %s\n", i, has)
	}
	return b.String()
}

// TestMemoryOfCallers: a caller takes less than 80 bytes, its name of 45 bytes included.
func TestMemoryOfCallers(t *testing.T) {
	const n = 250_000
	if held, _ := held(t, n); held > 80 {
		t.Errorf("a caller of %d holds %d bytes", n, held)
	}
}

// held reads a table of n callers and says how many bytes each holds, and how long it
// took.
func held(t testing.TB, n uint64) (bytes uint64, took time.Duration) {
	t.Helper()
	text := million(int(n)) //nolint:gosec // a small number
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before, start := heap(), time.Now()
	table, err := parse(strings.NewReader(text), "m", int(n)) //nolint:gosec // a small number
	if err != nil {
		t.Fatal(err)
	}
	took, bytes = time.Since(start), (heap()-before)/n
	last := fmt.Sprintf("cluster.local/ns/customers/sa/customer-%07d", n-1)
	if f := table.Find(last, "minute"); table.Callers() != int(n) || f.Plan != "gold" { //nolint:gosec // a small number
		t.Errorf("%d callers, the last has %+v", table.Callers(), f)
	}
	runtime.KeepAlive(text)
	return bytes, took
}

// BenchmarkMillion reads a million callers.
func BenchmarkMillion(b *testing.B) {
	for b.Loop() {
		bytes, took := held(b, 1_000_000)
		b.ReportMetric(float64(bytes), "bytes/caller")
		b.ReportMetric(float64(took.Milliseconds()), "ms/read")
	}
}

// TestLookUpsAllocateNothing: a request costs no memory here.
func TestLookUpsAllocateNothing(t *testing.T) {
	table := parsed(t, small)
	if n := testing.AllocsPerRun(100, func() { table.Find("alice", "minute"); table.Find("nobody", "month") }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkFind(b *testing.B) {
	table, err := parse(strings.NewReader(million(100_000)), "m", 100_000)
	if err != nil {
		b.Fatal(err)
	}
	names := make([]string, 1024)
	for i := range names {
		names[i] = fmt.Sprintf("cluster.local/ns/customers/sa/customer-%07d", i*97)
	}
	for i := 0; b.Loop(); i++ {
		table.Find(names[i%len(names)], "minute")
	}
}

package plans

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/writ-mesh/writ/ratelimit/redisstore"
	"github.com/writ-mesh/writ/ratelimit/redistest"
)

// TestOneCallerAgainAndAgain: the numbers that a caller had before do not stay.
func TestOneCallerAgainAndAgain(t *testing.T) {
	table := parsed(t, "numbers n\ncaller alice 1\ncaller bob 2\n")
	for n := range uint32(5000) {
		own := append(table.own, Number{Requests: n})                                 //nolint:gocritic // as a follower does
		table = table.set(map[string]entry{"alice": ownRow | entry(len(own)-1)}, own) //nolint:gosec // a few thousand
	}
	if a, b := table.Find("alice", ""), table.Find("bob", ""); a.Number.Requests != 4999 || b.Number.Requests != 2 {
		t.Errorf("%+v, %+v", a, b)
	}
	if len(table.own) > 2000 {
		t.Errorf("two callers have %d rows", len(table.own))
	}
}

// TestPlansThatComeAndGo: who writes other plans again and again has the table read anew
// without those that are gone.
func TestPlansThatComeAndGo(t *testing.T) {
	table := parsed(t, "numbers n\nplan p 1\ncaller alice p\n")
	for round := range 2 * maxGone {
		var text strings.Builder
		text.WriteString("numbers n\nplan p 1\n")
		for i := range maxPlans - 1 {
			fmt.Fprintf(&text, "plan p-%d-%d 1\n", round, i)
		}
		next, err := table.withHead(parsed(t, text.String()))
		if errors.Is(err, errReadAnew) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		table = next
	}
	t.Errorf("%d plans are kept", len(table.plans))
}

// TestEndlessScan: a Redis that tells the same caller for ever gets nothing taken.
func TestEndlessScan(t *testing.T) {
	b, err := parseHead("numbers n\n", "t")
	if err != nil {
		t.Fatal(err)
	}
	b.again, b.max = true, 10
	f := &follower{strange: map[string]error{}}
	for n := range 100_000 {
		if err := f.scanned(b, nil, "alice", fmt.Sprint(n)); err != nil {
			if !errors.Is(err, errTooMany) {
				t.Error(err)
			}
			return
		}
	}
	t.Errorf("%d numbers are kept of one caller", len(b.table.own))
}

// TestTablesThatComeAndGo: what is gone stays in memory until it is known that no policy
// names it, so that no more tables are read than a folder may have.
func TestTablesThatComeAndGo(t *testing.T) {
	dir := t.TempDir()
	b, log := newBook(t, dir)
	for i := range maxTables + 20 {
		file := filepath.Join(dir, fmt.Sprintf("table-%d%s", i, Suffix))
		replace(t, file, "numbers n\ncaller alice 1\n")
		b.folder.look()
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(b.all()); n != maxTables {
		t.Errorf("%d tables are kept, want %d", n, maxTables)
	}
	if n := strings.Count(log.String(), "too many tables"); n != 1 {
		t.Errorf("%d times it is told that there are too many", n)
	}
}

// TestTornReading: a table of which not all callers were read is not taken, unless the
// number stays wrong again and again, as with a writer who does not say what he changes.
func TestTornReading(t *testing.T) {
	server := redistest.Start(t)
	key := redisstore.PlansKey("t")
	server.Command(t, "HSET", key, "alice", "1", "bob", "2", "carol", "3")
	server.Command(t, "SET", key+":head", "numbers n\n")
	from, err := redisstore.OpenPlans(redisstore.Options{Address: server.Address()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = from.Close() }()
	f := &follower{from: from, handle: &Handle{name: "t"}, strange: map[string]error{}}
	check := func(text, since string) error { return f.checkWhole(t.Context(), parsed(t, text), since) }
	const part, whole = "numbers n\ncaller alice 1\n", "numbers n\ncaller alice 1\ncaller bob 2\ncaller carol 3\n"
	for range maxTorn {
		if err := check(part, "0-0"); !errors.Is(err, errTorn) {
			t.Errorf("one caller of three: %v", err)
		}
	}
	if err := check(part, "0-0"); err != nil {
		t.Errorf("again and again: %v", err)
	}
	if err := check(whole, "0-0"); err != nil {
		t.Errorf("all three: %v", err)
	}
	for _, caller := range []string{"bob", "carol"} { // changed while the table was read
		server.Command(t, "XADD", key+":changes", "*", "caller", caller)
	}
	if err := check(part, "0-0"); err != nil {
		t.Errorf("two others were changed meanwhile: %v", err)
	}
}

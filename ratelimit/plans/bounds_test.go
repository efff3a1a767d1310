package plans

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
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

// TestTablesThatComeAndGo: what is gone stays in memory, so that no more tables are read
// than a folder may have.
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

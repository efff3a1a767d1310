package toplist

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"testing"
	"time"
)

var epoch = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

func everything(string) bool { return true }

func name(n int) string { return "caller-" + strconv.Itoa(n) }

// add lets caller n ask once.
func add(l *Lists, now time.Time, limit string, n int, refused bool) {
	l.Add(now, limit, name(n), 1, refused, namer{})
}

type namer struct{}

func (namer) Name(key string) string { return "name of " + key }

// TestTopOfMany: of a quarter of a million callers, most of whom ask once, the ten that ask
// most are found in their order, and counts are never too low nor more uncertain than
// is said.
func TestTopOfMany(t *testing.T) {
	const callers, loud = 250_000, 10
	var l Lists
	asked := make(map[string]uint64, loud)
	rng := rand.New(rand.NewPCG(1, 2))
	for n := range callers {
		add(&l, epoch, "limit", loud+n, false)
		if n%4 == 0 { // the n-th loudest has a share of 2^-(n+2) of the rest
			who := 0
			for who < loud-1 && rng.IntN(3) > 0 {
				who++
			}
			add(&l, epoch, "limit", who, who%2 == 1)
			asked["name of "+name(who)]++
		}
	}
	top := l.Top(epoch, loud, everything)
	if len(top) != loud {
		t.Fatalf("%d callers, want %d", len(top), loud)
	}
	for i, c := range top {
		want, known := asked[c.Name]
		if !known {
			t.Fatalf("place %d: %+v is none of the loud ones", i, c)
		}
		if c.Hits < want || c.Hits-c.Uncertain > want {
			t.Errorf("%s asked %d times, told are %d of which %d uncertain", c.Name, want, c.Hits, c.Uncertain)
		}
		if i > 0 && c.Hits > top[i-1].Hits {
			t.Errorf("place %d has more than place %d", i, i-1)
		}
	}
	if n := len(l.limits["limit"].current.heap); n != entries {
		t.Errorf("%d entries, want %d", n, entries)
	}
}

func TestExactBelowItsSize(t *testing.T) {
	var l Lists
	for n := range entries {
		for range n + 1 {
			add(&l, epoch, "limit", n, n%2 == 0)
		}
	}
	for i, c := range l.Top(epoch, entries, everything) {
		n := entries - 1 - i
		refused := uint64(0)
		if n%2 == 0 {
			refused = uint64(n + 1)
		}
		if want := (Caller{Limit: "limit", Name: "name of " + name(n), Hits: uint64(n + 1), Refused: refused}); c != want {
			t.Fatalf("place %d: %+v, want %+v", i, c, want)
		}
	}
}

func TestTimePasses(t *testing.T) {
	var l Lists
	hits := func(after time.Duration) uint64 {
		if top := l.Top(epoch.Add(after), 1, everything); len(top) == 1 {
			return top[0].Hits
		}
		return 0
	}
	add(&l, epoch, "limit", 1, false)
	add(&l, epoch.Add(stretch-1), "limit", 1, false)
	add(&l, epoch.Add(stretch), "limit", 1, false)
	for _, c := range []struct {
		after time.Duration
		want  uint64
	}{{stretch, 3}, {2*stretch - 1, 3}, {2 * stretch, 1}, {3 * stretch, 0}, {30 * stretch, 0}} {
		if got := hits(c.after); got != c.want {
			t.Errorf("after %s: %d hits, want %d", c.after, got, c.want)
		}
	}
}

func TestLimits(t *testing.T) {
	var l Lists
	for i := range maxLimits + 5 {
		add(&l, epoch, fmt.Sprintf("limit %03d", i), i, false)
	}
	if got := l.Top(epoch, 1, everything); len(got) != maxLimits || got[0].Limit != "limit 000" || got[maxLimits-1].Limit != "limit 399" {
		t.Errorf("%d limits have lists, want %d, in order", len(got), maxLimits)
	}
	l.Keep(map[string]bool{"limit 007": true})
	if got := l.Top(epoch, 1, everything); len(got) != 1 || got[0].Limit != "limit 007" {
		t.Errorf("kept: %+v", got)
	}
	if got := l.Top(epoch, 1, func(string) bool { return false }); len(got) != 0 {
		t.Errorf("wanted nothing, got %+v", got)
	}
	l.Add(epoch, "limit 007", "nothing", 0, false, namer{})
	if got := l.Top(epoch, 2, everything); len(got) != 1 {
		t.Errorf("who asked for nothing is told: %+v", got)
	}
}

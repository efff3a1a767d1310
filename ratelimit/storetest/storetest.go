// Package storetest is the conformance suite that every store of counters passes.
package storetest

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-mesh/writ/ratelimit/limit"
)

// Store is what is tested: one atomic decision over all uses at the time now.
type Store interface {
	Decide(ctx context.Context, now time.Time, uses []limit.Use, outcomes []limit.Outcome) error
}

// Run runs the suite. fresh returns a store without counters that takes the time
// it is passed for the truth.
func Run(t *testing.T, fresh func(t *testing.T) Store) {
	for name, test := range map[string]func(*testing.T, Store){
		"one limit":                  oneLimit,
		"several limits are atomic":  atomicity,
		"observed limits":            observed,
		"one key twice":              sameKey,
		"fixed windows":              fixedWindows,
		"fixed and sliding together": mixed,
		"hits":                       hits,
		"odd keys":                   oddKeys,
		"clock set back":             setBack,
		"as the arithmetic says":     model,
		"concurrent":                 concurrent,
	} {
		t.Run(name, func(t *testing.T) { test(t, fresh(t)) })
	}
}

// Sliding makes a sliding limit for tests.
func Sliding(t testing.TB, requests uint32, window time.Duration) limit.Limit {
	t.Helper()
	return newLimit(t, limit.Sliding, requests, window)
}

// Fixed makes a fixed limit for tests.
func Fixed(t testing.TB, requests uint32, window time.Duration) limit.Limit {
	t.Helper()
	return newLimit(t, limit.Fixed, requests, window)
}

func newLimit(t testing.TB, a limit.Algorithm, requests uint32, window time.Duration) limit.Limit {
	t.Helper()
	l, err := limit.New(a, requests, window)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// start is near the real time, because Redis also lets keys expire by its own
// clock, and on a full hour, so that fixed windows begin where tests say.
func start() time.Time { return time.Now().Truncate(time.Hour) }

func decide(t *testing.T, s Store, now time.Time, uses ...limit.Use) []limit.Outcome {
	t.Helper()
	out := make([]limit.Outcome, len(uses))
	if err := s.Decide(t.Context(), now, uses, out); err != nil {
		t.Fatalf("decide: %v", err)
	}
	return out
}

func want(t *testing.T, what string, got []limit.Outcome, want ...limit.Outcome) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func oneLimit(t *testing.T, s Store) {
	u := limit.Use{Key: "k", Limit: Sliding(t, 2, 10*time.Second), Hits: 1}
	now := start()
	want(t, "first", decide(t, s, now, u), limit.Outcome{Remaining: 1, Reset: 10 * time.Second})
	now = now.Add(4 * time.Second)
	want(t, "second", decide(t, s, now, u), limit.Outcome{Reset: 10 * time.Second})
	now = now.Add(time.Second)
	for range 3 {
		want(t, "third", decide(t, s, now, u), limit.Outcome{Over: true, RetryAfter: 5 * time.Second, Reset: 9 * time.Second})
	}
	now = now.Add(5*time.Second - time.Microsecond)
	want(t, "just too early", decide(t, s, now, u), limit.Outcome{Over: true, RetryAfter: time.Microsecond, Reset: 4*time.Second + time.Microsecond})
	now = now.Add(time.Microsecond)
	want(t, "the time that was named", decide(t, s, now, u), limit.Outcome{Reset: 10 * time.Second})
	want(t, "another key", decide(t, s, now, limit.Use{Key: "other", Limit: u.Limit, Hits: 1}), limit.Outcome{Remaining: 1, Reset: 10 * time.Second})
}

func atomicity(t *testing.T, s Store) {
	wide := limit.Use{Key: "wide", Limit: Sliding(t, 5, time.Minute), Hits: 1}
	narrow := limit.Use{Key: "narrow", Limit: Sliding(t, 1, time.Second), Hits: 1}
	now := start()
	want(t, "both fit", decide(t, s, now, wide, narrow),
		limit.Outcome{Remaining: 4, Reset: time.Minute}, limit.Outcome{Reset: time.Second})
	for range 10 {
		want(t, "narrow is over", decide(t, s, now, wide, narrow),
			limit.Outcome{Remaining: 4, Reset: time.Minute},
			limit.Outcome{Over: true, RetryAfter: time.Second, Reset: time.Second})
		want(t, "in the other order", decide(t, s, now, narrow, wide),
			limit.Outcome{Over: true, RetryAfter: time.Second, Reset: time.Second},
			limit.Outcome{Remaining: 4, Reset: time.Minute})
	}
	want(t, "wide paid for nothing that was refused", decide(t, s, now, wide), limit.Outcome{Remaining: 3, Reset: time.Minute})
}

func observed(t *testing.T, s Store) {
	watched := limit.Use{Key: "watched", Limit: Sliding(t, 1, time.Minute), Hits: 1, Observe: true}
	enforced := limit.Use{Key: "enforced", Limit: Sliding(t, 3, time.Minute), Hits: 1}
	now := start()
	decide(t, s, now, watched, enforced)
	got := decide(t, s, now, watched, enforced)
	want(t, "over, but only watched", got,
		limit.Outcome{Over: true, RetryAfter: time.Minute, Reset: time.Minute}, limit.Outcome{Remaining: 1, Reset: time.Minute})
	if limit.Refused([]limit.Use{watched, enforced}, got) {
		t.Error("a limit that is only observed refuses")
	}
	want(t, "an observed use over its limit took nothing", decide(t, s, now.Add(time.Minute), watched), limit.Outcome{Reset: time.Minute})
}

func sameKey(t *testing.T, s Store) {
	u := limit.Use{Key: "k", Limit: Sliding(t, 3, time.Minute), Hits: 2}
	now := start()
	got := decide(t, s, now, u, u)
	want(t, "2 + 2 of 3", got,
		limit.Outcome{Remaining: 3}, limit.Outcome{Over: true, Remaining: 3, RetryAfter: time.Minute})
	u.Hits = 1
	got = decide(t, s, now, u, u)
	if got[0].Over || got[1].Over || got[1].Remaining != 1 {
		t.Errorf("1 + 1 of 3: %+v", got)
	}
	f := limit.Use{Key: "f", Limit: Fixed(t, 3, time.Minute), Hits: 2}
	want(t, "fixed counts one after the other", decide(t, s, now, f, f),
		limit.Outcome{Remaining: 1, Reset: time.Minute}, limit.Outcome{Over: true, RetryAfter: time.Minute, Reset: time.Minute})
}

func fixedWindows(t *testing.T, s Store) {
	u := limit.Use{Key: "k", Limit: Fixed(t, 2, time.Minute), Hits: 1}
	now := start().Add(20 * time.Second)
	left := 40 * time.Second
	want(t, "1", decide(t, s, now, u), limit.Outcome{Remaining: 1, Reset: left})
	want(t, "2", decide(t, s, now, u), limit.Outcome{Reset: left})
	want(t, "3", decide(t, s, now, u), limit.Outcome{Over: true, RetryAfter: left, Reset: left})
	u.Hits = 0
	want(t, "refused uses are counted", decide(t, s, now, u), limit.Outcome{Over: true, RetryAfter: left, Reset: left})
	u.Hits = 1
	want(t, "next window", decide(t, s, now.Add(left), u), limit.Outcome{Remaining: 1, Reset: time.Minute})
}

func mixed(t *testing.T, s Store) {
	f := limit.Use{Key: "f", Limit: Fixed(t, 5, time.Minute), Hits: 1}
	sl := limit.Use{Key: "s", Limit: Sliding(t, 1, time.Minute), Hits: 1}
	now := start()
	decide(t, s, now, f, sl)
	got := decide(t, s, now, sl, f)
	want(t, "fixed counts whatever the others say", got,
		limit.Outcome{Over: true, RetryAfter: time.Minute, Reset: time.Minute}, limit.Outcome{Remaining: 3, Reset: time.Minute})
}

func hits(t *testing.T, s Store) {
	u := limit.Use{Key: "k", Limit: Sliding(t, 10, time.Minute)}
	now := start()
	for _, c := range []struct {
		hits      uint64
		over      bool
		remaining uint32
	}{
		{0, false, 10}, {4, false, 6}, {7, true, 6}, {math.MaxUint64, true, 6}, {6, false, 0}, {0, true, 0}, {1, true, 0},
	} {
		u.Hits = c.hits
		got := decide(t, s, now, u)[0]
		if got.Over != c.over || got.Remaining != c.remaining {
			t.Errorf("%d hits: %+v, want over %v and %d remaining", c.hits, got, c.over, c.remaining)
		}
	}
	f := limit.Use{Key: "f", Limit: Fixed(t, 10, time.Minute), Hits: math.MaxUint64}
	for range 3 {
		if got := decide(t, s, now, f)[0]; !got.Over {
			t.Errorf("2^64-1 hits: %+v", got)
		}
	}
	none := limit.Use{Key: "none", Limit: Sliding(t, 0, time.Minute), Hits: 1}
	want(t, "a limit of nothing", decide(t, s, now, none), limit.Outcome{Over: true, RetryAfter: time.Minute})
}

func oddKeys(t *testing.T, s Store) {
	now := start()
	for _, key := range []string{"", " ", "\x00\xff\xfe", "{", "}{", "a:b", strings.Repeat("x", 64<<10), "ключ"} {
		u := limit.Use{Key: key, Limit: Sliding(t, 1, time.Minute), Hits: 1}
		if decide(t, s, now, u)[0].Over {
			t.Errorf("key %.20q: the first use is over", key)
		}
		if !decide(t, s, now, u)[0].Over {
			t.Errorf("key %.20q: the second use is not over", key)
		}
	}
}

func setBack(t *testing.T, s Store) {
	u := limit.Use{Key: "k", Limit: Sliding(t, 1, 10*time.Second), Hits: 1}
	now := start()
	decide(t, s, now, u)
	now = now.Add(-10 * time.Minute)
	// What was written by a clock ahead counts from now on, for one window. A store
	// may keep the later time until it next writes, never beyond a window of that clock.
	if got := decide(t, s, now, u)[0]; !got.Over || got.RetryAfter > 10*time.Second {
		t.Errorf("clock set back: %+v", got)
	}
}

// model plays one random sequence on the store and on the bare arithmetic.
func model(t *testing.T, s Store) {
	for seed := range uint64(8) {
		rng := rand.New(rand.NewPCG(seed, 3))
		l := Sliding(t, uint32(1+rng.IntN(80)), time.Duration(1+rng.IntN(50))*100*time.Millisecond)
		key := fmt.Sprintf("model-%d", seed)
		now, w := start(), limit.Window{}
		for range 200 {
			now = now.Add(time.Duration(rng.Int64N(int64(l.Window()) / 25))).Truncate(time.Microsecond)
			h := uint64(rng.IntN(4))
			wanted := w.Check(l, now, h, 0)
			if !wanted.Over {
				w.Add(l, now, h)
			}
			wanted.Remaining, wanted.Reset = w.After(l, now)
			got := decide(t, s, now, limit.Use{Key: key, Limit: l, Hits: h})[0]
			if diff := cmp.Diff(wanted, got); diff != "" {
				t.Fatalf("seed %d (-arithmetic +store):\n%s", seed, diff)
			}
		}
	}
}

func concurrent(t *testing.T, s Store) {
	a := limit.Use{Key: "a", Limit: Sliding(t, 100, time.Minute), Hits: 1}
	b := limit.Use{Key: "b", Limit: Sliding(t, 60, time.Minute), Hits: 1}
	now := start()
	var passed atomic.Int64
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			uses, out := []limit.Use{a, b}, make([]limit.Outcome, 2)
			if worker%2 == 1 {
				uses = []limit.Use{b, a}
			}
			for range 25 {
				if err := s.Decide(t.Context(), now, uses, out); err != nil {
					t.Errorf("decide: %v", err)
					return
				}
				if !limit.Refused(uses, out) {
					passed.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if passed.Load() != 60 {
		t.Errorf("%d passed, want 60", passed.Load())
	}
	if got := decide(t, s, now, a)[0]; got.Remaining != 39 {
		t.Errorf("a has %d left after one more, want 39: refused requests took from it", got.Remaining)
	}
}

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

// Run runs the suite: what every store does with every algorithm, and what the
// algorithms differ in. fresh returns a store without counters that takes the
// time it is passed for the truth.
func Run(t *testing.T, fresh func(t *testing.T) Store) {
	for _, a := range limit.Algorithms() {
		for name, test := range map[string]func(*testing.T, Store, limit.Algorithm){
			"one limit":                  oneLimit,
			"several limits are atomic":  atomicity,
			"observed limits":            observed,
			"one key twice":              sameKey,
			"hits":                       hits,
			"odd keys":                   oddKeys,
			"clock set back":             setBack,
			"as the arithmetic says":     model,
			"another algorithm is fresh": edited,
			"other numbers count on":     otherNumbers,
			"concurrent":                 concurrent,
			"charge":                     charge,
			"refund":                     refund,
			"reset":                      reset,
			"reset, then refund":         resetThenRefund,
			"held":                       held,
			"held together":              heldTogether,
			"settled once":               settledOnce,
			"operations":                 operations,
			"parts":                      parts,
			"watched parts":              watchedParts,
			"parts as arithmetic says":   partsAsTheArithmeticSays,
		} {
			t.Run(a.String()+"/"+name, func(t *testing.T) { test(t, fresh(t), a) })
		}
	}
	for name, test := range map[string]func(*testing.T, Store){
		"sliding windows":            slidingWindows,
		"fixed windows":              fixedWindows,
		"fixed and sliding together": mixed,
		"no limit":                   noLimit,
		"refund of then":             refundOfThen,
	} {
		t.Run(name, func(t *testing.T) { test(t, fresh(t)) })
	}
}

// Shares runs what is asked besides of a store that shares are taken from.
func Shares(t *testing.T, fresh func(t *testing.T) Store) {
	for _, a := range limit.Algorithms() {
		t.Run(a.String()+"/wanted", func(t *testing.T) { wanted(t, fresh(t), a) })
	}
}

// Sliding makes a sliding limit for tests.
func Sliding(t testing.TB, requests uint32, window time.Duration) limit.Limit {
	t.Helper()
	return New(t, limit.Sliding, requests, window)
}

// Fixed makes a fixed limit for tests.
func Fixed(t testing.TB, requests uint32, window time.Duration) limit.Limit {
	t.Helper()
	return New(t, limit.Fixed, requests, window)
}

// New makes a limit for tests. As many may come at once as in a window.
func New(t testing.TB, a limit.Algorithm, requests uint32, window time.Duration) limit.Limit {
	t.Helper()
	l, err := limit.New(a, requests, window)
	if a == limit.GCRA && requests > 0 {
		l, err = limit.NewGCRA(requests, window, requests)
	}
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
	for i := range got {
		got[i].At, got[i].Taken = time.Time{}, 0
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// use is one hit on a counter of its own, which begins where a window does.
func use(t *testing.T, a limit.Algorithm, key string, requests uint32, window time.Duration) limit.Use {
	t.Helper()
	return limit.Use{Key: key, Limit: New(t, a, requests, window), Hits: 1}
}

// pass asks n times and counts what passes.
func pass(t *testing.T, s Store, now time.Time, n int, u limit.Use) (passed int) {
	t.Helper()
	for range n {
		if !decide(t, s, now, u)[0].Over {
			passed++
		}
	}
	return passed
}

// oneLimit: at one instant as many pass as the limit says, what is refused passes
// when the answer says so and no earlier, and all is free again when it says so.
func oneLimit(t *testing.T, s Store, a limit.Algorithm) {
	u, now := use(t, a, "k", 5, 10*time.Second), start()
	if got := pass(t, s, now, 20, u); got != 5 {
		t.Errorf("%d of 5 passed", got)
	}
	if got := pass(t, s, now, 20, use(t, a, "other", 5, 10*time.Second)); got != 5 {
		t.Errorf("%d of 5 passed by another key", got)
	}
	out := decide(t, s, now, u)[0]
	if !out.Over || out.Remaining != 0 || out.RetryAfter <= 0 || out.RetryAfter > out.Reset || out.Reset > 10*time.Second {
		t.Fatalf("over: %+v", out)
	}
	if out := decide(t, s, now.Add(out.RetryAfter-time.Microsecond), u)[0]; !out.Over || out.RetryAfter != time.Microsecond {
		t.Errorf("just too early: %+v", out)
	}
	if out := decide(t, s, now.Add(out.RetryAfter), u)[0]; out.Over {
		t.Errorf("the time that was named: %+v", out)
	}
	free := now.Add(out.Reset + 10*time.Second)
	if got := pass(t, s, free, 20, u); got != 5 {
		t.Errorf("%d of 5 passed when all was free again", got)
	}
}

// atomicity: who refuses makes the others count nothing, except those that count
// refused uses, and it is not made to refuse by them.
func atomicity(t *testing.T, s Store, a limit.Algorithm) {
	for _, other := range limit.Algorithms() {
		wide := use(t, a, "wide-"+other.String(), 50, time.Minute)
		narrow := use(t, other, "narrow-"+other.String(), 1, time.Minute)
		now := start()
		if out := decide(t, s, now, wide, narrow); out[0].Over || out[1].Over || out[0].Remaining != 49 {
			t.Errorf("with %s, both fit: %+v", other, out)
		}
		for range 5 {
			for i, uses := range [][]limit.Use{{wide, narrow}, {narrow, wide}} {
				if out := decide(t, s, now, uses...); out[i].Over || !out[1-i].Over {
					t.Errorf("with %s, narrow is over: %+v", other, out)
				}
			}
		}
		want := uint32(48) // the first, and this one
		if wide.Limit.CountsRefused() || narrow.Limit.CountsRefused() {
			want -= 10 // a limit that counts refused uses holds nobody back
		}
		if out := decide(t, s, now, wide)[0]; out.Remaining != want {
			t.Errorf("with %s, wide has %d left, want %d", other, out.Remaining, want)
		}
	}
}

// observed: a use that is only observed never refuses, and takes if it fits.
func observed(t *testing.T, s Store, a limit.Algorithm) {
	watched := use(t, a, "watched", 1, time.Minute)
	watched.Observe = true
	enforced := use(t, limit.Sliding, "enforced", 3, time.Minute)
	now := start()
	decide(t, s, now, watched, enforced)
	got := decide(t, s, now, watched, enforced)
	if !got[0].Over || got[1].Over || got[1].Remaining != 1 {
		t.Errorf("over, but only watched: %+v", got)
	}
	if limit.Refused([]limit.Use{watched, enforced}, got) {
		t.Error("a limit that is only observed refuses")
	}
	if got := decide(t, s, now.Add(time.Minute), watched)[0]; got.Over {
		t.Errorf("a window later: %+v", got)
	}
}

// sameKey: uses of one key in one decision stand one behind the other.
func sameKey(t *testing.T, s Store, a limit.Algorithm) {
	u, now := use(t, a, "k", 3, time.Minute), start()
	got := decide(t, s, now, u, u)
	if got[0].Over || got[1].Over || got[1].Remaining != 1 {
		t.Errorf("1 + 1 of 3: %+v", got)
	}
	u.Key, u.Hits = "l", 2
	got = decide(t, s, now, u, u)
	if got[0].Over || !got[1].Over {
		t.Errorf("2 + 2 of 3: %+v", got)
	}
	want := uint32(3)
	if u.Limit.CountsRefused() {
		want = 0
	}
	if got[1].Remaining != want {
		t.Errorf("2 + 2 of 3 leave %d, want %d", got[1].Remaining, want)
	}
}

// edited: a limit that gets another algorithm begins anew, under a key of its own
// (as package quota makes them) and, without an error, under the same one.
func edited(t *testing.T, s Store, a limit.Algorithm) {
	for _, to := range limit.Algorithms() {
		if to == a {
			continue
		}
		for _, key := range []func(limit.Algorithm) string{
			func(x limit.Algorithm) string { return "own-" + to.String() + ":" + x.Code() },
			func(limit.Algorithm) string { return "same-" + to.String() },
		} {
			now := start()
			pass(t, s, now, 5, use(t, a, key(a), 5, time.Minute))
			if got := pass(t, s, now, 20, use(t, to, key(to), 5, time.Minute)); got > 5 {
				t.Errorf("%d of 5 passed after an edit to %s", got, to)
			} else if got < 5 && key(a) != key(to) {
				t.Errorf("%d of 5 passed after an edit to %s: the other's counter counts", got, to)
			}
		}
	}
}

// otherNumbers: a limit with other numbers counts on, and what the greater one has counted
// is not forgotten by uses of the smaller one, whatever they do.
func otherNumbers(t *testing.T, s Store, a limit.Algorithm) {
	now := start()
	large, small := use(t, a, "k", 50, time.Minute), use(t, a, "k", 10, time.Minute)
	if a == limit.GCRA { // of one rate: of others a hit is another part of the limit
		l, err := limit.NewGCRA(10, time.Minute, 50)
		if err != nil {
			t.Fatal(err)
		}
		large.Limit = l
	}
	pass(t, s, now, 30, large)
	if got := pass(t, s, now, 5, small); got != 0 {
		t.Errorf("%d of 10 passed after 30", got)
	}
	if a == limit.Fixed {
		return // whose refused uses have counted
	}
	if a != limit.Concurrency { // whose places nobody charges
		small.Op = limit.Charge
		decide(t, s, now, small)
	}
	if got := pass(t, s, now, 100, large); got > 50-30 || got < 50-30-1 {
		t.Errorf("%d more of 50 passed after 30, and perhaps one that was charged", got)
	}
}

func noLimit(t *testing.T, s Store) {
	if err := s.Decide(t.Context(), start(), []limit.Use{{Key: "k", Hits: 1}}, make([]limit.Outcome, 1)); err == nil {
		t.Error("a use of no limit was decided")
	}
}

func slidingWindows(t *testing.T, s Store) {
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

	wide, narrow := u, u
	wide.Key, wide.Limit = "wide", Sliding(t, 5, time.Minute)
	narrow.Key, narrow.Limit = "narrow", Sliding(t, 1, time.Second)
	want(t, "both fit", decide(t, s, now, wide, narrow),
		limit.Outcome{Remaining: 4, Reset: time.Minute}, limit.Outcome{Reset: time.Second})
	for range 10 {
		want(t, "narrow is over", decide(t, s, now, wide, narrow),
			limit.Outcome{Remaining: 4, Reset: time.Minute},
			limit.Outcome{Over: true, RetryAfter: time.Second, Reset: time.Second})
	}
	want(t, "wide paid for nothing that was refused", decide(t, s, now, wide), limit.Outcome{Remaining: 3, Reset: time.Minute})

	u.Key, u.Limit, u.Hits = "twice", Sliding(t, 3, time.Minute), 2
	want(t, "2 + 2 of 3", decide(t, s, now, u, u),
		limit.Outcome{Remaining: 3}, limit.Outcome{Over: true, Remaining: 3, RetryAfter: time.Minute})
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

func hits(t *testing.T, s Store, a limit.Algorithm) {
	u, now := use(t, a, "k", 10, time.Minute), start()
	for _, c := range []struct {
		hits      uint64
		over      bool
		remaining uint32
	}{{0, false, 10}, {4, false, 6}, {6, false, 0}, {1, true, 0}, {math.MaxUint64, true, 0}, {0, true, 0}} {
		u.Hits = c.hits
		got := decide(t, s, now, u)[0]
		if got.Over != c.over || got.Remaining != c.remaining {
			t.Errorf("%d hits: %+v, want over %v and %d remaining", c.hits, got, c.over, c.remaining)
		}
	}
	huge := use(t, a, "huge", 10, time.Minute)
	huge.Hits = math.MaxUint64
	for range 3 {
		if got := decide(t, s, now, huge)[0]; !got.Over || got.RetryAfter != time.Minute {
			t.Errorf("2^64-1 hits: %+v", got)
		}
	}
	huge.Hits = 10
	if got := decide(t, s, now, huge)[0]; got.Over != huge.Limit.CountsRefused() {
		t.Errorf("all of the limit after uses of more than that: %+v", got)
	}
	if got := decide(t, s, now, use(t, a, "none", 0, time.Minute))[0]; !got.Over || got.RetryAfter != time.Minute {
		t.Errorf("a limit of nothing: %+v", got)
	}
}

func oddKeys(t *testing.T, s Store, a limit.Algorithm) {
	for _, key := range []string{"", " ", "\x00\xff\xfe", "{", "}{", "a:b", strings.Repeat("x", 64<<10), "ключ"} {
		if got := pass(t, s, start(), 2, use(t, a, key, 1, time.Minute)); got != 1 {
			t.Errorf("key %.20q: %d of 1 passed", key, got)
		}
	}
}

// setBack: what was written by a clock ahead counts for one window at the most. A
// store may keep the later time until it next writes, never beyond a window of
// that clock.
func setBack(t *testing.T, s Store, a limit.Algorithm) {
	u, now := use(t, a, "k", 1, 10*time.Second), start()
	decide(t, s, now, u)
	now = now.Add(-10 * time.Minute)
	if got := decide(t, s, now, u)[0]; got.RetryAfter > 10*time.Second {
		t.Errorf("clock set back: %+v", got)
	} else if !got.Over && u.Limit.CounterKey(u.Key, now) == u.Key {
		t.Errorf("clock set back, and the limit is forgotten: %+v", got)
	}
}

// model plays one random sequence on the store and on the bare arithmetic.
func model(t *testing.T, s Store, a limit.Algorithm) {
	for seed := range uint64(8) {
		rng := rand.New(rand.NewPCG(seed, 3))
		u := use(t, a, fmt.Sprintf("model-%d", seed), uint32(1+rng.IntN(80)), time.Duration(1+rng.IntN(50))*100*time.Millisecond)
		l, now := u.Limit, start()
		counter, err := limit.NewCounter(l)
		if err != nil {
			t.Fatal(err)
		}
		for range 200 {
			now = now.Add(time.Duration(rng.Int64N(int64(l.Window()) / 25))).Truncate(time.Microsecond)
			u.Hits = uint64(rng.IntN(4))
			wanted := counter.Check(&u, now, 0)
			if l.CountsRefused() {
				wanted.Taken = u.Hits
			}
			counter.Take(&u, now, wanted.Taken)
			counter.After(&u, now, &wanted)
			got := decide(t, s, now, u)[0]
			if diff := cmp.Diff(wanted, got); diff != "" {
				t.Fatalf("seed %d (-arithmetic +store):\n%s", seed, diff)
			}
		}
	}
}

func concurrent(t *testing.T, s Store, algorithm limit.Algorithm) {
	a, b := use(t, algorithm, "a", 100, time.Minute), use(t, algorithm, "b", 60, time.Minute)
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
	left := uint32(39)
	if a.Limit.CountsRefused() {
		left = 0
	}
	if got := decide(t, s, now, a)[0]; got.Remaining != left {
		t.Errorf("a has %d left after one more, want %d", got.Remaining, left)
	}
}

package storetest

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-mesh/writ/ratelimit/limit"
)

// charge: what is charged counts whether it fits or not, and refuses nothing.
func charge(t *testing.T, s Store, a limit.Algorithm) {
	u, now := use(t, a, "k", 5, time.Minute), start()
	c := u
	c.Op, c.Hits = limit.Charge, 3
	if out := decide(t, s, now, c)[0]; out.Over || out.Taken != 3 || out.Remaining != 2 {
		t.Errorf("3 of 5 charged: %+v", out)
	}
	c.Hits = 7
	if out := decide(t, s, now, c)[0]; out.Over || out.Remaining != 0 {
		t.Errorf("10 of 5 charged: %+v", out)
	}
	if out := decide(t, s, now, u)[0]; !out.Over {
		t.Errorf("one more: %+v", out)
	}
	// What is refused by another limit is not charged for, but by limits that count
	// refused uses.
	none, other := use(t, limit.Sliding, "none", 0, time.Minute), use(t, a, "other", 5, time.Minute)
	charged := other
	charged.Op = limit.Charge
	if out := decide(t, s, now, none, charged); !out[0].Over || out[1].Taken != 0 {
		t.Errorf("refused and charged: %+v", out)
	}
	if out := decide(t, s, now, other)[0]; out.Remaining != 4 {
		t.Errorf("after a refused charge: %+v", out)
	}
}

// refund: what is given back can be taken again, and never more than was used.
func refund(t *testing.T, s Store, a limit.Algorithm) {
	if a == limit.Concurrency {
		return // places are given back by name
	}
	u, now := use(t, a, "k", 5, time.Minute), start()
	r := u
	r.Op, r.Hits = limit.Refund, 3
	if out := decide(t, s, now, r)[0]; out.Taken != 0 || out.Remaining != 5 {
		t.Errorf("nothing was used: %+v", out)
	}
	u.Hits = 4
	taken := decide(t, s, now, u)[0]
	if out := decide(t, s, now, r)[0]; out.Taken != 3 || out.Remaining != 4 {
		t.Errorf("3 of 4: %+v", out)
	}
	if out := decide(t, s, now, r)[0]; out.Taken != 1 || out.Remaining != 5 {
		t.Errorf("3 of 1: %+v", out)
	}
	u.Hits = 5
	if out := decide(t, s, now, u)[0]; out.Over || out.Remaining != 0 {
		t.Errorf("all of it: %+v", out)
	}
	r.At = taken.At
	if out := decide(t, s, now.Add(2*time.Minute), r)[0]; out.Taken != 0 || out.Remaining != 5 {
		t.Errorf("a window too late: %+v", out)
	}
}

// refundOfThen: with the time of the use its own hits are given back.
func refundOfThen(t *testing.T, s Store) {
	u, now := limit.Use{Key: "k", Limit: Sliding(t, 10, time.Minute), Hits: 3}, start()
	first := decide(t, s, now, u)[0]
	decide(t, s, now.Add(20*time.Second), u)
	r := limit.Use{Key: "k", Limit: u.Limit, Op: limit.Refund, Hits: 5, At: first.At}
	want(t, "the first", decide(t, s, now.Add(30*time.Second), r), limit.Outcome{Remaining: 7, Reset: 50 * time.Second})
	r.At, r.Hits = time.Time{}, 1
	want(t, "one more", decide(t, s, now.Add(30*time.Second), r), limit.Outcome{Remaining: 8, Reset: 50 * time.Second})
	u.Hits = 9
	want(t, "too much", decide(t, s, now.Add(30*time.Second), u), limit.Outcome{Over: true, Remaining: 8, RetryAfter: 50 * time.Second, Reset: 50 * time.Second})
}

func reset(t *testing.T, s Store, a limit.Algorithm) {
	u, now := use(t, a, "k", 5, time.Minute), start()
	pass(t, s, now, 9, u)
	u.Op = limit.Reset
	if out := decide(t, s, now, u)[0]; out.Remaining != 5 || out.Taken != 0 {
		t.Errorf("reset: %+v", out)
	}
	u.Op = limit.Take
	if got := pass(t, s, now, 9, u); got != 5 {
		t.Errorf("%d of 5 passed after a reset", got)
	}
	again, more := u, u
	again.Op, more.Op, more.Hits = limit.Reset, limit.Charge, 2
	if out := decide(t, s, now, again, more); out[1].Remaining != 3 {
		t.Errorf("2 charged along with a reset: %+v", out)
	}
}

// wanted: who wants more gets at most a quarter of what is left or a little rest,
// and what it needs at least.
func wanted(t *testing.T, s Store, a limit.Algorithm) {
	u, now := use(t, a, "k", 1000, time.Minute), start()
	for i, c := range []struct{ hits, want, taken uint64 }{
		{1, 10, 10},
		{1, 1000, 247},
		{300, 1000, 300},
		{0, 10, 0},
		{1, 0, 1},
		{1, 1000, 110},
		{1, 1000, 83},
		{1, 1000, 64},
		{1, 20, 20},
		{150, 1000, 150},
		{1, 1000, 15},
		{1, 1000, 0},
	} {
		u.Hits, u.Want = c.hits, c.want
		if out := decide(t, s, now, u)[0]; out.Taken != c.taken && !out.Over || out.Over != (i == 11) {
			t.Errorf("%d hits, %d wanted: %+v, want %d taken", c.hits, c.want, out, c.taken)
		}
	}
}

// held: what is held counts until it is settled or its time is over, and whoever
// settles it twice settles it once.
func held(t *testing.T, s Store, a limit.Algorithm) {
	if a == limit.Fixed {
		return // holds nothing
	}
	const length = 10 * time.Second
	now := start()
	hold := func(name string, hits uint64) limit.Use {
		u := use(t, a, "k", 10, length)
		u.Hold, u.HoldFor, u.Hits = name, length, hits
		return u
	}
	settle := func(now time.Time, name string, hits uint64) limit.Outcome {
		u := hold(name, hits)
		u.Op = limit.Settle
		return decide(t, s, now, u)[0]
	}
	if out := decide(t, s, now, hold("a", 4), hold("b", 6)); out[0].Taken != 4 || out[1].Taken != 6 || out[1].Remaining != 0 {
		t.Fatalf("10 of 10 held: %+v", out)
	}
	if out := decide(t, s, now, hold("c", 1))[0]; !out.Over || out.RetryAfter != length || out.Reset != length {
		t.Errorf("11 of 10: %+v", out)
	}
	if out := settle(now.Add(time.Second), "a", 0); out.Remaining != 4 || out.Reset != 9*time.Second {
		t.Errorf("a was for nothing: %+v", out)
	}
	if out := settle(now.Add(time.Second), "a", 3); out.Remaining != 4 || out.Taken != 0 {
		t.Errorf("a again: %+v", out)
	}
	if out := settle(now.Add(time.Second), "nobody", 3); out.Remaining != 4 || out.Taken != 0 {
		t.Errorf("nobody: %+v", out)
	}
	if out := decide(t, s, now.Add(time.Second), hold("c", 4))[0]; out.Over || out.Remaining != 0 {
		t.Errorf("what a left: %+v", out)
	}
	left, late := uint32(6), uint32(8)
	if a == limit.Concurrency {
		late = 10 // nothing is charged: there are places only
	}
	if out := decide(t, s, now.Add(length), hold("ask", 0))[0]; out.Over || out.Remaining != left {
		t.Errorf("b is not over: %+v", out)
	}
	settle(now.Add(length), "c", 0)
	if out := settle(now.Add(length+time.Second), "b", 2); out.Remaining != late {
		t.Errorf("b came late: %+v, want %d left", out, late)
	}
	if out := settle(now.Add(length+time.Second), "b", 2); out.Remaining != late || out.Taken != 0 {
		t.Errorf("b came again: %+v", out)
	}
	decide(t, s, now.Add(2*length), hold("d", 2))
	if out := settle(now.Add(4*length), "d", 2); out.Remaining != 10 || out.Taken != 0 {
		t.Errorf("d came far too late: %+v", out)
	}
}

// heldTogether: a refused request holds nothing.
func heldTogether(t *testing.T, s Store, a limit.Algorithm) {
	if a == limit.Fixed {
		return // holds nothing
	}
	now, none := start(), use(t, limit.Sliding, "none", 0, time.Minute)
	u := use(t, a, "k", 10, time.Minute)
	u.Hold, u.HoldFor = "x", time.Minute
	if out := decide(t, s, now, u, none); out[0].Taken != 0 || out[0].Remaining != 10 {
		t.Errorf("refused, and held: %+v", out[0])
	}
	end := u
	end.Op, end.Hits = limit.Settle, 5
	if out := decide(t, s, now, end)[0]; out.Taken != 0 || out.Remaining != 10 {
		t.Errorf("nothing to settle: %+v", out)
	}
}

// settledOnce: of any number who settle one hold at a time one does.
func settledOnce(t *testing.T, s Store, a limit.Algorithm) {
	if a == limit.Fixed {
		return // holds nothing
	}
	now := start()
	u := use(t, a, "k", 100, time.Minute)
	u.Hold, u.HoldFor, u.Hits = "x", time.Minute, 50
	decide(t, s, now, u)
	u.Op, u.Hits = limit.Settle, 10
	var done atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			uses, out := []limit.Use{u}, make([]limit.Outcome, 1)
			for range 50 {
				if err := s.Decide(t.Context(), now, uses, out); err != nil {
					t.Errorf("settle: %v", err)
				}
				done.Add(int64(out[0].Taken)) //nolint:gosec // 0 or 10
			}
		})
	}
	wg.Wait()
	left := uint32(90)
	if a == limit.Concurrency {
		left = 100
	}
	ask := limit.Use{Key: "k", Limit: u.Limit, HoldFor: time.Minute}
	if out := decide(t, s, now, ask)[0]; done.Load() != 10 || out.Remaining != left {
		t.Errorf("settled %d in 400 attempts, %+v, want 10, and %d left", done.Load(), out, left)
	}
}

// operations plays random operations on the store and on the bare arithmetic.
func operations(t *testing.T, s Store, a limit.Algorithm) {
	if a == limit.Fixed {
		return // model has it
	}
	for seed := range uint64(8) {
		rng := rand.New(rand.NewPCG(seed, 5))
		u := use(t, a, fmt.Sprintf("operations-%d", seed), uint32(1+rng.IntN(60)), time.Duration(1+rng.IntN(50))*100*time.Millisecond)
		l, now := u.Limit, start()
		counter, err := limit.NewCounter(l)
		if err != nil {
			t.Fatal(err)
		}
		for range 200 {
			now = now.Add(time.Duration(rng.Int64N(int64(l.Window()) / 25))).Truncate(time.Microsecond)
			u.Op, u.Hits, u.Hold, u.HoldFor = limit.Take, uint64(rng.IntN(4)), fmt.Sprint(rng.IntN(30)), l.Window()/2
			switch rng.IntN(9) {
			case 0:
				u.Op = limit.Charge
			case 1:
				u.Op = limit.Refund
			case 2, 3, 4:
				u.Op = limit.Settle
			}
			var wanted limit.Outcome
			if u.Op == limit.Take {
				wanted = counter.Check(&u, now, 0)
				counter.Take(&u, now, wanted.Taken)
			} else {
				wanted.Taken = counter.Apply(&u, now)
			}
			counter.After(&u, now, &wanted)
			if diff := cmp.Diff(wanted, decide(t, s, now, u)[0]); diff != "" {
				t.Fatalf("seed %d, %+v (-arithmetic +store):\n%s", seed, u, diff)
			}
		}
	}
}

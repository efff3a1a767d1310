package fallback_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/writ-mesh/writ/ratelimit/fallback"
	"github.com/writ-mesh/writ/ratelimit/limit"
	"github.com/writ-mesh/writ/ratelimit/memory"
	"github.com/writ-mesh/writ/ratelimit/storetest"
)

// outage runs replicas over one store through an outage: before, then during it is
// called, and after once all of them are back.
func outage(t *testing.T, replicas int, before, during, after func(ask func(replica int, uses ...limit.Use) []limit.Outcome)) {
	synctest.Test(t, func(t *testing.T) {
		store := &shared{store: memory.New(0)}
		ctx, cancel := context.WithCancel(t.Context())
		var guards []*fallback.Guard
		var tasks sync.WaitGroup
		for range replicas {
			g := fallback.New(store, memory.New(0), slog.New(slog.DiscardHandler), prometheus.NewRegistry())
			guards = append(guards, g)
			tasks.Go(func() { _ = g.Run(ctx) })
		}
		synctest.Wait()
		ask := func(replica int, uses ...limit.Use) []limit.Outcome {
			t.Helper()
			out := make([]limit.Outcome, len(uses))
			if err := guards[replica].Decide(ctx, time.Now(), uses, out); err != nil {
				t.Fatal(err)
			}
			return out
		}
		before(ask)
		store.set(errors.New("away"))
		for i := range guards {
			for !guards[i].Degraded() {
				ask(i, limit.Use{Key: "other", Limit: storetest.Sliding(t, 1000, time.Hour), Hits: 1})
				sleep(5 * time.Millisecond)
			}
		}
		during(ask)
		store.set(nil)
		sleep(3 * time.Second)
		for i, g := range guards {
			if g.Degraded() {
				t.Fatalf("replica %d is not back", i)
			}
		}
		after(ask)
		cancel()
		tasks.Wait()
	})
}

// TestReconciled: what replicas let pass while the store was away counts for all of
// them when it is back, as far as it still counts.
func TestReconciled(t *testing.T) {
	for _, l := range []limit.Limit{storetest.Sliding(t, 100, time.Hour), storetest.Fixed(t, 100, 24*time.Hour), storetest.New(t, limit.GCRA, 100, 1000*time.Hour)} {
		t.Run(l.Algorithm().String(), func(t *testing.T) {
			u := limit.Use{Key: "k", Limit: l, Hits: 1}
			short := limit.Use{Key: "short", Limit: storetest.Sliding(t, 100, time.Second), Hits: 1}
			outage(t, 3, func(ask func(int, ...limit.Use) []limit.Outcome) {
				for range 10 {
					ask(0, u, short)
				}
			}, func(ask func(int, ...limit.Use) []limit.Outcome) {
				for i := range 3 {
					for range 10 * (i + 1) {
						ask(i, u, short)
					}
				}
				back := u
				back.Op, back.Hits = limit.Refund, 5
				ask(2, back)
				for key := range 200 { // many counters, of which each is told
					other := limit.Use{Key: fmt.Sprint("other-", key), Limit: l, Hits: 2}
					ask(1, other)
				}
				sleep(2 * time.Second) // nothing of the short window counts any more
			}, func(ask func(int, ...limit.Use) []limit.Outcome) {
				asked := func(u limit.Use, want uint32) {
					t.Helper()
					u.Hits = 0
					if out := ask(1, u)[0]; out.Remaining != want {
						t.Errorf("%s has %d left, want %d", u.Key, out.Remaining, want)
					}
				}
				asked(u, 100-10-10-20-30+5)
				asked(short, 100)
				for key := range 200 {
					asked(limit.Use{Key: fmt.Sprint("other-", key), Limit: l}, 98)
				}
			})
		})
	}
}

// TestPlacesAcrossAnOutage: a place is free again once its request is over, whether
// it was taken before the outage, in it or after it.
func TestPlacesAcrossAnOutage(t *testing.T) {
	l := storetest.New(t, limit.Concurrency, 10, time.Hour)
	place := func(name string, op limit.Op) limit.Use {
		u := limit.Use{Key: "k", Limit: l, Op: op, Hold: name}
		if op == limit.Take {
			u.Hits = 1
		}
		return u
	}
	outage(t, 2, func(ask func(int, ...limit.Use) []limit.Outcome) {
		ask(0, place("before", limit.Take), place("through", limit.Take))
	}, func(ask func(int, ...limit.Use) []limit.Outcome) {
		ask(0, place("before", limit.Settle))
		ask(0, place("in", limit.Take))
		ask(0, place("in", limit.Settle))
		ask(0, place("still", limit.Take))
	}, func(ask func(int, ...limit.Use) []limit.Outcome) {
		if out := ask(1, limit.Use{Key: "k", Limit: l})[0]; out.Remaining != 8 {
			t.Errorf("%d places are free, want all but those of through and still", out.Remaining)
		}
		ask(1, place("still", limit.Settle))
		ask(1, place("through", limit.Settle))
		if out := ask(1, limit.Use{Key: "k", Limit: l})[0]; out.Remaining != 10 {
			t.Errorf("%d places are free, want all", out.Remaining)
		}
	})
}

// TestResetAcrossAnOutage: a counter that was reset while the store was away is
// forgotten there too, and what passed after that counts.
func TestResetAcrossAnOutage(t *testing.T) {
	u := limit.Use{Key: "k", Limit: storetest.Sliding(t, 100, time.Hour), Hits: 1}
	forget := u
	forget.Op, forget.Hits = limit.Reset, 0
	outage(t, 1, func(ask func(int, ...limit.Use) []limit.Outcome) {
		ask(0, u)
	}, func(ask func(int, ...limit.Use) []limit.Outcome) {
		ask(0, u)
		ask(0, forget)
		for range 5 {
			ask(0, u)
		}
	}, func(ask func(int, ...limit.Use) []limit.Outcome) {
		if out := ask(0, limit.Use{Key: "k", Limit: u.Limit})[0]; out.Remaining != 95 {
			t.Errorf("%d of 100 are left, want 95", out.Remaining)
		}
	})
}

// TestNothingOldIsTold: what the store failed to answer once, long ago, is not done to
// what it counts now.
func TestNothingOldIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &shared{store: memory.New(0)}
		g := fallback.New(store, memory.New(0), slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- g.Run(ctx) }()
		synctest.Wait()
		ask := func(u limit.Use) {
			t.Helper()
			if err := g.Decide(ctx, time.Now(), []limit.Use{u}, make([]limit.Outcome, 1)); err != nil {
				t.Fatal(err)
			}
		}
		u := limit.Use{Key: "k", Limit: storetest.Sliding(t, 100, time.Hour), Hits: 7}
		forget, held := u, u
		forget.Op, forget.Hits = limit.Reset, 0
		held.Hits, held.Hold, held.HoldFor = 3, "request", time.Minute
		store.set(errors.New("one hiccup"))
		ask(forget)
		ask(held)
		store.set(nil)
		sleep(2 * time.Hour)
		ask(u)
		store.set(errors.New("away"))
		for !g.Degraded() {
			ask(limit.Use{Key: "other", Limit: u.Limit, Hits: 1})
			sleep(5 * time.Millisecond)
		}
		store.set(nil)
		sleep(3 * time.Second)
		out := make([]limit.Outcome, 1)
		left := limit.Use{Key: "k", Limit: u.Limit, HoldFor: time.Second, Observe: true}
		if err := store.Decide(ctx, time.Now(), []limit.Use{left}, out); err != nil || out[0].Remaining != 93 {
			t.Errorf("%d of 100 are left, want 93, %v", out[0].Remaining, err)
		}
		cancel()
		<-done
	})
}

// sleep waits in the time of the bubble.
func sleep(d time.Duration) { <-time.After(d) }

// TestGivenBackByAnotherClock: what is given back with a time of Redis's clock, which
// is not this replica's, is given back here too, so that it is not refused here.
func TestGivenBackByAnotherClock(t *testing.T) {
	for _, off := range []time.Duration{-time.Hour, time.Hour} {
		store, now := &clock{store: memory.New(0), off: off}, time.Now()
		g := fallback.New(store, memory.New(0), slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		out := make([]limit.Outcome, 1)
		ask := func(u limit.Use) limit.Outcome {
			t.Helper()
			if err := g.Decide(t.Context(), now, []limit.Use{u}, out); err != nil {
				t.Fatal(err)
			}
			return out[0]
		}
		u := limit.Use{Key: "k", Limit: storetest.Sliding(t, 10, time.Minute), Hits: 10}
		for range 5 {
			taken := ask(u)
			if taken.Over {
				t.Fatalf("clock off by %s: over: %+v", off, taken)
			}
			back := u
			back.Op, back.At = limit.Refund, taken.At
			if got := ask(back); got.Taken != 10 {
				t.Fatalf("clock off by %s: %+v", off, got)
			}
		}
	}
}

// TestSettledAlong: what a decision settles makes room for what it takes, also by the
// counters of this replica.
func TestSettledAlong(t *testing.T) {
	g := fallback.New(&shared{store: memory.New(0)}, memory.New(0), slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	u := limit.Use{Key: "k", Limit: storetest.Sliding(t, 10, time.Minute), Hits: 10, Hold: "a", HoldFor: time.Minute, Observe: true}
	end := u
	end.Op, end.Hits = limit.Settle, 0
	out := make([]limit.Outcome, 2)
	if err := g.Decide(t.Context(), time.Now(), []limit.Use{u}, out[:1]); err != nil {
		t.Fatal(err)
	}
	ask := limit.Use{Key: "k", Limit: u.Limit, HoldFor: time.Minute, Observe: true}
	if err := g.Decide(t.Context(), time.Now(), []limit.Use{end, ask}, out); err != nil || out[1].Remaining != 10 {
		t.Errorf("%+v, %v: nothing was settled", out, err)
	}
}

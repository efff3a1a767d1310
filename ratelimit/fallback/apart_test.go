package fallback_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/writ-mesh/writ/ratelimit/fallback"
	"github.com/writ-mesh/writ/ratelimit/limit"
	"github.com/writ-mesh/writ/ratelimit/memory"
	"github.com/writ-mesh/writ/ratelimit/storetest"
)

// divided is two servers: the keys that begin with a are with one, the others with the
// other.
type divided struct{ servers [2]*shared }

func (d *divided) Nodes() int { return 2 }

func (d *divided) Node(_ time.Time, u *limit.Use) int {
	if u.Key[0] == 'a' {
		return 0
	}
	return 1
}

func (d *divided) ProbeKey(node int) string { return string("ab"[node]) + "/probe" }

// gone is that a server is away.
type gone struct{ node int }

func (g gone) Error() string { return fmt.Sprintf("server %d is away", g.node) }
func (g gone) Nodes() []int  { return []int{g.node} }

func (d *divided) Decide(ctx context.Context, now time.Time, uses []limit.Use, out []limit.Outcome) error {
	for node := range d.servers {
		var at []int
		var some []limit.Use
		for i, u := range uses {
			if d.Node(now, &u) == node {
				at, some = append(at, i), append(some, u)
			}
		}
		outcomes := make([]limit.Outcome, len(some))
		if len(some) > 0 && d.servers[node].Decide(ctx, now, some, outcomes) != nil {
			return gone{node}
		}
		for k, i := range at {
			out[i] = outcomes[k]
		}
	}
	return nil
}

func (d *divided) Tell(ctx context.Context, now time.Time, uses []limit.Use, ids []string) error {
	for i := range uses {
		node := d.Node(now, &uses[i])
		if d.servers[node].Tell(ctx, now, uses[i:i+1], ids[i:i+1]) != nil {
			return gone{node}
		}
	}
	return nil
}

// TestOneServerAway: what the other one counts goes on being counted there, also along
// with what is with the one that is away, and each is told what passed without it.
func TestOneServerAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &divided{[2]*shared{{store: memory.New(0)}, {store: memory.New(0)}}}
		g := fallback.New(store, memory.New(0), slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- g.Run(ctx) }()
		synctest.Wait()
		u := func(key string, hits uint64) limit.Use {
			return limit.Use{Key: key, Limit: storetest.Sliding(t, 10, time.Hour), Hits: hits}
		}
		ask := func(uses ...limit.Use) []limit.Outcome {
			t.Helper()
			out := make([]limit.Outcome, len(uses))
			if err := g.Decide(ctx, time.Now(), uses, out); err != nil {
				t.Fatal(err)
			}
			return out
		}
		at := func(node int, key string) uint32 {
			t.Helper()
			return storeDecide(t, store.servers[node].store, u(key, 0)).Remaining
		}
		store.servers[0].set(errors.New("away"))
		for !g.Degraded() {
			ask(u("a/other", 1))
			sleep(5 * time.Millisecond)
		}
		before := store.servers[0].count()
		ask(u("b/x", 2))
		if left := at(1, "b/x"); left != 8 {
			t.Errorf("%d left with the server that is well, want 8", left)
		}
		for range 3 { // one by one they pass here
			if out := ask(u("a/x", 1), u("b/x", 1)); limit.Refused([]limit.Use{u("", 1), u("", 1)}, out) {
				t.Fatalf("refused: %+v", out)
			}
		}
		if left := at(1, "b/x"); left != 5 {
			t.Errorf("%d left with the server that is well, want 5", left)
		}
		// Somebody else used it up there: what was taken here is given back.
		storeDecide(t, store.servers[1].store, u("b/x", 5))
		if out := ask(u("a/x", 1), u("b/x", 1)); !out[1].Over || out[0].Taken != 0 || out[0].Remaining != 7 {
			t.Errorf("the well server refuses: %+v", out)
		}
		// Refused here nothing is taken there.
		if out := ask(u("a/x", 8), u("b/y", 1)); !out[0].Over || at(1, "b/y") != 10 {
			t.Errorf("refused here: %+v, %d left there", out, at(1, "b/y"))
		}
		if store.servers[0].count() != before {
			t.Error("a server that is away is asked")
		}
		store.servers[0].set(nil)
		sleep(3 * time.Second)
		if g.Degraded() || at(0, "a/x") != 7 || at(0, "a/other") == 10 {
			t.Errorf("back: degraded %v, %d left of 10 after 3 passed", g.Degraded(), at(0, "a/x"))
		}
		cancel()
		<-done
	})
}

func storeDecide(t *testing.T, s *memory.Store, u limit.Use) limit.Outcome {
	t.Helper()
	out := make([]limit.Outcome, 1)
	if err := s.Decide(t.Context(), time.Now(), []limit.Use{u}, out); err != nil {
		t.Fatal(err)
	}
	return out[0]
}

// spoilt does not take a counter that is called bad.
type spoilt struct{ shared }

func (s *spoilt) Decide(ctx context.Context, now time.Time, uses []limit.Use, out []limit.Outcome) error {
	if slices.ContainsFunc(uses, func(u limit.Use) bool { return u.Key == "bad" }) {
		return errors.New("WRONGTYPE")
	}
	return s.shared.Decide(ctx, now, uses, out)
}

func (s *spoilt) Tell(ctx context.Context, now time.Time, uses []limit.Use, ids []string) error {
	if slices.ContainsFunc(uses, func(u limit.Use) bool { return u.Key == "bad" }) {
		return errors.New("WRONGTYPE")
	}
	return s.shared.Tell(ctx, now, uses, ids)
}

// TestOneBadCounter: a counter that the store does not take keeps it from nothing else.
func TestOneBadCounter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &spoilt{shared{store: memory.New(0)}}
		g := fallback.New(store, memory.New(0), slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- g.Run(ctx) }()
		synctest.Wait()
		store.set(errors.New("away"))
		l := storetest.Sliding(t, 100, time.Hour)
		for !g.Degraded() {
			for i := range 40 {
				key := fmt.Sprint(i)
				if i == 20 {
					key = "bad"
				}
				if err := g.Decide(ctx, time.Now(), []limit.Use{{Key: key, Limit: l, Hits: 1}}, make([]limit.Outcome, 1)); err != nil {
					t.Fatal(err)
				}
			}
			sleep(5 * time.Millisecond)
		}
		store.set(nil)
		sleep(5 * time.Second)
		if g.Degraded() {
			t.Error("the store is not asked again for a counter that it does not take")
		}
		for i := range 40 {
			if left := storeDecide(t, store.store, limit.Use{Key: fmt.Sprint(i), Limit: l}).Remaining; i != 20 && left == 100 {
				t.Errorf("the store was not told of counter %d", i)
			}
		}
		sleep(time.Minute)
		before := store.count()
		sleep(10 * time.Second)
		if n := store.count() - before; n > 0 {
			t.Errorf("%d requests in ten idle seconds: what the store does not take is tried for ever", n)
		}
		cancel()
		<-done
	})
}

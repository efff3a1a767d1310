package lease_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/writ-mesh/writ/ratelimit/lease"
	"github.com/writ-mesh/writ/ratelimit/limit"
	"github.com/writ-mesh/writ/ratelimit/memory"
	"github.com/writ-mesh/writ/ratelimit/storetest"
)

// counted is a shared store that counts how often it is asked, and can be away.
type counted struct {
	mu    sync.Mutex
	store *memory.Store
	asked int
	uses  int
	err   error
}

func (c *counted) Decide(ctx context.Context, now time.Time, uses []limit.Use, out []limit.Outcome) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked++
	c.uses += len(uses)
	if c.err != nil {
		return c.err
	}
	return c.store.Decide(ctx, now, uses, out)
}

// wire is the way to a store, which can be cut.
type wire struct {
	to  lease.Decider
	cut atomic.Bool
}

func (w *wire) Decide(ctx context.Context, now time.Time, uses []limit.Use, out []limit.Outcome) error {
	if w.cut.Load() {
		return errors.New("cut")
	}
	return w.to.Decide(ctx, now, uses, out)
}

func newStore(shared lease.Decider) *lease.Store {
	return lease.New(shared, memory.New(0), 100_000, time.Now, prometheus.NewRegistry())
}

// inMode asks for everything in one mode.
type inMode struct {
	store *lease.Store
	mode  limit.Mode
}

func (m inMode) Decide(ctx context.Context, now time.Time, uses []limit.Use, out []limit.Outcome) error {
	uses = slices.Clone(uses)
	for i := range uses {
		uses[i].Mode = m.mode
	}
	return m.store.Decide(ctx, now, uses, out)
}

// TestConformance: limits that are too small to be shared are counted exactly, and
// so are those of one replica.
func TestConformance(t *testing.T) {
	for _, mode := range []limit.Mode{limit.Leased, limit.Local} { // exact uses are handed on as they are
		storetest.Run(t, func(*testing.T) storetest.Store { return inMode{newStore(memory.New(0)), mode} })
	}
}

func TestTerms(t *testing.T) {
	for _, c := range []struct {
		name string
		l    limit.Limit
		ok   bool
	}{
		{"a great limit", storetest.Sliding(t, 10_000, time.Minute), true},
		{"as small as can be shared", storetest.Sliding(t, 256, time.Minute), true},
		{"too small", storetest.Sliding(t, 255, time.Minute), false},
		{"too short", storetest.Sliding(t, 10_000, 100*time.Millisecond), false},
		{"fixed", storetest.Fixed(t, 10_000, time.Minute), true},
		{"bucket", storetest.New(t, limit.GCRA, 10_000, time.Minute), true},
		{"bucket of ten", mustGCRA(t, 10_000, time.Minute, 10), false},
		{"places", storetest.New(t, limit.Concurrency, 10_000, time.Minute), false},
	} {
		if terms, ok := lease.TermsOf(c.l); ok != c.ok {
			t.Errorf("%s: %+v, %v", c.name, terms, ok)
		}
	}
}

func mustGCRA(t *testing.T, requests uint32, window time.Duration, burst uint32) limit.Limit {
	t.Helper()
	l, err := limit.NewGCRA(requests, window, burst)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

type use struct {
	at   time.Time
	hits uint64
}

// most is how much passed at most in any window that begins with a use.
func most(uses []use, window time.Duration) (greatest uint64) {
	slices.SortFunc(uses, func(a, b use) int { return a.at.Compare(b.at) })
	sum, end := uint64(0), 0
	for _, first := range uses {
		for end < len(uses) && uses[end].at.Before(first.at.Add(window)) {
			sum += uses[end].hits
			end++
		}
		greatest = max(greatest, sum)
		sum -= first.hits
	}
	return greatest
}

// TestNeverMoreThanTheLimit: ten replicas whose demand changes, one of which dies,
// and never more passes than the limit, in no window; most of it is given out, and
// the shared store is asked for less than a tenth of the decisions.
func TestNeverMoreThanTheLimit(t *testing.T) {
	for name, l := range map[string]limit.Limit{
		"sliding": storetest.Sliding(t, 25_000, time.Minute),
		"fixed":   storetest.Fixed(t, 25_000, time.Minute),
		"gcra":    mustGCRA(t, 50_000, time.Minute, 25_000),
	} {
		for demand, factor := range map[string]float64{"half of the limit": 0.5, "more than the limit": 1.5} {
			if factor < 1 && name != "sliding" {
				continue // the same
			}
			t.Run(name+", "+demand, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { play(t, l, factor) })
			})
		}
	}
}

func play(t *testing.T, l limit.Limit, factor float64) {
	const replicas, length = 10, 70 * time.Second
	shared := &counted{store: memory.New(0)}
	var (
		mu      sync.Mutex
		passed  []use
		asked   int
		wg      sync.WaitGroup
		begin   = time.Now()
		average = float64(l.Requests()) / l.Window().Seconds() / replicas * factor
	)
	for r := range replicas {
		ctx, cancel := context.WithCancel(t.Context())
		way := &wire{to: shared}
		s := newStore(way)
		wg.Go(func() { _ = s.Run(ctx) })
		wg.Go(func() {
			defer cancel()
			rng := rand.New(rand.NewPCG(uint64(r), 7))
			uses, out := []limit.Use{{Key: "k", Limit: l, Mode: limit.Leased}}, make([]limit.Outcome, 1)
			for time.Since(begin) < length {
				// Replicas have more and less to do by turns, and this one dies.
				rate := average * (1 + 0.9*float64(1-2*(int(time.Since(begin).Seconds()/10+float64(r))%2)))
				sleep(time.Duration(rng.ExpFloat64() / rate * float64(time.Second)))
				if r == 0 && time.Since(begin) > length/2 {
					way.cut.Store(true) // it cannot even give back what it holds
					return
				}
				uses[0].Hits = 1
				if rng.IntN(50) == 0 {
					uses[0].Hits = 5
				}
				now := time.Now()
				if err := s.Decide(ctx, now, uses, out); err != nil {
					t.Errorf("decide: %v", err)
					return
				}
				mu.Lock()
				asked++
				if !out[0].Over {
					passed = append(passed, use{now, uses[0].Hits})
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	allowed, window := uint64(l.Requests()), l.Window()
	switch l.Algorithm() {
	case limit.GCRA:
		allowed += uint64(l.Burst())
	case limit.Fixed:
		var inWindow []use // as a fixed window sees them: all at its beginning
		for _, p := range passed {
			inWindow = append(inWindow, use{p.at.Truncate(window), p.hits})
		}
		passed, window = inWindow, window-1
	}
	if got := most(passed, window); got > allowed {
		t.Errorf("%d passed in a window, the limit is %d", got, allowed)
	}
	total := uint64(0)
	for _, p := range passed {
		total += p.hits
	}
	want := float64(l.Requests()) * length.Seconds() / l.Window().Seconds() * min(factor, 1)
	if factor > 1 && l.Algorithm() == limit.Sliding { // the window is over once
		want = float64(l.Requests())
	}
	if float64(total) < 0.8*want {
		t.Errorf("%d passed, want about %.0f", total, want)
	}
	if limit := 0.1; float64(shared.asked) > limit*float64(asked) {
		t.Errorf("the shared store was asked %d times for %d decisions", shared.asked, asked)
	}
	t.Logf("%d decisions, %d passed (%.0f %% of what could), %d commands (%.3f per decision)", asked, total, 100*float64(total)/want, shared.asked, float64(shared.asked)/float64(asked))
}

// TestShareUsedAtItsEnd: whoever holds shares uses them at the last moment, and others
// take what they can as soon as it is free: in the window between them there is still
// no more than the limit.
func TestShareUsedAtItsEnd(t *testing.T) {
	for name, l := range map[string]limit.Limit{
		"sliding": storetest.Sliding(t, 10_000, 16*time.Second),
		"gcra":    mustGCRA(t, 10_000, 16*time.Second, 10_000),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				shared := &counted{store: memory.New(0)}
				var passed []use
				u := limit.Use{Key: "k", Limit: l, Hits: 1, Mode: limit.Leased}
				one := func(s *lease.Store) bool {
					out := ask(t, s, u)[0]
					if !out.Over {
						passed = append(passed, use{time.Now(), 1})
					}
					return !out.Over
				}
				const replicas = 20
				begin := time.Now()
				ctx, cancel := context.WithCancel(t.Context())
				var stores []*lease.Store
				var wg sync.WaitGroup
				running := func() *lease.Store {
					s := newStore(shared)
					wg.Go(func() { _ = s.Run(ctx) })
					return s
				}
				for range replicas { // they get great shares for little use
					s := running()
					stores = append(stores, s)
					for range 100 {
						one(s)
						sleep(time.Microsecond)
					}
				}
				used, granted := len(passed), 10_000-int(ask(t, stores[0], limit.Use{Key: "k", Limit: mustTerms(t, l).Asked})[0].Remaining)
				if granted-used < 3000 {
					t.Fatalf("only %d are in hand", granted-used)
				}
				sleep(time.Until(begin.Add(990 * time.Millisecond)))
				for _, s := range stores {
					for range l.Requests() {
						if !one(s) {
							break
						}
					}
				}
				for at := 15 * time.Second; at < 16980*time.Millisecond; at += 10 * time.Millisecond {
					sleep(time.Until(begin.Add(at)))
					s := running()
					for range l.Requests() {
						if !one(s) {
							break
						}
					}
				}
				cancel()
				wg.Wait()
				allowed := uint64(l.Requests())
				if l.Algorithm() == limit.GCRA {
					allowed += uint64(l.Burst())
				}
				if got := most(passed, l.Window()); got > allowed {
					t.Errorf("%d passed in a window, want at most %d", got, allowed)
				}
			})
		})
	}
}

// ask is one decision of a store, at the time of the bubble.
func ask(t *testing.T, s *lease.Store, uses ...limit.Use) []limit.Outcome {
	t.Helper()
	out := make([]limit.Outcome, len(uses))
	if err := s.Decide(t.Context(), time.Now(), uses, out); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestIdleSharesComeBack: a replica that has no more to do gives its share back, so
// that another can have the whole limit.
func TestIdleSharesComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		shared := &counted{store: memory.New(0)}
		a, b := newStore(shared), newStore(shared)
		var wg sync.WaitGroup
		wg.Go(func() { _ = a.Run(ctx) })
		wg.Go(func() { _ = b.Run(ctx) })
		u := limit.Use{Key: "k", Limit: storetest.Sliding(t, 1000, time.Hour), Hits: 1, Mode: limit.Leased}
		for range 300 {
			ask(t, a, u)
			sleep(time.Millisecond)
		}
		exact := u
		exact.Limit, exact.Mode, exact.Hits = mustTerms(t, u.Limit).Asked, limit.Exact, 0
		if left := ask(t, b, exact)[0].Remaining; left >= 700 {
			t.Errorf("%d of 1000 are left: nothing was taken in advance", left)
		}
		sleep(30 * time.Second)
		synctest.Wait()
		passed := 0
		for range 1000 {
			if !ask(t, b, u)[0].Over {
				passed++
			}
		}
		if passed != 700 {
			t.Errorf("%d passed elsewhere, want the 700 that are left", passed)
		}
		cancel()
		wg.Wait()
	})
}

func mustTerms(t *testing.T, l limit.Limit) lease.Terms {
	t.Helper()
	terms, ok := lease.TermsOf(l)
	if !ok {
		t.Fatal("too small to share")
	}
	return terms
}

// TestTogether: a request that one limit refuses takes from none, wherever each is
// counted.
func TestTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore(&counted{store: memory.New(0)})
		wide := storetest.Sliding(t, 10_000, time.Hour)
		leased := limit.Use{Key: "leased", Limit: wide, Hits: 1, Mode: limit.Leased}
		exact := limit.Use{Key: "exact", Limit: wide, Hits: 1}
		local := limit.Use{Key: "local", Limit: wide, Hits: 1, Mode: limit.Local}
		for range 20 { // so that a share is in hand
			ask(t, s, leased, exact, local)
			sleep(time.Millisecond)
		}
		left := func() (n []uint32) {
			for _, u := range []limit.Use{leased, exact, local} {
				u.Hits = 0
				n = append(n, ask(t, s, u)[0].Remaining)
			}
			return n
		}
		before := left()
		for i, mode := range []limit.Mode{limit.Exact, limit.Leased, limit.Local} {
			none := limit.Use{Key: fmt.Sprint("none", i), Limit: storetest.Sliding(t, 0, time.Hour), Hits: 1, Mode: mode}
			for range 5 {
				out := ask(t, s, leased, none, exact, local)
				if !out[1].Over || out[0].Over || out[2].Over || out[3].Over || out[0].Taken+out[2].Taken+out[3].Taken > 0 {
					t.Errorf("mode %d refuses: %+v", mode, out)
				}
			}
		}
		if after := left(); !slices.Equal(after, before) {
			t.Errorf("%v left after refusals, %v before", after, before)
		}
	})
}

// TestStoreAway: an error of the shared store is the caller's to know, and what was
// in hand goes on.
func TestStoreAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shared := &counted{store: memory.New(0)}
		s := newStore(shared)
		u := limit.Use{Key: "k", Limit: storetest.Sliding(t, 10_000, time.Minute), Hits: 1, Mode: limit.Leased}
		for range 20 {
			ask(t, s, u)
			sleep(time.Millisecond)
		}
		shared.err = errors.New("away")
		passed := 0
		for {
			if err := s.Decide(t.Context(), time.Now(), []limit.Use{u}, make([]limit.Outcome, 1)); err != nil {
				break
			}
			passed++
		}
		if passed < 16 || passed > 10_000 {
			t.Errorf("%d passed from what was in hand", passed)
		}
		shared.err = nil
		if ask(t, s, u)[0].Over {
			t.Error("refused once the store is back")
		}
	})
}

// TestRefusalsAreRemembered: who is over does not cost a command for each attempt,
// and gets in when it said so.
func TestRefusalsAreRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shared := &counted{store: memory.New(0)}
		s := newStore(shared)
		u := limit.Use{Key: "k", Limit: storetest.Sliding(t, 1600, 16*time.Second), Hits: 1, Mode: limit.Leased}
		for range 1600 {
			u := u
			u.Op = limit.Charge
			ask(t, s, u)
		}
		before, retry := shared.asked, time.Duration(0)
		for range 1000 {
			out := ask(t, s, u)[0]
			if !out.Over {
				t.Fatal("more than the limit passed")
			}
			retry = out.RetryAfter
			sleep(time.Millisecond)
		}
		if n := shared.asked - before; n > 6 {
			t.Errorf("asked %d times in a second", n)
		}
		sleep(retry)
		if ask(t, s, u)[0].Over {
			t.Errorf("over after the %s that it named", retry)
		}
		small := u
		small.Limit, small.Key = storetest.Sliding(t, 10, time.Minute), "small"
		before = shared.asked
		for range 20 {
			ask(t, s, small)
		}
		if n := shared.asked - before; n != 20 {
			t.Errorf("a limit too small to share: asked %d times for 20 decisions", n)
		}
	})
}

func BenchmarkDecide(b *testing.B) {
	s := newStore(memory.New(0))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { _ = s.Run(ctx) }()
	uses := []limit.Use{{Key: "default/q:0:source.principal=spiffe://cluster.local/ns/default/sa/x", Limit: storetest.Sliding(b, 4_000_000_000, time.Hour), Hits: 1, Mode: limit.Leased}}
	out := make([]limit.Outcome, 1)
	b.ReportAllocs()
	for b.Loop() {
		if err := s.Decide(ctx, time.Now(), uses, out); err != nil {
			b.Fatal(err)
		}
	}
}

// sleep waits in the time of the bubble.
func sleep(d time.Duration) { <-time.After(d) }

// TestEarlierLimitsLeaveShares: who asks by what a limit was before an edit takes no share
// and none away, and is counted together with all others.
func TestEarlierLimitsLeaveShares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shared := &counted{store: memory.New(0)}
		s := newStore(shared)
		one := func(requests uint32, earlier bool) limit.Outcome {
			t.Helper()
			var out [1]limit.Outcome
			u := limit.Use{Key: "k", Limit: storetest.Sliding(t, requests, time.Minute), Mode: limit.Leased, Hits: 1, Earlier: earlier}
			if err := s.Decide(t.Context(), time.Now(), []limit.Use{u}, out[:]); err != nil {
				t.Fatal(err)
			}
			return out[0]
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { _ = s.Run(ctx); close(done) }()
		defer func() { cancel(); <-done }()
		both := func(n int, earlier bool) (asked int) {
			before := shared.asked
			for range n {
				one(10_000, false)
				if earlier {
					one(2_000, true)
				}
				time.Sleep(5 * time.Millisecond) // fake time
				synctest.Wait()
			}
			return shared.asked - before
		}
		both(500, false) // until there are shares
		if n := both(100, true); n < 100 || n > 110 {
			t.Errorf("the store was asked %d times, want once for each of 100 by the earlier limit and a few times for shares", n)
		}
		passed := 0
		for !one(2_000, true).Over {
			passed++
		}
		if passed == 0 || passed > 2_000-700 {
			t.Errorf("%d more of 2000 passed after 700", passed)
		}
		if one(10_000, false).Over {
			t.Error("the newest limit is over")
		}
	})
}

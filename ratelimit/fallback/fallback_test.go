package fallback_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/ratelimit/fallback"
	"github.com/writ-mesh/writ/ratelimit/limit"
	"github.com/writ-mesh/writ/ratelimit/memory"
	"github.com/writ-mesh/writ/ratelimit/redisstore"
	"github.com/writ-mesh/writ/ratelimit/redistest"
	"github.com/writ-mesh/writ/ratelimit/storetest"
)

// TestConformance: with the shared store well and with it away.
func TestConformance(t *testing.T) {
	for _, err := range []error{nil, errors.New("away")} {
		storetest.Run(t, func(*testing.T) storetest.Store {
			return fallback.New(&shared{store: memory.New(0), err: err}, memory.New(0), slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		})
	}
}

// shared is a store that can be made to fail.
type shared struct {
	mu    sync.Mutex
	store *memory.Store
	err   error
	asked int
	done  map[string]bool // ids of what it was told
}

func (s *shared) Decide(ctx context.Context, now time.Time, uses []limit.Use, out []limit.Outcome) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	if s.err != nil {
		return s.err
	}
	return s.store.Decide(ctx, now, uses, out)
}

// Tell does what it was not told before by the same ids.
func (s *shared) Tell(ctx context.Context, now time.Time, uses []limit.Use, ids []string) error {
	s.mu.Lock()
	var fresh []limit.Use
	for i, u := range uses {
		if !s.done[ids[i]] {
			fresh = append(fresh, u)
		}
	}
	s.mu.Unlock()
	if err := s.Decide(ctx, now, fresh, make([]limit.Outcome, len(fresh))); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done == nil {
		s.done = make(map[string]bool)
	}
	for _, id := range ids {
		s.done[id] = true
	}
	return nil
}

func (s *shared) set(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

func (s *shared) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

func TestCircuit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &shared{store: memory.New(0)}
		reg := prometheus.NewRegistry()
		g := fallback.New(store, memory.New(0), slog.New(slog.DiscardHandler), reg)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- g.Run(ctx) }()
		synctest.Wait()

		uses := []limit.Use{{Key: "k", Limit: storetest.Sliding(t, 20, time.Hour), Hits: 1}}
		passed := 0
		ask := func() {
			out := make([]limit.Outcome, 1)
			if err := g.Decide(ctx, time.Now(), uses, out); err != nil {
				t.Fatal(err)
			}
			if !out[0].Over {
				passed++
			}
		}
		for range 8 {
			ask()
		}
		store.set(errors.New("connection refused"))
		for range 5 {
			if degraded(t, reg) {
				t.Fatal("degraded before 25 ms of failures")
			}
			ask()
			ask()                              // at the same time: part of the same hiccup
			<-time.After(5 * time.Millisecond) // the bubble's time
		}
		if !degraded(t, reg) {
			t.Fatal("not degraded after 25 ms of failures")
		}
		before := store.count()
		for range 100 {
			ask()
		}
		if store.count() != before {
			t.Error("the store is asked while the circuit is open")
		}
		if passed != 20 {
			t.Errorf("%d passed of a limit of 20 across the outage", passed)
		}
		<-time.After(time.Minute) // probes fail meanwhile
		if !degraded(t, reg) {
			t.Error("came back to a store that fails")
		}
		store.mu.Lock()
		store.err, store.store = nil, memory.New(0) // back, and empty
		store.mu.Unlock()
		<-time.After(3 * time.Second)
		if degraded(t, reg) {
			t.Error("did not come back within three seconds")
		}
		for range 50 {
			ask()
		}
		if passed != 20 {
			t.Errorf("%d passed of a limit of 20 after the store came back empty", passed)
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("run: %v", err)
		}
	})
}

// degraded is what the gauge says.
func degraded(t testing.TB, reg *prometheus.Registry) bool {
	t.Helper()
	return gauge(t, reg, "writ_ratelimit_store_degraded") == 1
}

func gauge(t testing.TB, reg *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatal("no gauge " + name)
	return 0
}

func TestAwayFromTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := prometheus.NewRegistry()
		g := fallback.New(&shared{err: errors.New("away")}, memory.New(0), slog.New(slog.DiscardHandler), reg)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { _ = g.Run(ctx) }()
		synctest.Wait()
		if !degraded(t, reg) {
			t.Error("not degraded with a store that is away from the start")
		}
		cancel()
		synctest.Wait()
	})
}

// TestSingleFailureIsTold: a store that failed once, for which no circuit opens, is
// told what passed meanwhile.
func TestSingleFailureIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &shared{store: memory.New(0)}
		reg := prometheus.NewRegistry()
		g := fallback.New(store, memory.New(0), slog.New(slog.DiscardHandler), reg)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { _ = g.Run(ctx) }()
		synctest.Wait()
		uses, out := []limit.Use{{Key: "k", Limit: storetest.Sliding(t, 5, time.Hour), Hits: 1}}, make([]limit.Outcome, 1)
		for _, err := range []error{nil, errors.New("once"), nil} {
			store.set(err)
			if err := g.Decide(ctx, time.Now(), uses, out); err != nil || out[0].Over {
				t.Fatal(err, out)
			}
		}
		if degraded(t, reg) {
			t.Error("a single failure opened the circuit")
		}
		if n := gauge(t, reg, "writ_ratelimit_store_owed"); n != 1 {
			t.Errorf("%v counters are owed for, want the one", n)
		}
		<-time.After(2 * time.Second) // the bubble's time
		synctest.Wait()
		if n := gauge(t, reg, "writ_ratelimit_store_owed"); n != 0 {
			t.Errorf("%v counters are owed for after the store was told", n)
		}
		if err := store.Decide(ctx, time.Now(), uses, out); err != nil || out[0].Remaining != 1 {
			t.Errorf("the store has %d of 5 left after three and one more, %v", out[0].Remaining, err)
		}
		cancel()
		synctest.Wait()
	})
}

func TestCallerWhoLeavesIsNoFailure(t *testing.T) {
	reg := prometheus.NewRegistry()
	g := fallback.New(&shared{err: context.Canceled}, memory.New(0), slog.New(slog.DiscardHandler), reg)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 20 {
		if err := g.Decide(ctx, time.Now(), []limit.Use{{Key: "k", Limit: storetest.Sliding(t, 1, time.Hour), Hits: 1}}, make([]limit.Outcome, 1)); !errors.Is(err, context.Canceled) {
			t.Fatalf("got %v", err)
		}
	}
	if degraded(t, reg) {
		t.Error("callers who left opened the circuit")
	}
}

// load runs workers against a guard over a real Redis and keeps the score.
type load struct {
	passed, asked atomic.Int64
	slow          atomic.Int64 // decisions that took more than 20 ms
}

// TestRealRedisAway kills and freezes a real Redis under load. The bound on one
// answer is 5 ms; the test allows for a busy machine by counting how many answers
// are above four times that, which waiting for Redis would make all of them.
func TestRealRedisAway(t *testing.T) {
	for name, away := range map[string]struct {
		goes, returns func(testing.TB, *redistest.Server)
	}{
		"killed": {func(_ testing.TB, s *redistest.Server) { s.Kill() }, func(t testing.TB, s *redistest.Server) { s.Restart(t) }},
		"frozen": {func(_ testing.TB, s *redistest.Server) { s.Freeze() }, func(_ testing.TB, s *redistest.Server) { s.Thaw() }},
		"read-only": {
			func(t testing.TB, s *redistest.Server) { s.Command(t, "REPLICAOF", "127.0.0.1", "1") },
			func(t testing.TB, s *redistest.Server) { s.Command(t, "REPLICAOF", "NO", "ONE") },
		},
		"full": {
			func(t testing.TB, s *redistest.Server) { s.Command(t, "CONFIG", "SET", "maxmemory", "1") },
			func(t testing.TB, s *redistest.Server) { s.Command(t, "CONFIG", "SET", "maxmemory", "0") },
		},
	} {
		t.Run(name, func(t *testing.T) {
			server := redistest.Start(t)
			realRedisAway(t, server.Address(), func() { away.goes(t, server) }, func() { away.returns(t, server) })
		})
	}
}

// TestSlowRedis: a Redis whose answers come too late is as good as none, and costs
// nobody the wait.
func TestSlowRedis(t *testing.T) {
	slow := redistest.StartSlow(t, redistest.Start(t))
	realRedisAway(t, slow.Address(), func() { slow.Delay(100 * time.Millisecond) }, func() { slow.Delay(0) })
}

// TestFlushedRedis: what Redis forgets the replicas know, each as far as it let pass
// something itself.
func TestFlushedRedis(t *testing.T) {
	const limited = 20
	server := redistest.Start(t)
	passed := [2]int{}
	var guards []*fallback.Guard
	for range passed {
		store, err := redisstore.New(redisstore.Options{Address: server.Address(), Timeout: 5 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		proctest.Background(t, store.Run)
		guards = append(guards, fallback.New(store, memory.New(0), slog.New(slog.DiscardHandler), prometheus.NewRegistry()))
	}
	uses, out := []limit.Use{{Key: "k", Limit: storetest.Sliding(t, limited, time.Hour), Hits: 1}}, make([]limit.Outcome, 1)
	ask := func(times int) {
		for i := range times {
			if err := guards[i%2].Decide(t.Context(), time.Now(), uses, out); err != nil {
				t.Fatal(err)
			}
			if !out[0].Over {
				passed[i%2]++
			}
		}
	}
	ask(50)
	if got := passed[0] + passed[1]; got != limited {
		t.Fatalf("%d of %d passed", got, limited)
	}
	for range 3 {
		server.Command(t, "FLUSHALL")
		ask(100)
	}
	if passed[0] != limited || passed[1] != limited {
		t.Errorf("%v passed of %d, want that for each replica", passed, limited)
	}
}

// clock is a shared store whose clock can be wrong.
type clock struct {
	store *memory.Store
	off   time.Duration
}

func (c *clock) Tell(ctx context.Context, now time.Time, uses []limit.Use, _ []string) error {
	return c.Decide(ctx, now, uses, make([]limit.Outcome, len(uses)))
}

func (c *clock) Decide(ctx context.Context, now time.Time, uses []limit.Use, out []limit.Outcome) error {
	return c.store.Decide(ctx, now.Add(c.off), uses, out)
}

// TestRedisClockGoesOn: if Redis thinks that the window is over, this replica does
// not, and if Redis's clock goes back nothing is refused for longer than a window.
func TestRedisClockGoesOn(t *testing.T) {
	store, now := &clock{store: memory.New(0)}, time.Now()
	g := fallback.New(store, memory.New(0), slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	uses, out := []limit.Use{{Key: "k", Limit: storetest.Sliding(t, 20, time.Minute), Hits: 1}}, make([]limit.Outcome, 1)
	pass := func(now time.Time) (passed int) {
		for range 50 {
			if err := g.Decide(t.Context(), now, uses, out); err != nil {
				t.Fatal(err)
			}
			if !out[0].Over {
				passed++
			}
		}
		return passed
	}
	if got := pass(now); got != 20 {
		t.Fatalf("%d of 20 passed", got)
	}
	store.off = 61 * time.Second
	if got := pass(now.Add(time.Second)); got != 0 {
		t.Errorf("%d passed when Redis's clock went on by a minute", got)
	}
	if got := pass(now.Add(time.Minute)); got != 20 {
		t.Errorf("%d of 20 passed a minute later", got)
	}
	store.off = -time.Minute
	if got := pass(now.Add(2 * time.Minute)); got != 0 {
		t.Errorf("%d passed just after Redis's clock went back: its window is not over", got)
	}
	if got := pass(now.Add(3 * time.Minute)); got != 20 {
		t.Errorf("%d of 20 passed a window after Redis's clock went back", got)
	}
}

func realRedisAway(t *testing.T, address string, goes, returns func()) {
	const limited, workers = 300, 16
	store, err := redisstore.New(redisstore.Options{Address: address})
	if err != nil {
		t.Fatal(err)
	}
	reg := prometheus.NewRegistry()
	g := fallback.New(store, memory.New(0), slog.New(slog.DiscardHandler), reg)
	ctx, cancel := context.WithCancel(context.Background())
	var tasks sync.WaitGroup
	tasks.Go(func() { _ = store.Run(ctx) })
	tasks.Go(func() { _ = g.Run(ctx) })
	t.Cleanup(func() { cancel(); tasks.Wait() })

	var score load
	uses := []limit.Use{{Key: "k", Limit: storetest.Sliding(t, limited, time.Hour), Hits: 1}, {Key: "wide", Limit: storetest.Sliding(t, 1<<31, time.Hour), Hits: 1}}
	for range workers {
		tasks.Go(func() { drive(ctx, t, g, uses, &score) })
	}
	// A limit that is used up is refused here without asking Redis; this one never is.
	tasks.Go(func() { drive(ctx, t, g, uses[1:], new(load)) })
	score.atLeast(t, 100)
	before := runtime.NumGoroutine()
	goes()
	proctest.Until(t, 5*time.Second, "it is degraded", func() bool { return degraded(t, reg) })
	score.slow.Store(0)
	asked := score.asked.Load()
	score.atLeast(t, asked+1000)
	if slow := score.slow.Load(); slow > 50 {
		t.Errorf("%d of 1000 decisions took more than 20 ms with the store away", slow)
	}
	if n := runtime.NumGoroutine(); n > before+10 {
		t.Errorf("%d goroutines, %d before the store went away", n, before)
	}
	if !degraded(t, reg) {
		t.Error("not degraded while the store is away")
	}
	returns()
	proctest.Until(t, 10*time.Second, "it is back", func() bool { return !degraded(t, reg) })
	asked = score.asked.Load()
	score.atLeast(t, asked+500)
	// More only by what was on its way when the store went away: one per worker.
	if got := score.passed.Load(); got < limited || got > limited+workers {
		t.Errorf("%d passed of a limit of %d", got, limited)
	}
}

// atLeast waits until so much was asked.
func (l *load) atLeast(t *testing.T, n int64) {
	t.Helper()
	proctest.Until(t, 10*time.Second, fmt.Sprint(n, " decisions"), func() bool { return l.asked.Load() >= n })
}

// drive asks until ctx ends, about a thousand times a second.
func drive(ctx context.Context, t *testing.T, g *fallback.Guard, uses []limit.Use, score *load) {
	out := make([]limit.Outcome, len(uses))
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		begin := time.Now()
		if err := g.Decide(ctx, begin, uses, out); err != nil {
			if ctx.Err() == nil {
				t.Errorf("decide: %v", err)
			}
			return
		}
		if time.Since(begin) > 20*time.Millisecond {
			score.slow.Add(1)
		}
		if !limit.Refused(uses, out) {
			score.passed.Add(1)
		}
		score.asked.Add(1)
	}
}

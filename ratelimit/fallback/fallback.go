// Package fallback keeps quotas enforced when the shared store is away.
//
// A Guard asks the shared store (Redis) and, when that fails or is too slow,
// decides from counters of its own process. After a few failures it asks no more
// (the circuit is open) until probes have been answered again, so that an outage
// costs nobody a wait. What this replica admits is recorded in its own counters
// all the time; they refuse by themselves what is over already by this replica's
// own doing. So in a window that touches an outage, whether Redis died, hung or
// came back empty, one replica admits at most a sliding limit and what was on its
// way at the moment of failure, and n replicas at most n times that.
//
// When the shared store comes back it is told what was admitted meanwhile and still
// counts, before it is asked again: so the replicas count as one from then on. It
// counts as of that moment, up to a window longer than it had to.
package fallback

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/writ-mesh/writ/ratelimit/limit"
)

// Shared is the store that all replicas count in. Decide returns within a few
// milliseconds, with an error if it could not decide.
type Shared interface {
	Decide(ctx context.Context, now time.Time, uses []limit.Use, outcomes []limit.Outcome) error
}

// Local is a store in this process.
type Local interface {
	Shared
	Peek(now time.Time, uses []limit.Use, outcomes []limit.Outcome) (refused bool)
	Record(now time.Time, uses []limit.Use, outcomes []limit.Outcome)
}

const (
	// Each slot of time with a failure weighs two, a success takes one away, and at
	// openAt the circuit opens: after five slots of nothing but failures. Failures
	// are not counted one by one, because one hiccup fails all that are on their way.
	slot          = 5 * time.Millisecond
	failureWeight = 2
	openAt        = 10
	// goodProbes in a row close the circuit.
	goodProbes = 3
	minPause   = 50 * time.Millisecond
	maxPause   = 250 * time.Millisecond
	// tellEvery is how long the shared store does not know at most of what was decided
	// without it while it was not away.
	tellEvery = time.Second
)

// Guard is a store that always decides. It is safe for concurrent use.
type Guard struct {
	shared  Shared
	local   Local
	log     *slog.Logger
	metrics metrics

	debts debts

	score    atomic.Int64
	failedAt atomic.Int64 // the slot of the last failure
	degraded atomic.Bool
	tripped  chan struct{} // wakes Run
	change   sync.Mutex    // orders changes of degraded with their gauge
}

type metrics struct {
	degraded prometheus.Gauge
	errors   prometheus.Counter
	local    prometheus.Counter
	charged  prometheus.Counter
}

// New returns a guard. Run must be running for it to come back from an outage.
func New(shared Shared, local Local, log *slog.Logger, reg prometheus.Registerer) *Guard {
	g := &Guard{shared: shared, local: local, log: log, tripped: make(chan struct{}, 1), metrics: metrics{
		degraded: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "writ_ratelimit_store_degraded",
			Help: "1 while the shared store is away and this replica enforces the limits by itself.",
		}),
		errors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "writ_ratelimit_store_errors_total",
			Help: "Decisions and probes that the shared store failed or did not answer in time.",
		}),
		local: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "writ_ratelimit_local_decisions_total",
			Help: "Decisions made without the shared store because it was away.",
		}),
	}}
	g.metrics.charged = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "writ_ratelimit_reconciled_hits_total",
		Help: "Hits that were admitted while the shared store was away and that it was told of when it was back.",
	})
	reg.MustRegister(g.metrics.degraded, g.metrics.errors, g.metrics.local, g.metrics.charged)
	return g
}

// Decide makes one decision over all uses. It fails only if ctx ends.
func (g *Guard) Decide(ctx context.Context, now time.Time, uses []limit.Use, outcomes []limit.Outcome) error {
	counted := anyCountsRefused(uses)
	// What this replica admitted alone is over the limit: so is the sum of all. But
	// what is settled or given back along with it may make room.
	if !counted && !anyGivesBack(uses) && g.local.Peek(now, uses, outcomes) {
		return nil
	}
	if !g.degraded.Load() {
		err := g.shared.Decide(ctx, now, uses, outcomes)
		if err == nil {
			g.succeeded()
			if counted || !limit.Refused(uses, outcomes) {
				g.local.Record(now, here(uses), outcomes)
			}
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		g.failed(now, err)
	}
	g.metrics.local.Inc()
	if err := g.local.Decide(ctx, now, uses, outcomes); err != nil {
		return err
	}
	g.debts.add(uses, outcomes)
	return nil
}

// Degraded says that the shared store is away and this replica decides alone.
func (g *Guard) Degraded() bool { return g.degraded.Load() }

// Run brings the guard back after outages, until ctx ends.
func (g *Guard) Run(ctx context.Context) error {
	if err := g.probe(ctx); err != nil { // a store that is away from the start
		g.open(err)
	}
	tell := time.NewTicker(tellEvery)
	defer tell.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tell.C:
			// What came of single failures, and of decisions that were made alone while the
			// circuit closed. A store that fails now is told later.
			_ = g.settle(ctx)
			continue
		case <-g.tripped:
		}
		if err := g.recover(ctx); err != nil {
			return err
		}
	}
}

// recover probes until the store is well again.
func (g *Guard) recover(ctx context.Context) error {
	pause, good := minPause, 0
	for good < goodProbes {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause/2 + rand.N(pause)):
		}
		if err := g.probe(ctx); err != nil {
			good, pause = 0, min(2*pause, maxPause)
			continue
		}
		good, pause = good+1, minPause
		if good == goodProbes {
			if err := g.settle(ctx); err != nil {
				good = 0
			}
		}
	}
	g.close()
	_ = g.settle(ctx) // what was decided alone while the circuit closed
	return nil
}

// settle tells the shared store what is owed to it. What it cannot be told stays
// owed.
func (g *Guard) settle(ctx context.Context) error {
	for range g.debts.len()/atOnce + 1 { // more are made meanwhile
		now := time.Now()
		uses := g.debts.take(now, g.local)
		if len(uses) == 0 {
			return nil
		}
		if err := g.shared.Decide(ctx, now, uses, make([]limit.Outcome, len(uses))); err != nil {
			g.metrics.errors.Inc()
			g.debts.again(uses)
			return err
		}
		for i := range uses {
			g.metrics.charged.Add(float64(uses[i].Hits))
		}
	}
	return nil
}

// probe does what a decision does, a write included: a store that only answers
// is not yet one that counts.
func (g *Guard) probe(ctx context.Context) error {
	l, err := limit.New(limit.Sliding, 1_000_000, time.Second)
	if err != nil {
		return err
	}
	err = g.shared.Decide(ctx, time.Now(), []limit.Use{{Key: "writ:probe", Limit: l, Hits: 1}}, make([]limit.Outcome, 1))
	if err != nil && !errors.Is(err, context.Canceled) {
		g.metrics.errors.Inc()
	}
	return err
}

func (g *Guard) succeeded() {
	if n := g.score.Load(); n > 0 {
		g.score.CompareAndSwap(n, n-1) // losing the race forgets one success
	}
}

func (g *Guard) failed(now time.Time, err error) {
	g.metrics.errors.Inc()
	if at := now.UnixNano() / int64(slot); g.failedAt.Swap(at) == at {
		return
	}
	if g.score.Add(failureWeight) >= openAt {
		g.open(err)
	}
}

func (g *Guard) open(cause error) {
	g.change.Lock()
	defer g.change.Unlock()
	if g.degraded.Swap(true) {
		return
	}
	g.metrics.degraded.Set(1)
	g.log.Error("shared store is away: limits are enforced by this replica alone", slog.Any("error", cause))
	select {
	case g.tripped <- struct{}{}:
	default:
	}
}

func (g *Guard) close() {
	g.change.Lock()
	defer g.change.Unlock()
	g.score.Store(0)
	g.degraded.Store(false)
	g.metrics.degraded.Set(0)
	g.log.Info("shared store is back: limits are shared again")
}

// anyCountsRefused says whether a decision has to be made even if it is known to
// refuse.
func anyCountsRefused(uses []limit.Use) bool {
	for i := range uses {
		if uses[i].Limit.CountsRefused() {
			return true
		}
	}
	return false
}

// anyGivesBack says whether a decision does more than to take.
func anyGivesBack(uses []limit.Use) bool {
	return slices.ContainsFunc(uses, func(u limit.Use) bool { return u.Op != limit.Take })
}

// here are uses as the counters of this process know them: what is given back was
// taken at a time by another clock, and is taken out of the newest.
func here(uses []limit.Use) []limit.Use {
	dated := func(u limit.Use) bool { return !u.At.IsZero() }
	if !slices.ContainsFunc(uses, dated) {
		return uses
	}
	uses = slices.Clone(uses)
	for i := range uses {
		uses[i].At = time.Time{}
	}
	return uses
}

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
// counts as of that moment, up to a window longer than it had to. What the shared store
// did too late to be waited for it is told as well, unless it has answered by then, so that
// it can count twice: more is refused then, and never more let pass. How often it is told, and how late it hears of it
// each time, changes nothing: what is told has an id, and is done once.
package fallback

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/writ-mesh/writ/ratelimit/limit"
)

// Shared is the store that all replicas count in. Decide returns within a few
// milliseconds, with an error if it could not decide.
type Shared interface {
	Decide(ctx context.Context, now time.Time, uses []limit.Use, outcomes []limit.Outcome) error
	// Tell does what uses say that do not take, each once for all times that it is told by
	// its id. Uses of one counter are done together. With an error some may be done.
	Tell(ctx context.Context, now time.Time, uses []limit.Use, ids []string) error
}

// Local is a store in this process.
type Local interface {
	Decide(ctx context.Context, now time.Time, uses []limit.Use, outcomes []limit.Outcome) error
	Peek(now time.Time, uses []limit.Use, outcomes []limit.Outcome) (refused bool)
	Record(now time.Time, uses []limit.Use, outcomes []limit.Outcome)
}

// divided is a Shared that is several servers, each of which can be away by itself.
// An error of its Decide may have the method Nodes() []int: which of them failed.
type divided interface {
	Shared
	// Nodes is how many servers are told apart.
	Nodes() int
	// Node is the server that decides a use now, below Nodes.
	Node(now time.Time, u *limit.Use) int
	// ProbeKey is a key that is with a server, empty if none is.
	ProbeKey(node int) string
}

// Guard is a store that always decides. It is safe for concurrent use.
type Guard struct {
	shared  Shared
	divided divided // nil if shared is one server
	local   Local
	log     *slog.Logger
	metrics metrics

	circuits []*circuit
	away     atomic.Int32 // circuits that are open
	change   sync.Mutex   // orders their changes with what is told of them
}

type metrics struct {
	degraded prometheus.Gauge
	errors   prometheus.Counter
	local    prometheus.Counter
	charged  prometheus.Counter
}

// New returns a guard. Run must be running for it to come back from an outage.
func New(shared Shared, local Local, log *slog.Logger, reg prometheus.Registerer) *Guard {
	g := &Guard{shared: shared, local: local, log: log, metrics: metrics{
		degraded: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "writ_ratelimit_store_degraded",
			Help: "1 while the shared store, or a server of it, is away and this replica enforces limits by itself.",
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
	nodes := 1
	if d, ok := shared.(divided); ok && d.Nodes() > 1 {
		g.divided, nodes = d, d.Nodes()
	}
	for i := range nodes {
		g.circuits = append(g.circuits, &circuit{guard: g, node: i, tripped: make(chan struct{}, 1)})
	}
	g.metrics.charged = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "writ_ratelimit_reconciled_hits_total",
		Help: "Hits that were admitted while the shared store was away and that it was told of when it was back.",
	})
	owed := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "writ_ratelimit_store_owed",
		Help: "Counters of which the shared store is still to be told what this replica did by itself.",
	}, g.owed)
	reg.MustRegister(g.metrics.degraded, g.metrics.errors, g.metrics.local, g.metrics.charged, owed)
	return g
}

// Decide makes one decision over all uses. It fails only if ctx ends.
func (g *Guard) Decide(ctx context.Context, now time.Time, uses []limit.Use, outcomes []limit.Outcome) error {
	// What this replica admitted alone is over the limit: so is the sum of all. But
	// what is settled or given back along with it may make room.
	over := !anyCountsRefused(uses) && !anyGivesBack(uses) && g.local.Peek(now, uses, outcomes)
	if over && !anyPart(uses) {
		return nil
	}
	far := g.far(now, uses)
	var err error
	switch {
	case far == 0:
		err = g.shared.Decide(ctx, now, uses, outcomes)
		if err == nil {
			g.succeeded(now, uses)
			if over {
				g.refuse(ctx, now, uses, outcomes)
				return nil
			}
			g.record(now, uses, outcomes)
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		g.failed(now, uses, err)
	case over:
	case far < len(uses):
		return g.apart(ctx, now, uses, outcomes)
	}
	return g.alone(ctx, now, uses, outcomes, err)
}

// record notes in the counters of this process what the shared store decided.
func (g *Guard) record(now time.Time, uses []limit.Use, outcomes []limit.Outcome) {
	if anyCountsRefused(uses) || !limit.Refused(uses, outcomes) {
		g.local.Record(now, here(uses), outcomes)
	}
}

// alone decides by the counters of this process. The shared store was asked first if there
// is an error of it.
func (g *Guard) alone(ctx context.Context, now time.Time, uses []limit.Use, outcomes []limit.Outcome, asked error) error {
	g.metrics.local.Inc()
	if err := g.local.Decide(ctx, now, uses, outcomes); err != nil {
		return err
	}
	var answer late
	asks := errors.As(asked, &answer)
	for i := range uses {
		if debts := &g.circuit(now, &uses[i]).debts; asks {
			debts.addAsked(uses[i], outcomes[i], answer, i)
		} else {
			debts.add(uses[i:i+1], outcomes[i:i+1])
		}
	}
	return nil
}

// circuit is that of the server that decides a use.
func (g *Guard) circuit(now time.Time, u *limit.Use) *circuit {
	if g.divided == nil {
		return g.circuits[0]
	}
	return g.circuits[g.divided.Node(now, u)]
}

// far is how many uses are with servers that are away.
func (g *Guard) far(now time.Time, uses []limit.Use) (n int) {
	if g.away.Load() == 0 {
		return 0
	}
	for i := range uses {
		if g.circuit(now, &uses[i]).degraded.Load() {
			n++
		}
	}
	return n
}

// Degraded says that the shared store, or a server of it, is away and this replica
// decides alone what is counted there.
func (g *Guard) Degraded() bool { return g.away.Load() > 0 }

// Alone says that this replica decides some of these uses without the others.
func (g *Guard) Alone(now time.Time, uses []limit.Use) bool { return g.far(now, uses) > 0 }

// owed is how many counters something is owed for.
func (g *Guard) owed() (n float64) {
	for _, c := range g.circuits {
		n += float64(c.debts.len())
	}
	return n
}

// Run brings the guard back after outages, until ctx ends.
func (g *Guard) Run(ctx context.Context) error {
	tasks, ctx := errgroup.WithContext(ctx)
	for _, c := range g.circuits {
		tasks.Go(func() error { return c.run(ctx) })
	}
	return tasks.Wait()
}

func (g *Guard) succeeded(now time.Time, uses []limit.Use) {
	if !slices.ContainsFunc(g.circuits, func(c *circuit) bool { return c.score.Load() > 0 }) {
		return // the usual case
	}
	for i := range uses {
		if i == 0 || g.divided != nil {
			g.circuit(now, &uses[i]).succeeded()
		}
	}
}

// failed counts a failure to the servers that failed, to all of the decision's if the
// error does not say which.
func (g *Guard) failed(now time.Time, uses []limit.Use, err error) {
	g.metrics.errors.Inc()
	var of interface{ Nodes() []int }
	if g.divided != nil && errors.As(err, &of) {
		for _, node := range of.Nodes() {
			g.circuits[node].failed(now, err)
		}
		return
	}
	for i := range uses {
		g.circuit(now, &uses[i]).failed(now, err)
	}
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

package fallback

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/writ-mesh/writ/ratelimit/limit"
)

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
	maxPause   = 100 * time.Millisecond
	// settleEvery is how often what single failed answers left owed is told while the
	// circuit stays closed.
	settleEvery = time.Second
	// probeKey is the counter that probes use of a store that is one server.
	probeKey = "writ:probe"
)

// circuit is open while a server is away.
type circuit struct {
	guard *Guard
	node  int
	debts debts

	score    atomic.Int64
	failedAt atomic.Int64 // the slot of the last failure
	degraded atomic.Bool
	tripped  chan struct{} // wakes run
}

// run brings the circuit back after outages, until ctx ends.
func (c *circuit) run(ctx context.Context) error {
	if err := c.probe(ctx); err != nil { // a store that is away from the start
		c.open(err)
	}
	tick := time.NewTicker(settleEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			// A store that is away is told nothing: it may do it once it is back.
			if c.debts.len() > 0 && c.probe(ctx) == nil {
				_ = c.settle(ctx) // the next one tries again
			}
			continue
		case <-c.tripped:
		}
		if err := c.recover(ctx); err != nil {
			return err
		}
	}
}

// recover probes until the server is well again.
func (c *circuit) recover(ctx context.Context) error {
	pause, good := minPause, 0
	for good < goodProbes {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause/2 + rand.N(pause)):
		}
		if err := c.probe(ctx); err != nil {
			good, pause = 0, min(2*pause, maxPause)
			continue
		}
		good, pause = good+1, minPause
		if good == goodProbes {
			if err := c.settle(ctx); err != nil {
				good = 0
			}
		}
	}
	c.close()
	_ = c.settle(ctx) // what was decided alone while the circuit closed
	return nil
}

// settle tells the shared store what is owed to it. What it cannot be told stays owed, for
// maxTries; as it is told by the same id each time, it counts once. An error says that the
// store is away; that it does not take a counter is none, for the others are told all the
// same.
func (c *circuit) settle(ctx context.Context) error {
	var bad []bill
	defer func() { c.debts.spoil(bad) }()
	for range c.debts.len()/atOnce + 1 { // more are made meanwhile
		now := time.Now() // of all that is told of them: a window that ends meanwhile is not the next one's
		bills := c.debts.take(now, c.guard.local)
		if c.pay(ctx, now, bills) == nil {
			continue
		}
		for i := range bills { // which of them is it?
			if c.pay(ctx, now, bills[i:i+1]) == nil {
				continue
			}
			if err := c.probe(ctx); err != nil {
				bad = append(bad, bills[i:]...)
				return err
			}
			bad = append(bad, bills[i])
		}
	}
	return nil
}

// pay tells some of what was owed at now.
func (c *circuit) pay(ctx context.Context, now time.Time, bills []bill) error {
	if len(bills) == 0 {
		return nil
	}
	g := c.guard
	var uses []limit.Use
	var ids []string
	for i := range bills {
		for _, u := range bills[i].uses {
			uses, ids = append(uses, u), append(ids, bills[i].id)
		}
	}
	if err := g.shared.Tell(ctx, now, uses, ids); err != nil {
		g.metrics.errors.Inc()
		return err
	}
	for i := range uses {
		g.metrics.charged.Add(float64(uses[i].Hits))
	}
	c.debts.paid(bills)
	return nil
}

// probe does what a decision does, a write included: a store that only answers
// is not yet one that counts. A server that no counters are with any more, as one that
// another has replaced, is none to wait for.
func (c *circuit) probe(ctx context.Context) error {
	g, key := c.guard, probeKey
	if g.divided != nil {
		if key = g.divided.ProbeKey(c.node); key == "" {
			return nil
		}
	}
	l, err := limit.New(limit.Sliding, 1_000_000, time.Second)
	if err != nil {
		return err
	}
	err = g.shared.Decide(ctx, time.Now(), []limit.Use{{Key: key, Limit: l, Hits: 1}}, make([]limit.Outcome, 1))
	if err != nil && !errors.Is(err, context.Canceled) {
		g.metrics.errors.Inc()
	}
	return err
}

func (c *circuit) succeeded() {
	if n := c.score.Load(); n > 0 {
		c.score.CompareAndSwap(n, n-1) // losing the race forgets one success
	}
}

func (c *circuit) failed(now time.Time, err error) {
	if at := now.UnixNano() / int64(slot); c.failedAt.Swap(at) == at {
		return
	}
	if c.score.Add(failureWeight) >= openAt {
		c.open(err)
	}
}

func (c *circuit) open(cause error) {
	g := c.guard
	g.change.Lock()
	defer g.change.Unlock()
	if c.degraded.Swap(true) {
		return
	}
	g.away.Add(1)
	g.metrics.degraded.Set(1)
	g.log.Error("shared store is away: limits are enforced by this replica alone", slog.Int("server", c.node), slog.Any("error", cause))
	select {
	case c.tripped <- struct{}{}:
	default:
	}
}

func (c *circuit) close() {
	g := c.guard
	g.change.Lock()
	defer g.change.Unlock()
	c.score.Store(0)
	c.degraded.Store(false)
	if g.away.Add(-1) == 0 {
		g.metrics.degraded.Set(0)
	}
	g.log.Info("shared store is back: limits are shared again", slog.Int("server", c.node))
}

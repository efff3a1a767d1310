// Package lease lets a replica decide from shares of limits that it took from the
// shared store before, so that most decisions ask nobody.
//
// A Store stands before the store that all replicas share and has its interface.
// Uses of mode leased are taken out of a share in hand; if there is none, or the
// limit is too small to be shared (TermsOf), the shared store is asked as for an
// exact use, and for a share along with it. How large that is follows the demand:
// what was used lately comes to in the time that a share is good for, at most a
// quarter of what is left of the limit or a little rest. Before a share is used up or over the next
// one is asked for in the background. What nobody used is given back, when the time
// of the share is over and when the counter is idle; what a replica held that died
// is free again when its window is over, by the store's clock, and costs nobody
// else anything before that.
//
// Guarantee: shares are counted as used when they are granted, for as long as what
// is used of them counts (TermsOf says how). So as long as the shared store keeps
// its counts, never more passes than the limit says, however many replicas hold
// shares: the overshoot is 0. The limit gives up to 1/17 less than it could, and
// what idle replicas hold for a second.
//
// Several uses of one request are decided together: those in hand are put back if
// the shared store refuses, and the other way round nothing is asked for if a share
// in hand is known to be over. Uses of mode local are counted in this process alone.
package lease

import (
	"context"
	"hash/maphash"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/writ-mesh/writ/ratelimit/limit"
)

// Decider is a store that limits are counted in: that which replicas share, or the
// one in this process.
type Decider interface {
	Decide(ctx context.Context, now time.Time, uses []limit.Use, outcomes []limit.Outcome) error
}

const (
	shardCount = 64
	// idle is after how long without use a share is given back, or an eighth of its
	// time if that is longer.
	idle = time.Second
	// sweepEvery is how often idle shares are looked for.
	sweepEvery = time.Second
	// queue bounds the counters that wait for a share asked for in the background,
	// which ask by themselves when they have none, and the shares that are to be
	// given back, which are free again when their windows are over.
	queue = 1024
	// batch is how many shares are asked for, or given back, at once.
	batch = 16
)

// Store decides from shares. It is safe for concurrent use.
type Store struct {
	shared, local Decider
	now           func() time.Time
	seed          maphash.Seed
	perShard      int
	shards        [shardCount]shard
	fetch         chan *cell
	returns       chan limit.Use
	asks          sync.Pool // of *ask
	metrics       metrics
}

type shard struct {
	mu    sync.Mutex
	cells map[string]*cell
	_     [32]byte // keeps the locks of neighbours in different cache lines
}

type metrics struct {
	inHand, asked, back prometheus.Counter
}

// New returns a store that keeps shares of at most maxKeys counters. Run must be
// running for shares to be asked for in time and to be given back.
func New(shared, local Decider, maxKeys int, now func() time.Time, reg prometheus.Registerer) *Store {
	s := &Store{
		shared: shared, local: local, now: now, seed: maphash.MakeSeed(),
		perShard: (maxKeys + shardCount - 1) / shardCount, fetch: make(chan *cell, queue), returns: make(chan limit.Use, queue),
		metrics: metrics{
			inHand: prometheus.NewCounter(prometheus.CounterOpts{
				Name: "writ_ratelimit_leased_decisions_total",
				Help: "Uses of leased limits that were decided from a share in hand, without asking the shared store.",
			}),
			asked: prometheus.NewCounter(prometheus.CounterOpts{
				Name: "writ_ratelimit_lease_requests_total",
				Help: "Uses of leased limits, and requests for shares, that the shared store was asked for.",
			}),
			back: prometheus.NewCounter(prometheus.CounterOpts{
				Name: "writ_ratelimit_lease_returned_hits_total",
				Help: "Hits of shares that were given back unused.",
			}),
		},
	}
	for i := range s.shards {
		s.shards[i].cells = make(map[string]*cell)
	}
	s.asks.New = func() any { return new(ask) }
	reg.MustRegister(s.metrics.inHand, s.metrics.asked, s.metrics.back)
	return s
}

// ask is what a decision has to ask another store, and what it took before.
type ask struct {
	uses     []limit.Use
	outcomes []limit.Outcome
	at       []int  // place of each in the decision
	fetches  []bool // it asks for a share
	refused  bool
}

func (a *ask) add(i int, u limit.Use, fetches bool) {
	a.uses, a.outcomes = append(a.uses, u), append(a.outcomes, limit.Outcome{})
	a.at, a.fetches = append(a.at, i), append(a.fetches, fetches)
}

func (s *Store) release(a *ask) {
	clear(a.uses)
	a.uses, a.outcomes, a.at, a.fetches, a.refused = a.uses[:0], a.outcomes[:0], a.at[:0], a.fetches[:0], false
	s.asks.Put(a)
}

// Decide makes one decision over all uses, of any mode, and puts what became of
// each into outcomes, which is as long as uses.
func (s *Store) Decide(ctx context.Context, now time.Time, uses []limit.Use, outcomes []limit.Outcome) error {
	if slices.ContainsFunc(uses, ends) {
		return s.decideEnds(ctx, now, uses, outcomes)
	}
	return s.decide(ctx, now, uses, outcomes)
}

func (s *Store) decide(ctx context.Context, now time.Time, uses []limit.Use, outcomes []limit.Outcome) error {
	exact, local := true, false
	for i := range uses {
		exact = exact && uses[i].Mode == limit.Exact
		local = local || uses[i].Mode == limit.Local
	}
	if exact {
		return s.shared.Decide(ctx, now, uses, outcomes)
	}
	a := s.asks.Get().(*ask) //nolint:forcetypeassert // see New
	defer s.release(a)
	for i := range uses {
		if uses[i].Mode != limit.Local {
			s.leased(i, &uses[i], now, &outcomes[i], a)
		}
	}
	var err error
	if local && !a.refused {
		err = s.decideLocal(ctx, now, uses, outcomes, a)
	}
	asked := err == nil && len(a.uses) > 0 && (!a.refused || anyCountsRefused(a.uses))
	if asked {
		err = s.shared.Decide(ctx, now, a.uses, a.outcomes)
	}
	s.answered(uses, outcomes, a, now, asked && err == nil)
	if a.refused || err != nil {
		s.putBack(ctx, now, uses, outcomes, a)
	}
	return err
}

// leased takes a use out of the share in hand, or adds what is to be asked to a.
func (s *Store) leased(i int, u *limit.Use, now time.Time, out *limit.Outcome, a *ask) {
	terms, ok := termsOf(u)
	if !ok {
		a.add(i, *u, false)
		return
	}
	asked := *u
	asked.Limit = terms.Asked
	if u.Earlier {
		a.add(i, asked, false)
		return
	}
	sh := s.shard(u.Key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	c := s.cell(sh, u.Key, terms, now)
	if u.Op != limit.Take {
		if u.Op == limit.Reset {
			sh.cells[c.key] = &cell{key: c.key, terms: c.terms} // c may be with who asks for a share
		}
		a.add(i, asked, false)
		return
	}
	if c.take(u, now, out) {
		s.metrics.inHand.Inc()
		a.refused = a.refused || holdsBack(u, out)
		s.fetchIfLow(c, now)
		return
	}
	s.metrics.asked.Inc()
	fetches := !c.fetching && u.Hits > 0
	if fetches {
		c.fetching = true
		if want := c.demand(now); want > 0 {
			asked.Want = asked.Bounded() + want
		}
	}
	a.add(i, asked, fetches)
}

// fetchIfLow has a share asked for in the background; the cell's shard is locked.
func (s *Store) fetchIfLow(c *cell, now time.Time) {
	if !c.low(now) {
		return
	}
	select {
	case s.fetch <- c:
		c.fetching = true
	default:
	}
}

// decideLocal decides the uses that are counted in this process alone.
func (s *Store) decideLocal(ctx context.Context, now time.Time, uses []limit.Use, outcomes []limit.Outcome, a *ask) error {
	l := s.asks.Get().(*ask) //nolint:forcetypeassert // see New
	defer s.release(l)
	for i := range uses {
		if uses[i].Mode == limit.Local {
			l.add(i, localUse(uses[i]), false)
		}
	}
	if err := s.local.Decide(ctx, now, l.uses, l.outcomes); err != nil {
		return err
	}
	for k, i := range l.at {
		outcomes[i] = l.outcomes[k]
		a.refused = a.refused || holdsBack(&uses[i], &outcomes[i])
	}
	return nil
}

// answered takes in what the shared store said, if it was asked and answered.
func (s *Store) answered(uses []limit.Use, outcomes []limit.Outcome, a *ask, now time.Time, ok bool) {
	for k, i := range a.at {
		u, out := &uses[i], a.outcomes[k]
		outcomes[i] = out
		if u.Op == limit.Take {
			outcomes[i].Taken = min(out.Taken, u.Bounded())
		}
		if !ok { // known to be refused: what it would have been nobody knows
			outcomes[i] = limit.Outcome{Remaining: u.Limit.Burst(), At: now}
		}
		a.refused = a.refused || holdsBack(u, &out)
		terms, leased := termsOf(u)
		if !leased || u.Op != limit.Take || u.Earlier {
			continue
		}
		sh := s.shard(u.Key)
		sh.mu.Lock()
		c := s.cell(sh, u.Key, terms, now)
		if a.fetches[k] {
			c.fetching = false
		}
		if ok {
			c.learn(&out, u.Bounded(), now)
			s.accept(c, out.Taken-outcomes[i].Taken, &out, now)
		}
		sh.mu.Unlock()
	}
}

// accept takes hits that were granted in hand; the cell's shard is locked.
func (s *Store) accept(c *cell, hits uint64, out *limit.Outcome, now time.Time) {
	for g := c.expired(now, false); g.size > 0; g = c.expired(now, false) {
		s.back(c, g)
	}
	s.back(c, c.add(grant{left: hits, size: hits, until: c.terms.end(now), at: out.At}))
}

// putBack gives back what a refused request took from shares in hand and from the
// counters of this process.
func (s *Store) putBack(ctx context.Context, now time.Time, uses []limit.Use, outcomes []limit.Outcome, a *ask) {
	l := s.asks.Get().(*ask) //nolint:forcetypeassert // see New
	defer s.release(l)
	for i := range uses {
		u, out := &uses[i], &outcomes[i]
		if u.Op != limit.Take || out.Taken == 0 || slices.Contains(a.at, i) || u.Mode == limit.Local && u.Limit.CountsRefused() {
			continue
		}
		if u.Mode == limit.Local {
			back := localUse(*u)
			back.Op, back.Hits, back.At = limit.Refund, out.Taken, out.At
			if u.HeldFor() > 0 {
				back.Op, back.Hits = limit.Settle, 0
			}
			l.add(i, back, false)
			continue
		}
		sh := s.shard(u.Key)
		sh.mu.Lock()
		if c := sh.cells[u.Key]; c != nil {
			c.put(out.Taken, out.At)
		}
		sh.mu.Unlock()
		out.Taken = 0
	}
	if len(l.uses) == 0 || s.local.Decide(ctx, now, l.uses, l.outcomes) != nil {
		return
	}
	for k, i := range l.at {
		outcomes[i].Taken, outcomes[i].Remaining, outcomes[i].Reset = 0, l.outcomes[k].Remaining, l.outcomes[k].Reset
	}
}

// termsOf says whether a use is to be taken from shares, and from what.
func termsOf(u *limit.Use) (Terms, bool) {
	if u.Mode != limit.Leased || u.Hold != "" || u.HoldFor > 0 {
		return Terms{}, false
	}
	return TermsOf(u.Limit)
}

func (s *Store) shard(key string) *shard {
	return &s.shards[maphash.String(s.seed, key)%shardCount]
}

// cell finds or makes the cell of a counter; its shard is locked. If the limit was
// edited what is in hand of the old one goes back.
func (s *Store) cell(sh *shard, key string, terms Terms, now time.Time) *cell {
	c := sh.cells[key]
	if c != nil && c.terms == terms {
		return c
	}
	if c != nil {
		s.forget(sh, c, now)
	} else if len(sh.cells) >= s.perShard {
		for _, other := range sh.cells { // any: maps have no order
			s.forget(sh, other, now)
			break
		}
	}
	c = &cell{key: key, terms: terms}
	sh.cells[key] = c
	return c
}

// forget takes a cell out and gives back what is in hand.
func (s *Store) forget(sh *shard, c *cell, now time.Time) {
	s.backAll(c, now)
	delete(sh.cells, c.key)
}

// backAll gives back all that is in hand of a counter.
func (s *Store) backAll(c *cell, now time.Time) {
	for g := c.expired(now, true); g.size > 0; g = c.expired(now, true) {
		s.back(c, g)
	}
}

// back has a share given back in the background. If too much waits for that it is
// free again when its window is over.
func (s *Store) back(c *cell, g grant) {
	if g.left == 0 {
		return
	}
	select {
	case s.returns <- c.refund(g):
		s.metrics.back.Add(float64(g.left))
	default:
	}
}

// holdsBack says that a use is refused and nothing else of its request is taken.
func holdsBack(u *limit.Use, out *limit.Outcome) bool {
	return out.Over && !u.Observe && !u.Limit.CountsRefused()
}

func anyCountsRefused(uses []limit.Use) bool {
	return slices.ContainsFunc(uses, func(u limit.Use) bool { return u.Limit.CountsRefused() })
}

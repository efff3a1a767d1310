package regions

import (
	"context"
	"hash/maphash"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/writ-mesh/writ/ratelimit/limit"
)

// Decider is the store of this region.
type Decider interface {
	Decide(ctx context.Context, now time.Time, uses []limit.Use, outcomes []limit.Outcome) error
}

const (
	shardCount = 64
	// patience is how long a request that this region's part has nothing left for waits
	// for another region to lend something. Envoy waits for 50 ms in all.
	patience = 10 * time.Millisecond
)

// Store divides limits and borrows. It is safe for concurrent use.
type Store struct {
	below    Decider
	division *Division
	nameOf   func(key string) (string, bool)
	now      func() time.Time
	up       func() time.Duration
	peers    []*peer
	metrics  *metrics
	seed     maphash.Seed
	perShard int
	shards   [shardCount]shard
	works    sync.Pool // of *work
}

type shard struct {
	mu    sync.Mutex
	cells map[string]*cell
	_     [32]byte // keeps the locks of neighbours in different cache lines
}

// Options are what a Store is made of.
type Options struct {
	// Below is the store of this region.
	Below    Decider
	Division *Division
	// NameOf is what operators call the counter of a key, the same in all regions.
	NameOf func(key string) (string, bool)
	// MaxKeys bounds the counters that something is borrowed for.
	MaxKeys int
	Now     func() time.Time
	// Up is how long ago the machine started, as it counts also while it is suspended; nil
	// asks the kernel.
	Up    func() time.Duration
	Peers []Peer
}

// New makes a store. It borrows once Connect runs for a peer, and Run must be running
// for loans to be given back.
func New(o Options, reg prometheus.Registerer) *Store {
	s := &Store{
		below: o.Below, division: o.Division, nameOf: o.NameOf, now: o.Now, up: o.Up, metrics: newMetrics(reg),
		seed: maphash.MakeSeed(), perShard: (o.MaxKeys + shardCount - 1) / shardCount,
	}
	if s.up == nil {
		s.up = sinceStart
	}
	for i, p := range o.Peers {
		s.peers = append(s.peers, newPeer(i, p.Name))
	}
	for i := range s.shards {
		s.shards[i].cells = make(map[string]*cell)
	}
	s.works.New = func() any { return new(work) }
	reg.MustRegister(ageCollector{s})
	return s
}

// work is a decision as the store below is asked for it.
type work struct {
	uses     []limit.Use
	outcomes []limit.Outcome
	at       []int // place of each in the decision
	lent     []int // places of those that were taken from loans
}

func (w *work) reset() {
	clear(w.uses)
	w.uses, w.outcomes, w.at, w.lent = w.uses[:0], w.outcomes[:0], w.at[:0], w.lent[:0]
}

// Decide makes one decision over all uses and puts what became of each into outcomes,
// which is as long as uses.
func (s *Store) Decide(ctx context.Context, now time.Time, uses []limit.Use, outcomes []limit.Outcome) error {
	w := s.works.Get().(*work) //nolint:forcetypeassert // see New
	defer func() { w.reset(); s.works.Put(w) }()
	if err := s.forget(ctx, now, uses); err != nil {
		return err
	}
	if err := s.try(ctx, now, uses, outcomes, w, false); err != nil || !limit.Refused(uses, outcomes) || !onlyTakes(uses) {
		return err
	}
	if !s.await(ctx, uses, outcomes) {
		return nil
	}
	w.reset()
	return s.try(ctx, s.now(), uses, outcomes, w, true)
}

// try decides with what is in hand where this region's part is known to be used up, or
// anyway.
func (s *Store) try(ctx context.Context, now time.Time, uses []limit.Use, outcomes []limit.Outcome, w *work, anyway bool) error {
	for i := range uses {
		u := uses[i]
		if u.Mode != limit.Local {
			if !fair(uses, i) && s.take(&u, &outcomes[i], anyway) {
				w.lent = append(w.lent, i)
				continue
			}
			part, err := s.division.Of(u.Limit)
			if err != nil {
				s.putBack(uses, outcomes, w)
				return err
			}
			u.Limit = part
		}
		w.uses, w.outcomes, w.at = append(w.uses, u), append(w.outcomes, limit.Outcome{}), append(w.at, i)
	}
	var err error
	if len(w.uses) > 0 {
		err = s.below.Decide(ctx, now, w.uses, w.outcomes)
	}
	for k, i := range w.at {
		outcomes[i] = w.outcomes[k]
		if err == nil && !fair(uses, i) {
			s.note(&uses[i], &outcomes[i])
		}
	}
	if err != nil || limit.Refused(uses, outcomes) {
		s.putBack(uses, outcomes, w)
	}
	return err
}

// fair says that a use is of a limit that is shared fairly. Who may have how much of it
// is known where all of it is counted, so that it is divided only.
func fair(uses []limit.Use, i int) bool {
	return limit.Part(uses, i) || i+1 < len(uses) && limit.Part(uses, i+1)
}

// putBack puts what was taken from loans back into them.
func (s *Store) putBack(uses []limit.Use, outcomes []limit.Outcome, w *work) {
	for _, i := range w.lent {
		sh := s.shard(uses[i].Key)
		sh.mu.Lock()
		if c := sh.cells[uses[i].Key]; c != nil {
			c.put(outcomes[i].Taken, outcomes[i].At)
		}
		sh.mu.Unlock()
		outcomes[i].Taken = 0
	}
}

// take takes a use from loans in hand, if this region's part is used up or anyway.
func (s *Store) take(u *limit.Use, out *limit.Outcome, anyway bool) bool {
	if !lendable(u) {
		return false
	}
	sh := s.shard(u.Key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	c := sh.cells[u.Key]
	if c == nil || c.rule != u.Limit || len(c.loans) == 0 {
		return false
	}
	now := s.moment()
	if !anyway && now.up >= c.over || !c.take(u.Bounded(), now, out) {
		return false
	}
	c.count(u.Bounded(), now.up)
	if c.low(0, now) {
		s.ask(c, now)
	}
	return true
}

// note takes in how this region's part stands after a use, and has hits borrowed if
// little is left.
func (s *Store) note(u *limit.Use, out *limit.Outcome) {
	if u.Mode == limit.Local || !lendable(u) {
		return
	}
	valid, ok := validFor(u.Limit)
	if !ok {
		return
	}
	sh := s.shard(u.Key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	c := sh.cells[u.Key]
	// Of what is far from used up nothing needs to be known.
	if half := s.division.part(s.division.own, u.Limit.Requests()) / 2; c == nil && !out.Over && out.Remaining > half {
		return
	}
	now := s.moment()
	if c == nil || c.rule != u.Limit {
		if c = s.cell(sh, u, valid, now); c == nil {
			return
		}
	}
	c.count(u.Bounded(), now.up)
	if out.Over {
		// Something may be given back before: look again soon.
		c.over = now.up + min(out.RetryAfter, stale(valid))
		c.need = max(min(u.Bounded(), uint64(u.Limit.Requests())), 1)
	}
	if out.Over || c.low(uint64(out.Remaining), now) {
		s.ask(c, now)
	}
}

// cell makes the cell of a counter; its shard is locked. What there is of another limit
// of that key goes back. It is nil for a counter without a name.
func (s *Store) cell(sh *shard, u *limit.Use, valid time.Duration, now moment) *cell {
	name, ok := s.nameOf(u.Key)
	if !ok {
		return nil
	}
	if old := sh.cells[u.Key]; old != nil {
		s.back(old, old.ended(now, true))
	} else if len(sh.cells) >= s.perShard {
		for key, other := range sh.cells { // any: maps have no order
			s.back(other, other.ended(now, true))
			delete(sh.cells, key)
			break
		}
	}
	c := &cell{key: u.Key, name: name, rule: u.Limit, valid: valid, begin: now.up, quiet: make([]time.Duration, len(s.peers))}
	sh.cells[u.Key] = c
	return c
}

// await waits for what other regions lend to the uses that are refused, for a short
// time. It says whether it is worth trying again.
func (s *Store) await(ctx context.Context, uses []limit.Use, outcomes []limit.Outcome) bool {
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for i := range uses {
		u := &uses[i]
		if !outcomes[i].Over || u.Observe {
			continue
		}
		if u.Mode == limit.Local || !lendable(u) || fair(uses, i) {
			return false
		}
		for !s.inHand(u) {
			asking := s.asking(u)
			if asking == nil {
				return false
			}
			select {
			case <-asking:
			case <-timeout.C:
				return false
			case <-ctx.Done():
				return false
			}
		}
	}
	return true
}

func (s *Store) inHand(u *limit.Use) bool {
	sh := s.shard(u.Key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	c, now := sh.cells[u.Key], s.moment()
	return c != nil && c.rule == u.Limit && slices.ContainsFunc(c.loans, func(l loan) bool { return l.left >= u.Bounded() && l.good(now) })
}

// asking is closed when an answer is there; nil if nobody is asked.
func (s *Store) asking(u *limit.Use) <-chan struct{} {
	sh := s.shard(u.Key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if c := sh.cells[u.Key]; c != nil {
		return c.asking
	}
	return nil
}

func (s *Store) shard(key string) *shard {
	return &s.shards[maphash.String(s.seed, key)%shardCount]
}

func onlyTakes(uses []limit.Use) bool {
	return !slices.ContainsFunc(uses, func(u limit.Use) bool { return u.Op != limit.Take || u.Limit.CountsRefused() })
}

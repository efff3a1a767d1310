// Package memory keeps the counters of rate limits in this process.
//
// The keys are spread over shards with a lock each; a decision over several keys
// holds the locks of all their shards, taken in order, so that it is atomic. The
// memory is bounded by a number of keys. When a shard is full the counter used
// longest ago goes, idle or not: evicting one that still counts forgets its uses
// and errs on the open side, which Evicted makes visible.
package memory

import (
	"container/list"
	"context"
	"hash/maphash"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/writ-mesh/writ/ratelimit/limit"
)

// DefaultMaxKeys bounds the counters at about 150 MiB in the worst case: a key of
// 100 bytes and a window with all its entries take some 750 bytes.
const DefaultMaxKeys = 200_000

// shardCount is a power of two well above the number of cores that contend.
const shardCount = 64

// overtaken is by how much a decision may come later than another that looked at the
// clock after it, on a machine that is full. What comes by more is a clock that was set
// back.
const overtaken = int64(time.Second / time.Microsecond)

// Store is a set of counters. It is safe for concurrent use.
type Store struct {
	seed    maphash.Seed
	perkeys int
	shards  [shardCount]shard
	evicted atomic.Uint64
}

type shard struct {
	mu    sync.Mutex
	cells map[string]*list.Element // of *cell
	order *list.List               // most recently used first
	_     [32]byte                 // keeps the locks of neighbours in different cache lines
}

type cell struct {
	key     string
	limit   limit.Limit // as last used: the counter is its algorithm's
	counter *limit.Counter
	pending uint64 // hits of uses of the same key in the decision being made
	seen    int64  // when it was last decided, in microseconds since the epoch
}

// New returns a store that holds at most maxKeys counters (0: DefaultMaxKeys),
// rounded up to a multiple of the number of shards.
func New(maxKeys int) *Store {
	if maxKeys <= 0 {
		maxKeys = DefaultMaxKeys
	}
	s := &Store{seed: maphash.MakeSeed(), perkeys: (maxKeys + shardCount - 1) / shardCount}
	for i := range s.shards {
		s.shards[i].cells = make(map[string]*list.Element)
		s.shards[i].order = list.New()
	}
	return s
}

// Decide makes one decision over all uses at the time now and puts what became
// of each into outcomes, which is as long as uses. Limits that do not count
// refused uses are taken from only if no enforced one of them is over; nor is
// anything charged, settled or given back then. It fails only if a use has what is
// not a limit.
func (s *Store) Decide(_ context.Context, now time.Time, uses []limit.Use, outcomes []limit.Outcome) error {
	var r room
	l, err := r.lock(s, uses, true)
	now = l.inOrder(now)
	defer l.unlock(s, now)
	if err != nil {
		return err
	}
	refused := l.check(now, uses, outcomes)
	for i := range uses {
		u, c, out := &uses[i], l.cells[i], &outcomes[i]
		if u.Op == limit.Take && u.Limit.CountsRefused() {
			continue
		}
		c.pending = 0
		switch {
		case refused:
			out.Taken = 0
		case u.Op != limit.Take:
			out.Taken = c.counter.Apply(u, now)
		case out.Taken > 0:
			c.counter.Take(u, now, out.Taken)
		}
	}
	for i := range uses {
		if uses[i].Op != limit.Take || !uses[i].Limit.CountsRefused() {
			l.after(i, now, uses, outcomes)
		}
	}
	return nil
}

// Peek is Decide without taking anything. It leaves limits out that count refused
// uses, and uses that do not take, and looks at each use by itself, so that it may
// let pass what Decide would refuse, never the other way round.
func (s *Store) Peek(now time.Time, uses []limit.Use, outcomes []limit.Outcome) (refused bool) {
	var r room
	l, err := r.lock(s, uses, false)
	now = l.inOrder(now)
	defer l.unlock(s, now)
	if err != nil {
		return false // Decide says so
	}
	for i := range uses {
		u, c := &uses[i], l.cells[i]
		if u.Op != limit.Take || u.Limit.CountsRefused() {
			outcomes[i] = limit.Outcome{}
			continue
		}
		if c == nil { // never used
			counter, err := limit.NewCounter(u.Limit)
			if err != nil {
				return false
			}
			c = &cell{counter: counter}
			l.cells[i] = c
		}
		// What others ask for is not known here, so that it cannot be told whether a part
		// is over.
		outcomes[i] = c.counter.Check(u, now, 0)
		refused = refused || outcomes[i].Over && !u.Observe
	}
	for i := range uses {
		if outcomes[i].Taken = 0; refused && l.cells[i] != nil {
			l.cells[i].counter.After(&uses[i], now, &outcomes[i])
		}
	}
	return refused
}

// Record does what somebody else has decided: it takes what outcomes say was
// taken, and does what uses say that do not take.
func (s *Store) Record(now time.Time, uses []limit.Use, outcomes []limit.Outcome) {
	var r room
	l, err := r.lock(s, uses, true)
	now = l.inOrder(now)
	defer l.unlock(s, now)
	if err != nil {
		return // nobody can have admitted it
	}
	for i := range uses {
		u, c := &uses[i], l.cells[i].counter
		switch {
		case u.Op != limit.Take:
			c.Apply(u, now)
		case outcomes[i].Taken > 0:
			c.Take(u, now, outcomes[i].Taken)
		}
	}
}

// Sweep forgets the counters that are idle at now. Run it now and then: without
// it memory stays at its greatest until new keys push the old ones out.
func (s *Store) Sweep(now time.Time) {
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.Lock()
		for _, e := range sh.cells {
			if c := of(e); c.idle(now) {
				sh.remove(e)
			}
		}
		sh.mu.Unlock()
	}
}

// Len is the number of counters held.
func (s *Store) Len() int {
	n := 0
	for i := range s.shards {
		s.shards[i].mu.Lock()
		n += len(s.shards[i].cells)
		s.shards[i].mu.Unlock()
	}
	return n
}

// Evicted is how many counters were forgotten before they were idle.
func (s *Store) Evicted() uint64 { return s.evicted.Load() }

// locked is a decision's hold on its shards and its cells, one per use.
type locked struct {
	shards []uint8 // sorted, each once
	cells  []*cell
}

// room is what the usual decision needs, so that it does not allocate.
type room struct {
	shards [8]uint8
	cells  [8]*cell
}

// lock takes the shards of uses and finds their cells; those that are not there
// are made, or stay nil. What is locked is to be unlocked even if it fails.
func (r *room) lock(s *Store, uses []limit.Use, create bool) (locked, error) {
	l := locked{r.shards[:0], r.cells[:0]}
	for i := range uses {
		l.shards = append(l.shards, s.index(uses[i].Key))
	}
	if len(uses) > 1 {
		slices.Sort(l.shards)
		l.shards = slices.Compact(l.shards)
	}
	for _, i := range l.shards {
		s.shards[i].mu.Lock()
	}
	for i := range uses {
		c, err := s.cell(&uses[i], create)
		if err != nil {
			return l, err
		}
		l.cells = append(l.cells, c)
	}
	return l, nil
}

// inOrder is when a decision is made that was asked for at now: not before others of its
// counters. Who asks looks at the clock first and gets the locks later, and a counter whose
// time goes back and forth runs out faster than time.
func (l locked) inOrder(now time.Time) time.Time {
	at := now.UnixMicro()
	for _, c := range l.cells {
		if c != nil && at < c.seen && c.seen-at <= overtaken {
			now, at = time.UnixMicro(c.seen), c.seen
		}
	}
	for _, c := range l.cells {
		if c != nil {
			c.seen = at
		}
	}
	return now
}

func (l locked) unlock(s *Store, now time.Time) {
	// Only now: a cell of this very decision must not go while it is used.
	for _, i := range l.shards {
		s.trim(&s.shards[i], now)
		s.shards[i].mu.Unlock()
	}
}

// check counts the uses that count even if refused, and says which others fit.
func (l locked) check(now time.Time, uses []limit.Use, outcomes []limit.Outcome) (refused bool) {
	for i := range uses {
		u, c := &uses[i], l.cells[i]
		if u.Op != limit.Take {
			outcomes[i] = limit.Outcome{}
			continue
		}
		part := limit.Part(uses, i)
		if part {
			outcomes[i] = c.counter.CheckPart(u, now, c.pending, l.whole(i, uses, outcomes))
		} else {
			outcomes[i] = c.counter.Check(u, now, c.pending)
		}
		switch {
		case u.Limit.CountsRefused():
			outcomes[i].Taken = max(outcomes[i].Taken, u.Bounded())
			c.counter.Take(u, now, outcomes[i].Taken)
			c.counter.After(u, now, &outcomes[i])
		case !outcomes[i].Over:
			c.pending += outcomes[i].Taken
		case !u.Observe:
			refused = true
		case part: // who is only watched takes nothing of the whole either
			l.cells[i-1].pending -= outcomes[i-1].Taken
			outcomes[i-1].Taken = 0
		}
	}
	return refused
}

// after puts into an outcome how the limit stands.
func (l locked) after(i int, now time.Time, uses []limit.Use, outcomes []limit.Outcome) {
	if limit.Part(uses, i) {
		l.cells[i].counter.AfterPart(&uses[i], now, &outcomes[i], l.whole(i, uses, outcomes))
		return
	}
	l.cells[i].counter.After(&uses[i], now, &outcomes[i])
}

// whole is what the use at i is a part of.
func (l locked) whole(i int, uses []limit.Use, outcomes []limit.Outcome) limit.Whole {
	return limit.Whole{Use: &uses[i-1], Counter: l.cells[i-1].counter, Outcome: &outcomes[i-1]}
}

func (s *Store) index(key string) uint8 {
	return uint8(maphash.String(s.seed, key) % shardCount) //nolint:gosec // below shardCount
}

// cell finds or makes the cell of a use; its shard is locked. A limit that got
// another algorithm begins anew.
func (s *Store) cell(u *limit.Use, create bool) (*cell, error) {
	sh := &s.shards[s.index(u.Key)]
	e, ok := sh.cells[u.Key]
	if ok && of(e).limit.Algorithm() == u.Limit.Algorithm() {
		sh.order.MoveToFront(e)
		c := of(e)
		c.limit = u.Limit
		return c, nil
	}
	if !create {
		return nil, nil
	}
	counter, err := limit.NewCounter(u.Limit)
	if err != nil {
		return nil, err
	}
	if ok {
		sh.remove(e)
	}
	c := &cell{key: u.Key, limit: u.Limit, counter: counter}
	sh.cells[u.Key] = sh.order.PushFront(c)
	return c, nil
}

// trim brings a shard back to its bound. The counter used longest ago is the
// likeliest to be idle.
func (s *Store) trim(sh *shard, now time.Time) {
	for len(sh.cells) > s.perkeys {
		e := sh.order.Back()
		if !of(e).idle(now) {
			s.evicted.Add(1)
		}
		sh.remove(e)
	}
}

func (sh *shard) remove(e *list.Element) {
	delete(sh.cells, of(e).key)
	sh.order.Remove(e)
}

func of(e *list.Element) *cell {
	return e.Value.(*cell) //nolint:forcetypeassert // nothing else is put into order
}

func (c *cell) idle(now time.Time) bool { return c.counter.Idle(c.limit, now) }

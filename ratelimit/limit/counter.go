package limit

import (
	"strconv"
	"time"
)

// Counter is what is remembered of the uses of one limit under one key. It is not
// safe for concurrent use.
type Counter struct {
	state state
	holds holds
	named uint64 // names given to holds that came without
	reset int64  // when it was reset, in microseconds: what was taken before is gone
	// demands are of those who share the limit.
	demands demands
}

// state is what an algorithm remembers beside holds. Times are microseconds since
// the epoch.
type state interface {
	// check says what would become of hits, on top of pending hits. It takes nothing.
	check(l Limit, now int64, hits, pending uint64) Outcome
	// add takes hits, whether they fit or not.
	add(l Limit, now int64, hits uint64)
	// refund gives back what was taken at the time at, 0 the newest, and says how much.
	refund(l Limit, now int64, hits uint64, at int64) uint64
	// after describes the limit once a decision is made.
	after(l Limit, now int64) (remaining uint32, reset time.Duration)
	// idle says that nothing counts any more, so that the state may be forgotten.
	idle(l Limit, now int64) bool
}

// wholeRest is how much is given to one who wants it though it is more than a
// quarter of what is left.
const wholeRest = 64

// NewCounter makes the counter of a limit that was not used yet. Limits with the
// same algorithm may follow each other on one counter, as when a limit is edited.
// Of what is not a limit it fails.
func NewCounter(l Limit) (*Counter, error) {
	s, err := l.algorithm.spec()
	if err != nil {
		return nil, err
	}
	return &Counter{state: s.state()}, nil
}

// Check says what would become of a use that takes, on top of pending hits that
// were checked before in the same decision, and how much Taken would be. It takes
// nothing.
func (c *Counter) Check(u *Use, now time.Time, pending uint64) Outcome {
	at := now.UnixMicro()
	c.holds.run(at)
	held, hits := pending+c.holds.sum, u.Bounded()
	out := c.state.check(u.Limit, at, hits, held)
	switch one := max(hits, 1); {
	case hits > 0 && len(c.holds.by) >= maxHolds && u.HeldFor() > 0:
		out.Over, out.RetryAfter = true, micros(c.holds.reset(at))
	case out.Over && u.Limit.algorithm == Concurrency && one <= uint64(u.Limit.requests):
		out.RetryAfter = micros(c.holds.retry(at, held+one-uint64(u.Limit.requests)))
	}
	if !out.Over && hits > 0 {
		// At most a quarter of what is left, so that several who share get something,
		// but not ever less of a little rest.
		rest := uint64(out.Remaining)
		out.Taken = max(hits, min(u.Want, max(rest/4, min(rest, wholeRest))))
	}
	return out
}

// Take takes or holds hits, whether they fit or not.
func (c *Counter) Take(u *Use, now time.Time, hits uint64) {
	hits = min(hits, maxHits)
	length := u.HeldFor()
	if length == 0 {
		c.state.add(u.Limit, now.UnixMicro(), hits)
		return
	}
	if hits == 0 {
		return
	}
	name := u.Hold
	if name == "" {
		c.named++
		name = "\x00" + strconv.FormatUint(c.named, 10)
	}
	at := now.UnixMicro()
	c.holds.run(at)
	c.holds.put(name, at, hold{hits: hits, length: length.Microseconds(), keeps: u.Limit.algorithm != Concurrency})
}

// Apply does what a use says that does not take: charge, refund, settle or reset.
// It gives how many hits that were.
func (c *Counter) Apply(u *Use, now time.Time) (hits uint64) {
	at := now.UnixMicro()
	switch hits = u.Bounded(); u.Op {
	case Charge:
		c.Take(u, now, hits)
	case Settle:
		c.holds.run(at)
		if !c.holds.end(u.Hold) {
			return 0
		}
		c.state.add(u.Limit, at, hits)
	case Refund:
		when := int64(0)
		if !u.At.IsZero() {
			if when = u.At.UnixMicro(); when <= c.reset {
				return 0
			}
		}
		return c.state.refund(u.Limit, at, hits, when)
	case Reset:
		if fresh, err := NewCounter(u.Limit); err == nil {
			*c = *fresh
			c.reset = at
		}
		return 0
	case Take:
	}
	return hits
}

// After puts into an outcome how the limit stands once a decision is made.
func (c *Counter) After(u *Use, now time.Time, out *Outcome) {
	at := now.UnixMicro()
	c.holds.run(at)
	remaining, reset := c.state.after(u.Limit, at)
	out.Remaining, out.Reset = left(remaining, c.holds.sum), max(reset, micros(c.holds.reset(at)))
	out.At = now.Truncate(time.Microsecond)
}

// Idle says that nothing counts any more, so that the counter may be forgotten.
func (c *Counter) Idle(l Limit, now time.Time) bool {
	c.holds.run(now.UnixMicro())
	return len(c.holds.by) == 0 && c.state.idle(l, now.UnixMicro())
}

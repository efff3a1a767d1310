package lease

import (
	"time"

	"github.com/writ-mesh/writ/ratelimit/limit"
)

// grant is a share in hand.
type grant struct {
	left  uint64
	size  uint64
	until time.Time // by this process's clock, from before it was asked for
	at    time.Time // when it was granted, by the store's clock
}

// cell is what a replica knows of one counter. The lock of its shard guards it.
type cell struct {
	key   string
	terms Terms
	// grants are in hand, the older one first.
	grants [2]grant
	// used hits since begin tell the demand; want is what it comes to in the time of
	// a share, and what the next one is asked for. Below minShare none is.
	used  uint64
	begin time.Time
	want  uint64
	// last is when the counter was last used here, asked when the store was.
	last time.Time
	// fetching: a share is asked for in the background; not again before quiet.
	fetching bool
	quiet    time.Time
	// Uses of so many hits are over until then, as far as the store knows, and pass
	// again at retry.
	over, retry time.Time
	overHits    uint64
	// How the limit stood when the store was last asked.
	remaining uint32
	free      time.Time
}

// take takes hits out of the shares in hand. ok is false if the store has to be
// asked.
func (c *cell) take(u *limit.Use, now time.Time, out *limit.Outcome) (ok bool) {
	c.last = now
	hits := u.Bounded()
	for i := range c.grants {
		g := &c.grants[i]
		if g.left < max(hits, 1) || !now.Before(g.until) {
			continue
		}
		g.left -= hits
		c.used += hits
		*out = limit.Outcome{Remaining: c.left(), Reset: max(c.free.Sub(now), 0), Taken: hits, At: g.at}
		return true
	}
	if now.Before(c.over) && max(hits, 1) >= c.overHits {
		c.used += hits
		*out = limit.Outcome{Over: true, Remaining: c.left(), RetryAfter: c.retry.Sub(now), Reset: max(c.free.Sub(now), 0), At: now}
		return true
	}
	c.used += hits
	return false
}

// put gives back what take took, for a request that something else refused.
func (c *cell) put(hits uint64, at time.Time) {
	for i := range c.grants {
		if g := &c.grants[i]; g.at.Equal(at) && g.left+hits <= g.size {
			g.left += hits
			return
		}
	}
}

// left is what is left of the limit, as far as it is known here.
func (c *cell) left() uint32 {
	n := uint64(c.remaining) + c.grants[0].left + c.grants[1].left
	return uint32(min(n, uint64(max(c.terms.Asked.Requests(), c.terms.Asked.Burst())))) //nolint:gosec // at most a uint32
}

// low says that a share should be asked for before those in hand are used up or over.
func (c *cell) low(now time.Time) bool {
	if c.fetching || c.want < minShare || now.Before(c.quiet) || now.Before(c.over) {
		return false
	}
	left, until := uint64(0), now
	for _, g := range c.grants {
		if g.until.After(now) {
			left, until = left+g.left, g.until
		}
	}
	return left < c.want/4 || until.Sub(now) < c.terms.Valid/4
}

// demand looks at how much was used since it was last asked, and gives what to ask
// for: what that comes to in the time of a share, growing at most fourfold.
func (c *cell) demand(now time.Time) uint64 {
	elapsed := now.Sub(c.begin)
	switch {
	case c.begin.IsZero(), elapsed > 4*c.terms.Valid:
		c.want = 0
	case elapsed < c.terms.Valid/8 && c.used < max(c.want/4, firstUses):
		return c.worth() // too little to tell by
	default:
		come := float64(c.used) / float64(max(elapsed, 1)) * float64(c.terms.Valid)
		c.want = uint64(min(come, float64(4*max(c.want, minShare)), float64(c.terms.Asked.Requests())))
	}
	c.begin, c.used = now, 0
	return c.worth()
}

// worth is what to ask for, 0 if that is too little to be worth it.
func (c *cell) worth() uint64 {
	if c.want < minShare {
		return 0
	}
	return c.want
}

// learn takes in what the store answered to a use of hits that was asked at now.
func (c *cell) learn(out *limit.Outcome, hits uint64, now time.Time) {
	c.remaining, c.free = out.Remaining, now.Add(out.Reset)
	if out.Over {
		c.overHits = max(hits, 1)
		// Others may give back what they do not use: look again before RetryAfter. But
		// where many try, not for each hit that gets free: it is not lost meanwhile.
		pause := time.Duration(0)
		if c.want >= minShare {
			pause = min(c.terms.Valid/2, c.terms.Valid*triesPerPause/time.Duration(c.want)) //nolint:gosec // at most 2^32
		}
		c.over = now.Add(max(min(out.RetryAfter, c.terms.Valid/4), pause))
		c.retry = now.Add(max(out.RetryAfter, pause))
	}
}

// add takes a new share in hand, and out the older of two that are there.
func (c *cell) add(g grant) (back grant) {
	if g.left == 0 {
		return grant{}
	}
	switch {
	case c.grants[0].left == 0:
		c.grants[0], c.grants[1] = c.grants[1], grant{}
	case c.grants[1].left > 0:
		back = c.grants[0]
		c.grants[0], c.grants[1] = c.grants[1], grant{}
	}
	if c.grants[0].left == 0 {
		c.grants[0] = g
	} else {
		c.grants[1] = g
	}
	return back
}

// expired takes out the share in hand whose time is over; all takes out any.
func (c *cell) expired(now time.Time, all bool) grant {
	for i := range c.grants {
		g := c.grants[i]
		if g.size == 0 || !all && now.Before(g.until) && g.left > 0 {
			continue
		}
		if i == 0 {
			c.grants[0] = c.grants[1]
		}
		c.grants[1] = grant{}
		return g
	}
	return grant{}
}

// refund is the use that gives a share back.
func (c *cell) refund(g grant) limit.Use {
	return limit.Use{Key: c.key, Limit: c.terms.Asked, Op: limit.Refund, Hits: g.left, At: g.at}
}

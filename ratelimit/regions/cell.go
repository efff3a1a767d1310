package regions

import (
	"time"

	"github.com/writ-mesh/writ/ratelimit/limit"
)

// maxLoans bounds the loans in hand of one counter.
const maxLoans = 4

// loan is what another region granted.
type loan struct {
	peer       *peer
	id         string
	left, size uint64
	began      moment        // before it was asked for
	valid      time.Duration // from then
	at         time.Time     // when it was noted as borrowed, by the store's clock
	rule       limit.Limit
}

// good says that a loan may be used still.
func (l *loan) good(now moment) bool { return now.since(l.began) < l.valid }

// cell is what is known here of a counter of whose part little is left. The lock of
// its shard guards it. Its times are those since the machine started.
type cell struct {
	key, name string
	// rule is the whole limit, valid how long loans of it are.
	rule  limit.Limit
	valid time.Duration
	loans []loan
	// asked hits since begin, and before that, tell the demand; need is the largest use
	// that was refused.
	asked, before, need uint64
	begin, last         time.Duration
	// over: this region's part is used up until then, as far as is known.
	over time.Duration
	// quiet says until when a region, by its place among the peers, is not asked again.
	quiet []time.Duration
	// asking is closed when what was asked for is answered; nil if nobody is asked.
	asking chan struct{}
}

// count notes that hits were asked for.
func (c *cell) count(hits uint64, now time.Duration) {
	c.last = now
	switch age := now - c.begin; {
	case age > c.valid:
		c.begin, c.before, c.asked = now, 0, 0
	case age > c.valid/2:
		c.begin, c.before, c.asked = now, c.asked, 0
	}
	c.asked += hits
}

// demand is what will be asked for while a loan is good, if it goes on as it did.
func (c *cell) demand() uint64 {
	return min(max(c.asked+c.before, c.need, 1), uint64(c.rule.Requests()))
}

// hand is how much is in hand.
func (c *cell) hand(now moment) (n uint64) {
	for i := range c.loans {
		if l := &c.loans[i]; l.good(now) {
			n += l.left
		}
	}
	return n
}

// low says that what is left here, and in hand, will not do for long.
func (c *cell) low(remaining uint64, now moment) bool {
	left := remaining + c.hand(now)
	return left == 0 || left < c.need || left < c.demand()/4
}

// take takes hits out of a loan in hand.
func (c *cell) take(hits uint64, now moment, out *limit.Outcome) bool {
	for i := range c.loans {
		l := &c.loans[i]
		if l.left < hits || !l.good(now) {
			continue
		}
		l.left -= hits
		*out = limit.Outcome{Remaining: uint32(min(c.hand(now), uint64(c.rule.Requests()))), Reset: c.valid, Taken: hits, At: l.at} //nolint:gosec // bounded here
		return true
	}
	return false
}

// put gives back what take took.
func (c *cell) put(hits uint64, at time.Time) {
	for i := range c.loans {
		if l := &c.loans[i]; l.at.Equal(at) && l.left+hits <= l.size {
			l.left += hits
			return
		}
	}
}

// ended takes out the loans whose time is over, or that have nothing left, or all.
func (c *cell) ended(now moment, all bool) (out []loan) {
	keep := c.loans[:0]
	for _, l := range c.loans {
		if all || l.left == 0 || !l.good(now) {
			out = append(out, l)
		} else {
			keep = append(keep, l)
		}
	}
	clear(c.loans[len(keep):])
	c.loans = keep
	return out
}

package quota

import (
	"errors"
	"fmt"
	"time"

	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
	"github.com/writ-mesh/writ/ratelimit/limit"
)

// Cost is what a request takes from a limit once it is over.
type Cost struct {
	// Reserve is held while the request runs, for Expire at most; with 0 it passes if
	// anything is left.
	Reserve uint64
	Expire  time.Duration
}

// compileCost checks the cost of a limit; nil if each request takes one.
func compileCost(c *configpb.Cost, rule limit.Limit) (*Cost, error) {
	if c == nil {
		return nil, nil
	}
	if rule.Algorithm() == limit.Concurrency {
		return nil, errors.New("a limit of what is under way counts requests, not their cost")
	}
	out := &Cost{Reserve: uint64(c.GetReserve())}
	if out.Reserve == 0 {
		return out, nil
	}
	if err := c.GetExpire().CheckValid(); err != nil {
		return nil, fmt.Errorf("expire: %w", err)
	}
	out.Expire = c.GetExpire().AsDuration()
	if out.Expire < configpb.MinHold || out.Expire > configpb.MaxHold {
		return nil, fmt.Errorf("expire: %s is not between %s and %s", out.Expire, configpb.MinHold, configpb.MaxHold)
	}
	return out, nil
}

// Use is what a descriptor that matched asks of its limit. Hits are its own, which
// tell the cost of a request that is over, and how much one takes that has no cost. ok
// is false for one that has nothing to say: a request is over of which nothing is
// known that counts then.
//
// Nothing here gives back what was taken: whoever may ask could free himself by it. A
// hold is ended by who knows its name.
func (l *Limit) Use(m Match, hits uint64) (u limit.Use, ok bool) {
	u = limit.Use{Key: m.Key, Limit: m.Rule, Mode: l.Mode, Earlier: l.Earlier, Observe: l.Observe, Hits: hits}
	switch {
	case l.Rule.Algorithm() == limit.Concurrency:
		u.Hold = m.Hold
		if m.Done {
			u.Op, u.Hits = limit.Settle, 0
		}
		return u, !m.Done || m.Hold != ""
	case l.Cost == nil:
		return u, !m.Done
	case m.Done && l.Cost.Reserve > 0 && m.Hold != "":
		u.Op, u.Hold, u.HoldFor = limit.Settle, m.Hold, l.Cost.Expire
	case m.Done:
		u.Op = limit.Charge
	default:
		u.Hits, u.Hold, u.HoldFor = l.Cost.Reserve, m.Hold, l.Cost.Expire
	}
	return u, true
}

package fallback

import (
	"context"
	"time"

	"github.com/writ-mesh/writ/ratelimit/limit"
)

// half is some uses of a decision.
type half struct {
	at       []int // their places in it
	uses     []limit.Use
	outcomes []limit.Outcome
}

func (h *half) add(i int, u limit.Use) {
	h.at, h.uses, h.outcomes = append(h.at, i), append(h.uses, u), append(h.outcomes, limit.Outcome{})
}

func (h *half) tell(outcomes []limit.Outcome) {
	for k, i := range h.at {
		outcomes[i] = h.outcomes[k]
	}
}

// apart decides uses of which some are with servers that are away: those by the
// counters of this process, and if they pass the others by the shared store. What the
// former took is given back if the latter refuse.
func (g *Guard) apart(ctx context.Context, now time.Time, uses []limit.Use, outcomes []limit.Outcome) error {
	var far, near half
	for i := range uses {
		if g.circuit(now, &uses[i]).degraded.Load() {
			far.add(i, uses[i])
		} else {
			near.add(i, uses[i])
		}
	}
	if len(near.uses) == 0 || len(far.uses) == 0 { // one has gone, or come back, just now
		return g.alone(ctx, now, uses, outcomes, nil)
	}
	if err := g.alone(ctx, now, far.uses, far.outcomes, nil); err != nil {
		return err
	}
	far.tell(outcomes)
	if limit.Refused(far.uses, far.outcomes) && !anyCountsRefused(near.uses) {
		g.local.Peek(now, near.uses, near.outcomes)
		near.tell(outcomes)
		return nil
	}
	switch err := g.shared.Decide(ctx, now, near.uses, near.outcomes); {
	case err == nil:
		g.succeeded(now, near.uses)
		g.record(now, near.uses, near.outcomes)
	case ctx.Err() != nil:
		return ctx.Err()
	default:
		g.failed(now, near.uses, err)
		if err := g.alone(ctx, now, near.uses, near.outcomes, err); err != nil {
			return err
		}
	}
	near.tell(outcomes)
	if limit.Refused(near.uses, near.outcomes) {
		return g.giveBack(ctx, now, &far, outcomes)
	}
	return nil
}

// giveBack gives back what a half took that was decided by the counters of this
// process. One that is held without a name stays until its time is over.
func (g *Guard) giveBack(ctx context.Context, now time.Time, h *half, outcomes []limit.Outcome) error {
	var back half
	back.takenBy(h.uses, h.outcomes)
	if len(back.uses) == 0 {
		return nil
	}
	if err := g.alone(ctx, now, back.uses, back.outcomes, nil); err != nil {
		return err
	}
	for k, of := range back.at {
		i := h.at[of]
		outcomes[i].Taken, outcomes[i].Remaining, outcomes[i].Reset = 0, back.outcomes[k].Remaining, back.outcomes[k].Reset
	}
	return nil
}

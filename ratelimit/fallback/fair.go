package fallback

import (
	"context"
	"time"

	"github.com/writ-mesh/writ/ratelimit/limit"
)

// anyPart says whether a decision has a use of a limit that is shared fairly. The shared
// store has to hear of it even if it is known to be refused: what is asked for is what
// the shares go by.
func anyPart(uses []limit.Use) bool {
	for i := range uses {
		if limit.Part(uses, i) {
			return true
		}
	}
	return false
}

// refuse refuses what the shared store was only to hear of. If that let it pass, for it
// forgot what this replica knows, it is given back; what cannot be given back counts
// until its window is over.
func (g *Guard) refuse(ctx context.Context, now time.Time, uses []limit.Use, outcomes []limit.Outcome) {
	if limit.Refused(uses, outcomes) {
		return
	}
	var back half
	back.takenBy(uses, outcomes)
	if len(back.uses) > 0 {
		_ = g.shared.Decide(ctx, now, back.uses, back.outcomes)
	}
	g.local.Peek(now, uses, outcomes)
	for i := range uses {
		if limit.Part(uses, i) && outcomes[i-1].Over {
			outcomes[i].Over, outcomes[i].RetryAfter = true, outcomes[i-1].RetryAfter
		}
	}
}

// takenBy adds what gives back what was taken.
func (h *half) takenBy(uses []limit.Use, outcomes []limit.Outcome) {
	for i, u := range uses {
		out := outcomes[i]
		if u.Op != limit.Take || u.Limit.CountsRefused() || out.Taken == 0 {
			continue
		}
		u.Op, u.Hits, u.Want, u.At = limit.Refund, out.Taken, 0, out.At
		if u.HeldFor() > 0 {
			u.Op, u.Hits = limit.Settle, 0
		}
		h.add(i, u)
	}
}

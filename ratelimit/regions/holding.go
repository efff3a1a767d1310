package regions

import (
	"context"
	"time"

	"github.com/writ-mesh/writ/ratelimit/limit"
)

// Holding is the store that the replicas of a region share, told to look at what is
// held when it is asked for a limit of which hits are lent. Redis does that only if it is
// told to, for it costs a command more.
type Holding struct{ To Decider }

// Decide makes one decision over all uses.
func (h Holding) Decide(ctx context.Context, now time.Time, uses []limit.Use, outcomes []limit.Outcome) error {
	looking := make([]limit.Use, len(uses))
	for i, u := range uses {
		if _, lent := validFor(u.Limit); lent && u.Hold == "" && u.HoldFor == 0 && (u.Op == limit.Take || u.Op == limit.Charge) {
			u.HoldFor = time.Second // without a name nothing is held
		}
		looking[i] = u
	}
	return h.To.Decide(ctx, now, looking, outcomes)
}

package lease

import (
	"context"
	"slices"
	"time"

	"github.com/writ-mesh/writ/ratelimit/limit"
)

// localHold begins the names of what is held by limits that are counted in this process
// alone. The counters are the same ones that note here what the shared store holds.
const localHold = "local/"

// localUse is a use as the counters of this process have it.
func localUse(u limit.Use) limit.Use {
	if u.Hold != "" {
		u.Hold = localHold + u.Hold
	}
	return u
}

// ends says that a use ends what is held under a name.
func ends(u limit.Use) bool { return u.Op == limit.Settle && u.Hold != "" }

// decideEnds decides uses of which some end what is held. Where the limit is counted
// now may not be where it was when that began: what is not held there is looked for in
// the other place, and what it came to is counted where the limit is counted now.
func (s *Store) decideEnds(ctx context.Context, now time.Time, uses []limit.Use, outcomes []limit.Outcome) error {
	asked := slices.Clone(uses)
	for i := range asked {
		if u := &asked[i]; ends(*u) && u.Limit.Algorithm() == limit.Concurrency {
			u.Hits = max(u.Hits, 1) // charges nothing, and says whether it was held
		}
	}
	if err := s.decide(ctx, now, asked, outcomes); err != nil {
		return err
	}
	refused := limit.Refused(uses, outcomes)
	for i := range asked {
		u, out := &asked[i], &outcomes[i]
		if ends(*u) && u.Hits > 0 && out.Taken == 0 && !refused {
			if err := s.endElsewhere(ctx, now, u, out); err != nil {
				return err
			}
		}
		if ends(*u) {
			out.Taken = min(out.Taken, uses[i].Hits)
		}
	}
	return nil
}

// endElsewhere ends a hold that is not where its limit is counted now, if it is in the
// other place, and charges the limit for it.
func (s *Store) endElsewhere(ctx context.Context, now time.Time, u *limit.Use, out *limit.Outcome) error {
	here, there, end := s.shared, s.local, localUse(*u)
	if u.Mode == limit.Local {
		here, there, end = s.local, s.shared, *u
	}
	one := make([]limit.Outcome, 1)
	end.Hits, end.Mode = 1, limit.Exact // who charges nothing does not hear whether it was held
	if err := there.Decide(ctx, now, []limit.Use{end}, one); err != nil || one[0].Taken == 0 {
		return err
	}
	if u.Limit.Algorithm() == limit.Concurrency { // places cost nothing
		out.Taken = u.Hits
		return nil
	}
	plain := limit.Use{Key: u.Key, Limit: u.Limit, Op: limit.Refund, Hits: 1}
	if err := there.Decide(ctx, now, []limit.Use{plain}, one); err != nil {
		return err
	}
	plain.Op, plain.Hits = limit.Charge, u.Hits
	if err := here.Decide(ctx, now, []limit.Use{plain}, one); err != nil {
		return err
	}
	*out = one[0]
	return nil
}

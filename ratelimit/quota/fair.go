package quota

import (
	"errors"
	"fmt"

	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"

	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
	"github.com/writ-mesh/writ/ratelimit/limit"
	"github.com/writ-mesh/writ/ratelimit/plans"
)

// sharing is how a limit is shared by those that differ in the last of its dimensions.
type sharing struct {
	weights map[string]uint32
	plan    *planned // where other weights are, nil if nowhere
}

// weight is that of one who shares the limit.
func (s *sharing) weight(who string) uint32 {
	if w := s.weights[who]; w > 0 {
		return w
	}
	if s.plan != nil {
		return min(max(s.plan.table.Find(who, s.plan.column).Number.Requests, 1), configpb.MaxQuotaWeight)
	}
	return 1
}

// Shared is the counter of all who share a limit.
type Shared struct {
	// Key is empty if the limit is not shared.
	Key string
	// Weight is that of who asks.
	Weight uint32
}

// compileFair checks how a limit is shared; nil if it is not.
func compileFair(l *configpb.Limit, rule limit.Limit, mode limit.Mode, book *plans.Book) (*sharing, error) {
	f := l.GetFair()
	if f == nil {
		return nil, nil
	}
	switch {
	case len(l.GetPer()) == 0:
		return nil, errors.New("who shares it is told apart by the last of per, which is empty")
	case rule.Algorithm() != limit.Sliding || mode == limit.Leased || l.GetMode() == configpb.QuotaAssigned || l.GetCost() != nil || l.GetPlan() != nil:
		return nil, errors.New("only a sliding window of requests without a plan that is counted exactly or locally can be shared")
	case rule.Window() < configpb.MinFairEvery:
		return nil, fmt.Errorf("every: %s is below %s", rule.Window(), configpb.MinFairEvery)
	case len(f.GetWeights()) > configpb.MaxQuotaWeights:
		return nil, fmt.Errorf("%d weights are more than %d", len(f.GetWeights()), configpb.MaxQuotaWeights)
	}
	for name, weight := range f.GetWeights() {
		if weight < 1 || weight > configpb.MaxQuotaWeight {
			return nil, fmt.Errorf("weight %d of %q is not between 1 and %d", weight, name, configpb.MaxQuotaWeight)
		}
	}
	plan, err := compilePlan(f.GetPlan(), l.GetPer(), book)
	switch {
	case err != nil:
		return nil, fmt.Errorf("plan: %w", err)
	case plan != nil && plan.by != len(l.GetPer())-1:
		return nil, fmt.Errorf("plan: by %q is not the last of per", f.GetPlan().GetBy())
	}
	return &sharing{weights: f.GetWeights(), plan: plan}, nil
}

// shared is the counter of all who share the limit with the caller that has these
// dimensions.
func (l *Limit) shared(entries []*commonv3.RateLimitDescriptor_Entry) Shared {
	if l.fair == nil {
		return Shared{}
	}
	// Whoever asks with other dimensions shares nothing with those who have them.
	n := len(l.per)
	if len(entries) != n || entries[n-1].GetKey() != l.per[n-1] {
		n = len(entries)
	}
	s := Shared{Key: l.keyOf(l.prefix+allShare, entries[:max(n-1, 0)]), Weight: 1}
	if n > 0 {
		s.Weight = l.fair.weight(entries[n-1].GetValue())
	}
	return s
}

// allShare ends the prefix of the counters of all who share a limit.
const allShare = "a"

// Append appends a use, and if its limit is shared before it that of all who share it.
func (s Shared) Append(uses []limit.Use, u limit.Use) []limit.Use {
	if s.Key == "" {
		return append(uses, u)
	}
	all := u
	all.Key = s.Key
	u.Limit, u.Share, u.Of = u.Limit.Share(), s.Weight, s.Key
	return append(uses, all, u)
}

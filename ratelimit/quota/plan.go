package quota

import (
	"fmt"
	"slices"

	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/protobuf/proto"

	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
	"github.com/writ-mesh/writ/ratelimit/limit"
	"github.com/writ-mesh/writ/ratelimit/plans"
)

// planned says where a limit's numbers come from, if not from the policy alone.
type planned struct {
	table  *plans.Handle
	column string
	by     int // index of the caller's dimension
}

// compilePlan checks a plan of a limit with these dimensions; nil if all callers have the
// same numbers.
func compilePlan(p *configpb.QuotaPlan, per []string, book *plans.Book) (*planned, error) {
	switch {
	case p == nil:
		return nil, nil
	case book == nil:
		return nil, fmt.Errorf("table %q: this service has no tables", p.GetTable())
	}
	by := slices.Index(per, p.GetBy())
	if by < 0 || p.GetTable() == "" {
		return nil, fmt.Errorf("table %q by %q: want a table, and one of the limit's dimensions", p.GetTable(), p.GetBy())
	}
	return &planned{table: book.Handle(p.GetTable()), column: p.GetNumbers(), by: by}, nil
}

// Numbers are those of one caller.
type Numbers struct {
	// Rule is what may pass.
	Rule limit.Limit
	// Described is what answers tell about it. Do not change it.
	Described *rlsv3.RateLimitResponse_RateLimit
	// Plan says for operators where the numbers come from; empty if all callers have the
	// same.
	Plan string
}

// numbers are those of the caller that has these dimensions.
func (l *Limit) numbers(entries []*commonv3.RateLimitDescriptor_Entry) Numbers {
	if l.plan == nil {
		return Numbers{Rule: l.Rule, Described: l.Described}
	}
	// Whoever asks with other dimensions is nobody that a table could know.
	if i := l.plan.by; i < len(entries) && entries[i].GetKey() == l.per[i] {
		return l.found(l.plan.table.Find(entries[i].GetValue(), l.plan.column))
	}
	return l.found(plans.Found{})
}

// found are the numbers that a table gives.
func (l *Limit) found(f plans.Found) Numbers {
	n := Numbers{Rule: l.Rule, Described: l.Described}
	if f.Nothing() {
		n.Plan = "the policy's own numbers: nothing of this caller in table " + l.plan.table.Name()
		return n
	}
	n.Plan = f.String() + " of table " + l.plan.table.Name()
	requests := f.Number.Requests
	if l.Rule.Algorithm() == limit.Concurrency {
		requests = min(requests, configpb.MaxQuotaConcurrent)
	}
	n.Rule = l.Rule.With(requests, f.Number.Burst)
	n.Described = proto.CloneOf(l.Described)
	n.Described.RequestsPerUnit = requests
	return n
}

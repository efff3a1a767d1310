package ratelimit

import (
	"context"

	ratelimitpb "github.com/writ-mesh/writ/proto/writ/ratelimit/v1"
	"github.com/writ-mesh/writ/ratelimit/lease"
	"github.com/writ-mesh/writ/ratelimit/limit"
)

// declare says for operators where a limit is counted, and how much more than it may pass
// at worst; proxies says that they count it when ratelimit does not answer. What is said
// of a counter and of a policy is this.
func (s *Server) declare(l limit.Limit, m limit.Mode, proxies bool) string {
	text := lease.Declare(l, m)
	switch {
	case s.inMemory:
		text = "in the memory of this replica: no more than the limit passes"
	case m != limit.Local:
		text += " (while Redis is away, by each replica alone: n replicas let pass n times the limit)"
	}
	if s.regions != nil {
		text = s.regions.Declare(l, m, text)
	}
	if proxies {
		text += "; by each proxy alone what ratelimit does not answer for: n proxies let pass n times the limit besides"
	}
	return text
}

// ListLimits implements the service.
func (a *admin) ListLimits(context.Context, *ratelimitpb.ListLimitsRequest) (*ratelimitpb.ListLimitsResponse, error) {
	out := &ratelimitpb.ListLimitsResponse{}
	if t := a.server.quotas.Load(); t != nil {
		for _, l := range t.Limits() {
			out.Limits = append(out.Limits, &ratelimitpb.DeclaredLimit{Limit: l.ID, Counted: a.server.declare(l.Rule, l.Mode, l.Told)})
		}
	}
	return out, nil
}

package ratelimit

import (
	"context"
	"math"
	"sync"
	"sync/atomic"
	"time"

	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
	"github.com/writ-mesh/writ/ratelimit/descriptors"
	"github.com/writ-mesh/writ/ratelimit/limit"
	"github.com/writ-mesh/writ/ratelimit/quota"
)

// maxDescriptors bounds the descriptors of one request: each is a counter that is
// locked together with the others.
const maxDescriptors = 256

// Store decides over all uses of a request at once: see package storetest for
// what it has to keep.
type Store interface {
	Decide(ctx context.Context, now time.Time, uses []limit.Use, outcomes []limit.Outcome) error
}

// Server answers the rate limit protocol. It is safe for concurrent use.
type Server struct {
	rlsv3.UnimplementedRateLimitServiceServer

	store   Store
	now     func() time.Time
	metrics *metrics

	quotas  atomic.Pointer[quota.Table]     // nil if this service gets none
	domains atomic.Pointer[descriptors.Set] // nil if this service reads none

	pool sync.Pool // of *decision
}

// item is what a descriptor of a request met.
type item struct {
	use       int // index into uses, -1 if it met no limit
	id        string
	described *rlsv3.RateLimitResponse_RateLimit
	unlimited bool
	shadow    bool // counts, refuses nothing
	quota     bool // refuses only together with all others of its kind
}

// decision is the work on one request.
type decision struct {
	items    []item
	uses     []limit.Use
	outcomes []limit.Outcome
}

// ShouldRateLimit implements the rate limit service.
func (s *Server) ShouldRateLimit(ctx context.Context, req *rlsv3.RateLimitRequest) (*rlsv3.RateLimitResponse, error) {
	now := s.now()
	switch n := len(req.GetDescriptors()); {
	case req.GetDomain() == "":
		return nil, s.bad("rate limit domain must not be empty")
	case n == 0:
		return nil, s.bad("rate limit descriptor list must not be empty")
	case n > maxDescriptors:
		return nil, s.bad("rate limit request has too many descriptors")
	}
	d, _ := s.pool.Get().(*decision)
	if d == nil {
		d = new(decision)
	}
	defer s.release(d)
	quotas := s.quotas.Load()
	mesh := quotas != nil && req.GetDomain() == configpb.QuotaDomain
	if mesh {
		s.matchQuotas(d, quotas, req)
	} else {
		s.matchDescriptors(d, req)
	}
	if len(d.uses) > 0 {
		d.outcomes = append(d.outcomes, make([]limit.Outcome, len(d.uses))...)
		if err := s.store.Decide(ctx, now, d.uses, d.outcomes); err != nil {
			s.metrics.failed.Inc()
			if ctx.Err() != nil {
				return nil, status.FromContextError(ctx.Err()).Err()
			}
			return nil, status.Error(codes.Unavailable, "the store of counters failed")
		}
	}
	resp := d.respond()
	if mesh {
		d.describe(resp)
	}
	s.count(d, resp)
	s.metrics.seconds.Observe(s.now().Sub(now).Seconds())
	return resp, nil
}

func (s *Server) bad(text string) error {
	s.metrics.failed.Inc()
	return status.Error(codes.InvalidArgument, text)
}

func (s *Server) matchQuotas(d *decision, t *quota.Table, req *rlsv3.RateLimitRequest) {
	for _, desc := range req.GetDescriptors() {
		l, key := t.Match(desc)
		if l == nil || desc.GetIsNegativeHits() {
			reason := unmatchedPolicy
			if l != nil {
				reason = unmatchedRefund
			}
			s.metrics.unmatched.WithLabelValues(reason).Inc()
			d.items = append(d.items, item{use: -1})
			continue
		}
		d.items = append(d.items, item{use: len(d.uses), id: l.ID, described: l.Described, shadow: l.Observe})
		d.uses = append(d.uses, limit.Use{Key: key, Limit: l.Rule, Hits: hits(req, desc), Observe: l.Observe})
	}
}

func (s *Server) matchDescriptors(d *decision, req *rlsv3.RateLimitRequest) {
	domain := s.domains.Load().Domain(req.GetDomain())
	if domain == nil {
		s.metrics.unmatched.WithLabelValues(unmatchedDomain).Add(float64(len(req.GetDescriptors())))
		for range req.GetDescriptors() {
			d.items = append(d.items, item{use: -1})
		}
		return
	}
	var replaced map[string]bool
	matches := make([]descriptors.Match, len(req.GetDescriptors()))
	for i, desc := range req.GetDescriptors() {
		m, ok := domain.Match(desc)
		if !ok {
			s.metrics.unmatched.WithLabelValues(unmatchedRule).Inc()
			continue
		}
		matches[i] = m
		for _, name := range m.Rule.Replaces {
			if replaced == nil {
				replaced = make(map[string]bool)
			}
			replaced[name] = true
		}
	}
	for i, desc := range req.GetDescriptors() {
		r := matches[i].Rule
		switch {
		case r == nil, !r.Unlimited && r.Name != "" && replaced[r.Name]:
			d.items = append(d.items, item{use: -1})
		case r.Unlimited:
			d.items = append(d.items, item{use: -1, unlimited: true})
		default:
			described := &rlsv3.RateLimitResponse_RateLimit{Name: r.Name, RequestsPerUnit: r.Limit.Requests(), Unit: r.Unit}
			d.items = append(d.items, item{use: len(d.uses), id: r.ID, described: described, shadow: r.Shadow, quota: r.Quota})
			d.uses = append(d.uses, limit.Use{Key: matches[i].Key, Limit: r.Limit, Hits: hits(req, desc)})
		}
	}
}

// hits is how much a descriptor takes: its own number, which may be 0 and asks
// only, else the request's, else 1.
func hits(req *rlsv3.RateLimitRequest, d *commonv3.RateLimitDescriptor) uint64 {
	if own := d.GetHitsAddend(); own != nil {
		return own.GetValue()
	}
	return max(1, uint64(req.GetHitsAddend()))
}

// respond makes the answer without headers.
func (d *decision) respond() *rlsv3.RateLimitResponse {
	resp := &rlsv3.RateLimitResponse{
		OverallCode: rlsv3.RateLimitResponse_OK,
		Statuses:    make([]*rlsv3.RateLimitResponse_DescriptorStatus, len(d.items)),
	}
	quotas, quotasOver := 0, 0
	for i := range d.items {
		it := &d.items[i]
		st := &rlsv3.RateLimitResponse_DescriptorStatus{Code: rlsv3.RateLimitResponse_OK}
		resp.Statuses[i] = st
		if it.unlimited {
			st.LimitRemaining = math.MaxUint32
		}
		if it.use < 0 {
			continue
		}
		out := d.outcomes[it.use]
		st.CurrentLimit, st.LimitRemaining = it.described, out.Remaining
		st.DurationUntilReset = durationpb.New(ceil(out.Reset))
		over := out.Over && !it.shadow
		if over {
			st.Code = rlsv3.RateLimitResponse_OVER_LIMIT
		}
		if it.quota {
			quotas++
			if over {
				quotasOver++
			}
		} else if over {
			resp.OverallCode = rlsv3.RateLimitResponse_OVER_LIMIT
		}
	}
	if quotas > 0 && quotas == quotasOver {
		resp.OverallCode = rlsv3.RateLimitResponse_OVER_LIMIT
	}
	return resp
}

// ceil rounds up to whole seconds, as headers and envoyproxy/ratelimit have it.
func ceil(d time.Duration) time.Duration {
	return (d + time.Second - 1).Truncate(time.Second)
}

func (s *Server) count(d *decision, resp *rlsv3.RateLimitResponse) {
	observed := false
	for i := range d.items {
		it := &d.items[i]
		if it.use < 0 {
			continue
		}
		switch c := s.metrics.limit(it.id); {
		case !d.outcomes[it.use].Over:
			c.ok.Inc()
		case it.shadow:
			observed = true
			c.observed.Inc()
		default:
			c.over.Inc()
		}
	}
	switch {
	case resp.GetOverallCode() == rlsv3.RateLimitResponse_OVER_LIMIT:
		s.metrics.over.Inc()
	case observed:
		s.metrics.observed.Inc()
	default:
		s.metrics.ok.Inc()
	}
}

// release puts a decision back for use by another request.
func (s *Server) release(d *decision) {
	const keep = 32 // what only a few requests need is left to the collector
	if cap(d.items) > keep {
		return
	}
	clear(d.items)
	clear(d.uses)
	d.items, d.uses, d.outcomes = d.items[:0], d.uses[:0], d.outcomes[:0]
	s.pool.Put(d)
}

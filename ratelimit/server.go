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
	"google.golang.org/protobuf/types/known/structpb"

	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
	"github.com/writ-mesh/writ/ratelimit/descriptors"
	"github.com/writ-mesh/writ/ratelimit/limit"
	"github.com/writ-mesh/writ/ratelimit/quota"
	"github.com/writ-mesh/writ/ratelimit/regions"
	"github.com/writ-mesh/writ/ratelimit/toplist"
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
	// alone says that this replica decides without the shared store; nil if there is
	// none.
	alone  func(now time.Time, uses []limit.Use) bool
	top    toplist.Lists
	dropIn DropInConfig
	mode   limit.Mode // of the limits of descriptors
	// inMemory says that there is no shared store.
	inMemory bool
	// regions keeps limits together with other regions; nil if there are none.
	regions *regions.Store

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
	told      bool // whoever asks wants to know that it was answered
	quota     bool // refuses only together with all others of its kind
	// callers names the limit's callers; nil if they are not told apart.
	callers toplist.Namer
	// metadata is what the limit adds to the answer's.
	metadata *structpb.Struct
}

// decision is the work on one request.
type decision struct {
	items    []item
	uses     []limit.Use
	outcomes []limit.Outcome
	// earlier: a limit that an edit has replaced is among them. unknown: a policy is named
	// that is not known, or a content of it.
	earlier, unknown bool
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
	closed := req.GetDomain() == configpb.QuotaClosedDomain
	mesh := quotas != nil && (closed || req.GetDomain() == configpb.QuotaDomain)
	if mesh {
		s.matchQuotas(now, d, quotas, req)
		if closed && d.unknown {
			s.metrics.failed.Inc()
			return nil, status.Error(codes.Unavailable, "a policy is named whose content is not known here")
		}
	} else {
		if s.matchDescriptors(d, req); s.dropIn.StopWhenOver && len(d.uses) > 1 {
			s.onlyWhatIsOver(ctx, now, d)
		}
	}
	if err := s.decide(ctx, now, d); err != nil {
		return nil, err
	}
	resp := d.respond()
	if mesh {
		d.describe(resp)
		s.markAlone(now, d, resp)
	} else {
		s.dropIn.describe(d, req, resp)
	}
	s.count(now, d, resp)
	s.metrics.seconds.Observe(s.now().Sub(now).Seconds())
	return resp, nil
}

// decide asks the store about all uses at once.
func (s *Server) decide(ctx context.Context, now time.Time, d *decision) error {
	if len(d.uses) == 0 {
		return nil
	}
	d.outcomes = append(d.outcomes, make([]limit.Outcome, len(d.uses))...)
	err := s.store.Decide(ctx, now, d.uses, d.outcomes)
	if err == nil {
		return nil
	}
	s.metrics.failed.Inc()
	if ctx.Err() != nil {
		return status.FromContextError(ctx.Err()).Err()
	}
	return status.Error(codes.Unavailable, "the store of counters failed")
}

func (s *Server) bad(text string) error {
	s.metrics.failed.Inc()
	return status.Error(codes.InvalidArgument, text)
}

func (s *Server) matchQuotas(now time.Time, d *decision, t *quota.Table, req *rlsv3.RateLimitRequest) {
	for _, desc := range req.GetDescriptors() {
		l, m := t.Match(desc, now)
		if l == nil {
			d.unknown = true
			s.unmatched(d, unmatchedPolicy)
			continue
		}
		d.earlier = d.earlier || l.Earlier
		d.unknown = d.unknown || m.Unknown
		if m.Unknown {
			s.metrics.unknown.Inc()
		}
		// Giving back is for operators and for who knows the name of a hold, not for
		// whoever may ask.
		use, ok := l.Use(m, hits(req, desc))
		if desc.GetIsNegativeHits() || !ok {
			s.unmatched(d, unmatchedRefund)
			continue
		}
		d.uses = m.Shared.Append(d.uses, use)
		it := item{use: len(d.uses) - 1, id: l.ID, described: m.Described, shadow: l.Observe, told: l.Told}
		if l.TellsCallersApart() {
			it.callers = l
		}
		d.items = append(d.items, it)
	}
}

// unmatched adds a descriptor that met no limit.
func (s *Server) unmatched(d *decision, reason string) {
	s.metrics.unmatched.WithLabelValues(reason).Inc()
	d.items = append(d.items, item{use: -1})
}

func (s *Server) matchDescriptors(d *decision, req *rlsv3.RateLimitRequest) {
	domain := s.domains.Load().Domain(req.GetDomain())
	if domain == nil {
		for range req.GetDescriptors() {
			s.unmatched(d, unmatchedDomain)
		}
		return
	}
	var replaced map[string]bool
	matches := make([]descriptors.Match, len(req.GetDescriptors()))
	for i, desc := range req.GetDescriptors() {
		m, ok := domain.Match(desc)
		if !ok {
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
		case r == nil:
			s.unmatched(d, unmatchedRule)
		case !r.Unlimited && r.Name != "" && replaced[r.Name]:
			d.items = append(d.items, item{use: -1})
		case r.Unlimited:
			d.items = append(d.items, item{use: -1, unlimited: true})
		default:
			described := &rlsv3.RateLimitResponse_RateLimit{Name: r.Name, RequestsPerUnit: r.Limit.Requests(), Unit: r.Unit}
			it := item{use: len(d.uses), id: r.ID, described: described, shadow: r.Shadow, quota: r.Quota, metadata: r.Metadata}
			if r.Detailed {
				it.callers = counterName{domain.Name, desc}
			}
			d.items = append(d.items, it)
			use := limit.Use{Key: s.dropIn.KeyPrefix + matches[i].Key, Limit: r.Limit, Mode: s.mode, Hits: hits(req, desc)}
			if desc.GetIsNegativeHits() {
				use.Op = limit.Refund
			}
			d.uses = append(d.uses, use)
		}
	}
	for i := range d.items {
		if it := &d.items[i]; s.dropIn.QuotaMode && !it.unlimited {
			it.quota = true
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
		if it.quota {
			quotas++
		}
		if it.use < 0 {
			continue
		}
		out := d.outcomes[it.use]
		st.CurrentLimit, st.LimitRemaining = it.described, out.Remaining
		st.DurationUntilReset = durationpb.New(ceil(out.Reset))
		if !out.Over || it.shadow {
			continue
		}
		st.Code = rlsv3.RateLimitResponse_OVER_LIMIT
		if it.quota {
			quotasOver++
		} else {
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

func (s *Server) count(now time.Time, d *decision, resp *rlsv3.RateLimitResponse) {
	observed := false
	if d.earlier {
		s.metrics.earlier.Inc()
	}
	for i := range d.items {
		it := &d.items[i]
		if it.use < 0 {
			continue
		}
		use, out := &d.uses[it.use], &d.outcomes[it.use]
		c := s.metrics.limit(it.id)
		switch {
		case use.Op == limit.Settle && out.Taken == 0 && use.Hits > 0:
			s.metrics.void.Inc()
		case use.Op != limit.Take:
			c.later.Add(float64(out.Taken))
		case !out.Over:
			c.ok.Inc()
		case it.shadow:
			observed = true
			c.observed.Inc()
		default:
			c.over.Inc()
		}
		if it.callers != nil {
			s.top.Add(now, it.id, use.Key, asked(use, out), out.Over, it.callers)
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

// asked is how much a use asked for: of what is held the hits come with its end.
func asked(u *limit.Use, out *limit.Outcome) uint64 {
	switch {
	case u.Op == limit.Refund, u.HoldFor > 0 && u.Op == limit.Take && !out.Over:
		return 0
	case out.Over:
		return max(u.Hits, 1)
	}
	return u.Hits
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
	d.earlier, d.unknown = false, false
	s.pool.Put(d)
}

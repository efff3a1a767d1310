package ratelimit

import (
	"context"
	"crypto/rand"
	"log/slog"
	"strconv"
	"time"

	rlqsv3 "github.com/envoyproxy/go-control-plane/envoy/service/rate_limit_quota/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/writ-mesh/writ/internal/rpc"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
	"github.com/writ-mesh/writ/ratelimit/assign"
)

const (
	// never is how long a lump takes to fill again by one, in seconds: ten years.
	never = 10 * 365 * 24 * 60 * 60
	// closeTimeout bounds how long what a proxy had is written down once it is gone.
	closeTimeout = time.Second
)

// assignedServer answers Envoy's rate limit quota protocol (RLQS): it tells proxies
// how many requests they may let pass without asking.
//
// Source: https://www.envoyproxy.io/docs/envoy/latest/api-v3/service/rate_limit_quota/v3/rlqs.proto
type assignedServer struct {
	rlqsv3.UnimplementedRateLimitQuotaServiceServer

	books  *assign.Books
	server *Server // for its policies, its clock and its metrics
	log    *slog.Logger
}

func newAssignedServer(s *Server, log *slog.Logger) *assignedServer {
	return &assignedServer{books: assign.New(s.store, rand.Text()), server: s, log: log}
}

// StreamRateLimitQuotas keeps the books of one proxy for as long as its stream lives.
func (a *assignedServer) StreamRateLimitQuotas(stream rlqsv3.RateLimitQuotaService_StreamRateLimitQuotasServer) error {
	ctx := stream.Context()
	proxy, err := a.books.Open(owner(ctx))
	if err != nil {
		a.server.metrics.failed.Inc()
		return status.Error(codes.ResourceExhausted, err.Error())
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		if err := proxy.Close(closing, a.server.now()); err != nil {
			a.log.Warn("what a proxy held is given back only when its time is over", slog.Any("error", err))
		}
	}()
	reports := make(chan *rlqsv3.RateLimitQuotaUsageReports)
	ended := make(chan error, 1)
	go func() {
		for {
			r, err := stream.Recv()
			if err != nil {
				ended <- err
				return
			}
			select {
			case reports <- r:
			case <-ctx.Done():
				return
			}
		}
	}()
	var retry <-chan time.Time
	for first := true; ; first = false {
		var answers []assign.Answer
		select {
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		case <-ended:
			return nil
		case r := <-reports:
			if first && r.GetDomain() != configpb.QuotaDomain || r.GetDomain() != "" && r.GetDomain() != configpb.QuotaDomain {
				return a.server.bad("there are assignments for the domain " + configpb.QuotaDomain + " alone")
			}
			answers = a.report(ctx, proxy, r)
		case <-retry:
		}
		more, next, err := proxy.Retry(ctx, a.server.now())
		if err != nil {
			a.failed(err)
		}
		retry = nil
		if !next.IsZero() {
			retry = time.After(max(next.Sub(a.server.now()), 0))
		}
		if err := send(stream, append(answers, more...)); err != nil {
			return err
		}
	}
}

// report takes what a proxy tells of its buckets.
func (a *assignedServer) report(ctx context.Context, proxy *assign.Proxy, r *rlqsv3.RateLimitQuotaUsageReports) []assign.Answer {
	now, table := a.server.now(), a.server.quotas.Load()
	var unknown []assign.Answer
	usages := make([]assign.Usage, 0, len(r.GetBucketQuotaUsages()))
	for _, u := range r.GetBucketQuotaUsages() {
		bucket := u.GetBucketId().GetBucket()
		name := bucket[configpb.QuotaCounterKey]
		if name == "" || len(bucket) != 1 {
			a.server.metrics.unmatched.WithLabelValues(unmatchedPolicy).Inc()
			continue
		}
		limit, m, err := table.Find(name)
		if err != nil {
			// It limits nothing, as with any policy that is not known.
			a.server.metrics.unmatched.WithLabelValues(unmatchedPolicy).Inc()
			unknown = append(unknown, assign.Answer{ID: name, Abandon: true})
			continue
		}
		counters := a.server.metrics.limit(limit.ID)
		counters.ok.Add(float64(u.GetNumRequestsAllowed()))
		counters.over.Add(float64(u.GetNumRequestsDenied()))
		usages = append(usages, assign.Usage{
			Bucket: assign.Bucket{ID: name, Key: m.Key, Rule: m.Rule},
			Passed: u.GetNumRequestsAllowed(), Refused: u.GetNumRequestsDenied(),
		})
	}
	answers, err := proxy.Report(ctx, now, usages)
	if err != nil {
		a.failed(err)
	}
	return append(answers, unknown...)
}

// owner is who a stream counts for: an identity, or a user of this machine.
func owner(ctx context.Context) string {
	switch c := rpc.CallerFrom(ctx); {
	case !c.ID.IsZero():
		return c.ID.String()
	case c.Cred != nil:
		return "uid=" + strconv.FormatUint(uint64(c.Cred.UID), 10)
	default:
		return c.String()
	}
}

func (a *assignedServer) failed(err error) {
	a.server.metrics.failed.Inc()
	a.log.Warn("the store of counters failed; proxies go on with what they have", slog.Any("error", err))
}

// send tells the answers.
func send(stream rlqsv3.RateLimitQuotaService_StreamRateLimitQuotasServer, answers []assign.Answer) error {
	if len(answers) == 0 {
		return nil
	}
	resp := &rlqsv3.RateLimitQuotaResponse{}
	for _, a := range answers {
		if a.Fresh && a.Lump > 0 {
			// Envoy 1.36 and 1.40 keep a bucket of tokens that is to be replaced by another.
			// It takes both of these before anybody can use the first.
			nothing := a
			nothing.Lump = 0
			resp.BucketAction = append(resp.BucketAction, action(nothing))
		}
		resp.BucketAction = append(resp.BucketAction, action(a))
	}
	if err := stream.Send(resp); err != nil {
		return status.Error(codes.Unavailable, "the proxy does not take its assignments")
	}
	return nil
}

// action says an answer in Envoy's words: a lump is a bucket of tokens that does not
// fill again for as long as anybody looks. Envoy tells two of the same size apart by
// the nanoseconds of the interval.
func action(a assign.Answer) *rlqsv3.RateLimitQuotaResponse_BucketAction {
	out := &rlqsv3.RateLimitQuotaResponse_BucketAction{
		BucketId: &rlqsv3.BucketId{Bucket: map[string]string{configpb.QuotaCounterKey: a.ID}},
	}
	if a.Abandon {
		out.BucketAction = &rlqsv3.RateLimitQuotaResponse_BucketAction_AbandonAction_{
			AbandonAction: &rlqsv3.RateLimitQuotaResponse_BucketAction_AbandonAction{},
		}
		return out
	}
	strategy := &typev3.RateLimitStrategy{Strategy: &typev3.RateLimitStrategy_BlanketRule_{BlanketRule: typev3.RateLimitStrategy_DENY_ALL}}
	if a.Lump > 0 {
		strategy.Strategy = &typev3.RateLimitStrategy_TokenBucket{TokenBucket: &typev3.TokenBucket{
			MaxTokens: a.Lump, TokensPerFill: wrapperspb.UInt32(1),
			FillInterval: &durationpb.Duration{Seconds: never, Nanos: int32(a.Serial % 1e9)}, //nolint:gosec // below 1e9
		}}
	}
	out.BucketAction = &rlqsv3.RateLimitQuotaResponse_BucketAction_QuotaAssignmentAction_{
		QuotaAssignmentAction: &rlqsv3.RateLimitQuotaResponse_BucketAction_QuotaAssignmentAction{
			AssignmentTimeToLive: durationpb.New(assign.TTL), RateLimitStrategy: strategy,
		},
	}
	return out
}

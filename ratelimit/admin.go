package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"
	"unicode/utf8"

	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/writ-mesh/writ/internal/peercred"
	"github.com/writ-mesh/writ/internal/rpc"
	ratelimitpb "github.com/writ-mesh/writ/proto/writ/ratelimit/v1"
	"github.com/writ-mesh/writ/ratelimit/limit"
	"github.com/writ-mesh/writ/ratelimit/quota"
)

const (
	// maxTop bounds the callers of a limit that are told.
	maxTop = 100
	// maxReason bounds a reason in bytes, maxName a counter's name.
	maxReason = 500
	maxName   = 16 << 10
)

// The kinds of changes that operators make.
const (
	changeReset  = "reset"
	changeGrant  = "grant"
	changeRefund = "refund"
)

// adminMethods says who may call what on the admin socket.
func adminMethods() rpc.Methods {
	return rpc.Methods{
		ratelimitpb.Limits_GetCounter_FullMethodName:   rpc.SameUser(),
		ratelimitpb.Limits_ListTop_FullMethodName:      rpc.SameUser(),
		ratelimitpb.Limits_ListLimits_FullMethodName:   rpc.SameUser(),
		ratelimitpb.Limits_ResetCounter_FullMethodName: rpc.SameUser(),
		ratelimitpb.Limits_Grant_FullMethodName:        rpc.SameUser(),
		ratelimitpb.Limits_Refund_FullMethodName:       rpc.SameUser(),
		ratelimitpb.Limits_ListChanges_FullMethodName:  rpc.SameUser(),
	}
}

// admin implements writ.ratelimit.v1.Limits.
type admin struct {
	ratelimitpb.UnimplementedLimitsServer

	server *Server
	audit  *changes
	log    *slog.Logger
}

// openAdmin listens for operators.
func (s *Service) openAdmin() error {
	audit, err := openChanges(s.config.State)
	if err != nil {
		return err
	}
	g := rpc.NewServer(peercred.Credentials(), adminMethods(), s.rt)
	s.admin = &admin{server: s.server, audit: audit, log: s.log}
	ratelimitpb.RegisterLimitsServer(g, s.admin)
	if err := rpc.CheckMethods(g, adminMethods()); err != nil {
		return err
	}
	l, err := rpc.Listen(s.config.Admin)
	if err != nil {
		return fmt.Errorf("admin: %w", err)
	}
	s.tasks = append(s.tasks, func(ctx context.Context) error {
		return errors.Join(rpc.Serve(ctx, g, l), audit.close())
	})
	return nil
}

// counter is a counter that an operator speaks of.
type counter struct {
	name, limit string
	plan        string // where its numbers come from, if not from the policy alone
	use         limit.Use
	shared      quota.Shared
	proxies     bool // whenUnavailable: Local
}

// find finds the counter of a name.
func (a *admin) find(name string) (*counter, error) {
	if len(name) > maxName {
		return nil, status.Errorf(codes.InvalidArgument, "the name has more than %d bytes", maxName)
	}
	c, err := a.server.find(name)
	if err != nil {
		return nil, status.Errorf(codes.NotFound, "%q: %v", name, err)
	}
	return c, nil
}

func (s *Server) find(name string) (*counter, error) {
	if t := s.quotas.Load(); t != nil {
		l, m, err := t.Find(name)
		if err != nil {
			return nil, err
		}
		return &counter{l.Name(m.Key), l.ID, m.Plan, limit.Use{Key: m.Key, Limit: m.Rule, Mode: l.Mode}, m.Shared, l.Told}, nil
	}
	of, rest, _ := strings.Cut(name, "?")
	domain := s.domains.Load().Domain(of)
	if domain == nil {
		return nil, fmt.Errorf("there is no domain %s", of)
	}
	entries, err := quota.Entries(rest)
	if err != nil {
		return nil, err
	}
	desc := &commonv3.RateLimitDescriptor{Entries: entries}
	m, ok := domain.Match(desc)
	switch {
	case !ok:
		return nil, errors.New("no limit applies to it")
	case m.Rule.Unlimited:
		return nil, errors.New("it is unlimited, nothing is counted")
	}
	return &counter{counterName{of, desc}.Name(""), m.Rule.ID, "", limit.Use{Key: s.dropIn.KeyPrefix + m.Key, Limit: m.Rule.Limit, Mode: s.mode}, quota.Shared{}, false}, nil
}

// state asks how a counter stands and takes nothing.
func (a *admin) state(ctx context.Context, c *counter) (*ratelimitpb.Counter, error) {
	use := c.use
	use.Observe, use.HoldFor = true, time.Second // what is held counts too
	out, err := a.decide(ctx, c.shared, use)
	if err != nil {
		return nil, err
	}
	state := &ratelimitpb.Counter{
		Key: c.name, Limit: c.limit, Requests: use.Limit.Requests(), Every: durationpb.New(use.Limit.Window()),
		Remaining: out.Remaining, Over: out.Remaining == 0, Counted: a.server.declare(use.Limit, use.Mode, c.proxies), Plan: c.plan,
	}
	if use.Limit.Algorithm() == limit.GCRA {
		state.Burst = use.Limit.Burst()
	}
	if out.Reset > 0 {
		state.ResetAfter = durationpb.New(out.Reset)
	}
	return state, nil
}

// apply makes a change and says how many hits were given back. Whoever shares a limit
// gives all who share it back what is forgotten.
func (a *admin) apply(ctx context.Context, c *counter, use limit.Use) (given uint64, err error) {
	if use.Op == limit.Reset && c.shared.Key != "" {
		asks := use
		asks.Op, asks.Observe = limit.Take, true
		out, err := a.decide(ctx, quota.Shared{}, asks)
		if err != nil {
			return 0, err
		}
		all := use
		all.Key, all.Op, all.Hits = c.shared.Key, limit.Refund, uint64(use.Limit.Requests()-min(out.Remaining, use.Limit.Requests()))
		if _, err := a.decide(ctx, quota.Shared{}, all); err != nil {
			return 0, err
		}
		_, err = a.decide(ctx, quota.Shared{}, use)
		return 0, err
	}
	out, err := a.decide(ctx, c.shared, use)
	return out.Taken, err
}

// decide gives what becomes of a use, of a limit that is shared together with that of all
// who share it.
func (a *admin) decide(ctx context.Context, shared quota.Shared, use limit.Use) (limit.Outcome, error) {
	uses := shared.Append(nil, use)
	out := make([]limit.Outcome, len(uses))
	if err := a.server.store.Decide(ctx, a.server.now(), uses, out); err != nil {
		a.log.ErrorContext(ctx, "the store of counters failed", slog.Any("error", err))
		return limit.Outcome{}, status.Error(codes.Unavailable, "the store of counters failed")
	}
	return out[len(out)-1], nil
}

// GetCounter implements the service.
func (a *admin) GetCounter(ctx context.Context, r *ratelimitpb.GetCounterRequest) (*ratelimitpb.Counter, error) {
	c, err := a.find(r.GetKey())
	if err != nil {
		return nil, err
	}
	return a.state(ctx, c)
}

// ListTop implements the service.
func (a *admin) ListTop(_ context.Context, r *ratelimitpb.ListTopRequest) (*ratelimitpb.ListTopResponse, error) {
	n := int(r.GetCallers())
	switch {
	case n == 0:
		n = topCallers
	case n > maxTop:
		return nil, status.Errorf(codes.InvalidArgument, "%d callers are more than %d", n, maxTop)
	}
	out := &ratelimitpb.ListTopResponse{}
	for _, c := range a.server.top.Top(a.server.now(), n, func(id string) bool { return strings.HasPrefix(id, r.GetLimit()) }) {
		out.Callers = append(out.Callers, &ratelimitpb.TopCaller{Key: c.Name, Limit: c.Limit, Hits: c.Hits, Refused: c.Refused, Uncertain: c.Uncertain})
	}
	return out, nil
}

// ResetCounter implements the service.
func (a *admin) ResetCounter(ctx context.Context, r *ratelimitpb.ChangeCounterRequest) (*ratelimitpb.Counter, error) {
	if r.GetHits() != 0 {
		return nil, status.Error(codes.InvalidArgument, "a reset has no number of hits")
	}
	return a.change(ctx, r, changeReset)
}

// Grant implements the service.
func (a *admin) Grant(ctx context.Context, r *ratelimitpb.ChangeCounterRequest) (*ratelimitpb.Counter, error) {
	return a.give(ctx, r, changeGrant)
}

// Refund implements the service.
func (a *admin) Refund(ctx context.Context, r *ratelimitpb.ChangeCounterRequest) (*ratelimitpb.Counter, error) {
	return a.give(ctx, r, changeRefund)
}

func (a *admin) give(ctx context.Context, r *ratelimitpb.ChangeCounterRequest, what string) (*ratelimitpb.Counter, error) {
	if r.GetHits() == 0 {
		return nil, status.Errorf(codes.InvalidArgument, "a %s needs a number of hits above 0", what)
	}
	return a.change(ctx, r, what)
}

// change makes a change here, and in all regions if that is asked for.
func (a *admin) change(ctx context.Context, r *ratelimitpb.ChangeCounterRequest, what string) (*ratelimitpb.Counter, error) {
	if r.GetAllRegions() && a.server.regions == nil {
		return nil, status.Error(codes.FailedPrecondition, "there are no other regions: ratelimit has no regions in its configuration")
	}
	record := change{Actor: rpc.CallerFrom(ctx).String(), What: what, Counter: r.GetKey(), Hits: r.GetHits(), Reason: r.GetReason(), AllRegions: r.GetAllRegions()}
	done, err := a.make(ctx, record)
	if err != nil {
		return nil, err
	}
	if a.server.regions != nil {
		done.state.Regions = a.elsewhere(ctx, done)
	}
	return done.state, nil
}

// changed is a change that was made here.
type changed struct {
	change
	counter *counter
	state   *ratelimitpb.Counter // after it
	given   uint32
}

// make makes a change of this region's counter once it is in the audit. Its counter is as
// the operator calls it.
func (a *admin) make(ctx context.Context, record change) (*changed, error) {
	if reason := record.Reason; reason == "" || len(reason) > maxReason || !utf8.ValidString(reason) {
		return nil, status.Errorf(codes.InvalidArgument, "a change needs a reason of at most %d bytes", maxReason)
	}
	c, err := a.find(record.Counter)
	if err != nil {
		return nil, err
	}
	before, err := a.state(ctx, c)
	if err != nil {
		return nil, err
	}
	record.Time, record.Counter, record.Remaining = a.server.now().UTC(), c.name, before.GetRemaining()
	if err := a.audit.add(record); err != nil {
		a.log.ErrorContext(ctx, "nothing was changed: the audit cannot be written", slog.Any("error", err))
		return nil, status.Error(codes.Internal, "nothing was changed: the audit cannot be written, see the log of ratelimit")
	}
	use := c.use
	use.Op, use.Hits = limit.Refund, uint64(record.Hits)
	if record.What == changeReset {
		use.Op = limit.Reset
	}
	given, err := a.apply(ctx, c, use)
	if err != nil {
		return nil, err
	}
	after, err := a.state(ctx, c)
	if err != nil {
		return nil, err
	}
	a.log.InfoContext(ctx, "counter changed", slog.String("change", record.What), slog.String("counter", quota.Masked(c.name)), slog.Uint64("hits", uint64(record.Hits)),
		slog.String("actor", record.Actor), slog.String("reason", record.Reason), slog.Uint64("remaining", uint64(after.GetRemaining())))
	return &changed{record, c, after, uint32(min(given, uint64(record.Hits)))}, nil //nolint:gosec // at most what was asked for
}

// ListChanges implements the service.
func (a *admin) ListChanges(context.Context, *ratelimitpb.ListChangesRequest) (*ratelimitpb.ListChangesResponse, error) {
	out := &ratelimitpb.ListChangesResponse{}
	for _, c := range a.audit.list() {
		out.Changes = append(out.Changes, &ratelimitpb.CounterChange{
			At: timestamppb.New(c.Time), Actor: c.Actor, What: c.What, Key: c.Counter, Hits: c.Hits, Reason: c.Reason, Remaining: c.Remaining,
			AllRegions: c.AllRegions,
		})
	}
	return out, nil
}

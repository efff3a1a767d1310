package authz

import (
	"context"
	"runtime"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/writ-mesh/writ/authz/accesslog"
	"github.com/writ-mesh/writ/authz/background"
	"github.com/writ-mesh/writ/authz/rego"
	"github.com/writ-mesh/writ/authz/token"
	"github.com/writ-mesh/writ/internal/decider"
	"github.com/writ-mesh/writ/internal/identity"
	"github.com/writ-mesh/writ/internal/service"
	"github.com/writ-mesh/writ/internal/xdsclient"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

// The subsystems that readiness waits for; in the mesh the listener is package
// decider's.
const (
	healthPolicies = "policies"
	healthListener = "listener"
)

// garbage is how much of it may gather before it is collected, in bytes: eight seconds of it
// at 5,000 decisions. Where two processors are full, answers wait some 10 ms for each.
const garbage = 128 << 20

// messageOverhead is what a gRPC message has beyond the parts of a request that
// DecisionConfig.MaxRequestBytes counts: certificates, metadata, extensions. What
// is larger altogether is refused by gRPC, before a decision.
const messageOverhead = 4 << 20

// Run runs the service until ctx ends. The configuration has passed Validate.
func Run(ctx context.Context, c Config, rt *service.Runtime) error {
	rt.Health.Register(healthPolicies)
	if c.Alone != nil {
		rt.Health.Register(healthListener)
		return runAlone(ctx, c, rt)
	}
	decider.Register(rt.Health)
	return runInMesh(ctx, c, rt)
}

func runInMesh(ctx context.Context, c Config, rt *service.Runtime) error {
	m := newMetrics(rt.Metrics)
	st, err := openStore(c.State)
	if err != nil {
		return err
	}
	decisions, err := c.DecisionLog.open(c.State, rt)
	if err != nil {
		return err
	}
	recorder, err := c.Recording.open(c.State, rt)
	if err != nil {
		return err
	}
	fetcher := token.NewFetcher(token.FetcherOptions{Store: st, Log: rt.Log, Fetched: m.fetched})
	defer fetcher.Close()
	options := rego.Options{Network: c.Decision.NetworkBuiltins, Memory: c.Decision.memory()}
	secrets := c.DecisionLog.redactor()
	asks := newEvaluator(c.Decision, secrets, rt.Metrics)
	elsewhere := newRemotes(ctx, c.State, c.credentials(), options, asks.decideAhead, newBundleMetrics(rt.Metrics), rt.Log)
	defer elsewhere.close()
	ps := newPolicies(options, c.Decision.Retire.D(), fetcher, st, elsewhere, rt.Log, m.swapped)
	ready := func() { rt.Health.Set(healthPolicies, nil) }
	if ps.restore(ctx) {
		ready()
	}
	revocations := &revokedTokens{metrics: m, log: rt.Log}
	s := &server{
		policies: ps, decision: c.Decision, asks: asks, metrics: m, log: rt.Log,
		tokens: &tokens{fetcher: fetcher, metrics: m, leeway: c.Token.Leeway.D(), revoked: revocations}, revoked: revocations,
		record: decisionLog{what: c.Decision.Log, redact: secrets, recorder: recorder, add: decisions.Add},
	}
	r := &reports{decisions: decisions, what: c.Decision.Log, redact: s.record.redact, metrics: m, recorder: recorder, unknown: newUnknownKeys(rt.Log)}
	return running(ctx, decisions, recorder, func(ctx context.Context) error { return s.serve(ctx, c, r, ready, rt) })
}

// serve answers checks, takes reports and follows pilot until ctx ends.
func (s *server) serve(ctx context.Context, c Config, r *reports, ready func(), rt *service.Runtime) error {
	return c.Run(ctx, decider.Service{
		Name:    identity.Authz,
		Methods: []string{authv3.Authorization_Check_FullMethodName, accesslogv3.AccessLogService_StreamAccessLogs_FullMethodName},
		Register: func(g *grpc.Server) {
			authv3.RegisterAuthorizationServer(g, s)
			accesslogv3.RegisterAccessLogServiceServer(g, &accesslog.Server{Take: r.take})
		},
		Options:       serverOptions(c.Decision.MaxRequestBytes + messageOverhead),
		Subscriptions: s.policies.subscriptions(ctx, s.metrics, ready),
		FollowPilot:   []func(context.Context, grpc.ClientConnInterface) error{s.revoked.follow, r.unknown.follow},
		Tasks:         []func(context.Context) error{s.revoked.expire, s.policies.expire, s.asks.workers.Run, background.PaceGarbage(garbage)},
	}, rt)
}

// serverOptions are those that every server of checks has. Workers that stay keep
// their stacks, where a goroutine for each call grows one (measured by
// BenchmarkServer).
func serverOptions(maxMessage int) []grpc.ServerOption {
	return []grpc.ServerOption{grpc.MaxRecvMsgSize(maxMessage), grpc.NumStreamWorkers(uint32(8 * runtime.GOMAXPROCS(0)))}
}

// subscriptions are what pilot is asked for. ready is called once policies are there.
func (p *policies) subscriptions(ctx context.Context, m *metrics, ready func()) []xdsclient.Subscription {
	return []xdsclient.Subscription{
		{Message: &configpb.RegoPolicy{}, Apply: func(r map[string]proto.Message) error {
			err := p.applyPolicies(ctx, typed[*configpb.RegoPolicy](r))
			if err != nil {
				m.refused.WithLabelValues("RegoPolicy").Inc()
				return err
			}
			ready()
			return nil
		}},
		{Message: &configpb.TokenIssuer{}, Apply: func(r map[string]proto.Message) error {
			err := p.applyIssuers(ctx, typed[*configpb.TokenIssuer](r))
			if err != nil {
				m.refused.WithLabelValues("TokenIssuer").Inc()
			}
			return err
		}},
	}
}

func typed[M proto.Message](in map[string]proto.Message) map[string]M {
	out := make(map[string]M, len(in))
	for name, m := range in {
		if t, ok := m.(M); ok {
			out[name] = t
		}
	}
	return out
}

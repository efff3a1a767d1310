package authz

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/reflection"
	"google.golang.org/protobuf/proto"

	"github.com/writ-mesh/writ/authz/rego"
	"github.com/writ-mesh/writ/authz/token"
	"github.com/writ-mesh/writ/internal/credential"
	"github.com/writ-mesh/writ/internal/identity"
	"github.com/writ-mesh/writ/internal/listen"
	"github.com/writ-mesh/writ/internal/peercred"
	"github.com/writ-mesh/writ/internal/rpc"
	"github.com/writ-mesh/writ/internal/service"
	"github.com/writ-mesh/writ/internal/xdsclient"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

// The subsystems that readiness waits for.
const (
	healthPolicies = "policies"
	healthListener = "listener"
)

// messageOverhead is what a gRPC message has beyond the parts of a request that
// DecisionConfig.MaxRequestBytes counts: certificates, metadata, extensions. What
// is larger altogether is refused by gRPC, before a decision.
const messageOverhead = 4 << 20

// Run runs the service until ctx ends. The configuration has passed Validate.
func Run(ctx context.Context, c Config, rt *service.Runtime) error {
	rt.Health.Register(healthPolicies)
	rt.Health.Register(healthListener)
	if c.Alone != nil {
		return runAlone(ctx, c, rt)
	}
	return runInMesh(ctx, c, rt)
}

func runInMesh(ctx context.Context, c Config, rt *service.Runtime) error {
	m := newMetrics(rt.Metrics)
	st, err := openStore(c.State)
	if err != nil {
		return err
	}
	fetcher := token.NewFetcher(token.FetcherOptions{Store: st, Log: rt.Log, Fetched: m.fetched})
	defer fetcher.Close()
	ps := newPolicies(rego.Options{Network: c.Decision.NetworkBuiltins}, c.Decision.Retire.D(), fetcher, st, rt.Log, m.swapped)
	if ps.restore(ctx) {
		rt.Health.Set(healthPolicies, nil)
	}

	td, err := c.trustDomain()
	if err != nil {
		return err
	}
	self, err := identity.Service(td, identity.Authz)
	if err != nil {
		return err
	}
	join := func(ctx context.Context) (*credential.Source, error) {
		return credential.New(ctx, c.Credential, self, rt.Log)
	}
	// A unix socket needs no certificate, so it answers, from the saved
	// policies, while the certificate authority is away.
	var source *credential.Source
	if _, unix := listen.Unix(c.Listen); !unix {
		if source, err = join(ctx); err != nil {
			return err
		}
	}
	l, err := c.open(source)
	if err != nil {
		return err
	}
	s := &server{
		policies: ps, decision: c.Decision, metrics: m, log: rt.Log,
		tokens: &tokens{
			fetcher: fetcher, root: c.RootNamespace, metrics: m,
			options: token.Options{Leeway: c.Token.Leeway.D(), MaxSize: c.Token.MaxBytes, RequireExpiry: c.Token.RequireExpiry},
		},
		record: decisionLog{rt.Log, c.Decision.Log},
	}
	methods := rpc.Methods{authv3.Authorization_Check_FullMethodName: l.allow}
	g := rpc.NewServer(l.creds, methods, rt, serverOptions(c.Decision.MaxRequestBytes+messageOverhead)...)
	authv3.RegisterAuthorizationServer(g, s)
	if err := rpc.CheckMethods(g, methods); err != nil {
		return err
	}
	rt.Health.Set(healthListener, nil)
	return service.RunTasks(ctx,
		func(ctx context.Context) error { return rpc.Serve(ctx, g, l.listener) },
		func(ctx context.Context) error {
			source := source
			if source == nil {
				var err error
				if source, err = join(ctx); err != nil {
					return err
				}
			}
			return service.RunTasks(ctx, source.Run, func(ctx context.Context) error { return ps.follow(ctx, c, source, rt, m) })
		})
}

// serverOptions are those that every server of checks has. Rego needs a deep
// stack; workers that stay keep theirs, where a goroutine for each call spends a
// fifth of the time of a decision on growing one (measured by BenchmarkServer).
func serverOptions(maxMessage int) []grpc.ServerOption {
	return []grpc.ServerOption{grpc.MaxRecvMsgSize(maxMessage), grpc.NumStreamWorkers(uint32(8 * runtime.GOMAXPROCS(0)))}
}

// listening is where and from whom checks are taken.
type listening struct {
	listener net.Listener
	creds    credentials.TransportCredentials
	allow    rpc.Allow
}

func (c *Config) open(source *credential.Source) (listening, error) {
	mode, err := c.socketMode()
	if err != nil {
		return listening{}, err
	}
	l, err := listen.WithMode(c.Listen, mode)
	if err != nil {
		return listening{}, err
	}
	if _, unix := listen.Unix(c.Listen); !unix {
		return listening{l, credentials.NewTLS(source.ServerTLS()), rpc.AnyWorkload()}, nil
	}
	if mode == listen.UnixMode {
		return listening{l, peercred.Credentials(), rpc.SameUser()}, nil
	}
	return listening{l, peercred.Credentials(), rpc.Anyone()}, nil
}

// follow keeps the policies as pilot has them.
func (p *policies) follow(ctx context.Context, c Config, source *credential.Source, rt *service.Runtime, m *metrics) error {
	pilot, err := identity.Service(source.ID().TrustDomain(), identity.Pilot)
	if err != nil {
		return err
	}
	conn, err := source.Dial(c.Pilot, pilot)
	if err != nil {
		return fmt.Errorf("pilot: %w", err)
	}
	defer conn.Close()
	subs := p.subscriptions(ctx, m, func() { rt.Health.Set(healthPolicies, nil) })
	if err := xdsclient.Run(ctx, conn, c.NodeID, rt.Log, subs...); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
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

func runAlone(ctx context.Context, c Config, rt *service.Runtime) error {
	s := c.Alone
	program, err := rego.Compile(ctx, s.source, s.query, rego.Options{Network: true, V0: s.V0, Undefined: true})
	if err != nil {
		return err
	}
	rt.Health.Set(healthPolicies, nil)
	addr, err := s.address()
	if err != nil {
		return err
	}
	l, err := listen.Listen(addr)
	if err != nil {
		return err
	}
	a := &alone{
		program: program, dryRun: s.plugin.DryRun, timeout: c.Decision.Timeout.D(),
		input:   rego.InputOptions{SkipBody: s.plugin.SkipBody, Messages: s.set},
		metrics: newMetrics(rt.Metrics), record: decisionLog{rt.Log, s.log}, log: rt.Log,
	}
	opts := append(serverOptions(s.plugin.MaxRecv), grpc.Creds(insecure.NewCredentials()))
	if s.plugin.MaxSend > 0 {
		opts = append(opts, grpc.MaxSendMsgSize(s.plugin.MaxSend))
	}
	g := grpc.NewServer(opts...)
	authv3.RegisterAuthorizationServer(g, a)
	if s.plugin.EnableReflection {
		reflection.Register(g)
	}
	rt.Health.Set(healthListener, nil)
	return rpc.Serve(ctx, g, l)
}

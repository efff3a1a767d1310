package nodeagent

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/protobuf/proto"

	"github.com/writ-mesh/writ/internal/credential"
	"github.com/writ-mesh/writ/internal/identity"
	"github.com/writ-mesh/writ/internal/listen"
	"github.com/writ-mesh/writ/internal/peercred"
	"github.com/writ-mesh/writ/internal/rpc"
	"github.com/writ-mesh/writ/internal/service"
	"github.com/writ-mesh/writ/internal/witness"
	"github.com/writ-mesh/writ/internal/xdsclient"
	"github.com/writ-mesh/writ/nodeagent/attest"
	"github.com/writ-mesh/writ/nodeagent/lastgood"
	"github.com/writ-mesh/writ/nodeagent/latest"
	"github.com/writ-mesh/writ/nodeagent/proxysecret"
	"github.com/writ-mesh/writ/nodeagent/relay"
	"github.com/writ-mesh/writ/nodeagent/sds"
	"github.com/writ-mesh/writ/nodeagent/svid"
	"github.com/writ-mesh/writ/nodeagent/workloadapi"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
	nodeagentpb "github.com/writ-mesh/writ/proto/writ/nodeagent/v1"
)

const (
	// idleConnection is how long a connection without streams stays open: a
	// proxy's always has some.
	idleConnection = time.Minute
	// maxStreams bounds the streams of one connection; a gateway has one for each
	// of its secrets.
	maxStreams = 1000
	// connectionBuffer is what is read and written at once on a connection of a
	// workload, in bytes. Most carry a certificate now and then, and there are many.
	connectionBuffer = 8 << 10
	// window is how much a client may send ahead, in bytes; requests are small. Given
	// one, gRPC does not measure the connection with a ping for each request.
	window = 64 << 10
)

// agent is what Run puts together.
type agent struct {
	cfg       Config
	rt        *service.Runtime
	metrics   *metrics
	attestor  *attest.Attestor
	authority *authority
	svids     *svid.Store
	tokens    *workloadapi.Tokens
	kept      *lastgood.Store
	pilot     *relay.Pilot
	sds       *sds.Server
	ads       *relay.Server
	workload  *workloadapi.Server
	// seen is what this node saw of the authority's ledger; connected has a token when
	// it is to be looked at again.
	seen      latest.Value[witness.Seen]
	connected chan struct{}
	stopping  chan struct{} // closed when streams have to end
	stopOnce  sync.Once
}

// Run runs the agent until ctx ends. It serves from the state on disk at once,
// before it has a certificate of its own.
func Run(ctx context.Context, cfg Config, rt *service.Runtime) error {
	leanMemory()
	for _, s := range []string{"sockets", "identity"} {
		rt.Health.Register(s)
	}
	a, err := newAgent(ctx, cfg, rt)
	if err != nil {
		return err
	}
	defer a.attestor.Close()
	defer a.svids.Close()
	defer a.tokens.Close()
	defer a.stop()
	proxies, admin, err := a.listen()
	if err != nil {
		return err
	}
	rt.Health.Set("sockets", nil)
	tasks := []func(context.Context) error{
		func(ctx context.Context) error { return a.serveProxies(ctx, proxies) },
		a.kept.Run,
		a.connect,
	}
	if admin != nil {
		tasks = append(tasks, func(ctx context.Context) error { return a.serveAdmin(ctx, admin) })
	}
	return service.RunTasks(ctx, tasks...)
}

func newAgent(ctx context.Context, cfg Config, rt *service.Runtime) (*agent, error) {
	td, err := cfg.trustDomain()
	if err != nil {
		return nil, err
	}
	proxies := filepath.Join(cfg.State, "proxies")
	if err := os.MkdirAll(proxies, 0o700); err != nil {
		return nil, fmt.Errorf("state: %w", err)
	}
	key, err := proxysecret.Open(cfg.proxyKey())
	if err != nil {
		return nil, err
	}
	a := &agent{cfg: cfg, rt: rt, metrics: newMetrics(rt.Metrics), pilot: new(relay.Pilot), connected: make(chan struct{}, 1), stopping: make(chan struct{})}
	a.openSeen(ctx)
	a.attestor = attest.New(ctx, attest.Config{Node: cfg.Node, TrustDomain: td, Dir: cfg.State, Wait: cfg.AttestWait.D(), Docker: cfg.dockerSocket(), Kubelet: cfg.Kubelet, Secret: key.Is, Log: rt.Log})
	a.authority = &authority{td: td, log: rt.Log, report: a.authorityChanged, observeCRLs: a.metrics.setCRLs, asking: make(chan struct{}, jwtParallel)}
	moved := func() { a.authority.moved.Set(struct{}{}) }
	a.svids = svid.NewStore(svid.Config{Issuer: a.authority, Observer: a.metrics, Moved: moved, Log: rt.Log})
	rt.Metrics.MustRegister(newExpiry(a.svids.Status))
	a.tokens = workloadapi.NewTokens(workloadapi.TokensConfig{Issuer: a.authority, Keys: &a.authority.keys, Observer: a.metrics, Log: rt.Log})
	a.kept = lastgood.NewStore(proxies, rt.Log)
	a.sds = sds.New(sds.Config{Attestor: a, SVIDs: a.svids, Bundle: &a.authority.bundle, CRLs: &a.authority.crls, TrustDomain: td.Name(), Foreign: &a.authority.bounded, Stopping: a.stopping, Observer: a.metrics, Moved: moved, Log: rt.Log})
	a.authority.svids, a.authority.sds = a.svids, a.sds
	a.ads = relay.New(relay.Config{Attestor: a, Pilot: a.pilot, Kept: a.kept, Node: cfg.Node, Stopping: a.stopping, Observer: a.metrics, Log: rt.Log})
	a.workload = workloadapi.New(workloadapi.Config{
		TrustDomain: td, Attestor: a, SVIDs: a.svids, Tokens: a.tokens,
		Roots: &a.authority.bundle, CRLs: &a.authority.crls, Keys: &a.authority.keys, Foreign: &a.authority.foreign, Stopping: a.stopping, Observer: a.metrics, Log: rt.Log,
	})
	return a, nil
}

// AttestCaller implements sds.Attestor and relay.Attestor and counts.
func (a *agent) AttestCaller(ctx context.Context) (*attest.Lease, error) {
	began := time.Now()
	lease, err := a.attestor.AttestCaller(ctx)
	a.metrics.attestationTime.Observe(time.Since(began).Seconds())
	if err != nil {
		a.metrics.attestations.WithLabelValues("refused").Inc()
		a.rt.Log.WarnContext(ctx, "caller refused", slog.Any("reason", err))
		return nil, err
	}
	a.metrics.attestations.WithLabelValues("recognized").Inc()
	a.rt.Log.DebugContext(ctx, "caller recognized", slog.String("proxy", lease.ProxyID), slog.String("spiffe_id", lease.ID.String()))
	return lease, nil
}

func (a *agent) stop() { a.stopOnce.Do(func() { close(a.stopping) }) }

// listen opens the sockets; admin is nil if there is none.
func (a *agent) listen() (proxies, admin net.Listener, err error) {
	mode, err := listen.Mode(a.cfg.SocketMode)
	if err != nil {
		return nil, nil, err
	}
	if proxies, err = listenIn(a.cfg.Socket, func(addr string) (net.Listener, error) { return listen.WithMode(addr, mode) }); err != nil {
		return nil, nil, err
	}
	if a.cfg.Admin == "" {
		return proxies, nil, nil
	}
	if admin, err = listenIn(a.cfg.Admin, listen.Listen); err != nil {
		_ = proxies.Close()
		return nil, nil, err
	}
	return proxies, admin, nil
}

// listenIn makes the socket's directory if it is missing.
func listenIn(addr string, open func(string) (net.Listener, error)) (net.Listener, error) {
	if path, ok := listen.Unix(addr); ok {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return nil, fmt.Errorf("listen on %s: %w", addr, err)
		}
	}
	return open(addr)
}

// serveProxies serves SDS, ADS and the SPIFFE Workload API. Every method recognizes its caller itself.
func (a *agent) serveProxies(ctx context.Context, l net.Listener) error {
	methods := rpc.Methods{
		secretv3.SecretDiscoveryService_StreamSecrets_FullMethodName:                    rpc.Anyone(),
		secretv3.SecretDiscoveryService_DeltaSecrets_FullMethodName:                     rpc.Anyone(),
		secretv3.SecretDiscoveryService_FetchSecrets_FullMethodName:                     rpc.Or(), // Envoy streams
		discoveryv3.AggregatedDiscoveryService_StreamAggregatedResources_FullMethodName: rpc.Anyone(),
		discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResources_FullMethodName:  rpc.Anyone(),
	}
	maps.Copy(methods, workloadapi.Methods())
	s := rpc.NewServer(attest.Credentials(), methods, a.rt, grpc.MaxConcurrentStreams(maxStreams),
		grpc.ReadBufferSize(connectionBuffer), grpc.WriteBufferSize(connectionBuffer), grpc.StaticStreamWindowSize(window),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second, MaxConnectionIdle: idleConnection}))
	secretv3.RegisterSecretDiscoveryServiceServer(s, a.sds)
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(s, a.ads)
	workload.RegisterSpiffeWorkloadAPIServer(s, a.workload)
	if err := rpc.CheckMethods(s, methods); err != nil {
		return err
	}
	defer context.AfterFunc(ctx, a.stop)()
	return rpc.Serve(ctx, s, l)
}

func (a *agent) serveAdmin(ctx context.Context, l net.Listener) error {
	methods := rpc.Methods{
		nodeagentpb.Admin_RegisterProcess_FullMethodName: rpc.SameUser(),
		nodeagentpb.Admin_GetStatus_FullMethodName:       rpc.SameUser(),
		nodeagentpb.Admin_ExplainIdentity_FullMethodName: rpc.SameUser(),
	}
	s := rpc.NewServer(peercred.Credentials(), methods, a.rt)
	nodeagentpb.RegisterAdminServer(s, admin{agent: a})
	if err := rpc.CheckMethods(s, methods); err != nil {
		return err
	}
	return rpc.Serve(ctx, s, l)
}

// connect obtains the agent's own certificate and then keeps the connections to
// the authority and to pilot.
func (a *agent) connect(ctx context.Context) error {
	id, err := a.cfg.id()
	if err != nil {
		return err
	}
	source, err := credential.New(ctx, a.cfg.Credential, id, a.rt.Log)
	if err != nil {
		return err
	}
	a.rt.Health.Set("identity", nil)
	bundle, err := source.GetX509BundleForTrustDomain(id.TrustDomain())
	if err != nil {
		return err
	}
	var roots [][]byte
	for _, c := range bundle.X509Authorities() {
		roots = append(roots, c.Raw)
	}
	source.OnRevocations(a.authority.takeRevocations, nil)
	if err := a.authority.beginWith(ctx, roots); err != nil {
		return err
	}
	source.Attach(a.authority)
	ca, err := a.dial(source, identity.CA, a.cfg.Credential.CA)
	if err != nil {
		return err
	}
	defer func() { _ = ca.Close() }()
	pilot, err := a.dial(source, identity.Pilot, a.cfg.Pilot)
	if err != nil {
		return err
	}
	defer func() { _ = pilot.Close() }()
	return service.RunTasks(ctx,
		source.Run,
		func(ctx context.Context) error { return a.authority.use(ctx, ca) },
		func(ctx context.Context) error { return a.authority.followForeign(ctx, ca) },
		a.authority.keepCRLs,
		func(ctx context.Context) error { return a.watchLedger(ctx, ca) },
		func(ctx context.Context) error { return a.pilot.Run(ctx, pilot, a.pilotChanged) },
		func(ctx context.Context) error { return a.followPlacement(ctx, pilot) },
		func(ctx context.Context) error { return a.followRegistrations(ctx, ca) },
	)
}

func (a *agent) dial(source *credential.Source, name, addr string) (*grpc.ClientConn, error) {
	server, err := identity.Service(source.ID().TrustDomain(), name)
	if err != nil {
		return nil, err
	}
	conn, err := source.Dial(addr, server)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return conn, nil
}

// followPlacement takes this node's placement from pilot.
func (a *agent) followPlacement(ctx context.Context, conn *grpc.ClientConn) error {
	return xdsclient.Run(ctx, conn, "node~"+a.cfg.Node, a.rt.Log, xdsclient.Subscription{
		Message: new(configpb.NodePlacement),
		Names:   []string{a.cfg.Node},
		Apply: func(resources map[string]proto.Message) error {
			p, ok := resources[a.cfg.Node].(*configpb.NodePlacement)
			if !ok {
				// Without configuration pilot knows no node. The authority refuses
				// what is no longer placed, so that nothing outlives a certificate.
				a.rt.Log.WarnContext(ctx, "pilot places nothing on this node, the last placement stays", slog.String("node", a.cfg.Node))
				return nil
			}
			return a.place(ctx, p)
		},
	})
}

func (a *agent) place(ctx context.Context, p *configpb.NodePlacement) error {
	if err := a.attestor.Place(ctx, p); err != nil {
		return err
	}
	placed := make(map[string]bool)
	for _, w := range a.attestor.Workloads() {
		placed[w.ProxyID] = true
	}
	keep := func(proxyID string) bool { return placed[proxyID] || a.attestor.Serves(proxyID) }
	a.kept.Keep(ctx, keep)
	a.sds.Forget(keep)
	// The authority learns the placement from pilot too: what it refused a moment
	// ago it may sign now.
	a.svids.Wake()
	a.rt.Log.InfoContext(ctx, "placement taken", slog.Int("workloads", len(placed)))
	return nil
}

func (a *agent) authorityChanged(up bool) {
	a.metrics.setConnected(peerCA, up)
	a.rt.Log.Info("connection to the authority", slog.Bool("up", up))
	if up {
		a.svids.Wake()
		a.sawAuthority()
	}
}

func (a *agent) pilotChanged(up bool) {
	a.metrics.setConnected(peerPilot, up)
	a.rt.Log.Info("connection to pilot", slog.Bool("up", up))
}

package ca

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	istiopb "istio.io/api/security/v1alpha1"

	"github.com/writ-mesh/writ/ca/bundleendpoint"
	"github.com/writ-mesh/writ/ca/csr"
	"github.com/writ-mesh/writ/ca/federated"
	"github.com/writ-mesh/writ/ca/jwtsvid"
	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/limit"
	"github.com/writ-mesh/writ/ca/nodeattest"
	"github.com/writ-mesh/writ/ca/placement"
	"github.com/writ-mesh/writ/ca/root"
	"github.com/writ-mesh/writ/internal/peercred"
	"github.com/writ-mesh/writ/internal/rpc"
	"github.com/writ-mesh/writ/internal/service"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// What has to be well for the authority to be ready. Pilot is not in it: it needs
// the authority to start, and placements are kept.
const (
	// subsystemLedger: records can be made durable.
	subsystemLedger = "ledger"
	// subsystemRoot: the root is valid by this machine's clock.
	subsystemRoot = "root"
)

const (
	// selfCheck is how often the subsystems are looked at.
	selfCheck = time.Second
	// maxMessage bounds a request: the certificate request and some names.
	maxMessage = csr.MaxSize + 16<<10
	// workers are goroutines that take calls; with more calls under way each has one
	// of its own. Signing needs a deep stack, and a new goroutine grows its stack
	// step by step, which was 4 % of an issuance.
	workers = 32
	// garbage is how much of it may gather before it is collected, in bytes. What the
	// authority holds is a few MiB, and what an issuance leaves behind is 30 KiB: with
	// Go's own rule there would be a collection for every hundred of them, which together
	// was 8 % of their processor time.
	garbage = 32 << 20
	// maxStreams bounds the calls that one connection has under way.
	maxStreams = 256
	// window is how much a caller may send ahead, in bytes; requests are small. Given
	// one, gRPC does not measure the connection with a ping for each request.
	window = 64 << 10
	// readBuffer is what is read at once on a connection over TLS, in bytes. There may
	// be two for each of thousands of nodes, which say little.
	readBuffer = 8 << 10
)

// Run runs the authority until ctx ends. c has been validated.
func Run(ctx context.Context, c Config, rt *service.Runtime) (err error) {
	rt.Health.Register(subsystemLedger)
	rt.Health.Register(subsystemRoot)
	dir, err := root.OpenDir(c.State)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	m := newMetrics(rt.Metrics)
	var failing atomic.Bool
	store, err := openStore(ctx, c, m, &failing, rt)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	store = counted(store, rt.Metrics)
	kept, err := openCheckpoints(ctx, c, store)
	if err != nil {
		return err
	}
	// After everything else has ended.
	defer kept.tryKeep(context.WithoutCancel(ctx), rt.Log)
	last, inUse, err := lastEntry(ctx, store)
	if err != nil {
		return err
	}
	a, err := open(ctx, c, store, inUse, m, rt.Log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.keeper.close()) }()
	a.warnOfClock(ctx, last, c.ClockSkew.D())
	if a.lost, err = loadLost(ctx, store); err != nil {
		return err
	}
	a.signer = kept.signer
	if c.Ledger.shared() {
		a.publishVerifier(ctx)
	}
	if a.revocations, err = newRevocations(ctx, a, newRevocationMetrics(rt.Metrics)); err != nil {
		return err
	}
	a.refusals = newRefusals(store, a.now, rt.Log)
	failing.Store(true) // until the first check, which makes the ledger ready
	a.check(ctx, &failing, rt)
	tasks, err := listeners(ctx, c, a, kept, rt)
	if err != nil {
		return err
	}
	tasks = append(tasks, new(service.Garbage).Pace(garbage), a.jwt.Run, a.keys.run, a.foreign.Run, a.refusals.run, a.revocations.run, a.revocations.cutOff, a.keeper.follow,
		func(ctx context.Context) error { return kept.run(ctx, rt.Log) },
		func(ctx context.Context) error { return a.keepChecking(ctx, &failing, rt) })
	if others := a.keeper.others; others != nil {
		tasks = append(tasks, others.run, others.follow, others.followAnnouncements)
	}
	return service.RunTasks(ctx, tasks...)
}

// open loads or makes the root and writes the trust bundle.
func open(ctx context.Context, c Config, store ledger.Store, inUse bool, m *metrics, log *slog.Logger) (*Authority, error) {
	td, err := spiffeid.TrustDomainFromString(c.TrustDomain)
	if err != nil {
		return nil, err
	}
	jwt, err := jwtsvid.Open(ctx, c.jwtKeys(log), time.Now())
	if err != nil {
		return nil, err
	}
	a := &Authority{
		td: td, store: store, jwt: jwt, now: time.Now, log: log, metrics: m,
		life: lifetimes{
			workload: c.WorkloadTTL.D(), service: c.ServiceTTL.D(), max: c.MaxTTL.D(),
			skew: c.ClockSkew.D(), token: c.JoinTokenTTL.D(),
			jwt: c.JWT.TTL.D(), jwtMax: c.JWT.MaxTTL.D(),
		},
	}
	a.keeper = newKeeper(c, a)
	if c.Ledger.shared() {
		if a.keeper.others, err = openReplicas(a.keeper); err != nil {
			return nil, err
		}
	}
	if err := a.keeper.openAuthority(ctx, c); err != nil {
		return nil, err
	}
	if err := a.keeper.open(ctx, inUse); err != nil {
		return nil, err
	}
	if a.foreign, err = federated.Open(filepath.Join(c.State, foreignDir), c.FederatesWith, log); err != nil {
		return nil, err
	}
	a.keys = newJWTBundle(a, c.Ledger.shared(), c.JWT.KeyTTL.D())
	return a, a.keys.open(ctx)
}

// keepChecking looks after the subsystems.
func (a *Authority) keepChecking(ctx context.Context, failing *atomic.Bool, rt *service.Runtime) error {
	return service.Every(ctx, selfCheck, func(time.Time) { a.check(ctx, failing, rt) })
}

// check looks at the clock, and tries a ledger that failed again, so that the
// authority gets ready by itself when, say, the disk has room again.
func (a *Authority) check(ctx context.Context, failing *atomic.Bool, rt *service.Runtime) {
	err := a.trusted().checkTime(a.now())
	rt.Health.Set(subsystemRoot, err)
	if err != nil {
		a.log.ErrorContext(ctx, "nothing is issued: the root is not valid now", slog.Any("error", err))
	}
	if !failing.Load() {
		return
	}
	if err := a.store.Check(ctx); err != nil && ctx.Err() == nil {
		a.log.ErrorContext(ctx, "nothing is issued: the ledger cannot record; make room on its disk or make it writable", slog.Any("error", err))
	}
}

// listeners opens everything that is served; no task runs before all are open.
func listeners(ctx context.Context, c Config, a *Authority, kept *checkpoints, rt *service.Runtime) (_ []func(context.Context) error, err error) {
	tasks := []func(context.Context) error{a.keeper.run, a.keeper.adoptOthers}
	var table *placement.Table // of who is issued to by node agents
	if c.Listen != "" {
		table = placement.NewTable(loadPlacements(ctx, c, a))
		tasks = append(tasks, func(ctx context.Context) error { return a.followRegistrations(ctx, table) })
	}
	if c.Admin != "" {
		task, err := serveAdmin(c.Admin, a, kept, table, rt)
		if err != nil {
			return nil, err
		}
		tasks = append(tasks, task)
	}
	if c.CRL.Listen != "" {
		task, err := serveCRL(c.CRL, a)
		if err != nil {
			return nil, err
		}
		tasks = append(tasks, task)
	}
	var identity *own
	if c.Listen != "" || c.BundleEndpoint.NeedsSVID() || c.Kubernetes.Secrets {
		if identity, err = newOwn(ctx, a, c.CompliancePolicy); err != nil {
			return nil, err
		}
		a.own.Store(identity)
		tasks = append(tasks, identity.run)
	}
	if a.cluster = openCluster(c, a, rt.Metrics); a.cluster != nil {
		tasks = append(tasks, a.cluster.Run)
		if c.Kubernetes.Registrations != "" {
			tasks = append(tasks, (&clusterRegistrations{a: a, cluster: a.cluster}).run)
		}
	}
	if c.BundleEndpoint.Listen != "" {
		task, err := bundleendpoint.Serve(c.BundleEndpoint, a.td, bundleSource{a, c.BundleEndpoint.RefreshHint.D()}, identity, rt.Log)
		if err != nil {
			return nil, err
		}
		tasks = append(tasks, task)
	}
	limits := a.limiter(c.Limits, rt.Metrics)
	if c.ACME.Listen != "" {
		task, err := serveACME(ctx, c, a, limits, rt)
		if err != nil {
			return nil, err
		}
		tasks = append(tasks, task)
	}
	if c.Listen == "" {
		return tasks, nil
	}
	task, err := serveIssuing(c, a, identity, table, limits, rt)
	if err != nil {
		return nil, err
	}
	tasks = append(tasks, task)
	if c.Pilot != "" {
		follow, err := followPlacements(c, a, identity, table)
		if err != nil {
			return nil, err
		}
		tasks = append(tasks, follow)
	}
	return tasks, nil
}

func serveAdmin(addr string, a *Authority, kept *checkpoints, table *placement.Table, rt *service.Runtime) (func(context.Context) error, error) {
	s := rpc.NewServer(peercred.Credentials(), adminMethods(), rt, grpc.MaxRecvMsgSize(maxMessage), grpc.NumStreamWorkers(workers), grpc.StaticStreamWindowSize(window))
	capb.RegisterAdminServer(s, &admin{a: a})
	capb.RegisterRootsServer(s, &rootsServer{a: a})
	capb.RegisterReplicasServer(s, &replicasServer{a: a, cluster: uncounted(a.store)})
	capb.RegisterRevocationsServer(s, &revocationsServer{a: a})
	istiopb.RegisterIstioCertificateServiceServer(s, &istio{a: a})
	capb.RegisterLedgerServer(s, &ledgerServer{store: a.store, signer: kept.signer, audit: (&admin{a: a}).audit})
	capb.RegisterRegistrationsServer(s, &registrationServer{a: a, table: table, audit: (&admin{a: a}).audit})
	capb.RegisterWitnessServer(s, &witnessServer{a: a})
	capb.RegisterJWTKeysServer(s, &jwtKeysServer{a: a})
	if err := rpc.CheckMethods(s, adminMethods()); err != nil {
		return nil, err
	}
	l, err := rpc.Listen(addr)
	if err != nil {
		return nil, fmt.Errorf("admin: %w", err)
	}
	return func(ctx context.Context) error { return rpc.Serve(ctx, s, l) }, nil
}

func serveIssuing(c Config, a *Authority, own *own, table *placement.Table, limits *limit.Limiter, rt *service.Runtime) (func(context.Context) error, error) {
	srv := &server{a: a, joiner: joiners{tokenJoiner{a}, nodeattest.New(c.Join, a.td, a.now)}, placed: table, wait: c.PlacementWait.D()}
	tokens, registered := &jwtServer{s: srv}, &nodeRegistrations{s: srv}
	methods := srv.methods()
	feed := &revocationFeed{s: srv}
	maps.Copy(methods, feed.methods())
	maps.Copy(methods, tokens.methods())
	maps.Copy(methods, registered.methods())
	others := &federationServer{s: srv}
	maps.Copy(methods, others.methods())
	witness := &witnessServer{a: a}
	maps.Copy(methods, witness.methods())
	s := rpc.NewServer(a.revocations.peers.Track(credentials.NewTLS(own.serverTLS()), a.revocations.admit), methods, rt,
		grpc.ChainUnaryInterceptor(limits.Unary), grpc.ChainStreamInterceptor(limits.Stream),
		grpc.MaxRecvMsgSize(maxMessage), grpc.NumStreamWorkers(workers), grpc.MaxConcurrentStreams(maxStreams), grpc.StaticStreamWindowSize(window),
		grpc.ReadBufferSize(readBuffer),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			Time: 30 * time.Second, Timeout: 10 * time.Second,
			// Callers connect anew while their certificate is valid, so that a
			// connection does not outlive it (see server.fresh). Renewed at half life, it
			// has another quarter left then. Streams of the old connection go on.
			MaxConnectionAge: max(c.ServiceTTL.D()/4, time.Second),
		}))
	capb.RegisterCertificateAuthorityServer(s, srv)
	capb.RegisterJWTAuthorityServer(s, tokens)
	capb.RegisterFederationServer(s, others)
	capb.RegisterRevocationFeedServer(s, feed)
	capb.RegisterWitnessServer(s, witness)
	capb.RegisterNodeRegistrationsServer(s, registered)
	if err := rpc.CheckMethods(s, methods); err != nil {
		return nil, err
	}
	l, err := rpc.Listen(c.Listen)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) error {
		srv.stopping = ctx.Done()
		return rpc.Serve(ctx, s, l)
	}, nil
}

// loadPlacements gives the placements known last. A damaged file is no reason not
// to start: pilot has them too.
func loadPlacements(ctx context.Context, c Config, a *Authority) placement.Set {
	set, err := placement.Load(filepath.Join(c.State, placementFile), a.td)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			a.log.WarnContext(ctx, "kept placements are not used; nodes get no workload certificates until pilot sends them again", slog.Any("error", err))
		}
		return nil
	}
	return set
}

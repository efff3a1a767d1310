package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// agents are node agents as the authority sees them: each with a certificate of its
// own, two connections and the four streams that a real one has.
type agents struct {
	ctx    context.Context //nolint:containedctx // the life of the streams
	cancel context.CancelFunc
	wg     sync.WaitGroup

	registrations atomic.Int64 // that they have received
	failed        atomic.Pointer[error]
}

// connectAgents connects n node agents, s0 and so on, and waits until each has its
// bundle and its registrations.
func connectAgents(ctx context.Context, a *authority, n int) (*agents, error) {
	svids, err := mintAgents(ctx, a, n)
	if err != nil {
		return nil, err
	}
	bundle, err := a.bundle()
	if err != nil {
		return nil, err
	}
	g := new(agents)
	g.ctx, g.cancel = context.WithCancel(ctx)
	err = parallel(ctx, n, 32, func(_ context.Context, i int) error {
		config := tlsconfig.MTLSClientConfig(svids[i], bundle, tlsconfig.AuthorizeID(spiffeid.RequireFromPath(bundle.TrustDomain(), "/writ/ca")))
		return g.connect(a.listen, config)
	})
	if err != nil {
		g.close()
		return nil, err
	}
	return g, nil
}

// close ends all streams.
func (g *agents) close() {
	g.cancel()
	g.wg.Wait()
}

// err is what ended a stream too early.
func (g *agents) err() error {
	if err := g.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// mintAgents gets the certificates of n node agents, all for one key: only the
// authority's side is of interest.
func mintAgents(ctx context.Context, a *authority, n int) ([]*x509svid.SVID, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, err
	}
	out := make([]*x509svid.SVID, n)
	err = parallel(ctx, n, 64, func(ctx context.Context, i int) error {
		resp, err := capb.NewAdminClient(a.admin).Mint(ctx, &capb.MintRequest{SpiffeId: nodeID(agentName(i)), Csr: csr})
		if err != nil {
			return err
		}
		var chain []byte
		for _, c := range resp.GetChain() {
			chain = append(chain, c...)
		}
		out[i], err = x509svid.ParseRaw(chain, keyDER)
		return err
	})
	return out, err
}

func agentName(i int) string { return fmt.Sprint("s", i) }

func nodeID(name string) string { return "spiffe://" + trustDomain + "/writ/node/" + name }

// connect brings one agent up.
func (g *agents) connect(address string, config *tls.Config) error {
	// Small buffers, so that thousands fit into this process.
	dial := func() (*grpc.ClientConn, error) {
		return grpc.NewClient(address, grpc.WithTransportCredentials(credentials.NewTLS(config)), grpc.WithReadBufferSize(2048), grpc.WithWriteBufferSize(2048))
	}
	own, err := dial() // renews the agent's own certificate and follows the bundle
	if err != nil {
		return err
	}
	work, err := dial()
	if err != nil {
		return errors.Join(err, own.Close())
	}
	context.AfterFunc(g.ctx, func() { _, _ = own.Close(), work.Close() })
	begun := make(chan error, 4)
	for _, follow := range []func(chan<- error) error{
		func(begun chan<- error) error { return g.followBundle(own, begun) },
		func(begun chan<- error) error { return g.followRegistrations(work, begun) },
		func(begun chan<- error) error {
			s, err := capb.NewRevocationFeedClient(work).WatchRevocations(g.ctx, &capb.WatchRevocationsRequest{})
			return g.follow(begun, err, func() error { _, err := s.Recv(); return err })
		},
		func(begun chan<- error) error {
			s, err := capb.NewFederationClient(work).WatchFederated(g.ctx, &capb.WatchFederatedRequest{})
			return g.follow(begun, err, func() error { _, err := s.Recv(); return err })
		},
	} {
		g.wg.Go(func() {
			if err := follow(begun); err != nil && g.ctx.Err() == nil {
				g.failed.CompareAndSwap(nil, &err)
			}
		})
	}
	timeout := time.NewTimer(time.Minute)
	defer timeout.Stop()
	for range 4 {
		select {
		case err := <-begun:
			if err != nil {
				return err
			}
		case <-timeout.C:
			return errors.New("the authority does not answer within a minute")
		}
	}
	return nil
}

// follow receives until the stream ends. begun hears once, of the first message or
// of why there is none.
func (g *agents) follow(begun chan<- error, err error, recv func() error) error {
	if err == nil {
		err = recv()
	}
	begun <- err
	for err == nil {
		err = recv()
	}
	return err
}

func (g *agents) followBundle(conn *grpc.ClientConn, begun chan<- error) error {
	s, err := capb.NewCertificateAuthorityClient(conn).WatchBundle(g.ctx)
	return g.follow(begun, err, func() error {
		b, err := s.Recv()
		if err != nil {
			return err
		}
		return s.Send(&capb.WatchBundleRequest{Acknowledged: b.GetSequence(), Authorities: []string{b.GetActiveAuthority()}})
	})
}

func (g *agents) followRegistrations(conn *grpc.ClientConn, begun chan<- error) error {
	s, err := capb.NewNodeRegistrationsClient(conn).WatchRegistrations(g.ctx, &capb.WatchRegistrationsRequest{})
	return g.follow(begun, err, func() error {
		u, err := s.Recv()
		g.registrations.Add(int64(len(u.GetPut())))
		return err
	})
}

// idle connects thousands of agents with many registrations and looks what the
// authority does while nothing happens.
func idle(ctx context.Context, o options) ([]row, error) {
	a, err := launchAuthority(ctx, o, o.dir)
	if err != nil {
		return nil, err
	}
	defer a.stop()
	begin := time.Now()
	if err := a.register(ctx, o.registrations, func(i int) *capb.PutRegistrationRequest {
		return &capb.PutRegistrationRequest{
			SpiffeId: fmt.Sprintf("spiffe://%s/ns/default/sa/idle-%d", trustDomain, i), Node: agentName(i % o.agents),
			Facts: []string{"unix:uid:1000", fmt.Sprintf("unix:path:/opt/idle/%d", i)},
		}
	}); err != nil {
		return nil, fmt.Errorf("register: %w", err)
	}
	registered := time.Since(begin)
	before, err := a.cpu()
	if err != nil {
		return nil, err
	}
	begin = time.Now()
	g, err := connectAgents(ctx, a, o.agents)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	defer g.close()
	connected, err := a.cpu()
	if err != nil {
		return nil, err
	}
	if got := g.registrations.Load(); got != int64(o.registrations) {
		return nil, fmt.Errorf("the agents have %d registrations, want %d", got, o.registrations)
	}
	rows := []row{{
		name: fmt.Sprintf("%d node agents connect: CPU of ca each", o.agents), ours: (connected - before) / time.Duration(o.agents),
		note: fmt.Sprintf("%.1f s, after %d registrations in %.1f s", time.Since(begin).Seconds(), o.registrations, registered.Seconds()),
	}}
	at, err := a.atRest(ctx, o)
	if err != nil {
		return rows, err
	}
	at.name = fmt.Sprintf("%d node agents, %d registrations, at rest: CPU", o.agents, o.registrations)
	at.note += "; goal 5 operations"
	return append(rows, at), g.err()
}

// atRest is what the authority does within ten measurements' time.
func (a *authority) atRest(ctx context.Context, o options) (row, error) {
	operations, err := a.ledgerOperations(ctx)
	if err != nil {
		return row{}, err
	}
	before, err := a.cpu()
	if err != nil {
		return row{}, err
	}
	begin := time.Now()
	if err := pause(ctx, 10*o.each); err != nil {
		return row{}, err
	}
	passed := time.Since(begin).Seconds()
	after, err := a.cpu()
	if err != nil {
		return row{}, err
	}
	now, err := a.ledgerOperations(ctx)
	if err != nil {
		return row{}, err
	}
	return row{ours: time.Duration(float64(after-before) / passed), note: fmt.Sprintf("in each second, and %.2f operations of the ledger; %.0f MiB resident", (now-operations)/passed, a.rss())}, nil
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

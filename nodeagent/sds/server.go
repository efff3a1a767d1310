package sds

import (
	"bytes"
	"context"
	"log/slog"
	"sync"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-mesh/writ/nodeagent/attest"
	"github.com/writ-mesh/writ/nodeagent/latest"
	"github.com/writ-mesh/writ/nodeagent/svid"
)

// Attestor says which workload the caller of a method is.
type Attestor interface {
	// AttestCaller returns a lease or a gRPC status error.
	AttestCaller(ctx context.Context) (*attest.Lease, error)
}

// SVIDs are the certificates of workloads.
type SVIDs interface {
	// Subscribe makes the certificate be obtained and renewed.
	Subscribe(proxyID string, id spiffeid.ID) *svid.Subscription
}

// Observer hears what happens, for metrics. It must not block.
type Observer interface {
	// SDSStream is called with 1 when a stream begins and -1 when it ends.
	SDSStream(change int)
	// SDSPush is called for each response that a client has answered.
	SDSPush(accepted bool)
}

// Config is what New needs.
type Config struct {
	Attestor Attestor
	SVIDs    SVIDs
	// Bundle is the trust bundle in PEM, empty while there is none.
	Bundle *latest.Value[[]byte]
	// CRLs are certificate revocation lists in PEM, empty for none.
	CRLs *latest.Value[[]byte]
	// TrustDomain is the own one.
	TrustDomain string
	// Foreign are the other trust domains, nil until it is known which there are.
	Foreign *latest.Value[[]Foreign]
	// Stopping is closed when streams have to end.
	Stopping <-chan struct{}
	Observer Observer
	// Moved is called when the Standing may have changed. It must not block.
	Moved func()
	Log   *slog.Logger
}

// Server implements the secret discovery service.
type Server struct {
	secretv3.UnimplementedSecretDiscoveryServiceServer
	cfg       Config
	positions *positions

	mu     sync.Mutex
	counts map[string]Counts
}

// Counts are the pushes to one proxy.
type Counts struct{ Acked, Nacked uint64 }

// New returns a server.
func New(cfg Config) *Server {
	if cfg.Moved == nil {
		cfg.Moved = func() {}
	}
	return &Server{cfg: cfg, positions: newPositions(cfg.Moved), counts: make(map[string]Counts)}
}

// Standing says which proxies have not accepted the trust bundle of now, and which
// authorities' certificates they use while active signs.
func (s *Server) Standing(active string) Standing {
	bundle, _ := s.cfg.Bundle.Get()
	return s.positions.standing(rootVersion(bundle), active)
}

// Counts returns how many pushes a proxy has acknowledged and refused since the
// agent started.
func (s *Server) Counts(proxyID string) Counts {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts[proxyID]
}

// Forget drops the counts of proxies that keep does not want.
func (s *Server) Forget(keep func(proxyID string) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.counts {
		if !keep(id) {
			delete(s.counts, id)
		}
	}
}

// machine is delta or sotw: the protocol without its I/O.
type machine[Q, P any] interface {
	request(req Q) event
	wants(name string) bool
	holds() holdings
	respond(have secrets) P
}

// request is what both kinds of request have.
type request interface {
	GetTypeUrl() string
	GetErrorDetail() *statuspb.Status
}

// DeltaSecrets implements the incremental variant.
func (s *Server) DeltaSecrets(stream secretv3.SecretDiscoveryService_DeltaSecretsServer) error {
	return serve(s, stream, new(delta), func(r *discoveryv3.DeltaDiscoveryResponse) bool { return r != nil })
}

// StreamSecrets implements the state-of-the-world variant.
func (s *Server) StreamSecrets(stream secretv3.SecretDiscoveryService_StreamSecretsServer) error {
	return serve(s, stream, new(sotw), func(r *discoveryv3.DiscoveryResponse) bool { return r != nil })
}

// serve runs one stream.
func serve[Q, P any, R interface {
	*Q
	request
}](s *Server, stream grpc.BidiStreamingServer[Q, P], m machine[R, *P], some func(*P) bool) error {
	ctx := stream.Context()
	lease, err := s.cfg.Attestor.AttestCaller(ctx)
	if err != nil {
		return err
	}
	defer lease.Release()
	s.cfg.Observer.SDSStream(1)
	defer s.cfg.Observer.SDSStream(-1)
	w := watch{cfg: s.cfg, lease: lease}
	defer w.close()
	pos := s.positions.open(lease.ProxyID)
	defer func() { s.positions.close(pos, isClosed(lease.Done())) }()
	requests := receive[Q](ctx, stream.Recv)
	for {
		have, err := w.look(m.wants)
		if err != nil {
			return err
		}
		if resp := m.respond(have); some(resp) {
			if err := stream.Send(resp); err != nil {
				return err
			}
		}
		s.positions.update(pos, m.holds())
		select {
		case req, ok := <-requests:
			if !ok {
				return nil // the client has gone
			}
			if err := checkType(R(req)); err != nil {
				return err
			}
			ev := m.request(R(req))
			s.answered(ctx, lease.ProxyID, ev, R(req).GetErrorDetail())
			if ev == nacked {
				w.refuse()
			}
		case <-w.svidChanged:
		case <-w.crlsChanged:
		case <-w.bundleChanged:
		case <-w.foreignChanged:
		case <-lease.Done():
			return errGone(lease)
		case <-s.cfg.Stopping:
			return errStopping()
		}
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// receive reads requests until the stream ends, which it does when its handler
// returns.
func receive[Q any](ctx context.Context, recv func() (*Q, error)) <-chan *Q {
	out := make(chan *Q)
	go func() {
		defer close(out)
		for {
			req, err := recv()
			if err != nil {
				return
			}
			select {
			case out <- req:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

func (s *Server) answered(ctx context.Context, proxyID string, ev event, detail *statuspb.Status) {
	if ev == none {
		return
	}
	s.cfg.Observer.SDSPush(ev == acked)
	if ev == nacked {
		s.cfg.Log.WarnContext(ctx, "proxy refused a secret", slog.String("proxy", proxyID), slog.String("detail", detail.GetMessage()))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.counts[proxyID]
	if ev == acked {
		c.Acked++
	} else {
		c.Nacked++
	}
	s.counts[proxyID] = c
}

// watch is one stream's view of the secrets. A certificate is asked for when the
// client wants it and not before.
type watch struct {
	cfg            Config
	lease          *attest.Lease
	sub            *svid.Subscription
	svidChanged    <-chan struct{}
	bundleChanged  <-chan struct{}
	crlsChanged    <-chan struct{}
	foreignChanged <-chan struct{}
	// crls are those in use, and refused those that the client may have refused. It
	// gets the bundle without them, so that a bad list does not keep a bundle away. So
	// with other trust domains.
	crls, refused           []byte
	foreign, refusedForeign []Foreign
}

func (w *watch) look(wants func(string) bool) (secrets, error) {
	have := make(secrets, 3)
	bundle, changed := w.cfg.Bundle.Get()
	w.bundleChanged = changed
	crls, changed := w.cfg.CRLs.Get()
	w.crls, w.crlsChanged = crls, changed
	if w.refused != nil && bytes.Equal(crls, w.refused) {
		crls = nil
	}
	foreign, changed := w.cfg.Foreign.Get()
	w.foreign, w.foreignChanged = foreign, changed
	if len(w.refusedForeign) > 0 && SameForeign(foreign, w.refusedForeign) {
		foreign = []Foreign{}
	}
	if wants(NameRoot) && len(bundle) > 0 {
		v, err := rootSecret(bundle, crls)
		if err != nil {
			return nil, status.Error(codes.Internal, err.Error())
		}
		have[NameRoot] = v
	}
	// Who had other trust domains keeps them until it is known which there are now.
	if wants(NameFederated) && len(bundle) > 0 && foreign != nil {
		v, err := federatedSecret(w.cfg.TrustDomain, bundle, crls, foreign)
		if err != nil {
			return nil, status.Error(codes.Internal, err.Error())
		}
		have[NameFederated] = v
	}
	if !wants(NameDefault) {
		w.close()
		return have, nil
	}
	if w.sub == nil {
		w.sub = w.cfg.SVIDs.Subscribe(w.lease.ProxyID, w.lease.ID)
	}
	v, changed := w.sub.Current()
	w.svidChanged = changed
	if v != nil {
		s, err := certificateSecret(v)
		if err != nil {
			return nil, status.Error(codes.Internal, "the certificate cannot be sent")
		}
		have[NameDefault] = s
	}
	return have, nil
}

// refuse is called when the client refused something, perhaps for the lists, and if
// it had none, perhaps for another trust domain.
func (w *watch) refuse() {
	if len(w.crls) > 0 && !bytes.Equal(w.crls, w.refused) {
		w.refused = w.crls
		return
	}
	w.refusedForeign = w.foreign
}

func (w *watch) close() {
	if w.sub != nil {
		w.sub.Close()
	}
	w.sub, w.svidChanged = nil, nil
}

func checkType(req interface{ GetTypeUrl() string }) error {
	if t := req.GetTypeUrl(); t != "" && t != typeURL {
		return status.Errorf(codes.InvalidArgument, "type %q: only %s is served here", t, typeURL)
	}
	return nil
}

func errGone(l *attest.Lease) error {
	return status.Errorf(codes.PermissionDenied, "the caller is no longer %s on this node", l.ProxyID)
}

func errStopping() error { return status.Error(codes.Unavailable, "the node agent is stopping") }

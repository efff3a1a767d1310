package workloadapi

import (
	"context"
	"log/slog"
	"sync"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/writ-mesh/writ/internal/rpc"
	"github.com/writ-mesh/writ/nodeagent/attest"
	"github.com/writ-mesh/writ/nodeagent/latest"
	"github.com/writ-mesh/writ/nodeagent/svid"
)

const (
	// header has to be in the metadata of every call, so that no program is made to
	// call by somebody who can send it elsewhere but not choose its headers
	// (SPIFFE Workload Endpoint, section 5).
	header = "workload.spiffe.io"
	// maxCalls bounds the calls under way of one workload; each of its processes
	// has a few streams.
	maxCalls = 256
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
	// WorkloadCall is called with 1 when an attested caller's call begins and with
	// -1 when it ends.
	WorkloadCall(method string, change int)
	// WorkloadAnswer is called when a call has ended.
	WorkloadAnswer(method string, code codes.Code)
}

// Config is what New needs.
type Config struct {
	TrustDomain spiffeid.TrustDomain
	Attestor    Attestor
	SVIDs       SVIDs
	Tokens      *Tokens
	// Roots are those of the trust domain in PEM, empty while there are none.
	Roots *latest.Value[[]byte]
	// CRLs are the certificate revocation lists of the roots in PEM, empty for none.
	CRLs *latest.Value[[]byte]
	// Keys verify JWT-SVIDs of the trust domain; zero while there are none.
	Keys *latest.Value[Keys]
	// Foreign are the other trust domains whose identities are accepted.
	Foreign *latest.Value[[]Foreign]
	// Stopping is closed when calls have to end.
	Stopping <-chan struct{}
	Observer Observer
	Log      *slog.Logger
}

// Server implements the SPIFFE Workload API, but for the experimental WIT-SVIDs.
type Server struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	cfg Config

	mu    sync.Mutex
	calls map[caller]int
}

// caller is a workload on this node.
type caller struct {
	proxyID string
	id      spiffeid.ID
}

// New returns a server.
func New(cfg Config) *Server { return &Server{cfg: cfg, calls: make(map[caller]int)} }

// Methods says who may call what: everybody, since each method recognizes its
// caller itself. WIT-SVIDs are answered UNIMPLEMENTED, as their specification says.
func Methods() rpc.Methods {
	return rpc.Methods{
		workload.SpiffeWorkloadAPI_FetchX509SVID_FullMethodName:    rpc.Anyone(),
		workload.SpiffeWorkloadAPI_FetchX509Bundles_FullMethodName: rpc.Anyone(),
		workload.SpiffeWorkloadAPI_FetchJWTSVID_FullMethodName:     rpc.Anyone(),
		workload.SpiffeWorkloadAPI_FetchJWTBundles_FullMethodName:  rpc.Anyone(),
		workload.SpiffeWorkloadAPI_ValidateJWTSVID_FullMethodName:  rpc.Anyone(),
		workload.SpiffeWorkloadAPI_FetchWITSVID_FullMethodName:     rpc.Anyone(),
		workload.SpiffeWorkloadAPI_FetchWITBundles_FullMethodName:  rpc.Anyone(),
	}
}

// enter recognizes the caller of a method. leave has to be called with the error
// of the call.
func (s *Server) enter(ctx context.Context, method string) (lease *attest.Lease, leave func(error), err error) {
	answered := func(err error) { s.cfg.Observer.WorkloadAnswer(method, status.Code(err)) }
	defer func() {
		if err != nil {
			answered(err)
		}
	}()
	if v := metadata.ValueFromIncomingContext(ctx, header); len(v) != 1 || v[0] != "true" {
		return nil, nil, status.Errorf(codes.InvalidArgument, "security header missing from request: the metadata has to have %s: true", header)
	}
	lease, err = s.cfg.Attestor.AttestCaller(ctx)
	if err != nil {
		return nil, nil, err
	}
	who := caller{lease.ProxyID, lease.ID}
	if !s.begin(who) {
		lease.Release()
		return nil, nil, status.Errorf(codes.ResourceExhausted, "%s has %d calls under way and gets no more at the same time", lease.ID, maxCalls)
	}
	s.cfg.Observer.WorkloadCall(method, 1)
	return lease, func(err error) {
		s.end(who)
		lease.Release()
		s.cfg.Observer.WorkloadCall(method, -1)
		answered(err)
	}, nil
}

func (s *Server) begin(who caller) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.calls[who] >= maxCalls {
		return false
	}
	s.calls[who]++
	return true
}

func (s *Server) end(who caller) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.calls[who]--; s.calls[who] == 0 {
		delete(s.calls, who)
	}
}

// wait blocks until one of some values has changed; an error ends the stream.
func (s *Server) wait(ctx context.Context, lease *attest.Lease, a, b, c, d <-chan struct{}) error {
	select {
	case <-a:
		return nil
	case <-b:
		return nil
	case <-c:
		return nil
	case <-d:
		return nil
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	case <-lease.Done():
		return status.Errorf(codes.PermissionDenied, "the caller is no longer %s on this node", lease.ID)
	case <-s.cfg.Stopping:
		return status.Error(codes.Unavailable, "the node agent is stopping")
	}
}

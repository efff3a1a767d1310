// Package rpc is how Writ's services meet: gRPC servers that know who calls and
// let nobody call a method that does not name him.
package rpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"sort"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/writ-mesh/writ/internal/identity"
	"github.com/writ-mesh/writ/internal/listen"
	"github.com/writ-mesh/writ/internal/peercred"
	"github.com/writ-mesh/writ/internal/service"
)

// maxMessage bounds a gRPC message in bytes; the whole configuration of a proxy
// in one state-of-the-world response is the largest there is.
const maxMessage = 64 << 20

// drainBound is how long Serve waits for running calls when it stops.
const drainBound = 5 * time.Second

// Caller is who calls a method.
type Caller struct {
	// ID is from the client certificate; zero if there was none.
	ID spiffeid.ID
	// Cred is from the unix socket; nil if the call came over TCP.
	Cred *peercred.Cred
}

// String names the caller for logs and for the ledger.
func (c Caller) String() string {
	switch {
	case !c.ID.IsZero():
		return c.ID.String()
	case c.Cred != nil:
		return fmt.Sprintf("uid=%d pid=%d", c.Cred.UID, c.Cred.PID)
	default:
		return "unauthenticated"
	}
}

// CallerFrom gives the caller of a method.
func CallerFrom(ctx context.Context) Caller {
	var c Caller
	if cred, ok := peercred.FromContext(ctx); ok {
		c.Cred = &cred
	}
	p, ok := peer.FromContext(ctx)
	if !ok {
		return c
	}
	// A server's TLS configuration must verify every certificate it takes
	// (crypto/tls does with ClientCAs, go-spiffe in VerifyPeerCertificate).
	if tls, ok := p.AuthInfo.(credentials.TLSInfo); ok && len(tls.State.PeerCertificates) > 0 {
		if id, err := x509svid.IDFromCert(tls.State.PeerCertificates[0]); err == nil {
			c.ID = id
		}
	}
	return c
}

// Allow decides whether a caller may call: nil, or a gRPC status error with
// PERMISSION_DENIED.
type Allow func(Caller) error

// Methods lists who may call which method, by its full name /package.Service/Method.
type Methods map[string]Allow

// Anyone lets everybody in. Only for methods that prove the caller in another way.
func Anyone() Allow { return func(Caller) error { return nil } }

// AnyService lets the named services of Writ in.
func AnyService(names ...string) Allow {
	return func(c Caller) error {
		if s, ok := identity.ServiceOf(c.ID); ok {
			for _, n := range names {
				if s == n {
					return nil
				}
			}
		}
		return denied(c, "service "+strings.Join(names, ", "))
	}
}

// AnyNode lets node agents in.
func AnyNode() Allow {
	return func(c Caller) error {
		if _, ok := identity.NodeOf(c.ID); ok {
			return nil
		}
		return denied(c, "node agent")
	}
}

// AnyWorkload lets workloads in.
func AnyWorkload() Allow {
	return func(c Caller) error {
		if _, _, ok := identity.WorkloadOf(c.ID); ok {
			return nil
		}
		return denied(c, "workload")
	}
}

// SameUser lets processes in that run as the user of this one, and root, over a
// unix socket.
func SameUser() Allow {
	return func(c Caller) error {
		if c.Cred != nil && (c.Cred.UID == 0 || int(c.Cred.UID) == os.Geteuid()) {
			return nil
		}
		return denied(c, "the user that runs this service, over its unix socket")
	}
}

// Or lets in whom one of the rules lets in.
func Or(rules ...Allow) Allow {
	return func(c Caller) error {
		err := denied(c, "nobody")
		for _, r := range rules {
			if err = r(c); err == nil {
				return nil
			}
		}
		return err
	}
}

func denied(c Caller, want string) error {
	return status.Errorf(codes.PermissionDenied, "%s may not call this method; it is for: %s", c, want)
}

// Listen opens a listener; see package listen.
func Listen(addr string) (net.Listener, error) { return listen.Listen(addr) }

// NewServer returns a server on which every call is checked against methods.
// Serve refuses to start if a registered method is missing there, or the other
// way round. Panics in handlers are answered INTERNAL and logged.
func NewServer(creds credentials.TransportCredentials, methods Methods, rt *service.Runtime, opts ...grpc.ServerOption) *grpc.Server {
	g := guard{methods: methods, log: rt.Log}
	base := []grpc.ServerOption{
		grpc.Creds(creds),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxSendMsgSize(maxMessage),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.ChainUnaryInterceptor(g.unary),
		grpc.ChainStreamInterceptor(g.stream),
	}
	return grpc.NewServer(append(base, opts...)...)
}

// CheckMethods returns an error unless the methods registered with s and those
// that methods names are the same.
func CheckMethods(s *grpc.Server, methods Methods) error {
	var wrong []string
	seen := make(map[string]bool)
	for name, info := range s.GetServiceInfo() {
		for _, m := range info.Methods {
			full := "/" + name + "/" + m.Name
			seen[full] = true
			if methods[full] == nil {
				wrong = append(wrong, full+" names nobody who may call it")
			}
		}
	}
	for full := range methods {
		if !seen[full] {
			wrong = append(wrong, full+" is named but not served")
		}
	}
	if len(wrong) == 0 {
		return nil
	}
	sort.Strings(wrong)
	return errors.New("rpc: " + strings.Join(wrong, "; "))
}

type guard struct {
	methods Methods
	log     *slog.Logger
}

func (g guard) check(ctx context.Context, method string) error {
	allow := g.methods[method]
	if allow == nil {
		return status.Errorf(codes.PermissionDenied, "method %s names nobody who may call it", method)
	}
	err := allow(CallerFrom(ctx))
	if err != nil {
		g.log.WarnContext(ctx, "call refused", slog.String("method", method), slog.String("caller", CallerFrom(ctx).String()))
	}
	return err
}

func (g guard) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (resp any, err error) {
	if err := g.check(ctx, info.FullMethod); err != nil {
		return nil, err
	}
	defer g.recover(ctx, info.FullMethod, &err)
	return h(ctx, req)
}

func (g guard) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, h grpc.StreamHandler) (err error) {
	if err := g.check(ss.Context(), info.FullMethod); err != nil {
		return err
	}
	defer g.recover(ss.Context(), info.FullMethod, &err)
	return h(srv, ss)
}

func (g guard) recover(ctx context.Context, method string, err *error) {
	if r := recover(); r != nil {
		g.log.ErrorContext(ctx, "panic in a handler", slog.String("method", method), slog.Any("panic", r), slog.String("stack", string(debug.Stack())))
		*err = status.Error(codes.Internal, "internal error")
	}
}

// Serve serves until ctx ends, lets running calls finish for at most 5 s
// and returns nil then.
func Serve(ctx context.Context, s *grpc.Server, l net.Listener) error {
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	select {
	case err := <-done:
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	stopped := make(chan struct{})
	go func() { defer close(stopped); s.GracefulStop() }()
	select {
	case <-stopped:
	case <-time.After(drainBound):
		s.Stop()
		<-stopped
	}
	<-done
	return nil
}

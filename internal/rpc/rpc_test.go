package rpc_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/writ-mesh/writ/internal/peercred"
	"github.com/writ-mesh/writ/internal/rpc"
	"github.com/writ-mesh/writ/internal/service"
	pilotpb "github.com/writ-mesh/writ/proto/writ/pilot/v1"
)

// statusServer does in GetStatus what the test says and streams for ever in
// WatchStatus.
type statusServer struct {
	pilotpb.UnimplementedStatusServer
	get     func(context.Context) error
	entered chan struct{}
}

func (s statusServer) GetStatus(ctx context.Context, _ *pilotpb.GetStatusRequest) (*pilotpb.GetStatusResponse, error) {
	if s.entered != nil {
		close(s.entered)
	}
	return &pilotpb.GetStatusResponse{Serving: 7}, s.get(ctx)
}

func (s statusServer) WatchStatus(_ *pilotpb.WatchStatusRequest, stream grpc.ServerStreamingServer[pilotpb.GetStatusResponse]) error {
	return s.get(stream.Context())
}

func runtime(buf *strings.Builder) *service.Runtime {
	return &service.Runtime{Log: slog.New(slog.NewTextHandler(buf, nil)), Health: new(service.Health)}
}

// serve starts a server on a unix socket; the result ends it and waits.
func serve(t *testing.T, methods rpc.Methods, impl statusServer, log *strings.Builder) (pilotpb.StatusClient, func() error) {
	t.Helper()
	addr := "unix://" + filepath.Join(t.TempDir(), "s")
	l, err := rpc.Listen(addr)
	if err != nil {
		t.Fatal(err)
	}
	s := rpc.NewServer(peercred.Credentials(), methods, runtime(log))
	pilotpb.RegisterStatusServer(s, impl)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- rpc.Serve(ctx, s, l) }()
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	stopped := false
	stop := func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		return <-done
	}
	t.Cleanup(func() { _ = stop(); _ = conn.Close() })
	return pilotpb.NewStatusClient(conn), stop
}

func TestOnlyNamedMethodsAndCallers(t *testing.T) {
	var log strings.Builder
	var caller rpc.Caller
	c, stop := serve(t, rpc.Methods{
		pilotpb.Status_GetStatus_FullMethodName:   rpc.SameUser(),
		pilotpb.Status_WatchStatus_FullMethodName: rpc.AnyService("ca"),
	}, statusServer{get: func(ctx context.Context) error { caller = rpc.CallerFrom(ctx); return nil }}, &log)
	resp, err := c.GetStatus(t.Context(), nil)
	if err != nil || resp.GetServing() != 7 {
		t.Fatalf("%v, %v", resp, err)
	}
	if caller.Cred == nil || int(caller.Cred.UID) != os.Getuid() || !caller.ID.IsZero() {
		t.Errorf("caller %+v", caller)
	}
	watch, err := c.WatchStatus(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := watch.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a stream for another caller: %v", err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if !strings.Contains(log.String(), "call refused") || !strings.Contains(log.String(), "WatchStatus") {
		t.Errorf("log: %s", log.String())
	}
}

// TestMissingMethodIsRefused: the table is closed even where CheckMethods was
// not asked.
func TestMissingMethodIsRefused(t *testing.T) {
	var log strings.Builder
	c, _ := serve(t, rpc.Methods{}, statusServer{get: func(context.Context) error { t.Error("it was called"); return nil }}, &log)
	if _, err := c.GetStatus(t.Context(), nil); status.Code(err) != codes.PermissionDenied {
		t.Errorf("got %v", err)
	}
	watch, err := c.WatchStatus(t.Context(), nil)
	if err == nil {
		_, err = watch.Recv()
	}
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("got %v", err)
	}
}

func TestCheckMethods(t *testing.T) {
	var log strings.Builder
	s := rpc.NewServer(insecure.NewCredentials(), nil, runtime(&log))
	pilotpb.RegisterStatusServer(s, statusServer{})
	get, watch := pilotpb.Status_GetStatus_FullMethodName, pilotpb.Status_WatchStatus_FullMethodName
	for name, tc := range map[string]struct {
		methods rpc.Methods
		want    []string
	}{
		"complete":    {rpc.Methods{get: rpc.Anyone(), watch: rpc.Anyone()}, nil},
		"missing":     {rpc.Methods{get: rpc.Anyone()}, []string{watch + " names nobody"}},
		"nil":         {rpc.Methods{get: rpc.Anyone(), watch: nil}, []string{watch + " names nobody"}},
		"misspelt":    {rpc.Methods{get: rpc.Anyone(), watch + "x": rpc.Anyone()}, []string{watch + " names nobody", watch + "x is named but not served"}},
		"of no table": {nil, []string{get, watch}},
	} {
		err := rpc.CheckMethods(s, tc.methods)
		if (err == nil) != (tc.want == nil) {
			t.Errorf("%s: %v", name, err)
		}
		for _, want := range tc.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %q is not in %v", name, want, err)
			}
		}
	}
}

func TestAllow(t *testing.T) {
	id := func(s string) rpc.Caller {
		return rpc.Caller{ID: spiffeid.RequireFromString("spiffe://cluster.local" + s)}
	}
	user := func(uid uint32) rpc.Caller { return rpc.Caller{Cred: &peercred.Cred{UID: uid}} }
	self := uint32(os.Geteuid())
	callers := map[string]rpc.Caller{
		"ca": id("/writ/ca"), "pilot": id("/writ/pilot"), "node": id("/writ/node/n1"), "workload": id("/ns/default/sa/a"),
		"odd": id("/ns/default/sa/a/b"), "self": user(self), "root": user(0), "stranger": user(self + 1), "nobody": {},
	}
	for name, tc := range map[string]struct {
		allow rpc.Allow
		in    []string
	}{
		"AnyService(ca)":      {rpc.AnyService("ca"), []string{"ca"}},
		"AnyService(node)":    {rpc.AnyService("node"), nil},
		"AnyService()":        {rpc.AnyService(), nil},
		"AnyNode":             {rpc.AnyNode(), []string{"node"}},
		"AnyWorkload":         {rpc.AnyWorkload(), []string{"workload"}},
		"SameUser":            {rpc.SameUser(), []string{"self", "root"}},
		"Or(node, ca, pilot)": {rpc.Or(rpc.AnyNode(), rpc.AnyService("ca", "pilot")), []string{"node", "ca", "pilot"}},
		"Or()":                {rpc.Or(), nil},
		"Anyone":              {rpc.Anyone(), []string{"ca", "pilot", "node", "workload", "odd", "self", "root", "stranger", "nobody"}},
	} {
		in := map[string]bool{}
		for _, c := range tc.in {
			in[c] = true
		}
		for who, c := range callers {
			err := tc.allow(c)
			if (err == nil) != in[who] {
				t.Errorf("%s: %s: %v", name, who, err)
			}
			if err != nil && status.Code(err) != codes.PermissionDenied {
				t.Errorf("%s: %s: code %s", name, who, status.Code(err))
			}
		}
	}
}

func TestCallerOfCertificate(t *testing.T) {
	leaf := func(uris ...string) context.Context {
		cert := new(x509.Certificate)
		for _, s := range uris {
			u, err := url.Parse(s)
			if err != nil {
				t.Fatal(err)
			}
			cert.URIs = append(cert.URIs, u)
		}
		return peer.NewContext(t.Context(), &peer.Peer{AuthInfo: credentials.TLSInfo{State: tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}}}})
	}
	for name, tc := range map[string]struct {
		ctx  context.Context
		want string
	}{
		"one":              {leaf("spiffe://cluster.local/writ/ca"), "spiffe://cluster.local/writ/ca"},
		"two are none":     {leaf("spiffe://cluster.local/writ/ca", "spiffe://cluster.local/writ/pilot"), "unauthenticated"},
		"no SPIFFE ID":     {leaf("https://cluster.local/writ/ca"), "unauthenticated"},
		"no name":          {leaf(), "unauthenticated"},
		"no certificate":   {peer.NewContext(t.Context(), &peer.Peer{AuthInfo: credentials.TLSInfo{}}), "unauthenticated"},
		"nothing is known": {t.Context(), "unauthenticated"},
	} {
		if got := rpc.CallerFrom(tc.ctx).String(); got != tc.want {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
	}
	if got := (rpc.Caller{Cred: &peercred.Cred{UID: 5, PID: 6}}).String(); got != "uid=5 pid=6" {
		t.Error(got)
	}
}

func TestPanicIsAnInternalError(t *testing.T) {
	var log strings.Builder
	methods := rpc.Methods{pilotpb.Status_GetStatus_FullMethodName: rpc.Anyone(), pilotpb.Status_WatchStatus_FullMethodName: rpc.Anyone()}
	c, stop := serve(t, methods, statusServer{get: func(context.Context) error { panic("secret detail") }}, &log)
	_, err := c.GetStatus(t.Context(), nil)
	watch, werr := c.WatchStatus(t.Context(), nil)
	if werr == nil {
		_, werr = watch.Recv()
	}
	for _, err := range []error{err, werr} {
		if status.Code(err) != codes.Internal || strings.Contains(err.Error(), "secret") {
			t.Errorf("got %v", err)
		}
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if strings.Count(log.String(), "panic in a handler") != 2 || !strings.Contains(log.String(), "secret detail") {
		t.Errorf("log: %s", log.String())
	}
}

// TestRunningCallsAreFinished: a stop lets the call under way end.
func TestRunningCallsAreFinished(t *testing.T) {
	var log strings.Builder
	release, entered := make(chan struct{}), make(chan struct{})
	methods := rpc.Methods{pilotpb.Status_GetStatus_FullMethodName: rpc.Anyone(), pilotpb.Status_WatchStatus_FullMethodName: rpc.Anyone()}
	c, stop := serve(t, methods, statusServer{get: func(context.Context) error { <-release; return nil }, entered: entered}, &log)
	result := make(chan error, 1)
	go func() {
		_, err := c.GetStatus(t.Context(), nil)
		result <- err
	}()
	<-entered
	ended := make(chan error, 1)
	go func() { ended <- stop() }()
	select {
	case err := <-ended:
		t.Fatalf("it did not wait: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(release)
	if err := <-result; err != nil {
		t.Errorf("the call under way: %v", err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestServeEndsWithItsListener(t *testing.T) {
	var log strings.Builder
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	err = rpc.Serve(t.Context(), rpc.NewServer(insecure.NewCredentials(), nil, runtime(&log)), l)
	if err == nil || !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v", err)
	}
}

package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/writ-mesh/writ/internal/proctest"
)

// grpcApp is a gRPC program.
type grpcApp struct {
	testpb.UnimplementedTestServiceServer
	name string
}

func newGRPCApp(t *testing.T, name string) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	testpb.RegisterTestServiceServer(s, &grpcApp{name: name})
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return l.Addr().(*net.TCPAddr).Port
}

func (a *grpcApp) UnaryCall(ctx context.Context, r *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	if s := r.GetResponseStatus(); s != nil {
		return nil, status.Error(codes.Code(s.GetCode()), s.GetMessage())
	}
	md, _ := metadata.FromIncomingContext(ctx)
	_ = grpc.SetTrailer(ctx, metadata.Pairs("x-trailer", "end"))
	return &testpb.SimpleResponse{Username: a.name, Hostname: strings.Join(md.Get("x-forwarded-client-cert"), ",")}, nil
}

func (a *grpcApp) FullDuplexCall(s grpc.BidiStreamingServer[testpb.StreamingOutputCallRequest, testpb.StreamingOutputCallResponse]) error {
	for {
		r, err := s.Recv()
		if err != nil {
			return nil //nolint:nilerr // the client is done
		}
		if err := s.Send(&testpb.StreamingOutputCallResponse{Payload: r.GetPayload()}); err != nil {
			return err
		}
	}
}

// tunnel opens a CONNECT tunnel through an explicit proxy.
func tunnel(proxy, target string) (net.Conn, int, error) {
	u, err := url.Parse(proxy)
	if err != nil {
		return nil, 0, err
	}
	c, err := net.DialTimeout("tcp", u.Host, 5*time.Second)
	if err != nil {
		return nil, 0, err
	}
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", target, target); err != nil {
		return nil, 0, err
	}
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, &http.Request{Method: http.MethodConnect})
	if err != nil {
		_ = c.Close()
		return nil, 0, err
	}
	if resp.StatusCode != http.StatusOK {
		_ = c.Close()
		return nil, resp.StatusCode, nil
	}
	return &buffered{Conn: c, r: r}, resp.StatusCode, nil
}

// buffered reads what came with the answer first.
type buffered struct {
	net.Conn
	r *bufio.Reader
}

func (b *buffered) Read(p []byte) (int, error) { return b.r.Read(p) }

// via says a line through a tunnel and gives the first word of the answer, or the status.
func via(proxy, target, line string) string {
	c, code, err := tunnel(proxy, target)
	switch {
	case err != nil:
		return err.Error()
	case c == nil:
		return fmt.Sprint(code)
	}
	return say(c, line)
}

func serveUpgrade(w http.ResponseWriter, r *http.Request) { upgradeAs(w, r, "echo") }

// upgradeAs upgrades a connection and sends a line back after a name.
func upgradeAs(w http.ResponseWriter, r *http.Request, name string) {
	if !strings.EqualFold(r.Header.Get("upgrade"), "websocket") {
		http.Error(w, "no upgrade", http.StatusBadRequest)
		return
	}
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer c.Close()
	_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
	line, err := rw.ReadString('\n')
	if err == nil {
		_, _ = fmt.Fprintf(c, "%s %s", name, line)
	}
}

// upgrade sends a WebSocket handshake for target to address and gives the
// answer to a line sent over it.
func upgrade(address, requestTarget, host string) (string, error) {
	c, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	_, _ = fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", requestTarget, host)
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		return "", fmt.Errorf("%s", resp.Status)
	}
	_, _ = io.WriteString(c, "hello\n")
	return r.ReadString('\n')
}

func grpcClient(t *testing.T, target string, opts ...grpc.DialOption) testpb.TestServiceClient {
	t.Helper()
	conn, err := grpc.NewClient(target, append(opts, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return testpb.NewTestServiceClient(conn)
}

// TestIstioProtocols has every protocol go through both sidecars.
func TestIstioProtocols(t *testing.T) {
	t.Parallel()
	v1, v2 := newApp(t, "v1"), newApp(t, "v2")
	for _, a := range []*app{v1, v2} {
		a.answerWith(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("upgrade") != "" {
				upgradeAs(w, r, a.name)
				return
			}
			a.serve(w, r)
		})
	}
	ws := newEcho(t, "ws")
	ws.answerWith(serveUpgrade)
	ca := newPublicCA(t, "public")
	cert := ca.issue("secure", "secure.default.svc.cluster.local", "secure")
	secured := newApp(t, "secured")
	tlsPort := tlsApp(t, secured, &tls.Config{Certificates: []tls.Certificate{cert.tls}})
	multi := func(name string, a *app) string {
		return play("default", "p-"+name, map[string]string{"app": "p", "version": name}, a.port, "http 8000",
			fmt.Sprintf("grpc 9090 %d", newGRPCApp(t, name)), fmt.Sprintf("tcp 9000 %d", tcpApp(t, name)), "http2 7000", fmt.Sprintf("mysterious 9001 %d", tcpApp(t, name)))
	}
	subsets := func(host string) string {
		return object("DestinationRule", "default", host, "host: "+host+"\nsubsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]")
	}
	gwPort := proctest.Port(t)
	m := up(t, writeFiles(t, map[string]string{
		"workloads.yaml": multi("v1", v1) + multi("v2", v2) + play("default", "client", map[string]string{"app": "client"}, v1.port) +
			play("default", "ws", map[string]string{"app": "ws"}, ws.port) +
			play("default", "secure", map[string]string{"app": "secure"}, tlsPort, "https 8443"),
		"strict.yaml": strict,
		"routes.yaml": subsets("p") +
			service("pinned", "app: p", "{name: tcp, port: 9000}, {name: grpc, port: 9090}, {name: http2, port: 80, targetPort: 7000}") + subsets("pinned") +
			object("VirtualService", "default", "pinned", `
			hosts: [pinned]
			tcp: [{match: [{port: 9000}], route: [{destination: {host: pinned, subset: v2, port: {number: 9000}}}]}]
			http:
			- match: [{port: 9090, headers: {x-fail: {exact: "yes"}}}]
			  fault: {abort: {percentage: {value: 100}, grpcStatus: RESOURCE_EXHAUSTED}}
			  route: [{destination: {host: pinned, subset: v2, port: {number: 9090}}}]
			- match: [{port: 9090, uri: {prefix: /grpc.testing.TestService}}]
			  route: [{destination: {host: pinned, subset: v2, port: {number: 9090}}}]
			- route: [{destination: {host: pinned, subset: v1, port: {number: 80}}}]`) +
			service("idle", "app: p", "{name: tcp, port: 9000}") + object("DestinationRule", "default", "idle", "host: idle\ntrafficPolicy: {connectionPool: {tcp: {idleTimeout: 1s}}}") +
			service("shifted", "app: p", "{name: tcp, port: 9000}") + subsets("shifted") +
			object("VirtualService", "default", "shifted", `
			hosts: [shifted]
			tcp: [{route: [{destination: {host: shifted, subset: v1, port: {number: 9000}}, weight: 80}, {destination: {host: shifted, subset: v2, port: {number: 9000}}, weight: 20}]}]`) +
			object("Gateway", "default", "edge", fmt.Sprintf(`{selector: {istio: ingressgateway}, servers: [{port: {number: %d, name: http, protocol: HTTP}, hosts: ["*"]}]}`, gwPort)) +
			object("VirtualService", "default", "edge", `
			hosts: ["ws.example.com", "grpc.example.com"]
			gateways: [edge]
			http:
			- match: [{authority: {exact: ws.example.com}}]
			  route: [{destination: {host: ws, port: {number: 8000}}}]
			- route: [{destination: {host: p, port: {number: 9090}}}]`),
	}))
	proxy := m.proxyOf("client-1")
	proxyAddress := strings.TrimPrefix(proxy, "http://")
	gateway := fmt.Sprintf("127.0.0.1:%d", gwPort)

	t.Run("h2c client and h2c program", func(t *testing.T) {
		tr := &http.Transport{Protocols: new(http.Protocols), DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", proxyAddress)
		}}
		tr.Protocols.SetUnencryptedHTTP2(true)
		defer tr.CloseIdleConnections()
		got := do(&http.Client{Transport: tr, Timeout: 5 * time.Second}, request{url: "http://pinned/"})
		if s := got.saw(t); got.proto != "HTTP/2.0" || s.Proto != "HTTP/2.0" || s.Name != "v1" {
			t.Errorf("client %s, program %s %s", got.proto, s.Proto, s.Name)
		}
	})
	t.Run("HTTP/1.1 client and h2c program", func(t *testing.T) {
		if s := m.get("client-1", "http://pinned/").saw(t); s.Proto != "HTTP/2.0" {
			t.Errorf("program saw %s", s.Proto)
		}
		if s := m.get("client-1", "http://p:8000/").saw(t); s.Proto != "HTTP/1.1" {
			t.Errorf("program saw %s", s.Proto)
		}
	})
	t.Run("gRPC", func(t *testing.T) {
		// Before there is a tunnel: it would count as a request that never ends.
		count := map[string]int{}
		one := grpcClient(t, "passthrough:///"+proxyAddress, grpc.WithAuthority("p:9090"))
		for range 100 {
			r, err := one.UnaryCall(t.Context(), &testpb.SimpleRequest{})
			if err != nil {
				t.Fatal(err)
			}
			count[r.GetUsername()]++
		}
		if count["v1"] < 30 || count["v2"] < 30 {
			t.Errorf("calls of one connection: %v", count)
		}
		for name, c := range map[string]testpb.TestServiceClient{
			"as requests": grpcClient(t, "passthrough:///"+proxyAddress, grpc.WithAuthority("p:9090")),
			"in a tunnel": grpcClient(t, "passthrough:///p:9090", grpc.WithContextDialer(func(_ context.Context, target string) (net.Conn, error) {
				c, _, err := tunnel(proxy, target)
				return c, err
			})),
			"at the gateway": grpcClient(t, "passthrough:///"+gateway, grpc.WithAuthority("grpc.example.com")),
		} {
			checkGRPC(t, name, c)
		}
		pinned := grpcClient(t, "passthrough:///"+proxyAddress, grpc.WithAuthority("pinned:9090"))
		for range 4 {
			if r, err := pinned.UnaryCall(t.Context(), &testpb.SimpleRequest{}); err != nil || r.GetUsername() != "v2" {
				t.Errorf("pinned: %v %v", r, err)
			}
		}
		ctx := metadata.AppendToOutgoingContext(t.Context(), "x-fail", "yes")
		if _, err := pinned.UnaryCall(ctx, &testpb.SimpleRequest{}); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("fault: %v", err)
		}
	})
	t.Run("idle TCP connections", func(t *testing.T) { checkIdle(t, proxy) })
	t.Run("balancing", func(t *testing.T) { checkBalancing(t, proxy) })
	t.Run("WebSocket", func(t *testing.T) {
		if got, err := upgrade(proxyAddress, "http://ws:8000/chat", "ws:8000"); err != nil || got != "echo hello\n" {
			t.Errorf("through the sidecars: %q %v", got, err)
		}
		if got, err := upgrade(gateway, "/chat", "ws.example.com"); err != nil || got != "echo hello\n" {
			t.Errorf("through the gateway: %q %v", got, err)
		}
	})
	t.Run("TCP", func(t *testing.T) {
		for target, want := range map[string]string{"pinned:9000": "v2", "p:9001": "v", "p.default.svc.cluster.local:9000": "v"} {
			if got := via(proxy, target, "hello"); !strings.HasPrefix(got, want) {
				t.Errorf("%s: %s, want %s", target, got, want)
			}
		}
		count := map[string]int{}
		for range 150 {
			count[via(proxy, "shifted:9000", "hello")]++
		}
		if n := count["v2"]; n < 10 || n > 55 || count["v1"]+n != 150 {
			t.Errorf("weights: %v", count)
		}
	})
	t.Run("HTTP in a tunnel", func(t *testing.T) {
		c, code, err := tunnel(proxy, "p:8000")
		if err != nil || c == nil {
			t.Fatal(code, err)
		}
		defer c.Close()
		_, _ = io.WriteString(c, "GET /x HTTP/1.1\r\nHost: p:8000\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || resp.StatusCode != 200 {
			t.Errorf("%v %v", resp, err)
		}
	})
	t.Run("the program's own TLS", func(t *testing.T) {
		c, _, err := tunnel(proxy, "secure:8443")
		if err != nil {
			t.Fatal(err)
		}
		tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.pool()}, DialContext: func(context.Context, string, string) (net.Conn, error) { return c, nil }}
		defer tr.CloseIdleConnections()
		if got := do(&http.Client{Transport: tr, Timeout: 5 * time.Second}, request{url: "https://secure:8443/"}); got.outcome() != "secured" {
			t.Errorf("%s", got)
		}
	})
}

// checkIdle: a connection to a service with an idle timeout ends once nothing is said, and
// not while something is.
func checkIdle(t *testing.T, proxy string) {
	t.Helper()
	c, code, err := tunnel(proxy, "idle:9000")
	if err != nil || c == nil {
		t.Fatal(code, err)
	}
	defer c.Close()
	r := bufio.NewReader(c)
	began := time.Now()
	for pause := time.NewTicker(300 * time.Millisecond); time.Since(began) < 2*time.Second; <-pause.C {
		if _, err := io.WriteString(c, "hello\n"); err != nil {
			t.Fatal(err)
		}
		if _, err := r.ReadString('\n'); err != nil {
			t.Fatalf("after %s, while something is said: %v", time.Since(began), err)
		}
	}
	if text, err := r.ReadString('\n'); !errors.Is(err, io.EOF) {
		t.Errorf("idle: %q %v, want the end of the connection", text, err)
	}
}

// checkBalancing has two replicas of p: requests of one connection go to both, whereas
// a TCP connection or a WebSocket stays where it is, and the next may go elsewhere.
// That gRPC calls go to both the caller has seen.
func checkBalancing(t *testing.T, proxy string) {
	t.Helper()
	proxyAddress := strings.TrimPrefix(proxy, "http://")
	dials := 0
	single := func(h2 bool) *http.Client {
		tr := &http.Transport{Protocols: new(http.Protocols), DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			dials++
			return new(net.Dialer).DialContext(ctx, "tcp", proxyAddress)
		}}
		tr.Protocols.SetHTTP1(!h2)
		tr.Protocols.SetUnencryptedHTTP2(h2)
		t.Cleanup(tr.CloseIdleConnections)
		return &http.Client{Transport: tr, Timeout: 5 * time.Second}
	}
	overHTTP1, overHTTP2 := single(false), single(true)
	for name, send := range map[string]func() string{
		"HTTP/1.1": func() string { return do(overHTTP1, request{url: "http://p:8000/"}).outcome() },
		"HTTP/2":   func() string { return do(overHTTP2, request{url: "http://p:7000/"}).outcome() },
		"TCP":      func() string { return via(proxy, "p:9000", "hello") },
		"WebSocket": func() string {
			line, err := upgrade(proxyAddress, "http://p:8000/chat", "p:8000")
			if err != nil {
				return err.Error()
			}
			word, _, _ := strings.Cut(line, " ")
			return word
		},
	} {
		dials = 0
		count := map[string]int{}
		for range 60 {
			count[send()]++
		}
		// Five standard deviations of a fair coin.
		if count["v1"] < 10 || count["v2"] < 10 || count["v1"]+count["v2"] != 60 {
			t.Errorf("%s: %v", name, count)
		}
		if strings.HasPrefix(name, "HTTP") && dials != 1 {
			t.Errorf("%s: %d connections, want all requests over one", name, dials)
		}
	}
	c, code, err := tunnel(proxy, "p:9000")
	if err != nil || c == nil {
		t.Fatal(code, err)
	}
	defer c.Close()
	r, stayed := bufio.NewReader(c), map[string]int{}
	for range 20 {
		if _, err := io.WriteString(c, "hello\n"); err != nil {
			t.Fatal(err)
		}
		line, err := r.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		stayed[line]++
	}
	if len(stayed) != 1 {
		t.Errorf("lines of one TCP connection: %v", stayed)
	}
}

func checkGRPC(t *testing.T, name string, c testpb.TestServiceClient) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	var trailer metadata.MD
	r, err := c.UnaryCall(ctx, &testpb.SimpleRequest{}, grpc.Trailer(&trailer))
	if err != nil || !strings.HasPrefix(r.GetUsername(), "v") || strings.Join(trailer.Get("x-trailer"), "") != "end" {
		t.Errorf("%s: unary: %v %v %v", name, r, trailer, err)
	}
	if !strings.Contains(r.GetHostname(), "URI=spiffe://cluster.local/ns/") {
		t.Errorf("%s: the program sees no caller: %q", name, r.GetHostname())
	}
	if _, err := c.UnaryCall(ctx, &testpb.SimpleRequest{ResponseStatus: &testpb.EchoStatus{Code: 5, Message: "no such"}}); status.Code(err) != codes.NotFound {
		t.Errorf("%s: error: %v", name, err)
	}
	s, err := c.FullDuplexCall(ctx)
	if err != nil {
		t.Errorf("%s: stream: %v", name, err)
		return
	}
	for i := range 3 {
		text := fmt.Sprintf("message %d", i)
		if err := s.Send(&testpb.StreamingOutputCallRequest{Payload: &testpb.Payload{Body: []byte(text)}}); err != nil {
			t.Errorf("%s: send: %v", name, err)
			return
		}
		if r, err := s.Recv(); err != nil || string(r.GetPayload().GetBody()) != text {
			t.Errorf("%s: receive: %v %v", name, r, err)
			return
		}
	}
	if err := s.CloseSend(); err != nil {
		t.Errorf("%s: close: %v", name, err)
	}
	if _, err := s.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("%s: end of stream: %v", name, err)
	}
}

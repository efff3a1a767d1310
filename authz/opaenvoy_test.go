package authz

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/writ-mesh/writ/internal/envoytest"
	"github.com/writ-mesh/writ/internal/proctest"
)

const opaEnvoyExample = "../examples/opa-envoy/"

// example is examples/opa-envoy, running on ports of its own.
type example struct {
	byGRPC, byHTTP, tcp string
	accessLog           string
}

// library is the application of the example: it tells what reaches it.
func library(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	fmt.Fprintf(w, "reader=%s shelves=%s card=%t query=%s body=%d", r.Header.Get("X-Reader"), strings.Join(r.Header.Values("X-Shelves"), ","), r.Header.Get("Authorization") != "", r.URL.RawQuery, len(body))
}

// runExample runs writ-authz and an Envoy on the example's files, in which only
// ports change, and the descriptor set is named.
func runExample(t *testing.T) example {
	t.Helper()
	dir := t.TempDir()
	app := httptest.NewServer(http.HandlerFunc(library))
	t.Cleanup(app.Close)
	g := grpc.NewServer()
	h := health.NewServer()
	h.SetServingStatus("library", grpc_health_v1.HealthCheckResponse_SERVING)
	grpc_health_v1.RegisterHealthServer(g, h)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = g.Serve(l) }()
	t.Cleanup(g.Stop)

	e := example{byGRPC: proctest.Address(t), byHTTP: proctest.Address(t), tcp: proctest.Address(t), accessLog: dir + "/access.log"}
	authzGRPC, authzHTTP := proctest.Address(t), proctest.Address(t)
	var pairs []string
	for from, to := range map[string]string{
		"8000": e.byGRPC, "8001": e.byHTTP, "8002": e.tcp, "8080": app.Listener.Addr().String(), "8081": l.Addr().String(), "9192": authzHTTP, "8003": "127.0.0.1:0",
	} {
		_, port, _ := net.SplitHostPort(to)
		pairs = append(pairs, "port_value: "+from+"}", "port_value: "+port+"}")
	}
	pairs = append(pairs, "127.0.0.1:9191", authzGRPC, "/dev/stdout", e.accessLog)
	bootstrap := writeFile(t, dir+"/envoy.yaml", strings.NewReplacer(pairs...).Replace(read(t, "envoy.yaml")))

	set, err := proto.Marshal(&descriptorpb.FileDescriptorSet{File: []*descriptorpb.FileDescriptorProto{protodesc.ToFileDescriptorProto(grpc_health_v1.File_grpc_health_v1_health_proto)}})
	if err != nil {
		t.Fatal(err)
	}
	descriptor := writeFile(t, dir+"/health.pb", string(set))
	c := DefaultConfig()
	c.Alone = &Standalone{
		ConfigFile: writeFile(t, dir+"/config.yaml", strings.NewReplacer(":9191", authzGRPC, "dry-run:", "proto-descriptor: "+descriptor+"\n    dry-run:").Replace(read(t, "config.yaml"))),
		Paths:      []string{opaEnvoyExample + "policy.rego"},
		HTTPListen: authzHTTP,
	}
	start(t, c)
	envoytest.Run(t, envoytest.Find(t), bootstrap, "--file-flush-interval-msec", "100")
	for _, addr := range []string{e.byGRPC, e.byHTTP, e.tcp} {
		proctest.Eventually(t, 30*time.Second, func() error {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				return err
			}
			return c.Close()
		})
	}
	return e
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(opaEnvoyExample, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// card is a token of the example.
func card(role string) string {
	part := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	signed := part(`{"alg":"HS256","typ":"JWT"}`) + "." + part(`{"sub":"ann","role":"`+role+`","shelves":["a","b"]}`)
	mac := hmac.New(sha256.New, []byte("not a secret: this is an example"))
	mac.Write([]byte(signed))
	return signed + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// The example in place of the OPA-Envoy plugin: each form of decision, through a
// real Envoy, by gRPC, by HTTP and about a connection.
func TestOPAEnvoyExample(t *testing.T) {
	envoytest.Find(t)
	e := runExample(t)
	do := func(t *testing.T, addr, method, path, role, body string) (*http.Response, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+addr+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		if role != "" {
			req.Header.Set("Authorization", "Bearer "+card(role))
		}
		resp, err := (&http.Client{Timeout: 20 * time.Second}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp, string(b)
	}
	for _, c := range []struct {
		name, method, path, role, body string
		status                         int
		// want is the answer when asked by gRPC, httpWant when asked by HTTP.
		want, httpWant string
	}{
		{
			"a reader", "GET", "/books?debug=1&page=2", "reader", "", 200,
			"reader=ann shelves=a,b card=false query=limit=10&page=2 body=0", "reader=ann shelves=a,b card=false query=debug=1&page=2 body=0",
		},
		{"a librarian", "POST", "/books", "librarian", `{"title": "x"}`, 200, "body=14", "body=14"},
		{"a reader writes", "POST", "/books", "reader", `{"title": "x"}`, 403, "", `"status":403`},
		{"a body that is cut off", "POST", "/books", "librarian", `{"title": "` + strings.Repeat("x", 2000) + `"}`, 403, "", `"status":403`},
		{"a body that is broken", "POST", "/books", "librarian", `{"title"`, 400, "malformed", "malformed"},
		{"a stranger", "GET", "/books", "", "", 401, "show your card", "show your card"},
		{"elsewhere", "GET", "/", "librarian", "", 403, "", `"status":403`},
	} {
		for by, addr := range map[string]string{"gRPC": e.byGRPC, "HTTP": e.byHTTP} {
			t.Run(c.name+" by "+by, func(t *testing.T) {
				want := c.want
				if by == "HTTP" {
					want = c.httpWant
				}
				resp, body := do(t, addr, c.method, c.path, c.role, c.body)
				if resp.StatusCode != c.status || !strings.Contains(body, want) {
					t.Errorf("%d %q", resp.StatusCode, body)
				}
				if decided := resp.Header.Get("X-Decided-By"); (c.status == 200) != (decided == "library") {
					t.Errorf("x-decided-by: %q", decided)
				}
				if c.status == 401 && resp.Header.Get("Www-Authenticate") != `Bearer realm="library"` {
					t.Errorf("headers %v", resp.Header)
				}
			})
		}
	}
	t.Run("connections", func(t *testing.T) { connections(t, e.tcp) })
	t.Run("gRPC calls", func(t *testing.T) { grpcCalls(t, e.byGRPC) })
	proctest.Eventually(t, 20*time.Second, func() error {
		b, err := os.ReadFile(e.accessLog)
		if err == nil && strings.Count(string(b), "200 reader=ann decision=") < 4 {
			err = fmt.Errorf("metadata is missing in the access log: %s", b)
		}
		return err
	})
}

// connections: from this machine they are allowed, from elsewhere not.
func connections(t *testing.T, addr string) {
	for from, want := range map[string]bool{"127.0.0.1": true, "127.0.0.2": false} {
		d := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 10 * time.Second}
		client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return d.DialContext(ctx, network, addr)
		}}}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://library/", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err == nil {
			_ = resp.Body.Close()
		}
		if (err == nil) != want {
			t.Errorf("from %s: %v", from, err)
		}
		client.CloseIdleConnections()
	}
}

// grpcCalls: the policy reads their messages.
func grpcCalls(t *testing.T, addr string) {
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableServiceConfig())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := grpc_health_v1.NewHealthClient(conn)
	if _, err := client.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: "library"}); err != nil {
		t.Errorf("the library: %v", err)
	}
	if _, err := client.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: "other"}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("another service: %v", err)
	}
}

package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
)

// authorizer is the sample external authorizer of Istio's task: it lets pass what
// has "x-ext-authz: allow". It speaks gRPC and HTTP.
type authorizer struct {
	authv3.UnimplementedAuthorizationServer
	asked atomic.Int64
	last  atomic.Pointer[authv3.CheckRequest]
	// seen is the last request over HTTP.
	seen atomic.Pointer[http.Request]
	body atomic.Pointer[string]
}

func (a *authorizer) Check(_ context.Context, r *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	a.asked.Add(1)
	a.last.Store(r)
	http := r.GetAttributes().GetRequest().GetHttp()
	tcp := http.GetMethod() == ""
	if tcp && strings.HasSuffix(r.GetAttributes().GetSource().GetPrincipal(), "/sa/a") || http.GetHeaders()["x-ext-authz"] == "allow" {
		return &authv3.CheckResponse{
			Status: &statuspb.Status{Code: int32(codes.OK)},
			HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{
				Headers: []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: "x-ext-authz-check-result", Value: "allowed"}}},
			}},
		}, nil
	}
	return &authv3.CheckResponse{
		Status: &statuspb.Status{Code: int32(codes.PermissionDenied)},
		HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
			Status:  &typev3.HttpStatus{Code: typev3.StatusCode_PaymentRequired},
			Body:    "denied by ext_authz",
			Headers: []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: "x-ext-authz-check-result", Value: "denied"}}},
		}},
	}, nil
}

func (a *authorizer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.asked.Add(1)
	body, _ := io.ReadAll(r.Body)
	text := string(body)
	a.body.Store(&text)
	a.seen.Store(r)
	w.Header().Set("x-ext-authz-check-result", "from-http")
	w.Header().Set("x-user", "alice")
	w.Header().Set("x-why", "because")
	if r.Header.Get("x-ext-authz") != "allow" {
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(w, "denied by ext_authz")
	}
}

// startAuthorizer serves both protocols and gives their ports.
func startAuthorizer(t *testing.T) (a *authorizer, httpPort, grpcPort int) {
	t.Helper()
	a = new(authorizer)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	authv3.RegisterAuthorizationServer(s, a)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	srv := &httptest.Server{Config: &http.Server{Handler: a, ReadHeaderTimeout: patience, Protocols: protocols()}}
	if srv.Listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	srv.Start()
	t.Cleanup(srv.Close)
	return a, srv.Listener.Addr().(*net.TCPAddr).Port, l.Addr().(*net.TCPAddr).Port
}

// TestIstioExternalAuthorization follows
// https://istio.io/latest/docs/tasks/security/authorization/authz-custom/ and the
// providers of MeshConfig, field by field.
func TestIstioExternalAuthorization(t *testing.T) {
	t.Parallel()
	auth, httpPort, grpcPort := startAuthorizer(t)
	e := newEcho(t, "e")
	tcp := tcpApp(t, "echo")
	servers := []string{"grpc", "http", "entry", "closed", "open", "missing", "body", "two", "deny"}
	workloads := workload("a", "a", e) + workload("b", "b", e) + workloadIn("default", "tcp", "app: tcp", fmt.Sprintf("tcp:9000:%d", tcp)) +
		workloadIn("foo", "ext-authz", "app: ext-authz", fmt.Sprintf("http:8000:%d", httpPort), fmt.Sprintf("grpc:9000:%d", grpcPort))
	policies := ""
	custom := func(app, name, provider, rules string) {
		policies += fmt.Sprintf("---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: %s}\nspec: {selector: {matchLabels: {app: %s}}, action: CUSTOM, provider: {name: %s}, rules: %s}\n", name, app, provider, rules)
	}
	var ports []string
	for i := range servers {
		ports = append(ports, fmt.Sprintf("http-%d:%d:%d", i, 8000+i, newEcho(t, servers[i]).port))
	}
	// One sidecar; a policy's port tells the cases apart.
	workloads += workloadIn("default", "srv", "app: srv", ports[0])
	for i, s := range servers[1:] {
		workloads += workloadIn("default", s, "app: "+s, ports[i+1])
	}
	const headers = `[{to: [{operation: {paths: ["/headers*"]}}]}]`
	custom("srv", "grpc", "sample-ext-authz-grpc", headers)
	custom("http", "http", "sample-ext-authz-http", headers)
	custom("entry", "entry", "local", headers)
	custom("closed", "closed", "away", "[{}]")
	custom("open", "open", "away-open", "[{}]")
	custom("missing", "missing", "no-such-provider", headers)
	custom("body", "body", "with-body", "[{}]")
	custom("two", "two-a", "sample-ext-authz-grpc", headers)
	custom("two", "two-b", "sample-ext-authz-http", `[{to: [{operation: {paths: ["/other"]}}]}]`)
	custom("deny", "deny-custom", "sample-ext-authz-grpc", headers)
	custom("tcp", "tcp", "sample-ext-authz-grpc", "[{}]")
	policies += `---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny}
spec: {selector: {matchLabels: {app: deny}}, action: DENY, rules: [{to: [{operation: {paths: ["/headers/denied"]}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: allow}
spec: {selector: {matchLabels: {app: deny}}, rules: [{to: [{operation: {paths: ["/headers/*"]}}]}]}
`
	m := up(t, writeFiles(t, map[string]string{
		"workloads.yaml": workloads, "policies.yaml": policies,
		"mesh.yaml": `
extensionProviders:
- name: sample-ext-authz-grpc
  envoyExtAuthzGrpc: {service: ext-authz.foo.svc.cluster.local, port: "9000"}
- name: sample-ext-authz-http
  envoyExtAuthzHttp:
    service: foo/ext-authz.foo.svc.cluster.local
    port: "8000"
    includeRequestHeadersInCheck: [x-ext-authz, "x-pass-*"]
    includeAdditionalHeadersInCheck: {x-added: fixed}
    headersToUpstreamOnAllow: [x-user, "x-ext-*"]
    headersToDownstreamOnDeny: [x-why]
    headersToDownstreamOnAllow: [x-why]
    pathPrefix: /check
- name: local
  envoyExtAuthzGrpc: {service: external-authz-grpc.local, port: 9191}
- name: away
  envoyExtAuthzGrpc: {service: external-authz-grpc.local, port: 9192, timeout: 1s, statusOnError: "503"}
- name: away-open
  envoyExtAuthzHttp: {service: external-authz-grpc.local, port: 9192, timeout: 1s, failOpen: true}
- name: with-body
  envoyExtAuthzHttp: {service: ext-authz.foo.svc.cluster.local, port: 8000, includeRequestHeadersInCheck: [x-ext-authz], includeRequestBodyInCheck: {maxRequestBytes: 10, allowPartialMessage: true}}
`,
		"entry.yaml": fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: external-authz-grpc-local}
spec:
  hosts: [external-authz-grpc.local]
  endpoints: [{address: 127.0.0.1, ports: {grpc: %d, away: 1}}]
  ports: [{name: grpc, number: 9191, protocol: GRPC}, {name: away, number: 9192, protocol: GRPC}]
  resolution: STATIC
`, grpcPort),
	}))
	const allow, deny = "x-ext-authz: allow", "x-ext-authz: deny"
	url := func(server, path string) string {
		for i, s := range servers {
			if s == server {
				if i == 0 {
					server = "srv"
				}
				return fmt.Sprintf("http://%s:%d%s", server, 8000+i, path)
			}
		}
		t.Fatalf("no server %s", server)
		return ""
	}
	for _, tc := range []struct {
		name, server, path string
		headers            []string
		want               int
		asked              bool
	}{
		{"gRPC, allowed", "grpc", "/headers", []string{allow}, 200, true},
		{"gRPC, denied", "grpc", "/headers", []string{deny}, 402, true},
		{"gRPC, no rule matches", "grpc", "/ip", []string{deny}, 200, false},
		{"HTTP, allowed", "http", "/headers", []string{allow}, 200, true},
		{"HTTP, denied", "http", "/headers", []string{deny}, 401, true},
		{"HTTP, no rule matches", "http", "/ip", nil, 200, false},
		{"a ServiceEntry, allowed", "entry", "/headers", []string{allow}, 200, true},
		{"a ServiceEntry, denied", "entry", "/headers", nil, 402, true},
		{"away: statusOnError", "closed", "/", []string{allow}, 503, false},
		{"away: failOpen", "open", "/", nil, 200, false},
		{"a provider that does not exist refuses what the rules match", "missing", "/headers", []string{allow}, 403, false},
		{"a provider that does not exist leaves the rest", "missing", "/ip", nil, 200, false},
		{"two providers on one workload refuse what the rules match", "two", "/headers", []string{allow}, 403, false},
		{"CUSTOM comes before DENY", "deny", "/headers/denied", []string{deny}, 402, true},
		{"CUSTOM allows, DENY denies", "deny", "/headers/denied", []string{allow}, 403, true},
		{"CUSTOM allows, ALLOW allows", "deny", "/headers/x", []string{allow}, 200, true},
		{"CUSTOM allows, ALLOW does not", "deny", "/headers", []string{allow}, 403, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := auth.asked.Load()
			got := m.get("a-1", url(tc.server, tc.path), tc.headers...)
			if asked := auth.asked.Load() > before; got.status != tc.want || asked != tc.asked {
				t.Errorf("got %s, want %d; asked %t", got, tc.want, asked)
			}
			if (tc.want != 200) != strings.HasPrefix(got.header.Get("x-writ-denied-by"), "AuthorizationPolicy default/") {
				t.Errorf("denied by %q", got.header.Get("x-writ-denied-by"))
			}
		})
	}
	t.Run("gRPC: what the authorizer sees and says", func(t *testing.T) {
		got := m.get("a-1", url("grpc", "/headers?q=1"), allow)
		if v := got.saw(t).Headers.Get("x-ext-authz-check-result"); v != "allowed" {
			t.Errorf("the program sees %q", v)
		}
		attr := auth.last.Load().GetAttributes()
		if attr.GetSource().GetPrincipal() != "spiffe://cluster.local/ns/default/sa/a" || attr.GetDestination().GetPrincipal() != "spiffe://cluster.local/ns/default/sa/srv" ||
			attr.GetRequest().GetHttp().GetPath() != "/headers?q=1" || attr.GetRequest().GetHttp().GetHost() != "srv:8000" ||
			attr.GetSource().GetAddress().GetSocketAddress().GetAddress() != m.addressOf("a-1") {
			t.Errorf("the authorizer sees %v", attr)
		}
		denied := m.get("a-1", url("grpc", "/headers"), deny)
		if denied.body != "denied by ext_authz" || denied.header.Get("x-ext-authz-check-result") != "denied" {
			t.Errorf("the caller sees %s %v", denied, denied.header)
		}
	})
	t.Run("HTTP: what the authorizer sees and says", func(t *testing.T) {
		got := m.get("a-1", url("http", "/headers?q=1"), allow, "x-pass-1: one", "x-keep: no", "x-user: forged")
		h := got.saw(t).Headers
		if h.Get("x-user") != "alice" || h.Get("x-ext-authz-check-result") != "from-http" || h.Get("x-why") != "" || got.header.Get("x-why") != "because" {
			t.Errorf("the program sees %v, the caller %v", h, got.header)
		}
		r := auth.seen.Load()
		if r.URL.Path != "/check/headers" || r.Method != "GET" || r.Header.Get("x-pass-1") != "one" || r.Header.Get("x-keep") != "" || r.Header.Get("x-added") != "fixed" {
			t.Errorf("the authorizer sees %s %s %v", r.Method, r.URL, r.Header)
		}
		denied := m.get("a-1", url("http", "/headers"), deny)
		if denied.header.Get("x-why") != "because" || denied.header.Get("x-user") != "" {
			t.Errorf("the caller sees %s %v", denied, denied.header)
		}
	})
	t.Run("HTTP: the body, cut off", func(t *testing.T) {
		got := m.from("a-1", request{method: "POST", url: url("body", "/"), headers: []string{allow}, body: "0123456789abcdef"})
		if b := auth.body.Load(); got.status != 200 || *b != "0123456789" || got.saw(t).Body != "0123456789abcdef" {
			t.Errorf("got %s, the authorizer saw %q", got, *b)
		}
	})
	t.Run("TCP", func(t *testing.T) {
		if !m.connect("a-1", "tcp:9000") || m.connect("b-1", "tcp:9000") {
			t.Error("only a may connect")
		}
	})
}

// TestIstioNormalization follows
// https://istio.io/latest/docs/reference/config/security/normalization/: the same
// DENY of /admin under each option of MeshConfig.pathNormalization.
func TestIstioNormalization(t *testing.T) {
	t.Parallel()
	a, srv := newEcho(t, "a"), newEcho(t, "srv")
	m := up(t, writeFiles(t, map[string]string{
		"workloads.yaml": workload("a", "a", a) + workload("srv", "srv", srv),
		"policy.yaml": `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: admin}
spec:
  selector: {matchLabels: {app: srv}}
  action: DENY
  rules:
  - to: [{operation: {paths: ["/x/admin"]}}]
  - when: [{key: "request.headers[X-Dup]", values: ["foo", "foo,bar"]}]
`,
	}))
	for _, h := range []struct {
		name, method, path string
		headers            []string
		want               int
	}{
		{"method not in upper case", "get", "/", nil, 400},
		{"NUL", "GET", "/a%00b", nil, 400},
		{"white space in a header's name", "GET", "/", []string{"x a: b"}, 400},
		{"a header given twice is one", "GET", "/", []string{"X-Dup: foo", "x-dup: bar"}, 403},
		{"a header in any case", "GET", "/", []string{"x-DUP: foo,bar"}, 403},
		{"query", "GET", "/x/admin?v=1", nil, 403},
		{"fragment", "GET", "/x/admin#f", nil, 400},
	} {
		t.Run(h.name, func(t *testing.T) {
			for from, got := range map[string]answer{
				"sidecar": m.rawFrom("a-1", h.method, "http://srv:8000"+h.path, h.headers...),
				"plain":   raw("", h.method, "http://"+m.addressOf("srv-1")+":8000"+h.path, h.headers...),
			} {
				if got.status != h.want {
					t.Errorf("%s: got %s, want %d", from, got, h.want)
				}
			}
		})
	}
	const none, base, merge, decode = 0, 1, 2, 3
	modes := []string{"NONE", "BASE", "MERGE_SLASHES", "DECODE_AND_MERGE_SLASHES"}
	for level, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			write(t, m.dir, "mesh.yaml", "pathNormalization: {normalization: "+mode+"}\n")
			// The option has come when its own spelling is decided, at both ends.
			own := []string{"/x/y/../admin", "/x/y/../admin", "/x//admin", "/x%2fadmin"}[level]
			want := 403
			if level == none {
				want = 200
			}
			waitStatus(t, want, func() answer { return m.rawFrom("a-1", "GET", "http://srv:8000"+own) })
			waitStatus(t, want, func() answer { return raw("", "GET", "http://"+m.addressOf("srv-1")+":8000"+own) })
			for _, p := range []struct {
				path string
				from int // the first option under which it is /x/admin
			}{
				{"/x/admin", none},
				{"/x/./admin", base},
				{"/x/y/../admin", base},
				{"/x/%2e/admin", base},
				{`/x\admin`, base},
				{"/x/%61%64min", base},
				{"/x/%41dmin", 9},
				{"/x//admin", merge},
				{"//x/admin", merge},
				{"/x///admin", merge},
				{"/x%2fadmin", decode},
				{"/x%2Fadmin", decode},
				{"/x%5cadmin", decode},
				{"/x/%252e/admin", 9},
				{"/x/admin/", 9},
				{"/X/admin", 9},
			} {
				want := 200
				if level >= p.from {
					want = 403
				}
				for from, got := range map[string]answer{
					"sidecar": m.rawFrom("a-1", "GET", "http://srv:8000"+p.path), "plain": raw("", "GET", "http://"+m.addressOf("srv-1")+":8000"+p.path),
				} {
					if got.status != want {
						t.Errorf("%s, %s: got %s, want %d", p.path, from, got, want)
					}
				}
			}
		})
	}
}

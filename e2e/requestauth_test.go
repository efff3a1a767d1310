package e2e

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
)

// openEdits is a mesh whose edits have to count on open connections: the sidecar of a keeps
// them open to b.
type openEdits struct {
	*mesh
	load   *load
	closed int
}

func newOpenEdits(t *testing.T, files map[string]string) *openEdits {
	a, b := newEcho(t, "a"), newEcho(t, "b")
	files["workloads.yaml"] = workload("a", "a", a) + workload("b", "b", b)
	e := &openEdits{mesh: up(t, writeFiles(t, files))}
	e.load = startLoad(t, e.proxyOf("a-1"), "http://b:8000/", 100)
	e.answer(200)
	e.closed = e.ends()
	return e
}

// ends are the connections from a to b that b ended or announced to end.
func (e *openEdits) ends() int {
	return e.stat("a-1", "outbound|8000||b.default.svc.cluster.local.upstream_cx_destroy_remote") +
		e.stat("a-1", "outbound|8000||b.default.svc.cluster.local.upstream_cx_close_notify")
}

// answer wants a request with a bad token to be answered so by every one of ten
// that follow an edit as soon as it is live.
func (e *openEdits) answer(want int) {
	e.t.Helper()
	if out, code := e.writ("wait", e.dir); code != 0 {
		e.t.Fatalf("writ wait: %s", out)
	}
	for i := range 10 {
		if got := e.get("a-1", "http://b:8000/", "Authorization: Bearer eyJhbGciOiJub25lIn0.eyJpc3MiOiJ4In0.").status; got != want {
			e.t.Fatalf("request %d with a bad token: %d, want %d", i, got, want)
		}
	}
}

// end wants that no connection was closed for an edit, and that of the load, whose requests
// no edit is about unless it refuses them all, none failed.
func (e *openEdits) end() {
	if n := e.ends() - e.closed; n > 0 {
		e.t.Errorf("%d connections were closed", n)
	}
	if sent, failed, failures := e.load.stop(); failed > 0 || sent == 0 {
		e.t.Errorf("%d of %d requests failed:\n%s", failed, sent, failures)
	}
}

// TestRequestAuthenticationEditReachesOpenConnections: a workload's first
// RequestAuthentication, an edit of it and its end count on open connections as soon as
// they are live, no connection is closed for it, and no request fails.
func TestRequestAuthenticationEditReachesOpenConnections(t *testing.T) {
	t.Parallel()
	e := newOpenEdits(t, map[string]string{})
	for range 3 {
		for i := range 2 {
			write(t, e.dir, "jwt.yaml", fmt.Sprintf(`
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: jwt}
spec:
  selector: {matchLabels: {app: b}}
  jwtRules:
  - issuer: issuer-%d
    jwks: '{"keys":[{"kty":"EC","crv":"P-256","use":"sig","alg":"ES256","kid":"1","x":"-P_o15lSaOzZb9LKCINxXUH6qR7Uh7ok-DCCts2uLPo","y":"EDv4qdA3yKw3PtQFLkzFfUacO3rC37d1hYNwVYZPe1M"}]}'
`, i))
			e.answer(401)
		}
		write(t, e.dir, "jwt.yaml", "# empty\n")
		e.answer(200)
	}
	e.end()
}

// TestCustomEditReachesOpenConnections is the same for policies with the action CUSTOM: the
// first, another provider, and none.
func TestCustomEditReachesOpenConnections(t *testing.T) {
	t.Parallel()
	judge := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			status := http.StatusForbidden
			if r.Header.Get("X-Judge") == "second" {
				status = http.StatusPaymentRequired
			}
			w.WriteHeader(status)
		}
	}))
	t.Cleanup(judge.Close)
	_, port, _ := net.SplitHostPort(judge.Listener.Addr().String())
	e := newOpenEdits(t, map[string]string{
		"mesh.yaml": `
extensionProviders:
- name: first
  envoyExtAuthzHttp: {service: judge.example, port: 80, includeRequestHeadersInCheck: [authorization]}
- name: second
  envoyExtAuthzHttp: {service: judge.example, port: 80, includeRequestHeadersInCheck: [authorization], includeAdditionalHeadersInCheck: {x-judge: second}}
`,
		"judge.yaml": fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: judge}
spec:
  hosts: [judge.example]
  endpoints: [{address: 127.0.0.1, ports: {http: %s}}]
  ports: [{name: http, number: 80, protocol: HTTP}]
  resolution: STATIC
`, port),
	})
	for range 3 {
		for _, p := range []struct {
			provider string
			want     int
		}{{"first", 403}, {"second", 402}} {
			write(t, e.dir, "custom.yaml", fmt.Sprintf(`
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ask}
spec: {selector: {matchLabels: {app: b}}, action: CUSTOM, provider: {name: %s}, rules: [{}]}
`, p.provider))
			e.answer(p.want)
		}
		write(t, e.dir, "custom.yaml", "# empty\n")
		e.answer(200)
	}
	e.end()
}

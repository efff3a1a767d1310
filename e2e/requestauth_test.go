package e2e

import (
	"fmt"
	"testing"
)

// TestRequestAuthenticationEditReachesOpenConnections: the client's sidecar keeps
// connections open; a workload's first RequestAuthentication, an edit of it and its end
// count on them as soon as they are live, no connection is closed for it, and no request
// fails.
func TestRequestAuthenticationEditReachesOpenConnections(t *testing.T) {
	t.Parallel()
	a, b := newEcho(t, "a"), newEcho(t, "b")
	m := up(t, writeFiles(t, map[string]string{"workloads.yaml": workload("a", "a", a) + workload("b", "b", b)}))
	l := startLoad(t, m.proxyOf("a-1"), "http://b:8000/", 100)
	bad := func(want int) {
		t.Helper()
		if out, code := m.writ("wait", m.dir); code != 0 {
			t.Fatalf("writ wait: %s", out)
		}
		for i := range 10 {
			if got := m.get("a-1", "http://b:8000/", "Authorization: Bearer eyJhbGciOiJub25lIn0.eyJpc3MiOiJ4In0.").status; got != want {
				t.Fatalf("request %d with a bad token: %d, want %d", i, got, want)
			}
		}
	}
	bad(200)
	closed := func() int {
		return m.stat("a-1", "outbound|8000||b.default.svc.cluster.local.upstream_cx_destroy_remote") +
			m.stat("a-1", "outbound|8000||b.default.svc.cluster.local.upstream_cx_close_notify")
	}
	before := closed()
	for range 3 {
		for i := range 2 {
			write(t, m.dir, "jwt.yaml", fmt.Sprintf(`
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: jwt}
spec:
  selector: {matchLabels: {app: b}}
  jwtRules:
  - issuer: issuer-%d
    jwks: '{"keys":[{"kty":"EC","crv":"P-256","use":"sig","alg":"ES256","kid":"1","x":"-P_o15lSaOzZb9LKCINxXUH6qR7Uh7ok-DCCts2uLPo","y":"EDv4qdA3yKw3PtQFLkzFfUacO3rC37d1hYNwVYZPe1M"}]}'
`, i))
			bad(401)
		}
		write(t, m.dir, "jwt.yaml", "# empty\n")
		bad(200)
	}
	if n := closed() - before; n > 0 {
		t.Errorf("%d connections were closed", n)
	}
	if sent, failed, failures := l.stop(); failed > 0 || sent == 0 {
		t.Errorf("%d of %d requests failed:\n%s", failed, sent, failures)
	}
}

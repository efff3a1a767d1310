package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/proctest"
)

// TestRequestAuthenticationEditReachesOpenConnections: the client's sidecar
// keeps connections open; an edit counts on them too, and no request fails.
func TestRequestAuthenticationEditReachesOpenConnections(t *testing.T) {
	t.Parallel()
	a, b := newEcho(t, "a"), newEcho(t, "b")
	m := up(t, writeFiles(t, map[string]string{"workloads.yaml": workload("a", "a", a) + workload("b", "b", b)}))
	l := startLoad(t, m.proxyOf("a-1"), "http://b:8000/", 100)
	bad := func() int {
		return m.get("a-1", "http://b:8000/", "Authorization: Bearer eyJhbGciOiJub25lIn0.eyJpc3MiOiJ4In0.").status
	}
	if got := bad(); got != 200 {
		t.Fatalf("without RequestAuthentication: %d", got)
	}
	for i := range 3 {
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
		proctest.Eventually(t, 20*time.Second, func() error {
			if got := bad(); got != 401 {
				return fmt.Errorf("with RequestAuthentication %d: %d", i, got)
			}
			return nil
		})
		write(t, m.dir, "jwt.yaml", "# empty\n")
		proctest.Eventually(t, 20*time.Second, func() error {
			if got := bad(); got != 200 {
				return fmt.Errorf("without RequestAuthentication %d: %d", i, got)
			}
			return nil
		})
	}
	if sent, failed, failures := l.stop(); failed > 0 || sent == 0 {
		t.Errorf("%d of %d requests failed:\n%s", failed, sent, failures)
	}
}

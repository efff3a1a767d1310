package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/proctest"
)

// TestRevokedToken: a token that is good is refused soon (well below a second, see the
// test's log) after the command that revokes it, while requests with another token go on without a failure; it
// stays refused when each service that has to do with it is started anew, also where
// there are too many revocations for proxies to be told; and is good again when the
// revocation is taken back.
func TestRevokedToken(t *testing.T) {
	t.Parallel()
	a, b := newEcho(t, "a"), newEcho(t, "b")
	s := newSigner(t, "k1")
	m := up(t, writeFiles(t, map[string]string{
		"workloads.yaml": workload("a", "a", a) + workload("b", "b", b),
		"jwt.yaml": fmt.Sprintf("apiVersion: security.istio.io/v1\nkind: RequestAuthentication\n"+
			"metadata: {name: r, annotations: {policy.writ.mesh/require: any}}\nspec: {selector: {matchLabels: {app: b}}, jwtRules: [{issuer: i, jwks: '%s', forwardOriginalToken: true}]}\n", s.jwks()),
	}))
	leaked, other := s.token("i", map[string]any{"jti": "1"}), s.token("i", map[string]any{"jti": "2"})
	get := func(token string) answer { return m.get("a-1", "http://b:8000/", bearer(token)) }
	expect := func(when, token string, status int, deniedBy string) {
		t.Helper()
		if got := get(token); got.status != status || got.header.Get("x-writ-denied-by") != deniedBy {
			t.Errorf("%s: %s", when, got)
		}
	}
	expect("before", leaked, 200, "")
	if got := m.get("a-1", "http://b:8000/"); got.status != 401 {
		t.Errorf("no token, where one is required: %s", got)
	}
	load := startLoad(t, m.proxyOf("a-1"), "http://b:8000/", 50, bearer(other))
	command := func(args ...string) string {
		t.Helper()
		out, code := m.writ(args...)
		if code != 0 {
			t.Fatalf("writ %v: %d\n%s", args, code, out)
		}
		return out
	}
	refusedSoon := func(when string) {
		t.Helper()
		since := time.Now()
		proctest.Eventually(t, 20*time.Second, func() error {
			if got := get(leaked); got.status != 403 || got.header.Get("x-writ-denied-by") != "TokenRevocation jti" {
				return fmt.Errorf("%s: %s", when, got)
			}
			return nil
		})
		t.Logf("%s: refused after %s", when, time.Since(since).Round(time.Millisecond))
	}
	command("revoke", "jwt", "--issuer", "i", "--jti", "1", "--until", "1h", m.dir)
	refusedSoon("revoked")
	write(t, m.dir, "leaked.jwt", leaked)
	if out, code := m.writ("explain", "--live", "--from", "a", "--to", "b:8000", "--jwt", m.dir+"/leaked.jwt", m.dir); code != 1 || !strings.Contains(out, "by TokenRevocation jti") {
		t.Errorf("explain: %d %s", code, out)
	}
	if out := command("revoke", "ls", m.dir); !strings.Contains(out, "jti 1") {
		t.Errorf("writ revoke ls: %s", out)
	}
	m.restart(t, "pilot")
	expect("after a start of pilot", leaked, 403, "TokenRevocation jti")
	if sent, failed, failures := load.stop(); failed > 0 || sent == 0 {
		t.Errorf("%d of %d requests with another token failed:\n%s", failed, sent, failures)
	}

	// More than proxies are told: they ask authz.
	var ids strings.Builder
	for i := range 1001 {
		fmt.Fprintf(&ids, "many-%d\n", i)
	}
	write(t, m.dir, "ids.txt", ids.String())
	if out := command("revoke", "jwt", "--issuer", "i", "--jti-file", m.dir+"/ids.txt", m.dir); !strings.Contains(out, "ask authz") {
		t.Errorf("writ revoke jwt: %s", out)
	}
	refusedSoon("asked of authz")
	proctest.Eventually(t, 20*time.Second, func() error {
		if got := m.metric("authz", "writ_authz_revoked_tokens"); got != 1002 {
			return fmt.Errorf("authz knows %v", got)
		}
		return nil
	})
	expect("another token, asked of authz", other, 200, "")
	m.restart(t, "authz")
	proctest.Eventually(t, 20*time.Second, func() error {
		// Closed until the list is there; the leaked token is never let in.
		if got := get(leaked); got.status != 403 {
			t.Fatalf("after a start of authz: %s", got)
		}
		if got := get(other); got.status != 200 {
			return fmt.Errorf("another token after a start of authz: %s", got)
		}
		return nil
	})
	refusedSoon("after a start of authz")
	command("revoke", "undo", "--issuer", "i", "--jti-file", m.dir+"/ids.txt", m.dir)
	refusedSoon("told again")
	command("revoke", "undo", "--issuer", "i", "--jti", "1", m.dir)
	proctest.Eventually(t, 20*time.Second, func() error {
		if got := get(leaked); got.status != 200 {
			return fmt.Errorf("taken back: %s", got)
		}
		return nil
	})
}

// restart kills a service and waits until its successor is ready.
func (m *mesh) restart(t *testing.T, service string) {
	t.Helper()
	was := m.pidOf("writ-" + service)
	m.kill("writ-" + service)
	proctest.Eventually(t, 20*time.Second, func() error {
		if m.pidOf("writ-"+service) == was {
			return fmt.Errorf("%s is not back", service)
		}
		return m.readyz(service)
	})
}

package pilot

import (
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/writ-mesh/writ/internal/envoytest"
	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/pilot/revision"
)

// TestTokensAndRulesSwitchTogether edits which tokens are taken and what rules make of
// them in one go, to and fro, while requests flow: each request gets what one of the two
// configurations says, and never what the authentication of one and the rules of the
// other come to, in either order.
func TestTokensAndRulesSwitchTogether(t *testing.T) {
	t.Parallel()
	for i, bin := range envoytest.All(t) {
		t.Run(filepath.Base(filepath.Dir(filepath.Dir(bin))), func(t *testing.T) {
			t.Parallel()
			switchTogether(t, bin, []string{"DELTA_GRPC", "GRPC"}[i%2], i)
		})
	}
}

// tokensAndRules are what two configurations say. The first takes tokens of a and c,
// and lets only their admins pass; the second takes those of b and c, and lets all of
// them pass.
func tokensAndRules(t *testing.T, key tokenKey) (configurations [2]string) {
	t.Helper()
	for i, c := range []struct {
		issuer, principals string
	}{{"a", `"https://a/admin", "https://c/admin"`}, {"b", `"*"`}} {
		configurations[i] = fmt.Sprintf(`apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: users, namespace: istio-system}
spec:
  jwtRules:
  - {issuer: "https://%s", jwks: '%s'}
  - {issuer: "https://c", jwks: '%s'}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: users, namespace: istio-system}
spec: {rules: [{from: [{source: {requestPrincipals: [%s]}}]}]}
`, c.issuer, key.jwks(t), key.jwks(t), c.principals)
	}
	return configurations
}

func switchTogether(t *testing.T, bin, api string, n int) {
	key := newTokenKey(t, "k")
	port := proctest.Port(t)
	configurations := tokensAndRules(t, key)
	r := start(t, map[string]string{
		"one.yaml": entry("one", backend(t, "one")),
		"gateway.yaml": fmt.Sprintf(`apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: gw, namespace: istio-system}
spec:
  selector: {app: client}
  servers: [{port: {number: %d, name: http, protocol: HTTP}, hosts: ["*"]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: one, namespace: default}
spec:
  hosts: ["*"]
  gateways: [istio-system/gw]
  http: [{route: [{destination: {host: one.example}}]}]
`, port),
		"tokens.yaml": configurations[0],
	})
	address := fmt.Sprintf("127.9.79.%d", n+1)
	runEnvoy(t, bin, r.addr, "router~"+address+"~gw.istio-system~istio-system.svc.cluster.local", "NONE", api)
	caller := func(issuer, subject string) func() (int, error) {
		token := jwt.NewWithClaims(jwt.SigningMethodES256, jwt.MapClaims{"iss": "https://" + issuer, "sub": subject, "exp": time.Now().Add(time.Hour).Unix()})
		token.Header["kid"] = key.kid
		text, err := token.SignedString(key.key)
		if err != nil {
			t.Fatal(err)
		}
		client := &http.Client{Transport: &http.Transport{MaxConnsPerHost: 1}, Timeout: bound}
		t.Cleanup(client.CloseIdleConnections)
		return func() (int, error) {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("http://%s:%d/", address, port), nil)
			if err != nil {
				return 0, err
			}
			req.Header.Set("Authorization", "Bearer "+text)
			resp, err := client.Do(req)
			if err != nil {
				return 0, err
			}
			_, err = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			return resp.StatusCode, err
		}
	}
	// Whom nobody lets pass meets 403 in one configuration and 401 in the other.
	nobody, always, onlySecond := caller("a", "joe"), caller("c", "admin"), caller("b", "joe")
	proctest.Until(t, bound, "the first answer", func() bool { code, err := always(); return err == nil && code == http.StatusOK })
	proctest.Until(t, bound, "the first revision is live", func() bool { _, s := r.serving(); return s == revision.Live })

	stop := make(chan struct{})
	var wg sync.WaitGroup
	var requests atomic.Int64
	flow := func(what string, ask func() (int, error), want func(int) bool) {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				code, err := ask()
				if requests.Add(1); err != nil || !want(code) {
					t.Errorf("%s: %d %v", what, code, err)
					return
				}
			}
		})
	}
	flow("a token that neither configuration lets pass", nobody, func(code int) bool { return code == http.StatusForbidden || code == http.StatusUnauthorized })
	flow("a token that both let pass", always, func(code int) bool { return code == http.StatusOK })
	const edits = 10
	for i := 1; i <= edits; i++ {
		r.write(t, "tokens.yaml", configurations[i%2])
		want := []int{http.StatusUnauthorized, http.StatusOK}[i%2]
		proctest.Until(t, bound, "the edit counts", func() bool { code, err := onlySecond(); return err == nil && code == want })
	}
	close(stop)
	wg.Wait()
	t.Logf("%d requests during %d edits", requests.Load(), edits)
}

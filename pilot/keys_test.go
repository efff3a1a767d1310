package pilot

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/writ-mesh/writ/internal/envoytest"
	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/pilot/model"
	pilotpb "github.com/writ-mesh/writ/proto/writ/pilot/v1"
)

const keyIssuer = "https://issuer.example"

// tokenKey signs tokens.
type tokenKey struct {
	kid string
	key *ecdsa.PrivateKey
}

func newTokenKey(t *testing.T, kid string) tokenKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return tokenKey{kid, key}
}

func (k tokenKey) jwks(t *testing.T) string {
	t.Helper()
	point, err := k.key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	return fmt.Sprintf(`{"keys":[{"kty":"EC","crv":"P-256","kid":%q,"x":%q,"y":%q}]}`, k.kid, b64(point[1:33]), b64(point[33:]))
}

func (k tokenKey) token(t *testing.T) string {
	t.Helper()
	token := jwt.NewWithClaims(jwt.SigningMethodES256, jwt.MapClaims{"iss": keyIssuer, "sub": "alice", "exp": time.Now().Add(time.Hour).Unix()})
	token.Header["kid"] = k.kid
	text, err := token.SignedString(k.key)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// keyServer answers with a text, and with 503 if that is empty.
func keyServer(t *testing.T, first string) (server *httptest.Server, says func(string)) {
	t.Helper()
	body := new(atomic.Value)
	body.Store(first)
	server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		text := body.Load().(string)
		w.Header().Set("Cache-Control", "max-age=600") // nobody looks again in this test unless he is asked to
		if text == "" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_, _ = io.WriteString(w, text)
	}))
	t.Cleanup(server.Close)
	return server, func(text string) { body.Store(text) }
}

// TestKeySetLive has real Envoys verify tokens by keys that pilot fetches: they change
// without a connection lost, and are there when their server is not.
func TestKeySetLive(t *testing.T) {
	t.Parallel()
	for i, bin := range envoytest.All(t) {
		t.Run(filepath.Base(filepath.Dir(filepath.Dir(bin))), func(t *testing.T) {
			followKeys(t, bin, []string{"DELTA_GRPC", "GRPC"}[i%2], i)
		})
	}
}

func followKeys(t *testing.T, bin, api string, n int) {
	a, b := newTokenKey(t, "a"), newTokenKey(t, "b")
	server, says := keyServer(t, a.jwks(t))
	port := proctest.Port(t)
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
		"tokens.yaml": fmt.Sprintf(`apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: users, namespace: istio-system, annotations: {policy.writ.mesh/require: any}}
spec: {jwtRules: [{issuer: %q, jwksUri: %q}]}
`, keyIssuer, server.URL+"/jwks"),
	})
	gateway := func(n int) (id, address string) {
		address = fmt.Sprintf("127.9.78.%d", n)
		return "router~" + address + "~gw.istio-system~istio-system.svc.cluster.local", address
	}
	id, address := gateway(2*n + 1)
	runEnvoy(t, bin, r.addr, id, "NONE", api)
	ask := asker(t, fmt.Sprintf("http://%s:%d/", address, port))
	proctest.Eventually(t, bound, func() error { return ask(a, 200) })
	if err := errors.Join(ask(b, 401), ask(a, 200)); err != nil {
		t.Error(err)
	}
	says(b.jwks(t))
	if _, err := (&keySetsService{pilot: r.Pilot}).ReportUnknownKeys(t.Context(), &pilotpb.ReportUnknownKeysRequest{At: []*pilotpb.UnknownKeys{{Proxy: id}}}); err != nil {
		t.Fatal(err)
	}
	proctest.Eventually(t, bound, func() error { return ask(b, 200) })
	// A key that was withdrawn verifies nothing, not what it has verified before either.
	if err := ask(a, 401); err != nil {
		t.Error(err)
	}
	for what, told := range map[string]string{"": "status 503", `{"keys":[{"kty":"oct","kid":"a","alg":"HS256","k":"c2VjcmV0"}]}`: "no key by which", "<html>": "a page"} {
		says(what)
		r.keySets.Refetch([]string{server.URL + "/jwks"})
		proctest.Until(t, bound, "the status says so", func() bool {
			st, _ := r.status()
			return len(st.GetKeySets()) == 1 && strings.Contains(st.GetKeySets()[0].GetError(), told) && st.GetKeySets()[0].GetKeys() == 1
		})
		if err := errors.Join(ask(b, 200), ask(a, 401)); err != nil {
			t.Errorf("while the server answers %q: %v", what, err)
		}
	}
	server.Close()
	second, address := gateway(2*n + 2)
	runEnvoy(t, bin, r.addr, second, "NONE", api)
	started := asker(t, fmt.Sprintf("http://%s:%d/", address, port))
	proctest.Eventually(t, bound, func() error { return started(b, 200) })
	if err := errors.Join(started(a, 401), ask(b, 200)); err != nil {
		t.Errorf("without a key server: %v", err)
	}
}

// asker sends requests with a token, all over one connection from the first answer on,
// and says if the answer is another one than expected.
func asker(t *testing.T, url string) func(k tokenKey, want int) error {
	transport := &http.Transport{MaxConnsPerHost: 1}
	t.Cleanup(transport.CloseIdleConnections)
	answered := false
	return func(k tokenKey, want int) error {
		reused := false
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { reused = i.Reused }})
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		req.Header.Set("Authorization", "Bearer "+k.token(t))
		resp, err := transport.RoundTrip(req)
		if err != nil {
			return err
		}
		body, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if answered && !reused {
			t.Error("the connection was lost")
		}
		answered = answered || resp.StatusCode < 500
		if resp.StatusCode != want {
			return fmt.Errorf("a token of key %s: %d %s, want %d", k.kid, resp.StatusCode, body, want)
		}
		return nil
	}
}

// TestKeysOutliveARestart: what was good last is in force before the first look.
func TestKeysOutliveARestart(t *testing.T) {
	state, key := t.TempDir(), newTokenKey(t, "a")
	server, _ := keyServer(t, key.jwks(t))
	files := map[string]string{"tokens.yaml": fmt.Sprintf("apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: a}\nspec: {jwtRules: [{issuer: x, jwksUri: %q}]}\n", server.URL)}
	inForce := func(f *fixture) string {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.keys[server.URL]
	}
	f := newFixture(t, state, files)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.keySets.Run(ctx) }()
	proctest.Until(t, bound, "the keys are in force", func() bool { return inForce(f) != "" })
	keys := inForce(f)
	stop()
	<-done
	f.stop()
	server.Close()
	if entries, err := os.ReadDir(filepath.Join(state, keysFolder)); err != nil || len(entries) != 1 {
		t.Errorf("on disk: %v %v", entries, err)
	}
	f = newFixture(t, state, files)
	proctest.Until(t, bound, "the keys are in force", func() bool { return inForce(f) == keys })
	if other := (besides{revoked: &model.Revoked{}, keys: map[string]string{"a": "b"}}); other.same(besides{revoked: &model.Revoked{}}) {
		t.Error("keys are nothing new")
	}
}

// TestKeyPlaces: from where pilot gets keys, for whom, and whose keys a proxy has.
func TestKeyPlaces(t *testing.T) {
	external := strings.Replace(entry("sso", "8080"), "number: 80, name: http, protocol: HTTP", "number: 443, name: http, protocol: TLS", 1)
	source := newMemory(map[string]string{
		"sso.yaml":     external + "---\n" + strings.Replace(entry("static", "8080"), "  endpoints: [{address: 127.0.0.1, ports: {http: 8080}}]\n", "", 1),
		"service.yaml": "apiVersion: v1\nkind: Service\nmetadata: {name: keys, namespace: default}\nspec: {selector: {app: keys}, ports: [{name: http, port: 80}]}\n",
		"tokens.yaml": `apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: a}
spec:
  jwtRules:
  - {issuer: "https://one", jwksUri: "https://sso.example/jwks", timeout: 2s}
  - {issuer: "https://two", jwksUri: "https://sso.example/jwks", timeout: 3s}
  - {issuer: "https://issuer.example/"}
  - {issuer: "testing@issuer.example"}
  - {issuer: "https://three", jwksUri: "http://keys/jwks"}
  - {issuer: "https://four", jwks: '{"keys":[]}'}
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: b, namespace: elsewhere}
spec: {jwtRules: [{issuer: "https://one", jwksUri: "https://sso.example/jwks"}]}
---
# What one author writes is nowhere another one's place, whatever he writes.
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: c, namespace: another}
spec:
  jwtRules:
  - {issuer: "https://nobody", jwksUri: "https://issuer.example/.well-known/openid-configuration"}
  - {issuer: "https://nobody", jwksUri: "https://sso.example/jwks by default/sso.example"}
`,
	})
	mesh, _, problems := source.Read()
	if mesh == nil {
		t.Fatalf("%v", problems)
	}
	places, tooMany := keyPlaces(mesh)
	if len(tooMany) > 0 {
		t.Errorf("problems: %v", tooMany)
	}
	var got []string
	for _, p := range places {
		got = append(got, fmt.Sprint(p.Key(), " ", p.Discovery, " ", p.Addresses, " ", p.Issuers, " ", p.Timeout))
	}
	want := []string{
		"https://issuer.example/.well-known/openid-configuration false [] [https://nobody] 0s",
		"https://issuer.example/.well-known/openid-configuration (discovery) true [] [https://issuer.example/] 0s",
		"https://sso.example/jwks false [] [https://one] 0s",
		"https://sso.example/jwks by default/sso.example false [127.0.0.1:8080] [https://one https://two] 3s",
		"https://sso.example/jwks%20by%20default/sso.example false [] [https://nobody] 0s",
	}
	if !slices.Equal(got, want) {
		t.Errorf("places:\n%s\nwant:\n%s\n%v", strings.Join(got, "\n"), strings.Join(want, "\n"), problems)
	}
	proxy := &model.Proxy{ID: "sidecar~127.0.0.2~x-1.elsewhere~x", Namespace: "elsewhere", ServiceAccount: "x"}
	mesh.Proxies = []*model.Proxy{proxy}
	for _, c := range []struct {
		report *pilotpb.UnknownKeys
		want   int
	}{
		{&pilotpb.UnknownKeys{Proxy: proxy.ID}, 1},
		{&pilotpb.UnknownKeys{Identity: "spiffe://cluster.local/ns/elsewhere/sa/x"}, 1},
		{&pilotpb.UnknownKeys{Identity: "spiffe://cluster.local/ns/elsewhere/sa/y", Proxy: proxy.ID}, 0},
		{&pilotpb.UnknownKeys{Identity: "nonsense"}, 0},
		{&pilotpb.UnknownKeys{Proxy: "sidecar~127.0.0.2~y-1.default~x"}, 3},
		{&pilotpb.UnknownKeys{Proxy: "nonsense"}, 0},
		{&pilotpb.UnknownKeys{}, 0},
	} {
		if keys := keysAt(mesh, map[string]*model.Proxy{proxy.ID: proxy}, []*pilotpb.UnknownKeys{c.report}); len(keys) != c.want {
			t.Errorf("%v: %q, want %d", c.report, keys, c.want)
		}
	}
}

// TestTooManyKeyPlaces: an author cannot have pilot ask without end, keeps nobody else's
// keys away, and is told.
func TestTooManyKeyPlaces(t *testing.T) {
	rules := func(namespace string, n int) string {
		text := fmt.Sprintf("---\napiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: a, namespace: %s}\nspec:\n  jwtRules:\n", namespace)
		for i := range n {
			text += fmt.Sprintf("  - {issuer: x, jwksUri: \"https://%s.example/%d\"}\n", namespace, i)
		}
		return text
	}
	f := newFixture(t, "", map[string]string{"tokens.yaml": rules("evil", maxKeyPlaces+7) + rules("good", maxKeyPlaces) + rules("istio-system", maxKeyPlaces+1)})
	proctest.Until(t, bound, "the status says so", func() bool {
		st, _ := f.status()
		by := map[string]int{}
		for _, k := range st.GetKeySets() {
			by[strings.Split(k.GetUri(), "/")[2]]++
		}
		var told []string
		for _, p := range st.GetProblems() {
			if strings.Contains(p.GetMessage(), "places of keys") {
				told = append(told, p.GetObject())
			}
		}
		return by["evil.example"] == maxKeyPlaces && by["good.example"] == maxKeyPlaces && by["istio-system.example"] == maxKeyPlaces+1 &&
			len(told) == 1 && strings.Contains(told[0], "evil/a")
	})
}

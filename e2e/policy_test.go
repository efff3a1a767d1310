package e2e

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/writ-mesh/writ/internal/proctest"
)

func b64(n *big.Int) string { return base64.RawURLEncoding.EncodeToString(n.Bytes()) }

func TestTokens(t *testing.T) {
	t.Parallel()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	jwks := fmt.Sprintf(`{"keys":[{"kty":"RSA","alg":"RS256","use":"sig","kid":"k1","n":"%s","e":"%s"}]}`, b64(key.N), b64(big.NewInt(int64(key.E))))
	keyServer := newEcho(t, "keys")
	serve := func(keys string) {
		keyServer.answerWith(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Cache-Control", "max-age=3600") // who looks again does so for an unknown key
			_, _ = w.Write([]byte(keys))
		})
	}
	serve(jwks)
	sign := func(method jwt.SigningMethod, k crypto.PrivateKey, change func(jwt.MapClaims)) string {
		c := jwt.MapClaims{"iss": "https://issuer.example", "sub": "alice", "aud": "shop", "exp": time.Now().Add(time.Hour).Unix(), "groups": []string{"staff", "buyers"}}
		if change != nil {
			change(c)
		}
		token := jwt.NewWithClaims(method, c)
		token.Header["kid"] = "k1"
		s, err := token.SignedString(k)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	public := x509.MarshalPKCS1PublicKey(&key.PublicKey)
	publicPEM := pem.EncodeToMemory(&pem.Block{Type: "RSA PUBLIC KEY", Bytes: public})
	good := sign(jwt.SigningMethodRS256, key, nil)

	a, b, c := newEcho(t, "a"), newEcho(t, "b"), newEcho(t, "c")
	m := up(t, writeFiles(t, map[string]string{
		"workloads.yaml": workload("a", "a", a) + workload("b", "b", b) + workload("c", "c", c),
		"jwt.yaml": fmt.Sprintf(`
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: inline}
spec:
  selector: {matchLabels: {app: b}}
  jwtRules:
  - {issuer: "https://issuer.example", audiences: [shop], jwks: '%s'}
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: fetched}
spec:
  selector: {matchLabels: {app: c}}
  jwtRules:
  - {issuer: "https://issuer.example", audiences: [shop], jwksUri: "http://127.0.0.1:%d/keys"}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: need-token}
spec:
  action: DENY
  selector: {matchLabels: {app: b}}
  rules:
  - from: [{source: {notRequestPrincipals: ["https://issuer.example/alice"]}}]
    to: [{operation: {paths: ["/private*"]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: staff-only}
spec:
  action: DENY
  selector: {matchLabels: {app: b}}
  rules:
  - to: [{operation: {paths: ["/staff"]}}]
    when: [{key: "request.auth.claims[groups]", notValues: [staff]}]
`, jwks, keyServer.port),
	}))
	for _, tc := range []struct {
		name, path, token string
		want              int
	}{
		{"no token passes where none is asked for", "/public", "", 200},
		{"no token where one is", "/private", "", 403},
		{"good", "/private", good, 200},
		{"good, claim of a list", "/staff", good, 200},
		{"good, claim missing", "/staff", sign(jwt.SigningMethodRS256, key, func(c jwt.MapClaims) { c["groups"] = []string{"buyers"} }), 403},
		{"somebody else", "/private", sign(jwt.SigningMethodRS256, key, func(c jwt.MapClaims) { c["sub"] = "mallory" }), 403},
		{"expired", "/public", sign(jwt.SigningMethodRS256, key, func(c jwt.MapClaims) { c["exp"] = time.Now().Add(-time.Hour).Unix() }), 401},
		{"not yet valid", "/public", sign(jwt.SigningMethodRS256, key, func(c jwt.MapClaims) { c["nbf"] = time.Now().Add(time.Hour).Unix() }), 401},
		{"wrong issuer", "/public", sign(jwt.SigningMethodRS256, key, func(c jwt.MapClaims) { c["iss"] = "https://evil.example" }), 401},
		{"wrong audience", "/public", sign(jwt.SigningMethodRS256, key, func(c jwt.MapClaims) { c["aud"] = "bank" }), 403},
		{"alg none", "/public", sign(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, nil), 401},
		{"HS256 with the public key", "/public", sign(jwt.SigningMethodHS256, publicPEM, nil), 401},
		{"another key", "/public", sign(jwt.SigningMethodES256, other, nil), 401},
		{"no token at all", "/public", "nonsense", 401},
		{"signature cut off", "/public", good[:strings.LastIndexByte(good, '.')+1], 401},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, service := range []string{"b", "c"} {
				if service == "c" && tc.want == 403 && tc.name != "wrong audience" {
					continue // c has no AuthorizationPolicy
				}
				var headers []string
				if tc.token != "" {
					headers = []string{"Authorization: Bearer " + tc.token}
				}
				if got := m.get("a-1", "http://"+service+":8000"+tc.path, headers...); got.status != tc.want {
					t.Errorf("%s: got %s, want %d", service, got, tc.want)
				}
			}
		})
	}
	if got := m.get("a-1", "http://b:8000/private"); !strings.HasPrefix(got.header.Get("x-writ-denied-by"), "AuthorizationPolicy default/need-token") {
		t.Errorf("denied by %q", got.header.Get("x-writ-denied-by"))
	}
	// The issuer takes another key: an Envoy meets it, authz hears of that, and pilot looks.
	next, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	serve(strings.Replace(strings.Replace(jwks, b64(key.N), b64(next.N), 1), `"k1"`, `"k2"`, 1))
	token := jwt.NewWithClaims(jwt.SigningMethodRS256, jwt.MapClaims{"iss": "https://issuer.example", "aud": "shop", "exp": time.Now().Add(time.Hour).Unix()})
	token.Header["kid"] = "k2"
	rotated, err := token.SignedString(next)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	proctest.Eventually(t, 20*time.Second, func() error {
		if got := m.get("a-1", "http://c:8000/", "Authorization: Bearer "+rotated); got.status != 200 {
			return fmt.Errorf("a token by a new key: %s", got)
		}
		return nil
	})
	t.Logf("a new key counts after %s", time.Since(began).Round(time.Millisecond))
	if got := m.get("a-1", "http://c:8000/", "Authorization: Bearer "+good); got.status != 401 {
		t.Errorf("a token by a key that was withdrawn: %s", got)
	}
}

// TestRefusalsNameTheRule: RBAC, Rego and quota each refuse one caller and let
// another pass, and say who refused: inside the mesh in a header, at a gateway
// only when asked, always in the access log.
func TestRefusalsNameTheRule(t *testing.T) {
	t.Parallel()
	a, b, c := newEcho(t, "a"), newEcho(t, "b"), newEcho(t, "c")
	dir := writeFiles(t, map[string]string{
		"workloads.yaml": workload("a", "a", a) + workload("b", "b", b) + workload("c", "c", c),
		"policies.yaml": `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-a}
spec:
  selector: {matchLabels: {app: c}}
  rules:
  - from: [{source: {principals: ["cluster.local/ns/default/sa/a", "cluster.local/ns/istio-system/sa/door"]}}]
  - to: [{operation: {paths: ["/rego*", "/quota*"]}}]
---
apiVersion: policy.writ.mesh/v1alpha1
kind: RegoPolicy
metadata: {name: no-b}
spec:
  selector: {matchLabels: {app: c}}
  module: |
    package shop
    default allow := false
    allow if not startswith(input.attributes.request.http.path, "/rego")
    allow if endswith(input.attributes.source.principal, "/sa/a")
  query: data.shop.allow
---
apiVersion: policy.writ.mesh/v1alpha1
kind: QuotaPolicy
metadata: {name: per-caller}
spec:
  selector: {matchLabels: {app: c}}
  limits:
  - per: [source.principal, request.path]
    requests: 5
    every: 1h
` + doorGateway(proctest.Port(t), "gateway: door") + doorTo("c"),
	})
	m := up(t, dir)
	check := func(from, path string, status int, rule string) {
		t.Helper()
		got := m.get(from, "http://c:8000"+path)
		if got.status != status || !strings.HasPrefix(got.header.Get("x-writ-denied-by"), rule) || (rule == "") != (got.header.Get("x-writ-denied-by") == "") {
			t.Errorf("%s %s: got %s, want %d by %q", from, path, got, status, rule)
		}
	}
	check("a-1", "/rbac", 200, "")
	check("b-1", "/rbac", 403, "AuthorizationPolicy default/only-a")
	check("a-1", "/rego", 200, "")
	check("b-1", "/rego", 403, "RegoPolicy default/no-b")
	for range 5 {
		check("b-1", "/quota", 200, "")
	}
	check("b-1", "/quota", 429, "QuotaPolicy default/per-caller")
	check("a-1", "/quota", 200, "")
	limited := m.get("b-1", "http://c:8000/quota")
	if limited.header.Get("retry-after") == "" || !strings.HasPrefix(limited.header.Get("x-ratelimit-limit"), "5") || limited.header.Get("x-ratelimit-remaining") != "0" {
		t.Errorf("the headers of a 429: %v", limited.header)
	}

	door := m.gateway("door")
	for range 5 {
		if got := do(client(""), request{url: door + "/door"}); got.status != 200 {
			t.Fatalf("through the gateway: %s", got)
		}
	}
	got := do(client(""), request{url: door + "/door"})
	if got.status != 429 || got.header.Get("x-writ-denied-by") != "" {
		t.Errorf("at the gateway: %s, header %q", got, got.header.Get("x-writ-denied-by"))
	}
	proctest.Eventually(t, 20*time.Second, func() error {
		log := m.accessLog("c-1")
		for _, rule := range []string{"AuthorizationPolicy default/only-a", "RegoPolicy default/no-b", "QuotaPolicy default/per-caller"} {
			if !strings.Contains(log, rule) {
				return fmt.Errorf("%q is not in the access log of c-1", rule)
			}
		}
		return nil
	})
}

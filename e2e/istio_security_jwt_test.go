package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/writ-mesh/writ/internal/proctest"
)

// signer is an issuer of tokens with one ES256 key.
type signer struct {
	t   *testing.T
	key *ecdsa.PrivateKey
	kid string
}

func newSigner(t *testing.T, kid string) *signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &signer{t, key, kid}
}

// jwks is the public key as a JSON Web Key Set.
func (s *signer) jwks() string {
	raw, err := s.key.PublicKey.Bytes()
	if err != nil {
		s.t.Fatal(err)
	}
	x, y := raw[1:33], raw[33:]
	return fmt.Sprintf(`{"keys":[{"kty":"EC","crv":"P-256","alg":"ES256","use":"sig","kid":%q,"x":%q,"y":%q}]}`,
		s.kid, base64.RawURLEncoding.EncodeToString(x), base64.RawURLEncoding.EncodeToString(y))
}

// token signs claims; iss, sub and exp are filled in unless given.
func (s *signer) token(issuer string, more map[string]any) string {
	s.t.Helper()
	claims := jwt.MapClaims{"iss": issuer, "sub": "alice", "exp": time.Now().Add(time.Hour).Unix()}
	maps.Copy(claims, more)
	token := jwt.NewWithClaims(jwt.SigningMethodES256, claims)
	token.Header["kid"] = s.kid
	out, err := token.SignedString(s.key)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

func bearer(token string) string { return "Authorization: Bearer " + token }

// keyServer serves a key set that may change; address "" is any.
func keyServer(t *testing.T, address string, keys *atomic.Pointer[string]) string {
	t.Helper()
	if address == "" {
		address = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	srv := &httptest.Server{Listener: l, Config: &http.Server{ReadHeaderTimeout: patience, Protocols: protocols(), Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(*keys.Load()))
	})}}
	srv.Start()
	t.Cleanup(srv.Close)
	return l.Addr().String()
}

// TestIstioRequestAuthentication follows
// https://istio.io/latest/docs/reference/config/security/jwt/ and request_authentication/,
// and the tasks about JWT: tokens from every place, several issuers, claims in
// headers, in rules and in routes.
func TestIstioRequestAuthentication(t *testing.T) {
	t.Parallel()
	s := newSigner(t, "k1")
	var meshKeys, lateKeys atomic.Pointer[string]
	keys := s.jwks()
	meshKeys.Store(&keys)
	lateKeys.Store(&keys)
	_, meshPort, _ := net.SplitHostPort(keyServer(t, "", &meshKeys))
	late := proctest.Address(t)
	a, b, c := newEcho(t, "a"), newEcho(t, "b"), newEcho(t, "c")
	const ra = "---\napiVersion: security.istio.io/v1\nkind: RequestAuthentication\n"
	const ap = "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n"
	inline := func(issuer, more string) string {
		return fmt.Sprintf("  - {issuer: %s, jwks: '%s'%s}\n", issuer, keys, more)
	}
	m := up(t, writeFiles(t, map[string]string{
		"workloads.yaml": workload("a", "a", a) + workload("b", "b", b) + workload("c", "c", c) +
			workloadIn("default", "keys", "app: keys", "http:8000:"+meshPort),
		"jwt.yaml": ra + "metadata: {name: many}\nspec:\n  selector: {matchLabels: {app: b}}\n  jwtRules:\n" +
			inline("plain", "") +
			inline("header", `, fromHeaders: [{name: x-jwt, prefix: "Tok "}, {name: x-jwt-two}]`) +
			inline("param", ", fromParams: [jwt]") +
			inline("cookie", ", fromCookies: [jar]") +
			inline("audience", ", audiences: [shop, bank]") +
			inline("forward", ", forwardOriginalToken: true, outputPayloadToHeader: x-payload, outputClaimToHeaders: [{header: x-sub, claim: sub}, {header: x-deep, claim: a.b}, {header: x-list, claim: groups}]") +
			"  - {issuer: mesh, jwksUri: \"http://keys.default.svc.cluster.local:8000/jwks\"}\n" +
			"  - {issuer: late, jwksUri: \"http://" + late + "/jwks\"}\n" +
			"  - {issuer: nowhere, jwksUri: \"http://none.default.svc.cluster.local/jwks\"}\n" +
			ra + "metadata: {name: one-more}\nspec:\n  selector: {matchLabels: {app: b}}\n  jwtRules:\n" + inline("second", "") +
			ap + `metadata: {name: claims}
spec:
  selector: {matchLabels: {app: b}}
  action: DENY
  rules:
  - {from: [{source: {notRequestPrincipals: ["plain/alice", "header/*", "*/bob"]}}], to: [{operation: {paths: [/principal]}}]}
  - {from: [{source: {notRequestPrincipals: ["*"]}}], to: [{operation: {paths: [/any]}}]}
  - {to: [{operation: {paths: [/nested]}}], when: [{key: "request.auth.claims[a][b]", notValues: [deep]}]}
  - {to: [{operation: {paths: [/group]}}], when: [{key: "request.auth.claims[groups]", notValues: ["admin*"]}]}
  - {to: [{operation: {paths: [/scope]}}], when: [{key: "request.auth.claims[scope]", notValues: [write]}]}
  - {to: [{operation: {paths: [/aud]}}], when: [{key: request.auth.audiences, notValues: [shop]}]}
  - {to: [{operation: {paths: [/azp]}}], when: [{key: request.auth.presenter, notValues: [app-1]}]}
  - {to: [{operation: {paths: [/when]}}], when: [{key: request.auth.principal, notValues: [plain/alice]}]}
`,
		"gateway.yaml": doorGateway(proctest.Port(t), "istio: ingressgateway") + `  http:
  - match: [{headers: {"@request.auth.claims.groups": {exact: group1}}}]
    route: [{destination: {host: c, port: {number: 8000}}}]
  - match: [{headers: {"@request.auth.claims[a][b]": {prefix: de}}}]
    route: [{destination: {host: c, port: {number: 8000}}}]
    rewrite: {uri: /nested} # of the prefix that matched, which is /
  - match: [{uri: {prefix: /open}}]
    route: [{destination: {host: b, port: {number: 8000}}}]
` + ra + "metadata: {name: door, namespace: istio-system}\nspec:\n  selector: {matchLabels: {istio: ingressgateway}}\n  jwtRules:\n" + inline("gate", ", forwardOriginalToken: true") +
			ap + "metadata: {name: door, namespace: istio-system}\nspec:\n  selector: {matchLabels: {istio: ingressgateway}}\n  action: DENY\n  rules: [{from: [{source: {notRequestPrincipals: [\"*\"]}}], to: [{operation: {paths: [/private]}}]}]\n",
	}))
	groups := func(names ...string) map[string]any { return map[string]any{"groups": names} }
	plain := s.token("plain", nil)
	for _, tc := range []struct {
		name, path string
		want       int
		headers    []string
	}{
		{"no token", "/", 200, nil},
		{"the first RequestAuthentication", "/", 200, []string{bearer(plain)}},
		{"the second RequestAuthentication", "/", 200, []string{bearer(s.token("second", nil))}},
		{"an issuer that nobody knows", "/", 401, []string{bearer(s.token("stranger", nil))}},
		{"another key of that issuer", "/", 401, []string{bearer(newSigner(t, "k1").token("plain", nil))}},
		{"access_token is a default place", "/?access_token=" + plain, 200, nil},
		{"a bad token there is refused", "/?access_token=x", 401, nil},
		{"fromHeaders with prefix", "/principal", 200, []string{"x-jwt: Tok " + s.token("header", nil)}},
		{"fromHeaders without prefix", "/principal", 200, []string{"x-jwt-two: " + s.token("header", nil)}},
		{"fromHeaders: a bad token", "/", 401, []string{"x-jwt: Tok bad"}},
		{"fromHeaders: not in Authorization then", "/", 401, []string{bearer(s.token("header", nil))}},
		{"fromParams", "/any?jwt=" + s.token("param", nil), 200, nil},
		{"fromParams: a bad token", "/?jwt=bad", 401, nil},
		{"fromCookies", "/any", 200, []string{"Cookie: other=1; jar=" + s.token("cookie", nil)}},
		{"audience, one of several", "/", 200, []string{bearer(s.token("audience", map[string]any{"aud": []string{"x", "bank"}}))}},
		{"audience, none", "/", 403, []string{bearer(s.token("audience", nil))}},
		{"key set of a service of the mesh", "/any", 200, []string{bearer(s.token("mesh", nil))}},
		{"key server that is away", "/", 401, []string{bearer(s.token("late", nil))}},
		{"key server that does not exist", "/", 401, []string{bearer(s.token("nowhere", nil))}},
		{"requestPrincipals exact", "/principal", 200, []string{bearer(plain)}},
		{"requestPrincipals suffix", "/principal", 200, []string{bearer(s.token("second", map[string]any{"sub": "bob"}))}},
		{"requestPrincipals another", "/principal", 403, []string{bearer(s.token("second", nil))}},
		{"requestPrincipals none", "/principal", 403, nil},
		{"request.auth.principal", "/when", 200, []string{bearer(plain)}},
		{"request.auth.principal of another", "/when", 403, []string{bearer(s.token("second", nil))}},
		{"nested claim", "/nested", 200, []string{bearer(s.token("plain", map[string]any{"a": map[string]any{"b": "deep"}}))}},
		{"nested claim, list", "/nested", 200, []string{bearer(s.token("plain", map[string]any{"a": map[string]any{"b": []string{"x", "deep"}}}))}},
		{"nested claim, absent", "/nested", 403, []string{bearer(s.token("plain", map[string]any{"a.b": "deep"}))}},
		{"claim of a list, prefix", "/group", 200, []string{bearer(s.token("plain", groups("users", "admin-eu")))}},
		{"claim of a list, none", "/group", 403, []string{bearer(s.token("plain", groups("users")))}},
		{"scope is separated by spaces", "/scope", 200, []string{bearer(s.token("plain", map[string]any{"scope": "read write"}))}},
		{"scope, none", "/scope", 403, []string{bearer(s.token("plain", map[string]any{"scope": "read writes"}))}},
		{"audiences", "/aud", 200, []string{bearer(s.token("plain", map[string]any{"aud": "shop"}))}},
		{"audiences, another", "/aud", 403, []string{bearer(plain)}},
		{"presenter", "/azp", 200, []string{bearer(s.token("plain", map[string]any{"azp": "app-1"}))}},
		{"CORS preflight needs no token", "/", 200, []string{"Origin: http://x", "Access-Control-Request-Method: GET"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := m.get("a-1", "http://b:8000"+tc.path, tc.headers...); got.status != tc.want {
				t.Errorf("got %s, want %d", got, tc.want)
			}
		})
	}
	t.Run("headers behind a verified token", func(t *testing.T) {
		token := s.token("forward", map[string]any{"a": map[string]any{"b": "deep"}, "groups": []string{"g1", "g2"}})
		h := m.get("a-1", "http://b:8000/", bearer(token), "x-sub: forged", "x-payload: forged").saw(t).Headers
		if h.Get("Authorization") != "Bearer "+token {
			t.Error("forwardOriginalToken: the token is not forwarded")
		}
		if v := h.Values("x-sub"); len(v) != 1 || v[0] != "alice" {
			t.Errorf("x-sub is %q", v)
		}
		if h.Get("x-deep") != "deep" {
			t.Errorf("x-deep is %q", h.Get("x-deep"))
		}
		payload, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(h.Get("x-payload"), "="))
		var claims struct{ Iss string }
		if err != nil || json.Unmarshal(payload, &claims) != nil || claims.Iss != "forward" {
			t.Errorf("x-payload is %q", h.Get("x-payload"))
		}
	})
	t.Run("headers without a token are not what the caller says", func(t *testing.T) {
		if h := m.get("a-1", "http://b:8000/", "x-sub: forged", "x-payload: forged").saw(t).Headers; h.Get("x-sub") == "forged" || h.Get("x-payload") == "forged" {
			t.Errorf("x-sub is %q, x-payload %q", h.Get("x-sub"), h.Get("x-payload"))
		}
	})
	t.Run("the token is not forwarded unless asked for", func(t *testing.T) {
		if got := m.get("a-1", "http://b:8000/", bearer(plain)).saw(t).Headers.Get("Authorization"); got != "" {
			t.Errorf("Authorization is %q", got)
		}
	})
	t.Run("gateway", func(t *testing.T) {
		door := m.gateway("door")
		for _, tc := range []struct {
			name, path, token string
			want              int
			by, seen          string
		}{
			{"no token", "/open", "", 200, "b", "/open"},
			{"bad token", "/open", "bad", 401, "", ""},
			{"no token where one is needed", "/private", "", 403, "", ""},
			{"route by a claim of a list", "/x", s.token("gate", groups("group1", "group2")), 200, "c", "/x"},
			{"no route for another claim", "/x", s.token("gate", groups("group3")), 404, "", ""},
			{"no route without a token", "/x", "", 404, "", ""},
			{"route by a nested claim", "/x", s.token("gate", map[string]any{"a": map[string]any{"b": "deep"}}), 200, "c", "/nestedx"},
		} {
			var headers []string
			if tc.token != "" {
				headers = []string{bearer(tc.token)}
			}
			got := raw("", "GET", door+tc.path, headers...)
			if got.status != tc.want {
				t.Errorf("%s: got %s, want %d", tc.name, got, tc.want)
			} else if tc.by != "" && (got.saw(t).Name != tc.by || got.saw(t).Path != tc.seen) {
				t.Errorf("%s: got %s", tc.name, got)
			}
		}
		if got := raw("", "GET", door+"/x", "@request.auth.claims.groups: group1"); got.status == 200 {
			t.Errorf("a header that looks like a claim: %s", got)
		}
	})
	t.Run("the key server comes", func(t *testing.T) {
		keyServer(t, late, &lateKeys)
		waitStatus(t, 200, func() answer { return m.get("a-1", "http://b:8000/any", bearer(s.token("late", nil))) })
	})
	t.Run("keys are rotated", func(t *testing.T) {
		next := newSigner(t, "k2")
		both := strings.Replace(next.jwks(), `{"keys":[`, strings.TrimSuffix(keys, "]}")+",", 1)
		meshKeys.Store(&both)
		proctest.Eventually(t, 15*time.Second, func() error {
			if got := m.get("a-1", "http://b:8000/any", bearer(next.token("mesh", nil))); got.status != 200 {
				return fmt.Errorf("with the new key: %s", got)
			}
			return nil
		})
		if got := m.get("a-1", "http://b:8000/any", bearer(s.token("mesh", nil))); got.status != 200 {
			t.Errorf("with the old key: %s", got)
		}
	})
}

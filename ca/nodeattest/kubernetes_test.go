package nodeattest_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-mesh/writ/ca/nodeattest"
)

const (
	issuer   = "https://kubernetes.default.svc.cluster.local"
	audience = "writ-ca"
	agentSA  = "writ-system/nodeagent"
	pilotSA  = "writ-system/pilot"
)

var (
	td  = spiffeid.RequireTrustDomainFromString("example.org")
	now = time.Now().Truncate(time.Second) // roots of tests are valid then
)

type claims map[string]any

// projected are the claims of a token as kubelet projects it into a pod.
func projected(namespace, account, node string) claims {
	return claims{
		"iss": issuer, "aud": []string{audience}, "sub": "system:serviceaccount:" + namespace + ":" + account,
		"iat": now.Unix() - 60, "nbf": now.Unix() - 60, "exp": now.Unix() + 3600, "jti": "1",
		"kubernetes.io": claims{
			"namespace": namespace, "serviceaccount": claims{"name": account, "uid": "u1"},
			"pod": claims{"name": account + "-x1", "uid": "u2"}, "node": claims{"name": node, "uid": "u3"},
		},
	}
}

// with returns a copy with one claim changed, dropped if v is nil.
func (c claims) with(key string, v any) claims {
	out := maps.Clone(c)
	if out[key] = v; v == nil {
		delete(out, key)
	}
	return out
}

// inner changes a claim of Kubernetes' own.
func (c claims) inner(key string, v any) claims {
	return c.with("kubernetes.io", c["kubernetes.io"].(claims).with(key, v))
}

// signer is a cluster's service-account key.
type signer struct {
	key *rsa.PrivateKey
	kid string
}

// keys of as many clusters as one test has, for all tests: making them takes a quarter
// of a second.
var keys = [3]func() (*rsa.PrivateKey, error){sync.OnceValues(makeKey), sync.OnceValues(makeKey), sync.OnceValues(makeKey)}

func makeKey() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) }

// newSigner has the n-th key.
func newSigner(t *testing.T, n int, kid string) signer {
	t.Helper()
	key, err := keys[n]()
	if err != nil {
		t.Fatal(err)
	}
	return signer{key, kid}
}

func (s signer) token(t *testing.T, c claims) string {
	t.Helper()
	return signed(t, jose.RS256, s.key, s.kid, c)
}

func signed(t *testing.T, alg jose.SignatureAlgorithm, key any, kid string, c claims) string {
	t.Helper()
	sig, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, (&jose.SignerOptions{}).WithHeader("kid", kid))
	if err != nil {
		t.Fatal(err)
	}
	token, err := jwt.Signed(sig).Claims(map[string]any(c)).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func jwks(t *testing.T, keys ...jose.JSONWebKey) []byte {
	t.Helper()
	data, err := json.Marshal(jose.JSONWebKeySet{Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func (s signer) jwk() jose.JSONWebKey {
	return jose.JSONWebKey{Key: s.key.Public(), KeyID: s.kid, Algorithm: "RS256", Use: "sig"}
}

func write(t *testing.T, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func cluster() nodeattest.Kubernetes {
	return nodeattest.Kubernetes{
		Issuer: issuer, Audiences: []string{audience, "writ"},
		NodeAgents: []string{agentSA}, Services: map[string]string{pilotSA: "pilot"},
	}
}

func newAttestor(t *testing.T, ks ...nodeattest.Kubernetes) *nodeattest.Attestor {
	t.Helper()
	c := nodeattest.Config{Kubernetes: ks}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	return nodeattest.New(c, td, func() time.Time { return now })
}

// TestKubernetesTokens is the table of what is a token and what is not.
func TestKubernetesTokens(t *testing.T) {
	s, other := newSigner(t, 0, "k1"), newSigner(t, 1, "k1")
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	private := newSigner(t, 2, "private")
	k := cluster()
	k.JWKSFile = write(t, "jwks.json", jwks(t, s.jwk(), jose.JSONWebKey{Key: ec.Public(), KeyID: "e1"},
		jose.JSONWebKey{Key: private.key, KeyID: private.kid}, jose.JSONWebKey{Key: s.key.Public(), KeyID: "enc", Use: "enc"}))
	a := newAttestor(t, k)
	agent, pilot := projected("writ-system", "nodeagent", "n1"), projected("writ-system", "pilot", "n1")
	good := s.token(t, agent)
	part := strings.Split(good, ".")
	der, err := x509.MarshalPKIXPublicKey(s.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	public := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	for _, tc := range []struct{ name, token, want string }{ // want "" is refused
		{"a node agent", good, "/writ/node/n1"},
		{"the same again", good, "/writ/node/n1"}, // not one-time: it says the same
		{"a service", s.token(t, pilot), "/writ/pilot"},
		{"ES256", signed(t, jose.ES256, ec, "e1", agent), "/writ/node/n1"},
		{"PS256 with a key for RS256", signed(t, jose.PS256, s.key, "k1", agent), ""},
		{"another audience of ours", s.token(t, agent.with("aud", []string{"x", "writ"})), "/writ/node/n1"},
		{"a clock a little behind", s.token(t, agent.with("nbf", now.Unix()+5)), "/writ/node/n1"},

		{"nothing", "", ""},
		{"no token", "abc", ""},
		{"cut off", good[:len(good)-20], ""},
		{"no signature", part[0] + "." + part[1] + ".", ""},
		{"oversized", s.token(t, agent.with("x", strings.Repeat("x", 20<<10))), ""},
		{"claims of another token", strings.Split(s.token(t, projected("writ-system", "nodeagent", "n2")), ".")[0] + "." + strings.Split(s.token(t, projected("writ-system", "nodeagent", "n2")), ".")[1] + "." + part[2], ""},
		{"another key with the id", other.token(t, agent), ""},
		{"an unknown key", signer{s.key, "k2"}.token(t, agent), ""},
		{"no key id", signer{s.key, ""}.token(t, agent), ""},
		{"a private key in the set", private.token(t, agent), ""},
		{"a key for encryption", signer{s.key, "enc"}.token(t, agent), ""},
		{"alg none", raw(t, `{"alg":"none","kid":"k1"}`, agent, nil), ""},
		{"HS256 with the public key in PEM", raw(t, `{"alg":"HS256","kid":"k1"}`, agent, public), ""},
		{"HS256 with the public key in DER", raw(t, `{"alg":"HS256","kid":"k1"}`, agent, der), ""},
		{"a key of its own in the header", raw(t, `{"alg":"RS256","kid":"k1","jwk":{"kty":"RSA","n":"AQAB","e":"AQAB"}}`, agent, der), ""},
		{"a critical header", raw(t, `{"alg":"RS256","kid":"k1","crit":["b64"],"b64":false}`, agent, der), ""},

		{"expired", s.token(t, agent.with("exp", now.Unix()-11)), ""},
		{"never expires", s.token(t, agent.with("exp", nil)), ""},
		{"not yet", s.token(t, agent.with("nbf", now.Unix()+60)), ""},
		{"foreign audience", s.token(t, agent.with("aud", []string{"https://kubernetes.default.svc"})), ""},
		{"no audience", s.token(t, agent.with("aud", nil)), ""},
		{"foreign issuer", s.token(t, agent.with("iss", "https://evil.example")), ""},
		{"issuer with a slash more", s.token(t, agent.with("iss", issuer+"/")), ""},
		{"no issuer", s.token(t, agent.with("iss", nil)), ""},

		{"foreign service account", s.token(t, projected("default", "nodeagent", "n1")), ""},
		{"foreign service account whose subject lies", s.token(t, projected("default", "evil", "n1").with("sub", "system:serviceaccount:writ-system:nodeagent")), ""},
		{"subject of another", s.token(t, agent.with("sub", "system:serviceaccount:default:evil")), ""},
		{"a user", s.token(t, agent.with("sub", "admin")), ""},
		{"no private claims", s.token(t, agent.with("kubernetes.io", nil)), ""},
		{"not bound to a pod", s.token(t, agent.inner("pod", nil)), ""},
		{"service not bound to a pod", s.token(t, pilot.inner("pod", nil)), ""},
		{"without a node", s.token(t, agent.inner("node", nil)), ""},
		{"a node that is a path", s.token(t, projected("writ-system", "nodeagent", "n1/../../pilot")), ""},
		{"a node without a name", s.token(t, projected("writ-system", "nodeagent", "")), ""},
	} {
		e, err := a.Kubernetes(t.Context(), tc.token)
		switch {
		case tc.want == "" && err == nil:
			t.Errorf("%s: it is %s", tc.name, e.ID)
		case tc.want == "" && errors.Is(err, nodeattest.ErrUnavailable):
			t.Errorf("%s: %v", tc.name, err)
		case tc.want != "" && (err != nil || e.ID.Path() != tc.want):
			t.Errorf("%s: %s, %v, want %s", tc.name, e.ID, err, tc.want)
		case err == nil && !slices.Contains(e.Facts, "k8s:node-name:n1"):
			t.Errorf("%s: facts %v", tc.name, e.Facts)
		}
	}
}

// raw makes a token by hand; key is the secret of an HMAC, nil for no signature.
func raw(t *testing.T, header string, c claims, key []byte) string {
	t.Helper()
	body, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	enc := base64.RawURLEncoding.EncodeToString
	text := enc([]byte(header)) + "." + enc(body)
	if key == nil {
		return text + "."
	}
	mac := hmac.New(sha256.New, key)
	_, _ = mac.Write([]byte(text))
	return text + "." + enc(mac.Sum(nil))
}

func TestKeysOfTwoClusters(t *testing.T) {
	one, two := newSigner(t, 0, "k1"), newSigner(t, 1, "k1")
	first, second := cluster(), cluster()
	first.JWKSFile, first.NodePrefix = write(t, "jwks.json", jwks(t, one.jwk())), "a-"
	second.JWKSFile, second.NodePrefix, second.Issuer = write(t, "jwks.json", jwks(t, two.jwk())), "b-", "https://other"
	a := newAttestor(t, first, second)
	c := projected("writ-system", "nodeagent", "n1")
	if e, err := a.Kubernetes(t.Context(), one.token(t, c)); err != nil || e.ID.Path() != "/writ/node/a-n1" {
		t.Errorf("%s, %v", e.ID, err)
	}
	if e, err := a.Kubernetes(t.Context(), two.token(t, c.with("iss", "https://other"))); err != nil || e.ID.Path() != "/writ/node/b-n1" {
		t.Errorf("%s, %v", e.ID, err)
	}
	// One cluster cannot speak for the other.
	if e, err := a.Kubernetes(t.Context(), two.token(t, c)); err == nil {
		t.Errorf("the second cluster made %s", e.ID)
	}
}

// server is an API server with TLS, and the file with its root.
func server(t *testing.T, h http.Handler) (*httptest.Server, string) {
	t.Helper()
	s := httptest.NewTLSServer(h)
	t.Cleanup(s.Close)
	return s, write(t, "ca.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
}

func TestKeysAreFetched(t *testing.T) {
	s, next := newSigner(t, 0, "k1"), newSigner(t, 1, "k2")
	var mu sync.Mutex
	answer, fetched, broken := jwks(t, s.jwk()), 0, false
	api, root := server(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		fetched++
		if broken || r.Header.Get("Authorization") != "Bearer own" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		// As a real one does it, TestRealCluster shows.
		if !strings.Contains(r.Header.Get("Accept"), "application/jwk-set+json") {
			w.WriteHeader(http.StatusNotAcceptable)
			return
		}
		_, _ = w.Write(answer)
	}))
	k := cluster()
	k.JWKSURL, k.CAFile, k.TokenFile = api.URL+"/openid/v1/jwks", root, write(t, "token", []byte("own\n"))
	at := now
	a := nodeattest.New(nodeattest.Config{Kubernetes: []nodeattest.Kubernetes{k}}, td, func() time.Time { return at })
	c := projected("writ-system", "nodeagent", "n1").with("exp", now.Add(24*time.Hour).Unix())
	check := func(what string, s signer, want error, wantFetched int) {
		t.Helper()
		_, err := a.Kubernetes(t.Context(), s.token(t, c))
		if (err == nil) != (want == nil) || errors.Is(want, nodeattest.ErrUnavailable) != errors.Is(err, nodeattest.ErrUnavailable) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
		mu.Lock()
		defer mu.Unlock()
		if fetched != wantFetched {
			t.Errorf("%s: fetched %d times, want %d", what, fetched, wantFetched)
		}
	}
	refused := errors.New("refused")
	check("the first", s, nil, 1)
	check("again", s, nil, 1)
	check("an unknown key, a moment later", next, refused, 1)
	at = at.Add(11 * time.Second)
	check("an unknown key", next, refused, 2)
	mu.Lock()
	answer = jwks(t, next.jwk())
	mu.Unlock()
	check("not again at once", next, refused, 2)
	at = at.Add(11 * time.Second)
	check("the cluster's new key", next, nil, 3)
	check("its old one", s, refused, 3)
	mu.Lock()
	broken = true
	mu.Unlock()
	at = at.Add(30 * time.Minute)
	check("the cluster is away", next, nil, 4)
	at = at.Add(31 * time.Minute)
	check("for too long", next, nodeattest.ErrUnavailable, 5)
}

func TestUnreachableKeysAreNoRefusal(t *testing.T) {
	k := cluster()
	k.JWKSFile = filepath.Join(t.TempDir(), "missing")
	s := newSigner(t, 0, "k1")
	a := newAttestor(t, k)
	token := s.token(t, projected("writ-system", "nodeagent", "n1"))
	if _, err := a.Kubernetes(t.Context(), token); !errors.Is(err, nodeattest.ErrUnavailable) {
		t.Errorf("%v", err)
	}
	for _, bad := range []string{"{", "{}", `{"keys":[]}`} {
		if err := os.WriteFile(k.JWKSFile, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Kubernetes(t.Context(), token); !errors.Is(err, nodeattest.ErrUnavailable) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	if err := os.WriteFile(k.JWKSFile, jwks(t, s.jwk()), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Kubernetes(t.Context(), token); err != nil {
		t.Errorf("when they are there: %v", err)
	}
}

// review is a TokenReview API as its documentation describes it, for the tokens of
// one key.
type review struct {
	t      *testing.T
	key    crypto.PublicKey
	change func(answer map[string]any)
}

func (r *review) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if req.Method != http.MethodPost || req.URL.Path != "/apis/authentication.k8s.io/v1/tokenreviews" || req.Header.Get("Authorization") != "Bearer own" {
		w.WriteHeader(http.StatusForbidden)
		return
	}
	var in struct {
		APIVersion, Kind string
		Spec             struct {
			Token     string
			Audiences []string
		}
	}
	if err := json.NewDecoder(req.Body).Decode(&in); err != nil || in.APIVersion != "authentication.k8s.io/v1" || in.Kind != "TokenReview" {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	status := map[string]any{"authenticated": false, "error": "invalid bearer token"}
	if tok, err := jwt.ParseSigned(in.Spec.Token, []jose.SignatureAlgorithm{jose.RS256}); err == nil {
		var c jwt.Claims
		type named struct {
			Name string `json:"name"`
			UID  string `json:"uid"`
		}
		var own struct {
			K struct {
				Pod  *named `json:"pod"`
				Node *named `json:"node"`
			} `json:"kubernetes.io"`
		}
		if tok.Claims(r.key, &c, &own) == nil {
			extra := map[string][]string{}
			if p := own.K.Pod; p != nil {
				extra["authentication.kubernetes.io/pod-name"], extra["authentication.kubernetes.io/pod-uid"] = []string{p.Name}, []string{p.UID}
			}
			if n := own.K.Node; n != nil {
				extra["authentication.kubernetes.io/node-name"] = []string{n.Name}
			}
			var both []string
			for _, aud := range in.Spec.Audiences {
				if c.Audience.Contains(aud) {
					both = append(both, aud)
				}
			}
			if len(both) > 0 && c.Expiry.Time().After(now) {
				status = map[string]any{"authenticated": true, "audiences": both, "user": map[string]any{"username": c.Subject, "uid": "u1", "groups": []string{"system:serviceaccounts"}, "extra": extra}}
			}
		}
	}
	answer := map[string]any{"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": in.Spec, "status": status}
	if r.change != nil {
		r.change(answer)
	}
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(answer)
}

func TestTokenReview(t *testing.T) {
	s, other := newSigner(t, 0, "k1"), newSigner(t, 1, "k1")
	r := &review{t: t, key: s.key.Public()}
	api, root := server(t, r)
	k := cluster()
	k.TokenReview, k.CAFile, k.TokenFile = api.URL, root, write(t, "token", []byte("own\n"))
	agent := projected("writ-system", "nodeagent", "n1")
	status := func(key string, v any) func(map[string]any) {
		return func(a map[string]any) { a["status"].(map[string]any)[key] = v }
	}
	user := func(key string, v any) func(map[string]any) {
		return func(a map[string]any) { a["status"].(map[string]any)["user"].(map[string]any)[key] = v }
	}
	both := k
	both.JWKSFile = write(t, "jwks.json", jwks(t, s.jwk()))
	for name, cfg := range map[string]nodeattest.Kubernetes{"by its API": k, "by keys and API": both} {
		a := newAttestor(t, cfg)
		for _, tc := range []struct {
			name   string
			token  string
			change func(map[string]any)
			want   string
		}{
			{"a node agent", s.token(t, agent), nil, "/writ/node/n1"},
			{"a service", s.token(t, projected("writ-system", "pilot", "n1")), nil, "/writ/pilot"},
			{"forged", other.token(t, agent), nil, ""},
			{"expired", s.token(t, agent.with("exp", now.Unix()-60)), nil, ""},
			{"foreign audience", s.token(t, agent.with("aud", []string{"x"})), nil, ""},
			{"foreign service account", s.token(t, projected("default", "evil", "n1")), nil, ""},
			{"not bound to a pod", s.token(t, agent.inner("pod", nil)), nil, ""},
			{"without a node", s.token(t, agent.inner("node", nil)), nil, ""},
			{"its pod is gone", s.token(t, agent), status("authenticated", false), ""},
			{"an API that knows no audiences", s.token(t, agent), status("audiences", nil), ""},
			{"made for somebody else", s.token(t, agent), status("audiences", []string{"x"}), ""},
			{"a user", s.token(t, agent), user("username", "admin"), ""},
			{"a user with a colon", s.token(t, agent), user("username", "system:serviceaccount:writ-system"), ""},
			{"two nodes", s.token(t, agent), user("extra", map[string][]string{"authentication.kubernetes.io/pod-name": {"p"}, "authentication.kubernetes.io/node-name": {"n1", "n2"}}), ""},
		} {
			r.change = tc.change
			e, err := a.Kubernetes(t.Context(), tc.token)
			if (err == nil) != (tc.want != "") || err == nil && e.ID.Path() != tc.want || errors.Is(err, nodeattest.ErrUnavailable) {
				t.Errorf("%s, %s: %s, %v, want %q", name, tc.name, e.ID, err, tc.want)
			}
		}
		for what, change := range map[string]func(map[string]any){
			"another kind of answer": func(a map[string]any) { a["kind"] = "Status" },
			"another version":        func(a map[string]any) { a["apiVersion"] = "authentication.k8s.io/v2" },
		} {
			r.change = change
			if _, err := a.Kubernetes(t.Context(), s.token(t, agent)); !errors.Is(err, nodeattest.ErrUnavailable) {
				t.Errorf("%s, %s: %v", name, what, err)
			}
		}
		r.change = nil
	}
	// The keys say one node, the API another.
	r.change = user("extra", map[string][]string{"authentication.kubernetes.io/pod-name": {"nodeagent-x1"}, "authentication.kubernetes.io/pod-uid": {"u2"}, "authentication.kubernetes.io/node-name": {"n2"}})
	if e, err := newAttestor(t, both).Kubernetes(t.Context(), s.token(t, agent)); err == nil {
		t.Errorf("it is %s", e.ID)
	}
	r.change = nil
	a := newAttestor(t, k)
	if err := os.WriteFile(k.TokenFile, []byte("another"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Kubernetes(t.Context(), s.token(t, agent)); !errors.Is(err, nodeattest.ErrUnavailable) {
		t.Errorf("the authority's own token is refused: %v", err)
	}
	if err := os.WriteFile(k.TokenFile, []byte("own"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Kubernetes(t.Context(), s.token(t, agent)); err != nil {
		t.Errorf("with a new token of its own: %v", err)
	}
	foreign := k
	foreign.CAFile = write(t, "ca.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: newRoot(t).Cert.Raw}))
	if _, err := newAttestor(t, foreign).Kubernetes(t.Context(), s.token(t, agent)); !errors.Is(err, nodeattest.ErrUnavailable) {
		t.Errorf("an API server of another root: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.Kubernetes(ctx, s.token(t, agent)); err == nil {
		t.Error("nobody waits for it")
	}
}

func TestValidate(t *testing.T) {
	good := cluster()
	good.JWKSFile = "f"
	for name, tc := range map[string]struct {
		change func(*nodeattest.Kubernetes)
		want   string
	}{
		"good":             {func(*nodeattest.Kubernetes) {}, ""},
		"no issuer":        {func(k *nodeattest.Kubernetes) { k.Issuer = "" }, "issuer"},
		"no audience":      {func(k *nodeattest.Kubernetes) { k.Audiences = nil }, "audiences"},
		"no way to check":  {func(k *nodeattest.Kubernetes) { k.JWKSFile = "" }, "jwks_file, jwks_url or token_review"},
		"two sets of keys": {func(k *nodeattest.Kubernetes) { k.JWKSURL = "https://x" }, "only one"},
		"plain text":       {func(k *nodeattest.Kubernetes) { k.TokenReview, k.TokenFile = "http://x", "t" }, "https"},
		"no token":         {func(k *nodeattest.Kubernetes) { k.TokenReview = "https://x" }, "token_file"},
		"nobody":           {func(k *nodeattest.Kubernetes) { k.NodeAgents, k.Services = nil, nil }, "service accounts"},
		"no account":       {func(k *nodeattest.Kubernetes) { k.NodeAgents = []string{"nodeagent"} }, "NAMESPACE/NAME"},
		"both":             {func(k *nodeattest.Kubernetes) { k.NodeAgents = []string{pilotSA} }, "both"},
	} {
		k := good
		tc.change(&k)
		err := nodeattest.Config{Kubernetes: []nodeattest.Kubernetes{k}}.Validate()
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}

// FuzzKubernetes: no bytes make a token but those that the cluster signed.
func FuzzKubernetes(f *testing.F) {
	f.Add("a.b.c")
	f.Add("eyJhbGciOiJub25lIn0.e30.")
	a := nodeattest.New(nodeattest.Config{Kubernetes: []nodeattest.Kubernetes{{Issuer: issuer, Audiences: []string{audience}, JWKSFile: "/dev/null", NodeAgents: []string{agentSA}}}}, td, func() time.Time { return now })
	f.Fuzz(func(t *testing.T, token string) {
		if e, err := a.Kubernetes(t.Context(), token); err == nil {
			t.Errorf("%q is %s", token, e.ID)
		}
	})
}

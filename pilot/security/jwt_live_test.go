package security

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

const testIssuer = "https://issuer.example"

// signer makes tokens.
type signer struct {
	key *rsa.PrivateKey
}

func newSigner(t testing.TB) signer {
	t.Helper()
	test, _, _ := strings.Cut(t.Name(), "/")
	signerKeys.Lock()
	defer signerKeys.Unlock()
	n := signerKeys.taken[test]
	signerKeys.taken[test]++
	if n == len(signerKeys.all) {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			t.Fatal(err)
		}
		signerKeys.all = append(signerKeys.all, key)
	}
	return signer{signerKeys.all[n]}
}

// signerKeys are for all tests, for they take long to make. The signers of one test have
// a key each.
var signerKeys = struct {
	sync.Mutex
	all   []*rsa.PrivateKey
	taken map[string]int // by test
}{taken: make(map[string]int)}

func (s signer) jwks() string {
	return fmt.Sprintf(`{"keys":[{"kty":"RSA","alg":"RS256","use":"sig","kid":"k1","n":%q,"e":%q}]}`,
		base64.RawURLEncoding.EncodeToString(s.key.N.Bytes()), base64.RawURLEncoding.EncodeToString(big.NewInt(int64(s.key.E)).Bytes()))
}

func (s signer) publicPEM(t testing.TB) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(&s.key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

// claims gives the usual ones and those of changes; nil takes one away.
func claims(changes map[string]any) jwt.MapClaims {
	c := jwt.MapClaims{"iss": testIssuer, "sub": "alice", "exp": time.Now().Add(time.Hour).Unix()}
	for k, v := range changes {
		if v == nil {
			delete(c, k)
		} else {
			c[k] = v
		}
	}
	return c
}

func (s signer) token(t testing.TB, changes map[string]any) string {
	t.Helper()
	token := jwt.NewWithClaims(jwt.SigningMethodRS256, claims(changes))
	token.Header["kid"] = "k1"
	text, err := token.SignedString(s.key)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func (s signer) document(name, issuer, more string) string {
	jwks, _ := json.Marshal(s.jwks())
	return fmt.Sprintf("kind: RequestAuthentication\nmetadata: {name: %s}\nspec:\n  selector: {matchLabels: {app: httpbin}}\n  jwtRules:\n  - issuer: %q\n    jwks: %s\n%s", name, issuer, jwks, more)
}

func bearer(token string) map[string]string {
	return map[string]string{"Authorization": "Bearer " + token}
}

// A rule without keys, and what the whole of golden files is made of, must at
// least be taken by Envoy.
func TestJWTWithoutKeysLive(t *testing.T) {
	t.Parallel()
	s := newSigner(t)
	m := newMesh(t, "kind: RequestAuthentication\nmetadata: {name: jwt}\nspec: {jwtRules: [{issuer: '"+testIssuer+"'}]}")
	eachEnvoy(t, func(t *testing.T, bin string) {
		p := start(t, bin, map[string]inbound{"in": {http: compileHTTP(t, m, workload())}})
		if got := p.do("in", request{header: bearer(s.token(t, nil))}); got.status != 401 {
			t.Errorf("a token that nobody can verify: %d", got.status)
		}
		if got := p.do("in", request{}); got.status != 200 {
			t.Errorf("no token: %d", got.status)
		}
	})
}

func TestJWTLive(t *testing.T) {
	t.Parallel()
	s, other := newSigner(t), newSigner(t)
	m := newMesh(t, s.document("jwt", testIssuer, "    audiences: [bookinfo]"))
	none, err := jwt.NewWithClaims(jwt.SigningMethodNone, claims(nil)).SignedString(jwt.UnsafeAllowNoneSignatureType)
	if err != nil {
		t.Fatal(err)
	}
	hs, err := jwt.NewWithClaims(jwt.SigningMethodHS256, claims(map[string]any{"aud": "bookinfo"})).SignedString(s.publicPEM(t))
	if err != nil {
		t.Fatal(err)
	}
	good := s.token(t, map[string]any{"aud": []string{"x", "bookinfo"}})
	cases := []struct {
		name   string
		header map[string]string
		status int
		reason string
	}{
		{"no token", nil, 200, ""},
		{"good", bearer(good), 200, ""},
		{"good again, from the cache", bearer(good), 200, ""},
		{"expired", bearer(s.token(t, map[string]any{"aud": "bookinfo", "exp": time.Now().Add(-time.Hour).Unix()})), 401, "Jwt_is_expired"},
		{"not yet", bearer(s.token(t, map[string]any{"aud": "bookinfo", "nbf": time.Now().Add(time.Hour).Unix()})), 401, "Jwt_not_yet_valid"},
		{"wrong issuer", bearer(s.token(t, map[string]any{"iss": "https://else.example", "aud": "bookinfo"})), 401, "Jwt_issuer_is_not_configured"},
		{"wrong audience", bearer(s.token(t, map[string]any{"aud": "else"})), 403, "Audiences_in_Jwt_are_not_allowed"},
		{"no audience", bearer(s.token(t, nil)), 403, "Audiences_in_Jwt_are_not_allowed"},
		{"alg none", bearer(none), 401, ""},
		{"HS256 with the public key", bearer(hs), 401, ""},
		{"key of another", bearer(other.token(t, map[string]any{"aud": "bookinfo"})), 401, "Jwt_verification_fails"},
		{"not a token", bearer("abc"), 401, ""},
		{"other scheme", map[string]string{"Authorization": "Basic YWJj"}, 200, ""},
	}
	eachEnvoy(t, func(t *testing.T, bin string) {
		p := start(t, bin, map[string]inbound{"in": {http: compileHTTP(t, m, workload())}})
		for _, c := range cases {
			got := p.do("in", request{header: c.header})
			if got.status != c.status {
				t.Errorf("%s: status %d, want %d (%s)", c.name, got.status, c.status, got.body)
			}
			if c.status == 200 {
				if got.deniedBy != "" {
					t.Errorf("%s: denied by %q though it passed", c.name, got.deniedBy)
				}
				continue
			}
			if !strings.HasPrefix(got.deniedBy, "RequestAuthentication default/jwt (") || !strings.Contains(got.deniedBy, c.reason) {
				t.Errorf("%s: denied by %q, want the policy and reason %q", c.name, got.deniedBy, c.reason)
			}
		}
	})
}

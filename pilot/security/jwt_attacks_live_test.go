package security

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	"github.com/golang-jwt/jwt/v5"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/pilot/envoy"
)

// raw makes a token of parts as they are, signed with RS256 by s.
func (s signer) raw(t testing.TB, header, payload string) string {
	t.Helper()
	enc := base64.RawURLEncoding.EncodeToString
	signed := enc([]byte(header)) + "." + enc([]byte(payload))
	sig, err := jwt.SigningMethodRS256.Sign(signed, s.key)
	if err != nil {
		t.Fatal(err)
	}
	return signed + "." + enc(sig)
}

// hmacToken is signed with HS256 and a secret.
func hmacToken(header, payload string, secret []byte) string {
	enc := base64.RawURLEncoding.EncodeToString
	signed := enc([]byte(header)) + "." + enc([]byte(payload))
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(signed))
	return signed + "." + enc(mac.Sum(nil))
}

// TestTokenAttacksLive: tokens that some verifier has taken, at a real Envoy.
func TestTokenAttacksLive(t *testing.T) {
	t.Parallel()
	s, stranger := newSigner(t), newSigner(t)
	m := newMesh(t, s.document("jwt", testIssuer, "    audiences: [shop]"))
	two := newMesh(t, "kind: RequestAuthentication\nmetadata: {name: two}\nspec:\n  jwtRules:\n  - issuer: "+testIssuer+"\n    jwks: '"+
		strings.Replace(stranger.jwks(), `]}`, ","+strings.TrimSuffix(strings.TrimPrefix(s.jwks(), `{"keys":[`), `]}`)+`]}`, 1)+"'")
	var asked atomic.Int32
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		_, _ = w.Write([]byte(stranger.jwks()))
	}))
	defer elsewhere.Close()
	exp := time.Now().Add(time.Hour).Unix()
	payload := fmt.Sprintf(`{"iss":%q,"aud":"shop","sub":"alice","exp":%d}`, testIssuer, exp)
	strangersKey, err := json.Marshal(json.RawMessage(strings.TrimSuffix(strings.TrimPrefix(stranger.jwks(), `{"keys":[`), `]}`)))
	if err != nil {
		t.Fatal(err)
	}
	good := s.raw(t, `{"alg":"RS256","kid":"k1"}`, payload)
	dot := strings.LastIndexByte(good, '.')
	cases := map[string]struct {
		token  string
		passes bool
	}{
		"good":                             {good, true},
		"no kid":                           {s.raw(t, `{"alg":"RS256"}`, payload), true},
		"alg none, no signature":           {stranger.raw(t, `{"alg":"none"}`, payload)[:len(good)/3] + ".", false},
		"alg none in capitals":             {good[:0] + "eyJhbGciOiJOT05FIn0" + good[strings.IndexByte(good, '.'):dot] + ".", false},
		"no signature":                     {good[:dot+1], false},
		"HS256 with the public key in PEM": {hmacToken(`{"alg":"HS256","kid":"k1"}`, payload, s.publicPEM(t)), false},
		"HS256 with the modulus":           {hmacToken(`{"alg":"HS256","kid":"k1"}`, payload, s.key.N.Bytes()), false},
		"HS256 with nothing":               {hmacToken(`{"alg":"HS256"}`, payload, nil), false},
		"RS256 called RS512":               {s.raw(t, `{"alg":"RS512","kid":"k1"}`, payload), false},
		"a key in the header":              {stranger.raw(t, `{"alg":"RS256","jwk":`+string(strangersKey)+`}`, payload), false},
		"jku":                              {stranger.raw(t, `{"alg":"RS256","kid":"k1","jku":"`+elsewhere.URL+`"}`, payload), false},
		"x5u":                              {stranger.raw(t, `{"alg":"RS256","kid":"k1","x5u":"`+elsewhere.URL+`"}`, payload), false},
		"kid as a URL":                     {stranger.raw(t, `{"alg":"RS256","kid":"`+elsewhere.URL+`"}`, payload), false},
		"kid as a path":                    {stranger.raw(t, `{"alg":"RS256","kid":"../../dev/null"}`, payload), false},
		"kid as SQL":                       {stranger.raw(t, `{"alg":"RS256","kid":"k1' UNION SELECT 'x"}`, payload), false},
		"unknown kid":                      {s.raw(t, `{"alg":"RS256","kid":"k2"}`, payload), false},
		"kid that is no string":            {s.raw(t, `{"alg":"RS256","kid":["k1"]}`, payload), false},
		"another audience":                 {s.raw(t, `{"alg":"RS256","kid":"k1"}`, strings.Replace(payload, "shop", "bank", 1)), false},
		"audience as a part":               {s.raw(t, `{"alg":"RS256","kid":"k1"}`, strings.Replace(payload, "shop", "shops", 1)), false},
		"another issuer":                   {s.raw(t, `{"alg":"RS256","kid":"k1"}`, strings.Replace(payload, testIssuer, testIssuer+"/", 1)), false},
		"issuer that is no string":         {s.raw(t, `{"alg":"RS256","kid":"k1"}`, strings.Replace(payload, `"`+testIssuer+`"`, `["`+testIssuer+`"]`, 1)), false},
		"exp as a text":                    {s.raw(t, `{"alg":"RS256","kid":"k1"}`, strings.Replace(payload, fmt.Sprint(exp), fmt.Sprintf("%q", fmt.Sprint(exp)), 1)), false},
		"expired, within the leeway":       {s.raw(t, `{"alg":"RS256","kid":"k1"}`, strings.Replace(payload, fmt.Sprint(exp), fmt.Sprint(time.Now().Add(-20*time.Second).Unix()), 1)), true},
		"expired, beyond it":               {s.raw(t, `{"alg":"RS256","kid":"k1"}`, strings.Replace(payload, fmt.Sprint(exp), fmt.Sprint(time.Now().Add(-90*time.Second).Unix()), 1)), false},
		"not yet, within the leeway":       {s.raw(t, `{"alg":"RS256","kid":"k1"}`, strings.Replace(payload, `"exp"`, fmt.Sprintf(`"nbf":%d,"exp"`, time.Now().Add(20*time.Second).Unix()), 1)), true},
		"not yet, beyond it":               {s.raw(t, `{"alg":"RS256","kid":"k1"}`, strings.Replace(payload, `"exp"`, fmt.Sprintf(`"nbf":%d,"exp"`, time.Now().Add(10*time.Minute).Unix()), 1)), false},
		"a claim twice":                    {s.raw(t, `{"alg":"RS256","kid":"k1"}`, strings.Replace(payload, `"sub"`, `"sub":"eve","sub"`, 1)), false},
		"alg twice":                        {s.raw(t, `{"alg":"RS256","alg":"none","kid":"k1"}`, payload), false},
		"four parts":                       {good + ".AA", false},
		"a payload that is no object":      {s.raw(t, `{"alg":"RS256","kid":"k1"}`, `["iss"]`), false},
		"another payload":                  {good[:strings.IndexByte(good, '.')+1] + base64.RawURLEncoding.EncodeToString([]byte(strings.Replace(payload, "alice", "admin", 1))) + good[dot:], false},
		"oversized":                        {s.raw(t, `{"alg":"RS256","kid":"k1"}`, strings.Replace(payload, "alice", strings.Repeat("a", 80<<10), 1)), false},
	}
	eachEnvoy(t, func(t *testing.T, bin string) {
		p := start(t, bin, map[string]inbound{"in": {http: compileHTTP(t, m, workload())}, "two": {http: compileHTTP(t, two, workload())}})
		for name, c := range cases {
			if got := p.do("in", request{header: bearer(c.token)}); (got.status == 200) != c.passes {
				t.Errorf("%s: %d %q", name, got.status, got.deniedBy)
			}
		}
		// Two keys of one kid: each verifies its own signatures.
		for name, token := range map[string]string{"the first": stranger.token(t, nil), "the second": s.token(t, nil)} {
			if got := p.do("two", request{header: bearer(token)}); got.status != 200 {
				t.Errorf("%s of two keys with one kid: %d %q", name, got.status, got.deniedBy)
			}
		}
		if got := p.do("two", request{header: bearer(newSigner(t).token(t, nil))}); got.status != 401 {
			t.Errorf("none of two keys with one kid: %d", got.status)
		}
	})
	if n := asked.Load(); n > 0 {
		t.Errorf("a place that a token names was asked %d times", n)
	}
}

// TestKeyServerAwayLive: an Envoy goes on with the keys that it fetched while their
// server answers nonsense or nothing; a symmetric key in the set verifies nothing; and
// an issuer whose server never answers keeps nobody else waiting.
func TestKeyServerAwayLive(t *testing.T) {
	t.Parallel()
	s, next := newSigner(t), newSigner(t)
	secret := []byte("0123456789abcdef0123456789abcdef")
	oct := fmt.Sprintf(`,{"kty":"oct","alg":"HS256","kid":"k2","k":%q}]}`, base64.RawURLEncoding.EncodeToString(secret))
	eachEnvoy(t, func(t *testing.T, bin string) {
		var keys atomic.Pointer[string]
		var asked atomic.Int32
		set := func(text string) { keys.Store(&text) }
		set(strings.TrimSuffix(s.jwks(), "]}") + oct)
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			asked.Add(1)
			if text := *keys.Load(); text != "" {
				_, _ = w.Write([]byte(text))
				return
			}
			w.WriteHeader(http.StatusInternalServerError)
		}))
		defer server.Close()
		m := newMesh(t, fmt.Sprintf("kind: RequestAuthentication\nmetadata: {name: jwt}\nspec:\n  jwtRules:\n  - {issuer: %q, jwksUri: %q}\n  - {issuer: dead, jwksUri: \"http://127.0.0.1:9/jwks\"}\n", testIssuer, server.URL+"/jwks"))
		h := compileHTTP(t, m, workload())
		refetchSoon(t, h)
		p := start(t, bin, map[string]inbound{"in": {http: h}}, h.Clusters...)
		token := bearer(s.token(t, nil))
		passes := func(header map[string]string) error {
			if got := p.do("in", request{header: header}); got.status != 200 {
				return fmt.Errorf("%d %q", got.status, got.deniedBy)
			}
			return nil
		}
		proctest.Eventually(t, 20*time.Second, func() error { return passes(token) })
		symmetric := hmacToken(`{"alg":"HS256","kid":"k2"}`, fmt.Sprintf(`{"iss":%q,"sub":"alice","exp":%d}`, testIssuer, time.Now().Add(time.Hour).Unix()), secret)
		if got := p.do("in", request{header: bearer(symmetric)}); got.status != 403 || got.deniedBy != "RequestAuthentication symmetric-key" {
			t.Errorf("a token under a symmetric key of the set: %d %q", got.status, got.deniedBy)
		}
		for _, answer := range []string{"", "{", `{"keys":[]}`} {
			set(answer)
			before := asked.Load()
			proctest.Eventually(t, 20*time.Second, func() error {
				if asked.Load() < before+2 {
					return errors.New("not asked again")
				}
				return nil
			})
			if err := passes(token); err != nil {
				t.Errorf("while the key server answers %q: %v", answer, err)
			}
		}
		set(next.jwks())
		proctest.Eventually(t, 20*time.Second, func() error { return passes(bearer(next.token(t, nil))) })
	})
}

// refetchSoon makes Envoy fetch key sets anew ten times a second.
func refetchSoon(t *testing.T, h *HTTP) {
	t.Helper()
	for _, e := range h.Extensions {
		f := e.Config
		filter := new(jwtv3.JwtAuthentication)
		if err := f.GetTypedConfig().UnmarshalTo(filter); err != nil {
			t.Fatal(err)
		}
		for _, p := range filter.GetProviders() {
			p.GetRemoteJwks().CacheDuration = durationpb.New(100 * time.Millisecond)
			p.GetRemoteJwks().GetAsyncFetch().FailedRefetchDuration = durationpb.New(100 * time.Millisecond)
		}
		f.GetTypedConfig().Value = envoy.Any(filter).GetValue()
	}
}

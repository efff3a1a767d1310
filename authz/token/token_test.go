package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/writ-mesh/writ/internal/jwks"
)

// now is the time in all tests of verification.
var now = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// signer is a key pair and its JWK.
type signer struct {
	private crypto.Signer
	jwk     map[string]any
}

func newSigner(t testing.TB, kind, kid string) signer {
	t.Helper()
	s := signer{jwk: map[string]any{"kid": kid, "use": "sig"}}
	var err error
	switch kind {
	case "RSA":
		var k *rsa.PrivateKey
		k, err = rsa.GenerateKey(rand.Reader, 2048)
		s.private, s.jwk["kty"], s.jwk["n"], s.jwk["e"] = k, "RSA", b64(k.N.Bytes()), b64(big.NewInt(int64(k.E)).Bytes())
	case "Ed25519":
		var k ed25519.PrivateKey
		_, k, err = ed25519.GenerateKey(rand.Reader)
		s.private, s.jwk["kty"], s.jwk["crv"], s.jwk["x"] = k, "OKP", "Ed25519", b64(k.Public().(ed25519.PublicKey))
	default:
		curve := map[string]elliptic.Curve{"P-256": elliptic.P256(), "P-384": elliptic.P384(), "P-521": elliptic.P521()}[kind]
		var k *ecdsa.PrivateKey
		k, err = ecdsa.GenerateKey(curve, rand.Reader)
		point, perr := k.PublicKey.Bytes()
		if perr != nil {
			t.Fatal(perr)
		}
		half := len(point) / 2
		s.private, s.jwk["kty"], s.jwk["crv"], s.jwk["x"], s.jwk["y"] = k, "EC", kind, b64(point[1:1+half]), b64(point[1+half:])
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func keySet(t testing.TB, keys ...map[string]any) *jwks.Set {
	t.Helper()
	b, err := json.Marshal(map[string]any{"keys": keys})
	if err != nil {
		t.Fatal(err)
	}
	set, err := jwks.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// sign signs header and payload as they are with golang-jwt's method.
func sign(t testing.TB, method jwt.SigningMethod, key any, header, payload string) string {
	t.Helper()
	text := b64([]byte(header)) + "." + b64([]byte(payload))
	sig, err := method.Sign(text, key)
	if err != nil {
		t.Fatal(err)
	}
	return text + "." + b64(sig)
}

const claims = `{"iss":"https://good","aud":["shop","bank"],"sub":"john","exp":1780318800,"nbf":1780311600}` // 13:00 and 11:00

func TestVerify(t *testing.T) {
	r, ec, ec384, ed := newSigner(t, "RSA", "r"), newSigner(t, "P-256", "e"), newSigner(t, "P-384", "e3"), newSigner(t, "Ed25519", "d")
	other := newSigner(t, "RSA", "r") // the same kid, another key
	set := keySet(t, r.jwk, ec.jwk, ec384.jwk, ed.jwk)
	publicPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: mustPKIX(t, r.private.Public())})
	good := func(header, payload string) string {
		return sign(t, jwt.SigningMethodRS256, r.private, header, payload)
	}
	const rs = `{"alg":"RS256","kid":"r"}`
	payload := func(s string) string { return good(rs, s) }

	for name, c := range map[string]struct {
		token string
		want  error
	}{
		"good RS256":               {good(rs, claims), nil},
		"good PS256":               {sign(t, jwt.SigningMethodPS256, r.private, `{"alg":"PS256","kid":"r"}`, claims), nil},
		"good RS512":               {sign(t, jwt.SigningMethodRS512, r.private, `{"alg":"RS512","kid":"r"}`, claims), nil},
		"good ES256":               {sign(t, jwt.SigningMethodES256, ec.private, `{"alg":"ES256","kid":"e"}`, claims), nil},
		"good ES384":               {sign(t, jwt.SigningMethodES384, ec384.private, `{"alg":"ES384","kid":"e3"}`, claims), nil},
		"good EdDSA":               {sign(t, jwt.SigningMethodEdDSA, ed.private, `{"alg":"EdDSA","kid":"d","typ":"JWT"}`, claims), nil},
		"no kid":                   {good(`{"alg":"RS256"}`, claims), nil},
		"one audience as a string": {payload(`{"iss":"https://good","aud":"bank","exp":1780318800}`), nil},
		"no exp":                   {payload(`{"iss":"https://good","aud":"bank"}`), nil},
		"expired within leeway":    {payload(`{"iss":"https://good","aud":"bank","exp":1780315170}`), nil},
		"nbf within leeway":        {payload(`{"iss":"https://good","aud":"bank","nbf":1780315230}`), nil},

		"expired":              {payload(`{"iss":"https://good","aud":"bank","exp":1780315100}`), errExpired},
		"not yet":              {payload(`{"iss":"https://good","aud":"bank","nbf":1780315300}`), errNotYet},
		"exp is text":          {payload(`{"iss":"https://good","aud":"bank","exp":"1780318800"}`), errMalformed},
		"exp is null":          {payload(`{"iss":"https://good","aud":"bank","exp":null}`), errMalformed},
		"exp overflows":        {payload(`{"iss":"https://good","aud":"bank","exp":1e300}`), errMalformed},
		"nbf overflows":        {payload(`{"iss":"https://good","aud":"bank","nbf":1e300}`), errMalformed},
		"exp negative":         {payload(`{"iss":"https://good","aud":"bank","exp":-1}`), errMalformed},
		"wrong issuer":         {payload(`{"iss":"https://evil","aud":"bank"}`), errIssuer},
		"issuer with slash":    {payload(`{"iss":"https://good/","aud":"bank"}`), errIssuer},
		"issuer in capitals":   {payload(`{"ISS":"https://good","aud":"bank"}`), errIssuer},
		"no issuer":            {payload(`{"aud":"bank"}`), errIssuer},
		"issuer is a list":     {payload(`{"iss":["https://good"],"aud":"bank"}`), errMalformed},
		"wrong audience":       {payload(`{"iss":"https://good","aud":"pub"}`), ErrAudience},
		"no audience":          {payload(`{"iss":"https://good"}`), ErrAudience},
		"empty audiences":      {payload(`{"iss":"https://good","aud":[]}`), ErrAudience},
		"iss twice":            {payload(`{"iss":"https://evil","iss":"https://good","aud":"bank"}`), errMalformed},
		"deep claim twice":     {payload(`{"iss":"https://good","aud":"bank","a":[{"b":1,"b":2}]}`), errMalformed},
		"nests deep":           {payload(`{"iss":"https://good","aud":"bank","a":` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `}`), errMalformed},
		"payload is a list":    {payload(`[]`), errMalformed},
		"payload has a tail":   {payload(claims + `{}`), errMalformed},
		"alg twice":            {good(`{"alg":"none","alg":"RS256","kid":"r"}`, claims), errMalformed},
		"critical":             {good(`{"alg":"RS256","kid":"r","crit":["exp"],"exp":1}`, claims), errMalformed},
		"kid is a number":      {good(`{"alg":"RS256","kid":1}`, claims), errMalformed},
		"unknown kid":          {good(`{"alg":"RS256","kid":"x"}`, claims), ErrUnknownKey},
		"empty kid":            {good(`{"alg":"RS256","kid":""}`, claims), ErrUnknownKey},
		"kid is a path":        {good(`{"alg":"RS256","kid":"../../dev/null"}`, claims), ErrUnknownKey},
		"jku":                  {sign(t, jwt.SigningMethodRS256, other.private, `{"alg":"RS256","kid":"o","jku":"https://evil/jwks"}`, claims), ErrUnknownKey},
		"key inside":           {sign(t, jwt.SigningMethodRS256, other.private, `{"alg":"RS256","jwk":`+mustJSON(t, other.jwk)+`}`, claims), errSignature},
		"another key":          {sign(t, jwt.SigningMethodRS256, other.private, rs, claims), errSignature},
		"signature of another": {good(rs, claims)[:40] + "." + strings.SplitN(good(rs, claims), ".", 3)[2], errMalformed},
		"alg in capitals":      {good(`{"ALG":"RS256","kid":"r"}`, claims), errAlgorithm},
		"alg none":             {b64([]byte(`{"alg":"none"}`)) + "." + b64([]byte(claims)) + ".", errAlgorithm},
		"alg None":             {b64([]byte(`{"alg":"None","kid":"r"}`)) + "." + b64([]byte(claims)) + ".", errAlgorithm},
		"alg missing":          {good(`{"kid":"r"}`, claims), errAlgorithm},
		"alg is a list":        {good(`{"alg":["RS256"],"kid":"r"}`, claims), errAlgorithm},
		"HS256 by public PEM":  {sign(t, jwt.SigningMethodHS256, publicPEM, `{"alg":"HS256","kid":"r"}`, claims), errAlgorithm},
		"HS256 by modulus":     {sign(t, jwt.SigningMethodHS256, r.private.(*rsa.PrivateKey).N.Bytes(), `{"alg":"HS256","kid":"r"}`, claims), errAlgorithm},
		"ES256 with RSA kid":   {sign(t, jwt.SigningMethodES256, ec.private, `{"alg":"ES256","kid":"r"}`, claims), errAlgorithm},
		"RS256 with EC kid":    {good(`{"alg":"RS256","kid":"e"}`, claims), errAlgorithm},
		"ES384 with P-256 kid": {sign(t, jwt.SigningMethodES384, ec384.private, `{"alg":"ES384","kid":"e"}`, claims), errAlgorithm},
		"signature cut":        {strings.TrimRight(good(rs, claims), "=")[:len(good(rs, claims))-2], errSignature},
		"no signature":         {strings.Join(strings.Split(good(rs, claims), ".")[:2], ".") + ".", errSignature},
		"padding":              {good(rs, claims) + "=", errMalformed},
		"four parts":           {good(rs, claims) + ".a", errMalformed},
		"two parts":            {"a.b", errMalformed},
		"empty":                {"", errMalformed},
		"encrypted":            {"a.b.c.d.e", errMalformed},
		"newline":              {strings.Replace(good(rs, claims), ".", "\n.", 1), errMalformed},
		"too large":            {payload(`{"iss":"` + strings.Repeat("a", maxToken) + `"}`), errTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			issuers := []Issuer{
				{Issuer: "https://unrelated", Keys: keySet(t, other.jwk)},
				{Issuer: "https://good", Audiences: []string{"bank"}, Keys: set},
			}
			v, err := Verify(c.token, issuers, now, time.Minute)
			if c.want == nil {
				if err != nil {
					t.Fatal(err)
				}
				if v.Issuer != 1 || !json.Valid(v.Claims) {
					t.Errorf("verified %d %s", v.Issuer, v.Claims)
				}
				return
			}
			if !errors.Is(err, c.want) {
				t.Errorf("error %v, want %v", err, c.want)
			}
			if v.Claims != nil {
				t.Error("a refused token has claims")
			}
		})
	}
}

func mustPKIX(t testing.TB, key any) []byte {
	t.Helper()
	b, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func mustJSON(t testing.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Any change of a character of a good token makes it bad.
func TestVerifyEveryCharacterCounts(t *testing.T) {
	ec := newSigner(t, "P-256", "e")
	issuers := []Issuer{{Issuer: "https://good", Keys: keySet(t, ec.jwk)}}
	good := sign(t, jwt.SigningMethodES256, ec.private, `{"alg":"ES256","kid":"e"}`, claims)
	if _, err := Verify(good, issuers, now, 0); err != nil {
		t.Fatal(err)
	}
	for i := range good {
		for _, c := range []byte{'A', 'B', '.', '-'} {
			if good[i] == c {
				continue
			}
			bad := good[:i] + string(c) + good[i+1:]
			if _, err := Verify(bad, issuers, now, 0); err == nil {
				t.Fatalf("accepted with %q at %d", c, i)
			}
		}
	}
}

func TestVerifyOptions(t *testing.T) {
	ec := newSigner(t, "P-256", "e")
	tok := sign(t, jwt.SigningMethodES256, ec.private, `{"alg":"ES256"}`, `{"iss":"i"}`)
	issuers := []Issuer{{Issuer: "i", Keys: keySet(t, ec.jwk)}}
	if _, err := Verify(tok, issuers, now, 0); err != nil {
		t.Errorf("without exp: %v", err)
	}
	if _, err := Verify(strings.Repeat("a", maxToken+1), issuers, now, 0); !errors.Is(err, errTooLarge) {
		t.Errorf("one byte too long: %v", err)
	}
	if _, err := Verify(tok, nil, now, 0); !errors.Is(err, errIssuer) {
		t.Errorf("nobody to believe: %v", err)
	}
	if _, err := Verify(tok, []Issuer{{Issuer: "i"}}, now, 0); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("keys not fetched yet: %v", err)
	}
	// Two entries of one issuer: the one that fits counts.
	two := []Issuer{{Issuer: "i", Audiences: []string{"a"}, Keys: issuers[0].Keys}, issuers[0]}
	if v, err := Verify(tok, two, now, 0); err != nil || v.Issuer != 1 {
		t.Errorf("second entry: %v %v", v, err)
	}
}

func TestFind(t *testing.T) {
	r := Request{
		Path: "/a?access_token=p1&tok=p2&access_token=p3",
		Headers: map[string]string{
			"authorization": "Bearer h1", "x-jwt": "h2", "x-pre": "Token h3",
			"cookie": `a=1; session="c1"; b=c1`,
		},
	}
	for name, c := range map[string]struct {
		where Locations
		want  string
	}{
		"default":        {Locations{}, "h1 p1 p3"},
		"header":         {Locations{Headers: []Header{{"X-JWT", ""}}}, "h2"},
		"prefix":         {Locations{Headers: []Header{{"x-pre", "Token "}, {"x-jwt", "Token "}}}, "h3"},
		"parameter":      {Locations{Params: []string{"tok", "none"}}, "p2"},
		"cookies":        {Locations{Cookies: []string{"session", "b", "c"}}, "c1"},
		"all":            {Locations{Headers: []Header{{"x-jwt", ""}}, Params: []string{"tok"}, Cookies: []string{"a"}}, "h2 p2 1"},
		"prefix's case":  {Locations{Headers: []Header{{"authorization", "bearer "}}}, ""},
		"absent":         {Locations{Headers: []Header{{"x-none", ""}}}, ""},
		"default is off": {Locations{Params: []string{"none"}}, ""},
	} {
		if got := strings.Join(c.where.Find(r), " "); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// FuzzVerify: no panic, and whatever is accepted was signed.
func FuzzVerify(f *testing.F) {
	ec := newSigner(f, "P-256", "e")
	issuers := []Issuer{{Issuer: "https://good", Keys: keySet(f, ec.jwk)}}
	good := sign(f, jwt.SigningMethodES256, ec.private, `{"alg":"ES256","kid":"e"}`, claims)
	for _, s := range []string{good, good + ".", "..", "a.b.c", b64([]byte(`{"alg":"none"}`)) + ".e30.", sign(f, jwt.SigningMethodHS256, []byte("x"), `{"alg":"HS256"}`, claims)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if _, err := Verify(s, issuers, now, 0); err == nil && !strings.HasPrefix(good, s[:strings.LastIndex(s, ".")]) {
			t.Fatalf("accepted %q", s)
		}
	})
}

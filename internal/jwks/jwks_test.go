package jwks

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"maps"
	"math/big"
	"strings"
	"testing"
)

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func rsaJWK(t testing.TB, bits int) map[string]any {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]any{"kty": "RSA", "kid": "r", "use": "sig", "n": b64(k.N.Bytes()), "e": b64(big.NewInt(int64(k.E)).Bytes())}
}

func ecJWK(t testing.TB) map[string]any {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, err := k.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return map[string]any{"kty": "EC", "crv": "P-256", "kid": "e", "x": b64(point[1:33]), "y": b64(point[33:])}
}

func with(jwk map[string]any, name string, value any) map[string]any {
	out := maps.Clone(jwk)
	out[name] = value
	return out
}

func document(t testing.TB, keys ...any) []byte {
	t.Helper()
	b, err := json.Marshal(map[string]any{"keys": keys})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParse(t *testing.T) {
	r, ec := rsaJWK(t, 2048), ecJWK(t)
	for name, c := range map[string]struct {
		key  map[string]any
		want string
	}{
		"symmetric":       {map[string]any{"kty": "oct", "k": "c2VjcmV0"}, "symmetric"},
		"RSA for HS256":   {with(r, "alg", "HS256"), "not for key type"},
		"RSA for ES256":   {with(r, "alg", "ES256"), "not for key type"},
		"EC for RS256":    {with(ec, "alg", "RS256"), "not for key type"},
		"EC for ES384":    {with(ec, "alg", "ES384"), "not for key type"},
		"for encryption":  {with(r, "use", "enc"), "not for signatures"},
		"only signing":    {with(r, "key_ops", []string{"sign"}), "verify"},
		"short RSA":       {rsaJWK(t, 1024), "1024 bits"},
		"exponent one":    {with(r, "e", "AQ"), "exponent"},
		"exponent even":   {with(r, "e", "BA"), "exponent"},
		"no modulus":      {with(r, "n", ""), "number"},
		"off the curve":   {with(ec, "x", b64(make([]byte, 32))), "EC key"},
		"short point":     {with(ec, "x", "AA"), "coordinate"},
		"other curve":     {with(ec, "crv", "secp256k1"), "curve"},
		"X25519":          {map[string]any{"kty": "OKP", "crv": "X25519", "x": b64(make([]byte, 32))}, "curve"},
		"short Ed25519":   {map[string]any{"kty": "OKP", "crv": "Ed25519", "x": "AA"}, "Ed25519"},
		"no type":         {map[string]any{"n": "AA"}, "key type"},
		"type is a list":  {map[string]any{"kty": []string{"RSA"}}, "unmarshal"},
		"kid is a number": {with(r, "kid", 1), "unmarshal"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Parse(document(t, c.key)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
			// A bad key does not take the good ones with it.
			set, err := Parse(document(t, c.key, ec))
			if err != nil || len(set.Keys) != 1 || len(set.Skipped) != 1 {
				t.Errorf("beside a good key: %v %v", set, err)
			}
		})
	}
	for _, bad := range []string{"", "{}", "[]", `{"keys": 1}`, `{"keys": []}`, `{"keys": [1]}`, `{"keys":[` + strings.Repeat(`{},`, maxKeys) + `{}]}`, strings.Repeat(" ", MaxSize+1)} {
		if _, err := Parse([]byte(bad)); err == nil {
			t.Errorf("%.20q accepted", bad)
		}
	}
	if _, err := Parse(document(t, with(with(ec, "x", ec["x"].(string)+"="), "y", ec["y"].(string)+"="))); err != nil {
		t.Errorf("coordinates with padding: %v", err)
	}
	set, err := Parse(document(t, with(r, "alg", "PS256")))
	if err != nil {
		t.Fatal(err)
	}
	if got := set.Keys[0].Algorithms; len(got) != 1 || got[0] != "PS256" {
		t.Errorf("a key with alg is good for %v", got)
	}
}

// FuzzParse: no panic, and no success without a key.
func FuzzParse(f *testing.F) {
	f.Add(document(f, ecJWK(f)))
	f.Add([]byte(`{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		set, err := Parse(b)
		if err == nil && len(set.Keys) == 0 {
			t.Fatal("no error and no key")
		}
	})
}

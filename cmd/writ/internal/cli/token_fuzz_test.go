package cli

import (
	"encoding/base64"
	"strings"
	"testing"
)

// FuzzToken reads any file as a token to revoke, and its claims as explain does: an
// error has no part of it, and what is revoked is one token of one issuer.
func FuzzToken(f *testing.F) {
	token := func(payload string) string {
		return "eyJhbGciOiJub25lIn0." + base64.RawURLEncoding.EncodeToString([]byte(payload)) + ".c2lnbmF0dXJl"
	}
	for _, seed := range []string{
		token(`{"iss": "i", "jti": "j", "exp": 1900000000}`), token(`{"iss": "i", "jti": "j", "exp": 1e300}`), token(`{"iss": 7, "jti": ["j"]}`), token("null"), token(`{"iss": "i"}`),
		"a.b", "a.b.c.d", "", "...", strings.Repeat("a", 100) + "..",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := revocationOfToken("-", strings.NewReader(text))
		if err == nil && (r.GetIssuer() == "" || r.GetJti() == "" || r.GetSub() != "") {
			t.Errorf("%q revokes %v", text, r)
		}
		if secret := strings.TrimSpace(text); err != nil && len(secret) > 60 && strings.Contains(err.Error(), secret) {
			t.Errorf("the error has the token: %v", err)
		}
		if _, err := payload(strings.TrimSpace(text)); err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("the error has lines: %q", err)
		}
	})
}

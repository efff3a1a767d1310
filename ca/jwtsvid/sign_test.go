package jwtsvid_test

import (
	"encoding/base64"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestTokenIsAJWTSVID: header and claims are those of the specification and no
// others.
func TestTokenIsAJWTSVID(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 600_000_000, time.UTC)
	k := open(t, new(memory), now)
	tok, err := k.Sign(reviews, []string{"a", "b"}, 5*time.Minute, now)
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(tok.Compact, ".")
	var got [2]map[string]any
	for i := range got {
		data, err := base64.RawURLEncoding.DecodeString(parts[i])
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(data, &got[i]); err != nil {
			t.Fatal(err)
		}
	}
	set, _ := k.Current()
	if h := got[0]; len(h) != 3 || h["alg"] != "ES256" || h["typ"] != "JWT" || h["kid"] != set.Active {
		t.Errorf("header %v", h)
	}
	c := got[1]
	if names := slices.Sorted(maps.Keys(c)); !slices.Equal(names, []string{"aud", "exp", "iat", "sub"}) {
		t.Errorf("claims %v", names)
	}
	if c["sub"] != reviews.String() || c["iat"] != float64(now.Unix()) || c["exp"] != float64(now.Add(5*time.Minute).Unix()) {
		t.Errorf("claims %v", c)
	}
	for _, ttl := range []time.Duration{0, -1, maxTTL + 1} {
		if _, err := k.Sign(reviews, []string{"a"}, ttl, now); err == nil {
			t.Errorf("a life of %s", ttl)
		}
	}
}

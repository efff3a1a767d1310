package security

import (
	"slices"
	"testing"
	"time"

	"github.com/writ-mesh/writ/pilot/model"
)

// TestRevokedTokensLive: what is revoked is refused by Envoy itself, and nothing else.
func TestRevokedTokensLive(t *testing.T) {
	t.Parallel()
	s := newSigner(t)
	const other = "https://other.example"
	now := time.Now().Truncate(time.Second)
	revoked := func(r model.RevokedTokens) inbound {
		m := newMesh(t, s.document("jwt", testIssuer, "    forwardOriginalToken: true\n")+"\n---\n"+s.document("other", other, ""))
		m.Tokens = r
		return inbound{http: compileHTTP(t, m, workload()), shared: true}
	}
	many := make([]string, 1000)
	for i := range many {
		many[i] = newID(i)
	}
	inbounds := map[string]inbound{
		"nothing": revoked(model.RevokedTokens{}),
		"jti":     revoked(model.RevokedTokens{IDs: map[string][]string{testIssuer: {"1"}, other: {"2"}}}),
		"many":    revoked(model.RevokedTokens{IDs: map[string][]string{testIssuer: append(slices.Clone(many), "1")}}),
		"sub":     revoked(model.RevokedTokens{Subjects: map[string][]string{testIssuer: {"alice"}}}),
		"before":  revoked(model.RevokedTokens{Issued: []model.RevokedIssue{{Issuer: testIssuer, Before: now}}}),
		"session": revoked(model.RevokedTokens{Issued: []model.RevokedIssue{{Issuer: testIssuer, Subject: "alice", Before: now}}}),
		"issuer":  revoked(model.RevokedTokens{Issued: []model.RevokedIssue{{Issuer: testIssuer}}}),
		"away":    revoked(model.RevokedTokens{Remote: true}),
	}
	const byJTI, bySub, byTime, byIssuer = "TokenRevocation jti", "TokenRevocation sub", "TokenRevocation issued-before", "TokenRevocation issuer"
	cases := []struct {
		name   string
		claims map[string]any
		// denied is what x-writ-denied-by says, by inbound; none: it passes.
		denied map[string]string
	}{
		{"one token", map[string]any{"jti": "1", "iat": now.Unix()}, map[string]string{"jti": byJTI, "many": byJTI, "sub": bySub, "issuer": byIssuer}},
		{"another", map[string]any{"jti": "2", "iat": now.Unix()}, map[string]string{"sub": bySub, "issuer": byIssuer}},
		{"an old one", map[string]any{"jti": "3", "iat": now.Add(-time.Second).Unix()}, map[string]string{"sub": bySub, "before": byTime, "session": byTime, "issuer": byIssuer}},
		{"of another subject", map[string]any{"sub": "bob", "iat": now.Add(-time.Second).Unix()}, map[string]string{"before": byTime, "issuer": byIssuer}},
		{"that does not say when", map[string]any{"iat": nil}, map[string]string{"sub": bySub, "before": byTime, "session": byTime, "issuer": byIssuer}},
		{"of another issuer", map[string]any{"iss": other, "jti": "1", "iat": 1}, nil},
		{"of another issuer, revoked there", map[string]any{"iss": other, "jti": "2", "iat": 1}, map[string]string{"jti": byJTI}},
		{"with a jti that is a name of something else", map[string]any{"jti": "fields", "sub": "eve", "iat": now.Unix()}, map[string]string{"issuer": byIssuer}},
	}
	eachEnvoy(t, func(t *testing.T, bin string) {
		p := start(t, bin, inbounds)
		for name := range inbounds {
			if got := p.do(name, request{}); got.status != 200 {
				t.Errorf("%s, no token: %d %q", name, got.status, got.deniedBy)
			}
			if got := p.do(name, request{header: bearer(s.token(t, map[string]any{"jti": []string{"1"}, "sub": "eve"}))}); got.status != 401 {
				t.Errorf("%s, a token with a jti that is no string: %d %q", name, got.status, got.deniedBy)
			}
			for _, c := range cases {
				got, want := p.do(name, request{header: bearer(s.token(t, c.claims))}), c.denied[name]
				if name == "away" {
					want = "TokenRevocation no-authz" // too many to be told, and nobody to ask
				}
				if got.deniedBy != want || (got.status == 403) != (want != "") || got.status != 403 && got.status != 200 {
					t.Errorf("%s, a token %s: %d %q, want %q", name, c.name, got.status, got.deniedBy, want)
				}
			}
		}
	})
}

func newID(i int) string { return time.Unix(int64(i), 0).UTC().Format(time.RFC3339) }

// TestRevokedTokensRemoteLive: with more than proxies are told, authz is asked about
// requests with a token and about no others; without its answer they are refused.
func TestRevokedTokensRemoteLive(t *testing.T) {
	t.Parallel()
	s := newSigner(t)
	eachEnvoy(t, func(t *testing.T, bin string) {
		d := &decider{deniedBy: "TokenRevocation jti"}
		compiled := func(authz string) inbound {
			m := newMesh(t, s.document("jwt", testIssuer, ""))
			m.Deciders.Authz = authz
			m.Tokens.Remote = true
			return inbound{http: compileHTTP(t, m, workload())}
		}
		p := start(t, bin, map[string]inbound{"asks": compiled(d.serve(t))})
		if got := p.do("asks", request{}); got.status != 200 || d.count() != 0 {
			t.Errorf("no token: %d, authz was asked %d times", got.status, d.count())
		}
		if got := p.do("asks", request{header: bearer(s.token(t, map[string]any{"jti": "1"}))}); got.status != 200 || d.count() != 1 {
			t.Fatalf("a token: %d %q, authz was asked %d times", got.status, got.deniedBy, d.count())
		}
		attributes := d.lastCheck(t).GetAttributes()
		if id := attributes.GetMetadataContext().GetFilterMetadata()[jwtMetadata].GetFields()[jwtPayload].GetStructValue().GetFields()["jti"].GetStringValue(); id != "1" || attributes.GetContextExtensions()[tokensKey] == "" {
			t.Errorf("authz was told jti %q and %v", id, attributes.GetContextExtensions())
		}
		refused := bearer(s.token(t, nil))
		refused["refuse"] = "yes"
		if got := p.do("asks", request{header: refused}); got.status != 403 || got.deniedBy != "TokenRevocation jti" {
			t.Errorf("a revoked token: %d %q", got.status, got.deniedBy)
		}
		away := start(t, bin, map[string]inbound{"away": compiled("unix:///nobody/is/here.sock")})
		if got := away.do("away", request{header: bearer(s.token(t, nil))}); got.status != 403 || got.deniedBy != "TokenRevocation (authz does not answer)" {
			t.Errorf("a token while authz is away: %d %q", got.status, got.deniedBy)
		}
		if got := away.do("away", request{}); got.status != 200 {
			t.Errorf("no token while authz is away: %d %q", got.status, got.deniedBy)
		}
	})
}

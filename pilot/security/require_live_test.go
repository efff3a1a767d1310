package security

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/writ-mesh/writ/pilot/model"
)

// TestRequireLive is the truth table: two rules with a place for the token of each, a
// token that is not there, good or bad, and what is asked for.
func TestRequireLive(t *testing.T) {
	t.Parallel()
	s, stranger := newSigner(t), newSigner(t)
	jwks, err := json.Marshal(s.jwks())
	if err != nil {
		t.Fatal(err)
	}
	rule := func(issuer, header, more string) string {
		return fmt.Sprintf("  - {issuer: %q, jwks: %s, fromHeaders: [{name: %s}]%s}\n", issuer, jwks, header, more)
	}
	document := func(name, require, rules string) string {
		return fmt.Sprintf("kind: RequestAuthentication\nmetadata: {name: %s, annotations: {policy.writ.mesh/require: %q}}\nspec:\n  selector: {matchLabels: {app: httpbin}}\n  jwtRules:\n%s", name, require, rules)
	}
	const a, b = "https://a.example", "https://b.example"
	inbounds := map[string]inbound{}
	for _, require := range append(model.TokenRequirements(), "alll") {
		m := newMesh(t, document("jwt", require, rule(a, "x-a", "")+rule(b, "x-b", ", forwardOriginalToken: true")))
		m.Tokens.IDs = map[string][]string{a: {"revoked"}, b: {"revoked"}}
		inbounds[require] = inbound{http: compileHTTP(t, m, workload()), shared: true}
	}
	// A token of one issuer is required, others are looked at in the same place.
	m := newMesh(t, document("must", "any", rule(a, "x-a", ""))+"\n---\n"+document("may", "none", rule(b, "x-a", "")))
	inbounds["any of one"] = inbound{http: compileHTTP(t, m, workload()), shared: true}
	m = newMesh(t, document("sees", "observe", rule(a, "x-a", ""))+"\n---\n"+document("may", "none", rule(b, "x-a", "")))
	inbounds["observe beside none"] = inbound{http: compileHTTP(t, m, workload()), shared: true}

	const absent, good, bad, gone = "", "good", "bad", "revoked"
	token := func(issuer, what string) string {
		switch what {
		case bad:
			return stranger.token(t, map[string]any{"iss": issuer})
		case gone:
			return s.token(t, map[string]any{"iss": issuer, "jti": "revoked"})
		}
		return s.token(t, map[string]any{"iss": issuer})
	}
	cases := []struct {
		a, b string
		// status is the one for each requirement.
		none, anyOf, all, observe int
	}{
		{absent, absent, 200, 401, 401, 200},
		{good, absent, 200, 200, 401, 200},
		{absent, good, 200, 200, 401, 200},
		{good, good, 200, 200, 200, 200},
		{bad, absent, 401, 401, 401, 200},
		{absent, bad, 401, 401, 401, 200},
		{bad, bad, 401, 401, 401, 200},
		{good, bad, 200, 200, 401, 200}, // as in Istio: one good token is enough
		{bad, good, 200, 200, 401, 200},
		{gone, absent, 403, 403, 401, 403},
		{gone, good, 403, 403, 403, 403},
		{good, gone, 200, 403, 403, 403}, // the second is not looked at if none is required
	}
	eachEnvoy(t, func(t *testing.T, bin string) {
		p := start(t, bin, inbounds)
		for _, c := range cases {
			header := map[string]string{}
			if c.a != absent {
				header["x-a"] = token(a, c.a)
			}
			if c.b != absent {
				header["x-b"] = token(b, c.b)
			}
			for require, want := range map[string]int{"none": c.none, "any": c.anyOf, "all": c.all, "alll": c.all, "observe": c.observe} {
				if got := p.do(require, request{header: header}); got.status != want {
					t.Errorf("require %s, a %q, b %q: %d %q, want %d", require, c.a, c.b, got.status, got.deniedBy, want)
				}
			}
		}
		for name, wants := range map[string]map[string]int{
			"any of one":          {"": 401, token(a, good): 200, token(b, good): 401, token(a, bad): 401},
			"observe beside none": {"": 200, token(a, good): 200, token(b, good): 200, token(a, bad): 401, token(b, bad): 401},
		} {
			for text, want := range wants {
				header := map[string]string{}
				if text != "" {
					header["x-a"] = text
				}
				if got := p.do(name, request{header: header}); got.status != want {
					t.Errorf("%s: %d %q, want %d for %.60s", name, got.status, got.deniedBy, want, text)
				}
			}
		}
	})
}

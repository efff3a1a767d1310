package security

import (
	"cmp"
	"encoding/json"
	"slices"
	"testing"

	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/security/eval"
)

// TestQuotaClaimsLive: a real Envoy asks for the limits of policies that speak of a
// token's claims as the evaluator says, whatever the claims are.
func TestQuotaClaimsLive(t *testing.T) {
	t.Parallel()
	s := newSigner(t)
	policies := map[string][]model.QuotaMatch{
		"plan":   {{Claims: []model.QuotaClaim{{Name: "plan", Values: []string{"gold", "it's 50%)%"}}}}},
		"nested": {{Claims: []model.QuotaClaim{{Name: "a][b", Values: []string{"gold"}}}}},
		"both":   {{Claims: []model.QuotaClaim{{Name: "plan", Values: []string{"gold"}}, {Name: "sub", Values: []string{"alice"}}}, Methods: []string{"GET"}}},
		"either": {{Claims: []model.QuotaClaim{{Name: "plan", Values: []string{"none"}}}}, {Paths: []string{"/x"}}},
		"caller": {{Claims: []model.QuotaClaim{{Name: "plan", Values: []string{"gold"}}}, Principals: []string{"*"}}},
	}
	claims := []map[string]any{
		nil,
		{},
		{"plan": "gold"},
		{"plan": "it's 50%)%"},
		{"plan": "golden"},
		{"plan": []string{"iron", "gold"}},
		{"plan": []any{7, "gold"}},
		{"plan": []string{}},
		{"plan": map[string]any{"gold": true}},
		{"plan": 7},
		{"plan": true},
		{"a": map[string]any{"b": "gold"}},
		{"a": map[string]any{"b": []string{"gold"}}},
		{"a": "b"},
		{"a": []string{"b"}},
		{"plan": []any{[]string{"gold"}}},
		{"a][b": "gold"},
	}
	eachEnvoy(t, func(t *testing.T, bin string) {
		server := &decider{}
		m := newMesh(t, s.document("jwt", testIssuer, ""))
		m.Deciders.RateLimit = server.serve(t)
		for name, match := range policies {
			pol := quotaPolicy(name, true, per())
			pol.Match = match
			m.QuotaPolicies = append(m.QuotaPolicies, pol)
		}
		p := start(t, bin, map[string]inbound{"in": patient(t, inbound{http: compileHTTP(t, m, workload()), mtls: true})})
		counted := map[string]int{}
		for i, c := range claims {
			r := request{path: []string{"/", "/x"}[i%2]}
			asked := &eval.Request{Method: "GET", Path: r.path, Host: "httpbin.default"}
			if i%3 == 0 {
				r.identity, asked.Principal = curlFoo, "cluster.local/ns/foo/sa/curl"
			}
			if c != nil {
				r.header = map[string]string{"Authorization": "Bearer " + s.token(t, c)}
				asked.Claims = map[string]any{"sub": "alice", "iss": testIssuer}
				text, err := json.Marshal(c)
				if err != nil {
					t.Fatal(err)
				}
				if err := json.Unmarshal(text, &asked.Claims); err != nil {
					t.Fatal(err)
				}
			}
			var want []string
			for _, pol := range m.QuotaPolicies {
				if eval.Speaks(eval.Domains{Own: []string{"cluster.local"}}, pol, asked) {
					want = append(want, "default/"+pol.Name+"/0")
					counted[pol.Name]++
				}
			}
			slices.Sort(want)
			got := server.limitsAsked(func() {
				if got := p.do("in", r); got.status != 200 {
					t.Errorf("%v: %d", c, got.status)
				}
			})
			if !slices.Equal(got, want) {
				t.Errorf("%v: asked for %q, want %q", c, got, want)
			}
		}
		if len(counted) != len(policies) {
			t.Errorf("counted %v", counted)
		}
	})
}

// TestQuotaClaimValuesLive: a real Envoy tells requests apart by claims as the evaluator
// says, and asks whatever they are: a step into a claim that has no others in it leaves no
// limit out, callers with long numbers are not one, and a name may have dots.
func TestQuotaClaimValuesLive(t *testing.T) {
	t.Parallel()
	s := newSigner(t)
	values := []string{
		`"gold"`, `""`, `12345678`, `12345679`, `-5`, `0.5`, `7.25`, `1e15`, `9007199254740991`, `9007199254740992`, `1e30`, `12345678.5`, `true`, `null`, `[]`, `["b"]`, `[7]`,
		`{}`, `{"b":"iron"}`, `{"b":""}`, `{"b":3000000}`, `{"b":["b"]}`, `{"b":{"b":1}}`, `{"b":null}`, `{"b":false}`,
	}
	eachEnvoy(t, func(t *testing.T, bin string) {
		server := &decider{}
		m := newMesh(t, s.document("jwt", testIssuer, ""))
		m.Deciders.RateLimit = server.serve(t)
		m.QuotaPolicies = []*model.QuotaPolicy{quotaPolicy("q", true, per(dim("request.auth.claims[x]"), dim("request.auth.claims[x][b]"), dim("request.auth.claims[x][b][c]"), dim("request.auth.claims[https://x.example/b]")))}
		p := start(t, bin, map[string]inbound{"in": patient(t, inbound{http: compileHTTP(t, m, workload())})})
		for _, value := range values {
			r := request{header: bearer(s.token(t, map[string]any{"x": json.RawMessage(value), "https://x.example/b": json.RawMessage(value)}))}
			var claims map[string]any
			if err := json.Unmarshal([]byte(`{"x":`+value+`,"https://x.example/b":`+value+`}`), &claims); err != nil {
				t.Fatal(err)
			}
			var want []string
			for _, name := range []string{"x", "x][b", "x][b][c", "https://x.example/b"} {
				want = append(want, "request.auth.claims["+name+"]="+cmp.Or(eval.ClaimText(eval.Claim(claims, name)), quotaNoValue))
			}
			if asked := server.limitsAsked(func() { p.do("in", r) }); len(asked) != 1 {
				t.Errorf("%s: asked for %q", value, asked)
				continue
			}
			if got := server.lastDescriptors()[0][2:]; !slices.Equal(got, want) {
				t.Errorf("%s is counted as %q, want %q", value, got, want)
			}
		}
	})
}

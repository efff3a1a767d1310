package security

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/writ-mesh/writ/pilot/envoy"
	"github.com/writ-mesh/writ/pilot/model"
)

// TestRenew: routes with what is revoked put in are those that are compiled with it, from
// whatever was revoked before, and nothing else of them changes.
func TestRenew(t *testing.T) {
	s := newSigner(t)
	type what struct {
		callers model.Revoked
		tokens  model.RevokedTokens
	}
	revoked := map[string]what{
		"nothing":    {},
		"an account": {callers: model.Revoked{Identities: []model.RevokedIdentity{{SPIFFEID: sleep}}}},
		"two":        {callers: model.Revoked{Identities: []model.RevokedIdentity{{SPIFFEID: sleep}, {SPIFFEID: curlFoo}}}},
		"a serial":   {callers: model.Revoked{Certificates: []model.RevokedCertificate{{Serial: "0a", SPIFFEID: sleep, SHA256: fmt.Sprintf("%064x", 1)}}}},
		"a token":    {tokens: model.RevokedTokens{IDs: map[string][]string{testIssuer: {"1"}}}},
		"tokens":     {tokens: model.RevokedTokens{Subjects: map[string][]string{testIssuer: {"a", "b"}}, Issued: []model.RevokedIssue{{Issuer: testIssuer, Before: time.Unix(1e9, 0)}}}},
		"many":       {tokens: model.RevokedTokens{Remote: true}},
	}
	required := "kind: RequestAuthentication\nmetadata: {name: must, annotations: {policy.writ.mesh/require: any}}\nspec:\n  selector: {matchLabels: {app: httpbin}}\n  jwtRules:\n  - {issuer: other, jwksUri: 'https://keys.example/'}\n"
	meshes := map[string]string{
		"no policy": "", "a rule": policy("a", "rules: [{}]"), "tokens": s.document("jwt", testIssuer, ""),
		"a required token": s.document("jwt", testIssuer, "") + "\n---\n" + required, "rego": s.document("jwt", testIssuer, ""),
	}
	for name, documents := range meshes {
		for _, authz := range []string{"", "127.0.0.1:9191"} {
			compiled := func(w what) (*Compiler, *anypb.Any) {
				m := newMesh(t, documents)
				m.Deciders.Authz, m.Revoked, m.Tokens = authz, w.callers, w.tokens
				if name == "rego" {
					m.RegoPolicies = []*model.RegoPolicy{{Meta: model.Meta{Ref: model.Ref{Kind: "RegoPolicy", Namespace: "default", Name: "r"}}, Module: "package writ\nallow if input.request.body == 1"}}
				}
				c := compiler(t, m)
				h, err := c.HTTP(workload(), httpPort())
				if err != nil {
					t.Fatal(err)
				}
				host := &routev3.VirtualHost{Name: "v", Domains: []string{"*"}, TypedPerFilterConfig: h.PerFilterConfig, Metadata: h.Metadata, RateLimits: h.RateLimits}
				return c, envoy.Any(&routev3.RouteConfiguration{Name: "r", VirtualHosts: []*routev3.VirtualHost{host, host}})
			}
			for _, from := range slices.Sorted(maps.Keys(revoked)) {
				_, earlier := compiled(revoked[from])
				for _, to := range slices.Sorted(maps.Keys(revoked)) {
					c, want := compiled(revoked[to])
					got, err := c.Revocations().Renew(earlier)
					if err != nil {
						t.Fatal(err)
					}
					if same := proto.Equal(earlier, want); same != (got == nil) || !same && !proto.Equal(got, want) {
						t.Errorf("%s, authz %q, from %s to %s: unchanged: %v, want %v", name, authz, from, to, got == nil, same)
					}
				}
			}
		}
	}
	if got, err := new(Revocations).Renew(envoy.Any(&routev3.Route{})); got != nil || err == nil {
		t.Errorf("no routes: %v %v", got, err)
	}
}

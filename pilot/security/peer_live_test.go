package security

import (
	"net/http"
	"regexp"
	"testing"
)

// TestModesRefuseLive: what comes by a connection from before a mode meets 403, and counts
// where the documents say so.
func TestModesRefuseLive(t *testing.T) {
	t.Parallel()
	mode := func(mode, policies string) *HTTP {
		m := newMesh(t, policies)
		addDocument(t, m, "kind: PeerAuthentication\nmetadata: {name: mode}\nspec: {mtls: {mode: "+mode+"}}")
		return compileHTTP(t, m, workload())
	}
	eachEnvoy(t, func(t *testing.T, bin string) {
		p := start(t, bin, map[string]inbound{
			"strict":  {http: mode("STRICT", ""), mtls: true},
			"disable": {http: mode("DISABLE", policy("allow", "rules: [{}]")), mtls: true},
		})
		const identity = "spiffe://cluster.local/ns/default/sa/sleep"
		for _, c := range []struct {
			inbound, identity, by string
		}{
			{"strict", "", "PeerAuthentication STRICT"},
			{"strict", identity, ""},
			{"disable", "", ""},
			{"disable", identity, "PeerAuthentication DISABLE"},
		} {
			got := p.do(c.inbound, request{identity: c.identity})
			if got.deniedBy != c.by || (got.status == http.StatusForbidden) != (c.by != "") {
				t.Errorf("%s, caller %q: %d %q, want %q", c.inbound, c.identity, got.status, got.deniedBy, c.by)
			}
		}
		stats, err := get(p.admin + "/stats/prometheus?filter=rbac")
		if err != nil {
			t.Fatal(err)
		}
		if !regexp.MustCompile(`(?m)^envoy_http_rbac_denied\{envoy_rbac_http_prefix="writ_malformed_",[^}]*\} 2$`).MatchString(stats) {
			t.Errorf("the refusals are not counted:\n%s", stats)
		}
	})
}

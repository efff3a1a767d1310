package security

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/writ-mesh/writ/pilot/model"
)

// TestFederationLive: in a mesh that accepts another trust domain, with real Envoys,
// its identities get in by what names the trust domain, and by no name of ours.
func TestFederationLive(t *testing.T) {
	t.Parallel()
	const theirs, ours = "spiffe://b.example/ns/foo/sa/curl", curlFoo
	allow := func(source string) string { return "rules: [{from: [{source: {" + source + "}}]}]" }
	deny := func(source string) string { return "action: DENY\n" + allow(source) }
	cases := []struct {
		spec         string
		ours, theirs bool // whether the request passes
	}{
		{allow("principals: [b.example/ns/foo/sa/curl]"), false, true},
		{allow("principals: [b.example/ns/foo/sa/other]"), false, false},
		{allow("principals: ['b.example/*']"), false, true},
		{allow("trustDomains: [b.example]"), false, true},
		{allow("trustDomains: [cluster.local]"), true, false},
		{allow("principals: ['*']"), true, true},
		{allow("principals: ['*/ns/foo/sa/curl']"), true, true}, // a pattern for all of the name
		{allow("principals: [cluster.local/ns/foo/sa/curl]"), true, false},
		{allow("namespaces: [foo]"), true, false},
		{allow("namespaces: ['*']"), true, false},
		{allow("serviceAccounts: [foo/curl]"), true, false},
		{allow("notNamespaces: [foo]"), false, false},
		{allow("notNamespaces: [bar]"), true, true},
		{allow("notServiceAccounts: [foo/curl]"), false, false},
		{deny("namespaces: [foo]"), false, false},
		{deny("serviceAccounts: [foo/curl]"), false, false},
		{deny("notNamespaces: [foo]"), true, false},
		{deny("notServiceAccounts: [foo/curl]"), true, false},
		{deny("notTrustDomains: [cluster.local]"), true, false},
		{"rules: [{when: [{key: source.namespace, values: [foo]}]}]", true, false},
		{"action: DENY\nrules: [{when: [{key: source.namespace, notValues: [foo]}]}]", true, false},
		{"action: DENY\nrules: [{when: [{key: source.serviceAccount, values: [foo/curl]}]}]", false, false},
	}
	eachEnvoy(t, func(t *testing.T, bin string) {
		inbounds := map[string]inbound{}
		for i, c := range cases {
			m := newMesh(t, policy("p", c.spec))
			m.FederatedDomains = []string{"b.example"}
			inbounds[fmt.Sprint("case", i)] = inbound{http: compileHTTP(t, m, workload()), shared: true, mtls: true}
		}
		server := &decider{}
		m := newMesh(t, "")
		m.FederatedDomains, m.Deciders.RateLimit = []string{"b.example"}, server.serve(t)
		m.QuotaPolicies = []*model.QuotaPolicy{quotaPolicy("q", false, per(dim("source.namespace")))}
		inbounds["quota"] = inbound{http: compileHTTP(t, m, workload()), mtls: true}
		p := start(t, bin, inbounds)
		for identity, want := range map[string]string{ours: "source.namespace=foo", theirs: "source.namespace=" + quotaNoValue} {
			p.do("quota", request{identity: identity})
			if got := server.lastDescriptors(); len(got) != 1 || got[0][2] != want {
				t.Errorf("%s has the quota %q, want %q", identity, got, want)
			}
		}
		for i, c := range cases {
			for identity, want := range map[string]bool{ours: c.ours, theirs: c.theirs} {
				if got := p.do(fmt.Sprint("case", i), request{identity: identity}); (got.status == 200) != want {
					t.Errorf("%s\n%s: %d, want that it passes: %v", c.spec, identity, got.status, want)
				}
			}
		}
	})
}

// TestQuotaExpressionsStaySmall: Envoy takes small expressions only, so that the names
// of trust domains, which may be long, are not in them.
func TestQuotaExpressionsStaySmall(t *testing.T) {
	m := newMesh(t, "")
	m.TrustDomain, m.FederatedDomains = strings.Repeat("long.", 40)+"example", []string{"b.example"}
	c := compiler(t, m)
	for name, expression := range map[string]string{"asked": c.quotaNamespace("[^/]"), "assigned": c.caller("source.namespace", counterCharacters)} {
		found := regexp.MustCompile(`(?:matches\(|, )'([^']*)'`).FindAllStringSubmatch(expression, -1)
		if len(found) < 2 || !strings.Contains(expression, "startsWith('spiffe://"+m.TrustDomain+"/')") {
			t.Fatalf("%s: no expressions, or not of our trust domain, in %s", name, expression)
		}
		for _, match := range found {
			if strings.Contains(match[1], "long") {
				t.Errorf("%s: %s is in %s", name, m.TrustDomain, match[1])
			}
		}
	}
}

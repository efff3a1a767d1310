package security

import (
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	rbachttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	security "istio.io/api/security/v1beta1"

	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/pilot/condition"
	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/security/eval"
)

var differentialSeed = flag.Uint64("differential-seed", 0, "repeat a run of TestDifferential; 0 is a new one")

// What random policies and requests are made of: few values, so that they meet.
var (
	diffPrincipals = []string{"cluster.local/ns/a/sa/x", "cluster.local/ns/a/sa/y", "cluster.local/ns/b/sa/x", "old-td/ns/a/sa/x", "other-td/ns/b/sa/y", "cluster.local/ns/ab/sa/xy"}
	diffPatterns   = []string{"*", "cluster.local/ns/a/*", "*/sa/x", "cluster.local/*"}
	diffPaths      = []string{"/", "/a", "/a/b", "/ab", "/a/b/c", "/x.html"}
	diffPathRules  = []string{"/a", "/a/b", "/a*", "*b", "/a/*", "*.html", "/"}
	diffTemplates  = []string{"/a/{*}", "/{*}/b", "/a/{**}", "/{**}/c"}
	diffMethods    = []string{"GET", "POST", "PUT"}
	diffSources    = []string{"127.0.0.1", "127.0.0.2", "127.0.1.3"}
	diffBlocks     = []string{"127.0.0.2", "127.0.0.0/24", "127.0.1.0/24", "10.0.0.0/8"}
	diffHeader     = []string{"one", "two", "onetwo", ""}
	diffGroups     = []string{"g1", "g2"}
)

// diffKeys are conditions besides headers and claims.
var diffKeys = []string{
	condition.SourceIP, condition.RemoteIP, condition.DestinationIP, condition.Namespace, condition.Principal, condition.TrustDomain, condition.ServiceAccount,
	condition.TokenPrincipal, condition.SNI,
}

func diffValues(key string) []string {
	switch key {
	case condition.SourceIP, condition.RemoteIP, condition.DestinationIP:
		return diffBlocks
	case condition.Namespace:
		return []string{"a", "b*"}
	case condition.Principal:
		return append(diffPatterns, diffPrincipals...)
	case condition.TrustDomain:
		return []string{"cluster.local", "old-td", "other*", "*"}
	case condition.ServiceAccount:
		return []string{"a/x", "b/x", "y"}
	case condition.TokenPrincipal:
		return []string{testIssuer + "/alice", "*", "*/bob"}
	}
	return []string{"httpbin.default", "httpbin.*", "other"}
}

// generator makes random policies and requests.
type generator struct {
	*rand.Rand
	// plain leaves out what a tree cannot say.
	plain bool
}

func (g generator) some(from []string) []string {
	out := []string{from[g.IntN(len(from))]}
	for g.IntN(3) == 0 {
		out = append(out, from[g.IntN(len(from))])
	}
	return out
}

// field fills values or notValues or neither.
func (g generator) field(oneIn int, from []string, values, notValues *[]string) {
	switch g.IntN(oneIn) {
	case 0:
		*values = g.some(from)
	case 1:
		if g.IntN(2) == 0 {
			*notValues = g.some(from)
		}
	}
}

func (g generator) rule(host string) *security.Rule {
	out := &security.Rule{}
	for range 1 + g.IntN(2) {
		s := &security.Source{Principals: g.some(diffPrincipals)}
		if g.IntN(8) == 0 {
			s.Principals = nil
			g.field(3, diffPatterns, &s.Principals, &s.NotPrincipals)
		}
		g.field(6, []string{"a", "b", "a*", "*b"}, &s.Namespaces, &s.NotNamespaces)
		g.field(8, diffBlocks, &s.IpBlocks, &s.NotIpBlocks)
		g.field(8, diffBlocks, &s.RemoteIpBlocks, &s.NotRemoteIpBlocks)
		g.field(8, []string{"a/x", "b/x", "y"}, &s.ServiceAccounts, &s.NotServiceAccounts)
		g.field(8, []string{testIssuer + "/alice", "*", testIssuer + "/*", "*/bob"}, &s.RequestPrincipals, &s.NotRequestPrincipals)
		out.From = append(out.From, &security.Rule_From{Source: s})
	}
	for range g.IntN(3) {
		o := &security.Operation{}
		paths := diffPathRules
		if !g.plain && g.IntN(2) == 0 {
			paths = append(append([]string{"*"}, diffTemplates...), paths...)
		}
		g.field(3, paths, &o.Paths, &o.NotPaths)
		g.field(3, diffMethods, &o.Methods, &o.NotMethods)
		g.field(6, []string{"A." + host, "*.test", "b.*", "nothing"}, &o.Hosts, &o.NotHosts)
		g.field(12, []string{"1", "2"}, &o.Ports, &o.NotPorts)
		out.To = append(out.To, &security.Rule_To{Operation: o})
	}
	if g.IntN(4) == 0 {
		w := &security.Condition{Key: "request.headers[X-Test]"}
		values := []string{"one", "one*", "*two"}
		if !g.plain {
			values = append(values, "*")
		}
		g.field(2, values, &w.Values, &w.NotValues)
		out.When = append(out.When, w)
	}
	if g.IntN(4) == 0 {
		w := &security.Condition{Key: "request.auth.claims[groups]"}
		g.field(2, []string{"g1", "g2", "g*"}, &w.Values, &w.NotValues)
		out.When = append(out.When, w)
	}
	if g.IntN(4) == 0 {
		w := &security.Condition{Key: diffKeys[g.IntN(len(diffKeys))]}
		g.field(2, diffValues(w.Key), &w.Values, &w.NotValues)
		out.When = append(out.When, w)
	}
	return out
}

func (g generator) policies(host string) []*model.AuthorizationPolicy {
	var out []*model.AuthorizationPolicy
	for i := range 3 + g.IntN(12) {
		p := &model.AuthorizationPolicy{
			Meta: model.Meta{Ref: model.Ref{Kind: "AuthorizationPolicy", Namespace: "default", Name: fmt.Sprintf("p%02d", i)}},
			Spec: &security.AuthorizationPolicy{},
		}
		if g.IntN(3) == 0 {
			p.Spec.Action = security.AuthorizationPolicy_DENY
		}
		for range 1 + g.IntN(2) {
			rule := g.rule(host)
			if g.IntN(3) == 0 { // to be looked up by what it calls
				rule.From, rule.To = nil, []*security.Rule_To{{Operation: &security.Operation{Paths: g.some(diffPathRules), NotMethods: []string{"PUT"}}}}
			}
			p.Spec.Rules = append(p.Spec.Rules, rule)
		}
		out = append(out, p)
	}
	return out
}

// call makes one request in both forms: to send, and to evaluate.
func (g generator) call(t testing.TB, host string, tokens map[string]string) (request, eval.Request) {
	pick := func(from []string) string { return from[g.IntN(len(from))] }
	path, source := pick(diffPaths), pick(diffSources)
	r := request{method: pick(diffMethods), path: path, host: pick([]string{"a.", "b."}) + host + pick([]string{"", "", "", ":8080", ".", ".:80"}), from: source, header: map[string]string{}}
	want := eval.Request{
		Method: r.method, Path: path, Host: r.host, Headers: map[string]string{},
		Source: netip.MustParseAddr(source), Remote: netip.MustParseAddr(source), Destination: netip.MustParseAddr("127.0.0.1"),
	}
	if g.IntN(3) == 0 {
		r.path += pick([]string{"?q=/a", "?x.html", "?b"})
	}
	if g.IntN(5) > 0 {
		want.Principal = pick(diffPrincipals)
		r.identity = spiffeScheme + want.Principal
		want.SNI = "httpbin.default"
	}
	if g.IntN(2) == 0 {
		v := pick(diffHeader)
		r.header["X-Test"], want.Headers["x-test"] = v, v
	}
	if g.IntN(4) == 0 {
		want.Remote = netip.MustParseAddr("10.1.2.3")
		r.header["X-Forwarded-For"] = "10.1.2.3"
	}
	if g.IntN(2) == 0 {
		sub := pick([]string{"alice", "bob"})
		r.header["Authorization"] = "Bearer " + tokens[sub]
		want.Claims = map[string]any{"iss": testIssuer, "sub": sub, "groups": groupsOf(sub)}
	}
	return r, want
}

func groupsOf(sub string) []string {
	if sub == "alice" {
		return diffGroups
	}
	return diffGroups[1:]
}

// TestDifferential compares three opinions on random policies and requests: the
// evaluator, Envoy with lists, and Envoy with trees.
func TestDifferential(t *testing.T) {
	sets, requests := 32, 100
	if proctest.Few() {
		sets, requests = 15, 20
	}
	eachEnvoy(t, func(t *testing.T, bin string) {
		t.Parallel() // one request after the other: most of it is waiting for answers
		seed := *differentialSeed
		if seed == 0 {
			seed = rand.Uint64()
		}
		t.Logf("repeat with -differential-seed %d", seed)
		g := generator{Rand: rand.New(rand.NewPCG(seed, 0))} //nolint:gosec // repeatable, not secret
		s := newSigner(t)
		jwt := s.document("jwt", testIssuer, "")
		tokens := map[string]string{}
		for _, sub := range []string{"alice", "bob"} {
			tokens[sub] = s.token(t, map[string]any{"sub": sub, "groups": groupsOf(sub)})
		}
		base := compileHTTP(t, newMesh(t, jwt), workload())
		list := inbound{http: base, vhosts: map[string]*HTTP{}, direct: true, shared: true, mtls: true}
		tree := list
		tree.vhosts = map[string]*HTTP{}
		policies := map[string][]*model.AuthorizationPolicy{}
		trees := 0
		for i := range sets {
			host := fmt.Sprintf("set%d.test", i)
			g.plain = i%4 != 0
			policies[host] = g.policies(host)
			list.vhosts[host] = compileAt(t, jwt, diffDomains(i), policies[host], math.MaxInt)
			tree.vhosts[host] = compileAt(t, jwt, diffDomains(i), policies[host], 1)
			trees += countTrees(t, tree.vhosts[host])
		}
		if trees < sets {
			t.Errorf("%d trees in %d sets: the test does not test them", trees, sets)
		}
		p := start(t, bin, map[string]inbound{"list": list, "tree": tree})
		compareOpinions(t, p, g, policies, tokens, requests)
	})
}

func compareOpinions(t *testing.T, p *proxy, g generator, policies map[string][]*model.AuthorizationPolicy, tokens map[string]string, requests int) {
	passed, refused := 0, 0
	for i := range len(policies) {
		host := fmt.Sprintf("set%d.test", i)
		for range requests {
			r, asked := g.call(t, host, tokens)
			if _, sent := r.header["X-Test"]; sent && g.IntN(4) == 0 {
				// Of a header that is sent twice releases think differently (decision 0016), a
				// list and a tree of one release do not.
				r.more = [][2]string{{"X-Test", diffHeader[g.IntN(len(diffHeader))]}}
			}
			want, err := eval.Authorize(diffDomains(i), policies[host], asked)
			if err != nil {
				t.Fatal(err)
			}
			byList, byTree := p.do("list", r), p.do("tree", r)
			if byList.status != byTree.status {
				t.Errorf("list says %d %q, tree %d %q", byList.status, byList.deniedBy, byTree.status, byTree.deniedBy)
			}
			if r.more == nil {
				checkOpinion(t, want, byList)
				if !named(t, byTree.deniedBy, diffDomains(i), policies[host], &asked) {
					t.Errorf("tree says %d %q, which does not match", byTree.status, byTree.deniedBy)
				}
			}
			if byList.status == 200 {
				passed++
			} else {
				refused++
			}
			if t.Failed() {
				text := ""
				for _, pol := range policies[host] {
					rules, _ := json.Marshal(pol.Spec)
					text += fmt.Sprintf("%s %s\n", pol.Name, rules)
				}
				t.Fatalf("request %+v\nas %+v\npolicies\n%s", r, asked, text)
			}
		}
	}
	t.Logf("%d requests passed, %d were refused", passed, refused)
	if least := len(policies) * requests / 20; passed < least || refused < least {
		t.Errorf("the requests are too much alike to test anything")
	}
}

func checkOpinion(t *testing.T, want eval.Decision, got answer) {
	t.Helper()
	who := want.Allowed || want.Policy == nil == strings.HasSuffix(got.deniedBy, "no rule allows")
	if (got.status == 200) != want.Allowed || !who {
		t.Errorf("evaluator says %+v, list %d %q", want, got.status, got.deniedBy)
	}
}

// named says that the rule that is said to have refused matches the request.
func named(t testing.TB, deniedBy string, domains eval.Domains, policies []*model.AuthorizationPolicy, r *eval.Request) bool {
	t.Helper()
	if deniedBy == "" || strings.HasSuffix(deniedBy, "no rule allows") {
		return true
	}
	rule := indexedRules(t, policies, domains, nil)[deniedBy]
	return rule != nil && rule.Policy.Spec.GetAction() == security.AuthorizationPolicy_DENY && rule.Match(r)
}

// diffDomains are the trust domains of set i. The meshes of odd sets accept another one.
func diffDomains(i int) eval.Domains {
	d := eval.Domains{Own: []string{"cluster.local", "old-td"}}
	if i%2 == 1 {
		d.Federated = []string{"other-td"}
	}
	return d
}

func compileAt(t testing.TB, documents string, domains eval.Domains, policies []*model.AuthorizationPolicy, threshold int) *HTTP {
	t.Helper()
	m := newMesh(t, documents)
	m.TrustDomainAliases, m.FederatedDomains, m.AuthorizationPolicies = domains.Own[1:], domains.Federated, policies
	c := compiler(t, m)
	c.treeThreshold = threshold
	out, err := c.HTTP(workload(), httpPort())
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func countTrees(t testing.TB, h *HTTP) int {
	t.Helper()
	n := 0
	for _, name := range []string{filterDeny, filterAllow} {
		if packed := h.PerFilterConfig[name]; packed != nil {
			var per rbachttpv3.RBACPerRoute
			if err := packed.UnmarshalTo(&per); err != nil {
				t.Fatal(err)
			}
			if per.GetRbac().GetMatcher() != nil {
				n++
			}
		}
	}
	return n
}

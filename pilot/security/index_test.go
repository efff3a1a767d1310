package security

import (
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"strings"
	"testing"

	xdsmatcherv3 "github.com/cncf/xds/go/xds/type/matcher/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	"google.golang.org/protobuf/proto"
	security "istio.io/api/security/v1beta1"

	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/security/eval"
)

// indexOf gives the index of rules of which any number may be looked up, and the rest.
func indexOf(t testing.TB, policies []*model.AuthorizationPolicy, domains eval.Domains, action rbacv3.RBAC_Action) (*index, *rbacv3.RBAC) {
	t.Helper()
	m := newMesh(t, "")
	m.TrustDomainAliases, m.FederatedDomains = domains.Own[1:], domains.Federated
	set, err := compiler(t, m).compileSet(policies, action, false)
	if err != nil {
		t.Fatal(err)
	}
	if set.enforced == nil {
		return nil, nil
	}
	return newIndex(set.enforced, 0, entriesAt(false))
}

// manyPolicies are of one action, and more alike than those of a generator: many have
// the same caller or path, so that leaves are looked up in their turn.
func (g generator) manyPolicies(action security.AuthorizationPolicy_Action) []*model.AuthorizationPolicy {
	var out []*model.AuthorizationPolicy
	for i := range 1 + g.IntN(70) {
		rule := g.rule("x.test")
		switch g.IntN(4) {
		case 0:
			rule.From = nil
		case 1:
			rule.From = []*security.Rule_From{{Source: &security.Source{Principals: g.some(append(diffPatterns, diffPrincipals...))}}}
		}
		if g.IntN(2) == 0 {
			rule.To = []*security.Rule_To{{Operation: &security.Operation{Paths: g.some(diffPathRules)}}}
			if g.IntN(4) == 0 {
				rule.To[0].Operation.Methods = g.some(diffMethods)
			}
		}
		if g.IntN(2) == 0 {
			rule.When = nil
		}
		out = append(out, &model.AuthorizationPolicy{
			Meta: model.Meta{Ref: model.Ref{Kind: "AuthorizationPolicy", Namespace: "default", Name: fmt.Sprintf("p%02d", i)}},
			Spec: &security.AuthorizationPolicy{Action: action, Rules: []*security.Rule{rule}},
		})
	}
	return out
}

// TestIndexDecides compares, on random rules and requests, what an index decides with
// what its rules mean one by one: it finds a rule if and only if one matches, and the
// one that it names does.
func TestIndexDecides(t *testing.T) {
	sets, requests := 300, 100
	if proctest.Few() {
		sets = 100
	}
	seed := *differentialSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("repeat with -differential-seed %d", seed)
	g := generator{Rand: rand.New(rand.NewPCG(seed, 1))} //nolint:gosec // repeatable, not secret
	e := matchEval{regexes: map[string]*regexp.Regexp{}}
	found, none := 0, 0
	for i := range sets {
		action, rbac := security.AuthorizationPolicy_DENY, rbacv3.RBAC_DENY
		if g.IntN(2) == 0 {
			action, rbac = security.AuthorizationPolicy_ALLOW, rbacv3.RBAC_ALLOW
		}
		g.plain = g.IntN(4) > 0
		policies := g.manyPolicies(action)
		x, rest := indexOf(t, policies, diffDomains(i), rbac)
		if x == nil {
			continue
		}
		tree := matcherOf(x)
		rules := indexedRules(t, policies, diffDomains(i), rest)
		for range requests {
			sent, asked := g.call(t, "x.test", map[string]string{})
			e.path, e.r = sent.path, asked
			got, err := e.decide(tree)
			if err != nil || got == nil {
				t.Fatalf("no decision: %v\n%+v\n%v", err, asked, tree)
			}
			if !indexAgrees(got, rbac, rules, &asked) {
				t.Fatalf("%+v %s\ngot %v\nof %v\n%v", asked, sent.path, got, policies, tree)
			}
			if got.GetName() == noPolicy {
				none++
			} else {
				found++
			}
		}
	}
	t.Logf("%d requests found a rule, %d none", found, none)
	if least := sets * requests / 20; found < least || none < least {
		t.Error("the requests are too much alike to test anything")
	}
}

// indexedRules are those that are not in the rest, by the name that Envoy gives them.
func indexedRules(t testing.TB, policies []*model.AuthorizationPolicy, domains eval.Domains, rest *rbacv3.RBAC) map[string]*eval.Rule {
	t.Helper()
	out := map[string]*eval.Rule{}
	for _, pol := range policies {
		rules, err := eval.Rules(domains, pol, false)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rules {
			if id := policyID(pol, r.Index); rest.GetPolicies()[id] == nil {
				out[id] = r
			}
		}
	}
	return out
}

func indexAgrees(got *rbacv3.Action, action rbacv3.RBAC_Action, rules map[string]*eval.Rule, r *eval.Request) bool {
	if got.GetName() != noPolicy {
		named := rules[got.GetName()]
		return named != nil && named.Match(r) && got.GetAction() == action
	}
	for _, rule := range rules {
		if rule.Match(r) {
			return false
		}
	}
	return got.GetAction() != action
}

// manyRules has n rules that differ in the caller, the path, or one of both.
func manyRules(n int, kind string) *rbacv3.RBAC {
	out := &rbacv3.RBAC{Action: rbacv3.RBAC_DENY, Policies: map[string]*rbacv3.Policy{}}
	for i := range n {
		spec := &security.Rule{}
		if kind == "callers" || kind == "mixed" && i%2 == 0 {
			spec.From = []*security.Rule_From{{Source: &security.Source{Principals: []string{fmt.Sprintf("cluster.local/ns/team-%d/sa/client-%d", i%100, i)}}}}
		} else {
			spec.To = []*security.Rule_To{{Operation: &security.Operation{Paths: []string{fmt.Sprintf("/team-%d/item-%d", i%100, i)}, Methods: []string{"GET"}}}}
		}
		policy, err := ruleCompiler{trustDomains: []string{"cluster.local"}, namespace: "default", closed: true}.policy(spec)
		if err != nil {
			panic(err)
		}
		out.Policies[fmt.Sprintf("AuthorizationPolicy default/policy-%d rule 0", i)] = policy
	}
	return out
}

// TestIndexBounds holds what an index may come to: what it sends grows as the rules
// do, and no rule is repeated without bounds.
func TestIndexBounds(t *testing.T) {
	most := 10_000
	if proctest.Few() {
		most = 2000
	}
	for _, kind := range []string{"callers", "paths", "mixed"} {
		size := func(n int) (tree, list int) {
			rules := manyRules(n, kind)
			x, rest := newIndex(rules, defaultTreeThreshold, entriesAt(false))
			if x == nil || rest != nil {
				t.Fatalf("%s: %d rules are not all in an index", kind, n)
			}
			return proto.Size(matcherOf(x)), proto.Size(rules)
		}
		small, _ := size(most / 10)
		big, list := size(most)
		t.Logf("%s: %d rules are %d KiB in an index, %d KiB in a list", kind, most, big/1024, list/1024)
		if big > small*11 || big > maxGrowth*list {
			t.Errorf("%s: an index of %d rules has %d bytes, of %d %d, a list of these %d", kind, most/10, small, most, big, list)
		}
	}
	many := func(format string) (out []string) {
		for i := range 100 {
			out = append(out, fmt.Sprintf(format, i))
		}
		return out
	}
	rule := &security.Rule{
		From: []*security.Rule_From{{Source: &security.Source{Principals: many("cluster.local/ns/a/sa/s%d")}}},
		To:   []*security.Rule_To{{Operation: &security.Operation{Paths: many("/p%d"), NotMethods: many("M%d")}}},
	}
	policies := []*model.AuthorizationPolicy{{Meta: model.Meta{Ref: model.Ref{Kind: "AuthorizationPolicy", Namespace: "default", Name: "wide"}}, Spec: &security.AuthorizationPolicy{Rules: []*security.Rule{rule}}}}
	if x, _ := indexOf(t, policies, diffDomains(0), rbacv3.RBAC_ALLOW); x != nil {
		t.Errorf("a rule of 100 callers, 100 paths and 100 methods is in an index, of %d bytes", proto.Size(matcherOf(x)))
	}
}

// TestIndexGolden shows the form of an index: what is looked up by the caller, by the
// path, by one after the other, and what stays in a list.
func TestIndexGolden(t *testing.T) {
	m := newMesh(t, documents(
		policy("by-caller", "action: DENY\nrules: [{from: [{source: {principals: ['cluster.local/ns/a/sa/x']}}]}]"),
		policy("by-caller-prefix", "action: DENY\nrules: [{from: [{source: {principals: ['cluster.local/ns/b/*']}}], to: [{operation: {methods: [POST]}}]}]"),
		policy("by-path", "action: DENY\nrules: [{to: [{operation: {paths: [/admin]}}]}]"),
		policy("by-path-prefix", "action: DENY\nrules: [{from: [{source: {notPrincipals: ['cluster.local/ns/ops/sa/ops']}}], to: [{operation: {paths: ['/debug/*']}}]}]"),
		policy("by-one-of-both", "action: DENY\nrules: [{from: [{source: {principals: ['cluster.local/ns/a/sa/x']}}], to: [{operation: {paths: [/both]}}]}]"),
		policy("by-header", "action: DENY\nrules: [{from: [{source: {principals: ['cluster.local/ns/a/sa/x']}}], when: [{key: 'request.headers[x-role]', values: [guest]}]}]"),
		policy("by-namespace", "action: DENY\nrules: [{from: [{source: {namespaces: [dev]}}]}]"),
		policy("by-template", "action: DENY\nrules: [{to: [{operation: {paths: ['/shop/{*}/items']}}]}]"),
		policy("some", "rules: [{from: [{source: {principals: ['cluster.local/ns/a/sa/x', 'cluster.local/ns/c/sa/y']}}], to: [{operation: {paths: [/some, '/more*']}}]}]"),
		policy("all-with-token", "rules: [{from: [{source: {requestPrincipals: ['*']}}]}]"),
	))
	c := compiler(t, m)
	c.treeThreshold = 1
	h, err := c.HTTP(workload(), httpPort())
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "index", perFilter(t, h))
}

// TestDocumentedIndex holds what docs/authorization.md says of its example.
func TestDocumentedIndex(t *testing.T) {
	page, err := os.ReadFile("../../docs/authorization.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(page), "\n## Thousands of policies on one workload\n")
	_, rest, yaml := strings.Cut(section, "```yaml\n")
	text, table, closed := strings.Cut(rest, "```")
	if !ok || !yaml || !closed {
		t.Fatal("no example")
	}
	m := newMesh(t, text)
	x, list := indexOf(t, m.AuthorizationPolicies, diffDomains(0), rbacv3.RBAC_ALLOW)
	got := map[string]string{}
	for name := range list.GetPolicies() {
		got[name] = "the list"
	}
	for _, e := range x.entries {
		got[e.policy] = map[dimension]string{byCaller: "the caller", byPath: "the path"}[x.choose(e)]
	}
	for _, pol := range m.AuthorizationPolicies {
		if where := got[policyID(pol, 0)]; where == "" || !strings.Contains(table, "| `"+pol.Name+"` | "+where+":") {
			t.Errorf("%s is found by %q, which the table does not say", pol.Name, where)
		}
	}
}

// TestIndexAtGateways: callers of gateways may bring certificates with several names,
// so that only rules about paths are looked up.
func TestIndexAtGateways(t *testing.T) {
	rules := manyRules(20, "mixed")
	x, rest := newIndex(rules, defaultTreeThreshold, entriesAt(true))
	if x == nil || len(rest.GetPolicies()) != 10 {
		t.Fatalf("index %v, rest %v", x, rest)
	}
	if text := fmt.Sprint(matcherOf(x)); strings.Contains(text, "UriSan") || strings.Contains(text, spiffeScheme) {
		t.Errorf("a gateway looks a caller up: %s", text)
	}
}

// TestHeadersStayInLists: a tree sees all values of a header joined, the list each by
// itself, and a rule must not be got around by sending a header twice.
func TestHeadersStayInLists(t *testing.T) {
	rules := manyRules(20, "callers")
	guarded := rules.GetPolicies()["AuthorizationPolicy default/policy-7 rule 0"]
	guarded.Principals[0] = andIDs([]*rbacv3.Principal{guarded.GetPrincipals()[0], {Identifier: &rbacv3.Principal_Header{Header: header("x-role", "guest", false)}}})
	x, rest := newIndex(rules, defaultTreeThreshold, entriesAt(false))
	if x == nil || len(rest.GetPolicies()) != 1 || rest.GetPolicies()["AuthorizationPolicy default/policy-7 rule 0"] != guarded {
		t.Errorf("index %v, rest %v: want the rule about a header in the rest alone", x != nil, rest)
	}
}

// TestSuffixesStayInLists: an expression about the path and the query behind it does not
// match a query with bytes that are not UTF-8, by which a rule must not be got around.
func TestSuffixesStayInLists(t *testing.T) {
	rules := manyRules(20, "callers")
	const name = "AuthorizationPolicy default/policy-7 rule 0"
	rules.GetPolicies()[name].Permissions[0] = path("*/admin")
	x, rest := newIndex(rules, defaultTreeThreshold, entriesAt(false))
	if x == nil || len(rest.GetPolicies()) != 1 || rest.GetPolicies()[name] == nil {
		t.Errorf("index %v, rest %v: want the rule about the end of a path in the rest alone", x != nil, rest)
	}
}

// TestReplicasShare: what policies come to is worked out once for all replicas that have
// the same, and not taken for that of others.
func TestReplicasShare(t *testing.T) {
	m := newMesh(t, documents(
		policy("d", "action: DENY\nrules: [{to: [{operation: {paths: [/no]}}]}]"), policy("a", "rules: [{}]"),
		strings.Replace(policy("other", "rules: [{}]"), "app: httpbin", "version: v2", 1),
	))
	c := compiler(t, m)
	compile := func(change func(*model.Proxy)) *HTTP {
		p := workload()
		change(p)
		out, err := c.HTTP(p, httpPort())
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	first, second := compile(func(*model.Proxy) {}), compile(func(p *model.Proxy) { p.Name = "httpbin-2" })
	other := compile(func(p *model.Proxy) { p.Labels = map[string]string{"app": "httpbin", "version": "v2"} })
	for _, name := range []string{filterDeny, filterAllow} {
		if first.PerFilterConfig[name] == nil || first.PerFilterConfig[name] != second.PerFilterConfig[name] {
			t.Errorf("%s of two replicas: %p and %p, want the same", name, first.PerFilterConfig[name], second.PerFilterConfig[name])
		}
	}
	if proto.Equal(first.PerFilterConfig[filterAllow], other.PerFilterConfig[filterAllow]) || first.PerFilterConfig[filterDeny] != other.PerFilterConfig[filterDeny] {
		t.Error("another workload, which one more policy allows, has the same ALLOW rules or other DENY rules")
	}
}

func entriesAt(gateway bool) func(string, *rbacv3.Policy) ([]entry, bool) {
	return func(name string, policy *rbacv3.Policy) ([]entry, bool) { return entriesOf(name, policy, gateway) }
}

func matcherOf(x *index) *xdsmatcherv3.Matcher {
	out := &xdsmatcherv3.Matcher{}
	if err := proto.Unmarshal(x.matcher(wire(x.noMatch())), out); err != nil {
		panic(err)
	}
	return out
}

func messageOf(rules *rbacv3.RBAC) *xdsmatcherv3.Matcher {
	x, _ := newIndex(rules, 0, entriesAt(false))
	if x == nil {
		return nil
	}
	return matcherOf(x)
}

func BenchmarkIndex(b *testing.B) {
	for _, kind := range []string{"callers", "paths", "mixed"} {
		rules := manyRules(10_000, kind)
		b.Run(kind, func(b *testing.B) {
			for b.Loop() {
				messageOf(rules)
			}
		})
	}
}

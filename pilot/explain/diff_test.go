package explain

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	meshv1 "istio.io/api/mesh/v1alpha1"
	security "istio.io/api/security/v1beta1"

	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/internal/regoform"
	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/security/eval"
	"github.com/writ-mesh/writ/pilot/security/region"
)

var diffSeed = flag.Uint64("diff-seed", 0, "repeat a run of random meshes; 0 is a new one")

const issuerOne, issuerTwo = "https://one", "https://two"

// universe is every request of a small world: each kind of value that the rules of
// generator tell apart, and some that they do not.
func universe() []*eval.Request {
	var out []*eval.Request
	addr := netip.MustParseAddr
	for _, principal := range []string{"", "td/ns/a/sa/x", "td/ns/a/sa/y", "old/ns/a/sa/x", "td/ns/b/sa/x", "td/ns/ab/sa/z"} {
		for _, method := range []string{"GET", "POST", "PUT"} {
			for _, path := range []string{"/", "/a", "/a/b", "/ab", "/a/b/c", "/a/", "/x.html"} {
				for _, host := range []string{"h", "H:80", "h.", "x.h"} {
					for _, source := range []string{"10.0.0.1", "10.0.1.1", "192.168.0.1"} {
						for _, header := range []string{"-", "", "one", "onetwo"} {
							for _, token := range []string{"", badToken, issuerOne + "/alice/g1", issuerOne + "/bob/", issuerTwo + "/alice/g1,g2"} {
								r := &eval.Request{Principal: principal, Method: method, Path: path, Host: host, Source: addr(source), Remote: addr(source), Headers: map[string]string{}}
								if header != "-" {
									r.Headers["x-test"] = header
								}
								if token == badToken {
									r.Claims = map[string]any{"iss": badToken}
								} else if i := strings.LastIndexByte(token, '/'); i > 0 {
									r.Claims = map[string]any{"groups": []string{}}
									if groups := token[i+1:]; groups != "" {
										r.Claims["groups"] = strings.Split(groups, ",")
									}
									j := strings.LastIndexByte(token[:i], '/')
									r.Claims["iss"], r.Claims["sub"] = token[:j], token[j+1:i]
								}
								out = append(out, r)
							}
						}
					}
				}
			}
		}
	}
	return out
}

// generator makes random meshes of one workload.
type generator struct{ *rand.Rand }

// seeded makes one of the seed that the flag names, or of a new one.
func seeded(t *testing.T, stream uint64) generator {
	t.Helper()
	seed := *diffSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("repeat with -diff-seed %d", seed)
	return generator{rand.New(rand.NewPCG(seed, stream))} //nolint:gosec // repeatable, not secret
}

func (g generator) some(from ...string) []string {
	out := []string{from[g.IntN(len(from))]}
	if g.IntN(3) == 0 {
		out = append(out, from[g.IntN(len(from))])
	}
	return out
}

func (g generator) either(oneIn int, values, not *[]string, from ...string) {
	switch g.IntN(oneIn) {
	case 0:
		*values = g.some(from...)
	case 1:
		*not = g.some(from...)
	}
}

func (g generator) rule() *security.Rule {
	r := &security.Rule{}
	for range g.IntN(3) {
		s := &security.Source{}
		g.either(3, &s.Principals, &s.NotPrincipals, "td/ns/a/sa/x", "td/ns/a/*", "*/sa/x", "*", "cluster.local/ns/b/sa/x", "old/ns/a/sa/y")
		g.either(6, &s.Namespaces, &s.NotNamespaces, "a", "a*", "*b")
		g.either(6, &s.ServiceAccounts, &s.NotServiceAccounts, "x", "b/x")
		g.either(6, &s.IpBlocks, &s.NotIpBlocks, "10.0.0.0/24", "10.0.0.0/8", "192.168.0.1")
		g.either(6, &s.RequestPrincipals, &s.NotRequestPrincipals, "*", issuerOne+"/alice", issuerOne+"/*", "*/bob")
		r.From = append(r.From, &security.Rule_From{Source: s})
	}
	for range g.IntN(3) {
		o := &security.Operation{}
		g.either(3, &o.Methods, &o.NotMethods, "GET", "P*", "*T")
		g.either(3, &o.Paths, &o.NotPaths, "/a", "/a*", "/a/*", "*b", "/a/{*}", "/{**}/c", "*.html", "*")
		g.either(6, &o.Hosts, &o.NotHosts, "h", "*.h", "x*")
		r.To = append(r.To, &security.Rule_To{Operation: o})
	}
	if g.IntN(3) == 0 {
		w := &security.Condition{Key: "request.headers[X-Test]"}
		g.either(2, &w.Values, &w.NotValues, "one", "one*", "*two", "*")
		r.When = append(r.When, w)
	}
	if g.IntN(3) == 0 {
		w := &security.Condition{Key: "request.auth.claims[groups]"}
		g.either(2, &w.Values, &w.NotValues, "g1", "g*", "g2")
		r.When = append(r.When, w)
	}
	return r
}

func (g generator) mesh() *model.Mesh {
	m := &model.Mesh{Config: &meshv1.MeshConfig{}, TrustDomain: "td", TrustDomainAliases: []string{"old"}, RootNamespace: "root"}
	m.Proxies = []*model.Proxy{{Name: "w-1", Namespace: "a", ServiceAccount: "x", Ports: []model.WorkloadPort{{Port: 80, Protocol: model.HTTP}}}}
	for i := range 1 + g.IntN(3) {
		p := &model.AuthorizationPolicy{Meta: model.Meta{Ref: model.Ref{Kind: "AuthorizationPolicy", Namespace: "a", Name: fmt.Sprint("p", i)}}, Spec: &security.AuthorizationPolicy{}}
		if g.IntN(2) == 0 {
			p.Spec.Action = security.AuthorizationPolicy_DENY
		}
		for range 1 + g.IntN(2) {
			p.Spec.Rules = append(p.Spec.Rules, g.rule())
		}
		m.AuthorizationPolicies = append(m.AuthorizationPolicies, p)
	}
	if g.IntN(2) == 0 {
		m.AccessLists = append(m.AccessLists, g.list())
	}
	if g.IntN(2) == 0 {
		m.RegoPolicies = append(m.RegoPolicies, g.rego())
	}
	mode := []security.PeerAuthentication_MutualTLS_Mode{0, security.PeerAuthentication_MutualTLS_STRICT, security.PeerAuthentication_MutualTLS_DISABLE}[g.IntN(3)]
	m.PeerAuthentications = []*model.PeerAuthentication{{Meta: model.Meta{Ref: model.Ref{Namespace: "root"}}, Spec: &security.PeerAuthentication{Mtls: &security.PeerAuthentication_MutualTLS{Mode: mode}}}}
	for i, issuer := range []string{issuerOne, issuerTwo} {
		if g.IntN(2) == 0 {
			meta := model.Meta{Ref: model.Ref{Namespace: "a", Name: fmt.Sprint(i)}}
			if g.IntN(3) == 0 {
				meta.Annotations = map[string]string{model.RequireAnnotation: model.RequireAny}
			}
			m.RequestAuthentications = append(m.RequestAuthentications, &model.RequestAuthentication{
				Meta: meta,
				Spec: &security.RequestAuthentication{JwtRules: []*security.JWTRule{{Issuer: issuer}}},
			})
		}
	}
	return m
}

func (g generator) list() *model.AccessList {
	l := &model.AccessList{Meta: model.Meta{Ref: model.Ref{Kind: "AccessList", Namespace: "a", Name: "l"}}, Deny: g.IntN(2) == 0}
	switch g.IntN(5) {
	case 0:
		l.Match, l.Form, l.Entries = "source.ip", model.AccessAddresses, g.some("10.0.0.0/24", "10.0.0.0/8")
	case 1:
		l.Match, l.Entries, l.DenyFirst = model.AccessPath, g.some("/a", "/a/b", "/"), g.some("/ab")
	case 2:
		l.Match, l.Form, l.Entries, l.AllowFirst = "source.principal", model.AccessRegex, g.some("td/ns/a/.*", ".*/sa/x"), g.some("td/ns/b/sa/x")
	case 3:
		l.Match, l.Form, l.Entries = "request.headers[x-test]", model.AccessStringsAnyCase, g.some("ONE", "onetwo")
	default:
		l.Match, l.Entries = model.AccessHost, g.some("h", "x.h")
	}
	return l
}

// rego is a RegoPolicy all of which is known without evaluating it.
func (g generator) rego() *model.RegoPolicy {
	atom := func() *regoform.Formula {
		f := regoform.Of([]regoform.Atom{
			{Kind: regoform.Header, Name: ":method", Value: "GET", Test: regoform.Equal},
			{Kind: regoform.Header, Name: ":path", Value: "/A", Test: regoform.Prefix, Fold: true},
			{Kind: regoform.Header, Name: ":path", Value: "x=", Test: regoform.Contains},
			{Kind: regoform.Header, Name: "x-test", Value: "one", Test: regoform.Prefix},
			{Kind: regoform.Header, Name: "x-test", Test: regoform.Present},
			{Kind: regoform.Principal, Value: "spiffe://td/ns/a/", Test: regoform.Prefix},
			{Kind: regoform.Principal, Value: "spiffe://[^/]+/ns/.b/sa/.*", Test: regoform.Regex},
			{Kind: regoform.SourceIP, Value: "10.0.0.0/16", Test: regoform.Within},
			{Kind: regoform.Token, Test: regoform.Present},
			{Kind: regoform.DestinationPort, Value: "80", Test: regoform.Equal},
		}[g.IntN(10)])
		if g.IntN(3) == 0 {
			return regoform.Not(f)
		}
		return f
	}
	allow := regoform.Or(regoform.And(atom(), atom()), regoform.Not(regoform.And(atom(), regoform.Or(atom(), atom()))))
	return &model.RegoPolicy{
		Meta: model.Meta{Ref: model.Ref{Kind: "RegoPolicy", Namespace: "a", Name: "r"}},
		Form: &regoform.Policy{Malformed: regoform.False(), Surely: allow, Perhaps: allow},
	}
}

// queryOf makes some requests have a query, which their paths do not show.
func queryOf(req *eval.Request) string {
	if req.Method == "PUT" {
		return "?x=/b"
	}
	return ""
}

// allows evaluates a formula.
func allows(s *side, f *regoform.Formula, req *eval.Request) bool {
	return f.Map(func(a regoform.Atom) *regoform.Formula {
		if s.holds(a, req, req.Path+queryOf(req)) {
			return regoform.Always()
		}
		return regoform.False()
	}).Op() == regoform.OpTrue
}

// bruteForce decides one request straight from the documentation.
func bruteForce(t *testing.T, s *side, req *eval.Request) string {
	t.Helper()
	r := *req
	switch {
	case s.mode == model.Strict && r.Principal == "":
		return Refused
	case s.mode == model.Disable:
		r.Principal = ""
	}
	for _, i := range s.issuers {
		if iss, _ := r.Claims["iss"].(string); i.require == model.RequireAny && iss != i.name {
			return Refused
		}
	}
	if len(s.issuers) == 0 {
		r.Claims = nil
	} else if r.Claims != nil {
		known := false
		for _, i := range s.issuers {
			known = known || i.name == r.Claims["iss"]
		}
		if !known {
			return Refused
		}
	}
	for _, l := range s.m.AccessLists {
		if _, refused := eval.Refuses(s.m, domainsOf(s.m), l, &r); refused {
			return Refused
		}
	}
	for _, p := range s.m.RegoPolicies {
		if !allows(s, p.Form.Surely, &r) {
			return Refused
		}
	}
	d, err := eval.Authorize(domainsOf(s.m), s.m.AuthorizationPolicies, r)
	if err != nil {
		t.Fatal(err)
	}
	if d.Allowed {
		return Allowed
	}
	return Refused
}

// locate gives the cell of each variable in which a request is.
func locate(t *testing.T, s *requestSpace, req *eval.Request) map[string]region.Set {
	t.Helper()
	out := map[string]region.Set{}
	for name, v := range s.vars {
		at := []string{""}
		switch name {
		case principalVar:
			if req.Principal != "" {
				at[0] = spiffeScheme + req.Principal
			}
		case methodVar:
			at[0] = req.Method
		case pathVar:
			at[0] = req.Path + queryOf(req)
		case hostVar:
			at[0] = req.Host
		case sourceVar:
			at[0] = req.Source.String()
		case tokenVar:
			if iss, _ := req.Claims["iss"].(string); iss == badToken {
				at[0] = badToken
			} else if req.Claims != nil {
				at[0] = iss + tokenJoint + req.Claims["sub"].(string)
			}
		case "header x-test":
			if value, there := req.Headers["x-test"]; there {
				at[0] = value
			} else {
				at = nil
			}
		case "claim groups":
			at, _ = req.Claims["groups"].([]string)
		default:
			t.Fatalf("variable %q", name)
		}
		if at == nil {
			out[name] = v.Absent()
			continue
		}
		set, err := v.LocateList(at)
		if err != nil {
			t.Fatal(err)
		}
		out[name] = set
	}
	return out
}

// within says whether what is in these cells is in a region.
func within(cells map[string]region.Set, r region.Region) bool {
	for _, c := range r.Constraints {
		if cells[c.Var.Name()].And(c.Set).Empty() {
			return false
		}
	}
	return true
}

// TestDiffIsExact compares the differences of random pairs of meshes with the
// decisions about every request of a small world: each request whose decision flips is
// in exactly one of the regions, with that outcome, and no other request is in any.
func TestDiffIsExact(t *testing.T) {
	pairs, g := 8, seeded(t, 0)
	if proctest.Few() {
		pairs = 4
	}
	requests := universe()
	flipped, stayed := 0, 0
	for range pairs {
		before, after := g.mesh(), g.mesh()
		var sides [2]*side
		for i, m := range []*model.Mesh{before, after} {
			var err error
			if sides[i], err = newSide(m, m.Proxies[0], m.Proxies[0].Ports[0], nil, ""); err != nil {
				t.Fatal(err)
			}
		}
		space, regions, err := regionsOf(sides[0], sides[1])
		if err != nil {
			t.Fatal(err)
		}
		for range 300 {
			req := requests[g.IntN(len(requests))]
			if iss, _ := req.Claims["iss"].(string); iss != "" && iss != badToken && !knows(sides[:], iss) {
				continue // to both it is just a bad token
			}
			want := ""
			if was, is := bruteForce(t, sides[0], req), bruteForce(t, sides[1], req); was != is {
				want = was + arrow + is
			}
			var got []string
			cells := locate(t, space, req)
			for _, r := range regions {
				if within(cells, r) {
					got = append(got, r.Outcome)
				}
			}
			if want == "" {
				stayed++
			} else {
				flipped++
			}
			if strings.Join(got, ", ") != want {
				t.Fatalf("request %+v\n is in %q, want %q\nbefore %v\nafter %v", req, got, want, before.AuthorizationPolicies, after.AuthorizationPolicies)
			}
		}
	}
	t.Logf("%d requests flip, %d do not", flipped, stayed)
	if flipped < pairs*5 || stayed < pairs*5 {
		t.Error("the requests are too much alike to test anything")
	}
}

func knows(sides []*side, issuer string) bool {
	for _, s := range sides {
		for _, i := range s.issuers {
			if i.name == issuer {
				return true
			}
		}
	}
	return false
}

// TestDiffOfManyPolicies: what differs is found among many rules, and told by itself.
func TestDiffOfManyPolicies(t *testing.T) {
	const many = 300
	mesh := func(changed string) *model.Mesh {
		m := &model.Mesh{Config: &meshv1.MeshConfig{}, TrustDomain: "td", RootNamespace: "root"}
		m.Proxies = []*model.Proxy{{Name: "w-1", Namespace: "a", ServiceAccount: "x", Ports: []model.WorkloadPort{{Port: 80, Protocol: model.HTTP}}}}
		for i := range many {
			path := fmt.Sprintf("/%d/*", i)
			if i == many/2 {
				path = changed
			}
			m.AuthorizationPolicies = append(m.AuthorizationPolicies, &model.AuthorizationPolicy{
				Meta: model.Meta{Ref: model.Ref{Kind: "AuthorizationPolicy", Namespace: "a", Name: fmt.Sprint("p", i)}},
				Spec: &security.AuthorizationPolicy{Rules: []*security.Rule{{
					From: []*security.Rule_From{{Source: &security.Source{Principals: []string{fmt.Sprintf("td/ns/a/sa/c%d", i)}}}},
					To:   []*security.Rule_To{{Operation: &security.Operation{Paths: []string{path}}}},
				}}},
			})
		}
		return m
	}
	d, err := Diff(mesh("/x"), mesh("/y"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range d.Flips {
		got = append(got, fmt.Sprint(f.Before, arrow, f.After, " ", f.Conditions))
	}
	want := []string{"allowed → refused [principal: td/ns/a/sa/c150 path: /x]", "refused → allowed [principal: td/ns/a/sa/c150 path: /y]"}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

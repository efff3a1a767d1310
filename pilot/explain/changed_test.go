package explain

import (
	"fmt"
	"strings"
	"testing"

	security "istio.io/api/security/v1beta1"

	"github.com/writ-mesh/writ/pilot/model"
)

// manyRules is a mesh with n policies on one workload; that numbered changed takes POST.
func manyRules(n, changed int) *model.Mesh {
	m := &model.Mesh{TrustDomain: "cluster.local", RootNamespace: "istio-system", Proxies: []*model.Proxy{{
		Name: "web-1", Namespace: "default", ServiceAccount: "web", Type: model.SidecarProxy, Labels: map[string]string{"app": "web"},
		Ports: []model.WorkloadPort{{Name: "http", Protocol: model.HTTP, Port: 80, App: 80}},
	}}}
	for i := range n {
		rule := &security.Rule{To: []*security.Rule_To{{Operation: &security.Operation{Methods: []string{"GET"}, Paths: []string{fmt.Sprintf("/item-%d", i)}}}}}
		if i%2 == 0 {
			rule = &security.Rule{
				From: []*security.Rule_From{{Source: &security.Source{Principals: []string{fmt.Sprintf("cluster.local/ns/default/sa/client-%d", i)}}}},
				To:   []*security.Rule_To{{Operation: &security.Operation{Methods: []string{"GET"}}}},
			}
		}
		if i == changed {
			rule.GetTo()[0].GetOperation().Methods = []string{"POST"}
		}
		m.AuthorizationPolicies = append(m.AuthorizationPolicies, &model.AuthorizationPolicy{
			Meta: model.Meta{Ref: model.Ref{Kind: "AuthorizationPolicy", Namespace: "default", Name: fmt.Sprintf("p%d", i)}},
			Spec: &security.AuthorizationPolicy{Rules: []*security.Rule{rule}},
		})
	}
	return m
}

// TestDiffOfOneAmongMany: what is left to compare are the changed rules and those that
// match a request with them, and the answer is that of the whole.
func TestDiffOfOneAmongMany(t *testing.T) {
	for _, changed := range []int{6, 7} {
		before, after := manyRules(40, -1), manyRules(40, changed)
		var sides [2]*side
		for i, m := range []*model.Mesh{before, after} {
			var err error
			if sides[i], err = newSide(m, m.Proxies[0], m.Proxies[0].Ports[0], nil, ""); err != nil {
				t.Fatal(err)
			}
		}
		a, b := onlyRulesDiffer(sides[0], sides[1])
		if len(a.allow) != 21 || len(b.allow) != 21 { // itself, and the half that is about something else
			t.Errorf("%d and %d rules are left of 40, want 21", len(a.allow), len(b.allow))
		}
		told := func(a, b *side) string {
			space, regions, err := regionsOf(a, b)
			if err != nil {
				t.Fatal(err)
			}
			var out []string
			for _, r := range regions {
				f := space.flip(sides[0], sides[1], r)
				out = append(out, fmt.Sprint(f.Before, f.After, f.Conditions, f.Example))
			}
			return strings.Join(out, "\n")
		}
		whole, part := told(sides[0], sides[1]), told(a, b)
		if whole != part || strings.Count(part, "\n") == 0 {
			t.Errorf("of all rules:\n%s\nof those that are left:\n%s", whole, part)
		}
	}
}

// TestDiffOfLongRules: it is the values that are compared, and they are bounded.
func TestDiffOfLongRules(t *testing.T) {
	var sides [2]*side
	for i, last := range []string{"/a", "/b"} {
		m := manyRules(2, -1)
		for n, pol := range m.AuthorizationPolicies {
			paths := make([]string, 8000)
			for j := range paths {
				paths[j] = fmt.Sprintf("/%d/%d", n, j)
			}
			if n == 1 {
				paths[0] = last
			}
			pol.Spec.Rules[0] = &security.Rule{To: []*security.Rule_To{{Operation: &security.Operation{Paths: paths}}}}
		}
		var err error
		if sides[i], err = newSide(m, m.Proxies[0], m.Proxies[0].Ports[0], nil, ""); err != nil {
			t.Fatal(err)
		}
	}
	if a, b := onlyRulesDiffer(sides[0], sides[1]); a != sides[0] || b != sides[1] {
		t.Error("8000 values are compared with 8000")
	}
}

// TestReach: rules that a request may match both are never told apart.
func TestReach(t *testing.T) {
	s := &side{m: &model.Mesh{TrustDomain: "mesh.example", TrustDomainAliases: []string{"old"}}}
	for _, c := range []struct {
		key, a, b string
		meet      bool
	}{
		{"source.principal", "mesh.example/ns/a/sa/x", "mesh.example/ns/a/sa/x", true},
		{"source.principal", "mesh.example/ns/a/sa/x", "mesh.example/ns/a/sa/y", false},
		{"source.principal", "mesh.example/ns/a/sa/x", "old/ns/a/sa/x", true},
		{"source.principal", "cluster.local/ns/a/sa/x", "old/ns/a/sa/x", true},
		{"source.principal", "other/ns/a/sa/x", "old/ns/a/sa/x", false},
		{"source.principal", "old/ns/a/*", "mesh.example/ns/a/sa/x", true},
		{"source.principal", "old/ns/a/*", "mesh.example/ns/ab/*", false},
		{"source.principal", "*", "mesh.example/ns/a/sa/x", true},
		{"source.principal", "*/sa/x", "mesh.example/ns/a/sa/y", true}, // not known
		{"source.principal", "o*", "old/ns/a/sa/x", true},
		{"paths", "/a", "/a", true},
		{"paths", "/a", "/a/b", false},
		{"paths", "/a/*", "/a/b", true},
		{"paths", "/a/{*}", "/b", true}, // not known
		{"paths", "*b", "/a", true},     // not known
		{"methods", "GET", "POST", false},
		{"methods", "*", "POST", true},
	} {
		of := func(value string) reach {
			w, ok := s.wantedValue(c.key, value)
			if !ok {
				return reach{}
			}
			return reach{c.key: {w}}
		}
		if got := of(c.a).meets(of(c.b)); got != c.meet {
			t.Errorf("%s %s and %s: %v, want %v", c.key, c.a, c.b, got, c.meet)
		}
	}
}

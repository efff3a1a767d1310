package eval

import (
	"testing"

	security "istio.io/api/security/v1beta1"

	"github.com/writ-mesh/writ/pilot/model"
)

// What is kept is what is made anew, for each proxy and policy of its own.
func TestCompiled(t *testing.T) {
	policy := func(name string, key string) *model.AuthorizationPolicy {
		return &model.AuthorizationPolicy{Meta: model.Meta{Ref: model.Ref{Kind: "AuthorizationPolicy", Namespace: name, Name: name}}, Spec: &security.AuthorizationPolicy{
			Rules: []*security.Rule{{When: []*security.Condition{{Key: key, Values: []string{"x"}}}}},
		}}
	}
	a, b := policy("a", "request.headers[x]"), policy("b", "nothing")
	m := &model.Mesh{AuthorizationPolicies: []*model.AuthorizationPolicy{a, b}}
	p, q := &model.Proxy{Namespace: "a"}, &model.Proxy{Namespace: "b"}
	var none *Compiled
	kept := NewCompiled()
	for range 2 {
		for _, proxy := range []*model.Proxy{p, q} {
			if got, want := kept.Select(m, proxy).Allow, none.Select(m, proxy).Allow; len(want) != 1 || len(got) != 1 || got[0] != want[0] {
				t.Errorf("%s: %v, want %v", proxy.Namespace, got, want)
			}
		}
		for _, tcp := range []bool{false, true} {
			got, err := kept.Rules(Domains{}, a, tcp)
			want, _ := none.Rules(Domains{}, a, tcp)
			if err != nil || len(got) != 1 || got[0].Never != want[0].Never || got[0].Policy != a {
				t.Errorf("%v, error %v, want %v", got, err, want)
			}
			again, _ := kept.Rules(Domains{}, a, tcp)
			if again[0] != got[0] {
				t.Error("the rules were made again")
			}
			if _, err := kept.Rules(Domains{}, b, tcp); err == nil {
				t.Error("no error of a rule that is wrong")
			}
		}
	}
}

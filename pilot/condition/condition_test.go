package condition_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	rbachttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	rbactcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"

	"github.com/writ-mesh/writ/pilot/condition"
	"github.com/writ-mesh/writ/pilot/meshdir"
	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/security"
	"github.com/writ-mesh/writ/pilot/security/eval"
)

// TestEveryKeyIsKnownToAll gives each key to the check of the mesh directory, to
// the compiler and to the evaluator.
func TestEveryKeyIsKnownToAll(t *testing.T) {
	for _, k := range condition.Keys() {
		t.Run(k.Name, func(t *testing.T) {
			m, problems := meshdir.Parse(document("ALLOW", k.Example, good(k.Values)), nil, meshdir.Options{})
			problems = meshdir.Errors(problems) // nobody is here whom a value could name
			if len(problems) > 0 || len(m.AuthorizationPolicies) != 1 {
				t.Fatalf("%d policies, %v", len(m.AuthorizationPolicies), problems)
			}
			rule := compiled(t, m, model.HTTP)["AuthorizationPolicy default/p rule 0"]
			if anyCaller := rule.GetPrincipals()[0].GetAny(); anyCaller == (k.Side == condition.Caller) {
				t.Errorf("any caller %v, and it is of the side %v", anyCaller, k.Side)
			}
			if anything := rule.GetPermissions()[0].GetAny(); anything == (k.Side == condition.Called) {
				t.Errorf("anything called %v, and it is of the side %v", anything, k.Side)
			}
			if tcp := compiled(t, m, model.TCP); (len(tcp) == 0) != k.HTTPOnly {
				t.Errorf("%d rules for TCP, and HTTPOnly is %v", len(tcp), k.HTTPOnly)
			}
			for _, tcp := range []bool{false, true} {
				if got, err := eval.Authorize(eval.Domains{}, m.AuthorizationPolicies, eval.Request{TCP: tcp}); err != nil || got.Allowed {
					t.Errorf("the evaluator says %+v, %v", got, err)
				}
			}
			custom := mentions(document("CUSTOM", k.Example, good(k.Values)), "cannot be used with action CUSTOM")
			if custom != k.Identity {
				t.Errorf("refused for CUSTOM: %v, and Identity is %v", custom, k.Identity)
			}
			if k.Values != condition.Text && !mentions(document("ALLOW", k.Example, "not*good"), "when[0].values[0]") {
				t.Error("a value of a wrong form is taken")
			}
		})
	}
}

// TestUnknownKeys has what none of them may take for a key.
func TestUnknownKeys(t *testing.T) {
	for _, key := range []string{
		"", "source", "source.ip[a]", "source.ips", "request.headers", "request.headers[", "request.headers[]", "request.headers[a", "request.headers.a",
		"request.auth.claims", "experimental.envoy.filters.", "experimental.envoy.filters.a", "experimental.envoy.filters.a[]", "hosts", "methods", "paths",
	} {
		if _, _, ok := condition.Find(key); ok {
			t.Errorf("%q is found", key)
		}
		if !mentions(document("ALLOW", key, "x"), "when[0].key") {
			t.Errorf("%q: the mesh directory takes it", key)
		}
		m, _ := meshdir.Parse(document("ALLOW", condition.SNI, "x"), nil, meshdir.Options{})
		m.AuthorizationPolicies[0].Spec.Rules[0].When[0].Key = key
		if _, err := compile(t, m).HTTP(&model.Proxy{Namespace: "default"}, model.WorkloadPort{Port: 80, Protocol: model.HTTP}); err == nil {
			t.Errorf("%q: the compiler takes it", key)
		}
		if got, err := eval.Authorize(eval.Domains{}, m.AuthorizationPolicies, eval.Request{}); err == nil {
			t.Errorf("%q: the evaluator says %+v", key, got)
		}
	}
}

func document(action, key, value string) map[string][]byte {
	return map[string][]byte{"a.yaml": fmt.Appendf(nil,
		"apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\nspec: {action: %s, rules: [{when: [{key: '%s', values: ['%s']}]}]}\n", action, key, value)}
}

func mentions(files map[string][]byte, want string) bool {
	_, problems := meshdir.Parse(files, nil, meshdir.Options{})
	for _, p := range problems {
		if strings.Contains(p.String(), want) {
			return true
		}
	}
	return false
}

func good(form condition.Form) string {
	switch form {
	case condition.Networks:
		return "10.0.0.0/8"
	case condition.Ports:
		return "80"
	case condition.Accounts, condition.Domains, condition.Text:
	}
	return "a"
}

func compile(t *testing.T, m *model.Mesh) *security.Compiler {
	t.Helper()
	c, err := security.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// compiled gives the RBAC policies for one port.
func compiled(t *testing.T, m *model.Mesh, protocol model.Protocol) map[string]*rbacv3.Policy {
	t.Helper()
	p, port := &model.Proxy{Namespace: "default"}, model.WorkloadPort{Port: 80, Protocol: protocol}
	if protocol.IsHTTP() {
		out, err := compile(t, m).HTTP(p, port)
		if err != nil {
			t.Fatal(err)
		}
		var filter rbachttpv3.RBACPerRoute
		if err := out.PerFilterConfig["writ.allow"].UnmarshalTo(&filter); err != nil {
			t.Fatal(err)
		}
		return filter.GetRbac().GetRules().GetPolicies()
	}
	out, err := compile(t, m).TCP(p, port)
	if err != nil {
		t.Fatal(err)
	}
	allow := slices.IndexFunc(out.Filters, func(f *listenerv3.Filter) bool { return f.GetName() == "writ.allow" })
	if allow < 0 {
		t.Fatal("nothing is allowed or not")
	}
	var filter rbactcpv3.RBAC
	if err := out.Filters[allow].GetTypedConfig().UnmarshalTo(&filter); err != nil {
		t.Fatal(err)
	}
	return filter.GetRules().GetPolicies()
}

package meshdir

import (
	"strings"
	"testing"

	"github.com/writ-mesh/writ/pilot/model"
)

func entry(namespace, host, more string) string {
	return "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e, namespace: " + namespace + more + "}\n" +
		"spec: {hosts: [" + host + "], location: MESH_EXTERNAL, resolution: STATIC, ports: [{number: 9080, name: http, protocol: HTTP}], endpoints: [{address: 192.0.2.1}]}\n"
}

// TestWhoseHost: nobody gets at the name of another namespace's service.
func TestWhoseHost(t *testing.T) {
	const host = "pay.shop.svc.cluster.local"
	const service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: pay, namespace: shop}\nspec: {ports: [{name: http, port: 9080}]}\n"
	const workload = "---\napiVersion: local.writ.mesh/v1alpha1\nkind: LocalWorkload\nmetadata: {name: pay, namespace: shop}\nspec: {ports: [{name: http, port: 9080}]}\n"
	for _, tc := range []struct {
		name, yaml, host string
		from             map[string]string // whose service a namespace gets
		warned           string
	}{
		{"a Service goes before a ServiceEntry of another namespace", service + entry("aaa", host, ""), host, map[string]string{"shop": "Service shop", "zzz": "Service shop", "aaa": "Service shop"}, "is the name of Service shop/pay"},
		{"so does one that is older", service + entry("aaa", host, ", creationTimestamp: '2001-01-01T00:00:00Z'"), host, map[string]string{"zzz": "Service shop"}, "is the name of"},
		{"and one of its own namespace, as in Istio", service + entry("shop", host, ""), host, map[string]string{"zzz": "Service shop"}, "is the name of"},
		{"a service that follows from workloads goes before it as well", workload + entry("aaa", host, ""), host, map[string]string{"zzz": "LocalWorkload shop", "aaa": "LocalWorkload shop"}, "is the name of LocalWorkload shop/pay"},
		{"but not before one of its own namespace", workload + entry("shop", host, ""), host, map[string]string{"zzz": "ServiceEntry shop"}, ""},
		{"without a service a ServiceEntry has the name", entry("aaa", host, ""), host, map[string]string{"zzz": "ServiceEntry aaa"}, ""},
		{"whose namespace is in the name goes first", entry("aaa", host, "") + entry("shop", host, ""), host, map[string]string{"zzz": "ServiceEntry shop", "aaa": "ServiceEntry aaa"}, "is also that of ServiceEntry shop/e"},
		{"one's own goes first", entry("aaa", "a.example.com", "") + entry("shop", "a.example.com", ""), "a.example.com", map[string]string{"zzz": "ServiceEntry aaa", "shop": "ServiceEntry shop"}, "is also that of ServiceEntry aaa/e"},
		{"then the older", entry("aaa", "a.example.com", ", creationTimestamp: '2026-01-01T00:00:00Z'") + entry("shop", "a.example.com", ", creationTimestamp: '2025-01-01T00:00:00Z'"), "a.example.com", map[string]string{"zzz": "ServiceEntry shop"}, "is also that of ServiceEntry shop/e"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			mesh, problems := Parse(map[string][]byte{"a.yaml": []byte(tc.yaml)}, nil, Options{})
			for from, want := range tc.from {
				s := mesh.ServiceByHost(tc.host, from)
				if got := s.Kind + " " + s.Namespace; got != want {
					t.Errorf("%s gets %s, want %s", from, got, want)
				}
			}
			var warnings []string
			for _, p := range problems {
				if p.Severity == Error {
					t.Error(p)
				}
				if strings.Contains(p.Message, "is the name of") || strings.Contains(p.Message, "is also that of") {
					warnings = append(warnings, p.String())
				}
			}
			if (tc.warned == "") != (len(warnings) == 0) || tc.warned != "" && !strings.Contains(strings.Join(warnings, "\n"), tc.warned) {
				t.Errorf("warnings %q, want %q", warnings, tc.warned)
			}
		})
	}
}

// TestPolicyHost: what policies trust is never another namespace's to say.
func TestPolicyHost(t *testing.T) {
	mesh, _ := Parse(map[string][]byte{"a.yaml": []byte(
		entry("aaa", "issuer.corp.example", "") + entry("shop", "issuer.corp.example", "") + strings.Replace(entry("aaa", "keys.corp.example", ""), "name: e,", "name: f,", 1) + entry("istio-system", "root.corp.example", "") + strings.Replace(entry("aaa", "root.corp.example", ""), "name: e,", "name: g,", 1) +
			"---\napiVersion: v1\nkind: Service\nmetadata: {name: keys, namespace: shop}\nspec: {ports: [{name: http, port: 80}]}\n",
	)}, nil, Options{})
	for _, tc := range []struct{ host, from, want string }{
		{"issuer.corp.example", "shop", "ServiceEntry shop"},
		{"issuer.corp.example", "istio-system", ""},
		{"issuer.corp.example", "zzz", ""},
		{"keys.corp.example", "zzz", ""},
		{"keys.corp.example", "aaa", "ServiceEntry aaa"},
		{"root.corp.example", "zzz", "ServiceEntry istio-system"},
		{"keys.shop.svc.cluster.local", "zzz", "Service shop"},
		{"keys.shop.svc.cluster.local", "istio-system", "Service shop"},
	} {
		if got := owner(mesh.PolicyHost(tc.host, tc.from)); got != tc.want {
			t.Errorf("%s for a policy of %s: %q, want %q", tc.host, tc.from, got, tc.want)
		}
	}
}

func owner(s *model.Service) string {
	if s == nil {
		return ""
	}
	return s.Kind + " " + s.Namespace
}

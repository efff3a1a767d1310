package meshdir

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/writ-mesh/writ/pilot/model"
)

func proxyNames(m *model.Mesh) []string {
	var out []string
	for _, p := range m.Proxies {
		out = append(out, p.Namespace+"/"+p.Name+" as "+p.ServiceAccount)
	}
	slices.Sort(out)
	return out
}

// TestAssume: of a directory that nothing runs from there is one replica of each
// workload, and a proxy of each Gateway.
func TestAssume(t *testing.T) {
	m, problems := Assume(Options{Dir: "../../examples/bookinfo"})
	if bad := Errors(problems); len(bad) > 0 {
		t.Fatal(bad)
	}
	want := []string{
		"default/details-1 as bookinfo-details", "default/productpage-1 as bookinfo-productpage", "default/ratings-1 as bookinfo-ratings",
		"default/reviews-v1-1 as bookinfo-reviews", "default/reviews-v2-1 as bookinfo-reviews", "default/reviews-v3-1 as bookinfo-reviews",
		"istio-system/bookinfo-gateway as istio-ingressgateway-service-account",
	}
	if got := proxyNames(m); !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	if s := m.ServiceByHost("ratings.default.svc.cluster.local", "default"); s == nil || len(s.Endpoints) != 1 || s.Endpoints[0].Proxy == nil {
		t.Errorf("ratings is %+v", s)
	}
	ratings := m.AuthorizationPolicies[slices.IndexFunc(m.AuthorizationPolicies, func(p *model.AuthorizationPolicy) bool { return p.Name == "ratings" })]
	if !slices.Equal(ratings.RuleLines, []int{34}) {
		t.Errorf("the rules of ratings are in the lines %v", ratings.RuleLines)
	}
	if m, problems := Assume(Options{Dir: "/nowhere"}); m != nil || len(problems) != 1 {
		t.Errorf("of no directory: %v, %v", m, problems)
	}
}

// TestAssumeKnown: replicas of a directory that ran have the addresses that they had.
func TestAssumeKnown(t *testing.T) {
	file := filepath.Join(t.TempDir(), "instances.yaml")
	data, err := MarshalInstances([]Instance{
		{Name: "ratings-1", Namespace: "default", Spec: InstanceSpec{ServiceAccount: "other", Type: "sidecar", Address: "127.16.1.3"}},
		{Name: "details-1", Namespace: "default", Spec: InstanceSpec{ServiceAccount: "details", Type: "gateway", Address: "127.16.1.4"}},
		{Name: "bookinfo-gateway", Namespace: "istio-system", Spec: InstanceSpec{ServiceAccount: "g", Type: "gateway", Address: "127.0.0.1", GatewayPorts: map[uint32]uint32{80: 8080}}},
		{Name: "gone-1", Namespace: "default", Spec: InstanceSpec{ServiceAccount: "gone", Address: "127.16.1.5"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	m, problems := Assume(Options{Dir: "../../examples/bookinfo", InstancesFile: file})
	if bad := Errors(problems); len(bad) > 0 {
		t.Fatal(bad)
	}
	got := map[string]string{}
	for _, p := range m.Proxies {
		got[p.Name] = p.Address.String()
		if p.Name == "ratings-1" && p.ServiceAccount != "bookinfo-ratings" {
			t.Errorf("ratings-1 runs as %s", p.ServiceAccount)
		}
		if p.Name == "bookinfo-gateway" && p.GatewayPorts[80] != 8080 {
			t.Errorf("the gateway's ports are %v", p.GatewayPorts)
		}
	}
	if got["ratings-1"] != "127.16.1.3" || got["bookinfo-gateway"] != "127.0.0.1" || got["details-1"] != "127.255.0.2" || got["gone-1"] != "" {
		t.Errorf("addresses are %v", got)
	}
}

// TestContents: the files of a mesh make the same mesh elsewhere, also after the
// directory has changed.
func TestContents(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "a.yaml")
	instances := filepath.Join(t.TempDir(), "instances.yaml")
	data, err := MarshalInstances([]Instance{{Name: "a-1", Namespace: "default", Spec: InstanceSpec{ServiceAccount: "a", Address: "127.0.1.1"}}})
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(instances, string(data))
	write(file, "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\nspec: {rules: [{}]}\n")
	r := NewReader(Options{Dir: dir, InstancesFile: instances})
	first, _, _ := r.Read()
	write(file, "apiVersion: v1\nkind: Namespace\nmetadata: {name: other}\n")
	second, _, _ := r.Read()
	m, problems := ParseVersion(r.Contents(first), Options{Deciders: model.Deciders{Authz: "unix:///a"}})
	if bad := Errors(problems); len(bad) > 0 || len(m.AuthorizationPolicies) != 1 || m.Deciders.Authz != "unix:///a" || !slices.Equal(proxyNames(m), proxyNames(first)) {
		t.Errorf("%v, %+v", bad, m)
	}
	before, after := r.Contents(first), r.Contents(second)
	if len(after) != 2 || string(before["a.yaml"]) == string(after["a.yaml"]) {
		t.Errorf("the second has %d files", len(after))
	}
	if r.Contents(&model.Mesh{}) != nil {
		t.Error("a mesh of another has files")
	}
}

package security

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	rbachttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"

	"github.com/writ-mesh/writ/pilot/model"
)

// TestRoutesSayWhatAModeDemands: the virtual host of a port refuses whom its filter chains
// refuse, beside malformed requests. `pilot.TestNoHalfOfAnEditCounts` has Envoys decide.
func TestRoutesSayWhatAModeDemands(t *testing.T) {
	port := func(p *model.Proxy) model.WorkloadPort {
		if p.Type == model.GatewayProxy {
			return model.WorkloadPort{}
		}
		return model.WorkloadPort{Name: "http", Protocol: model.HTTP, Port: 8080, App: 8080}
	}
	rules := func(m *model.Mesh, p *model.Proxy) (names []string) {
		c, err := New(m)
		if err != nil {
			t.Fatal(err)
		}
		h, err := c.HTTP(p, port(p))
		if err != nil {
			t.Fatal(err)
		}
		packed := h.PerFilterConfig[filterMalformed]
		if packed == nil {
			return nil
		}
		its := &rbachttpv3.RBACPerRoute{}
		if err := packed.UnmarshalTo(its); err != nil {
			t.Fatal(err)
		}
		return slices.Sorted(maps.Keys(its.GetRbac().GetRules().GetPolicies()))
	}
	with := func(more ...string) []string {
		return slices.Sorted(slices.Values(append(slices.Collect(maps.Keys(malformed().GetRules().GetPolicies())), more...)))
	}
	allow := policy("allow", "rules: [{from: [{source: {principals: ['cluster.local/ns/default/sa/sleep']}}]}]")
	observed := strings.Replace(allow, "metadata: {", `metadata: {annotations: {istio.io/dry-run: "true"}, `, 1)
	for _, c := range []struct {
		mode, policy string
		want         []string
	}{
		{"PERMISSIVE", "", nil},
		{"PERMISSIVE", allow, nil},
		{"STRICT", "", with("PeerAuthentication STRICT")},
		{"STRICT", allow, with("PeerAuthentication STRICT")},
		{"DISABLE", "", nil},
		{"DISABLE", allow, with("PeerAuthentication DISABLE")},
		{"DISABLE", observed, nil},
	} {
		m := newMesh(t, c.policy)
		addDocument(t, m, fmt.Sprintf("kind: PeerAuthentication\nmetadata: {name: mode}\nspec: {mtls: {mode: %s}}", c.mode))
		if got := rules(m, workload()); !slices.Equal(got, c.want) {
			t.Errorf("%s, policies %q: %q, want %q", c.mode, c.policy, got, c.want)
		}
		gateway := workload()
		gateway.Type = model.GatewayProxy
		if got := rules(m, gateway); got != nil {
			t.Errorf("%s at a gateway: %q", c.mode, got)
		}
	}
}

package stack

import (
	"path/filepath"
	"testing"

	"github.com/writ-mesh/writ/pilot/meshdir"
	"github.com/writ-mesh/writ/pilot/model"
)

// TestSameNamedGateways: a Gateway that comes takes neither name, account, address
// nor port of one that is there, whatever its namespace sorts like.
func TestSameNamedGateways(t *testing.T) {
	gateway := func(namespace, name, account string, ports ...uint32) meshdir.GatewayPlan {
		g := meshdir.GatewayPlan{Name: name, Namespace: "istio-system", ServiceAccount: account, Object: model.Ref{Kind: "Gateway", Namespace: namespace, Name: name}}
		for _, p := range ports {
			g.Ports = append(g.Ports, meshdir.GatewayPort{Number: p, Protocol: model.HTTP})
		}
		return g
	}
	state := filepath.Join(t.TempDir(), addressesFile)
	planOf := func(gateways ...meshdir.GatewayPlan) map[string]replica {
		t.Helper()
		addr, err := readAddresses(state)
		if err != nil {
			t.Fatal(err)
		}
		addr.Block = 77
		s := &Stack{addr: addr}
		var p plan
		if err := s.planGateways(&p, gateways); err != nil {
			t.Fatal(err)
		}
		if err := addr.save(); err != nil {
			t.Fatal(err)
		}
		out := map[string]replica{}
		for _, r := range p.replicas {
			out[r.instance.Spec.Gateway] = r
		}
		if len(out) != len(gateways) || len(p.byKey()) != len(gateways) {
			t.Fatalf("%d proxies for %d Gateways", len(p.byKey()), len(gateways))
		}
		return out
	}
	victim := gateway("default", "shop", "shop", 18080)
	before := planOf(victim)["default/shop"]
	after := planOf(gateway("aaa", "shop", "shop", 18080), gateway("bbb", "shop", "istio-x-service-account", 18081), victim)
	if got := after["default/shop"]; got.key() != before.key() || got.url != before.url || got.url != "http://127.0.0.1:18080" || !before.sameProcesses(got) {
		t.Errorf("before %+v\nafter %+v", before, got)
	}
	if got := after["aaa/shop"].instance; got.Name != "shop.aaa" || got.Spec.ServiceAccount != "shop.aaa" || got.Spec.Address == "127.0.0.1" {
		t.Errorf("aaa/shop is %+v", got)
	}
	if got := after["bbb/shop"].instance; got.Name != "shop.bbb" || got.Spec.ServiceAccount != "istio-x-service-account" || got.Spec.Address != "127.0.0.1" {
		t.Errorf("bbb/shop is %+v", got)
	}
	// When it goes, and only then, the name and the port are free.
	if got := planOf(gateway("aaa", "shop", "shop", 18080))["aaa/shop"]; got.instance.Name != "shop" || got.url != "http://127.0.0.1:18080" {
		t.Errorf("alone aaa/shop is %+v", got)
	}
}

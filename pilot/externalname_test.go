package pilot

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/writ-mesh/writ/pilot/meshdir"
	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/security"
	"github.com/writ-mesh/writ/pilot/translate"
)

// TestExternalNameIsLookedUp: what no service has is looked up in DNS by the sidecar, in
// plain text, and found under every form of the Service's name.
func TestExternalNameIsLookedUp(t *testing.T) {
	m, problems := meshdir.Parse(map[string][]byte{"a.yaml": []byte(`apiVersion: v1
kind: Service
metadata: {name: outside, namespace: team}
spec: {type: ExternalName, externalName: Database.Example.com., ports: [{name: http, port: 80}, {name: tcp, port: 5432}]}
---
apiVersion: v1
kind: Service
metadata: {name: over, namespace: default}
spec: {type: ExternalName, externalName: outside.team.svc.cluster.local, ports: [{name: http, port: 81}]}
`)}, nil, meshdir.Options{})
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	p := &model.Proxy{ID: "sidecar~p", Name: "p", Namespace: "team", ServiceAccount: "p", Address: netip.MustParseAddr("127.9.9.9"), Interception: model.Explicit}
	m.Proxies = append(m.Proxies, p)
	policy, err := security.New(m)
	if err != nil {
		t.Fatal(err)
	}
	tr, err := translate.New(m, policy)
	if err != nil {
		t.Fatal(err)
	}
	snapshot, err := tr.Proxy(p)
	if err != nil {
		t.Fatal(err)
	}
	clusters := map[string]*clusterv3.Cluster{}
	for _, r := range snapshot.Clusters {
		clusters[r.Name] = r.Message.(*clusterv3.Cluster)
	}
	for name, port := range map[string]uint32{
		"outbound|80||outside.team.svc.cluster.local": 80, "outbound|5432||outside.team.svc.cluster.local": 5432, "outbound|81||over.default.svc.cluster.local": 81,
	} {
		c := clusters[name]
		if c.GetType() != clusterv3.Cluster_STRICT_DNS || c.GetTransportSocket() != nil || len(c.GetTransportSocketMatches()) > 0 {
			t.Errorf("%s: %v", name, c)
			continue
		}
		var got []string
		for _, group := range c.GetLoadAssignment().GetEndpoints() {
			for _, e := range group.GetLbEndpoints() {
				a := e.GetEndpoint().GetAddress().GetSocketAddress()
				got = append(got, fmt.Sprintf("%s:%d", a.GetAddress(), a.GetPortValue()))
			}
		}
		if want := []string{fmt.Sprintf("database.example.com:%d", port)}; !slices.Equal(got, want) {
			t.Errorf("%s goes to %q, want %q", name, got, want)
		}
	}
	var hosts []string
	for _, r := range snapshot.Routes {
		for _, vh := range r.Message.(*routev3.RouteConfiguration).GetVirtualHosts() {
			hosts = append(hosts, vh.GetDomains()...)
		}
	}
	for _, want := range []string{"outside", "outside:80", "outside.team", "outside.team.svc.cluster.local:5432", "over.default:81"} {
		if !slices.Contains(hosts, want) {
			t.Errorf("nobody can ask for %s: %q", want, hosts)
		}
	}
}

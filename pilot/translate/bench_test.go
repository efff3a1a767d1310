package translate

import (
	"fmt"
	"testing"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/writ-mesh/writ/pilot/model"
)

// BenchmarkMesh translates 1,000 services with a rule of each kind for as many
// sidecars of one namespace.
func BenchmarkMesh(b *testing.B) {
	m := newMesh(b)
	for i := range 1000 {
		name := fmt.Sprintf("svc-%04d", i)
		p := m.workload(name+"-1", "default", name, map[string]string{"app": name, "version": "v1"}, "http:9080:19080")
		p.ID = fmt.Sprintf("sidecar~127.77.0.0~%s.default~default.svc.cluster.local", p.Name)
		m.service(name, "default", p)
		meta := model.Meta{Ref: model.Ref{Namespace: "default", Name: name}}
		meta.Kind = "DestinationRule"
		m.mesh.DestinationRules = append(m.mesh.DestinationRules, &model.DestinationRule{Meta: meta, Spec: &networking.DestinationRule{
			Host: name, Subsets: []*networking.Subset{{Name: "v1", Labels: map[string]string{"version": "v1"}}},
		}})
		meta.Kind = "VirtualService"
		m.mesh.VirtualServices = append(m.mesh.VirtualServices, &model.VirtualService{Meta: meta, Spec: &networking.VirtualService{
			Hosts: []string{name}, Http: []*networking.HTTPRoute{{Route: []*networking.HTTPRouteDestination{{Destination: &networking.Destination{Host: name, Subset: "v1"}}}}},
		}})
	}
	for b.Loop() {
		t := m.translator()
		for _, p := range m.mesh.Proxies {
			if _, err := t.Proxy(p); err != nil {
				b.Fatal(err)
			}
		}
	}
}

package translate

import (
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/writ-mesh/writ/pilot/model"
)

// index is what all proxies share of a mesh: objects by where they apply, with
// names completed.
type index struct {
	virtualServices  []*virtualService
	destinationRules map[string]*namespaceRules  // by namespace
	gateways         map[string]*model.Gateway   // by namespace/name
	sidecars         map[string][]*model.Sidecar // by namespace, oldest first
	// localities are those of the proxies that stand before an endpoint with one.
	localities map[*model.Proxy]string
	// served are the ports of services that lead to a workload, in the order of the
	// services; nil if no rule says anything about servers.
	served map[*model.Proxy][]served
	// labelKeys are the labels of a client that some object looks at.
	labelKeys []string
}

// virtualService is a VirtualService with host and gateway names completed and
// delegates merged in.
type virtualService struct {
	model.Ref
	hosts    []string
	gateways []string
	exportTo []string
	http     []*httpRoute
	tls      []*networking.TLSRoute
	tcp      []*networking.TCPRoute
	sources  []model.Ref
}

// httpRoute is one rule; short names in it belong to namespace.
type httpRoute struct {
	*networking.HTTPRoute
	namespace string
}

func newIndex(m *model.Mesh) (*index, error) {
	ix := &index{
		destinationRules: map[string]*namespaceRules{},
		gateways:         map[string]*model.Gateway{},
		sidecars:         map[string][]*model.Sidecar{},
		localities:       map[*model.Proxy]string{},
	}
	for _, svc := range m.Services {
		for _, e := range svc.Endpoints {
			if e.Proxy != nil && e.Locality != "" {
				ix.localities[e.Proxy] = e.Locality
			}
		}
	}
	for _, g := range m.Gateways {
		ix.gateways[g.Namespace+"/"+g.Name] = g
	}
	for _, s := range m.Sidecars {
		ix.sidecars[s.Namespace] = append(ix.sidecars[s.Namespace], s)
	}
	ix.addVirtualServices(m)
	ix.addDestinationRules(m)
	ix.addServed(m)
	ix.labelKeys = labelKeys(m)
	return ix, nil
}

func (ix *index) addVirtualServices(m *model.Mesh) {
	byName := map[string]*model.VirtualService{}
	for _, vs := range m.VirtualServices {
		byName[vs.Namespace+"/"+vs.Name] = vs
	}
	for _, vs := range m.VirtualServices {
		if len(vs.Spec.GetHosts()) == 0 {
			continue // a delegate: it only counts where it is named
		}
		v := &virtualService{Ref: vs.Ref, exportTo: exportTo(vs.Spec.GetExportTo(), m.Config.GetDefaultVirtualServiceExportTo()), tls: vs.Spec.GetTls(), tcp: vs.Spec.GetTcp(), sources: []model.Ref{vs.Ref}}
		for _, h := range vs.Spec.GetHosts() {
			v.hosts = append(v.hosts, model.ResolveHost(h, vs.Namespace, m.DomainSuffix))
		}
		for _, g := range vs.Spec.GetGateways() {
			v.gateways = append(v.gateways, model.ResolveGateway(g, vs.Namespace))
		}
		if len(v.gateways) == 0 {
			v.gateways = []string{model.MeshGateway}
		}
		for _, r := range vs.Spec.GetHttp() {
			v.addHTTP(r, vs.Namespace, byName, m.Config.GetDefaultVirtualServiceExportTo())
		}
		ix.virtualServices = append(ix.virtualServices, v)
	}
}

func (v *virtualService) addHTTP(r *networking.HTTPRoute, namespace string, byName map[string]*model.VirtualService, exported []string) {
	if r.GetDelegate() == nil {
		v.http = append(v.http, &httpRoute{HTTPRoute: r, namespace: namespace})
		return
	}
	ns := r.GetDelegate().GetNamespace()
	if ns == "" {
		ns = namespace
	}
	delegate := byName[ns+"/"+r.GetDelegate().GetName()]
	if delegate == nil || !model.ExportedTo(exportTo(delegate.Spec.GetExportTo(), exported), delegate.Namespace, namespace) {
		return
	}
	v.sources = append(v.sources, delegate.Ref)
	for _, leaf := range delegate.Spec.GetHttp() {
		if merged := mergeDelegate(r, leaf); merged != nil {
			v.http = append(v.http, &httpRoute{HTTPRoute: merged, namespace: ns})
		}
	}
}

// locality is where a client is: what an endpoint says that it stands before, else its
// own labels.
func (ix *index) locality(p *model.Proxy) string {
	if l, ok := ix.localities[p]; ok {
		return l
	}
	return model.LocalityOf(p.Labels)
}

// bound says whether the rules hold for one of the gateways (or the mesh).
func (v *virtualService) bound(gateway string) bool { return slices.Contains(v.gateways, gateway) }

// labelKeys are the labels that make a difference between clients of one
// namespace: those in sourceLabels and in the selectors of Sidecars and
// DestinationRules.
func labelKeys(m *model.Mesh) []string {
	keys := map[string]bool{}
	add := func(labels map[string]string) {
		for k := range labels {
			keys[k] = true
		}
	}
	for _, vs := range m.VirtualServices {
		for _, r := range vs.Spec.GetHttp() {
			for _, match := range r.GetMatch() {
				add(match.GetSourceLabels())
			}
		}
		for _, r := range vs.Spec.GetTls() {
			for _, match := range r.GetMatch() {
				add(match.GetSourceLabels())
			}
		}
		for _, r := range vs.Spec.GetTcp() {
			for _, match := range r.GetMatch() {
				add(match.GetSourceLabels())
			}
		}
	}
	for _, s := range m.Sidecars {
		add(s.Spec.GetWorkloadSelector().GetLabels())
	}
	failover := func(s *networking.LocalityLoadBalancerSetting) {
		for _, entry := range s.GetFailoverPriority() {
			key, _, _ := strings.Cut(entry, "=")
			keys[key] = true
		}
	}
	policy := func(p *networking.TrafficPolicy) {
		failover(p.GetLoadBalancer().GetLocalityLbSetting())
		for _, port := range p.GetPortLevelSettings() {
			failover(port.GetLoadBalancer().GetLocalityLbSetting())
		}
	}
	failover(m.Config.GetLocalityLbSetting())
	for _, svc := range m.Services {
		for _, label := range svc.Near {
			keys[label] = true
		}
	}
	for _, dr := range m.DestinationRules {
		add(dr.Spec.GetWorkloadSelector().GetMatchLabels())
		policy(dr.Spec.GetTrafficPolicy())
		for _, s := range dr.Spec.GetSubsets() {
			policy(s.GetTrafficPolicy())
		}
	}
	out := make([]string, 0, len(keys))
	for k := range keys {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// exportTo is what an object says, else the default of the mesh.
func exportTo(own, fallback []string) []string {
	if len(own) > 0 {
		return own
	}
	return fallback
}

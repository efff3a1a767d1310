package meshdir

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	corev1 "k8s.io/api/core/v1"

	"github.com/writ-mesh/writ/pilot/model"
)

// deadServicePorts: a port behind which nothing listens answers 503.
func (a *assembler) deadServicePorts(c *checker) {
	s := c.object.spec.(*corev1.Service)
	if len(s.Spec.Selector) == 0 {
		return
	}
	behind := a.inventory.workloads.having(c.object.meta.Namespace, s.Spec.Selector)
	if len(behind) == 0 || len(a.entryLabels(c.object.meta.Namespace, s.Spec.Selector)) > 0 {
		return // said of the selector; an entry listens on whatever it is told
	}
	for i, p := range s.Spec.Ports {
		t := targetOf(p)
		if p.Protocol == corev1.ProtocolUDP || slices.ContainsFunc(behind, func(w workload) bool { return a.listens(w, uint32(p.Port), t) }) {
			continue
		}
		field := index("spec.ports", i) + ".targetPort"
		want := fmt.Sprintf("port %d", t.number)
		if t.name != "" {
			want = fmt.Sprintf("a port named %q", t.name)
		}
		c.warnf(field, "no workload behind the Service has %s, so calls of port %d are answered 503: %s", want, p.Port, a.portsOf(behind))
	}
}

func (a *assembler) listens(w workload, port uint32, t target) bool {
	if w.Type == model.GatewayProxy {
		return slices.ContainsFunc(a.gatewayServers(w.Proxy), func(s *networking.Server) bool { return s.Port.GetNumber() == port })
	}
	_, ok := a.portOf(w.Proxy, t)
	return ok
}

// portsOf lists the ports that workloads have.
func (a *assembler) portsOf(list []workload) string {
	var ports []string
	add := func(name string, number uint32) {
		text := fmt.Sprint(number)
		if name != "" {
			text += " (" + name + ")"
		}
		if !slices.Contains(ports, text) {
			ports = append(ports, text)
		}
	}
	for _, w := range list {
		for _, p := range w.Ports {
			add(p.Name, p.Port)
		}
		if w.Type == model.GatewayProxy {
			for _, s := range a.gatewayServers(w.Proxy) {
				add(s.Port.GetName(), s.Port.GetNumber())
			}
		}
	}
	if len(ports) == 0 {
		return "they have no ports"
	}
	return "they have " + strings.Join(ports, ", ")
}

// hostsOfNobody: routes of a host that nothing has. Callers of that very name use
// them, so only names of the mesh and those that look misspelt are told.
func (a *assembler) hostsOfNobody(c *checker) {
	vs := c.object.spec.(*networking.VirtualService)
	if slices.ContainsFunc(vs.Gateways, func(g string) bool { return g != model.MeshGateway }) {
		return
	}
	namespace := c.object.meta.Namespace
	var names []string // made when first needed
	for i, written := range vs.Hosts {
		host := model.ResolveHost(written, namespace, a.mesh.DomainSuffix)
		if of := a.mesh.Aliases[host]; of != "" {
			c.warnf(index("spec.hosts", i), "is another name of %s, whose routes its callers take: write that name", of)
			continue
		}
		if isIP(host) || strings.Contains(host, "/") || a.mesh.ServiceByHost(host, namespace) != nil {
			continue
		}
		if names == nil {
			names = a.hostNames(namespace)
		}
		if slices.ContainsFunc(names, func(n string) bool { return model.HostsOverlap(host, n) }) {
			continue
		}
		inside := strings.HasSuffix(host, ".svc."+a.mesh.DomainSuffix)
		if hint := a.suggestHost(written, host, namespace); inside || strings.HasPrefix(hint, ",") {
			c.warnf(index("spec.hosts", i), "there is no service %s whose calls could take these routes%s", host, hint)
		}
	}
}

// rangesByName: an explicit proxy is told where to by name. Of IPv4 it recognizes the
// addresses of a range; those of IPv6 have many spellings.
func (a *assembler) rangesByName(c *checker) {
	if !a.inventory.explicit {
		return
	}
	for i, address := range c.object.spec.(*networking.ServiceEntry).Addresses {
		if p, err := netip.ParsePrefix(address); err == nil && !p.Addr().Is4() && !p.IsSingleIP() {
			c.warnf(index("spec.addresses", i), "the explicit proxy does not know ranges of IPv6: what asks it for an address in %s is a host that the mesh does not know; "+
				"ask for a host of the entry, or list the addresses one by one (redirected traffic is matched by range)", address)
		}
	}
}

// subsetsOfNobody: a subset without endpoints answers 503.
func (a *assembler) subsetsOfNobody(c *checker) {
	rule := c.object.spec.(*networking.DestinationRule)
	service := a.mesh.ServiceByHost(model.ResolveHost(rule.Host, c.object.meta.Namespace, a.mesh.DomainSuffix), c.object.meta.Namespace)
	if service == nil || strings.HasPrefix(rule.Host, "*") {
		return
	}
	members := a.members(service)
	if len(members) == 0 {
		return
	}
	for i, s := range rule.Subsets {
		if slices.ContainsFunc(members, func(l map[string]string) bool { return model.SelectorMatches(s.Labels, l) }) {
			continue
		}
		var hint string
		for _, key := range slices.Sorted(maps.Keys(s.Labels)) {
			if values := valuesOf(members, key); !slices.Contains(values, s.Labels[key]) {
				hint = ": " + key + " " + shorten(s.Labels[key]) + " is unknown" + strings.Replace(didYouMean(s.Labels[key], values), ": ", ", ", 1)
				break
			}
		}
		c.warnf(index("spec.subsets", i), "nothing behind %s has the labels of subset %q, so calls of it are answered 503%s", service.Hostname, shorten(s.Name), hint)
	}
}

// valuesOf lists the values of a label.
func valuesOf(members []map[string]string, key string) []string {
	var out []string
	for _, l := range members {
		if v := l[key]; v != "" && !slices.Contains(out, v) {
			out = append(out, v)
		}
	}
	return out
}

// members gives the labels of what is behind a service, as far as they are known.
func (a *assembler) members(s *model.Service) []map[string]string {
	var selector map[string]string
	switch spec := a.specOf(s.Ref).(type) {
	case *corev1.Service:
		selector = spec.Spec.Selector
	case *networking.ServiceEntry:
		var out []map[string]string
		for _, w := range spec.Endpoints {
			out = append(out, w.Labels)
		}
		if selector = spec.WorkloadSelector.GetLabels(); len(selector) == 0 {
			return out
		}
	default:
		var out []map[string]string
		for _, w := range a.inventory.workloads.having(s.Namespace, nil) {
			if model.ResolveHost(strings.ToLower(w.service), w.Namespace, a.mesh.DomainSuffix) == s.Hostname {
				out = append(out, w.Labels)
			}
		}
		return out
	}
	if len(selector) == 0 {
		return nil
	}
	out := a.entryLabels(s.Namespace, selector)
	for _, w := range a.inventory.workloads.having(s.Namespace, selector) {
		out = append(out, w.Labels)
	}
	return out
}

func (a *assembler) specOf(r model.Ref) any {
	if o := a.byID[r.ID()]; o != nil {
		return o.spec
	}
	return nil
}

// entryLabels gives those of WorkloadEntries that a selector finds.
func (a *assembler) entryLabels(namespace string, selector map[string]string) []map[string]string {
	var out []map[string]string
	for _, o := range a.objects["WorkloadEntry"] {
		labels := mergeLabels(o.spec.(*networking.WorkloadEntry).Labels, o.meta.Labels)
		if o.meta.Namespace == namespace && model.SelectorMatches(selector, labels) {
			out = append(out, labels)
		}
	}
	return out
}

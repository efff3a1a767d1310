package meshdir

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/writ-mesh/writ/pilot/model"
)

// conflicts warns of objects of which only one can hold.
func (a *assembler) conflicts() {
	a.sharedHosts()
	a.severalPolicies()
	a.portsOfTwoProtocols()
	a.serversOfOthers()
	divided := a.dividedInMesh()
	for _, o := range a.objects["VirtualService"] {
		a.report(o, a.hostsOfGateways)
		a.report(o, func(c *checker) { a.subsetsPassedBy(c, divided) })
		a.report(o, a.openPorts)
		a.report(o, a.claimsOfNobody)
	}
	for _, o := range a.objects["Gateway"] {
		a.report(o, serversTwice)
	}
}

// holder remembers who has something first.
type holder map[string]model.Ref

// take gives who has it already.
func (h holder) take(what string, by model.Ref) (first model.Ref, taken bool) {
	if first, taken = h[what]; !taken {
		h[what] = by
	}
	return first, taken
}

// sharedHosts: of several VirtualServices for one host in the mesh, exported to the
// same, the first counts. One for a namespace goes before one for all.
func (a *assembler) sharedHosts() {
	hosts := holder{}
	for _, vs := range a.mesh.VirtualServices {
		if !isForMesh(vs.Spec) {
			continue
		}
		for i, h := range vs.Spec.GetHosts() {
			host := model.ResolveHost(h, vs.Namespace, a.mesh.DomainSuffix)
			for _, scope := range scopesOf(vs.Spec.GetExportTo(), vs.Namespace) {
				first, taken := hosts.take(scope+"/"+host, vs.Ref)
				if !taken || first == vs.Ref {
					continue
				}
				where := "the mesh"
				if scope != "*" {
					where = "namespace " + scope
				}
				a.warn(vs.Ref, index("spec.hosts", i), "callers of %s in %s take the routes of %s, not these: write one VirtualService, or delegates", shorten(host), where, first)
				break
			}
		}
	}
}

// scopesOf gives the namespaces that something is exported to, "*" for all.
func scopesOf(exportTo []string, namespace string) []string {
	if isEverywhere(exportTo) {
		return []string{"*"}
	}
	var out []string
	for _, to := range exportTo {
		if to == "." {
			to = namespace
		}
		out = append(out, to)
	}
	return out
}

// severalPolicies: of Sidecars, PeerAuthentications and Telemetries for the same
// workloads the first counts.
func (a *assembler) severalPolicies() {
	whole := holder{}
	check := func(r model.Ref, at string, selector map[string]string) {
		key := r.Kind + " " + r.Namespace
		for _, k := range slices.Sorted(maps.Keys(selector)) {
			key += fmt.Sprintf(" %q=%q", k, selector[k])
		}
		if first, taken := whole.take(key, r); taken {
			a.warn(r, at, "%s is for the same workloads and goes before: this one is not used", first)
		}
	}
	for _, s := range a.mesh.Sidecars {
		check(s.Ref, "spec.workloadSelector", s.Spec.GetWorkloadSelector().GetLabels())
	}
	for _, p := range a.mesh.PeerAuthentications {
		check(p.Ref, "spec.selector", p.Spec.GetSelector().GetMatchLabels())
	}
	for _, t := range a.mesh.Telemetries {
		check(t.Ref, "spec.selector", t.Spec.GetSelector().GetMatchLabels())
	}
}

// severalSidecars: of Sidecars that select one workload in several ways the first counts.
func (a *assembler) severalSidecars() {
	for i, s := range a.mesh.Sidecars {
		labels := s.Spec.GetWorkloadSelector().GetLabels()
		if len(labels) == 0 {
			continue
		}
		for _, w := range a.inventory.workloads.having(s.Namespace, labels) {
			first := slices.IndexFunc(a.mesh.Sidecars[:i], func(o *model.Sidecar) bool {
				other := o.Spec.GetWorkloadSelector().GetLabels()
				return o.Namespace == s.Namespace && len(other) > 0 && !maps.Equal(other, labels) && model.SelectorMatches(other, w.Labels)
			})
			if first >= 0 {
				a.warn(s.Ref, "spec.workloadSelector", "%s selects %s too and goes before: this one is not used for it", a.mesh.Sidecars[first].Ref, w.Name)
				break
			}
		}
	}
}

// serversOfOthers: Gateways for the same proxies with one port and host. writ up runs a
// proxy for each of them; a proxy that serves both takes one.
func (a *assembler) serversOfOthers() {
	first := holder{}
	for _, gw := range a.mesh.Gateways {
		selector := ""
		for _, k := range slices.Sorted(maps.Keys(gw.Spec.GetSelector())) {
			selector += fmt.Sprintf(" %q=%q", k, gw.Spec.GetSelector()[k])
		}
		for i, s := range gw.Spec.GetServers() {
			for j, h := range s.GetHosts() {
				key := fmt.Sprintf("%s %s %d %s", selector, s.GetBind(), s.GetPort().GetNumber(), strings.ToLower(h))
				if other, taken := first.take(key, gw.Ref); taken && other != gw.Ref {
					a.warn(gw.Ref, index(index("spec.servers", i)+".hosts", j), "%s has %s at port %d for the same proxies: this Gateway gets a proxy of its own here, and where one proxy serves both (Kubernetes) only one of them is used", other, shorten(h), s.GetPort().GetNumber())
				}
			}
		}
	}
}

// subsetsPassedBy: routes of callers in the mesh to subsets of a host, which who comes
// through a gateway does not take. divided says which VirtualService has them.
func (a *assembler) subsetsPassedBy(c *checker, divided map[string]model.Ref) {
	vs := c.object.spec.(*networking.VirtualService)
	if len(a.boundGateways(c)) == 0 {
		return
	}
	for i, r := range vs.Http {
		for j, d := range r.Route {
			host := model.ResolveHost(d.GetDestination().GetHost(), c.object.meta.Namespace, a.mesh.DomainSuffix)
			if by, there := divided[host]; there && by != c.object.meta.Ref && d.GetDestination().GetSubset() == "" {
				c.warnf(index(index("spec.http", i)+".route", j)+".destination.subset", "the routes of %s to subsets of %s are for callers in the mesh, those who come through the gateway do not take them: give a subset here too", by, host)
			}
		}
	}
}

// dividedInMesh gives the hosts whose callers in the mesh are led to subsets of them,
// and by which VirtualService.
func (a *assembler) dividedInMesh() map[string]model.Ref {
	divided := map[string]model.Ref{}
	for _, vs := range a.mesh.VirtualServices {
		if !isForMesh(vs.Spec) {
			continue
		}
		full := func(name string) string { return model.ResolveHost(name, vs.Namespace, a.mesh.DomainSuffix) }
		for _, r := range vs.Spec.Http {
			for _, d := range r.Route {
				host := full(d.GetDestination().GetHost())
				own := slices.ContainsFunc(vs.Spec.Hosts, func(h string) bool { return full(h) == host })
				if _, there := divided[host]; own && !there && d.GetDestination().GetSubset() != "" {
					divided[host] = vs.Ref
				}
			}
		}
	}
	return divided
}

// portsOfTwoProtocols: ServiceEntries that say one port of a host in two ways.
func (a *assembler) portsOfTwoProtocols() {
	type spoken struct {
		by       model.Ref
		protocol model.Protocol
	}
	first := map[string]spoken{}
	for _, s := range a.mesh.Services {
		if s.Kind != "ServiceEntry" {
			continue
		}
		for _, p := range s.Ports {
			key := fmt.Sprintf("%s %s:%d", s.Namespace, s.Hostname, p.Port)
			was, there := first[key]
			if !there {
				first[key] = spoken{s.Ref, p.Protocol}
			} else if was.protocol != p.Protocol {
				a.warn(s.Ref, "spec.ports", "%s says another protocol of port %d of %s: only one of them counts", was.by, p.Port, shorten(s.Hostname))
			}
		}
	}
}

// warn is for an object that is in the mesh.
func (a *assembler) warn(r model.Ref, at, format string, args ...any) {
	if o := a.byID[r.ID()]; o != nil {
		a.report(o, func(c *checker) { c.warnf(at, format, args...) })
	}
}

// boundGateways are the Gateways that a VirtualService names and that are there.
func (a *assembler) boundGateways(c *checker) map[string]*networking.Gateway {
	out := map[string]*networking.Gateway{}
	for _, name := range c.object.spec.(*networking.VirtualService).Gateways {
		full := model.ResolveGateway(name, c.object.meta.Namespace)
		if o := a.byID["Gateway "+full]; o != nil {
			out[full] = o.spec.(*networking.Gateway)
		}
	}
	return out
}

// hostsOfGateways: routes of a host for which none of the Gateways has a server.
func (a *assembler) hostsOfGateways(c *checker) {
	vs := c.object.spec.(*networking.VirtualService)
	gateways := a.boundGateways(c)
	if len(gateways) == 0 || slices.Contains(vs.Gateways, model.MeshGateway) {
		return // in the mesh the host is somebody's
	}
	for i, h := range vs.Hosts {
		host := model.ResolveHost(h, c.object.meta.Namespace, a.mesh.DomainSuffix)
		served := false
		for name, gw := range gateways {
			namespace, _, _ := strings.Cut(name, "/")
			served = served || slices.ContainsFunc(gw.Servers, func(s *networking.Server) bool {
				return slices.ContainsFunc(s.Hosts, func(pattern string) bool { return servesHost(pattern, namespace, c.object.meta.Namespace, host) })
			})
		}
		if !served {
			c.warnf(index("spec.hosts", i), "no server of %s has the host %s for namespace %s: nobody can come by it", strings.Join(slices.Sorted(maps.Keys(gateways)), ", "), shorten(host), c.object.meta.Namespace)
		}
	}
}

// servesHost: [namespace/]host of a server, for a host of a VirtualService.
func servesHost(pattern, gateway, namespace, host string) bool {
	ns, name, ok := strings.Cut(pattern, "/")
	if !ok {
		ns, name = "*", pattern
	}
	return (ns == "*" || ns == namespace || ns == "." && gateway == namespace) && model.HostsOverlap(name, host)
}

// openPorts: without a port a destination has that of the caller, which need not be
// one of the service's.
func (a *assembler) openPorts(c *checker) {
	check := func(at string, d *networking.Destination) {
		if d == nil || d.Port != nil {
			return
		}
		service := a.mesh.ServiceByHost(model.ResolveHost(d.Host, c.object.meta.Namespace, a.mesh.DomainSuffix), c.object.meta.Namespace)
		if service != nil && len(service.Ports) > 1 {
			c.warnf(at+".port", "service %s has several ports, and which of them is meant hangs on the port that the caller came by: give port.number%s", service.Hostname, portList(service))
		}
	}
	eachDestination(c.object.spec.(*networking.VirtualService), check)
}

// eachDestination calls visit for the places where a VirtualService sends requests and
// connections.
func eachDestination(vs *networking.VirtualService, visit func(at string, d *networking.Destination)) {
	for i, r := range vs.Http {
		at := index("spec.http", i)
		for j, d := range r.Route {
			visit(index(at+".route", j)+".destination", d.Destination)
		}
		visit(at+".mirror", r.Mirror)
		for j, m := range r.Mirrors {
			visit(index(at+".mirrors", j)+".destination", m.Destination)
		}
	}
	for i, r := range vs.Tls {
		for j, d := range r.Route {
			visit(index(index("spec.tls", i)+".route", j)+".destination", d.Destination)
		}
	}
	for i, r := range vs.Tcp {
		for j, d := range r.Route {
			visit(index(index("spec.tcp", i)+".route", j)+".destination", d.Destination)
		}
	}
}

// claimsOfNobody: routes by claims where no token is looked at.
func (a *assembler) claimsOfNobody(c *checker) {
	vs := c.object.spec.(*networking.VirtualService)
	gateways := a.boundGateways(c)
	verified := func(gw *networking.Gateway) bool {
		return slices.ContainsFunc(a.mesh.RequestAuthentications, func(r *model.RequestAuthentication) bool {
			return r.Namespace == a.mesh.RootNamespace && len(r.Spec.GetJwtRules()) > 0 && model.SelectorMatches(r.Spec.GetSelector().GetMatchLabels(), gw.GetSelector())
		})
	}
	for i, r := range vs.Http {
		for j, m := range r.Match {
			for _, at := range claimMatches(m) {
				for _, full := range slices.Sorted(maps.Keys(gateways)) {
					if !verified(gateways[full]) {
						c.warnf(index(index("spec.http", i)+".match", j)+at, "no RequestAuthentication looks at tokens at Gateway %s, so there are no claims: write one in namespace %s", full, a.mesh.RootNamespace)
					}
				}
			}
		}
	}
}

// claimMatches gives the places of conditions on claims.
func claimMatches(m *networking.HTTPMatchRequest) []string {
	var out []string
	for _, field := range []struct {
		at    string
		names map[string]*networking.StringMatch
	}{{".headers", m.Headers}, {".withoutHeaders", m.WithoutHeaders}} {
		for _, name := range slices.Sorted(maps.Keys(field.names)) {
			if isClaimMatch(name) {
				out = append(out, field.at+"["+name+"]")
			}
		}
	}
	return out
}

// serversTwice: of two servers of a port for one host only the first is used.
func serversTwice(c *checker) {
	first := map[string]int{}
	for i, s := range c.object.spec.(*networking.Gateway).Servers {
		for j, h := range s.Hosts {
			key := fmt.Sprintf("%d %s", s.GetPort().GetNumber(), strings.ToLower(h))
			if at, there := first[key]; there && at != i {
				c.warnf(index(index("spec.servers", i)+".hosts", j), "port %d has %s already, by servers[%d]", s.GetPort().GetNumber(), shorten(h), at)
			} else {
				first[key] = i
			}
		}
	}
}

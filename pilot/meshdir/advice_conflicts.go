package meshdir

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/writ-mesh/writ/pilot/model"
)

// conflicts warns of objects of which only one can hold.
func (a *assembler) conflicts() {
	a.sharedHosts()
	a.severalPolicies()
	a.portsOfTwoProtocols()
	for _, o := range a.objects["VirtualService"] {
		a.report(o, a.hostsOfGateways)
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

// sharedHosts: of several VirtualServices for one host in the mesh the first counts.
func (a *assembler) sharedHosts() {
	hosts := holder{}
	for _, vs := range a.mesh.VirtualServices {
		exported := vs.Spec.GetExportTo()
		if len(exported) == 0 {
			exported = a.mesh.Config.GetDefaultVirtualServiceExportTo()
		}
		if !isEverywhere(exported) || len(vs.Spec.GetGateways()) > 0 && !slices.Contains(vs.Spec.GetGateways(), model.MeshGateway) {
			continue // one for a namespace goes before one for all
		}
		for i, h := range vs.Spec.GetHosts() {
			host := model.ResolveHost(h, vs.Namespace, a.mesh.DomainSuffix)
			if first, taken := hosts.take(host, vs.Ref); taken && first != vs.Ref {
				a.warn(vs.Ref, index("spec.hosts", i), "callers of %s in the mesh take the routes of %s, not these: write one VirtualService, or delegates", shorten(host), first)
			}
		}
	}
}

// severalPolicies: of Sidecars and PeerAuthentications for the same workloads the first counts.
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

// openPorts: without a port a destination has that of the caller, which is not the
// service's where he comes by another name.
func (a *assembler) openPorts(c *checker) {
	vs := c.object.spec.(*networking.VirtualService)
	namespace := c.object.meta.Namespace
	for i, r := range vs.Http {
		for j, d := range r.Route {
			if d.GetDestination().GetPort() != nil || d.GetDestination() == nil {
				continue
			}
			host := model.ResolveHost(d.Destination.Host, namespace, a.mesh.DomainSuffix)
			own := slices.ContainsFunc(vs.Hosts, func(h string) bool { return model.ResolveHost(h, namespace, a.mesh.DomainSuffix) == host })
			service := a.mesh.ServiceByHost(host, namespace)
			if service == nil || len(service.Ports) < 2 || own && len(a.boundGateways(c)) == 0 || a.arrivesAtAnyOf(c, service) {
				continue
			}
			c.warnf(index(index("spec.http", i)+".route", j)+".destination.port", "service %s has several ports, and which of them is meant is not said: give port.number%s", host, portList(service))
		}
	}
}

// arrivesAtAnyOf says whether every port that callers come by is one of the service.
func (a *assembler) arrivesAtAnyOf(c *checker, s *model.Service) bool {
	gateways := a.boundGateways(c)
	vs := c.object.spec.(*networking.VirtualService)
	if len(gateways) == 0 || slices.Contains(vs.Gateways, model.MeshGateway) {
		return len(gateways) == 0 && len(vs.Gateways) == 0 && slices.ContainsFunc(s.Ports, func(p model.ServicePort) bool { return p.Port == 80 })
	}
	for _, gw := range gateways {
		for _, server := range gw.Servers {
			if !slices.ContainsFunc(s.Ports, func(p model.ServicePort) bool { return p.Port == server.GetPort().GetNumber() }) {
				return false
			}
		}
	}
	return true
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
			for _, name := range slices.Sorted(maps.Keys(m.Headers)) {
				if !isClaimMatch(name) {
					continue
				}
				for _, full := range slices.Sorted(maps.Keys(gateways)) {
					if !verified(gateways[full]) {
						c.warnf(index(index("spec.http", i)+".match", j)+".headers["+name+"]", "no RequestAuthentication looks at tokens at Gateway %s, so there are no claims: write one in namespace %s", full, a.mesh.RootNamespace)
					}
				}
			}
		}
	}
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

// unreachableMatches warns of HTTP matches that others leave nothing for.
func (c *checker) unreachableMatches(routes []*networking.HTTPRoute) {
	seen := map[string]string{}
	open := ""
	for i, r := range routes {
		for j, m := range r.Match {
			at := index(index("spec.http", i)+".match", j)
			conditions := proto.CloneOf(m)
			conditions.Name, conditions.StatPrefix = "", ""
			key, err := proto.MarshalOptions{Deterministic: true}.Marshal(conditions)
			if err != nil {
				return
			}
			switch first, there := seen[string(key)]; {
			case open != "":
				c.warnf(at, "is never reached: %s matches every request", open)
			case there:
				c.warnf(at, "is never reached: %s asks for the same", first)
			default:
				seen[string(key)] = strings.TrimPrefix(at, "spec.")
			}
			if open == "" && r.Delegate == nil && everyRequest(conditions) {
				open = strings.TrimPrefix(at, "spec.")
			}
		}
	}
}

// everyRequest says whether a match has no condition that a request could fail.
func everyRequest(m *networking.HTTPMatchRequest) bool {
	if m.GetUri().GetPrefix() != "/" && m.GetUri() != nil {
		return false
	}
	rest := proto.CloneOf(m)
	rest.Uri, rest.IgnoreUriCase = nil, false
	return proto.Equal(rest, &networking.HTTPMatchRequest{})
}

package envoyfilter

import (
	"slices"
	"strconv"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"
)

// explicitProxy is the route configuration of the explicit proxy, in which are the virtual
// hosts of all ports.
const explicitProxy = "outbound|15007"

func (a *applier) routes(m proto.Message, c *change) (kept bool) {
	rc := m.(*routev3.RouteConfiguration) //nolint:forcetypeassert // of the list of route configurations
	c.context = a.contextOf(strings.HasPrefix(rc.GetName(), "inbound|"))
	for _, p := range a.byKind[networking.EnvoyFilter_ROUTE_CONFIGURATION] {
		if merges(p) && c.holds(p) && a.isRoutes(rc, p) && (p.match.GetRouteConfiguration().GetPortNumber() == 0 || rc.GetName() != explicitProxy) {
			name := rc.GetName()
			mergeInto(c, p, rc)
			rc.Name = name // by which pilot and Envoy speak of it
		}
	}
	hosts := place[*routev3.VirtualHost]{
		named: func(*patch) bool { return true },
		is:    func(p *patch, vh *routev3.VirtualHost) bool { return isHost(rc, vh, p) },
		fixed: func(*routev3.VirtualHost) bool { return false },
		each:  true,
		merge: func(p *patch, vh *routev3.VirtualHost) error {
			merge(vh.ProtoReflect(), p.value.ProtoReflect(), p.operation == networking.EnvoyFilter_Patch_MERGE_AND_REPLACE_LIST)
			return nil
		},
	}
	added := 0
	for _, p := range a.byKind[networking.EnvoyFilter_VIRTUAL_HOST] {
		if c.holds(p) && a.isRoutes(rc, p) {
			rc.VirtualHosts = hosts.apply(c, p, rc.GetVirtualHosts())
			if p.operation == networking.EnvoyFilter_Patch_ADD {
				added++
			}
		}
	}
	routes := place[*routev3.Route]{
		named: func(p *patch) bool { return p.match.GetRouteConfiguration().GetVhost().GetRoute() != nil },
		is:    isRoute,
		fixed: func(*routev3.Route) bool { return false },
		merge: func(p *patch, r *routev3.Route) error {
			merge(r.ProtoReflect(), p.value.ProtoReflect(), p.operation == networking.EnvoyFilter_Patch_MERGE_AND_REPLACE_LIST)
			return nil
		},
		routes: true,
	}
	for _, vh := range rc.GetVirtualHosts()[:max(0, len(rc.GetVirtualHosts())-added)] {
		for _, p := range a.byKind[networking.EnvoyFilter_HTTP_ROUTE] {
			if c.holds(p) && a.isRoutes(rc, p) && isHost(rc, vh, p) {
				vh.Routes = routes.apply(c, p, vh.GetRoutes())
			}
		}
	}
	return true
}

// isRoutes says that a patch means a route configuration; of that of the explicit proxy
// the virtual hosts tell the port.
func (a *applier) isRoutes(rc *routev3.RouteConfiguration, p *patch) bool {
	m := p.match.GetRouteConfiguration()
	if m == nil {
		return true
	}
	name, _, _ := strings.Cut(rc.GetName(), "~") // behind which is what it says of policies
	if want := m.GetName(); want != "" && want != rc.GetName() && want != name && (want != "http_proxy" || name != explicitProxy) {
		return false
	}
	if a.contextOf(false) == networking.EnvoyFilter_GATEWAY {
		return a.isGatewayRoutes(name, m)
	}
	switch want := m.GetPortNumber(); {
	case want == 0 || name == explicitProxy:
		return true
	case strings.HasPrefix(name, "inbound|"):
		parts := strings.Split(name, "|")
		return len(parts) > 1 && parts[1] == strconv.FormatUint(uint64(want), 10)
	default:
		return name == strconv.FormatUint(uint64(want), 10)
	}
}

// isGatewayRoutes goes by the names of a gateway's route configurations: http.PORT, and
// https.PORT.PORTNAME.GATEWAY.NAMESPACE.
func (a *applier) isGatewayRoutes(name string, m *networking.EnvoyFilter_RouteConfigurationMatch) bool {
	parts := strings.Split(name, ".")
	if len(parts) < 2 {
		return false
	}
	bound, _ := strconv.ParseUint(parts[1], 10, 32)
	port := uint32(bound) //nolint:gosec // parsed as 32 bits
	if want := m.GetPortNumber(); want != 0 && port != want && (a.proxy.GatewayPorts[want] != port || port == 0) {
		return false
	}
	if m.GetPortName() == "" && m.GetGateway() == "" {
		return true
	}
	for _, g := range a.proxy.Serves(a.mesh.Gateways, a.mesh.RootNamespace) {
		if m.GetGateway() != "" && m.GetGateway() != g.Namespace+"/"+g.Name {
			continue
		}
		if parts[0] == "https" && len(parts) > 4 && (parts[3] != g.Name || parts[4] != g.Namespace) {
			continue
		}
		for _, s := range g.Spec.GetServers() {
			n := s.GetPort().GetNumber()
			if (n == port || a.proxy.GatewayPorts[n] == port) && (m.GetPortName() == "" || m.GetPortName() == s.GetPort().GetName()) {
				return true
			}
		}
	}
	return false
}

// isHost says that a patch, which means the route configuration, means a virtual host.
func isHost(rc *routev3.RouteConfiguration, vh *routev3.VirtualHost, p *patch) bool {
	m := p.match.GetRouteConfiguration()
	if want := m.GetPortNumber(); want != 0 && rc.GetName() == explicitProxy && !strings.HasSuffix(vh.GetName(), ":"+strconv.FormatUint(uint64(want), 10)) {
		return false
	}
	want := m.GetVhost()
	return (want.GetName() == "" || want.GetName() == vh.GetName()) && (want.GetDomainName() == "" || slices.Contains(vh.GetDomains(), want.GetDomainName()))
}

func isRoute(p *patch, r *routev3.Route) bool {
	want := p.match.GetRouteConfiguration().GetVhost().GetRoute()
	if want.GetName() != "" && want.GetName() != r.GetName() {
		return false
	}
	switch want.GetAction() {
	case networking.EnvoyFilter_RouteConfigurationMatch_RouteMatch_ROUTE:
		return r.GetRoute() != nil
	case networking.EnvoyFilter_RouteConfigurationMatch_RouteMatch_REDIRECT:
		return r.GetRedirect() != nil
	case networking.EnvoyFilter_RouteConfigurationMatch_RouteMatch_DIRECT_RESPONSE:
		return r.GetDirectResponse() != nil
	case networking.EnvoyFilter_RouteConfigurationMatch_RouteMatch_ANY:
	}
	return true
}

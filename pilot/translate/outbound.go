package translate

import (
	"fmt"
	"net/http"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	filterstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	setfilterstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/set_filter_state/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/writ-mesh/writ/pilot/envoy"
	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/security"
)

// explicitRoutes is the route configuration of the explicit proxy.
const explicitRoutes = "outbound|15007"

// connectUpgrade is the method that asks for a tunnel.
const connectUpgrade = "CONNECT"

// explicitListener adds the explicit proxy on the address of p.
func (s *scope) explicitListener(p *model.Proxy, out *collector) {
	l := &listenerv3.Listener{
		Name:             explicitRoutes,
		Address:          envoy.SocketAddress(s.explicitAddress(p), model.ExplicitProxyPort),
		TrafficDirection: corev3.TrafficDirection_OUTBOUND,
		FilterChains:     []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{packedFilter(hcmFilter, s.explicit)}}},
	}
	put(out.listeners, Resource{Name: l.Name, Message: l, Sources: s.explicitSources})
}

// explicitAddress is the workload's own address; with redirection the proxy is
// only for the pod itself.
func (s *scope) explicitAddress(p *model.Proxy) string {
	if p.Interception == model.Redirect {
		return "127.0.0.1"
	}
	return p.Address.String()
}

// buildOutbound makes the resources that all sidecars of the scope share.
func (s *scope) buildOutbound() error {
	s.out = newCollector()
	defer func() { s.shared, s.out = s.out.snapshot(), nil }()
	for _, v := range s.services {
		if err := s.serviceClusters(v); err != nil {
			return err
		}
	}
	if err := s.explicitProxy(); err != nil {
		return err
	}
	if s.interception == model.Redirect {
		return s.redirected()
	}
	return nil
}

// serviceClusters adds the clusters of all ports of a service, with the subsets
// that its DestinationRule defines.
func (s *scope) serviceClusters(v visibleService) error {
	dr := s.destinationRule(v.Service)
	for _, p := range v.ports {
		if _, err := s.addCluster(s.out, v.Service, p.Port, ""); err != nil {
			return err
		}
		if dr == nil {
			continue
		}
		for _, subset := range dr.subsets {
			if _, err := s.addCluster(s.out, v.Service, p.Port, subset.GetName()); err != nil {
				return err
			}
		}
	}
	return nil
}

// explicitProxy makes the connection manager and the one route configuration of
// the explicit proxy.
func (s *scope) explicitProxy() error {
	m := s.t.connectionManager("outbound_0.0.0.0_15007", explicitRoutes, security.DeniedByOperator)
	m.UpgradeConfigs = append(m.UpgradeConfigs, &hcmv3.HttpConnectionManager_UpgradeConfig{UpgradeType: connectUpgrade})
	m.HttpFilters = s.t.routeFilters()
	m.HttpFilters = slices.Insert(m.HttpFilters, len(m.HttpFilters)-1, setFilterState(), dynamicForwardProxyFilter())
	s.explicit = envoy.Any(m)
	if s.sidecar != nil {
		s.explicitSources = []model.Ref{s.sidecar.Ref}
	}
	var src sources
	src.add(s.explicitSources...)
	rc, err := s.explicitRouteConfiguration(&src)
	if err != nil {
		return err
	}
	put(s.out.routes, Resource{Name: rc.Name, Message: rc, Sources: src.list})
	return nil
}

func (s *scope) explicitRouteConfiguration(src *sources) (*routev3.RouteConfiguration, error) {
	hosts := newVirtualHosts()
	for _, v := range s.services {
		for _, p := range v.ports {
			vh, err := s.serviceHost(v.Service, p, src)
			if err != nil {
				return nil, err
			}
			hosts.add(vh, explicitDomains(s.hostForms(v.Service), p.Port))
		}
	}
	if err := s.unregisteredHosts(hosts, src, s.httpPorts(), explicitDomains); err != nil {
		return nil, err
	}
	for _, port := range s.tlsPorts() {
		err := s.unregisteredNames(port, src, func(name string, to *l4Destinations) {
			vh := s.virtualHost(fmt.Sprintf("%s:%d", name, port))
			vh.Routes = []*routev3.Route{connectRoute(to), opaqueRoute(to)}
			hosts.add(vh, explicitDomains([]string{name}, port))
		})
		if err != nil {
			return nil, err
		}
	}
	unknown := s.unknownHost()
	ranges, err := s.rangeRoutes(src)
	if err != nil {
		return nil, err
	}
	unknown.Routes = append(ranges, unknown.Routes...)
	hosts.add(unknown, []string{"*"})
	return &routev3.RouteConfiguration{Name: explicitRoutes, VirtualHosts: hosts.list, ValidateClusters: no(), MaxDirectResponseBodySizeBytes: u32(maxDirectResponse)}, nil
}

// explicitDomains are the authorities of absolute-form requests and CONNECT for
// one port: with the port, and without it where it is HTTP's own.
func explicitDomains(hosts []string, port uint32) []string {
	var out []string
	for _, h := range hosts {
		out = append(out, fmt.Sprintf("%s:%d", h, port))
		if port == 80 {
			out = append(out, h)
		}
	}
	return out
}

// serviceHost has the routes of one port of a service: those of requests and
// those of tunnels.
func (s *scope) serviceHost(svc *model.Service, port model.ServicePort, src *sources) (*routev3.VirtualHost, error) {
	b := &routeBuilder{s: s, gateway: model.MeshGateway, port: port.Port, out: s.out, src: src}
	vh := s.virtualHost(fmt.Sprintf("%s:%d", svc.Hostname, port.Port))
	vs := s.virtualServiceFor(svc.Hostname)
	l4, err := b.l4Destinations(vs, svc, port)
	if err != nil {
		return nil, err
	}
	tunnel := connectRoute(l4)
	if port.Protocol == model.HTTP {
		tunnel.TypedPerFilterConfig = map[string]*anypb.Any{setFilterStateFilter: envoy.Any(offerHTTP1())}
	}
	vh.Routes = append(vh.Routes, tunnel)
	if !port.Protocol.IsHTTP() {
		// Requests to a port of which nothing is known but bytes: pass them on.
		vh.Routes = append(vh.Routes, opaqueRoute(l4))
		return vh, nil
	}
	routes, err := b.httpRoutes(vs, svc)
	vh.Routes = append(vh.Routes, routes...)
	return vh, err
}

// httpRoutes are the rules of the VirtualService, or the way to the service
// itself if there is none with HTTP rules.
func (b *routeBuilder) httpRoutes(vs *virtualService, svc *model.Service) ([]*routev3.Route, error) {
	if vs != nil && len(vs.http) > 0 {
		routes, _, err := b.virtualService(vs)
		return routes, err
	}
	r, err := b.defaultRoute(svc)
	if err != nil {
		return nil, err
	}
	return []*routev3.Route{r}, nil
}

// virtualHost starts a virtual host of the client side.
func (s *scope) virtualHost(name string) *routev3.VirtualHost {
	return &routev3.VirtualHost{Name: name, IncludeRequestAttemptCount: !s.t.proxyHeaders().GetAttemptCount().GetDisabled().GetValue(), ResponseHeadersToRemove: []string{unreachedHeader}}
}

const setFilterStateFilter = "envoy.filters.http.set_filter_state"

// setFilterState does nothing but where a route says what.
func setFilterState() *hcmv3.HttpFilter {
	return httpFilter(setFilterStateFilter, &setfilterstatev3.Config{})
}

// offerHTTP1 overrides the ALPN that the cluster of an HTTP port offers. Inside
// a tunnel the application speaks HTTP/1.1, while requests go as HTTP/2.
func offerHTTP1() *setfilterstatev3.Config {
	return &setfilterstatev3.Config{OnRequestHeaders: []*filterstatev3.FilterStateValue{{
		Key: &filterstatev3.FilterStateValue_ObjectKey{ObjectKey: "envoy.network.application_protocols"},
		Value: &filterstatev3.FilterStateValue_FormatString{FormatString: &corev3.SubstitutionFormatString{
			Format: &corev3.SubstitutionFormatString_TextFormatSource{TextFormatSource: inlineString(envoy.ALPN + ",http/1.1")},
		}},
	}}}
}

// connectRoute carries a tunnel to the destinations as bytes, or has them open another one.
func connectRoute(to *l4Destinations) *routev3.Route {
	a := to.action()
	upgrade := &routev3.RouteAction_UpgradeConfig{UpgradeType: connectUpgrade}
	if to.through != "" {
		a.HostRewriteSpecifier = &routev3.RouteAction_HostRewriteLiteral{HostRewriteLiteral: to.through}
	} else {
		upgrade.ConnectConfig = &routev3.RouteAction_UpgradeConfig_ConnectConfig{}
	}
	a.UpgradeConfigs = []*routev3.RouteAction_UpgradeConfig{upgrade}
	return &routev3.Route{
		Name:   "connect",
		Match:  &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_ConnectMatcher_{ConnectMatcher: &routev3.RouteMatch_ConnectMatcher{}}},
		Action: &routev3.Route_Route{Route: a},
	}
}

func opaqueRoute(to *l4Destinations) *routev3.Route {
	return &routev3.Route{Name: "default", Match: routeMatch(nil), Action: &routev3.Route_Route{Route: to.action()}}
}

// unregisteredHosts are those that a VirtualService names and no service has:
// they exist on each of the ports.
func (s *scope) unregisteredHosts(hosts *virtualHosts, src *sources, ports []uint32, domains func([]string, uint32) []string) error {
	for _, vs := range s.virtualServices {
		if len(vs.http) == 0 {
			continue
		}
		for _, host := range vs.hosts {
			if host == "*" || s.byHost[host] != nil {
				continue
			}
			for _, port := range ports {
				b := &routeBuilder{s: s, gateway: model.MeshGateway, port: port, out: s.out, src: src}
				vh := s.virtualHost(fmt.Sprintf("%s:%d", host, port))
				routes, _, err := b.virtualService(vs)
				if err != nil {
					return err
				}
				if len(routes) == 0 {
					continue
				}
				vh.Routes = routes
				hosts.add(vh, domains([]string{host}, port))
			}
		}
	}
	return nil
}

// unregisteredNames visits the server names that tls rules for a port name and no service
// has, such as those below a wildcard of which one host alone is registered.
func (s *scope) unregisteredNames(port uint32, src *sources, visit func(name string, to *l4Destinations)) error {
	for _, vs := range s.virtualServices {
		b := &routeBuilder{s: s, gateway: model.MeshGateway, port: port, out: s.out, src: src}
		done := map[string]bool{}
		for _, r := range vs.tls {
			for _, m := range r.GetMatch() {
				if len(r.GetRoute()) == 0 || len(m.GetDestinationSubnets()) > 0 || !b.l4Applies(m.GetPort(), m.GetGateways(), m.GetSourceLabels(), m.GetSourceNamespace(), vs.Namespace) {
					continue
				}
				for _, name := range m.GetSniHosts() {
					name = strings.ToLower(name)
					if done[name] || s.byHost[name] != nil {
						continue
					}
					done[name] = true
					src.add(vs.sources...)
					to, err := b.l4Routes(r.GetRoute(), vs.Namespace)
					if err != nil {
						return err
					}
					visit(name, to)
				}
			}
		}
	}
	return nil
}

func (s *scope) httpPorts() []uint32 { return s.portsOf(model.Protocol.IsHTTP, 80) }

func (s *scope) tlsPorts() []uint32 {
	return s.portsOf(func(p model.Protocol) bool { return p == model.TLS || p == model.HTTPS })
}

// portsOf are the ports of visible services with a protocol, and others.
func (s *scope) portsOf(has func(model.Protocol) bool, others ...uint32) []uint32 {
	out := others
	for _, v := range s.services {
		for _, p := range v.ports {
			if has(p.Protocol) {
				out = append(out, p.Port)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// unknownHost is for names that the mesh does not know: passed through by the
// name in the request, or refused.
func (s *scope) unknownHost() *routev3.VirtualHost {
	if !s.allowAny {
		return s.blockedHost()
	}
	vh := s.virtualHost("allow_any")
	name := passthroughCluster
	if s.interception == model.Redirect {
		name = dynamicPassthroughCluster // the other name is that of redirected traffic
	}
	s.out.cluster(s.t.dynamicPassthrough(name), nil)
	to := &l4Destinations{clusters: []weightedTarget{{cluster: name}}}
	vh.Routes = []*routev3.Route{connectRoute(to), opaqueRoute(to)}
	return vh
}

// blockedHost answers 502 to everything, as Istio does with REGISTRY_ONLY.
func (s *scope) blockedHost() *routev3.VirtualHost {
	vh := s.virtualHost("block_all")
	refuse := func(m *routev3.RouteMatch) *routev3.Route {
		return &routev3.Route{Name: "block_all", Match: m, Action: &routev3.Route_DirectResponse{
			DirectResponse: &routev3.DirectResponseAction{Status: http.StatusBadGateway},
		}}
	}
	vh.Routes = []*routev3.Route{
		refuse(&routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_ConnectMatcher_{ConnectMatcher: &routev3.RouteMatch_ConnectMatcher{}}}),
		refuse(routeMatch(nil)),
	}
	return vh
}

// virtualHosts collects virtual hosts; a domain belongs to the first that has it,
// because Envoy refuses a route configuration with a domain twice.
type virtualHosts struct {
	list    []*routev3.VirtualHost
	domains map[string]bool
	names   map[string]bool
}

func newVirtualHosts() *virtualHosts {
	return &virtualHosts{domains: map[string]bool{}, names: map[string]bool{}}
}

func (h *virtualHosts) add(vh *routev3.VirtualHost, domains []string) {
	for _, d := range domains {
		d = strings.ToLower(d)
		if !h.domains[d] {
			h.domains[d] = true
			vh.Domains = append(vh.Domains, d)
		}
	}
	if len(vh.Domains) == 0 || h.names[vh.Name] {
		return
	}
	h.names[vh.Name] = true
	h.list = append(h.list, vh)
}

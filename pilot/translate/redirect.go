package translate

import (
	"fmt"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	httpinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/http_inspector/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/writ-mesh/writ/pilot/envoy"
	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/security"
)

// redirected makes the outbound side of sidecars whose traffic is redirected:
// one listener that hands connections over by their original destination, and
// one for each port that some service has.
func (s *scope) redirected() error {
	s.out.cluster(s.t.blackHole(), nil)
	s.out.cluster(s.t.originalDst(passthroughCluster), nil)
	virtual := &listenerv3.Listener{
		Name:             virtualOutboundListener,
		Address:          envoy.SocketAddress(anyAddress, model.OutboundPort),
		TrafficDirection: corev3.TrafficDirection_OUTBOUND,
		UseOriginalDst:   wrapperspb.Bool(true),
		FilterChains: []*listenerv3.FilterChain{
			s.t.blackHoleChain(model.OutboundPort),
			{Name: "unknown", Filters: []*listenerv3.Filter{s.unknownDestination()}},
		},
	}
	put(s.out.listeners, Resource{Name: virtual.Name, Message: virtual, Sources: s.explicitSources})
	for _, port := range s.ports() {
		if err := s.portListener(port); err != nil {
			return err
		}
	}
	return nil
}

// unknownDestination takes connections to addresses that no service has.
func (s *scope) unknownDestination() *listenerv3.Filter {
	if s.allowAny {
		return s.t.tcpTo(passthroughCluster)
	}
	return s.t.tcpTo(blackHoleCluster)
}

// ports are all ports of visible services.
func (s *scope) ports() []uint32 {
	var out []uint32
	for _, v := range s.services {
		for _, p := range v.ports {
			out = append(out, p.Port)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// portListener takes connections to one port: by destination address for TCP, by
// server name for TLS, and requests wherever they go.
func (s *scope) portListener(port uint32) error {
	var src sources
	src.add(s.explicitSources...)
	l := &listenerv3.Listener{
		Name:                             fmt.Sprintf("%s_%d", anyAddress, port),
		Address:                          envoy.SocketAddress(anyAddress, port),
		BindToPort:                       no(),
		TrafficDirection:                 corev3.TrafficDirection_OUTBOUND,
		ListenerFilters:                  []*listenerv3.ListenerFilter{tlsInspector()},
		ListenerFiltersTimeout:           dur(inspectionTimeout),
		ContinueOnListenerFiltersTimeout: true,
		DefaultFilterChain:               &listenerv3.FilterChain{Name: "unknown", Filters: []*listenerv3.Filter{s.unknownDestination()}},
	}
	if s.hasHTTP(port) {
		chain, err := s.httpChain(port)
		if err != nil {
			return err
		}
		l.FilterChains = append(l.FilterChains, chain)
		l.ListenerFilters = append(l.ListenerFilters, listenerFilter("envoy.filters.listener.http_inspector", &httpinspectorv3.HttpInspector{}))
	}
	chains, err := s.l4Chains(port, &src)
	if err != nil {
		return err
	}
	for _, c := range chains {
		if c.GetFilterChainMatch() == nil {
			l.DefaultFilterChain = c
		} else {
			l.FilterChains = append(l.FilterChains, c)
		}
	}
	put(s.out.listeners, Resource{Name: l.Name, Message: l, Sources: src.list})
	return nil
}

func (s *scope) hasHTTP(port uint32) bool {
	return slices.ContainsFunc(s.services, func(v visibleService) bool {
		return slices.ContainsFunc(v.ports, func(p model.ServicePort) bool { return p.Port == port && p.Protocol.IsHTTP() })
	})
}

// httpChain takes plain requests; where they go is in the route configuration
// named by the port.
func (s *scope) httpChain(port uint32) (*listenerv3.FilterChain, error) {
	name := fmt.Sprint(port)
	if err := s.portRoutes(name, port); err != nil {
		return nil, err
	}
	m := s.t.connectionManager(fmt.Sprintf("outbound_%s_%d", anyAddress, port), name, security.DeniedByOperator)
	m.HttpFilters = s.t.routeFilters()
	return &listenerv3.FilterChain{
		Name: "http",
		FilterChainMatch: &listenerv3.FilterChainMatch{
			TransportProtocol: "raw_buffer", ApplicationProtocols: []string{"http/1.0", "http/1.1", "h2c"},
		},
		Filters: []*listenerv3.Filter{networkFilter(hcmFilter, m)},
	}, nil
}

func (s *scope) portRoutes(name string, port uint32) error {
	var src sources
	src.add(s.explicitSources...)
	hosts := newVirtualHosts()
	for _, v := range s.services {
		for _, p := range v.ports {
			if p.Port != port || !p.Protocol.IsHTTP() {
				continue
			}
			b := &routeBuilder{s: s, gateway: model.MeshGateway, port: port, out: s.out, src: &src}
			vh := s.virtualHost(fmt.Sprintf("%s:%d", v.Hostname, port))
			routes, err := b.httpRoutes(s.virtualServiceFor(v.Hostname), v.Service)
			if err != nil {
				return err
			}
			vh.Routes = routes
			hosts.add(vh, portDomains(s.hostForms(v.Service), port))
		}
	}
	if err := s.unregisteredHosts(hosts, &src, []uint32{port}, portDomains); err != nil {
		return err
	}
	unknown := s.blockedHost()
	if s.allowAny {
		unknown = s.virtualHost("allow_any")
		to := &l4Destinations{clusters: []weightedTarget{{cluster: passthroughCluster}}}
		unknown.Routes = []*routev3.Route{opaqueRoute(to)}
	}
	hosts.add(unknown, []string{"*"})
	rc := &routev3.RouteConfiguration{Name: name, VirtualHosts: hosts.list, ValidateClusters: no(), MaxDirectResponseBodySizeBytes: u32(maxDirectResponse)}
	put(s.out.routes, Resource{Name: name, Message: rc, Sources: src.list})
	return nil
}

// portDomains are the Host headers on a listener of one port: the port may be
// left out.
func portDomains(hosts []string, port uint32) []string {
	var out []string
	for _, h := range hosts {
		out = append(out, h, fmt.Sprintf("%s:%d", h, port))
	}
	return out
}

// l4Chains are the chains of the port's services of which only connections are
// seen. A chain without match takes what no other does.
func (s *scope) l4Chains(port uint32, src *sources) ([]*listenerv3.FilterChain, error) {
	var out []*listenerv3.FilterChain
	taken := map[string]bool{}
	for _, v := range s.services {
		for _, p := range v.ports {
			if p.Port != port || p.Protocol.IsHTTP() {
				continue
			}
			b := &routeBuilder{s: s, gateway: model.MeshGateway, port: port, out: s.out, src: src}
			to, err := b.l4Destinations(s.virtualServiceFor(v.Hostname), v.Service, p)
			if err != nil {
				return nil, err
			}
			src.add(v.Ref)
			match := s.l4Match(v.Service, p)
			key := matchKey(match)
			if taken[key] {
				continue // Envoy refuses two chains with the same match; the first has it
			}
			taken[key] = true
			chain := &listenerv3.FilterChain{Name: outboundName(port, "", v.Hostname), FilterChainMatch: match}
			if !v.External {
				chain.Filters = append(chain.Filters, security.RevokedServerTCP())
			}
			chain.Filters = append(chain.Filters, to.filter(s.t, to.statPrefix(chain.Name)))
			out = append(out, chain)
		}
	}
	if !slices.Contains(s.tlsPorts(), port) {
		return out, nil
	}
	served := map[string]bool{}
	for _, c := range out {
		for _, name := range c.GetFilterChainMatch().GetServerNames() {
			served[name] = true
		}
	}
	err := s.unregisteredNames(port, src, func(name string, to *l4Destinations) {
		if served[name] {
			return
		}
		served[name] = true
		chain := &listenerv3.FilterChain{Name: outboundName(port, "", name), FilterChainMatch: &listenerv3.FilterChainMatch{TransportProtocol: "tls", ServerNames: []string{name}}}
		chain.Filters = []*listenerv3.Filter{to.filter(s.t, to.statPrefix(chain.Name))}
		out = append(out, chain)
	})
	return out, err
}

func matchKey(m *listenerv3.FilterChainMatch) string {
	parts := slices.Clone(m.GetServerNames())
	for _, r := range m.GetPrefixRanges() {
		parts = append(parts, fmt.Sprintf("%s/%d", r.GetAddressPrefix(), r.GetPrefixLen().GetValue()))
	}
	return strings.Join(parts, ",")
}

// l4Match recognizes connections to a service: by its virtual addresses, else by
// those of its endpoints, and TLS without any by its server name. Nil if by
// nothing but the port.
func (s *scope) l4Match(svc *model.Service, port model.ServicePort) *listenerv3.FilterChainMatch {
	if ranges := cidrs(svc.Addresses); len(ranges) > 0 {
		return &listenerv3.FilterChainMatch{PrefixRanges: ranges}
	}
	if port.Protocol == model.TLS || port.Protocol == model.HTTPS {
		var names []string
		for _, h := range s.hostForms(svc) {
			names = append(names, strings.ToLower(h))
		}
		return &listenerv3.FilterChainMatch{TransportProtocol: "tls", ServerNames: names}
	}
	if svc.Resolution != model.Static {
		return nil
	}
	var addresses []string
	for _, e := range svc.Endpoints {
		addresses = append(addresses, e.Address)
	}
	slices.Sort(addresses)
	if ranges := cidrs(slices.Compact(addresses)); len(ranges) > 0 {
		return &listenerv3.FilterChainMatch{PrefixRanges: ranges}
	}
	return nil
}

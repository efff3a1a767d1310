package translate

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"strings"

	mutationrulesv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	proxyprotocolv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/proxy_protocol/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	earlyheaderv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"
	"google.golang.org/protobuf/proto"
	meshv1 "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/writ-mesh/writ/pilot/envoy"
	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/security"
)

// gatewayServer is one server of a Gateway object.
type gatewayServer struct {
	*networking.Server
	object *model.Gateway
	index  int
}

// name is that of the Gateway as VirtualServices write it, completed.
func (g *gatewayServer) name() string { return g.object.Namespace + "/" + g.object.Name }

func (g *gatewayServer) protocol() model.Protocol { return protocolNamed(g.GetPort().GetProtocol()) }

// passthrough servers route TLS by its server name and do not open it.
func (g *gatewayServer) passthrough() bool {
	m := g.GetTls().GetMode()
	return g.GetTls() != nil && (m == networking.ServerTLSSettings_PASSTHROUGH || m == networking.ServerTLSSettings_AUTO_PASSTHROUGH)
}

// http servers see requests: HTTP, and HTTPS that is opened here.
func (g *gatewayServer) http() bool {
	return g.protocol().IsHTTP() || g.protocol() == model.HTTPS && !g.passthrough()
}

// hosts are the server's hosts for objects of namespace, without the namespaces
// that may stand before them.
func (g *gatewayServer) hostsFor(namespace string) []string {
	var out []string
	for _, h := range g.GetHosts() {
		ns, name, ok := strings.Cut(h, "/")
		if !ok {
			ns, name = "*", h
		}
		if ns == "*" || ns == namespace || ns == "." && namespace == g.object.Namespace {
			out = append(out, strings.ToLower(name))
		}
	}
	return out
}

// serverNames are the hosts as SNI; empty for any.
func (g *gatewayServer) serverNames() []string {
	var out []string
	for _, h := range g.GetHosts() {
		name := h[strings.Index(h, "/")+1:]
		if name == "*" {
			return nil
		}
		out = append(out, strings.ToLower(name))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// gatewayBuilder makes the resources of one gateway proxy.
type gatewayBuilder struct {
	t      *Translator
	p      *model.Proxy
	s      *scope
	out    *collector
	policy *security.HTTP
}

func (t *Translator) gateway(p *model.Proxy, s *scope, out *collector) error {
	policy, err := t.policy.HTTP(p, model.WorkloadPort{})
	if err != nil {
		return err
	}
	g := &gatewayBuilder{t: t, p: p, s: s, out: out, policy: policy}
	for _, c := range policy.Clusters {
		out.cluster(c, policy.Sources)
	}
	out.filters(policy.Extensions)
	for _, servers := range g.serversByPort() {
		if err := g.listener(servers); err != nil {
			return err
		}
	}
	return nil
}

// objects are the Gateways that the proxy serves.
func (g *gatewayBuilder) objects() []*model.Gateway {
	return g.p.Serves(g.t.mesh.Gateways, g.t.mesh.RootNamespace)
}

// serversByPort groups the servers by port, ports in order.
func (g *gatewayBuilder) serversByPort() [][]*gatewayServer {
	byPort := map[uint32][]*gatewayServer{}
	for _, o := range g.objects() {
		for i, s := range o.Spec.GetServers() {
			n := s.GetPort().GetNumber()
			byPort[n] = append(byPort[n], &gatewayServer{Server: s, object: o, index: i})
		}
	}
	var out [][]*gatewayServer
	for _, servers := range byPort {
		out = append(out, servers)
	}
	slices.SortFunc(out, func(a, b [](*gatewayServer)) int {
		return cmp.Compare(a[0].GetPort().GetNumber(), b[0].GetPort().GetNumber())
	})
	return out
}

func (g *gatewayBuilder) boundPort(port uint32) uint32 {
	if n, ok := g.p.GatewayPorts[port]; ok {
		return n
	}
	return port
}

// listener makes the listener of one port. The first server decides whether the
// port is plain HTTP; servers of TLS and TCP have a filter chain each.
func (g *gatewayBuilder) listener(servers []*gatewayServer) error {
	port := servers[0].GetPort().GetNumber()
	var src sources
	for _, s := range servers {
		src.add(s.object.Ref)
	}
	chains, err := g.chains(port, servers, &src)
	if err != nil {
		return err
	}
	if len(chains) == 0 {
		return nil // nothing behind the port: it stays closed
	}
	l := &listenerv3.Listener{
		Name:             fmt.Sprintf("gateway|%d", port),
		Address:          envoy.SocketAddress(g.address(), g.boundPort(port)),
		TrafficDirection: corev3.TrafficDirection_OUTBOUND,
		FilterChains:     chains,
	}
	if g.t.mesh.Config.GetDefaultConfig().GetGatewayTopology().GetProxyProtocol() != nil {
		l.ListenerFilters = append(l.ListenerFilters, listenerFilter("envoy.filters.listener.proxy_protocol", &proxyprotocolv3.ProxyProtocol{}))
	}
	if slices.ContainsFunc(chains, func(c *listenerv3.FilterChain) bool { return c.GetFilterChainMatch() != nil }) {
		l.ListenerFilters = append(l.ListenerFilters, tlsInspector())
	}
	put(g.out.listeners, Resource{Name: l.Name, Message: l, Sources: src.list})
	return nil
}

func (g *gatewayBuilder) address() string {
	if g.p.Interception == model.Redirect || !g.p.Address.IsValid() {
		return "0.0.0.0"
	}
	return g.p.Address.String()
}

func (g *gatewayBuilder) chains(port uint32, servers []*gatewayServer, src *sources) ([]*listenerv3.FilterChain, error) {
	if servers[0].protocol().IsHTTP() {
		plain := slices.DeleteFunc(slices.Clone(servers), func(s *gatewayServer) bool { return !s.protocol().IsHTTP() })
		manager, name := g.manager(fmt.Sprintf("http.%d", port), port, servers[0].protocol(), nil)
		if err := g.routes(name, port, plain, false); err != nil {
			return nil, err
		}
		return []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{manager}}}, nil
	}
	var out []*listenerv3.FilterChain
	taken := map[string]bool{}
	for _, s := range servers {
		chains, err := g.serverChains(port, s, src)
		if err != nil {
			return nil, err
		}
		for _, c := range chains {
			// Envoy refuses two chains for the same name; the older Gateway has it.
			if free := unclaimed(c, taken); free {
				out = append(out, c)
			}
		}
	}
	return out, nil
}

// unclaimed takes from a chain those server names that another one has.
func unclaimed(c *listenerv3.FilterChain, taken map[string]bool) bool {
	m := c.GetFilterChainMatch()
	if len(m.GetServerNames()) == 0 {
		if taken["*"] {
			return false
		}
		taken["*"] = true
		return true
	}
	m.ServerNames = slices.DeleteFunc(m.ServerNames, func(n string) bool { return taken[n] })
	for _, n := range m.ServerNames {
		taken[n] = true
	}
	return len(m.ServerNames) > 0
}

func (g *gatewayBuilder) serverChains(port uint32, s *gatewayServer, src *sources) ([]*listenerv3.FilterChain, error) {
	if s.passthrough() {
		return g.passthroughChains(port, s, src)
	}
	chain := &listenerv3.FilterChain{Name: fmt.Sprintf("%s.%d", s.name(), s.index)}
	var demanded *corev3.TransportSocket
	if s.GetTls() != nil {
		ctx, err := g.t.serverTLS(g.p, s)
		if err != nil {
			return nil, err
		}
		if ctx == nil {
			return nil, nil // its certificate is not there: the server stays closed
		}
		chain.TransportSocket = envoy.TransportSocket(ctx)
		chain.FilterChainMatch = &listenerv3.FilterChainMatch{TransportProtocol: "tls", ServerNames: s.serverNames()}
		// Rules rely on what is demanded of clients. The server's own certificate is renewed
		// often, and connections that drain then shall go on to hear of edits.
		of := proto.CloneOf(ctx)
		of.GetCommonTlsContext().TlsCertificates = nil
		demanded = envoy.TransportSocket(of)
	}
	if s.http() {
		base := fmt.Sprintf("https.%d.%s.%s.%s.%d", port, s.GetPort().GetName(), s.object.Name, s.object.Namespace, s.index)
		manager, name := g.manager(base, port, s.protocol(), demanded)
		if err := g.routes(name, port, []*gatewayServer{s}, true); err != nil {
			return nil, err
		}
		chain.Filters = []*listenerv3.Filter{manager}
		return []*listenerv3.FilterChain{chain}, nil
	}
	filters, err := g.tcpFilters(port, s, src)
	if err != nil || filters == nil {
		return nil, err
	}
	chain.Filters = filters
	return []*listenerv3.FilterChain{chain}, nil
}

// manager is the HTTP connection manager of a gateway behind a transport socket, with the
// name of its routes, which base begins.
func (g *gatewayBuilder) manager(base string, port uint32, protocol model.Protocol, socket *corev3.TransportSocket) (filter *listenerv3.Filter, routes string) {
	topology := g.t.mesh.Config.GetDefaultConfig().GetGatewayTopology()
	deniedBy := security.DeniedByGatewayOperator
	if g.showsDeniedBy() {
		deniedBy = security.DeniedByOperator
	}
	m := g.t.connectionManager(fmt.Sprintf("outbound_0.0.0.0_%d", port), base, deniedBy)
	m.UseRemoteAddress = yes()
	m.EarlyHeaderMutationExtensions = []*corev3.TypedExtensionConfig{withoutForged()}
	m.XffNumTrustedHops = topology.GetNumTrustedProxies()
	m.ServerName = serverName
	m.ServerHeaderTransformation = hcmv3.HttpConnectionManager_OVERWRITE
	g.t.serverHeader(m)
	m.ForwardClientCertDetails = forwardClientCert(topology.GetForwardClientCertDetails())
	if m.ForwardClientCertDetails == hcmv3.HttpConnectionManager_SANITIZE_SET || m.ForwardClientCertDetails == hcmv3.HttpConnectionManager_APPEND_FORWARD {
		m.SetCurrentClientCertDetails = &hcmv3.HttpConnectionManager_SetCurrentClientCertDetails{Subject: yes(), Cert: true, Dns: true, Uri: true}
	}
	m.AccessLog = reported(g.t.accessLog(deniedBy, security.HTTPLogFields()), g.policy.Report)
	m.LocalReplyConfig = g.policy.LocalReply
	m.HttpFilters = append(m.HttpFilters, g.policy.Filters...)
	if protocol == model.GRPCWeb {
		m.HttpFilters = append(m.HttpFilters, grpcWeb())
	}
	m.HttpFilters = g.t.routeFilters(m.HttpFilters...)
	m.HttpFilters = slices.Insert(m.HttpFilters, len(m.HttpFilters)-1, dynamicForwardProxyFilter())
	routes = routesFor(base, m, socket)
	return networkFilter(hcmFilter, m), routes
}

// withoutForged drops the headers that only an Envoy may say where a client sends them,
// as far as Envoy does not do so itself at the edge: what a path was before it was
// rewritten (the access log would believe it), who the caller's proxy is, and where to
// connect to.
func withoutForged() *corev3.TypedExtensionConfig {
	config := &earlyheaderv3.HeaderMutation{}
	for _, name := range []string{"x-envoy-original-path", "x-envoy-original-dst-host", "x-envoy-peer-metadata", "x-envoy-peer-metadata-id", "x-envoy-is-timeout-retry"} {
		config.Mutations = append(config.Mutations, &mutationrulesv3.HeaderMutation{Action: &mutationrulesv3.HeaderMutation_Remove{Remove: name}})
	}
	return &corev3.TypedExtensionConfig{Name: "envoy.http.early_header_mutation.header_mutation", TypedConfig: envoy.Any(config)}
}

// showsDeniedBy says whether a Gateway asked for the reason of refusals.
func (g *gatewayBuilder) showsDeniedBy() bool {
	return slices.ContainsFunc(g.objects(), func(o *model.Gateway) bool { return o.Annotations[security.DeniedByAnnotation] == "true" })
}

func forwardClientCert(in meshv1.ForwardClientCertDetails) hcmv3.HttpConnectionManager_ForwardClientCertDetails {
	switch in {
	case meshv1.ForwardClientCertDetails_FORWARD_ONLY:
		return hcmv3.HttpConnectionManager_FORWARD_ONLY
	case meshv1.ForwardClientCertDetails_APPEND_FORWARD:
		return hcmv3.HttpConnectionManager_APPEND_FORWARD
	case meshv1.ForwardClientCertDetails_SANITIZE:
		return hcmv3.HttpConnectionManager_SANITIZE
	case meshv1.ForwardClientCertDetails_ALWAYS_FORWARD_ONLY:
		return hcmv3.HttpConnectionManager_ALWAYS_FORWARD_ONLY
	}
	return hcmv3.HttpConnectionManager_SANITIZE_SET
}

// bound are the VirtualServices bound to a server and visible to the proxy, with
// the hosts that they and the server have in common.
func (g *gatewayBuilder) bound(s *gatewayServer, visit func(vs *virtualService, hosts []string) error) error {
	for _, vs := range g.t.index.virtualServices {
		if !vs.bound(s.name()) || !model.ExportedTo(vs.exportTo, vs.Namespace, g.p.Namespace) {
			continue
		}
		if hosts := intersection(s.hostsFor(vs.Namespace), vs.hosts); len(hosts) > 0 {
			if err := visit(vs, hosts); err != nil {
				return err
			}
		}
	}
	return nil
}

// intersection gives the narrower host of every pair that overlaps.
func intersection(a, b []string) []string {
	var out []string
	for _, x := range a {
		for _, y := range b {
			switch {
			case model.HostMatches(x, y):
				out = append(out, y)
			case model.HostMatches(y, x):
				out = append(out, x)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// routes makes a route configuration for servers that share one. Rules of
// several VirtualServices for a host come in order of age; those that take
// everything come last.
func (g *gatewayBuilder) routes(name string, port uint32, servers []*gatewayServer, tls bool) error {
	var src sources
	src.add(g.policy.Sources...)
	byHost := map[string]*routev3.VirtualHost{}
	host := func(h string) *routev3.VirtualHost {
		if byHost[h] == nil {
			byHost[h] = g.virtualHost(h, port)
		}
		return byHost[h]
	}
	for _, s := range servers {
		src.add(s.object.Ref)
		redirect := s.GetTls().GetHttpsRedirect() && !tls
		err := g.bound(s, func(vs *virtualService, hosts []string) error {
			if len(vs.http) == 0 {
				return nil
			}
			b := &routeBuilder{s: g.s, gateway: s.name(), port: port, bound: g.boundPort(port), tls: tls, out: g.out, src: &src}
			routes, _, err := b.virtualService(vs)
			if err != nil {
				return err
			}
			for _, h := range hosts {
				host(h).Routes = append(host(h).Routes, routes...)
				if redirect {
					host(h).RequireTls = routev3.VirtualHost_ALL
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		for _, h := range s.GetHosts() {
			if redirect {
				host(strings.ToLower(h[strings.Index(h, "/")+1:])).RequireTls = routev3.VirtualHost_ALL
			}
		}
	}
	host("*")
	rc := &routev3.RouteConfiguration{Name: name, ValidateClusters: no(), MaxDirectResponseBodySizeBytes: u32(maxDirectResponse), IgnorePortInHostMatching: true}
	for _, h := range sortedKeys(byHost) {
		byHost[h].Routes = append(catchAllLast(byHost[h].Routes), notFound())
		rc.VirtualHosts = append(rc.VirtualHosts, byHost[h])
	}
	put(g.out.routes, Resource{Name: name, Message: rc, Sources: src.list})
	return nil
}

func (g *gatewayBuilder) virtualHost(domain string, port uint32) *routev3.VirtualHost {
	vh := g.s.virtualHost(fmt.Sprintf("%s:%d", domain, port))
	vh.Domains = []string{domain}
	vh.TypedPerFilterConfig = g.policy.PerFilterConfig
	vh.Metadata = g.policy.Metadata
	vh.RateLimits = g.policy.RateLimits
	return vh
}

func catchAllLast(routes []*routev3.Route) []*routev3.Route {
	var first, last []*routev3.Route
	for _, r := range routes {
		if matchesAll(r.GetMatch()) {
			last = append(last, r)
		} else {
			first = append(first, r)
		}
	}
	return append(first, last...)
}

// notFound answers what no rule takes. It is a route, and not the absence of
// one, so that the policies of the virtual host hold for these requests too.
func notFound() *routev3.Route {
	return &routev3.Route{Name: "not_found", Match: routeMatch(nil), Action: &routev3.Route_DirectResponse{
		DirectResponse: &routev3.DirectResponseAction{Status: http.StatusNotFound},
	}}
}

// tcpFilters are those of a server of which only connections are seen: the first
// tcp rule that is bound to it. Nil if there is none.
func (g *gatewayBuilder) tcpFilters(port uint32, s *gatewayServer, src *sources) ([]*listenerv3.Filter, error) {
	var to *l4Destinations
	b := &routeBuilder{s: g.s, gateway: s.name(), port: port, out: g.out, src: src}
	err := g.bound(s, func(vs *virtualService, _ []string) error {
		for _, r := range vs.tcp {
			if to == nil && b.tcpApplies(r, vs.Namespace, nil) {
				src.add(vs.sources...)
				var err error
				to, err = b.l4Routes(r.GetRoute(), vs.Namespace)
				return err
			}
		}
		return nil
	})
	if err != nil || to == nil {
		return nil, err
	}
	return g.l4Filters(port, s, to, src)
}

// l4Filters puts the policies of connections before the proxy.
func (g *gatewayBuilder) l4Filters(port uint32, s *gatewayServer, to *l4Destinations, src *sources) ([]*listenerv3.Filter, error) {
	policy, err := g.t.policy.TCP(g.p, model.WorkloadPort{Name: s.GetPort().GetName(), Port: port, App: port, Protocol: s.protocol()})
	if err != nil {
		return nil, err
	}
	src.add(policy.Sources...)
	for _, c := range policy.Clusters {
		g.out.cluster(c, policy.Sources)
	}
	filters := slices.Clone(policy.Filters)
	return append(filters, to.filter(g.t, to.statPrefix(fmt.Sprintf("gateway|%d", port)))), nil
}

// passthroughChains route TLS by its server name, one chain for each tls rule's
// names that are within the server's hosts.
func (g *gatewayBuilder) passthroughChains(port uint32, s *gatewayServer, src *sources) ([]*listenerv3.FilterChain, error) {
	var out []*listenerv3.FilterChain
	b := &routeBuilder{s: g.s, gateway: s.name(), port: port, out: g.out, src: src}
	err := g.bound(s, func(vs *virtualService, _ []string) error {
		for i, r := range vs.tls {
			for j, m := range r.GetMatch() {
				names := intersection(s.hostsFor(vs.Namespace), m.GetSniHosts())
				if len(names) == 0 || len(r.GetRoute()) == 0 || !b.l4Applies(m.GetPort(), m.GetGateways(), m.GetSourceLabels(), m.GetSourceNamespace(), vs.Namespace) {
					continue
				}
				src.add(vs.sources...)
				to, err := b.l4Routes(r.GetRoute(), vs.Namespace)
				if err != nil {
					return err
				}
				filters, err := g.l4Filters(port, s, to, src)
				if err != nil {
					return err
				}
				if slices.Contains(names, "*") {
					names = nil
				}
				out = append(out, &listenerv3.FilterChain{
					Name:             fmt.Sprintf("%s/%s.%d.%d", vs.Namespace, vs.Name, i, j),
					FilterChainMatch: &listenerv3.FilterChainMatch{TransportProtocol: "tls", ServerNames: names},
					Filters:          filters,
				})
			}
		}
		return nil
	})
	return out, err
}

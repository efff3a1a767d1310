package translate

import (
	"fmt"
	"net"
	"slices"
	"sort"
	"strconv"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	meshv1 "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/writ-mesh/writ/pilot/envoy"
	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/security"
)

// inboundPort is what proxies with alike workloads share for one port.
type inboundPort struct {
	port    model.WorkloadPort
	cluster *clusterv3.Cluster
	// endpoints are the cluster's, nil if they are in it.
	endpoints *endpointv3.ClusterLoadAssignment
	// others are clusters that the policies' filters call.
	others []*clusterv3.Cluster
	// extensions are filters that filters refers to.
	extensions []security.Extension
	routes     *routev3.RouteConfiguration // nil for TCP
	filters    []*listenerv3.Filter
	mode       model.PeerMode
	sources    []model.Ref
}

// inboundName is the name of a workload port's listener, and begins that of its routes and
// of its cluster.
func inboundName(port uint32) string { return fmt.Sprintf("inbound|%d||", port) }

// appName is the name of a workload port's cluster. It has the program's address: rules of
// before must not meet a program that comes with others, and clusters go before routes.
func appName(wp model.WorkloadPort) string {
	if wp.AppSocket != "" {
		return inboundName(wp.Port) + wp.AppSocket
	}
	return inboundName(wp.Port) + net.JoinHostPort(appAddress(wp), strconv.FormatUint(uint64(wp.App), 10))
}

// inboundResources adds the server side of a sidecar.
func (t *Translator) inboundResources(p *model.Proxy, s *scope, out *collector) error {
	var ports []*inboundPort
	for _, wp := range inboundPorts(p, s.sidecar) {
		if wp.Protocol == model.UDP {
			continue
		}
		limits, from := s.inboundPolicy(p, wp.Port)
		ip, err := t.inboundPort(p, wp, limits)
		if err != nil {
			return fmt.Errorf("inbound port %d: %w", wp.Port, err)
		}
		ports = append(ports, ip)
		out.cluster(ip.cluster, slices.Concat(ip.sources, from))
		if ip.endpoints != nil {
			put(out.endpoints, Resource{Name: ip.cluster.Name, Message: ip.endpoints, Sources: []model.Ref{security.RevokedRef()}})
		}
		for _, c := range ip.others {
			out.cluster(c, ip.sources)
		}
		out.filters(ip.extensions)
		if ip.routes != nil {
			put(out.routes, Resource{Name: ip.routes.Name, Message: ip.routes, Sources: ip.sources})
		}
		if p.Interception == model.Explicit {
			put(out.listeners, t.explicitInbound(p, ip))
		}
	}
	if p.Interception == model.Redirect {
		return t.virtualInbound(p, ports, out)
	}
	return nil
}

func (t *Translator) inboundPort(p *model.Proxy, wp model.WorkloadPort, limits *networking.TrafficPolicy) (*inboundPort, error) {
	return t.inbound.get(t.inboundKey(p, wp)+"|"+limits.String(), func() (*inboundPort, error) {
		ip := &inboundPort{port: wp, mode: t.policy.ServerMode(p.Namespace, p.Labels, wp.Port), cluster: t.appCluster(wp, limits)}
		if wp.Protocol.IsHTTP() {
			return ip, t.inboundHTTP(p, ip)
		}
		return ip, t.inboundTCP(p, ip)
	})
}

// inboundKey holds everything of a proxy that its policies may look at.
func (t *Translator) inboundKey(p *model.Proxy, wp model.WorkloadPort) string {
	keys := make([]string, 0, len(p.Labels))
	for k, v := range p.Labels {
		keys = append(keys, fmt.Sprintf("%q=%q", k, v))
	}
	sort.Strings(keys)
	if t.mesh.RbacConfig != nil {
		// Which services a workload is behind may hang on the replica itself.
		keys = append(keys, p.ID)
	}
	return fmt.Sprintf("%s|%s|%d|%s|%+v", p.Namespace, p.ServiceAccount, p.Interception, strings.Join(keys, ","), wp)
}

func (t *Translator) inboundHTTP(p *model.Proxy, ip *inboundPort) error {
	policy, err := t.policy.HTTP(p, ip.port)
	if err != nil {
		return err
	}
	name := inboundName(ip.port.Port)
	m := t.connectionManager(fmt.Sprintf("inbound_0.0.0.0_%d", ip.port.Port), name, security.DeniedByOperator)
	m.ForwardClientCertDetails = forwardClientCert(t.proxyHeaders().GetForwardedClientCert())
	m.SetCurrentClientCertDetails = clientCertDetails(t.proxyHeaders().GetSetCurrentClientCertDetails())
	t.serverHeader(m)
	m.AccessLog = reported(t.accessLog(security.DeniedByOperator, inboundLogFields()), policy.Report)
	m.LocalReplyConfig = tellUnreached(policy.LocalReply)
	m.HttpFilters = append(m.HttpFilters, policy.Filters...)
	if ip.port.Protocol == model.GRPCWeb {
		m.HttpFilters = append(m.HttpFilters, grpcWeb())
	}
	m.HttpFilters = append(m.HttpFilters, t.router())
	routes := routesFor(name, m, t.meshTLS(ip))
	ip.filters = []*listenerv3.Filter{networkFilter(hcmFilter, m)}
	ip.others, ip.extensions, ip.sources = policy.Clusters, policy.Extensions, policy.Sources
	ip.routes = &routev3.RouteConfiguration{
		Name:             routes,
		ValidateClusters: no(),
		VirtualHosts: []*routev3.VirtualHost{{
			Name: fmt.Sprintf("inbound|http|%d", ip.port.Port), Domains: []string{"*"},
			Routes:               []*routev3.Route{inboundRoute(ip.port, ip.cluster.GetName())},
			TypedPerFilterConfig: policy.PerFilterConfig,
			Metadata:             policy.Metadata,
			RateLimits:           policy.RateLimits,
			// Only a proxy may say who refused; what an application claims is dropped.
			ResponseHeadersToRemove: []string{security.DeniedByHeader, unreachedHeader},
		}},
	}
	return nil
}

// clientCertDetails is what the program is told of the caller's certificate.
func clientCertDetails(in *meshv1.ProxyConfig_ProxyHeaders_SetCurrentClientCertDetails) *hcmv3.HttpConnectionManager_SetCurrentClientCertDetails {
	if in == nil {
		return &hcmv3.HttpConnectionManager_SetCurrentClientCertDetails{Subject: yes(), Uri: true}
	}
	unlessOff := func(v *wrapperspb.BoolValue) bool { return v == nil || v.GetValue() }
	return &hcmv3.HttpConnectionManager_SetCurrentClientCertDetails{
		Subject: wrapperspb.Bool(unlessOff(in.GetSubject())), Uri: unlessOff(in.GetUri()), Dns: unlessOff(in.GetDns()),
		Cert: in.GetCert().GetValue(), Chain: in.GetChain().GetValue(),
	}
}

// inboundRoute has no timeout: the client's proxy has it. A request that was
// reset before the application saw it is tried again, which hides the race with
// an application that closes an idle connection.
func inboundRoute(wp model.WorkloadPort, cluster string) *routev3.Route {
	action := &routev3.RouteAction{
		ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: cluster},
		Timeout:          dur(0),
		MaxStreamDuration: &routev3.RouteAction_MaxStreamDuration{
			MaxStreamDuration: dur(0), GrpcTimeoutHeaderMax: dur(0),
		},
	}
	if wp.Protocol != model.GRPC {
		action.RetryPolicy = &routev3.RetryPolicy{RetryOn: "reset-before-request", NumRetries: u32(2)}
	}
	return &routev3.Route{
		Name:   "default",
		Match:  &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
		Action: &routev3.Route_Route{Route: action},
	}
}

func (t *Translator) inboundTCP(p *model.Proxy, ip *inboundPort) error {
	policy, err := t.policy.TCP(p, ip.port)
	if err != nil {
		return err
	}
	ip.others, ip.sources = policy.Clusters, policy.Sources
	t.liveEndpoint(ip)
	ip.filters = append(ip.filters, policy.Filters...)
	ip.filters = append(ip.filters, networkFilter(tcpProxy, &tcpproxyv3.TcpProxy{
		StatPrefix:       inboundName(ip.port.Port),
		ClusterSpecifier: &tcpproxyv3.TcpProxy_Cluster{Cluster: ip.cluster.GetName()},
		AccessLog:        reported(t.accessLog("", security.TCPLogFields()), policy.Report),
	}))
	return nil
}

// appCluster is the program behind the sidecar, with limits of connections and requests.
func (t *Translator) appCluster(wp model.WorkloadPort, limits *networking.TrafficPolicy) *clusterv3.Cluster {
	name := appName(wp)
	address := envoy.SocketAddress(appAddress(wp), wp.App)
	if wp.AppSocket != "" {
		address = envoy.PipeAddress(wp.AppSocket)
	}
	c := &clusterv3.Cluster{
		Name:                 name,
		AltStatName:          inboundName(wp.Port),
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		ConnectTimeout:       t.connectTimeout(),
		LoadAssignment: &endpointv3.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpointv3.LocalityLbEndpoints{{
			LbEndpoints: []*endpointv3.LbEndpoint{{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{
				Address: address,
			}}}},
		}}},
	}
	b := &clusterBuilder{t: t, policy: limits, out: c, options: &httpv3.HttpProtocolOptions{}}
	b.connectionPool()
	switch {
	case wp.Protocol.IsHTTP2() || wp.Protocol == model.GRPCWeb:
		b.pack(http2)
	case wp.Protocol.IsHTTP():
		b.pack(http1)
	case b.options.CommonHttpProtocolOptions != nil: // the age of TCP connections is there too
		b.pack(notHTTP)
	}
	return c
}

// liveEndpoint takes the program's endpoint out of its cluster, so that what its
// metadata says of revocations holds for connections that are open.
func (t *Translator) liveEndpoint(ip *inboundPort) {
	c := ip.cluster
	ip.endpoints, c.LoadAssignment = c.GetLoadAssignment(), nil
	c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS}
	c.EdsClusterConfig = &clusterv3.Cluster_EdsClusterConfig{EdsConfig: envoy.ADS(), ServiceName: c.GetName()}
	ip.endpoints.Endpoints[0].LbEndpoints[0].Metadata = security.RevokedMetadata(&t.mesh.Revoked)
}

func appAddress(wp model.WorkloadPort) string {
	if !wp.AppAddress.IsValid() {
		return "127.0.0.1"
	}
	return wp.AppAddress.String()
}

// explicitInbound is the listener of one workload port on the workload's address.
func (t *Translator) explicitInbound(p *model.Proxy, ip *inboundPort) Resource {
	chains, inspect := t.inboundChains(ip)
	l := &listenerv3.Listener{
		Name:             inboundName(ip.port.Port),
		Address:          envoy.SocketAddress(p.Address.String(), ip.port.Port),
		TrafficDirection: corev3.TrafficDirection_INBOUND,
		FilterChains:     chains,
	}
	if inspect {
		l.ListenerFilters = []*listenerv3.ListenerFilter{tlsInspector()}
		l.ContinueOnListenerFiltersTimeout = true
		if !ip.port.Protocol.IsHTTP() {
			// Where the server speaks first the client must not wait long for it.
			l.ListenerFiltersTimeout = dur(inspectionTimeout)
		}
	}
	return Resource{Name: l.Name, Message: l, Sources: ip.sources}
}

// inboundChains are the filter chains of a port by the effective mode of mutual
// TLS; inspect asks for the TLS inspector.
//
// For HTTP any TLS is the mesh's own, because the workload itself speaks plain
// HTTP. For other ports only TLS with our ALPN is: what else comes, plain or
// the application's own TLS, is the application's affair in permissive mode.
func (t *Translator) inboundChains(ip *inboundPort) (chains []*listenerv3.FilterChain, inspect bool) {
	mesh := &listenerv3.FilterChain{
		Name:            fmt.Sprintf("%d-mtls", ip.port.Port),
		TransportSocket: t.meshTLS(ip),
		Filters:         ip.filters,
		Metadata:        envoy.RevokedMark(t.mesh.Revoked.Everybody),
	}
	if !ip.port.Protocol.IsHTTP() {
		// A TCP connection is judged once. When something is revoked all of them are
		// closed, and whoever may connects again.
		mesh.Metadata = envoy.RevokedMark(t.mesh.Revoked.Newest)
	}
	plain := &listenerv3.FilterChain{Name: fmt.Sprintf("%d-plain", ip.port.Port), Filters: ip.filters}
	switch ip.mode {
	case model.Strict:
		return []*listenerv3.FilterChain{mesh}, false
	case model.Disable:
		return []*listenerv3.FilterChain{plain}, false
	}
	mesh.FilterChainMatch = &listenerv3.FilterChainMatch{TransportProtocol: "tls"}
	if ip.port.Protocol.IsHTTP() {
		plain.FilterChainMatch = &listenerv3.FilterChainMatch{TransportProtocol: "raw_buffer"}
	} else {
		mesh.FilterChainMatch.ApplicationProtocols = alpn(ip)
		plain.FilterChainMatch = &listenerv3.FilterChainMatch{}
	}
	return []*listenerv3.FilterChain{mesh, plain}, true
}

// meshTLS is the server side of mutual TLS of a port.
func (t *Translator) meshTLS(ip *inboundPort) *corev3.TransportSocket {
	return envoy.TransportSocket(envoy.DownstreamTLS(t.mesh, alpn(ip)))
}

// alpn are the protocols that a port agrees to within mutual TLS.
func alpn(ip *inboundPort) []string {
	if ip.port.Protocol.IsHTTP() {
		return []string{"h2", "http/1.1"}
	}
	return []string{envoy.ALPN}
}

func tlsInspector() *listenerv3.ListenerFilter {
	return listenerFilter("envoy.filters.listener.tls_inspector", &tlsinspectorv3.TlsInspector{})
}

// protocol is how a cluster speaks HTTP.
type protocol int

const (
	notHTTP protocol = iota
	http1
	http2
	// http2Mesh also allows extended CONNECT, which carries WebSocket between sidecars.
	http2Mesh
	// sameAsClient uses what the client used.
	sameAsClient
)

// protocolOptions completes o with the protocol; nil for notHTTP.
func protocolOptions(o *httpv3.HttpProtocolOptions, p protocol) map[string]*anypb.Any {
	explicit := &httpv3.HttpProtocolOptions_ExplicitHttpConfig{}
	switch p {
	case notHTTP, http1:
		explicit.ProtocolConfig = &httpv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{HttpProtocolOptions: &corev3.Http1ProtocolOptions{}}
	case http2, http2Mesh:
		explicit.ProtocolConfig = &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{
			Http2ProtocolOptions: &corev3.Http2ProtocolOptions{AllowConnect: p == http2Mesh},
		}
	case sameAsClient:
		o.UpstreamProtocolOptions = &httpv3.HttpProtocolOptions_UseDownstreamProtocolConfig{
			UseDownstreamProtocolConfig: &httpv3.HttpProtocolOptions_UseDownstreamHttpConfig{
				HttpProtocolOptions:  &corev3.Http1ProtocolOptions{},
				Http2ProtocolOptions: &corev3.Http2ProtocolOptions{AllowConnect: true},
			},
		}
		return map[string]*anypb.Any{envoy.HTTPOptionsKey: envoy.Any(o)}
	}
	o.UpstreamProtocolOptions = &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: explicit}
	return map[string]*anypb.Any{envoy.HTTPOptionsKey: envoy.Any(o)}
}

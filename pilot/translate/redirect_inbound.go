package translate

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	originaldstv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/writ-mesh/writ/pilot/envoy"
	"github.com/writ-mesh/writ/pilot/model"
)

// Names as Istio has them.
const (
	virtualInboundListener  = "virtualInbound"
	virtualOutboundListener = "virtualOutbound"
	inboundPassthrough      = "InboundPassthroughCluster"
)

// anyAddress is what listeners bind that see redirected traffic.
const anyAddress = "0.0.0.0"

// passthroughSource is the source address of connections that the proxy makes to
// its own workload; the redirection rules let them through.
const passthroughSource = "127.0.0.6"

// redirectedInbound is the server side of sidecars whose traffic is redirected, as
// far as it is one for all of their ports.
type redirectedInbound struct {
	clusters []Resource
	listener Resource
}

// virtualInbound adds the one listener that all redirected inbound traffic comes
// to, and what it needs besides the ports' own clusters. Proxies with alike
// workloads share it.
func (t *Translator) virtualInbound(p *model.Proxy, ports []*inboundPort, out *collector) error {
	keys := []string{t.inboundKey(p, model.WorkloadPort{})}
	for _, ip := range ports {
		keys = append(keys, fmt.Sprintf("%+v", ip.port))
	}
	r, err := t.redirected.get(strings.Join(keys, "|"), func() (*redirectedInbound, error) { return t.redirectedInbound(p, ports) })
	if err != nil {
		return err
	}
	for _, c := range r.clusters {
		put(out.clusters, c)
	}
	put(out.listeners, r.listener)
	return nil
}

// redirectedInbound makes the listener. Its chains are chosen by the port that the
// caller wanted; ports that the workload did not name are passed on to it.
func (t *Translator) redirectedInbound(p *model.Proxy, ports []*inboundPort) (*redirectedInbound, error) {
	l := &listenerv3.Listener{
		Name:             virtualInboundListener,
		Address:          envoy.SocketAddress(anyAddress, model.InboundPort),
		TrafficDirection: corev3.TrafficDirection_INBOUND,
		ListenerFilters:  []*listenerv3.ListenerFilter{originalDestination(), tlsInspector()},
		// Servers of some protocols speak first; their clients must not wait long.
		ListenerFiltersTimeout:           dur(inspectionTimeout),
		ContinueOnListenerFiltersTimeout: true,
		FilterChains:                     []*listenerv3.FilterChain{t.blackHoleChain(model.InboundPort)},
	}
	var src sources
	add := func(ip *inboundPort, port uint32) {
		chains, _ := t.inboundChains(ip)
		for _, c := range chains {
			if port != 0 {
				c.FilterChainMatch = withPort(c.GetFilterChainMatch(), port)
			}
			l.FilterChains = append(l.FilterChains, c)
		}
		src.add(ip.sources...)
	}
	for _, ip := range ports {
		add(ip, ip.port.Port)
	}
	rest, err := t.inboundPassthrough(p)
	if err != nil {
		return nil, err
	}
	add(rest, 0)
	out := &redirectedInbound{listener: Resource{Name: l.Name, Message: l, Sources: src.list}}
	for _, c := range append(rest.others, rest.cluster, t.blackHole()) {
		out.clusters = append(out.clusters, Resource{Name: c.Name, Message: c, Sources: rest.sources})
	}
	return out, nil
}

// inspectionTimeout is how long a connection may be silent before it counts as
// neither TLS nor HTTP.
const inspectionTimeout = time.Second

func withPort(m *listenerv3.FilterChainMatch, port uint32) *listenerv3.FilterChainMatch {
	if m == nil {
		m = &listenerv3.FilterChainMatch{}
	}
	m = proto.Clone(m).(*listenerv3.FilterChainMatch)
	m.DestinationPort = wrapperspb.UInt32(port)
	return m
}

// inboundPassthrough stands for all ports that the workload did not name.
func (t *Translator) inboundPassthrough(p *model.Proxy) (*inboundPort, error) {
	ip := &inboundPort{mode: t.policy.ServerMode(p.Namespace, p.Labels, 0)}
	policy, err := t.policy.TCP(p, ip.port)
	if err != nil {
		return nil, fmt.Errorf("inbound ports without name: %w", err)
	}
	ip.others, ip.sources = policy.Clusters, policy.Sources
	ip.cluster = t.originalDst(inboundPassthrough)
	ip.cluster.UpstreamBindConfig = &corev3.BindConfig{SourceAddress: &corev3.SocketAddress{
		Address: passthroughSource, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: 0},
	}}
	ip.filters = append(ip.filters, policy.Filters...)
	ip.filters = append(ip.filters, t.tcpTo(inboundPassthrough))
	return ip, nil
}

func (t *Translator) tcpTo(cluster string) *listenerv3.Filter {
	return networkFilter(tcpProxy, &tcpproxyv3.TcpProxy{
		StatPrefix: cluster, ClusterSpecifier: &tcpproxyv3.TcpProxy_Cluster{Cluster: cluster}, AccessLog: t.accessLog("", nil),
	})
}

// blackHoleChain stops connections made to the proxy's own port, which would
// otherwise be passed on to it for ever.
func (t *Translator) blackHoleChain(port uint32) *listenerv3.FilterChain {
	return &listenerv3.FilterChain{
		Name:             "blackhole",
		FilterChainMatch: &listenerv3.FilterChainMatch{DestinationPort: wrapperspb.UInt32(port)},
		Filters:          []*listenerv3.Filter{t.tcpTo(blackHoleCluster)},
	}
}

func (t *Translator) blackHole() *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name:                 blackHoleCluster,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		ConnectTimeout:       t.connectTimeout(),
	}
}

// originalDst connects to where the client wanted to go.
func (t *Translator) originalDst(name string) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name:                 name,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_ORIGINAL_DST},
		LbPolicy:             clusterv3.Cluster_CLUSTER_PROVIDED,
		ConnectTimeout:       t.connectTimeout(),
		CircuitBreakers:      unlimited(),
	}
}

func originalDestination() *listenerv3.ListenerFilter {
	return listenerFilter("envoy.filters.listener.original_dst", &originaldstv3.OriginalDst{})
}

// cidrs reads addresses and ranges; what is neither is left out.
func cidrs(addresses []string) []*corev3.CidrRange {
	var out []*corev3.CidrRange
	for _, a := range addresses {
		if !strings.Contains(a, "/") {
			addr, err := netip.ParseAddr(a)
			if err != nil {
				continue
			}
			a = netip.PrefixFrom(addr, addr.BitLen()).String()
		}
		if prefix, err := netip.ParsePrefix(a); err == nil {
			out = append(out, &corev3.CidrRange{AddressPrefix: prefix.Addr().String(), PrefixLen: u32(uint32(prefix.Bits()))})
		}
	}
	return out
}

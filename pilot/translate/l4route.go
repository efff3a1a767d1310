package translate

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	hashv3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/writ-mesh/writ/pilot/model"
)

// l4Destinations is where connections go.
type l4Destinations struct {
	clusters    []weightedTarget
	idleTimeout *durationpb.Duration
	maxDuration *durationpb.Duration
	sourceHash  bool
	// through is host and port that the destination, an HTTP proxy, is asked for a tunnel
	// to; empty if it is no such proxy.
	through string
}

type weightedTarget struct {
	cluster string
	weight  uint32
}

// action is a route action with these destinations, for tunnels.
func (d *l4Destinations) action() *routev3.RouteAction {
	a := &routev3.RouteAction{Timeout: dur(0)}
	if d.idleTimeout != nil {
		a.IdleTimeout = d.idleTimeout
	}
	if d.maxDuration != nil {
		a.MaxStreamDuration = &routev3.RouteAction_MaxStreamDuration{MaxStreamDuration: d.maxDuration}
	}
	if d.sourceHash {
		a.HashPolicy = hashPolicy(&networking.LoadBalancerSettings_ConsistentHashLB{HashKey: &networking.LoadBalancerSettings_ConsistentHashLB_UseSourceIp{UseSourceIp: true}})
	}
	if len(d.clusters) == 1 {
		a.ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: d.clusters[0].cluster}
		return a
	}
	w := &routev3.WeightedCluster{}
	for _, c := range d.clusters {
		w.Clusters = append(w.Clusters, &routev3.WeightedCluster_ClusterWeight{Name: c.cluster, Weight: u32(c.weight)})
	}
	a.ClusterSpecifier = &routev3.RouteAction_WeightedClusters{WeightedClusters: w}
	return a
}

// filter is a TCP proxy to these destinations.
func (d *l4Destinations) filter(t *Translator, statPrefix string) *listenerv3.Filter {
	p := &tcpproxyv3.TcpProxy{StatPrefix: statPrefix, AccessLog: t.accessLog("", nil), IdleTimeout: d.idleTimeout, MaxDownstreamConnectionDuration: d.maxDuration}
	if d.through != "" {
		p.TunnelingConfig = &tcpproxyv3.TcpProxy_TunnelingConfig{Hostname: d.through}
	}
	if d.sourceHash {
		p.HashPolicy = []*hashv3.HashPolicy{{PolicySpecifier: &hashv3.HashPolicy_SourceIp_{SourceIp: &hashv3.HashPolicy_SourceIp{}}}}
	}
	if len(d.clusters) == 1 {
		p.ClusterSpecifier = &tcpproxyv3.TcpProxy_Cluster{Cluster: d.clusters[0].cluster}
		return networkFilter(tcpProxy, p)
	}
	w := &tcpproxyv3.TcpProxy_WeightedCluster{}
	for _, c := range d.clusters {
		w.Clusters = append(w.Clusters, &tcpproxyv3.TcpProxy_WeightedCluster_ClusterWeight{Name: c.cluster, Weight: c.weight})
	}
	p.ClusterSpecifier = &tcpproxyv3.TcpProxy_WeightedClusters{WeightedClusters: w}
	return networkFilter(tcpProxy, p)
}

// l4Destinations are the destinations of connections to a service's port: those
// of the first tcp rule that holds (for TLS and HTTPS ports: tls rule, whose
// server names must include the service's), else the service itself.
func (b *routeBuilder) l4Destinations(vs *virtualService, svc *model.Service, port model.ServicePort) (*l4Destinations, error) {
	if vs != nil {
		b.src.add(vs.sources...)
		if port.Protocol == model.TLS || port.Protocol == model.HTTPS {
			for _, r := range vs.tls {
				if b.tlsApplies(r, vs.Namespace, svc) {
					return b.l4Routes(r.GetRoute(), vs.Namespace)
				}
			}
		} else if !port.Protocol.IsHTTP() {
			for _, r := range vs.tcp {
				if b.tcpApplies(r, vs.Namespace, svc) {
					return b.l4Routes(r.GetRoute(), vs.Namespace)
				}
			}
		}
	}
	cluster, err := b.s.addCluster(b.out, svc, port.Port, "")
	if err != nil {
		return nil, err
	}
	out := &l4Destinations{clusters: []weightedTarget{{cluster: cluster}}}
	out.tune(b.s, target{svc, port.Port}, "")
	if port.Protocol.IsHTTP() {
		out.through = "" // a tunnel through a proxy is for connections, not for requests to the proxy
	}
	return out, nil
}

// tcpApplies says whether a tcp rule holds for connections to svc, which is nil at a
// gateway: what is asked for there is the gateway, whatever destinationSubnets say.
func (b *routeBuilder) tcpApplies(r *networking.TCPRoute, namespace string, svc *model.Service) bool {
	if len(r.GetRoute()) == 0 {
		return false
	}
	if len(r.GetMatch()) == 0 {
		return true
	}
	return slices.ContainsFunc(r.GetMatch(), func(m *networking.L4MatchAttributes) bool {
		return (svc == nil || isWithin(svc, m.GetDestinationSubnets())) && b.l4Applies(m.GetPort(), m.GetGateways(), m.GetSourceLabels(), m.GetSourceNamespace(), namespace)
	})
}

// tlsApplies says whether a tls rule holds for connections to svc.
func (b *routeBuilder) tlsApplies(r *networking.TLSRoute, namespace string, svc *model.Service) bool {
	return len(r.GetRoute()) > 0 && slices.ContainsFunc(r.GetMatch(), func(m *networking.TLSMatchAttributes) bool {
		return isWithin(svc, m.GetDestinationSubnets()) && b.l4Applies(m.GetPort(), m.GetGateways(), m.GetSourceLabels(), m.GetSourceNamespace(), namespace) &&
			slices.ContainsFunc(m.GetSniHosts(), func(sni string) bool { return model.HostMatches(sni, svc.Hostname) })
	})
}

// isWithin says whether connections to svc are to an address within one of the subnets,
// of which none is any. That is known of a service by its addresses, or those of its
// endpoints if it has none of its own.
func isWithin(svc *model.Service, subnets []string) bool {
	addresses := svc.Addresses
	if len(addresses) == 0 {
		for _, e := range svc.Endpoints {
			addresses = append(addresses, e.Address)
		}
	}
	return len(subnets) == 0 || slices.ContainsFunc(addresses, func(address string) bool {
		inner, ok := addressBlock(address)
		return ok && slices.ContainsFunc(subnets, func(subnet string) bool {
			outer, ok := addressBlock(subnet)
			return ok && outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
		})
	})
}

// addressBlock reads an address or a block of them.
func addressBlock(text string) (netip.Prefix, bool) {
	if p, err := netip.ParsePrefix(text); err == nil {
		return p, true
	}
	a, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(a, a.BitLen()), true
}

func (b *routeBuilder) l4Applies(port uint32, gateways []string, labels map[string]string, sourceNamespace, namespace string) bool {
	if port != 0 && port != b.port {
		return false
	}
	named := slices.ContainsFunc(gateways, func(g string) bool { return model.ResolveGateway(g, namespace) == b.gateway })
	return (len(gateways) == 0 || named) && b.s.isClient(labels, sourceNamespace)
}

// l4Routes resolves the destinations of a tcp or tls rule.
func (b *routeBuilder) l4Routes(routes []*networking.RouteDestination, namespace string) (*l4Destinations, error) {
	out := &l4Destinations{}
	for _, r := range routes {
		if len(routes) > 1 && r.GetWeight() == 0 {
			continue
		}
		cluster, dst, err := b.destination(r.GetDestination(), namespace)
		if err != nil {
			return nil, err
		}
		out.clusters = append(out.clusters, weightedTarget{cluster: cluster, weight: uint32(r.GetWeight())})
		out.tune(b.s, dst, r.GetDestination().GetSubset())
	}
	if len(out.clusters) == 0 {
		out.clusters = []weightedTarget{{cluster: blackHoleCluster}}
	}
	return out, nil
}

// tune takes from a destination's policy what the listener has to do.
func (d *l4Destinations) tune(s *scope, dst target, subset string) {
	if dst.svc == nil {
		return
	}
	policy := s.destinationRule(dst.svc).trafficPolicy(dst.port, subset)
	if len(d.clusters) <= 1 { // of several destinations the first one says it, as in Istio
		tcp := policy.GetConnectionPool().GetTcp()
		d.idleTimeout, d.maxDuration = tcp.GetIdleTimeout(), tcp.GetMaxConnectionDuration()
		if t := policy.GetTunnel(); t != nil {
			d.through = net.JoinHostPort(t.GetTargetHost(), strconv.FormatUint(uint64(t.GetTargetPort()), 10))
		}
	}
	d.sourceHash = d.sourceHash || policy.GetLoadBalancer().GetConsistentHash().GetUseSourceIp()
}

// statPrefix names the statistics of connections.
func (d *l4Destinations) statPrefix(fallback string) string {
	if len(d.clusters) == 1 {
		return d.clusters[0].cluster
	}
	return fmt.Sprintf("%s.weighted", fallback)
}

package translate

import (
	"fmt"
	"slices"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	dfpclusterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/dynamic_forward_proxy/v3"
	dfpcommonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/dynamic_forward_proxy/v3"
	dfpfilterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/dynamic_forward_proxy/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/writ-mesh/writ/pilot/envoy"
	"github.com/writ-mesh/writ/pilot/model"
)

// Clusters that are not of a service.
const (
	passthroughCluster        = "PassthroughCluster"
	dynamicPassthroughCluster = "DynamicPassthroughCluster"
	blackHoleCluster          = "BlackHoleCluster"
)

// outboundName is Istio's name of the cluster of a service's port and subset.
func outboundName(port uint32, subset, host string) string {
	return fmt.Sprintf("outbound|%d|%s|%s", port, subset, host)
}

// serverNameOf is the SNI that says which cluster a mesh connection is for.
func serverNameOf(port uint32, subset, host string) string {
	return fmt.Sprintf("outbound_.%d_.%s_.%s", port, subset, host)
}

// clusterKey holds all that a service's cluster depends on.
type clusterKey struct {
	svc    *model.Service
	port   uint32
	subset string
	rule   *destinationRule
	// dynamic is set where a service without endpoints of its own (resolution
	// NONE) is reached by the name in the request, because the proxy has no
	// intercepted address to go to.
	dynamic bool
	// locality is the client's, if the service's endpoints have any.
	locality string
	// labels is the client's scope where failover goes by its labels.
	labels *scope
	// credentials is the namespace of a gateway, whose secrets a rule may name.
	credentials string
}

// builtCluster is a cluster with, for EDS, its endpoints.
type builtCluster struct {
	cluster   *clusterv3.Cluster
	endpoints *endpointv3.ClusterLoadAssignment
	sources   []model.Ref
}

// addCluster adds the cluster of a service's port and subset, and gives its name.
func (s *scope) addCluster(out *collector, svc *model.Service, port uint32, subset string) (string, error) {
	name := outboundName(port, subset, svc.Hostname)
	if _, done := out.clusters[name]; done {
		return name, nil
	}
	key := clusterKey{svc: svc, port: port, subset: subset, rule: s.destinationRule(svc), dynamic: s.isGateway || s.interception == model.Explicit}
	if slices.ContainsFunc(svc.Endpoints, func(e *model.Endpoint) bool { return e.Locality != "" }) {
		key.locality = s.locality
	}
	policy := s.t.effectivePolicy(key)
	if setting, _ := s.t.localitySetting(policy, svc); len(setting.GetFailoverPriority()) > 0 {
		key.labels = s
	}
	if s.isGateway && policy.GetTls().GetCredentialName() != "" {
		key.credentials = s.namespace
	}
	built, err := s.t.clusters.get(key, func() (*builtCluster, error) { return s.t.buildCluster(key) })
	if err != nil {
		return "", err
	}
	put(out.clusters, Resource{Name: name, Message: built.cluster, Sources: built.sources})
	if built.endpoints != nil {
		put(out.endpoints, Resource{Name: name, Message: built.endpoints, Sources: built.sources})
	}
	return name, nil
}

// clusterBuilder carries one cluster through its steps.
type clusterBuilder struct {
	t         *Translator
	key       clusterKey
	port      model.ServicePort
	policy    *networking.TrafficPolicy
	endpoints []*model.Endpoint
	out       *clusterv3.Cluster
	options   *httpv3.HttpProtocolOptions
	peers     peers
}

func (t *Translator) buildCluster(key clusterKey) (*builtCluster, error) {
	port, ok := servicePort(key.svc, key.port)
	if !ok {
		return nil, fmt.Errorf("%s has no port %d", key.svc.Ref, key.port)
	}
	b := &clusterBuilder{t: t, key: key, port: port, policy: t.effectivePolicy(key), options: &httpv3.HttpProtocolOptions{}}
	b.endpoints = b.selectEndpoints()
	b.peers = t.peersOf(b.endpoints, key)
	b.out = &clusterv3.Cluster{
		Name:           outboundName(key.port, key.subset, key.svc.Hostname),
		ConnectTimeout: t.connectTimeout(),
		CommonLbConfig: &clusterv3.Cluster_CommonLbConfig{HealthyPanicThreshold: noPanic()},
	}
	b.discovery()
	b.source()
	b.connectionPool()
	b.outlierDetection()
	b.loadBalancer()
	if err := b.tls(); err != nil {
		return nil, err
	}
	b.proxyProtocol()
	b.protocol()
	built := &builtCluster{cluster: b.out}
	var src sources
	src.add(key.svc.Ref)
	if key.rule != nil {
		src.add(key.rule.sources...)
	}
	built.sources = src.list
	if b.out.GetType() == clusterv3.Cluster_EDS {
		built.endpoints = b.loadAssignment()
	}
	return built, nil
}

// effectivePolicy is the DestinationRule's on top of the mesh's default.
func (t *Translator) effectivePolicy(key clusterKey) *networking.TrafficPolicy {
	p := overlay(&networking.TrafficPolicy{}, key.rule.trafficPolicy(key.port, key.subset), 0)
	d := t.mesh.Config.GetDefaultTrafficPolicy()
	if p.ConnectionPool == nil {
		p.ConnectionPool = d.GetConnectionPool()
	}
	if p.OutlierDetection == nil {
		p.OutlierDetection = d.GetOutlierDetection()
	}
	return p
}

func (t *Translator) connectTimeout() *durationpb.Duration {
	if d := t.mesh.Config.GetConnectTimeout(); d != nil {
		return d
	}
	return durationpb.New(defaultConnectTimeout)
}

// discovery says where the endpoints come from.
func (b *clusterBuilder) discovery() {
	passthrough := b.policy.GetLoadBalancer().GetSimple() == networking.LoadBalancerSettings_PASSTHROUGH
	if b.key.svc.Resolution == model.None || passthrough {
		if b.key.dynamic {
			b.out.ClusterDiscoveryType = dynamicForwardProxy()
		} else {
			b.out.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_ORIGINAL_DST}
		}
		b.out.LbPolicy = clusterv3.Cluster_CLUSTER_PROVIDED
		return
	}
	switch b.key.svc.Resolution {
	case model.DNS, model.DNSRoundRobin:
		if b.key.dynamic && strings.HasPrefix(b.key.svc.Hostname, "*") && len(b.endpoints) == 0 {
			b.out.ClusterDiscoveryType = dynamicForwardProxy()
			b.out.LbPolicy = clusterv3.Cluster_CLUSTER_PROVIDED
			return
		}
		kind := clusterv3.Cluster_STRICT_DNS
		b.out.LoadAssignment = b.loadAssignment()
		// LOGICAL_DNS takes exactly one endpoint.
		if b.key.svc.Resolution == model.DNSRoundRobin && singleEndpoint(b.out.LoadAssignment) {
			kind = clusterv3.Cluster_LOGICAL_DNS
		}
		b.out.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: kind}
		b.out.DnsLookupFamily = clusterv3.Cluster_V4_PREFERRED
		// The fields that replace these two are unknown to the oldest supported Envoy.
		b.out.DnsRefreshRate = b.t.mesh.Config.GetDnsRefreshRate() //nolint:staticcheck // see above
		b.out.RespectDnsTtl = true                                 //nolint:staticcheck // see above
	default:
		b.out.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS}
		b.out.EdsClusterConfig = &clusterv3.Cluster_EdsClusterConfig{EdsConfig: envoy.ADS(), ServiceName: b.out.Name}
	}
}

// source: with redirection every proxy has an address that leads anywhere.
func (b *clusterBuilder) source() {
	if !b.key.dynamic {
		return
	}
	var hosts []string
	for _, e := range b.endpoints {
		hosts = append(hosts, e.Address)
	}
	if b.dynamic() {
		hosts = append(hosts, b.key.svc.Hostname)
	}
	b.out.UpstreamBindConfig = envoy.AnySource(hosts...)
}

func singleEndpoint(a *endpointv3.ClusterLoadAssignment) bool {
	return len(a.GetEndpoints()) == 1 && len(a.GetEndpoints()[0].GetLbEndpoints()) == 1
}

// dynamic says whether the cluster resolves the name in each request.
func (b *clusterBuilder) dynamic() bool { return b.out.GetClusterType() != nil }

// dnsCache is the one cache of all dynamic forward proxies of an Envoy; filter
// and clusters must give exactly the same configuration.
func dnsCache() *dfpcommonv3.DnsCacheConfig {
	return &dfpcommonv3.DnsCacheConfig{Name: "writ", DnsLookupFamily: clusterv3.Cluster_V4_PREFERRED}
}

func dynamicForwardProxy() *clusterv3.Cluster_ClusterType {
	return &clusterv3.Cluster_ClusterType{ClusterType: &clusterv3.Cluster_CustomClusterType{
		Name: "envoy.clusters.dynamic_forward_proxy",
		TypedConfig: envoy.Any(&dfpclusterv3.ClusterConfig{
			ClusterImplementationSpecifier: &dfpclusterv3.ClusterConfig_DnsCacheConfig{DnsCacheConfig: dnsCache()},
			// Clusters without TLS have no server name to check.
			AllowInsecureClusterOptions: true,
		}),
	}}
}

func dynamicForwardProxyFilter() *hcmv3.HttpFilter {
	return httpFilter("envoy.filters.http.dynamic_forward_proxy", &dfpfilterv3.FilterConfig{
		ImplementationSpecifier: &dfpfilterv3.FilterConfig_DnsCacheConfig{DnsCacheConfig: dnsCache()},
	})
}

// dynamicPassthrough reaches hosts that the mesh does not know by the name in
// the request.
func (t *Translator) dynamicPassthrough(name string) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name:                          name,
		ClusterDiscoveryType:          dynamicForwardProxy(),
		LbPolicy:                      clusterv3.Cluster_CLUSTER_PROVIDED,
		UpstreamBindConfig:            envoy.AnySource(name),
		ConnectTimeout:                t.connectTimeout(),
		CircuitBreakers:               unlimited(),
		TypedExtensionProtocolOptions: protocolOptions(&httpv3.HttpProtocolOptions{}, sameAsClient),
	}
}

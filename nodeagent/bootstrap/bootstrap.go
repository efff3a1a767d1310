package bootstrap

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	overloadv3 "github.com/envoyproxy/go-control-plane/envoy/config/overload/v3"
	connectionsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/resource_monitors/downstream_connections/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// The ports of an Envoy's own listeners, as in Istio.
const (
	AdminPort      = 15000
	ReadinessPort  = 15021
	PrometheusPort = 15090
)

// The static clusters.
const (
	// AgentCluster reaches the node agent; configuration that pilot makes names it
	// for SDS.
	AgentCluster = "writ-agent"
	// adminClusterName reaches the Envoy's own administration interface.
	adminClusterName = "writ-admin"
)

// defaultMaxConnections is how many connections from callers an Envoy takes.
const defaultMaxConnections = 50_000

// maxSocketPath is what fits into sockaddr_un, in bytes (unix(7)).
const maxSocketPath = 107

// Options say what is particular to one Envoy.
type Options struct {
	// NodeID is the xDS node id: <type>~<IP>~<name>.<namespace>~<domain>.
	NodeID string
	// Cluster is the name of the workload, for the Envoy's own statistics and
	// access logs.
	Cluster string
	// Metadata is the node's metadata; values as encoding/json has them. May be nil.
	Metadata map[string]any
	// AgentSocket is the absolute path of the node agent's socket.
	AgentSocket string
	// Secret is the proxy's, by which the agent knows its calls (package proxysecret).
	Secret string
	// Address is where the Envoy's own listeners are. Without it administration
	// is on 127.0.0.1, readiness and Prometheus on every address, as in a pod.
	Address netip.Addr
	// Admin, Readiness and Prometheus replace the addresses that follow from
	// Address and the default ports, where they are valid.
	Admin, Readiness, Prometheus netip.AddrPort
	// MaxConnections is how many connections from callers are taken; 0 means
	// 50,000.
	MaxConnections int64
}

func (o Options) withDefaults() (Options, error) {
	switch {
	case o.NodeID == "":
		return o, errors.New("bootstrap: no node id")
	case !filepath.IsAbs(o.AgentSocket):
		return o, fmt.Errorf("bootstrap: agent socket %q: want an absolute path", o.AgentSocket)
	case len(o.AgentSocket) > maxSocketPath:
		return o, fmt.Errorf("bootstrap: agent socket %q: the path has %d bytes, a unix socket's has at most %d", o.AgentSocket, len(o.AgentSocket), maxSocketPath)
	case o.Secret == "":
		return o, errors.New("bootstrap: no secret: the node agent would refuse the proxy")
	case o.MaxConnections < 0:
		return o, fmt.Errorf("bootstrap: max connections %d: want a positive number", o.MaxConnections)
	}
	if o.Cluster == "" {
		o.Cluster = o.NodeID
	}
	if o.MaxConnections == 0 {
		o.MaxConnections = defaultMaxConnections
	}
	admin, open := o.Address, o.Address
	if !o.Address.IsValid() {
		admin, open = netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv4Unspecified()
	}
	for _, a := range []struct {
		to   *netip.AddrPort
		addr netip.Addr
		port uint16
	}{{&o.Admin, admin, AdminPort}, {&o.Readiness, open, ReadinessPort}, {&o.Prometheus, open, PrometheusPort}} {
		if !a.to.IsValid() {
			*a.to = netip.AddrPortFrom(a.addr, a.port)
		}
	}
	return o, nil
}

// Bootstrap returns the bootstrap as JSON, to be given to envoy -c. It has the proxy's
// secret: only the proxy's user may read it.
func Bootstrap(o Options) ([]byte, error) {
	b, err := Proto(o)
	if err != nil {
		return nil, err
	}
	raw, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(b)
	if err != nil {
		return nil, fmt.Errorf("bootstrap: %w", err)
	}
	// protojson varies its spaces on purpose.
	var out bytes.Buffer
	if err := json.Indent(&out, raw, "", "  "); err != nil {
		return nil, fmt.Errorf("bootstrap: %w", err)
	}
	return append(out.Bytes(), '\n'), nil
}

// Proto returns the bootstrap as a message.
func Proto(o Options) (*bootstrapv3.Bootstrap, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	metadata, err := structpb.NewStruct(o.Metadata)
	if err != nil {
		return nil, fmt.Errorf("bootstrap: metadata: %w", err)
	}
	listeners, err := listeners(o)
	if err != nil {
		return nil, err
	}
	agent, err := agentCluster(o.AgentSocket)
	if err != nil {
		return nil, err
	}
	overload, err := overloadManager(o.MaxConnections)
	if err != nil {
		return nil, err
	}
	return &bootstrapv3.Bootstrap{
		Node: &corev3.Node{Id: o.NodeID, Cluster: o.Cluster, Metadata: metadata},
		Admin: &bootstrapv3.Admin{
			Address:               address(o.Admin),
			IgnoreGlobalConnLimit: true,
		},
		StaticResources: &bootstrapv3.Bootstrap_StaticResources{
			Listeners: listeners,
			Clusters:  []*clusterv3.Cluster{agent, adminCluster(o.Admin)},
			Secrets:   []*tlsv3.Secret{proxySecret(o.Secret)},
		},
		DynamicResources: dynamicResources(),
		ClusterManager:   clusterManager(o.Address),
		// Statistics of a cluster take memory when it is first used and not before.
		DeferredStatOptions: &bootstrapv3.Bootstrap_DeferredStatOptions{EnableDeferredCreationStats: true},
		OverloadManager:     overload,
		LayeredRuntime:      runtime(),
	}, nil
}

// dynamicResources: everything over one delta stream, for which Envoy waits as
// long as it takes.
func dynamicResources() *bootstrapv3.Bootstrap_DynamicResources {
	ads := &corev3.ConfigSource{
		ResourceApiVersion:    corev3.ApiVersion_V3,
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
		InitialFetchTimeout:   durationpb.New(0),
	}
	return &bootstrapv3.Bootstrap_DynamicResources{
		AdsConfig: &corev3.ApiConfigSource{
			ApiType:                   corev3.ApiConfigSource_DELTA_GRPC,
			TransportApiVersion:       corev3.ApiVersion_V3,
			SetNodeOnFirstMessageOnly: true,
			GrpcServices: []*corev3.GrpcService{{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{
				ClusterName: AgentCluster,
				// The agent is on this machine: asking it often costs little, and a
				// pause is a time without news. Envoy's own maximum is 30 s.
				RetryPolicy: &corev3.RetryPolicy{RetryBackOff: &corev3.BackoffStrategy{
					BaseInterval: durationpb.New(100 * time.Millisecond),
					MaxInterval:  durationpb.New(time.Second),
				}},
			}}}},
		},
		CdsConfig: ads,
		LdsConfig: proto.CloneOf(ads),
	}
}

// clusterManager lets a workload with a loopback address of its own call from
// it, so that the address tells the caller as a pod's does. Clusters that lead
// off the machine say otherwise; unix sockets do not mind.
func clusterManager(own netip.Addr) *bootstrapv3.ClusterManager {
	if !own.IsLoopback() {
		return nil
	}
	return &bootstrapv3.ClusterManager{UpstreamBindConfig: &corev3.BindConfig{
		SourceAddress: address(netip.AddrPortFrom(own, 0)).GetSocketAddress(),
	}}
}

func agentCluster(socket string) (*clusterv3.Cluster, error) {
	filters, err := showSecret()
	if err != nil {
		return nil, err
	}
	options, err := anypb.New(&httpv3.HttpProtocolOptions{
		HttpFilters: filters,
		UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
			ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: &corev3.Http2ProtocolOptions{
				// An agent that has died closes the socket; this is for one that hangs.
				ConnectionKeepalive: &corev3.KeepaliveSettings{Interval: durationpb.New(30 * time.Second), Timeout: durationpb.New(5 * time.Second)},
			}},
		}},
	})
	if err != nil {
		return nil, fmt.Errorf("bootstrap: %w", err)
	}
	const many = 100_000 // each secret is a request that never ends
	return &clusterv3.Cluster{
		Name:                          AgentCluster,
		ClusterDiscoveryType:          &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		ConnectTimeout:                durationpb.New(500 * time.Millisecond),
		TypedExtensionProtocolOptions: map[string]*anypb.Any{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
		CircuitBreakers: &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
			MaxConnections: wrapperspb.UInt32(many), MaxPendingRequests: wrapperspb.UInt32(many), MaxRequests: wrapperspb.UInt32(many),
		}}},
		LoadAssignment: assignment(AgentCluster, &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: socket}}}),
	}, nil
}

func adminCluster(admin netip.AddrPort) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name:                 adminClusterName,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		ConnectTimeout:       durationpb.New(500 * time.Millisecond),
		LoadAssignment:       assignment(adminClusterName, address(admin)),
	}
}

// overloadManager bounds connections from callers; administration, readiness and
// Prometheus do not count.
func overloadManager(connections int64) (*overloadv3.OverloadManager, error) {
	config, err := anypb.New(&connectionsv3.DownstreamConnectionsConfig{MaxActiveDownstreamConnections: connections})
	if err != nil {
		return nil, fmt.Errorf("bootstrap: %w", err)
	}
	return &overloadv3.OverloadManager{ResourceMonitors: []*overloadv3.ResourceMonitor{{
		Name:       "envoy.resource_monitors.global_downstream_max_connections",
		ConfigType: &overloadv3.ResourceMonitor_TypedConfig{TypedConfig: config},
	}}}, nil
}

func runtime() *bootstrapv3.LayeredRuntime {
	return &bootstrapv3.LayeredRuntime{Layers: []*bootstrapv3.RuntimeLayer{
		{Name: "writ", LayerSpecifier: &bootstrapv3.RuntimeLayer_StaticLayer{StaticLayer: &structpb.Struct{Fields: map[string]*structpb.Value{
			// Regular expressions come from the mesh's own configuration, which
			// pilot has compiled once; Envoy's default refuses usual ones.
			"re2.max_program_size.error_level": structpb.NewNumberValue(32768),
		}}}},
		{Name: "admin", LayerSpecifier: &bootstrapv3.RuntimeLayer_AdminLayer_{AdminLayer: &bootstrapv3.RuntimeLayer_AdminLayer{}}},
	}}
}

func assignment(name string, a *corev3.Address) *endpointv3.ClusterLoadAssignment {
	return &endpointv3.ClusterLoadAssignment{
		ClusterName: name,
		Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{{
			HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: a}},
		}}}},
	}
}

func address(a netip.AddrPort) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address:       a.Addr().String(),
		PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(a.Port())},
	}}}
}

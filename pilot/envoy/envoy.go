// Package envoy builds the pieces of Envoy configuration that every translator
// of pilot needs in the same form: typed configs, references to ADS and SDS,
// the mesh's TLS contexts and clusters of Writ's own services. It is pure.
package envoy

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	meshv1 "istio.io/api/mesh/v1alpha1"

	"github.com/writ-mesh/writ/pilot/model"
)

// Names that proxies, their node agent and pilot agree on.
const (
	// AgentCluster is the static cluster of every bootstrap that reaches the
	// node agent, which serves SDS and relays ADS.
	AgentCluster = "writ-agent"
	// SecretDefault is the SDS secret with the workload's own key and chain.
	SecretDefault = "default"
	// SecretRoot is the SDS secret with the trust bundle.
	SecretRoot = "ROOTCA"
	// ALPN marks mesh mTLS, to be told from TLS of the application itself.
	ALPN = "writ"
	// HTTPOptionsKey is the key of a cluster's HTTP protocol options.
	HTTPOptionsKey = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
	// spiffeScheme begins every SPIFFE ID.
	spiffeScheme = "spiffe://"
)

// Any packs m deterministically: equal messages give equal bytes. It panics on a
// message that cannot be marshaled, which only invalid UTF-8 brings about;
// configuration is checked for that when it is read.
func Any(m proto.Message) *anypb.Any {
	out := new(anypb.Any)
	if err := anypb.MarshalFrom(out, m, proto.MarshalOptions{Deterministic: true}); err != nil {
		panic(fmt.Sprintf("marshal %T: %v", m, err))
	}
	return out
}

// ADS says that a resource comes over the proxy's one ADS stream.
func ADS() *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ResourceApiVersion:    corev3.ApiVersion_V3,
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
		// A resource that never comes must not let a proxy go on without it.
		InitialFetchTimeout: durationpb.New(0),
	}
}

// SDS refers to a secret that the node agent serves.
func sdsSecret(name string) *tlsv3.SdsSecretConfig {
	return &tlsv3.SdsSecretConfig{
		Name: name,
		SdsConfig: &corev3.ConfigSource{
			ResourceApiVersion:  corev3.ApiVersion_V3,
			InitialFetchTimeout: durationpb.New(0),
			ConfigSourceSpecifier: &corev3.ConfigSource_ApiConfigSource{ApiConfigSource: &corev3.ApiConfigSource{
				ApiType:                   corev3.ApiConfigSource_DELTA_GRPC,
				TransportApiVersion:       corev3.ApiVersion_V3,
				SetNodeOnFirstMessageOnly: true,
				GrpcServices: []*corev3.GrpcService{{
					TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{
						ClusterName: AgentCluster,
						// Envoy's own maximum of 30 s is longer than a certificate may live.
						RetryPolicy: &corev3.RetryPolicy{RetryBackOff: &corev3.BackoffStrategy{
							BaseInterval: durationpb.New(100 * time.Millisecond),
							MaxInterval:  durationpb.New(time.Second),
						}},
					}},
				}},
			}},
		},
	}
}

// TrustDomains lists the trust domain of the mesh and then its aliases.
func TrustDomains(m *model.Mesh) []string {
	return append([]string{m.TrustDomain}, m.TrustDomainAliases...)
}

// UpstreamTLS is the client side of mesh mTLS. sans are the exact SPIFFE IDs
// that the server may have (secure naming); with none the connection is refused,
// because a server that nobody vouches for must not be talked to. Identities that
// are revoked are left out.
func UpstreamTLS(m *model.Mesh, sans, alpn []string) *tlsv3.UpstreamTlsContext {
	matchers := make([]*tlsv3.SubjectAltNameMatcher, 0, len(sans))
	for _, san := range sans {
		if m.Revoked.Identity(san) {
			continue
		}
		matchers = append(matchers, uriSAN(&matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: san}}))
	}
	if len(matchers) == 0 {
		matchers = append(matchers, uriSAN(&matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: "spiffe://invalid/no-identity-is-registered-for-this-service"}}))
	}
	return &tlsv3.UpstreamTlsContext{CommonTlsContext: common(m, clientRoots(m, sans), matchers, alpn)}
}

// DownstreamTLS is the server side of mesh mTLS: a client certificate of a
// workload of the mesh, or of a trust domain that it federates with, is required.
func DownstreamTLS(m *model.Mesh, alpn []string) *tlsv3.DownstreamTlsContext {
	roots, prefixes := serverRoots(m)
	var matchers []*tlsv3.SubjectAltNameMatcher
	for _, p := range prefixes {
		matchers = append(matchers, uriSAN(&matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: p}}))
	}
	return EachTime(&tlsv3.DownstreamTlsContext{
		CommonTlsContext:         common(m, roots, matchers, alpn),
		RequireClientCertificate: wrapperspb.Bool(true),
	})
}

// EachTime has each connection show its certificate: a session that is resumed would
// have that of its first one, which may have expired since.
func EachTime(c *tlsv3.DownstreamTlsContext) *tlsv3.DownstreamTlsContext {
	c.SessionTicketKeysType = &tlsv3.DownstreamTlsContext_DisableStatelessSessionResumption{DisableStatelessSessionResumption: true}
	c.DisableStatefulSessionResumption = true
	return c
}

// RevokedMark is metadata that nobody reads: with another number a cluster or filter
// chain is another one for Envoy, which then lets go of the connections that it has.
// It is nil for 0.
func RevokedMark(number uint64) *corev3.Metadata {
	if number == 0 {
		return nil
	}
	return &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{"writ": {Fields: map[string]*structpb.Value{
		"revoked": structpb.NewStringValue(strconv.FormatUint(number, 10)),
	}}}}
}

// TransportSocket wraps a TLS context.
func TransportSocket(ctx proto.Message) *corev3.TransportSocket {
	return &corev3.TransportSocket{
		Name:       "envoy.transport_sockets.tls",
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: Any(ctx)},
	}
}

func uriSAN(m *matcherv3.StringMatcher) *tlsv3.SubjectAltNameMatcher {
	return &tlsv3.SubjectAltNameMatcher{SanType: tlsv3.SubjectAltNameMatcher_URI, Matcher: m}
}

func common(m *model.Mesh, roots string, sans []*tlsv3.SubjectAltNameMatcher, alpn []string) *tlsv3.CommonTlsContext {
	return &tlsv3.CommonTlsContext{
		TlsParams:                      meshTLSParams(m),
		TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{sdsSecret(SecretDefault)},
		AlpnProtocols:                  alpn,
		ValidationContextType: &tlsv3.CommonTlsContext_CombinedValidationContext{
			CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
				DefaultValidationContext:         &tlsv3.CertificateValidationContext{MatchTypedSubjectAltNames: sans},
				ValidationContextSdsSecretConfig: sdsSecret(roots),
			},
		},
	}
}

// meshTLSParams: TLS 1.3 alone unless MeshConfig.meshMTLS asks for 1.2 as well;
// the hybrid post-quantum group first, which costs nothing on kept-alive
// connections and a quarter of a full handshake, or alone if MeshConfig.meshMTLS
// asks for that.
func meshTLSParams(m *model.Mesh) *tlsv3.TlsParameters {
	p := &tlsv3.TlsParameters{
		TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_3,
		TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3,
		EcdhCurves:                []string{model.PostQuantumGroup, "X25519", "P-256"},
	}
	if only := m.Config.GetMeshMTLS().GetEcdhCurves(); len(only) > 0 {
		p.EcdhCurves = only // package meshdir has checked them
	}
	if m.Config.GetMeshMTLS().GetMinProtocolVersion() == meshv1.MeshConfig_TLSConfig_TLSV1_2 {
		p.TlsMinimumProtocolVersion = tlsv3.TlsParameters_TLSv1_2
		p.CipherSuites = model.CipherSuites(m.Config.GetMeshMTLS().GetCipherSuites()) // TLS 1.3 has its own
	}
	return p
}

// GRPCCluster reaches a service of Writ. addr is "unix:///path" (no TLS: the
// socket is guarded by its file mode) or "host:port" (mTLS, the server must be
// spiffe://<td>/writ/<service>).
func GRPCCluster(m *model.Mesh, name, addr, service string) (*clusterv3.Cluster, error) {
	endpoint, dns, err := address(addr)
	if err != nil {
		return nil, fmt.Errorf("cluster %s: %w", name, err)
	}
	c := &clusterv3.Cluster{
		Name:                          name,
		ClusterDiscoveryType:          &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		ConnectTimeout:                durationpb.New(time.Second),
		LoadAssignment:                assignment(name, endpoint),
		TypedExtensionProtocolOptions: HTTP2Upstream(false),
	}
	if socket := endpoint.GetSocketAddress(); socket != nil {
		c.UpstreamBindConfig = AnySource(socket.GetAddress())
	}
	if dns {
		c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STRICT_DNS}
	}
	if endpoint.GetSocketAddress() != nil {
		var sans []string
		for _, td := range TrustDomains(m) {
			sans = append(sans, spiffeScheme+td+"/writ/"+service)
		}
		c.TransportSocket = TransportSocket(UpstreamTLS(m, sans, []string{"h2"}))
		c.Metadata = RevokedMark(m.Revoked.NewestOf(sans))
	}
	return c, nil
}

// HTTP2Upstream makes a cluster speak HTTP/2. connect allows extended CONNECT
// (RFC 8441), which carries WebSocket.
func HTTP2Upstream(connect bool) map[string]*anypb.Any {
	return map[string]*anypb.Any{HTTPOptionsKey: Any(&httpv3.HttpProtocolOptions{
		UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{
			ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
				ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{
					Http2ProtocolOptions: &corev3.Http2ProtocolOptions{AllowConnect: connect},
				},
			},
		},
	})}
}

func assignment(cluster string, addr *corev3.Address) *endpointv3.ClusterLoadAssignment {
	return &endpointv3.ClusterLoadAssignment{
		ClusterName: cluster,
		Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{{
			HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: addr}},
		}}}},
	}
}

// SocketAddress is a TCP address.
func SocketAddress(host string, port uint32) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address:       host,
		PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port},
	}}}
}

// AnySource lets the system choose the address to call from, for clusters that
// lead off the machine: a proxy with a loopback address calls from that address
// otherwise, and gets nowhere. It is nil, the proxy's own choice, if all hosts are
// loopback addresses or unix sockets.
func AnySource(hosts ...string) *corev3.BindConfig {
	for _, h := range hosts {
		if ip, err := netip.ParseAddr(h); (err != nil || !ip.IsLoopback()) && !strings.HasPrefix(h, "unix://") {
			return &corev3.BindConfig{}
		}
	}
	return nil
}

// PipeAddress is a unix domain socket.
func PipeAddress(path string) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: path}}}
}

func address(addr string) (a *corev3.Address, dns bool, err error) {
	if path, ok := strings.CutPrefix(addr, "unix://"); ok {
		return PipeAddress(path), false, nil
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, false, fmt.Errorf("address %q: want unix:///path or host:port", addr)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, false, fmt.Errorf("address %q: port is not a number below 65536", addr)
	}
	return SocketAddress(host, uint32(n)), net.ParseIP(host) == nil, nil
}

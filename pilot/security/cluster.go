package security

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/writ-mesh/writ/pilot/envoy"
	"github.com/writ-mesh/writ/pilot/model"
)

// systemCA is where the proxies find the certificates of public authorities, for
// jwksUri with https.
const systemCA = "/etc/ssl/certs/ca-certificates.crt"

// upstreamConnectTimeout bounds a connection to a provider or a JWKS server.
const upstreamConnectTimeout = 5 * time.Second

// upstream is a server that a filter calls.
type upstream struct {
	// host is a service of the mesh ("[namespace/]name"), a DNS name or an IP.
	host string
	port uint32
	// namespace is that of the object that names the host.
	namespace string
	// tls verifies the server by the system's authorities.
	tls bool
	// http2 is for gRPC.
	http2 bool
	// provider is set for a host of mesh.yaml.
	provider bool
}

// clusterFor makes a cluster of its own for the upstream, not shared with
// traffic, since policies must hold whatever a DestinationRule says.
func (c *Compiler) clusterFor(u upstream) (*clusterv3.Cluster, error) {
	host, service, err := c.lookup(u)
	if err != nil {
		return nil, err
	}
	scheme := "http"
	if u.http2 {
		scheme = "grpc"
	}
	if u.tls {
		scheme += "s"
	}
	name := host
	if service != nil {
		name = service.Hostname // the same short name is another service elsewhere
		if service.Kind == "ServiceEntry" {
			name = service.Namespace + "/" + name // and so may be the same host for policies of two namespaces
		}
	}
	out := &clusterv3.Cluster{
		Name:                 fmt.Sprintf("writ-%s|%s|%d", scheme, name, u.port),
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		ConnectTimeout:       durationpb.New(upstreamConnectTimeout),
		DnsLookupFamily:      clusterv3.Cluster_V4_PREFERRED,
	}
	http2 := u.http2
	switch {
	case service != nil && len(service.Endpoints) > 0:
		// The hop between sidecars is HTTP/2 whatever the program speaks.
		http2 = c.meshEndpoints(out, service, u.port) || http2
	case service != nil && !strings.HasPrefix(service.Hostname, "*") && service.Resolution == model.Static:
		// Nobody is there now: calls fail, and the policy says what that means.
		out.LoadAssignment = &endpointv3.ClusterLoadAssignment{ClusterName: out.GetName()}
	default:
		addEndpoint(out, host, u.port)
	}
	if http2 {
		out.TypedExtensionProtocolOptions = envoy.HTTP2Upstream(false)
	}
	if u.tls {
		out.TransportSocket = envoy.TransportSocket(systemTLS(host))
		out.TransportSocketMatches = nil
	}
	return out, nil
}

// lookup finds what the upstream's host means. A name that says the namespace is
// looked for there, as its author asked for. A provider's name that can mean
// nothing outside of the mesh, as Istio's own example external-authz-grpc.local,
// may be that of a ServiceEntry in any one namespace; in several it means none.
func (c *Compiler) lookup(u upstream) (host string, service *model.Service, err error) {
	if ns, h, ok := strings.Cut(u.host, "/"); ok {
		full := model.ResolveHost(h, ns, c.mesh.DomainSuffix)
		if s := c.mesh.PolicyHost(full, ns); s != nil {
			return h, s, nil
		}
		return h, nil, nil
	}
	full := model.ResolveHost(u.host, u.namespace, c.mesh.DomainSuffix)
	service = c.mesh.PolicyHost(full, u.namespace)
	if service != nil || !u.provider || !onlyInMesh(full, c.mesh.DomainSuffix) {
		return u.host, service, nil
	}
	for _, s := range c.mesh.Services {
		switch {
		case s.Hostname != strings.ToLower(full) || !model.ExportedTo(s.ExportTo, s.Namespace, u.namespace):
		case service != nil && service.Namespace != s.Namespace:
			return u.host, nil, fmt.Errorf("%s is a host of %s and of %s: write the namespace before it", u.host, service.Ref, s.Ref)
		default:
			service = s
		}
	}
	return u.host, service, nil
}

// onlyInMesh says that no name server outside of the mesh knows a name: it is one
// of the mesh, or its last part is kept for private use, documentation or tests
// (RFC 6761, RFC 6762, ICANN's resolution on .internal).
func onlyInMesh(host, domainSuffix string) bool {
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	if strings.HasSuffix(host, ".svc."+domainSuffix) {
		return true
	}
	last := host[strings.LastIndexByte(host, '.')+1:]
	return slices.Contains([]string{"local", "internal", "example", "test", "invalid", "localhost"}, last)
}

// meshEndpoints fills the cluster with the endpoints of a service; those behind
// a sidecar are reached by mesh mTLS. It tells whether all of them are.
func (c *Compiler) meshEndpoints(out *clusterv3.Cluster, service *model.Service, port uint32) bool {
	var sans []string
	count := 0
	for _, e := range service.Endpoints {
		target, ok := e.Ports[port]
		if !ok {
			continue
		}
		count++
		endpoint := addEndpoint(out, e.Address, target)
		if e.Proxy == nil || service.External || c.ServerMode(e.Namespace, e.Labels, target) == model.Disable {
			continue
		}
		for _, td := range c.trustDomains {
			sans = append(sans, spiffeScheme+td+"/ns/"+e.Namespace+"/sa/"+e.ServiceAccount)
		}
		endpoint.Metadata = &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{
			"envoy.transport_socket_match": {Fields: map[string]*structpb.Value{"writ": structpb.NewStringValue("mtls")}},
		}}
	}
	if len(sans) == 0 {
		return false
	}
	allMesh := len(sans) == count*len(c.trustDomains)
	slices.Sort(sans)
	alpn := []string{envoy.ALPN}
	if allMesh {
		alpn = append(alpn, "h2")
	}
	out.TransportSocketMatches = []*clusterv3.Cluster_TransportSocketMatch{{
		Name:            "mtls",
		Match:           &structpb.Struct{Fields: map[string]*structpb.Value{"writ": structpb.NewStringValue("mtls")}},
		TransportSocket: envoy.TransportSocket(envoy.UpstreamTLS(c.mesh, slices.Compact(sans), alpn)),
	}}
	return allMesh
}

func addEndpoint(c *clusterv3.Cluster, host string, port uint32) *endpointv3.LbEndpoint {
	addr := envoy.SocketAddress(host, port)
	if path, ok := strings.CutPrefix(host, "unix://"); ok {
		addr = envoy.PipeAddress(path)
	} else if _, err := netip.ParseAddr(host); err != nil {
		c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STRICT_DNS}
	}
	if c.LoadAssignment == nil {
		c.LoadAssignment = &endpointv3.ClusterLoadAssignment{ClusterName: c.GetName(), Endpoints: []*endpointv3.LocalityLbEndpoints{{}}}
	}
	endpoint := &endpointv3.LbEndpoint{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: addr}}}
	if source := envoy.AnySource(host); source != nil {
		c.UpstreamBindConfig = source
	}
	locality := c.LoadAssignment.GetEndpoints()[0]
	locality.LbEndpoints = append(locality.LbEndpoints, endpoint)
	return endpoint
}

// systemTLS checks the server's name and its chain.
func systemTLS(host string) *tlsv3.UpstreamTlsContext {
	san := &tlsv3.SubjectAltNameMatcher{SanType: tlsv3.SubjectAltNameMatcher_DNS, Matcher: &matcherv3.StringMatcher{
		MatchPattern: &matcherv3.StringMatcher_Exact{Exact: host},
	}}
	sni := host
	if _, err := netip.ParseAddr(host); err == nil {
		san.SanType, sni = tlsv3.SubjectAltNameMatcher_IP_ADDRESS, ""
	}
	return &tlsv3.UpstreamTlsContext{
		Sni: sni,
		CommonTlsContext: &tlsv3.CommonTlsContext{
			TlsParams: &tlsv3.TlsParameters{TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_2, TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3},
			ValidationContextType: &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
				TrustedCa:                 &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: systemCA}},
				MatchTypedSubjectAltNames: []*tlsv3.SubjectAltNameMatcher{san},
			}},
		},
	}
}

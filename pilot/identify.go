package pilot

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-mesh/writ/internal/identity"
	"github.com/writ-mesh/writ/internal/rpc"
	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/xds"
)

// serviceTypes are the resources that each service of Writ may have.
var serviceTypes = map[string][]string{
	identity.CA:        {xds.NodePlacementType},
	identity.Authz:     {xds.RegoPolicyType, xds.TokenIssuerType},
	identity.RateLimit: {xds.QuotaPolicyType},
}

// identify says who opened a stream. Over mTLS that is decided by the
// certificate; the xDS node id only says for which of its proxies a node's agent speaks.
func identify(ctx context.Context, node *corev3.Node) (xds.Client, error) {
	if isPlaintext(ctx) {
		return identifyPlain(node)
	}
	caller := rpc.CallerFrom(ctx)
	if name, ok := identity.NodeOf(caller.ID); ok {
		if kind, ok := proxyKind(node.GetId()); ok {
			return xds.Client{ID: node.GetId(), Kind: kind, Node: name, Envoy: isEnvoy(node), Version: version(node)}, nil
		}
		return xds.Client{ID: "node~" + name, Kind: xds.ServiceKind, Types: []string{xds.NodePlacementType}, Only: name, Version: version(node)}, nil
	}
	name, _ := identity.ServiceOf(caller.ID)
	if types := serviceTypes[name]; types != nil {
		return xds.Client{ID: "service~" + name, Kind: xds.ServiceKind, Types: types, Version: version(node)}, nil
	}
	return xds.Client{}, status.Errorf(codes.PermissionDenied, "%s takes no configuration from pilot", caller)
}

// identifyPlain takes any proxy whose node id has Istio's form.
func identifyPlain(node *corev3.Node) (xds.Client, error) {
	kind, ok := proxyKind(node.GetId())
	if !ok {
		return xds.Client{}, status.Errorf(codes.InvalidArgument, "node id %q: want sidecar~IP~NAME.NAMESPACE~DOMAIN or router~IP~NAME.NAMESPACE~DOMAIN", node.GetId())
	}
	if _, err := proxyOf(node); err != nil {
		return xds.Client{}, status.Error(codes.InvalidArgument, err.Error())
	}
	return xds.Client{ID: node.GetId(), Kind: kind, Dynamic: true, Envoy: isEnvoy(node), Version: version(node)}, nil
}

func proxyKind(id string) (xds.Kind, bool) {
	switch {
	case strings.HasPrefix(id, "sidecar~"):
		return xds.SidecarKind, true
	case strings.HasPrefix(id, "router~"):
		return xds.GatewayKind, true
	}
	return "", false
}

func isEnvoy(n *corev3.Node) bool { return n.GetUserAgentName() == "envoy" }

func version(n *corev3.Node) string {
	if v := n.GetUserAgentBuildVersion().GetVersion(); v != nil {
		return fmt.Sprintf("%d.%d.%d", v.GetMajorNumber(), v.GetMinorNumber(), v.GetPatch())
	}
	return n.GetUserAgentVersion()
}

// proxyOf makes a proxy of what it says about itself, in Istio's form: the node
// id, and LABELS, NAMESPACE, SERVICE_ACCOUNT and INTERCEPTION_MODE in the metadata.
func proxyOf(n *corev3.Node) (*model.Proxy, error) {
	parts := strings.Split(n.GetId(), "~")
	if len(parts) != 4 {
		return nil, fmt.Errorf("node id %q: want four parts separated by ~", n.GetId())
	}
	addr, err := netip.ParseAddr(parts[1])
	if err != nil {
		return nil, fmt.Errorf("node id %q: %q is not an IP address", n.GetId(), parts[1])
	}
	dot := strings.LastIndexByte(parts[2], '.')
	if dot <= 0 || dot == len(parts[2])-1 {
		return nil, fmt.Errorf("node id %q: %q is not NAME.NAMESPACE", n.GetId(), parts[2])
	}
	meta := n.GetMetadata().GetFields()
	p := &model.Proxy{
		ID: n.GetId(), Name: parts[2][:dot], Namespace: parts[2][dot+1:], Address: addr.Unmap(),
		ServiceAccount: "default", Interception: model.Redirect, Labels: map[string]string{},
	}
	if parts[0] == "router" {
		p.Type = model.GatewayProxy
	}
	if sa := meta["SERVICE_ACCOUNT"].GetStringValue(); sa != "" {
		p.ServiceAccount = sa
	}
	if meta["INTERCEPTION_MODE"].GetStringValue() == "NONE" {
		p.Interception = model.Explicit
	}
	for k, v := range meta["LABELS"].GetStructValue().GetFields() {
		p.Labels[k] = v.GetStringValue()
	}
	return p, nil
}

// offer is an endpoint of a service.
type offer struct {
	service  *model.Service
	endpoint *model.Endpoint
}

// offersOf maps addresses to what the services of the mesh have there, in the
// order of the mesh.
func offersOf(m *model.Mesh) map[netip.Addr][]offer {
	offers := map[netip.Addr][]offer{}
	for _, s := range m.Services {
		for _, e := range s.Endpoints {
			if a, err := netip.ParseAddr(e.Address); err == nil {
				offers[a.Unmap()] = append(offers[a.Unmap()], offer{s, e})
			}
		}
	}
	return offers
}

// withPorts adds the ports that the services of the mesh have at the proxy's address.
func withPorts(p *model.Proxy, offers map[netip.Addr][]offer) *model.Proxy {
	seen := map[uint32]bool{}
	for _, o := range offers[p.Address] {
		for _, sp := range o.service.Ports {
			port := o.endpoint.Ports[sp.Port]
			if port == 0 || seen[port] {
				continue
			}
			seen[port] = true
			p.Ports = append(p.Ports, model.WorkloadPort{
				Name: sp.Name, Protocol: sp.Protocol, Port: port, App: port, AppAddress: netip.AddrFrom4([4]byte{127, 0, 0, 1}),
			})
		}
	}
	return p
}

type plaintextKey struct{}

func isPlaintext(ctx context.Context) bool { return ctx.Value(plaintextKey{}) != nil }

// plaintext is the ADS service of the plain-text listener: it marks its calls, so
// that a caller without a certificate can be told from one that should have one.
type plaintext struct {
	discoveryv3.AggregatedDiscoveryServiceServer
}

type markedDelta struct {
	discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
}

func (m markedDelta) Context() context.Context {
	return mark(m.AggregatedDiscoveryService_DeltaAggregatedResourcesServer)
}

type markedStream struct {
	discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer
}

func (m markedStream) Context() context.Context {
	return mark(m.AggregatedDiscoveryService_StreamAggregatedResourcesServer)
}

func mark(s grpc.ServerStream) context.Context {
	return context.WithValue(s.Context(), plaintextKey{}, true)
}

// DeltaAggregatedResources marks the stream and passes it on.
func (p plaintext) DeltaAggregatedResources(s discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	return p.AggregatedDiscoveryServiceServer.DeltaAggregatedResources(markedDelta{s})
}

// StreamAggregatedResources marks the stream and passes it on.
func (p plaintext) StreamAggregatedResources(s discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	return p.AggregatedDiscoveryServiceServer.StreamAggregatedResources(markedStream{s})
}

package translate

import (
	"maps"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/writ-mesh/writ/pilot/envoy"
	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/security"
)

// Metadata by which a cluster with both kinds of endpoints chooses the transport.
const (
	transportMatch = "envoy.transport_socket_match"
	tlsModeKey     = "tlsMode"
	tlsModeMesh    = "mesh"
)

// peers says what the endpoints of a cluster are.
type peers struct {
	// mesh and plain count endpoints that take mesh mTLS and those that do not.
	mesh, plain int
	// identities are the SPIFFE IDs that the service's endpoints may have.
	identities []string
}

// meshPeer says whether a client may use mesh mTLS towards an endpoint: it has a
// sidecar, and the sidecar's port takes it.
func (t *Translator) meshPeer(svc *model.Service, e *model.Endpoint, port uint32) bool {
	// A gateway's ports speak what its servers say, never mesh mTLS by themselves.
	if e.Proxy == nil || e.Proxy.Type == model.GatewayProxy || svc.External {
		return false
	}
	if auto := t.mesh.Config.GetEnableAutoMtls(); auto != nil && !auto.GetValue() {
		return false
	}
	return t.policy.ServerMode(e.Proxy.Namespace, e.Proxy.Labels, e.Ports[port]) != model.Disable
}

func (t *Translator) peersOf(endpoints []*model.Endpoint, key clusterKey) peers {
	var p peers
	for _, e := range endpoints {
		if t.meshPeer(key.svc, e, key.port) {
			p.mesh++
		} else {
			p.plain++
		}
	}
	// Secure naming is about the service, whatever the subset: endpoints of a
	// new account must be reachable before the cluster is told of them.
	p.identities = t.identities(key.svc)
	return p
}

// identities are the SPIFFE IDs of a service's accounts, in every trust domain
// of the mesh.
func (t *Translator) identities(svc *model.Service) []string {
	var out []string
	seen := map[string]bool{}
	for _, e := range svc.Endpoints {
		if e.ServiceAccount == "" {
			continue
		}
		ns := e.Namespace
		if ns == "" {
			ns = svc.Namespace
		}
		for _, td := range envoy.TrustDomains(t.mesh) {
			id := "spiffe://" + td + "/ns/" + ns + "/sa/" + e.ServiceAccount
			if !seen[id] {
				seen[id] = true
				out = append(out, id)
			}
		}
	}
	for _, san := range svc.SubjectAltNames {
		if !seen[san] {
			seen[san] = true
			out = append(out, san)
		}
	}
	return sortedCopy(out)
}

// selectEndpoints are those that serve the port and belong to the subset.
func (b *clusterBuilder) selectEndpoints() []*model.Endpoint {
	var labels map[string]string
	if b.key.subset != "" {
		s := b.key.rule.subset(b.key.subset)
		if s == nil {
			return nil // an unknown subset must not fall back to all versions
		}
		labels = s.GetLabels()
	}
	var out []*model.Endpoint
	for _, e := range b.key.svc.Endpoints {
		_, serves := e.Ports[b.key.port]
		if (serves || strings.HasPrefix(e.Address, "unix://")) && model.SelectorMatches(labels, e.Labels) {
			out = append(out, e)
		}
	}
	return out
}

// loadAssignment groups the endpoints by locality and priority, in the order of
// the model.
func (b *clusterBuilder) loadAssignment() *endpointv3.ClusterLoadAssignment {
	out := &endpointv3.ClusterLoadAssignment{ClusterName: b.out.Name}
	type group struct {
		locality string
		priority uint32
	}
	groups := map[group]*endpointv3.LocalityLbEndpoints{}
	for _, e := range b.endpoints {
		key := group{e.Locality, b.priority(e)}
		g := groups[key]
		if g == nil {
			g = &endpointv3.LocalityLbEndpoints{Locality: locality(e.Locality), Priority: key.priority, LoadBalancingWeight: u32(0)}
			groups[key] = g
			out.Endpoints = append(out.Endpoints, g)
		}
		weight := max(e.Weight, 1)
		g.LoadBalancingWeight.Value += weight
		g.LbEndpoints = append(g.LbEndpoints, b.lbEndpoint(e, weight))
	}
	b.applyLocality(out)
	return out
}

func (b *clusterBuilder) lbEndpoint(e *model.Endpoint, weight uint32) *endpointv3.LbEndpoint {
	out := &endpointv3.LbEndpoint{
		LoadBalancingWeight: u32(weight),
		HostIdentifier:      &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: endpointAddress(e, b.key.port)}},
	}
	if b.t.meshPeer(b.key.svc, e, b.key.port) {
		out.Metadata = &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{
			transportMatch: {Fields: map[string]*structpb.Value{tlsModeKey: structpb.NewStringValue(tlsModeMesh)}},
		}}
		if b.live() {
			maps.Copy(out.Metadata.FilterMetadata, security.RevokedMetadata(b.t.mesh.Revoked.Of(b.peers.identities)).GetFilterMetadata())
		}
	}
	return out
}

// live tells whether what is revoked of the servers is in the endpoints' metadata, for
// TCP connections that are open. Elsewhere the cluster is another one then, so that
// its pooled connections are replaced; an open TCP connection would go on looking at
// the endpoints of the one before.
func (b *clusterBuilder) live() bool { return !b.port.Protocol.IsHTTP() && !b.key.dynamic }

func endpointAddress(e *model.Endpoint, port uint32) *corev3.Address {
	if path, ok := strings.CutPrefix(e.Address, "unix://"); ok {
		return envoy.PipeAddress(path)
	}
	return envoy.SocketAddress(e.Address, e.Ports[port])
}

// locality reads region/zone/subzone; nil for none.
func locality(text string) *corev3.Locality {
	if text == "" {
		return nil
	}
	parts := append(strings.SplitN(text, "/", 3), "", "")
	return &corev3.Locality{Region: parts[0], Zone: parts[1], SubZone: parts[2]}
}

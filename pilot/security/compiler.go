package security

import (
	"errors"
	"fmt"
	"slices"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/writ-mesh/writ/pilot/envoy"
	"github.com/writ-mesh/writ/pilot/model"
)

// HTTP is what the policies of one inbound HTTP port, or of a gateway, come to.
type HTTP struct {
	// Filters are in order and end before the router. They depend on
	// RequestAuthentications, CUSTOM providers and Deciders only.
	Filters []*hcmv3.HttpFilter
	// Extensions are the content of filters that Filters has by name only, so that it
	// changes without the listener. They are the same for all ports of a proxy.
	Extensions []Extension
	// PerFilterConfig goes on every virtual host of the route configuration.
	PerFilterConfig map[string]*anypb.Any
	// Metadata goes on every virtual host too: the local replies take the names
	// of policies from it. Nil if there is nothing to say.
	Metadata *corev3.Metadata
	// RateLimits go on every virtual host.
	RateLimits []*routev3.RateLimit
	// LocalReply goes on the connection manager; it is the same for all.
	LocalReply *hcmv3.LocalReplyConfig
	// Report is an access log for what this proxy decides by itself; nil for none.
	Report *accesslogv3.AccessLog
	// Clusters are those that the filters and the report call.
	Clusters []*clusterv3.Cluster
	// Sources are the policies that apply.
	Sources []model.Ref
}

// Extension is a filter that is a resource of its own.
type Extension struct {
	Config *corev3.TypedExtensionConfig
	// Sources are the policies that it is made of.
	Sources []model.Ref
}

// TCP is what the policies of one inbound TCP port come to. RequestAuthentication
// and QuotaPolicy speak of requests and say nothing of TCP.
type TCP struct {
	// Filters are in order and end before the TCP proxy.
	Filters []*listenerv3.Filter
	// Report is an access log for what this proxy decides; nil for none.
	Report *accesslogv3.AccessLog
	// Clusters are those that the filters and the report call.
	Clusters []*clusterv3.Cluster
	// Sources are the policies that apply.
	Sources []model.Ref
}

// Compiler compiles the policies of one revision. It is safe for concurrent use.
type Compiler struct {
	mesh         *model.Mesh
	trustDomains []string
	peer         model.PeerModes
	providers    map[string]provider
	custom       []customFilter
	// revoked is the content of the filter for what is revoked, nil if nothing is.
	revoked *anypb.Any
	// tokens are the tokens that are revoked.
	tokens tokenRules
	near   nearness
	// reuse keeps what workloads and revisions have in common.
	reuse *reuse
	// treeThreshold is the number of rules that can be looked up from which those of
	// an action become an index.
	treeThreshold int
}

// defaultTreeThreshold is the number of rules that name callers or paths from which those
// of an ALLOW or DENY set are an index. Below it a list is as
// fast: 20 list policies cost 12 us a request, a tree of any size 4 us (Envoy
// 1.40), and the tree's own steps cost about as much as eight policies.
const defaultTreeThreshold = 8

// New prepares the policies of m. The error says what the mesh lacks; a policy or
// provider at fault is reported by HTTP and TCP, or closed as Istio closes it.
func New(m *model.Mesh) (*Compiler, error) {
	if m.TrustDomain == "" || m.RootNamespace == "" {
		return nil, errors.New("compile policies: the mesh has no trust domain or no root namespace")
	}
	c := &Compiler{
		mesh:          m,
		trustDomains:  envoy.TrustDomains(m),
		peer:          model.NewPeerModes(m),
		treeThreshold: defaultTreeThreshold,
		near:          newNearness(m),
		reuse:         newReuse(m),
		revoked:       revokedRules(&m.Revoked),
		tokens:        newTokenRules(&m.Tokens, m.Deciders.Authz != "", jwtPayload),
	}
	c.providers = newProviders(m)
	c.custom = c.customFilters()
	return c, nil
}

// HTTP compiles what applies to one inbound HTTP port of a sidecar or, with the
// zero port, to a gateway. The error names the policy at fault.
func (c *Compiler) HTTP(p *model.Proxy, port model.WorkloadPort) (*HTTP, error) {
	s := c.selectFor(p)
	out := &httpBuilder{
		HTTP: HTTP{
			PerFilterConfig: map[string]*anypb.Any{},
			LocalReply:      localReply(),
			Report:          c.reportHTTP(),
			Sources:         s.sources(),
		},
		names: map[string]*structpb.Value{},
	}
	if p.Type == model.GatewayProxy {
		out.add(stripDeniedBy(c.mesh, p))
	}
	out.add(filterMalformed, malformed())
	c.addPeer(out, p, port, s)
	c.addRevoked(out)
	if err := c.addCustom(out, s); err != nil {
		return nil, err
	}
	if err := c.addJWT(out, p, s); err != nil {
		return nil, err
	}
	if err := c.addAuthorization(out, p, s); err != nil {
		return nil, err
	}
	if err := c.addRego(out, p, s); err != nil {
		return nil, err
	}
	if err := c.addQuota(out, p, port, s); err != nil {
		return nil, err
	}
	return out.finish(), nil
}

// TCP compiles what applies to one inbound TCP port. The error names the policy
// at fault.
func (c *Compiler) TCP(p *model.Proxy, port model.WorkloadPort) (*TCP, error) {
	s := c.selectFor(p)
	out := &TCP{Report: c.reportTCP(), Sources: refsOf(s.custom, s.audit, s.deny, s.allow)}
	if out.Report != nil {
		cluster, err := envoy.GRPCCluster(c.mesh, authzCluster, c.mesh.Deciders.Authz, "authz")
		if err != nil {
			return nil, err
		}
		out.Clusters = appendCluster(out.Clusters, cluster)
	}
	for _, list := range s.lists {
		out.Sources = append(out.Sources, list.Ref)
	}
	addRevokedTCP(out)
	for _, r := range s.rego {
		out.Sources = append(out.Sources, r.Ref)
	}
	if err := errors.Join(c.addTCP(out, s), c.addRegoTCP(out, p, port, s)); err != nil {
		return nil, fmt.Errorf("port %d of %s: %w", port.Port, p.ID, err)
	}
	return out, nil
}

// httpBuilder collects the parts of an HTTP.
type httpBuilder struct {
	HTTP
	names map[string]*structpb.Value
	// tokens are values of revoked tokens, nil if there are none.
	tokens map[string]*structpb.Value
}

// add appends a filter that runs for every request.
func (b *httpBuilder) add(name string, config proto.Message) {
	b.Filters = append(b.Filters, &hcmv3.HttpFilter{
		Name:       name,
		ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: envoy.Any(config)},
	})
}

// addExtension appends a filter whose content is a resource of its own, and that runs
// only where a virtual host has configuration under its name.
func (b *httpBuilder) addExtension(name string, config proto.Message, sources []model.Ref) {
	content := envoy.Any(config)
	b.Filters = append(b.Filters, &hcmv3.HttpFilter{
		Name:     name,
		Disabled: true,
		ConfigType: &hcmv3.HttpFilter_ConfigDiscovery{ConfigDiscovery: &corev3.ExtensionConfigSource{
			ConfigSource: envoy.ADS(), TypeUrls: []string{content.GetTypeUrl()},
		}},
	})
	b.Extensions = append(b.Extensions, Extension{&corev3.TypedExtensionConfig{Name: name, TypedConfig: content}, sources})
}

// addGeneric appends a filter that runs only where a virtual host has
// configuration under its name.
func (b *httpBuilder) addGeneric(name string, config proto.Message) {
	b.add(name, config)
	b.Filters[len(b.Filters)-1].Disabled = true
}

// enable gives a generic filter its content.
func (b *httpBuilder) enable(name string, perRoute proto.Message) {
	b.PerFilterConfig[name] = envoy.Any(perRoute)
}

// name leaves a text for the local replies.
func (b *httpBuilder) name(key, value string) { b.names[key] = structpb.NewStringValue(value) }

// addCluster adds cluster unless one of its name is there.
func (b *httpBuilder) addCluster(cluster *clusterv3.Cluster) {
	b.Clusters = appendCluster(b.Clusters, cluster)
}

func appendCluster(clusters []*clusterv3.Cluster, c *clusterv3.Cluster) []*clusterv3.Cluster {
	if slices.ContainsFunc(clusters, func(have *clusterv3.Cluster) bool { return have.GetName() == c.GetName() }) {
		return clusters
	}
	return append(clusters, c)
}

func (b *httpBuilder) finish() *HTTP {
	all := map[string]*structpb.Struct{}
	if len(b.names) > 0 {
		all[metadataNamespace] = &structpb.Struct{Fields: b.names}
	}
	if len(b.tokens) > 0 {
		all[metadataTokens] = &structpb.Struct{Fields: b.tokens}
	}
	if len(all) > 0 {
		b.Metadata = &corev3.Metadata{FilterMetadata: all}
	}
	return &b.HTTP
}

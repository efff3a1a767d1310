package security

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	rbachttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	extauthztcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/ext_authz/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	rbactcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	meshv1 "istio.io/api/mesh/v1alpha1"

	"github.com/writ-mesh/writ/pilot/envoy"
	"github.com/writ-mesh/writ/pilot/model"
)

// customTimeout is how long a provider may take unless it says otherwise (Istio's).
const customTimeout = 600 * time.Second

// provider is one usable ext_authz provider of MeshConfig, or why it is not.
type provider struct {
	grpc *meshv1.MeshConfig_ExtensionProvider_EnvoyExternalAuthorizationGrpcProvider
	http *meshv1.MeshConfig_ExtensionProvider_EnvoyExternalAuthorizationHttpProvider
	err  error
}

func newProviders(m *model.Mesh) map[string]provider {
	out := map[string]provider{}
	for _, e := range m.Config.GetExtensionProviders() {
		p := provider{grpc: e.GetEnvoyExtAuthzGrpc(), http: e.GetEnvoyExtAuthzHttp()}
		if p.grpc == nil && p.http == nil {
			continue
		}
		if _, twice := out[e.GetName()]; twice {
			p.err = fmt.Errorf("two extensionProviders are named %q", e.GetName())
		} else {
			p.err = p.validate()
		}
		out[e.GetName()] = p
	}
	return out
}

func (p provider) validate() error {
	service, port, status := p.grpc.GetService(), p.grpc.GetPort(), p.grpc.GetStatusOnError()
	if p.http != nil {
		service, port, status = p.http.GetService(), p.http.GetPort(), p.http.GetStatusOnError()
		if prefix := p.http.GetPathPrefix(); prefix != "" && !strings.HasPrefix(prefix, "/") {
			return fmt.Errorf("pathPrefix %q does not begin with /", prefix)
		}
		for _, list := range [][]string{p.http.GetIncludeRequestHeadersInCheck(), p.http.GetIncludeHeadersInCheck(), //nolint:staticcheck // still read where the newer field is empty
			p.http.GetHeadersToUpstreamOnAllow(), p.http.GetHeadersToDownstreamOnAllow(), p.http.GetHeadersToDownstreamOnDeny()} {
			if slices.Contains(list, "*") {
				return fmt.Errorf(`a header list has "*": give names, prefixes or suffixes`)
			}
		}
	}
	if service == "" {
		return fmt.Errorf("service is empty")
	}
	if port == 0 || port > 65535 {
		return fmt.Errorf("port %d is not within 1 and 65535", port)
	}
	_, err := statusOnError(status)
	return err
}

func statusOnError(status string) (*typev3.HttpStatus, error) {
	if status == "" {
		return nil, nil
	}
	code, err := strconv.ParseInt(status, 10, 32)
	if err != nil || code == 0 || typev3.StatusCode_name[int32(code)] == "" {
		return nil, fmt.Errorf("statusOnError %q is no HTTP status", status)
	}
	return &typev3.HttpStatus{Code: typev3.StatusCode(code)}, nil
}

// customProvider names the one provider of the policies. Without exactly one
// that is usable all that the policies match is to be refused, as in Istio.
func (c *Compiler) customProvider(policies []*model.AuthorizationPolicy) (string, bool) {
	name := policies[0].Spec.GetProvider().GetName()
	for _, pol := range policies {
		if pol.Spec.GetProvider().GetName() != name {
			return "", false
		}
	}
	p, ok := c.providers[name]
	return name, ok && p.err == nil
}

// enforcedCustom leaves dry-run policies out: a provider has no dry run.
func enforcedCustom(s selection) []*model.AuthorizationPolicy {
	return slices.DeleteFunc(slices.Clone(s.custom), model.DryRun)
}

// customFilter asks one provider.
type customFilter struct {
	provider string
	config   *anypb.Any
	cluster  *clusterv3.Cluster
	// routed is the cluster under a name that has what is in it, and settings are how
	// routes ask there.
	routed   *clusterv3.Cluster
	settings *extauthzv3.CheckSettings
}

// customFilters are those of the providers that can be asked, by name.
func (c *Compiler) customFilters() []customFilter {
	var out []customFilter
	for _, name := range slices.Sorted(maps.Keys(c.providers)) {
		p := c.providers[name]
		if p.err != nil {
			continue
		}
		filter, cluster, err := c.extAuthz(p)
		if err != nil {
			continue // its policies refuse
		}
		filter.FilterEnabledMetadata = ruleMatched(rbacHTTPMetadata)
		routed := byContent(cluster)
		out = append(out, customFilter{name, envoy.Any(filter), cluster, routed, settingsFor(filter, routed.GetName())})
	}
	return out
}

// byContent is a cluster under a name that has what is in it. Clusters go before routes, and
// rules of before must not meet a provider that comes with others.
func byContent(cluster *clusterv3.Cluster) *clusterv3.Cluster {
	sum := sha256.Sum256(envoy.Any(cluster).GetValue())
	out := proto.Clone(cluster).(*clusterv3.Cluster) //nolint:forcetypeassert // what Clone was given
	out.Name = cluster.GetName() + "~" + hex.EncodeToString(sum[:6])
	out.AltStatName = cluster.GetName()
	if a := out.GetLoadAssignment(); a != nil {
		a.ClusterName = out.GetName()
	}
	return out
}

// settingsFor has a route ask a cluster in place of the one that is in the filter. To have
// it in the filter would have every connection drain when an endpoint comes or goes.
func settingsFor(filter *extauthzv3.ExtAuthz, cluster string) *extauthzv3.CheckSettings {
	if s := filter.GetHttpService(); s != nil {
		s = proto.Clone(s).(*extauthzv3.HttpService) //nolint:forcetypeassert // what Clone was given
		s.GetServerUri().HttpUpstreamType = &corev3.HttpUri_Cluster{Cluster: cluster}
		return &extauthzv3.CheckSettings{ServiceOverride: &extauthzv3.CheckSettings_HttpService{HttpService: s}}
	}
	s := proto.Clone(filter.GetGrpcService()).(*corev3.GrpcService) //nolint:forcetypeassert // what Clone was given
	s.GetEnvoyGrpc().ClusterName = cluster
	return &extauthzv3.CheckSettings{ServiceOverride: &extauthzv3.CheckSettings_GrpcService{GrpcService: s}}
}

// resolves says that proxies ask DNS for the provider.
func (f customFilter) resolves() bool { return f.cluster.GetType() != clusterv3.Cluster_STATIC }

// addCustom adds the filters for CUSTOM: RBAC that only records whether a rule
// matches, and ext_authz that calls the provider if so. There is one for each provider,
// switched off, so that the first policy, or one with another provider, changes no listener and
// counts on open connections at once. Only a name that DNS has to tell is not asked about
// before a policy wants it.
func (c *Compiler) addCustom(b *httpBuilder, s selection) error {
	b.addGeneric(filterCustom, &rbachttpv3.RBAC{})
	policies := enforcedCustom(s)
	used, asked := "", false
	if len(policies) > 0 {
		used, asked = c.customProvider(policies)
	}
	enabled := false
	for _, f := range c.custom {
		its := asked && f.provider == used
		if !its && f.resolves() {
			continue
		}
		name := filterCustomExtAuthz + " " + f.provider
		b.Filters = append(b.Filters, &hcmv3.HttpFilter{
			Name: name, Disabled: true, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: f.config},
		})
		b.addCluster(f.cluster)
		if its {
			enabled = true
			b.addCluster(f.routed)
			b.enable(name, &extauthzv3.ExtAuthzPerRoute{Override: &extauthzv3.ExtAuthzPerRoute_CheckSettings{CheckSettings: f.settings}})
		}
	}
	if len(policies) == 0 {
		return nil
	}
	set, err := c.compileSet(policies, rbacv3.RBAC_DENY, false)
	if err != nil {
		return err
	}
	if !enabled {
		b.enable(filterCustom, perRoute(&rbachttpv3.RBAC{Rules: set.enforced, RulesStatPrefix: denyStatPrefix}))
		return nil
	}
	b.enable(filterCustom, perRoute(&rbachttpv3.RBAC{ShadowRules: set.enforced, ShadowRulesStatPrefix: customStatPrefix}))
	return nil
}

// ruleMatched tests what the recording RBAC filter left.
func ruleMatched(filter string) *matcherv3.MetadataMatcher {
	return metadata(filter, []string{customStatPrefix + "shadow_effective_policy_id"}, stringValue(prefix("AuthorizationPolicy ")))
}

func (c *Compiler) extAuthz(p provider) (*extauthzv3.ExtAuthz, *clusterv3.Cluster, error) {
	if p.grpc != nil {
		return c.extAuthzGRPC(p.grpc)
	}
	return c.extAuthzHTTP(p.http)
}

func (c *Compiler) extAuthzGRPC(p *meshv1.MeshConfig_ExtensionProvider_EnvoyExternalAuthorizationGrpcProvider) (*extauthzv3.ExtAuthz, *clusterv3.Cluster, error) {
	service, cluster, err := c.providerGRPC(p)
	if err != nil {
		return nil, nil, err
	}
	status, err := statusOnError(p.GetStatusOnError())
	if err != nil {
		return nil, nil, err
	}
	return &extauthzv3.ExtAuthz{
		TransportApiVersion: corev3.ApiVersion_V3,
		Services:            &extauthzv3.ExtAuthz_GrpcService{GrpcService: service},
		FailureModeAllow:    p.GetFailOpen(),
		StatusOnError:       status,
		WithRequestBody:     bufferSettings(p.GetIncludeRequestBodyInCheck()),
		ClearRouteCache:     p.GetClearRouteCache(),
		StatPrefix:          "custom",
	}, cluster, nil
}

func (c *Compiler) providerGRPC(p *meshv1.MeshConfig_ExtensionProvider_EnvoyExternalAuthorizationGrpcProvider) (*corev3.GrpcService, *clusterv3.Cluster, error) {
	cluster, err := c.clusterFor(upstream{host: p.GetService(), port: p.GetPort(), namespace: c.mesh.RootNamespace, http2: true, provider: true})
	if err != nil {
		return nil, nil, err
	}
	return &corev3.GrpcService{
		TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{
			ClusterName: cluster.GetName(), Authority: hostOnly(p.GetService()),
		}},
		Timeout: orDuration(p.GetTimeout(), customTimeout),
	}, cluster, nil
}

func (c *Compiler) extAuthzHTTP(p *meshv1.MeshConfig_ExtensionProvider_EnvoyExternalAuthorizationHttpProvider) (*extauthzv3.ExtAuthz, *clusterv3.Cluster, error) {
	cluster, err := c.clusterFor(upstream{host: p.GetService(), port: p.GetPort(), namespace: c.mesh.RootNamespace, provider: true})
	if err != nil {
		return nil, nil, err
	}
	status, err := statusOnError(p.GetStatusOnError())
	if err != nil {
		return nil, nil, err
	}
	headers := p.GetIncludeRequestHeadersInCheck()
	if len(headers) == 0 {
		headers = p.GetIncludeHeadersInCheck() //nolint:staticcheck // Istio reads the old field where the new one is empty
	}
	return &extauthzv3.ExtAuthz{
		TransportApiVersion: corev3.ApiVersion_V3,
		Services: &extauthzv3.ExtAuthz_HttpService{HttpService: &extauthzv3.HttpService{
			PathPrefix: p.GetPathPrefix(),
			ServerUri: &corev3.HttpUri{
				Uri:              "http://" + hostOnly(p.GetService()),
				HttpUpstreamType: &corev3.HttpUri_Cluster{Cluster: cluster.GetName()},
				Timeout:          orDuration(p.GetTimeout(), customTimeout),
			},
			AuthorizationRequest:  additionalHeaders(p.GetIncludeAdditionalHeadersInCheck()),
			AuthorizationResponse: responseHeaders(p),
		}},
		FailureModeAllow: p.GetFailOpen(),
		StatusOnError:    status,
		WithRequestBody:  bufferSettings(p.GetIncludeRequestBodyInCheck()),
		AllowedHeaders:   headerNames(headers),
		ClearRouteCache:  p.GetClearRouteCache(),
		StatPrefix:       "custom",
	}, cluster, nil
}

func additionalHeaders(headers map[string]string) *extauthzv3.AuthorizationRequest {
	if len(headers) == 0 {
		return nil
	}
	out := &extauthzv3.AuthorizationRequest{}
	for k, v := range headers {
		out.HeadersToAdd = append(out.HeadersToAdd, &corev3.HeaderValue{Key: k, Value: v})
	}
	slices.SortFunc(out.HeadersToAdd, func(a, b *corev3.HeaderValue) int { return strings.Compare(a.GetKey(), b.GetKey()) })
	return out
}

func responseHeaders(p *meshv1.MeshConfig_ExtensionProvider_EnvoyExternalAuthorizationHttpProvider) *extauthzv3.AuthorizationResponse {
	out := &extauthzv3.AuthorizationResponse{
		AllowedUpstreamHeaders:        headerNames(p.GetHeadersToUpstreamOnAllow()),
		AllowedClientHeaders:          headerNames(p.GetHeadersToDownstreamOnDeny()),
		AllowedClientHeadersOnSuccess: headerNames(p.GetHeadersToDownstreamOnAllow()),
	}
	if out.AllowedUpstreamHeaders == nil && out.AllowedClientHeaders == nil && out.AllowedClientHeadersOnSuccess == nil {
		return nil
	}
	return out
}

// headerNames matches names of headers, also by prefix and suffix.
func headerNames(names []string) *matcherv3.ListStringMatcher {
	if len(names) == 0 {
		return nil
	}
	out := &matcherv3.ListStringMatcher{}
	for _, n := range names {
		m := pattern(n)
		m.IgnoreCase = true
		out.Patterns = append(out.Patterns, m)
	}
	return out
}

func bufferSettings(body *meshv1.MeshConfig_ExtensionProvider_EnvoyExternalAuthorizationRequestBody) *extauthzv3.BufferSettings {
	if body == nil {
		return nil
	}
	return &extauthzv3.BufferSettings{
		MaxRequestBytes:     body.GetMaxRequestBytes(),
		AllowPartialMessage: body.GetAllowPartialMessage(),
		PackAsBytes:         body.GetPackAsBytes(),
	}
}

func orDuration(d *durationpb.Duration, otherwise time.Duration) *durationpb.Duration {
	if d == nil {
		return durationpb.New(otherwise)
	}
	return d
}

func hostOnly(service string) string {
	if _, host, ok := strings.Cut(service, "/"); ok {
		return host
	}
	return service
}

// addCustomTCP is addCustom for connections. A provider that speaks HTTP cannot
// decide them and is left out, as in Istio.
func (c *Compiler) addCustomTCP(out *TCP, s selection) error {
	policies := enforcedCustom(s)
	if len(policies) == 0 {
		return nil
	}
	set, err := c.compileSet(policies, rbacv3.RBAC_DENY, true)
	if err != nil {
		return err
	}
	name, ok := c.customProvider(policies)
	p := c.providers[name]
	if ok && p.grpc == nil {
		return nil
	}
	var service *corev3.GrpcService
	var cluster *clusterv3.Cluster
	if ok {
		if service, cluster, err = c.providerGRPC(p.grpc); err != nil {
			ok = false
		}
	}
	if !ok {
		out.add(filterCustom, &rbactcpv3.RBAC{StatPrefix: "tcp.", Rules: set.enforced})
		return nil
	}
	out.add(filterCustom, &rbactcpv3.RBAC{StatPrefix: "tcp.", ShadowRules: set.enforced, ShadowRulesStatPrefix: customStatPrefix})
	out.add(filterCustomExtAuthz, &extauthztcpv3.ExtAuthz{
		StatPrefix:            "tcp.",
		FailureModeAllow:      p.grpc.GetFailOpen(),
		TransportApiVersion:   corev3.ApiVersion_V3,
		GrpcService:           service,
		FilterEnabledMetadata: ruleMatched(rbacTCPMetadata),
	})
	out.Clusters = appendCluster(out.Clusters, cluster)
	return nil
}

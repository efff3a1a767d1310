package security

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"sort"
	"strconv"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"
	security "istio.io/api/security/v1beta1"

	"github.com/writ-mesh/writ/pilot/model"
)

const (
	// jwksTimeout is how long one fetch of a key set may take unless the rule
	// says otherwise (Istio's default).
	jwksTimeout = 5 * time.Second
	// jwksLifetime is after how long a key set is fetched anew (Istio's).
	jwksLifetime = 5 * time.Minute
	// nearJWKSLifetime is the same for a key server in the mesh or on this
	// machine, which may well be asked more often: Envoy does not ask again when
	// it meets a key that it does not know.
	nearJWKSLifetime = 10 * time.Second
	// jwksRetry is how soon a failed fetch is tried again.
	jwksRetry = time.Second
	// jwtCacheSize is the number of verified tokens each worker remembers per
	// provider: verifying RS256 costs 29 us, a hit 2 us (Envoy 1.40), a token
	// about 1 KiB.
	jwtCacheSize = 1000
)

// namedRule is one rule of a RequestAuthentication, with the name of its provider.
type namedRule struct {
	provider  string
	namespace string
	rule      *security.JWTRule
	// policy is the ID of its RequestAuthentication, which asks for require.
	policy, require string
}

// addJWT adds jwt_authn, as a resource of its own (decision 0030), for all RequestAuthentications of the workload. Unless one
// asks for more, a request without token passes, and one with a token that no provider
// accepts is refused with 401. Without any the filter is there as well, empty and switched
// off, so that the first one changes no listener and counts on open connections at once.
func (c *Compiler) addJWT(b *httpBuilder, p *model.Proxy, s selection) error {
	var rules []namedRule
	var refs []model.Ref
	for _, ra := range s.jwt {
		for i, rule := range ra.Spec.GetJwtRules() {
			rules = append(rules, namedRule{fmt.Sprintf("%s/%s[%d]", ra.Namespace, ra.Name, i), ra.Namespace, rule, ra.ID(), model.TokenRequirement(ra)})
		}
		if len(ra.Spec.GetJwtRules()) > 0 {
			refs = append(refs, ra.Ref)
		}
	}
	if len(rules) == 0 {
		b.addExtension(filterJWT, &jwtv3.JwtAuthentication{}, nil)
		return c.addTokenFilters(b)
	}
	sort.SliceStable(rules, func(i, j int) bool { return rules[i].rule.GetIssuer() < rules[j].rule.GetIssuer() })
	filter := &jwtv3.JwtAuthentication{Providers: map[string]*jwtv3.JwtProvider{}, BypassCorsPreflight: true}
	var keys, headers []string
	for _, r := range rules {
		provider, err := c.jwtProvider(b, p, r)
		if err != nil {
			return fmt.Errorf("RequestAuthentication %s: %w", r.provider, err)
		}
		filter.Providers[r.provider] = provider
		if h := provider.GetHeaderInMetadata(); h != "" {
			headers = append(headers, h)
		}
		if r.require != model.RequireNone {
			keys = append(keys, r.provider+again)
			filter.Providers[r.provider+again] = second(provider, r.provider+again)
			provider.Forward = true
		}
	}
	name := c.requireByName(filter, rules)
	b.addExtension(filterJWT, filter, refs)
	b.enable(filterJWT, &jwtv3.PerRouteConfig{RequirementSpecifier: &jwtv3.PerRouteConfig_RequirementName{RequirementName: name}})
	b.name(nameJWT, "RequestAuthentication "+nameList(refs))
	if err := c.addTokenFilters(b); err != nil {
		return err
	}
	c.refuseTokens(b, keys, headers)
	return nil
}

// requirement: with one provider, its token or none. With several: a token that
// one of them accepts, or for each of them its own token or none. The first half
// is for providers that look in the same place, where the others' tokens are
// bad ones.
func requirement(rules []namedRule) *jwtv3.JwtRequirement {
	var accepted, each []*jwtv3.JwtRequirement
	for _, r := range rules {
		its := &jwtv3.JwtRequirement{RequiresType: &jwtv3.JwtRequirement_ProviderName{ProviderName: r.provider}}
		none := &jwtv3.JwtRequirement{RequiresType: &jwtv3.JwtRequirement_AllowMissing{AllowMissing: &emptypb.Empty{}}}
		accepted = append(accepted, its)
		each = append(each, anyOf(its, none))
	}
	if len(rules) == 1 {
		return each[0]
	}
	return anyOf(append(accepted, &jwtv3.JwtRequirement{RequiresType: &jwtv3.JwtRequirement_RequiresAll{
		RequiresAll: &jwtv3.JwtRequirementAndList{Requirements: each},
	}})...)
}

func anyOf(reqs ...*jwtv3.JwtRequirement) *jwtv3.JwtRequirement {
	return &jwtv3.JwtRequirement{RequiresType: &jwtv3.JwtRequirement_RequiresAny{RequiresAny: &jwtv3.JwtRequirementOrList{Requirements: reqs}}}
}

func (c *Compiler) jwtProvider(b *httpBuilder, p *model.Proxy, r namedRule) (*jwtv3.JwtProvider, error) {
	rule := r.rule
	out := &jwtv3.JwtProvider{
		Issuer:               rule.GetIssuer(),
		Audiences:            rule.GetAudiences(),
		Forward:              rule.GetForwardOriginalToken(),
		ForwardPayloadHeader: rule.GetOutputPayloadToHeader(),
		FromParams:           rule.GetFromParams(),
		FromCookies:          rule.GetFromCookies(),
		PayloadInMetadata:    jwtPayload,
		NormalizePayloadInMetadata: &jwtv3.JwtProvider_NormalizePayload{
			SpaceDelimitedClaims: spaceDelimited(rule.GetSpaceDelimitedClaims()),
		},
		JwtCacheConfig: &jwtv3.JwtCacheConfig{JwtCacheSize: jwtCacheSize},
		// Routes of a gateway may match on claims.
		ClearRouteCache: p.Type == model.GatewayProxy,
	}
	for _, h := range rule.GetFromHeaders() {
		out.FromHeaders = append(out.FromHeaders, &jwtv3.JwtHeader{Name: h.GetName(), ValuePrefix: h.GetPrefix()})
	}
	for _, h := range rule.GetOutputClaimToHeaders() {
		out.ClaimToHeaders = append(out.ClaimToHeaders, &jwtv3.JwtClaimToHeader{HeaderName: h.GetHeader(), ClaimName: h.GetClaim()})
	}
	if keys := c.fetchedKeys(r); keys != "" {
		out.JwksSourceSpecifier = inlineJWKS(keys)
		return out, nil
	}
	if rule.GetJwksUri() == "" || rule.GetJwks() != "" {
		local, err := localJWKS(rule.GetJwks())
		if err != nil {
			return nil, fmt.Errorf("jwks: %w", err)
		}
		out.JwksSourceSpecifier = local
		return out, nil
	}
	remote, err := c.remoteJWKS(b, r)
	if err != nil {
		return nil, fmt.Errorf("jwksUri: %w", err)
	}
	out.JwksSourceSpecifier = &jwtv3.JwtProvider_RemoteJwks{RemoteJwks: remote}
	out.HeaderInMetadata = r.provider + " header"
	return out, nil
}

// fetchedKeys are those that pilot fetched for a rule, empty for none.
func (c *Compiler) fetchedKeys(r namedRule) string {
	if place, ok := c.mesh.KeyPlace(r.namespace, r.rule); ok {
		return c.mesh.KeySets[place.Key()]
	}
	return ""
}

// nobodysKey is a key set that verifies nothing: its one P-256 point has SHA-256
// of "writ: nobody has this key 1" as its x coordinate, so its private key is
// known to nobody. Envoy takes no key set without a key.
const nobodysKey = `{"keys":[{"kty":"EC","crv":"P-256","alg":"ES256","kid":"none","x":"aUM2DfvEbFMkGtGRJYq0xW8LeJu8gI3HGZJ4ICH0Tp4","y":"D1bwITjXG_oAyfHAWberYrY_MjwpJfnMOLYZBVDUBy4"}]}`

// localJWKS without keys accepts no token at all: a rule that says neither jwks
// nor jwksUri needs discovery from the issuer, which pilot has not done yet and Envoy
// cannot do.
func localJWKS(jwks string) (*jwtv3.JwtProvider_LocalJwks, error) {
	if jwks == "" {
		return inlineJWKS(nobodysKey), nil
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal([]byte(jwks), &set); err != nil {
		return nil, fmt.Errorf("not a key set in JSON: %w", err)
	}
	if len(set.Keys) == 0 {
		return inlineJWKS(nobodysKey), nil
	}
	return inlineJWKS(jwks), nil
}

func inlineJWKS(jwks string) *jwtv3.JwtProvider_LocalJwks {
	return &jwtv3.JwtProvider_LocalJwks{LocalJwks: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: jwks}}}
}

// remoteJWKS has the proxy fetch keys that pilot does not have: those of a server in
// the mesh, which only proxies can reach, and others until pilot has got them.
func (c *Compiler) remoteJWKS(b *httpBuilder, r namedRule) (*jwtv3.RemoteJwks, error) {
	u, err := url.Parse(r.rule.GetJwksUri())
	if err != nil {
		return nil, err
	}
	port := uint64(80)
	switch u.Scheme {
	case "http":
	case "https":
		port = 443
	default:
		return nil, fmt.Errorf("%q: want http:// or https://", r.rule.GetJwksUri())
	}
	if u.Port() != "" {
		if port, err = strconv.ParseUint(u.Port(), 10, 16); err != nil {
			return nil, fmt.Errorf("%q: bad port", r.rule.GetJwksUri())
		}
	}
	cluster, err := c.clusterFor(upstream{host: u.Hostname(), port: uint32(port), namespace: r.namespace, tls: u.Scheme == "https"})
	if err != nil {
		return nil, err
	}
	b.addCluster(cluster)
	timeout := durationpb.New(jwksTimeout)
	if r.rule.GetTimeout() != nil {
		timeout = r.rule.GetTimeout()
	}
	return &jwtv3.RemoteJwks{
		HttpUri: &corev3.HttpUri{
			Uri:              r.rule.GetJwksUri(),
			HttpUpstreamType: &corev3.HttpUri_Cluster{Cluster: cluster.GetName()},
			Timeout:          timeout,
		},
		CacheDuration: durationpb.New(c.jwksLifetime(u.Hostname(), r.namespace)),
		AsyncFetch: &jwtv3.JwksAsyncFetch{
			// The listener must not wait for somebody else's server.
			FastListener:          true,
			FailedRefetchDuration: durationpb.New(jwksRetry),
		},
		RetryPolicy: &corev3.RetryPolicy{RetryBackOff: &corev3.BackoffStrategy{
			BaseInterval: durationpb.New(100 * time.Millisecond),
			MaxInterval:  durationpb.New(jwksRetry),
		}},
	}, nil
}

func (c *Compiler) jwksLifetime(host, namespace string) time.Duration {
	service := c.mesh.PolicyHost(model.ResolveHost(host, namespace, c.mesh.DomainSuffix), namespace)
	ip, err := netip.ParseAddr(host)
	if service != nil && !service.External || err == nil && ip.IsLoopback() {
		return nearJWKSLifetime
	}
	return jwksLifetime
}

// spaceDelimited adds the claims that are always lists in one string (RFC 8693
// section 4.2 has scope).
func spaceDelimited(more []string) []string {
	out := append([]string{"permission", "scope"}, more...)
	slices.Sort(out)
	return slices.Compact(out)
}

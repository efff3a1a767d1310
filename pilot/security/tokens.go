package security

import (
	"maps"
	"math"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	rbachttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	exprpb "google.golang.org/genproto/googleapis/api/expr/v1alpha1"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/writ-mesh/writ/pilot/envoy"
	"github.com/writ-mesh/writ/pilot/model"
)

const (
	// filterTokens refuses requests with a verified token that is revoked, by what
	// pilot said; filterTokensRemote asks authz, which knows more. Both come right
	// after the token was verified and are there only where one is.
	filterTokens       = "writ.tokens"
	filterTokensRemote = "writ.tokens.remote"
	tokensStatPrefix   = "writ_tokens_"
	// metadataTokens is the namespace of a virtual host's metadata that has the jti and
	// sub of revoked tokens, each value a key, so that it takes one look into a map
	// however many there are.
	metadataTokens = "writ.tokens"
	// kindTokenRevocation is in the header of a refusal before what is revoked.
	kindTokenRevocation = "TokenRevocation"
	// tokensKey is the context extension of a check that only asks whether the
	// request's token is revoked.
	tokensKey = "writ.tokens"
)

// tokenRules are what is revoked, ready for virtual hosts.
type tokenRules struct {
	// policies are those of filterTokens, and refuse its content; nil if there are none.
	policies map[string]*rbacv3.Policy
	refuse   *anypb.Any
	// values are what refuse looks into.
	values map[string]*structpb.Value
	remote bool
}

// TokensRef stands for the list of revoked tokens among the objects that a resource
// is made of.
func TokensRef() model.Ref { return model.Ref{Kind: "Revocations", Namespace: "writ", Name: "tokens"} }

// newTokenRules compiles what is revoked. A token that does not say when it was
// issued counts as issued before any time. authz tells whether there is one to ask, and
// keys where payloads of tokens are.
func newTokenRules(r *model.RevokedTokens, authz bool, keys ...string) tokenRules {
	if !r.Any() || r.Remote && authz {
		return tokenRules{remote: r.Remote}
	}
	rules := &rbacv3.RBAC{Action: rbacv3.RBAC_DENY, Policies: map[string]*rbacv3.Policy{}}
	add := func(what string, p *rbacv3.Policy) {
		p.Permissions = []*rbacv3.Permission{{Rule: &rbacv3.Permission_Any{Any: true}}}
		rules.Policies[kindTokenRevocation+" "+what] = p
	}
	out := tokenRules{values: map[string]*structpb.Value{}}
	if r.Remote {
		// Nobody can say which tokens are good.
		var some []*rbacv3.Principal
		for _, key := range keys {
			some = append(some, metadataID(metadata(jwtMetadata, []string{key}, someValue())))
		}
		add("no-authz", &rbacv3.Policy{Principals: some})
	}
	for claim, byIssuer := range map[string]map[string][]string{"jti": r.IDs, "sub": r.Subjects} {
		if len(byIssuer) > 0 {
			out.values[claim] = keysByIssuer(byIssuer)
			add(claim, &rbacv3.Policy{Principals: []*rbacv3.Principal{andIDs(nil)}, Condition: revokedValue(keys, claim)})
		}
	}
	var before, whole []*rbacv3.Principal
	for _, i := range r.Issued {
		for _, key := range keys {
			if i.Before.IsZero() {
				whole = append(whole, issued(key, i))
			} else {
				before = append(before, issued(key, i))
			}
		}
	}
	if len(before) > 0 {
		add("issued-before", &rbacv3.Policy{Principals: before})
	}
	if len(whole) > 0 {
		add("issuer", &rbacv3.Policy{Principals: whole})
	}
	out.policies = rules.Policies
	out.refuse = refuseTokens(rules.Policies)
	return out
}

func refuseTokens(policies map[string]*rbacv3.Policy) *anypb.Any {
	return envoy.Any(perRoute(&rbachttpv3.RBAC{
		Rules: &rbacv3.RBAC{Action: rbacv3.RBAC_DENY, Policies: policies}, RulesStatPrefix: tokensStatPrefix,
	}))
}

// withoutSymmetric adds that a token is refused whose header, under one of the keys,
// says that it was signed with a secret. Envoy verifies by any key of a set that it
// fetched, and who serves a set with a secret in it shows the secret to everybody.
func (r tokenRules) withoutSymmetric(headers []string) tokenRules {
	var ids []*rbacv3.Principal
	for _, key := range headers {
		ids = append(ids, metadataID(metadata(jwtMetadata, []string{key, "alg"}, stringValue(prefix("HS")))))
	}
	policies := maps.Clone(r.policies)
	if policies == nil {
		policies = map[string]*rbacv3.Policy{}
	}
	policies["RequestAuthentication symmetric-key"] = &rbacv3.Policy{
		Permissions: []*rbacv3.Permission{{Rule: &rbacv3.Permission_Any{Any: true}}}, Principals: ids,
	}
	r.policies, r.refuse = policies, refuseTokens(policies)
	return r
}

func someValue() *matcherv3.ValueMatcher {
	return &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_PresentMatch{PresentMatch: true}}
}

// issued matches the tokens of an issuer or a subject, but for those that were issued
// since.
func issued(key string, i model.RevokedIssue) *rbacv3.Principal {
	claim := func(name string, m *matcherv3.ValueMatcher) *rbacv3.Principal {
		return metadataID(metadata(jwtMetadata, []string{key, name}, m))
	}
	ids := []*rbacv3.Principal{claim("iss", stringValue(exact(i.Issuer)))}
	if i.Subject != "" {
		ids = append(ids, claim("sub", stringValue(exact(i.Subject))))
	}
	if !i.Before.IsZero() {
		since := claim("iat", &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_DoubleMatch{
			DoubleMatch: &matcherv3.DoubleMatcher{MatchPattern: &matcherv3.DoubleMatcher_Range{
				Range: &typev3.DoubleRange{Start: float64(i.Before.Unix()), End: math.MaxFloat64},
			}},
		}})
		ids = append(ids, &rbacv3.Principal{Identifier: &rbacv3.Principal_NotId{NotId: since}})
	}
	return andIDs(ids)
}

// keysByIssuer makes {issuer: {value: true}}.
func keysByIssuer(values map[string][]string) *structpb.Value {
	all := &structpb.Struct{Fields: map[string]*structpb.Value{}}
	for issuer, list := range values {
		keys := &structpb.Struct{Fields: make(map[string]*structpb.Value, len(list))}
		for _, v := range list {
			keys.Fields[v] = structpb.NewBoolValue(true)
		}
		all.Fields[issuer] = structpb.NewStructValue(keys)
	}
	return structpb.NewStructValue(all)
}

// revokedValue holds if a token's claim is among the virtual host's values of its
// issuer. A token, claim or issuer that is not there makes an error, which is no, also
// on one side of an "or".
func revokedValue(keys []string, claim string) (all *exprpb.Expr) {
	in := func(of *exprpb.Expr, key *exprpb.Expr) *exprpb.Expr { return call("_[_]", of, key) }
	values := in(in(field(field(ident("xds"), "virtual_host_metadata"), "filter_metadata"), text(metadataTokens)), text(claim))
	for _, key := range keys {
		payload := func(name string) *exprpb.Expr {
			return in(in(in(field(ident("metadata"), "filter_metadata"), text(jwtMetadata)), text(key)), text(name))
		}
		one := call("@in", payload(claim), in(values, payload("iss")))
		if all == nil {
			all = one
		} else {
			all = call("_||_", all, one)
		}
	}
	return all
}

// addTokenFilters comes after jwt_authn. They are switched off where refuseTokens enables
// none of them.
func (c *Compiler) addTokenFilters(b *httpBuilder) error {
	b.addGeneric(filterTokens, &rbachttpv3.RBAC{})
	if c.mesh.Deciders.Authz == "" {
		return nil
	}
	cluster, err := envoy.GRPCCluster(c.mesh, authzCluster, c.mesh.Deciders.Authz, "authz")
	if err != nil {
		return err
	}
	b.addCluster(cluster)
	b.addGeneric(filterTokensRemote, remoteTokens())
	return nil
}

// refuseTokens is for a workload that has tokens verified. keys are where payloads are
// besides the usual one, and headers where the headers are of tokens under keys that
// Envoy fetched.
func (c *Compiler) refuseTokens(b *httpBuilder, keys, headers []string) {
	tokens := c.tokens
	if len(keys) > 0 {
		tokens = newTokenRules(&c.mesh.Tokens, c.mesh.Deciders.Authz != "", append([]string{jwtPayload}, keys...)...)
	}
	if len(headers) > 0 {
		tokens = tokens.withoutSymmetric(headers)
	}
	if tokens.refuse != nil {
		b.PerFilterConfig[filterTokens] = tokens.refuse
		b.tokens = tokens.values
	}
	b.tokens = withPayloads(b.tokens, keys)
	if tokens.remote {
		b.PerFilterConfig[filterTokensRemote] = askAboutTokens()
		b.name(nameRego, kindTokenRevocation)
	}
	if c.mesh.Tokens.Any() {
		b.Sources = append(b.Sources, TokensRef())
	}
}

// askAboutTokens enables filterTokensRemote.
func askAboutTokens() *anypb.Any {
	return envoy.Any(&extauthzv3.ExtAuthzPerRoute{Override: &extauthzv3.ExtAuthzPerRoute_CheckSettings{
		CheckSettings: &extauthzv3.CheckSettings{ContextExtensions: map[string]string{tokensKey: "revoked"}},
	}})
}

// remoteTokens asks authz about requests with a token that was verified. Without an
// answer they are refused; those without a token pass.
func remoteTokens() *extauthzv3.ExtAuthz {
	return &extauthzv3.ExtAuthz{
		TransportApiVersion: corev3.ApiVersion_V3,
		Services: &extauthzv3.ExtAuthz_GrpcService{GrpcService: &corev3.GrpcService{
			TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: authzCluster}},
			Timeout:         durationpb.New(authzTimeout),
		}},
		StatusOnError:             &typev3.HttpStatus{Code: typev3.StatusCode_Forbidden},
		MetadataContextNamespaces: []string{jwtMetadata},
		FilterEnabledMetadata:     metadata(jwtMetadata, []string{jwtPayload}, someValue()),
		StatPrefix:                "tokens",
	}
}

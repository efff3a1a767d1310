package security

import (
	"slices"
	"sort"
	"strconv"
	"strings"

	celexpr "cel.dev/expr"
	xdscorev3 "github.com/cncf/xds/go/xds/core/v3"
	xdsmatcherv3 "github.com/cncf/xds/go/xds/type/matcher/v3"
	xdstypev3 "github.com/cncf/xds/go/xds/type/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	networkv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/network/v3"
	sslv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/ssl/v3"
	ipv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/input_matchers/ip/v3"
	metadatav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/input_matchers/metadata/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/writ-mesh/writ/pilot/envoy"
)

// noPolicy is what Envoy calls the policy when none has matched.
const noPolicy = "none"

// uriSAN names the inputs that look at the caller's certificate.
const uriSAN = "uri_san"

// peerCertificate holds for mutual TLS. On plain text UriSanInput says that it
// does not know yet, and Envoy then decides nothing at all, not even by
// on_no_match; so nothing may ask it there.
func peerCertificate() *predicate {
	mtls := &celexpr.ParsedExpr{Expr: &celexpr.Expr{Id: 2, ExprKind: &celexpr.Expr_SelectExpr{SelectExpr: &celexpr.Expr_Select{
		Operand: &celexpr.Expr{Id: 1, ExprKind: &celexpr.Expr_IdentExpr{IdentExpr: &celexpr.Expr_Ident{Name: "connection"}}},
		Field:   "mtls",
	}}}}
	return custom(input("attributes", &xdsmatcherv3.HttpAttributesCelMatchInput{}), "envoy.matching.matchers.cel_matcher", &xdsmatcherv3.CelMatcher{
		ExprMatch: &xdstypev3.CelExpression{CelExprParsed: mtls},
	})
}

func nested(m *xdsmatcherv3.Matcher) *xdsmatcherv3.Matcher_OnMatch {
	return &xdsmatcherv3.Matcher_OnMatch{OnMatch: &xdsmatcherv3.Matcher_OnMatch_Matcher{Matcher: m}}
}

func sortedNames(policies map[string]*rbacv3.Policy) []string {
	names := make([]string, 0, len(policies))
	for name := range policies {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

type predicate = xdsmatcherv3.Matcher_MatcherList_Predicate

// only says whether no field of m is set but those of the given names: then
// whoever converts these has lost nothing of m.
func only(m proto.Message, fields ...protoreflect.Name) bool {
	message := m.ProtoReflect()
	known := len(message.GetUnknown()) == 0
	message.Range(func(f protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		known = known && slices.Contains(fields, f.Name())
		return known
	})
	return known
}

type treeBuilder struct{ action rbacv3.RBAC_Action }

// noMatch is what the list decides when no policy matches. The name is the one that
// the list leaves.
func (b treeBuilder) noMatch() *xdsmatcherv3.Matcher_OnMatch {
	if b.action == rbacv3.RBAC_ALLOW {
		return onMatch(noPolicy, rbacv3.RBAC_DENY)
	}
	return onMatch(noPolicy, rbacv3.RBAC_ALLOW)
}

func onMatch(name string, action rbacv3.RBAC_Action) *xdsmatcherv3.Matcher_OnMatch {
	return &xdsmatcherv3.Matcher_OnMatch{OnMatch: &xdsmatcherv3.Matcher_OnMatch_Action{
		Action: input("action", &rbacv3.Action{Name: name, Action: action}),
	}}
}

// eachSingle gives p with f applied to every single question in it.
func eachSingle(p *predicate, f func(*predicate) *predicate) *predicate {
	convert := func(ps []*predicate) []*predicate {
		out := make([]*predicate, len(ps))
		for i, one := range ps {
			out[i] = eachSingle(one, f)
		}
		return out
	}
	switch m := p.GetMatchType().(type) {
	case *xdsmatcherv3.Matcher_MatcherList_Predicate_AndMatcher:
		return andPredicate(convert(m.AndMatcher.GetPredicate()))
	case *xdsmatcherv3.Matcher_MatcherList_Predicate_OrMatcher:
		return orPredicate(convert(m.OrMatcher.GetPredicate()))
	case *xdsmatcherv3.Matcher_MatcherList_Predicate_NotMatcher:
		return notPredicate(eachSingle(m.NotMatcher, f))
	}
	return f(p)
}

// permissionPredicate converts p. always says that it is no condition at all; ok
// is false for what a tree cannot say.
func permissionPredicate(p *rbacv3.Permission) (out *predicate, always, ok bool) {
	switch r := p.GetRule().(type) {
	case *rbacv3.Permission_Any:
		return nil, true, r.Any
	case *rbacv3.Permission_AndRules:
		return combine(r.AndRules.GetRules(), permissionPredicate, true)
	case *rbacv3.Permission_OrRules:
		return combine(r.OrRules.GetRules(), permissionPredicate, false)
	case *rbacv3.Permission_NotRule:
		inner, always, ok := permissionPredicate(r.NotRule)
		return notPredicate(inner), false, ok && !always
	case *rbacv3.Permission_Header:
		return headerPredicate(r.Header)
	case *rbacv3.Permission_UrlPath:
		out, always, ok := pathPredicate(r.UrlPath.GetPath())
		return out, always, ok && only(r.UrlPath, "path")
	case *rbacv3.Permission_DestinationPort:
		return single(input("port", &networkv3.DestinationPortInput{}), exact(strconv.FormatUint(uint64(r.DestinationPort), 10)))
	case *rbacv3.Permission_DestinationIp:
		return ipPredicate(input("destination", &networkv3.DestinationIPInput{}), r.DestinationIp)
	case *rbacv3.Permission_RequestedServerName:
		return single(input("sni", &networkv3.ServerNameInput{}), r.RequestedServerName)
	}
	return nil, false, false
}

func principalPredicate(id *rbacv3.Principal) (out *predicate, always, ok bool) {
	switch i := id.GetIdentifier().(type) {
	case *rbacv3.Principal_Any:
		return nil, true, i.Any
	case *rbacv3.Principal_AndIds:
		return combine(i.AndIds.GetIds(), principalPredicate, true)
	case *rbacv3.Principal_OrIds:
		if out, ok := addressesPredicate(i.OrIds.GetIds()); ok {
			return out, false, true
		}
		return combine(i.OrIds.GetIds(), principalPredicate, false)
	case *rbacv3.Principal_NotId:
		inner, always, ok := principalPredicate(i.NotId)
		return notPredicate(inner), false, ok && !always
	case *rbacv3.Principal_Header:
		return headerPredicate(i.Header)
	case *rbacv3.Principal_Authenticated_:
		out, always, ok := single(input(uriSAN, &sslv3.UriSanInput{}), i.Authenticated.GetPrincipalName())
		return out, always, ok && only(i.Authenticated, "principal_name")
	case *rbacv3.Principal_DirectRemoteIp:
		return ipPredicate(input("direct", &networkv3.DirectSourceIPInput{}), i.DirectRemoteIp)
	case *rbacv3.Principal_RemoteIp:
		return ipPredicate(input("source", &networkv3.SourceIPInput{}), i.RemoteIp)
	case *rbacv3.Principal_UrlPath:
		out, always, ok := pathPredicate(i.UrlPath.GetPath())
		return out, always, ok && only(i.UrlPath, "path")
	case *rbacv3.Principal_SourcedMetadata:
		out, always, ok := metadataPredicate(i.SourcedMetadata.GetMetadataMatcher())
		return out, always, ok && only(i.SourcedMetadata, "metadata_matcher")
	}
	return nil, false, false
}

// combine converts the parts of a conjunction or disjunction.
func combine[M any](parts []M, convert func(M) (*predicate, bool, bool), conjunction bool) (*predicate, bool, bool) {
	if len(parts) == 0 && !conjunction {
		return nil, false, false
	}
	var out []*predicate
	anyAlways := false
	for _, part := range parts {
		converted, always, ok := convert(part)
		if !ok {
			return nil, false, false
		}
		anyAlways = anyAlways || always
		if !always {
			out = append(out, converted)
		}
	}
	if anyAlways && !conjunction {
		return nil, true, true
	}
	if len(out) == 0 {
		return nil, true, true
	}
	if conjunction {
		return andPredicate(out), false, true
	}
	return orPredicate(out), false, true
}

func andPredicate(ps []*predicate) *predicate {
	if len(ps) == 1 {
		return ps[0]
	}
	return &predicate{MatchType: &xdsmatcherv3.Matcher_MatcherList_Predicate_AndMatcher{
		AndMatcher: &xdsmatcherv3.Matcher_MatcherList_Predicate_PredicateList{Predicate: ps},
	}}
}

func orPredicate(ps []*predicate) *predicate {
	if len(ps) == 1 {
		return ps[0]
	}
	return &predicate{MatchType: &xdsmatcherv3.Matcher_MatcherList_Predicate_OrMatcher{
		OrMatcher: &xdsmatcherv3.Matcher_MatcherList_Predicate_PredicateList{Predicate: ps},
	}}
}

func notPredicate(p *predicate) *predicate {
	return &predicate{MatchType: &xdsmatcherv3.Matcher_MatcherList_Predicate_NotMatcher{NotMatcher: p}}
}

func input(name string, config proto.Message) *xdscorev3.TypedExtensionConfig {
	return &xdscorev3.TypedExtensionConfig{Name: name, TypedConfig: envoy.Any(config)}
}

func single(in *xdscorev3.TypedExtensionConfig, m *matcherv3.StringMatcher) (*predicate, bool, bool) {
	value := xdsString(m)
	return singleValue(in, value), false, value != nil
}

func singleValue(in *xdscorev3.TypedExtensionConfig, value *xdsmatcherv3.StringMatcher) *predicate {
	return &predicate{MatchType: &xdsmatcherv3.Matcher_MatcherList_Predicate_SinglePredicate_{
		SinglePredicate: &xdsmatcherv3.Matcher_MatcherList_Predicate_SinglePredicate{
			Input:   in,
			Matcher: &xdsmatcherv3.Matcher_MatcherList_Predicate_SinglePredicate_ValueMatch{ValueMatch: value},
		},
	}}
}

// xdsString is the same matcher in the type that trees use.
func xdsString(m *matcherv3.StringMatcher) *xdsmatcherv3.StringMatcher {
	if !only(m, "exact", "prefix", "suffix", "safe_regex", "ignore_case") || !only(m.GetSafeRegex(), "regex") {
		return nil
	}
	out := &xdsmatcherv3.StringMatcher{IgnoreCase: m.GetIgnoreCase()}
	switch p := m.GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Exact:
		out.MatchPattern = &xdsmatcherv3.StringMatcher_Exact{Exact: p.Exact}
	case *matcherv3.StringMatcher_Prefix:
		out.MatchPattern = &xdsmatcherv3.StringMatcher_Prefix{Prefix: p.Prefix}
	case *matcherv3.StringMatcher_Suffix:
		out.MatchPattern = &xdsmatcherv3.StringMatcher_Suffix{Suffix: p.Suffix}
	case *matcherv3.StringMatcher_SafeRegex:
		out.MatchPattern = &xdsmatcherv3.StringMatcher_SafeRegex{SafeRegex: &xdsmatcherv3.RegexMatcher{
			EngineType: &xdsmatcherv3.RegexMatcher_GoogleRe2{GoogleRe2: &xdsmatcherv3.RegexMatcher_GoogleRE2{}},
			Regex:      p.SafeRegex.GetRegex(),
		}}
	default:
		return nil
	}
	return out
}

func headerInput(name string) *xdscorev3.TypedExtensionConfig {
	return input("header", &matcherv3.HttpRequestHeaderMatchInput{HeaderName: name})
}

// headerPredicate knows those that a request has once, such as :method. Of others a
// tree sees all values joined, the list each by itself (decision 0016): there are
// requests that one of them refuses and the other does not.
func headerPredicate(h *routev3.HeaderMatcher) (*predicate, bool, bool) {
	if h.GetStringMatch() == nil || !only(h, "name", "string_match") || !sentOnce(h) {
		return nil, false, false
	}
	return single(headerInput(h.GetName()), h.GetStringMatch())
}

func sentOnce(h *routev3.HeaderMatcher) bool { return strings.HasPrefix(h.GetName(), ":") }

// pathPredicate matches :path, which still has the query: an exact path is that
// text alone or before "?" or "#", and a prefix has neither in it. A suffix stays in the
// list: an expression that leaves the query out, which over HTTP/2 may have any bytes,
// does not match those that are not UTF-8.
func pathPredicate(m *matcherv3.StringMatcher) (*predicate, bool, bool) {
	if !only(m, "exact", "prefix") {
		return nil, false, false
	}
	switch p := m.GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Exact:
		var alternatives []*predicate
		for _, m := range []*matcherv3.StringMatcher{m, prefix(p.Exact + "?"), prefix(p.Exact + "#")} {
			one, _, _ := single(headerInput(":path"), m)
			alternatives = append(alternatives, one)
		}
		return orPredicate(alternatives), false, plainPath(p.Exact)
	case *matcherv3.StringMatcher_Prefix:
		one, _, _ := single(headerInput(":path"), m)
		return one, false, plainPath(p.Prefix)
	}
	return nil, false, false
}

// metadataPredicate looks at what a filter before left, such as a token's claims.
func metadataPredicate(m *matcherv3.MetadataMatcher) (*predicate, bool, bool) {
	if !only(m, "filter", "path", "value") {
		return nil, false, false
	}
	in := &networkv3.DynamicMetadataInput{Filter: m.GetFilter()}
	for _, segment := range m.GetPath() {
		in.Path = append(in.Path, &networkv3.DynamicMetadataInput_PathSegment{
			Segment: &networkv3.DynamicMetadataInput_PathSegment_Key{Key: segment.GetKey()},
		})
	}
	return custom(input("metadata", in), "envoy.matching.matchers.metadata_matcher", &metadatav3.Metadata{Value: m.GetValue()}), false, true
}

func custom(in *xdscorev3.TypedExtensionConfig, name string, config proto.Message) *predicate {
	return &predicate{MatchType: &xdsmatcherv3.Matcher_MatcherList_Predicate_SinglePredicate_{
		SinglePredicate: &xdsmatcherv3.Matcher_MatcherList_Predicate_SinglePredicate{
			Input:   in,
			Matcher: &xdsmatcherv3.Matcher_MatcherList_Predicate_SinglePredicate_CustomMatch{CustomMatch: input(name, config)},
		},
	}}
}

func plainPath(path string) bool {
	for _, c := range path {
		if c == '?' || c == '#' {
			return false
		}
	}
	return path != ""
}

func ipPredicate(in *xdscorev3.TypedExtensionConfig, block *corev3.CidrRange) (*predicate, bool, bool) {
	return custom(in, "envoy.matching.matchers.ip", &ipv3.Ip{CidrRanges: []*corev3.CidrRange{block}, StatPrefix: "rbac"}), false, true
}

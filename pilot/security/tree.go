package security

import (
	"regexp"
	"slices"
	"sort"
	"strconv"

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

// maxUnindexed bounds the policies without an exact principal in a tree: each
// leaf has to repeat them.
const maxUnindexed = 8

// noPolicy is what Envoy calls the policy when none has matched.
const noPolicy = "none"

// uriSAN names the inputs that look at the caller's certificate.
const uriSAN = "uri_san"

// tree gives the same decisions as rules in the form of a matcher tree: one
// lookup of the caller's URI SAN leads to the few policies that can concern it.
// It is nil, and the list stays, if fewer than threshold policies name exact
// principals only, or if something has no form in a tree.
//
// The tree looks at all URI SANs as one text, the list at each of them. They
// agree because an X.509-SVID has exactly one (SPIFFE X509-SVID, section 2);
// proxies that take other certificates (gateways) must not use trees.
func tree(rules *rbacv3.RBAC, threshold int) *xdsmatcherv3.Matcher {
	if !only(rules, "action", "policies") {
		return nil
	}
	index := map[string][]entry{}
	var unindexed []entry
	indexed := 0
	for _, name := range sortedNames(rules.GetPolicies()) {
		entries, ok := entriesOf(name, rules.GetPolicies()[name])
		if !ok {
			return nil
		}
		exactOnly := true
		for _, e := range entries {
			exactOnly = exactOnly && len(e.callers) > 0
		}
		if exactOnly {
			indexed++
		}
		for _, e := range entries {
			if len(e.callers) == 0 {
				unindexed = append(unindexed, e)
			}
			for _, caller := range e.callers {
				index[caller] = append(index[caller], e)
			}
		}
	}
	if indexed < threshold || len(unindexed) > maxUnindexed {
		return nil
	}
	b := treeBuilder{action: rules.GetAction()}
	leaves := map[string]*xdsmatcherv3.Matcher_OnMatch{}
	for caller, entries := range index {
		leaves[caller] = b.leaf(byName(append(entries, unindexed...)), true)
	}
	return &xdsmatcherv3.Matcher{
		MatcherType: &xdsmatcherv3.Matcher_MatcherList_{MatcherList: &xdsmatcherv3.Matcher_MatcherList{
			Matchers: []*xdsmatcherv3.Matcher_MatcherList_FieldMatcher{{
				Predicate: peerCertificate(),
				OnMatch: nested(&xdsmatcherv3.Matcher{
					MatcherType: &xdsmatcherv3.Matcher_MatcherTree_{MatcherTree: &xdsmatcherv3.Matcher_MatcherTree{
						Input: input(uriSAN, &sslv3.UriSanInput{}),
						TreeType: &xdsmatcherv3.Matcher_MatcherTree_ExactMatchMap{
							ExactMatchMap: &xdsmatcherv3.Matcher_MatcherTree_MatchMap{Map: leaves},
						},
					}},
					OnNoMatch: b.leaf(unindexed, true),
				}),
			}},
		}},
		OnNoMatch: b.leaf(unindexed, false),
	}
}

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

// byName orders entries as the list would try them, so that the policy that is
// named for a decision is the same.
func byName(entries []entry) []entry {
	out := append([]entry(nil), entries...)
	sort.SliceStable(out, func(i, j int) bool { return out[i].policy < out[j].policy })
	return out
}

// entry is one alternative of a policy's principals with all its permissions.
type entry struct {
	policy string
	// callers are the exact URI SANs that it takes; none means that conditions
	// tell who.
	callers []string
	// conditions must all hold; none means always.
	conditions []*predicate
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

// entriesOf gives the alternatives of a policy; not ok if it says something that
// has no form in a tree, such as a condition.
func entriesOf(name string, policy *rbacv3.Policy) ([]entry, bool) {
	if !only(policy, "permissions", "principals") || len(policy.GetPermissions()) == 0 {
		return nil, false
	}
	var permissions []*predicate
	anyPermission := false
	for _, p := range policy.GetPermissions() {
		converted, always, ok := permissionPredicate(p)
		if !ok {
			return nil, false
		}
		anyPermission = anyPermission || always
		permissions = append(permissions, converted)
	}
	var out []entry
	for _, id := range policy.GetPrincipals() {
		e := entry{policy: name}
		ids := []*rbacv3.Principal{id}
		if and := id.GetAndIds(); and != nil {
			ids = and.GetIds()
		}
		for _, part := range ids {
			if callers := exactCallers(part); callers != nil && e.callers == nil {
				e.callers = callers
				continue
			}
			converted, always, ok := principalPredicate(part)
			if !ok {
				return nil, false
			}
			if !always {
				e.conditions = append(e.conditions, converted)
			}
		}
		if !anyPermission {
			e.conditions = append(e.conditions, orPredicate(permissions))
		}
		out = append(out, e)
	}
	return out, true
}

// exactCallers gives the SPIFFE IDs of a principal that is nothing else.
func exactCallers(id *rbacv3.Principal) []string {
	ids := []*rbacv3.Principal{id}
	if or := id.GetOrIds(); or != nil {
		ids = or.GetIds()
	}
	var out []string
	for _, one := range ids {
		value := one.GetAuthenticated().GetPrincipalName()
		if value.GetExact() == "" || !only(one.GetAuthenticated(), "principal_name") || !only(value, "exact") {
			return nil
		}
		out = append(out, value.GetExact())
	}
	return out
}

type treeBuilder struct{ action rbacv3.RBAC_Action }

// noMatch is what the list decides when no policy matches. Every leaf has to say
// so: where a nested matcher decides nothing, Envoy goes on with the on_no_match
// of the matcher around it. The name is the one that the list leaves.
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

// leaf tries the entries in order, for callers with mutual TLS or for those
// without.
func (b treeBuilder) leaf(entries []entry, mtls bool) *xdsmatcherv3.Matcher_OnMatch {
	otherwise := b.noMatch()
	var list []*xdsmatcherv3.Matcher_MatcherList_FieldMatcher
	for _, e := range entries {
		decided := onMatch(e.policy, b.action)
		if len(e.conditions) == 0 {
			otherwise = decided
			break
		}
		condition := andPredicate(e.conditions)
		if !mtls {
			condition = withoutPeer(condition)
		}
		list = append(list, &xdsmatcherv3.Matcher_MatcherList_FieldMatcher{Predicate: condition, OnMatch: decided})
	}
	if len(list) == 0 {
		return otherwise
	}
	return nested(&xdsmatcherv3.Matcher{
		MatcherType: &xdsmatcherv3.Matcher_MatcherList_{MatcherList: &xdsmatcherv3.Matcher_MatcherList{Matchers: list}},
		OnNoMatch:   otherwise,
	})
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

// withoutPeer replaces every question about the caller's certificate by one that
// is never answered with yes.
func withoutPeer(p *predicate) *predicate {
	return eachSingle(p, func(p *predicate) *predicate {
		if p.GetSinglePredicate().GetInput().GetName() != uriSAN {
			return p
		}
		never, _, _ := single(headerInput(":method"), exact("no method has spaces"))
		return never
	})
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

// headerPredicate cannot say presence: a tree does not tell an empty header from
// none.
func headerPredicate(h *routev3.HeaderMatcher) (*predicate, bool, bool) {
	if h.GetStringMatch() == nil || !only(h, "name", "string_match") {
		return nil, false, false
	}
	return single(headerInput(h.GetName()), h.GetStringMatch())
}

// pathPredicate matches :path, which still has the query: an exact path is that
// text alone or before "?" or "#", and a prefix has neither in it.
func pathPredicate(m *matcherv3.StringMatcher) (*predicate, bool, bool) {
	if !only(m, "exact", "prefix", "suffix") {
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
	case *matcherv3.StringMatcher_Suffix:
		return single(headerInput(":path"), regex("[^?#]*"+regexp.QuoteMeta(p.Suffix)+"(?:[?#].*)?"))
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

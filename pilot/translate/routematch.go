package translate

import (
	"slices"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/writ-mesh/writ/pilot/model"
)

// jwtMetadata is where Istio's documentation promises verified claims to routes.
const jwtMetadata = "envoy.filters.http.jwt_authn"

// claimsHeader is the pseudo header by which a route looks at a claim.
const claimsHeader = "@request.auth.claims"

// routeMatch translates the conditions that are decided per request; nil in
// matches everything.
func routeMatch(in *networking.HTTPMatchRequest) *routev3.RouteMatch {
	out := &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}}
	if in == nil {
		return out
	}
	switch m := in.GetUri().GetMatchType().(type) {
	case *networking.StringMatch_Exact:
		out.PathSpecifier = &routev3.RouteMatch_Path{Path: m.Exact}
	case *networking.StringMatch_Prefix:
		out.PathSpecifier = &routev3.RouteMatch_Prefix{Prefix: m.Prefix}
	case *networking.StringMatch_Regex:
		out.PathSpecifier = &routev3.RouteMatch_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: m.Regex}}
	}
	if in.GetIgnoreUriCase() {
		out.CaseSensitive = no()
	}
	for _, name := range sortedKeys(in.GetHeaders()) {
		if !model.IgnoredHeaderKey(name) {
			addHeaderMatch(out, name, in.GetHeaders()[name], false)
		}
	}
	for _, name := range sortedKeys(in.GetWithoutHeaders()) {
		addHeaderMatch(out, name, in.GetWithoutHeaders()[name], true)
	}
	for _, pseudo := range []struct {
		name  string
		match *networking.StringMatch
	}{{":method", in.GetMethod()}, {":authority", in.GetAuthority()}, {":scheme", in.GetScheme()}} {
		if pseudo.match != nil {
			out.Headers = append(out.Headers, headerMatcher(pseudo.name, pseudo.match))
		}
	}
	for _, name := range sortedKeys(in.GetQueryParams()) {
		out.QueryParameters = append(out.QueryParameters, queryMatcher(name, in.GetQueryParams()[name]))
	}
	return out
}

func addHeaderMatch(out *routev3.RouteMatch, name string, in *networking.StringMatch, invert bool) {
	if claim, ok := claimPath(name); ok {
		out.DynamicMetadata = append(out.DynamicMetadata, claimMatcher(claim, in, invert))
		return
	}
	h := headerMatcher(name, in)
	h.InvertMatch = invert
	// An absent header does not have the value, so "without" matches; where only
	// presence is asked for Envoy already says so.
	h.TreatMissingHeaderAsEmpty = invert && !anyValue(in)
	out.Headers = append(out.Headers, h)
}

// anyValue says whether only presence is asked for: nothing said, or the regular
// expression "*", which is none but which Istio takes as such.
func anyValue(in *networking.StringMatch) bool {
	return in.GetMatchType() == nil || in.GetRegex() == "*"
}

func headerMatcher(name string, in *networking.StringMatch) *routev3.HeaderMatcher {
	if anyValue(in) {
		return &routev3.HeaderMatcher{Name: name, HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}}
	}
	return &routev3.HeaderMatcher{Name: name, HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: stringMatcher(in)}}
}

func queryMatcher(name string, in *networking.StringMatch) *routev3.QueryParameterMatcher {
	if anyValue(in) {
		return &routev3.QueryParameterMatcher{Name: name, QueryParameterMatchSpecifier: &routev3.QueryParameterMatcher_PresentMatch{PresentMatch: true}}
	}
	return &routev3.QueryParameterMatcher{Name: name, QueryParameterMatchSpecifier: &routev3.QueryParameterMatcher_StringMatch{StringMatch: stringMatcher(in)}}
}

// claimPath reads @request.auth.claims.a.b and @request.auth.claims[a][b].
func claimPath(header string) ([]string, bool) {
	if len(header) < len(claimsHeader) || !strings.EqualFold(header[:len(claimsHeader)], claimsHeader) {
		return nil, false
	}
	rest := header[len(claimsHeader):]
	if strings.HasPrefix(rest, "[") && strings.HasSuffix(rest, "]") {
		return strings.Split(rest[1:len(rest)-1], "]["), true
	}
	if strings.HasPrefix(rest, ".") && len(rest) > 1 {
		return strings.Split(rest[1:], "."), true
	}
	return nil, false
}

// claimMatcher matches a claim that is a string, or a list that has the string.
func claimMatcher(claim []string, in *networking.StringMatch, invert bool) *matcherv3.MetadataMatcher {
	out := &matcherv3.MetadataMatcher{Filter: jwtMetadata, Invert: invert}
	for _, key := range append([]string{"payload"}, claim...) {
		out.Path = append(out.Path, &matcherv3.MetadataMatcher_PathSegment{Segment: &matcherv3.MetadataMatcher_PathSegment_Key{Key: key}})
	}
	m := stringMatcher(in)
	if anyValue(in) {
		m = &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: ".+"}}}
	}
	one := &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_StringMatch{StringMatch: m}}
	list := &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_ListMatch{ListMatch: &matcherv3.ListMatcher{
		MatchPattern: &matcherv3.ListMatcher_OneOf{OneOf: one},
	}}}
	out.Value = &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_OrMatch{OrMatch: &matcherv3.OrMatcher{
		ValueMatchers: []*matcherv3.ValueMatcher{one, list},
	}}}
	return out
}

// matchesAll says whether no request can get past the match, so that rules
// behind it are dead.
func matchesAll(m *routev3.RouteMatch) bool {
	all := m.GetPrefix() == "/" || m.GetSafeRegex().GetRegex() == ".*"
	return all && len(m.GetHeaders()) == 0 && len(m.GetQueryParameters()) == 0 && len(m.GetDynamicMetadata()) == 0
}

func sortedKeys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

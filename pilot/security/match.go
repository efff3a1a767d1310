package security

import (
	"fmt"
	"net/netip"
	"regexp"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const spiffeScheme = "spiffe://"

func exact(s string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: s}}
}

func prefix(s string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: s}}
}

func suffix(s string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Suffix{Suffix: s}}
}

// regex matches the whole string against an RE2 expression.
func regex(s string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: s}}}
}

// pattern is the four forms of an AuthorizationPolicy's values: exact, prefix
// "a*", suffix "*a", and "*" for anything that is there and not empty.
func pattern(value string) *matcherv3.StringMatcher {
	switch {
	case value == "*":
		return regex(".+")
	case strings.HasPrefix(value, "*"):
		return suffix(value[1:])
	case strings.HasSuffix(value, "*"):
		return prefix(value[:len(value)-1])
	}
	return exact(value)
}

// header matches a request header; "*" is presence, of an empty value too.
func header(name, value string, ignoreCase bool) *routev3.HeaderMatcher {
	if value == "*" {
		return &routev3.HeaderMatcher{Name: name, HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}}
	}
	m := pattern(value)
	m.IgnoreCase = ignoreCase
	return &routev3.HeaderMatcher{Name: name, HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: m}}
}

// anyFormHost matches the Host header as header does, and also with a port and
// with the dot at the end of an absolute name, which lead to the same server.
func anyFormHost(value string) *routev3.HeaderMatcher {
	rest, suffix := strings.CutPrefix(value, "*")
	if value == "*" || !suffix && strings.HasSuffix(value, "*") {
		return header(":authority", value, true)
	}
	before := ""
	if suffix {
		before = ".*"
	}
	m := regex("(?i)" + before + regexp.QuoteMeta(rest) + `\.?(:.*)?`)
	return &routev3.HeaderMatcher{Name: ":authority", HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: m}}
}

// cidr takes an address or a prefix in CIDR form.
func cidr(value string) (*corev3.CidrRange, error) {
	if addr, err := netip.ParseAddr(value); err == nil {
		return &corev3.CidrRange{AddressPrefix: addr.String(), PrefixLen: wrapperspb.UInt32(uint32(addr.BitLen()))}, nil
	}
	p, err := netip.ParsePrefix(value)
	if err != nil {
		return nil, fmt.Errorf("%q is neither an IP address nor a CIDR", value)
	}
	return &corev3.CidrRange{AddressPrefix: p.Addr().String(), PrefixLen: wrapperspb.UInt32(uint32(p.Bits()))}, nil
}

// peerPrincipal matches source.principal, which is the SPIFFE ID without scheme.
func peerPrincipal(value string) *matcherv3.StringMatcher {
	switch {
	case value == "*":
		return regex(".+")
	case strings.HasPrefix(value, "*"):
		return regex(spiffeScheme + ".*" + regexp.QuoteMeta(value[1:]))
	case strings.HasSuffix(value, "*"):
		return prefix(spiffeScheme + value[:len(value)-1])
	}
	return exact(spiffeScheme + value)
}

func peerTrustDomain(value string) *matcherv3.StringMatcher {
	if value == "*" {
		return prefix(spiffeScheme)
	}
	before, after, wildcard := strings.Cut(value, "*")
	if !wildcard {
		return prefix(spiffeScheme + value + "/")
	}
	return regex(spiffeScheme + regexp.QuoteMeta(before) + "[^/]*" + regexp.QuoteMeta(after) + "/.*")
}

// principalAliases writes a principal once for each trust domain of the mesh,
// if it names one of them (or cluster.local, which always means the mesh's own).
func principalAliases(trustDomains []string, value string) []string {
	parts := strings.Split(value, "/")
	if len(parts) != 5 || parts[0] == "*" {
		return []string{value}
	}
	td := parts[0]
	known := td == "cluster.local"
	for _, have := range trustDomains {
		known = known || overlaps(td, have)
	}
	if !known {
		return []string{value}
	}
	var out []string
	seen := map[string]bool{}
	for _, have := range trustDomains {
		expanded := have + "/" + strings.Join(parts[1:], "/")
		if rest, ok := strings.CutPrefix(td, "*"); ok && strings.HasSuffix(have, rest) {
			expanded = value
		}
		if !seen[expanded] {
			seen[expanded] = true
			out = append(out, expanded)
		}
	}
	return out
}

// overlaps compares a trust domain as a policy writes it, perhaps with a
// wildcard at one end, with one of the mesh's.
func overlaps(value, trustDomain string) bool {
	if rest, ok := strings.CutPrefix(value, "*"); ok {
		return strings.HasSuffix(trustDomain, rest)
	}
	if rest, ok := strings.CutSuffix(value, "*"); ok {
		return strings.HasPrefix(trustDomain, rest)
	}
	return value == trustDomain
}

// trustDomainAliases adds the other trust domains of the mesh to one of them.
func trustDomainAliases(trustDomains []string, value string) []string {
	for _, have := range trustDomains {
		if have == value {
			return trustDomains
		}
	}
	return []string{value}
}

// Where jwt_authn leaves the payload of a verified token.
const (
	jwtMetadata = "envoy.filters.http.jwt_authn"
	jwtPayload  = "payload"
)

func metadata(filter string, path []string, value *matcherv3.ValueMatcher) *matcherv3.MetadataMatcher {
	m := &matcherv3.MetadataMatcher{Filter: filter, Value: value}
	for _, key := range path {
		m.Path = append(m.Path, &matcherv3.MetadataMatcher_PathSegment{Segment: &matcherv3.MetadataMatcher_PathSegment_Key{Key: key}})
	}
	return m
}

func stringValue(m *matcherv3.StringMatcher) *matcherv3.ValueMatcher {
	return &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_StringMatch{StringMatch: m}}
}

func listWith(m *matcherv3.ValueMatcher) *matcherv3.ValueMatcher {
	return &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_ListMatch{
		ListMatch: &matcherv3.ListMatcher{MatchPattern: &matcherv3.ListMatcher_OneOf{OneOf: m}},
	}}
}

func anyValueOf(ms ...*matcherv3.ValueMatcher) *matcherv3.ValueMatcher {
	if len(ms) == 1 {
		return ms[0]
	}
	return &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_OrMatch{OrMatch: &matcherv3.OrMatcher{ValueMatchers: ms}}}
}

// claim matches a claim that is a string, or a list of strings one of which is meant.
func claim(path, values []string) *matcherv3.MetadataMatcher {
	var ms []*matcherv3.ValueMatcher
	for _, v := range values {
		ms = append(ms, stringValue(pattern(v)))
	}
	one := anyValueOf(ms...)
	return metadata(jwtMetadata, append([]string{jwtPayload}, path...), anyValueOf(listWith(one), one))
}

// requestPrincipal matches "<iss>/<sub>". The issuer may contain slashes, the
// subject is what follows the last one.
func requestPrincipal(value string) *rbacv3.Principal {
	some := func() *matcherv3.StringMatcher { return regex(".+") }
	slash := strings.LastIndex(value, "/")
	iss, sub := value, ""
	if slash >= 0 {
		iss, sub = value[:slash], value[slash+1:]
	}
	issMatch, subMatch := exact(iss), exact(sub)
	switch {
	case value == "*":
		issMatch, subMatch = some(), some()
	case strings.HasPrefix(value, "*") && slash < 0:
		issMatch, subMatch = some(), suffix(value[1:])
	case strings.HasPrefix(value, "*"):
		issMatch = pattern(iss)
	case strings.HasSuffix(value, "*") && slash < 0:
		issMatch, subMatch = prefix(value[:len(value)-1]), some()
	case strings.HasSuffix(value, "*"):
		subMatch = pattern(sub)
	}
	return andIDs([]*rbacv3.Principal{
		metadataID(metadata(jwtMetadata, []string{jwtPayload, "iss"}, stringValue(issMatch))),
		metadataID(metadata(jwtMetadata, []string{jwtPayload, "sub"}, stringValue(subMatch))),
	})
}

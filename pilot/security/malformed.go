package security

import (
	"strings"

	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	rbachttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
)

// filterMalformed comes before every policy.
const filterMalformed = "writ.malformed"

// malformedKind begins the names of its rules.
const malformedKind = "MalformedRequest"

// malformed refuses what Envoy takes and programs read in different ways, so that what
// a policy compares is what the program acts on. No policy has a part in it: the filter
// is the same at every inbound port and gateway.
//
//   - host: Envoy joins several Host headers by commas, and passes users, percent signs
//     and empty labels on. None is in a host that a client sends (RFC 9110 sections
//     4.2.4 and 7.2). Other characters that a URL has for itself Envoy refuses.
//   - path: to servlet containers /..;x/ is /../, and Envoys before 1.40 leave it as it
//     is, as all do with %2e%2e;.
//   - method: HTTP/1.1 knows them in upper case, and so do policies; over HTTP/2 Envoy
//     takes any, and programs may not mind the case.
//   - authorization: of several tokens jwt_authn verifies the first.
func malformed() *rbachttpv3.RBAC {
	host := anyRule(permitHeader(":authority", contains(",")), permitHeader(":authority", contains("@")),
		permitHeader(":authority", contains("%")), permitHeader(":authority", contains("..")))
	path := anyRule(permitPath(contains("/..;")), permitPath(contains("/.;")), permitPath(contains("/..%3b")), permitPath(contains("/.%3b")))
	method := permitHeader(":method", regex(`.*[a-z].*`))
	authorization := andRules([]*rbacv3.Permission{permitHeader("authorization", contains(",")), permitHeader("authorization", contains("bearer "))})
	rules := map[string]*rbacv3.Policy{}
	for name, rule := range map[string]*rbacv3.Permission{"host": host, "path": path, "method": method, "authorization": authorization} {
		rules[malformedKind+" "+name] = &rbacv3.Policy{Permissions: []*rbacv3.Permission{rule}, Principals: []*rbacv3.Principal{andIDs(nil)}}
	}
	return &rbachttpv3.RBAC{Rules: &rbacv3.RBAC{Action: rbacv3.RBAC_DENY, Policies: rules}, RulesStatPrefix: "writ_malformed_"}
}

// contains matches letters in any case. Envoy copies the value for that, at each request.
func contains(s string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Contains{Contains: strings.ToLower(s)}, IgnoreCase: strings.ToUpper(s) != strings.ToLower(s)}
}

func permitHeader(name string, value *matcherv3.StringMatcher) *rbacv3.Permission {
	return &rbacv3.Permission{Rule: &rbacv3.Permission_Header{Header: &routev3.HeaderMatcher{
		Name: name, HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: value},
	}}}
}

// permitPath looks at the path without its query.
func permitPath(value *matcherv3.StringMatcher) *rbacv3.Permission {
	return &rbacv3.Permission{Rule: &rbacv3.Permission_UrlPath{UrlPath: &matcherv3.PathMatcher{Rule: &matcherv3.PathMatcher_Path{Path: value}}}}
}

func anyRule(rules ...*rbacv3.Permission) *rbacv3.Permission {
	return &rbacv3.Permission{Rule: &rbacv3.Permission_OrRules{OrRules: &rbacv3.Permission_Set{Rules: rules}}}
}

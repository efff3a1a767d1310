package security

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	security "istio.io/api/security/v1beta1"

	"github.com/writ-mesh/writ/pilot/condition"
	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/security/eval"
)

// errHTTPOnly is what a condition on requests gives for a TCP port.
var errHTTPOnly = errors.New("only HTTP has it")

var errUnknownKey = errors.New("unknown key")

// ruleCompiler turns rules of one AuthorizationPolicy into RBAC policies.
type ruleCompiler struct {
	trustDomains []string
	// federated are the other trust domains whose identities are accepted.
	federated []string
	namespace string
	// tcp is set for ports where no requests are seen.
	tcp bool
	// narrow drops a rule with a condition that cannot be had (ALLOW); otherwise
	// the condition is dropped and the rule is the wider for it (DENY and the rest).
	narrow bool
	// closed is set where a rule that matches refuses, or asks first: a host in it
	// is meant in every form in which a caller can write it.
	closed bool
}

// policy compiles one rule; nil without error for a rule that can match nothing.
func (r ruleCompiler) policy(rule *security.Rule) (*rbacv3.Policy, error) {
	principals, err := r.from(rule)
	if err == nil {
		var permissions []*rbacv3.Permission
		if permissions, err = r.to(rule); err == nil {
			return &rbacv3.Policy{Permissions: permissions, Principals: principals}, nil
		}
	}
	if errors.Is(err, errHTTPOnly) {
		return nil, nil
	}
	return nil, err
}

// clause is a field or condition: one of values (if any), and none of notValues.
type clause struct {
	key               string
	values, notValues []string
}

// when gives the conditions of a rule that are about one side.
func when(rule *security.Rule, side condition.Side) ([]clause, error) {
	var out []clause
	for _, w := range rule.GetWhen() {
		key, _, ok := condition.Find(w.GetKey())
		if !ok {
			return nil, fmt.Errorf("when: unknown key %q", w.GetKey())
		}
		if key.Side == side {
			out = append(out, clause{w.GetKey(), w.GetValues(), w.GetNotValues()})
		}
	}
	return out, nil
}

func (r ruleCompiler) from(rule *security.Rule) ([]*rbacv3.Principal, error) {
	conditions, err := when(rule, condition.Caller)
	if err != nil {
		return nil, err
	}
	sources := rule.GetFrom()
	if len(sources) == 0 {
		sources = []*security.Rule_From{{}}
	}
	var out []*rbacv3.Principal
	for _, from := range sources {
		s := from.GetSource()
		fields := []clause{
			{condition.Principal, s.GetPrincipals(), s.GetNotPrincipals()},
			{condition.TokenPrincipal, s.GetRequestPrincipals(), s.GetNotRequestPrincipals()},
			{condition.ServiceAccount, s.GetServiceAccounts(), s.GetNotServiceAccounts()},
			{condition.TrustDomain, s.GetTrustDomains(), s.GetNotTrustDomains()},
			{condition.Namespace, s.GetNamespaces(), s.GetNotNamespaces()},
			{condition.RemoteIP, s.GetRemoteIpBlocks(), s.GetNotRemoteIpBlocks()},
			{condition.SourceIP, s.GetIpBlocks(), s.GetNotIpBlocks()},
		}
		id, err := conjunction(append(fields, conditions...), r.narrow, r.principal, notID, andIDs)
		if err != nil {
			return nil, err
		}
		out = append(out, id)
	}
	return out, nil
}

func (r ruleCompiler) to(rule *security.Rule) ([]*rbacv3.Permission, error) {
	conditions, err := when(rule, condition.Called)
	if err != nil {
		return nil, err
	}
	hosts := hostKey
	if r.closed {
		hosts = anyFormHostKey
	}
	operations := rule.GetTo()
	if len(operations) == 0 {
		operations = []*security.Rule_To{{}}
	}
	var out []*rbacv3.Permission
	for _, to := range operations {
		o := to.GetOperation()
		fields := []clause{
			{hosts, o.GetHosts(), nil},
			{hostKey, nil, o.GetNotHosts()},
			{methodKey, o.GetMethods(), o.GetNotMethods()},
			{pathKey, o.GetPaths(), o.GetNotPaths()},
			{condition.Port, o.GetPorts(), o.GetNotPorts()},
		}
		p, err := conjunction(append(fields, conditions...), r.narrow, r.permission, notRule, andRules)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

// conjunction requires every clause. match gives the alternative of the values, which
// may be those that must not be.
func conjunction[M any](clauses []clause, narrow bool, match func(key string, values []string, negated bool) (M, error), not func(M) M, and func([]M) M) (M, error) {
	var all []M
	var none M
	for _, c := range clauses {
		for _, side := range []struct {
			values  []string
			negated bool
		}{{c.values, false}, {c.notValues, true}} {
			if len(side.values) == 0 {
				continue
			}
			m, err := match(c.key, side.values, side.negated)
			if errors.Is(err, errHTTPOnly) && !narrow {
				continue
			}
			if err != nil {
				return none, fmt.Errorf("%s: %w", c.key, err)
			}
			if side.negated {
				m = not(m)
			}
			all = append(all, m)
		}
	}
	return and(all), nil
}

// Keys for the fields of an operation that no condition has.
const (
	hostKey = "hosts"
	// anyFormHostKey is a host with any port, and as an absolute name.
	anyFormHostKey = "hosts in any form"
	methodKey      = "methods"
	pathKey        = "paths"
)

// principal matches a key that tells who calls.
func (r ruleCompiler) principal(key string, values []string, negated bool) (*rbacv3.Principal, error) {
	k, name, ok := condition.Find(key)
	if !ok {
		return nil, errUnknownKey
	}
	if r.tcp && k.HTTPOnly {
		return nil, errHTTPOnly
	}
	switch k.Name {
	case condition.Audiences:
		return metadataID(claim([]string{"aud"}, values)), nil
	case condition.Presenter:
		return metadataID(claim([]string{"azp"}, values)), nil
	case condition.Claims:
		return metadataID(claim(eval.ClaimNames(name), values)), nil
	}
	var out []*rbacv3.Principal
	for _, v := range r.aliases(k.Name, values) {
		id, err := r.principalValue(k.Name, name, v, negated)
		if err != nil {
			return nil, err
		}
		out = append(out, id)
	}
	return orIDs(out), nil
}

// principalValue matches one value; name is what stands in the key's brackets.
func (r ruleCompiler) principalValue(key, name, value string, negated bool) (*rbacv3.Principal, error) {
	switch key {
	case condition.Principal:
		return peer(peerPrincipal(value)), nil
	case condition.Namespace:
		return peer(peerNamespace(r.namesOf(negated), value)), nil
	case condition.ServiceAccount:
		return peer(peerServiceAccount(r.namesOf(negated), r.namespace, value)), nil
	case condition.TrustDomain:
		return peer(peerTrustDomain(value)), nil
	case condition.TokenPrincipal:
		return requestPrincipal(value), nil
	case condition.Headers:
		return &rbacv3.Principal{Identifier: &rbacv3.Principal_Header{Header: header(name, value, false)}}, nil
	case condition.SourceIP, condition.RemoteIP:
		block, err := cidr(value)
		if err != nil {
			return nil, err
		}
		if key == condition.SourceIP {
			return &rbacv3.Principal{Identifier: &rbacv3.Principal_DirectRemoteIp{DirectRemoteIp: block}}, nil
		}
		return &rbacv3.Principal{Identifier: &rbacv3.Principal_RemoteIp{RemoteIp: block}}, nil
	}
	return nil, errUnknownKey
}

// aliases writes each value out for every trust domain it may mean.
func (r ruleCompiler) aliases(key string, values []string) []string {
	expand := principalAliases
	switch key {
	case condition.Principal:
	case condition.TrustDomain:
		expand = trustDomainAliases
	default:
		return values
	}
	var out []string
	for _, v := range values {
		out = append(out, expand(r.trustDomains, v)...)
	}
	return out
}

// permission matches a key that tells what is called.
func (r ruleCompiler) permission(key string, values []string, _ bool) (*rbacv3.Permission, error) {
	switch k, name, _ := condition.Find(key); {
	case r.tcp && k.HTTPOnly:
		return nil, errHTTPOnly
	case k.Name == condition.EnvoyFilters:
		return envoyFilterMetadata(name, values), nil
	}
	var out []*rbacv3.Permission
	for _, v := range values {
		p, err := r.permissionValue(key, v)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return orRules(out), nil
}

func (r ruleCompiler) permissionValue(key, value string) (*rbacv3.Permission, error) {
	switch key {
	case condition.DestinationIP:
		block, err := cidr(value)
		if err != nil {
			return nil, err
		}
		return &rbacv3.Permission{Rule: &rbacv3.Permission_DestinationIp{DestinationIp: block}}, nil
	case condition.Port:
		port, err := strconv.ParseUint(value, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("%q is not a port", value)
		}
		return &rbacv3.Permission{Rule: &rbacv3.Permission_DestinationPort{DestinationPort: uint32(port)}}, nil
	case condition.SNI:
		return &rbacv3.Permission{Rule: &rbacv3.Permission_RequestedServerName{RequestedServerName: pattern(value)}}, nil
	}
	if r.tcp {
		return nil, errHTTPOnly
	}
	switch key {
	case hostKey:
		return &rbacv3.Permission{Rule: &rbacv3.Permission_Header{Header: header(":authority", value, true)}}, nil
	case anyFormHostKey:
		return &rbacv3.Permission{Rule: &rbacv3.Permission_Header{Header: anyFormHost(value)}}, nil
	case methodKey:
		return &rbacv3.Permission{Rule: &rbacv3.Permission_Header{Header: header(":method", value, false)}}, nil
	case pathKey:
		return path(value), nil
	}
	return nil, errUnknownKey
}

// path matches the path without its query, by pattern or by template.
func path(value string) *rbacv3.Permission {
	m := pattern(value)
	if strings.Contains(value, "{*}") || strings.Contains(value, "{**}") {
		m = regex(pathTemplate(value))
	}
	return &rbacv3.Permission{Rule: &rbacv3.Permission_UrlPath{UrlPath: &matcherv3.PathMatcher{Rule: &matcherv3.PathMatcher_Path{Path: m}}}}
}

// pathTemplate is what a path template means, as an expression of RE2: {*} is a
// segment, {**} is all that follows. Envoy has a matcher for templates, which is of no
// use here: it ends the process on one that it cannot parse and, of the characters that
// a path may have, does not take each for a part of a segment (a "*" or "["), by which
// a request would get past a DENY.
func pathTemplate(value string) string {
	segments := strings.Split(value, "/")
	for i, s := range segments {
		switch s {
		case "{*}":
			segments[i] = "[^/]+"
		case "{**}":
			segments[i] = ".*"
		default:
			segments[i] = regexp.QuoteMeta(s)
		}
	}
	return strings.Join(segments, "/")
}

// envoyFilterMetadata matches what the filter "a.b" of the name "a.b[c" left, where
// a value "[x]" means a list that has x.
func envoyFilterMetadata(name string, values []string) *rbacv3.Permission {
	filter, key, _ := strings.Cut(name, "[")
	var ms []*matcherv3.ValueMatcher
	for _, v := range values {
		if strings.HasPrefix(v, "[") && strings.HasSuffix(v, "]") {
			ms = append(ms, listWith(stringValue(pattern(strings.Trim(v, "[]")))))
		} else {
			ms = append(ms, stringValue(pattern(v)))
		}
	}
	return &rbacv3.Permission{Rule: &rbacv3.Permission_SourcedMetadata{SourcedMetadata: &rbacv3.SourcedMetadata{
		MetadataMatcher: metadata("envoy.filters."+filter, []string{key}, anyValueOf(ms...)),
	}}}
}

func peer(m *matcherv3.StringMatcher) *rbacv3.Principal {
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_Authenticated_{Authenticated: &rbacv3.Principal_Authenticated{PrincipalName: m}}}
}

func metadataID(m *matcherv3.MetadataMatcher) *rbacv3.Principal {
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_SourcedMetadata{SourcedMetadata: &rbacv3.SourcedMetadata{MetadataMatcher: m}}}
}

func notID(id *rbacv3.Principal) *rbacv3.Principal {
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_NotId{NotId: id}}
}

// andIDs of nothing is anybody.
func andIDs(ids []*rbacv3.Principal) *rbacv3.Principal {
	switch len(ids) {
	case 0:
		return &rbacv3.Principal{Identifier: &rbacv3.Principal_Any{Any: true}}
	case 1:
		return ids[0]
	}
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_AndIds{AndIds: &rbacv3.Principal_Set{Ids: ids}}}
}

func orIDs(ids []*rbacv3.Principal) *rbacv3.Principal {
	if len(ids) == 1 {
		return ids[0]
	}
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_OrIds{OrIds: &rbacv3.Principal_Set{Ids: ids}}}
}

func notRule(p *rbacv3.Permission) *rbacv3.Permission {
	return &rbacv3.Permission{Rule: &rbacv3.Permission_NotRule{NotRule: p}}
}

// andRules of nothing is anything.
func andRules(ps []*rbacv3.Permission) *rbacv3.Permission {
	switch len(ps) {
	case 0:
		return &rbacv3.Permission{Rule: &rbacv3.Permission_Any{Any: true}}
	case 1:
		return ps[0]
	}
	return &rbacv3.Permission{Rule: &rbacv3.Permission_AndRules{AndRules: &rbacv3.Permission_Set{Rules: ps}}}
}

func orRules(ps []*rbacv3.Permission) *rbacv3.Permission {
	if len(ps) == 1 {
		return ps[0]
	}
	return &rbacv3.Permission{Rule: &rbacv3.Permission_OrRules{OrRules: &rbacv3.Permission_Set{Rules: ps}}}
}

// policyID names a rule in Envoy's metadata, statistics and response details.
func policyID(p *model.AuthorizationPolicy, rule int) string {
	return fmt.Sprintf("%s rule %d", p.ID(), rule)
}

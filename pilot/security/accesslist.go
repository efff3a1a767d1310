package security

import (
	"fmt"
	"strings"

	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	rbachttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	rbactcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/writ-mesh/writ/pilot/condition"
	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/security/eval"
)

const (
	// filterAccess has the AccessLists. Each is a policy that denies, so that of
	// several every one has to let a request pass.
	filterAccess           = "writ.access"
	accessStatPrefix       = "writ_access_"
	dryRunAccessStatPrefix = "writ_dry_run_access_"
)

// addAccess adds the filter of AccessLists and its content.
func (c *Compiler) addAccess(b *httpBuilder, p *model.Proxy, lists []*model.AccessList) error {
	b.addGeneric(filterAccess, &rbachttpv3.RBAC{})
	set, err := c.accessSet(lists, accessHTTP)
	if err != nil || set.enforced == nil && set.shadow == nil {
		return err
	}
	out := &rbachttpv3.RBAC{}
	if set.enforced != nil {
		out.RulesStatPrefix = accessStatPrefix
		maps, err := c.accessSet(lists, accessMaps)
		if err != nil {
			return err
		}
		if out.Matcher = lookup(maps.enforced, p.Type == model.GatewayProxy); out.Matcher == nil {
			out.Rules = set.enforced
		}
	}
	if set.shadow != nil {
		// Envoy has a matcher for this side too, and calls it unfinished.
		out.ShadowRules, out.ShadowRulesStatPrefix = set.shadow, dryRunAccessStatPrefix
	}
	b.enable(filterAccess, perRoute(out))
	return nil
}

// addAccessTCP is addAccess for connections.
func (c *Compiler) addAccessTCP(out *TCP, lists []*model.AccessList) error {
	set, err := c.accessSet(lists, accessTCP)
	if err != nil || set.enforced == nil && set.shadow == nil {
		return err
	}
	filter := &rbactcpv3.RBAC{StatPrefix: "tcp.", Rules: set.enforced, ShadowRules: set.shadow}
	if set.shadow != nil {
		filter.ShadowRulesStatPrefix = dryRunAccessStatPrefix
	}
	out.add(filterAccess, filter)
	return nil
}

// accessFor is what the rules of lists are for.
type accessFor uint8

const (
	accessHTTP accessFor = iota
	// accessMaps is for lookup, whose maps see the lines of a header joined.
	accessMaps
	accessTCP
)

// accessSet gives the rules by which lists refuse.
func (c *Compiler) accessSet(lists []*model.AccessList, what accessFor) (ruleSet, error) {
	var set ruleSet
	for _, list := range lists {
		side := &set.enforced
		if list.Observe {
			side = &set.shadow
		}
		if *side == nil {
			*side = &rbacv3.RBAC{Action: rbacv3.RBAC_DENY, Policies: map[string]*rbacv3.Policy{}}
		}
		for i, test := range eval.Tests(c.mesh, list) {
			r := accessRule{c: c, list: list, tcp: what == accessTCP}
			compile := r.policies
			if what == accessHTTP && ofHeader(list) != "" {
				compile = r.headerPolicies
			}
			policies, err := compile(test)
			if err != nil {
				return ruleSet{}, fmt.Errorf("%s: %w", list.Ref, err)
			}
			for j, policy := range policies { // what more a test comes to is rule 2 or 3
				(*side).Policies[fmt.Sprintf("%s rule %d", list.ID(), i+2*j)] = policy
			}
		}
	}
	return set, nil
}

// accessRule compiles the tests of one list.
type accessRule struct {
	c    *Compiler
	list *model.AccessList
	tcp  bool
}

// policies are policy as a list, empty for what refuses nothing.
func (r accessRule) policies(t eval.AccessTest) ([]*rbacv3.Policy, error) {
	p, err := r.policy(t)
	if p == nil || err != nil {
		return nil, err
	}
	return []*rbacv3.Policy{p}, nil
}

// policy refuses what a test says; nil for what refuses nothing.
func (r accessRule) policy(t eval.AccessTest) (*rbacv3.Policy, error) {
	anybody := []*rbacv3.Principal{{Identifier: &rbacv3.Principal_Any{Any: true}}}
	anything := []*rbacv3.Permission{{Rule: &rbacv3.Permission_Any{Any: true}}}
	if r.unseen() {
		// A connection does not have the value: it is on no list.
		if !t.Else {
			return nil, nil
		}
		return &rbacv3.Policy{Permissions: anything, Principals: anybody}, nil
	}
	if r.list.Match == condition.SNI {
		permission, err := combined(t, r.permission, orRules, andRules, notRule)
		if permission == nil || err != nil {
			return nil, err
		}
		return &rbacv3.Policy{Permissions: []*rbacv3.Permission{permission}, Principals: anybody}, nil
	}
	principal, err := combined(t, r.principal, orIDs, andIDs, notID)
	if principal == nil || err != nil {
		return nil, err
	}
	return &rbacv3.Policy{Permissions: anything, Principals: []*rbacv3.Principal{principal}}, nil
}

// unseen: connections have no requests.
func (r accessRule) unseen() bool {
	k, _, ok := condition.Find(r.list.Match)
	return r.tcp && (!ok || k.HTTPOnly)
}

// combined is one of t.Entries, or none of them if Else is set, and none of
// t.Except; nil for what cannot be.
func combined[M any](t eval.AccessTest, entry func(string, bool) (*M, error), or, and func([]*M) *M, not func(*M) *M) (*M, error) {
	// On a list of those who may, an entry lets in; so does an exception.
	set := func(entries []string, letsIn bool) ([]*M, error) {
		var out []*M
		for _, e := range entries {
			m, err := entry(e, letsIn)
			if err != nil {
				return nil, err
			}
			out = append(out, m)
		}
		return out, nil
	}
	members, err := set(t.Entries, t.Else)
	if err != nil {
		return nil, err
	}
	except, err := set(t.Except, true)
	if err != nil {
		return nil, err
	}
	var all []*M
	switch {
	case len(members) > 0 && t.Else:
		all = append(all, not(or(members)))
	case len(members) > 0:
		all = append(all, or(members))
	case !t.Else:
		return nil, nil
	}
	if len(except) > 0 {
		all = append(all, not(or(except)))
	}
	return and(all), nil
}

func (r accessRule) permission(entry string, _ bool) (*rbacv3.Permission, error) {
	return &rbacv3.Permission{Rule: &rbacv3.Permission_RequestedServerName{RequestedServerName: r.text(entry)}}, nil
}

// text compares the whole value with an entry.
func (r accessRule) text(entry string) *matcherv3.StringMatcher {
	if r.list.Form == model.AccessRegex {
		return regex(entry)
	}
	m := exact(entry)
	m.IgnoreCase = r.list.Form == model.AccessStringsAnyCase
	return m
}

// principal matches one entry. letsIn says that being on the list is what lets a
// caller in.
func (r accessRule) principal(entry string, letsIn bool) (*rbacv3.Principal, error) {
	switch r.list.Match {
	case model.AccessHost:
		h := anyFormHost(entry)
		if r.list.Form == model.AccessRegex {
			h = header(":authority", "", true)
			h.GetStringMatch().MatchPattern = regex("(?i)(?:" + entry + `)\.?(?::.*)?`).MatchPattern
			h.GetStringMatch().IgnoreCase = false
		}
		return &rbacv3.Principal{Identifier: &rbacv3.Principal_Header{Header: h}}, nil
	case model.AccessPath:
		return &rbacv3.Principal{Identifier: &rbacv3.Principal_UrlPath{UrlPath: &matcherv3.PathMatcher{Rule: &matcherv3.PathMatcher_Path{Path: r.text(entry)}}}}, nil
	case condition.Principal:
		return r.peer(entry), nil
	case condition.TokenPrincipal:
		iss, sub := entry, ""
		if slash := strings.LastIndex(entry, "/"); slash >= 0 {
			iss, sub = entry[:slash], entry[slash+1:]
		}
		return andIDs([]*rbacv3.Principal{
			metadataID(metadata(jwtMetadata, []string{jwtPayload, "iss"}, stringValue(exact(iss)))),
			metadataID(metadata(jwtMetadata, []string{jwtPayload, "sub"}, stringValue(exact(sub)))),
		}), nil
	case condition.Namespace:
		names := ruleCompiler{trustDomains: r.c.trustDomains, federated: r.c.mesh.FederatedDomains, closed: true}.namesOf(letsIn)
		return peer(peerNamespace(names, entry)), nil
	case condition.SourceIP, condition.RemoteIP:
		block, err := cidr(entry)
		if err != nil {
			return nil, err
		}
		if r.list.Match == condition.SourceIP {
			return &rbacv3.Principal{Identifier: &rbacv3.Principal_DirectRemoteIp{DirectRemoteIp: block}}, nil
		}
		return &rbacv3.Principal{Identifier: &rbacv3.Principal_RemoteIp{RemoteIp: block}}, nil
	}
	switch k, name, _ := condition.Find(r.list.Match); k.Name {
	case condition.Headers:
		h := header(name, "x", false)
		h.GetStringMatch().MatchPattern, h.GetStringMatch().IgnoreCase = r.text(entry).MatchPattern, r.text(entry).GetIgnoreCase()
		return &rbacv3.Principal{Identifier: &rbacv3.Principal_Header{Header: h}}, nil
	case condition.Claims:
		one := stringValue(r.text(entry))
		return metadataID(metadata(jwtMetadata, append([]string{jwtPayload}, eval.ClaimNames(name)...), anyValueOf(listWith(one), one))), nil
	}
	return nil, errUnknownKey
}

// peer matches an identity; one of the mesh's own trust domain is meant in all its
// names.
func (r accessRule) peer(entry string) *rbacv3.Principal {
	if r.list.Form == model.AccessRegex {
		return peer(regex(spiffeScheme + "(?:" + entry + ")"))
	}
	var out []*rbacv3.Principal
	for _, name := range principalAliases(r.c.trustDomains, entry) {
		m := r.text(spiffeScheme + name)
		out = append(out, peer(m))
	}
	return orIDs(out)
}

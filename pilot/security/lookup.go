package security

import (
	xdsmatcherv3 "github.com/cncf/xds/go/xds/type/matcher/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	networkv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/network/v3"
	sslv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/ssl/v3"
	ipv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/input_matchers/ip/v3"
)

// lookupThreshold is the number of entries above which they are looked up. Below it
// trying one after the other is as fast.
const lookupThreshold = 16

// lookup gives the same decisions as rules that deny in the form of a matcher:
// addresses are looked up in a trie, texts by header or identity in a map. Of
// several such maps of who may pass only one can be had, because what follows would
// stand behind each of its entries; those of the others are tried one by one.
//
// It is nil, and the rules stay, where there are few entries, where something has no
// such form, and for identities at a gateway, whose callers may bring certificates
// with several names (see tree).
func lookup(rules *rbacv3.RBAC, gateway bool) *xdsmatcherv3.Matcher {
	b := treeBuilder{action: rbacv3.RBAC_DENY}
	next := b.noMatch()
	var list []*xdsmatcherv3.Matcher_MatcherList_FieldMatcher
	var denied []exactSet
	total, others := 0, false
	for _, name := range sortedNames(rules.GetPolicies()) {
		policy := rules.GetPolicies()[name]
		if len(policy.GetPrincipals()) != 1 || len(policy.GetPermissions()) != 1 || !policy.GetPermissions()[0].GetAny() {
			return nil
		}
		id := policy.GetPrincipals()[0]
		if gateway && asksPeer(id) {
			return nil
		}
		n := entriesIn(id)
		total += n
		set, ok := exactSetOf(name, id)
		switch {
		case ok && n > lookupThreshold && !set.others:
			denied = append(denied, set)
			continue
		case ok && n > lookupThreshold && !others:
			others = true
			next = set.matcher(b.noMatch(), onMatch(name, b.action))
			continue
		}
		p, always, ok := principalPredicate(id)
		if !ok || always {
			return nil
		}
		list = append(list, &xdsmatcherv3.Matcher_MatcherList_FieldMatcher{Predicate: withPeer(p), OnMatch: onMatch(name, b.action)})
	}
	if total <= lookupThreshold {
		return nil
	}
	for _, set := range denied {
		next = set.matcher(onMatch(set.name, b.action), next)
	}
	if len(list) == 0 {
		return next.GetMatcher()
	}
	return &xdsmatcherv3.Matcher{
		MatcherType: &xdsmatcherv3.Matcher_MatcherList_{MatcherList: &xdsmatcherv3.Matcher_MatcherList{Matchers: list}},
		OnNoMatch:   next,
	}
}

// exactSet is a policy that denies texts, or all but these.
type exactSet struct {
	name   string
	values []string
	// header has the text; if it is empty, it is the caller's identity.
	header string
	others bool
}

// misses says that looking a text up could let somebody pass whom the list refuses: of
// a header that is sent twice a map sees the values joined, the list each by itself
// (decision 0016). Who may pass only if he has an entry does not with two.
func (s exactSet) misses(h *routev3.HeaderMatcher) bool { return !s.others && !sentOnce(h) }

// exactSetOf takes an or_ids of exact texts of one kind, or its negation.
func exactSetOf(name string, id *rbacv3.Principal) (exactSet, bool) {
	set := exactSet{name: name}
	if not := id.GetNotId(); not != nil {
		id, set.others = not, true
	}
	for i, one := range id.GetOrIds().GetIds() {
		header, m := "", one.GetAuthenticated().GetPrincipalName()
		if h := one.GetHeader(); h != nil && only(h, "name", "string_match") && !set.misses(h) {
			header, m = h.GetName(), h.GetStringMatch()
		}
		if m.GetExact() == "" || !only(m, "exact") || i > 0 && header != set.header {
			return set, false
		}
		set.header, set.values = header, append(set.values, m.GetExact())
	}
	return set, len(set.values) > 0
}

// matcher does one thing for what is in the set and another for all else.
func (s exactSet) matcher(in, otherwise *xdsmatcherv3.Matcher_OnMatch) *xdsmatcherv3.Matcher_OnMatch {
	leaves := make(map[string]*xdsmatcherv3.Matcher_OnMatch, len(s.values))
	for _, v := range s.values {
		leaves[v] = in
	}
	from := headerInput(s.header)
	if s.header == "" {
		from = input(uriSAN, &sslv3.UriSanInput{})
	}
	tree := &xdsmatcherv3.Matcher{MatcherType: &xdsmatcherv3.Matcher_MatcherTree_{MatcherTree: &xdsmatcherv3.Matcher_MatcherTree{
		Input:    from,
		TreeType: &xdsmatcherv3.Matcher_MatcherTree_ExactMatchMap{ExactMatchMap: &xdsmatcherv3.Matcher_MatcherTree_MatchMap{Map: leaves}},
	}}}
	if s.header != "" {
		tree.OnNoMatch = otherwise
		return nested(tree)
	}
	// A tree that decides nothing leaves it to the matcher around it.
	return nested(&xdsmatcherv3.Matcher{
		MatcherType: &xdsmatcherv3.Matcher_MatcherList_{MatcherList: &xdsmatcherv3.Matcher_MatcherList{
			Matchers: []*xdsmatcherv3.Matcher_MatcherList_FieldMatcher{{Predicate: peerCertificate(), OnMatch: nested(tree)}},
		}},
		OnNoMatch: otherwise,
	})
}

// withPeer has every question about the caller's certificate asked only where there
// is one, see peerCertificate.
func withPeer(p *predicate) *predicate {
	return eachSingle(p, func(p *predicate) *predicate {
		if p.GetSinglePredicate().GetInput().GetName() == uriSAN {
			return andPredicate([]*predicate{peerCertificate(), p})
		}
		return p
	})
}

// partsOf are the identifiers that id is made of, nil if it is one by itself.
func partsOf(id *rbacv3.Principal) []*rbacv3.Principal {
	switch i := id.GetIdentifier().(type) {
	case *rbacv3.Principal_AndIds:
		return i.AndIds.GetIds()
	case *rbacv3.Principal_OrIds:
		return i.OrIds.GetIds()
	case *rbacv3.Principal_NotId:
		return []*rbacv3.Principal{i.NotId}
	}
	return nil
}

func entriesIn(id *rbacv3.Principal) int {
	parts := partsOf(id)
	if parts == nil {
		return 1
	}
	n := 0
	for _, p := range parts {
		n += entriesIn(p)
	}
	return n
}

// asksPeer says whether an identifier is about the caller's certificate.
func asksPeer(id *rbacv3.Principal) bool {
	if id.GetAuthenticated() != nil {
		return true
	}
	for _, p := range partsOf(id) {
		if asksPeer(p) {
			return true
		}
	}
	return false
}

// addressesPredicate looks an address up among those of several identifiers, which
// all have to be about the same address; not ok if they are not.
func addressesPredicate(ids []*rbacv3.Principal) (out *predicate, ok bool) {
	var direct, remote []*corev3.CidrRange
	for _, id := range ids {
		switch i := id.GetIdentifier().(type) {
		case *rbacv3.Principal_DirectRemoteIp:
			direct = append(direct, i.DirectRemoteIp)
		case *rbacv3.Principal_RemoteIp:
			remote = append(remote, i.RemoteIp)
		default:
			return nil, false
		}
	}
	blocks, from := direct, input("direct", &networkv3.DirectSourceIPInput{})
	if len(direct) == 0 {
		blocks, from = remote, input("source", &networkv3.SourceIPInput{})
	}
	if len(blocks) != len(ids) || len(ids) < 2 {
		return nil, false
	}
	return custom(from, "envoy.matching.matchers.ip", &ipv3.Ip{CidrRanges: blocks, StatPrefix: "rbac"}), true
}

package security

import (
	"math"
	"slices"
	"sync/atomic"

	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	sslv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/ssl/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
)

const (
	// maxLeaf is how many entries that one key leads to are tried one after the other
	// before they are looked up by the other key.
	maxLeaf = 8
	// maxGrowth bounds the questions that a rule comes to in an index, by those that it
	// has in a list: each key of it repeats the others. A rule beyond stays in the list.
	maxGrowth = 8
	// maxPairs bounds the pairs of a From and a To of one rule.
	maxPairs = 64
)

// index has rules of one action that name callers or paths, each under its keys: a
// request meets those few that can concern it, however many there are.
//
// It is a chain of tables, by caller and by path. What an entry of a table does not
// decide goes on to the next: Envoy's maps, lists and tries all do so when what is
// nested in them decides nothing, tries with shorter prefixes first (since Envoy 1.35,
// "prefix_map_matcher_resume_after_subtree_miss"). Of several rules that match, the
// index names one, the list the first by name.
//
// It looks at all URI SANs as one text, the list at each of them. They agree because
// an X.509-SVID has exactly one (SPIFFE X509-SVID, section 2); for proxies that take
// other certificates (gateways) no rule about callers is in an index.
type index struct {
	treeBuilder
	entries []entry
	// frequent is how many entries have a key.
	frequent map[key]int
}

// outcome is what is decided, or what is asked next: an OnMatch in wire form, nil for
// none. Most of an index is the same after an edit, and is not marshaled again.
type outcome []byte

// dimension is what an index looks up.
type dimension int

const (
	byCaller dimension = 1 << iota // the URI SAN of the caller's certificate
	byPath                         // :path, which has the query
)

// key is a text that a table has, or the beginning of texts.
type key struct {
	dimension
	text   string
	prefix bool
}

// entry is one pair of a From and a To of a rule: one of the keys of each dimension
// in which it has any, and all conditions.
type entry struct {
	policy string
	keys   map[dimension][]key
	// asks says as a condition what the keys of a dimension do. Most are never wanted.
	asks       map[dimension]func() *predicate
	conditions []*predicate
	// first are the dimensions in which the entry may be looked up; both is whether the
	// other may come after.
	first dimension
	both  bool
	// known is what the entry comes to.
	known *knownEntry
}

// knownEntry has, by the dimensions that were looked up before, what an entry comes to.
// Whoever works it out twice finds the same.
type knownEntry [byCaller | byPath + 1]atomic.Pointer[matched]

// matched is what an entry comes to in a list.
type matched struct {
	// always says that nothing is left to be asked, so that answer is an outcome;
	// otherwise it is a FieldMatcher.
	always bool
	answer []byte
}

// newIndex takes out of rules those that can be looked up, and gives those that cannot,
// which may be nil. entriesOf may have worked the entries out before. The index is nil, and all stay, if fewer than threshold can.
func newIndex(rules *rbacv3.RBAC, threshold int, entriesOf func(string, *rbacv3.Policy) ([]entry, bool)) (*index, *rbacv3.RBAC) {
	if !only(rules, "action", "policies") {
		return nil, rules
	}
	x := &index{treeBuilder: treeBuilder{action: rules.GetAction()}, frequent: map[key]int{}}
	rest := &rbacv3.RBAC{Action: rules.GetAction(), Policies: map[string]*rbacv3.Policy{}}
	for _, name := range sortedNames(rules.GetPolicies()) {
		policy := rules.GetPolicies()[name]
		entries, ok := entriesOf(name, policy)
		if !ok {
			rest.Policies[name] = policy
			continue
		}
		x.entries = append(x.entries, entries...)
	}
	if len(rules.GetPolicies())-len(rest.Policies) < max(threshold, 1) {
		return nil, rules
	}
	for _, e := range x.entries {
		for _, keys := range e.keys {
			for _, k := range keys {
				x.frequent[k]++
			}
		}
	}
	if len(rest.Policies) == 0 {
		rest = nil
	}
	return x, rest
}

// matcher is the index in Envoy's form, a Matcher, with what is decided if no rule in it
// matches.
func (x *index) matcher(otherwise outcome) []byte {
	groups := map[dimension][]entry{}
	for _, e := range x.entries {
		d := x.choose(e)
		groups[d] = append(groups[d], e)
	}
	return x.tables(groups, 0, otherwise)
}

// choose gives the dimension in which an entry meets fewer others.
func (x *index) choose(e entry) dimension {
	best, least := byCaller, math.MaxInt
	for _, d := range []dimension{byCaller, byPath} {
		if e.first&d == 0 {
			continue
		}
		most := 0
		for _, k := range e.keys[d] {
			most = max(most, x.frequent[k])
		}
		if most < least {
			best, least = d, most
		}
	}
	return best
}

// tables looks the groups up, of which there is at least one, each in its dimension,
// those by caller first, and gives a Matcher. reached are the dimensions that were looked
// up before.
func (x *index) tables(groups map[dimension][]entry, reached dimension, otherwise outcome) []byte {
	var paths []byte
	if entries := groups[byPath]; len(entries) > 0 {
		paths = x.table(byPath, entries, reached|byPath, otherwise)
	}
	entries := groups[byCaller]
	if len(entries) == 0 {
		return paths
	}
	next := otherwise
	if paths != nil {
		next = goOn(paths)
	}
	return listOf([][]byte{fieldMatcher(peerCertificate(), goOn(x.table(byCaller, entries, reached|byCaller, nil)))}, next)
}

// table looks up one dimension: whole texts in a map, then beginnings in a trie.
func (x *index) table(d dimension, entries []entry, reached dimension, otherwise outcome) (matcher []byte) {
	whole, beginnings := map[string][]entry{}, map[string][]entry{}
	for _, e := range entries {
		for _, k := range e.keys[d] {
			if k.prefix {
				beginnings[k.text] = append(beginnings[k.text], e)
			} else {
				whole[k.text] = append(whole[k.text], e)
			}
		}
	}
	exact, prefix := map[string]outcome{}, map[string]outcome{}
	for text, entries := range beginnings {
		prefix[text] = x.leaf(entries, reached)
	}
	for text, entries := range whole {
		exact[text] = x.leaf(entries, reached)
		if d == byPath {
			// The same path with a query, or with a fragment where Envoy lets one pass.
			for _, end := range []string{"?", "#"} {
				prefix[text+end] = exact[text]
			}
		}
	}
	in := wire(headerInput(":path"))
	if d == byCaller {
		in = wire(input(uriSAN, &sslv3.UriSanInput{}))
	}
	next := otherwise
	if len(prefix) > 0 {
		if matcher = treeOf(in, treePrefixMap, prefix, next); len(exact) == 0 {
			return matcher
		}
		next = goOn(matcher)
	}
	return treeOf(in, treeExactMap, exact, next)
}

// leaf is for the entries of one key. Many are looked up in the other dimension.
func (x *index) leaf(entries []entry, reached dimension) outcome {
	other := (byCaller | byPath) &^ reached
	if len(entries) <= maxLeaf || other == 0 {
		return x.list(entries, reached)
	}
	var rest []entry
	groups := map[dimension][]entry{}
	for _, e := range entries {
		if e.both {
			groups[other] = append(groups[other], e)
		} else {
			rest = append(rest, e)
		}
	}
	if len(groups[other]) <= maxLeaf {
		return x.list(entries, reached)
	}
	return goOn(x.tables(groups, reached, x.list(rest, reached)))
}

// list tries entries in their order, and decides nothing if none matches; it is nil
// for none.
func (x *index) list(entries []entry, reached dimension) outcome {
	var list [][]byte
	var otherwise outcome
	for _, e := range entries {
		m := x.matched(e, reached)
		if m.always {
			otherwise = m.answer
			break
		}
		list = append(list, m.answer)
	}
	if len(list) == 0 {
		return otherwise
	}
	return goOn(listOf(list, otherwise))
}

// matched is what the entry comes to in a list.
func (x *index) matched(e entry, reached dimension) *matched {
	if known := e.known[reached].Load(); known != nil {
		return known
	}
	m := &matched{answer: wire(onMatch(e.policy, x.action)), always: true}
	if conditions := e.when(reached); len(conditions) > 0 {
		m.answer, m.always = fieldMatcher(andPredicate(conditions), m.answer), false
	}
	e.known[reached].Store(m)
	return m
}

// when is what is left to be asked of an entry.
func (e entry) when(reached dimension) []*predicate {
	out := slices.Clone(e.conditions)
	for _, d := range []dimension{byCaller, byPath} {
		if len(e.keys[d]) > 0 && reached&d == 0 {
			out = append(out, e.asks[d]())
		}
	}
	if reached&byCaller == 0 {
		for i := range out {
			out[i] = withPeer(out[i])
		}
	}
	return out
}

// half is one From or one To of a rule.
type half struct {
	keys       []key
	asks       func() *predicate
	conditions []*predicate
}

// entriesOf gives the pairs of a rule. It is not ok if one of them names neither a
// caller nor a path, or if the rule says what has no form in a tree, such as CEL.
func entriesOf(name string, policy *rbacv3.Policy, gateway bool) ([]entry, bool) {
	if !only(policy, "permissions", "principals") || len(policy.GetPermissions())*len(policy.GetPrincipals()) > maxPairs {
		return nil, false
	}
	var froms, tos []half
	for _, id := range policy.GetPrincipals() {
		h, ok := fromHalf(id)
		if !ok || gateway && asksPeer(id) {
			return nil, false
		}
		froms = append(froms, h)
	}
	for _, p := range policy.GetPermissions() {
		h, ok := toHalf(p)
		if !ok {
			return nil, false
		}
		tos = append(tos, h)
	}
	var out []entry
	for _, from := range froms {
		for _, to := range tos {
			e := entry{
				policy: name, conditions: slices.Concat(from.conditions, to.conditions),
				keys:  map[dimension][]key{byCaller: from.keys, byPath: to.keys},
				asks:  map[dimension]func() *predicate{byCaller: from.asks, byPath: to.asks},
				known: new(knownEntry),
			}
			if e.grow(); e.first == 0 {
				return nil, false
			}
			out = append(out, e)
		}
	}
	return out, true
}

// grow finds the dimensions in which the entry is not repeated too often.
func (e *entry) grow() {
	rest := 1
	for _, c := range e.conditions {
		rest += questions(c)
	}
	callers, paths := len(e.keys[byCaller]), 0
	for _, k := range e.keys[byPath] {
		if paths++; !k.prefix {
			paths += 2 // with a query, with a fragment
		}
	}
	most := maxGrowth * (callers + paths + rest)
	if callers > 0 && callers*(paths+rest) <= most {
		e.first |= byCaller
	}
	if paths > 0 && paths*(callers+rest) <= most {
		e.first |= byPath
	}
	e.both = callers > 0 && paths > 0 && callers*paths*rest <= most
}

// questions counts the single questions in a predicate.
func questions(p *predicate) int {
	n := 0
	eachSingle(p, func(p *predicate) *predicate {
		n++
		return p
	})
	return n
}

func fromHalf(id *rbacv3.Principal) (half, bool) {
	ids := []*rbacv3.Principal{id}
	if and := id.GetAndIds(); and != nil {
		ids = and.GetIds()
	}
	return halfOf(ids, callerKeys, principalPredicate)
}

func toHalf(p *rbacv3.Permission) (half, bool) {
	rules := []*rbacv3.Permission{p}
	if and := p.GetAndRules(); and != nil {
		rules = and.GetRules()
	}
	return halfOf(rules, pathKeys, permissionPredicate)
}

// halfOf converts a conjunction: the first part that has keys is looked up, the others
// are conditions.
func halfOf[M any](parts []M, keysOf func(M) []key, convert func(M) (*predicate, bool, bool)) (half, bool) {
	var out half
	for _, part := range parts {
		if out.keys == nil {
			if out.keys = keysOf(part); out.keys != nil {
				out.asks = func() *predicate {
					converted, _, _ := convert(part) // what has keys has this form too
					return converted
				}
				continue
			}
		}
		converted, always, ok := convert(part)
		if !ok {
			return half{}, false
		}
		if !always {
			out.conditions = append(out.conditions, converted)
		}
	}
	return out, true
}

// callerKeys gives the keys of a principal that is SPIFFE IDs or beginnings of them
// and nothing else.
func callerKeys(id *rbacv3.Principal) []key {
	ids := []*rbacv3.Principal{id}
	if or := id.GetOrIds(); or != nil {
		ids = or.GetIds()
	}
	var out []key
	for _, one := range ids {
		k, ok := keyOf(byCaller, one.GetAuthenticated().GetPrincipalName())
		if !ok || !only(one.GetAuthenticated(), "principal_name") {
			return nil
		}
		out = append(out, k)
	}
	return distinct(out)
}

// pathKeys is callerKeys for paths.
func pathKeys(p *rbacv3.Permission) []key {
	rules := []*rbacv3.Permission{p}
	if or := p.GetOrRules(); or != nil {
		rules = or.GetRules()
	}
	var out []key
	for _, one := range rules {
		k, ok := keyOf(byPath, one.GetUrlPath().GetPath())
		if !ok || !plainPath(k.text) || !only(one.GetUrlPath(), "path") {
			return nil
		}
		out = append(out, k)
	}
	return distinct(out)
}

func distinct(keys []key) []key {
	var out []key
	for _, k := range keys {
		if !slices.Contains(out, k) {
			out = append(out, k)
		}
	}
	return out
}

func keyOf(d dimension, m *matcherv3.StringMatcher) (key, bool) {
	k := key{dimension: d, text: m.GetExact()}
	if m.GetPrefix() != "" {
		k.text, k.prefix = m.GetPrefix(), true
	}
	return k, k.text != "" && only(m, "exact", "prefix")
}

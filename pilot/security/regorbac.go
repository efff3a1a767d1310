package security

import (
	"strconv"
	"strings"

	xdscorev3 "github.com/cncf/xds/go/xds/core/v3"
	xdsmatcherv3 "github.com/cncf/xds/go/xds/type/matcher/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	rbachttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	networkv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/network/v3"
	sslv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/ssl/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/writ-mesh/writ/internal/regoform"
	"github.com/writ-mesh/writ/pilot/model"
)

const (
	// filterRegoRules decides what of RegoPolicies needs no call.
	filterRegoRules = "writ.rego.rules"
	// regoStatPrefix is that of what it refuses, regoGatePrefix of what it finds
	// allowed, so that authz is not asked.
	regoStatPrefix = "writ_rego_"
	regoGatePrefix = "writ_rego_allows_"
	// maxRegoAtoms bounds the matchers that one policy comes to.
	maxRegoAtoms = 5000
)

// addRegoRules adds the filter for what needs no call, and says which policies authz
// is still asked about. The filter is a matcher tree because it joins the values of
// a header that is sent twice, as the input document does; lists of rules look at
// each value, see decision 0016.
func (c *Compiler) addRegoRules(b *httpBuilder, placed []*placedRego) (asked []*model.RegoPolicy) {
	b.addGeneric(filterRegoRules, &rbachttpv3.RBAC{})
	var refused []regoRule
	var allow []*regoform.Formula
	gate := true
	for _, p := range placed {
		if p.form != nil {
			refused = append(refused, refusals(p)...)
		}
		if p.whole() {
			continue
		}
		asked = append(asked, p.policy)
		if p.form == nil {
			gate = false
			continue
		}
		allow = append(allow, p.form.Allow())
	}
	out := &rbachttpv3.RBAC{}
	if len(refused) > 0 {
		out.Matcher = regoTree(rbacv3.RBAC_DENY, refused)
		out.RulesStatPrefix = regoStatPrefix
	}
	if gate && len(allow) > 0 {
		out.ShadowMatcher = regoTree(rbacv3.RBAC_ALLOW, []regoRule{{"decided", regoform.And(allow...)}})
		out.ShadowRulesStatPrefix = regoGatePrefix
	}
	if len(refused) > 0 {
		b.enable(filterRegoRules, perRoute(out))
	}
	return asked
}

// unlessDecided holds for requests that the filter before has not found allowed.
func unlessDecided() *matcherv3.MetadataMatcher {
	m := metadata(rbacHTTPMetadata, []string{regoGatePrefix + shadowResult}, stringValue(exact("allowed")))
	m.Invert = true
	return m
}

// regoRule is what holds where a policy decides.
type regoRule struct {
	name string
	when *regoform.Formula
}

// regoTree tries the rules in order: the first that holds has the action. Who has
// no certificate is asked nothing about it, see peerCertificate.
func regoTree(action rbacv3.RBAC_Action, rules []regoRule) *xdsmatcherv3.Matcher {
	b := treeBuilder{action: action}
	reads := false
	for _, r := range rules {
		reads = reads || r.when.Reads(regoform.Principal)
	}
	if !reads {
		return regoList(b, rules, true)
	}
	return &xdsmatcherv3.Matcher{
		MatcherType: &xdsmatcherv3.Matcher_MatcherList_{MatcherList: &xdsmatcherv3.Matcher_MatcherList{
			Matchers: []*xdsmatcherv3.Matcher_MatcherList_FieldMatcher{{
				Predicate: peerCertificate(), OnMatch: nested(regoList(b, rules, true)),
			}},
		}},
		OnNoMatch: nested(regoList(b, rules, false)),
	}
}

// refusals are what a policy refuses for certain, what is malformed first: as authz does,
// with another status than the policy's.
func refusals(p *placedRego) (rules []regoRule) {
	if p.form.Malformed.Op() != regoform.OpFalse {
		rules = append(rules, regoRule{p.policy.ID() + strings.ReplaceAll(malformedEnd, "_", " "), p.form.Malformed})
	}
	if refuse := regoform.Not(p.form.Perhaps); refuse.Op() != regoform.OpFalse {
		rules = append(rules, regoRule{p.policy.ID(), refuse})
	}
	return rules
}

func regoList(b treeBuilder, rules []regoRule, mtls bool) *xdsmatcherv3.Matcher {
	list := &xdsmatcherv3.Matcher_MatcherList{}
	for _, r := range rules {
		when := r.when
		if !mtls {
			when = when.Map(func(a regoform.Atom) *regoform.Formula {
				if a.Kind == regoform.Principal {
					return regoform.False()
				}
				return regoform.Of(a)
			})
		}
		list.Matchers = append(list.Matchers, &xdsmatcherv3.Matcher_MatcherList_FieldMatcher{
			Predicate: regoPredicate(when), OnMatch: onMatch(r.name, b.action),
		})
	}
	return &xdsmatcherv3.Matcher{MatcherType: &xdsmatcherv3.Matcher_MatcherList_{MatcherList: list}, OnNoMatch: b.noMatch()}
}

func regoPredicate(f *regoform.Formula) *predicate {
	switch f.Op() {
	case regoform.OpTrue:
		return notPredicate(regoPredicate(regoform.False()))
	case regoform.OpFalse:
		never, _, _ := single(headerInput(":method"), exact("no method has spaces"))
		return never
	case regoform.OpNot:
		return notPredicate(regoPredicate(f.Parts()[0]))
	case regoform.OpAtom:
		return regoAtom(f.Atom())
	}
	parts := make([]*predicate, len(f.Parts()))
	for i, p := range f.Parts() {
		parts[i] = regoPredicate(p)
	}
	if f.Op() == regoform.OpAnd {
		return andPredicate(parts)
	}
	return orPredicate(parts)
}

func regoAtom(a regoform.Atom) *predicate {
	switch a.Kind {
	case regoform.Header:
		return regoText(a, headerInput(a.Name))
	case regoform.Principal:
		return regoText(a, input(uriSAN, &sslv3.UriSanInput{}))
	case regoform.SNI:
		return regoText(a, input("sni", &networkv3.ServerNameInput{}))
	case regoform.DestinationPort:
		if n, err := strconv.ParseUint(a.Value, 10, 16); err == nil {
			a.Value = strconv.FormatUint(n, 10)
			return regoText(a, input("port", &networkv3.DestinationPortInput{}))
		}
	case regoform.SourceIP, regoform.DestinationIP:
		if block, err := cidr(a.Value); err == nil {
			in := input("direct", &networkv3.DirectSourceIPInput{})
			if a.Kind == regoform.DestinationIP {
				in = input("destination", &networkv3.DestinationIPInput{})
			}
			p, _, _ := ipPredicate(in, block)
			return p
		}
	case regoform.Token, regoform.Claim:
		path := []string{jwtPayload}
		if a.Kind == regoform.Claim {
			path = append(path, a.Segments()...)
		}
		p, _, _ := metadataPredicate(metadata(jwtMetadata, path, regoValue(a)))
		return p
	}
	return regoPredicate(regoform.False())
}

// regoText compares a text; the input gives none if there is none, and then nothing
// is true of it.
func regoText(a regoform.Atom, in *xdscorev3.TypedExtensionConfig) *predicate {
	m := &xdsmatcherv3.StringMatcher{IgnoreCase: a.Fold}
	switch a.Test {
	case regoform.Prefix:
		m.MatchPattern = &xdsmatcherv3.StringMatcher_Prefix{Prefix: a.Value}
	case regoform.Suffix:
		m.MatchPattern = &xdsmatcherv3.StringMatcher_Suffix{Suffix: a.Value}
	case regoform.Contains:
		m.MatchPattern = &xdsmatcherv3.StringMatcher_Contains{Contains: a.Value}
	case regoform.Regex:
		return singleValue(in, xdsString(regex(a.Value)))
	case regoform.Present:
		return singleValue(in, xdsString(regex(`\C*`)))
	default:
		m.MatchPattern = &xdsmatcherv3.StringMatcher_Exact{Exact: a.Value}
	}
	return singleValue(in, m)
}

func regoValue(a regoform.Atom) *matcherv3.ValueMatcher {
	switch a.Test {
	case regoform.Present:
		return &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_PresentMatch{PresentMatch: true}}
	case regoform.True, regoform.Untrue:
		return &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_BoolMatch{BoolMatch: a.Test == regoform.True}}
	case regoform.Has:
		return listWith(stringValue(exact(a.Value)))
	case regoform.Text:
		return stringValue(regex(`\C*`))
	case regoform.List:
		return listWith(stringValue(regex(`\C*`)))
	case regoform.Prefix:
		return stringValue(prefix(a.Value))
	case regoform.Suffix:
		return stringValue(suffix(a.Value))
	case regoform.Contains:
		return stringValue(&matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Contains{Contains: a.Value}})
	}
	return stringValue(exact(a.Value))
}

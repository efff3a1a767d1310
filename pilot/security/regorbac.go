package security

import (
	"fmt"
	"maps"
	"strconv"

	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	rbachttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
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
	// gatePolicy is the name of the shadow rule for that.
	gatePolicy = "decided"
	// maxCallee bounds the different questions about what is called in one policy:
	// RBAC asks them apart from those about the caller, and so each combination of
	// answers has a rule of its own.
	maxCallee = 4
	// maxRegoAtoms bounds the matchers that one policy comes to.
	maxRegoAtoms = 5000
)

// regoRules gives the rules of a DENY set that match where f holds. number is the
// policy's place among those of the workload: Envoy goes by the order of names.
func regoRules(number int, ref model.Ref, f *regoform.Formula) (map[string]*rbacv3.Policy, bool) {
	list, ok := calleeCases(f)
	out := map[string]*rbacv3.Policy{}
	for i, p := range list {
		out[fmt.Sprintf("%03d %s case %d", number, ref.ID(), i)] = p
	}
	return out, ok
}

// gateRules match where all of fs hold.
func gateRules(fs ...*regoform.Formula) (map[string]*rbacv3.Policy, bool) {
	list, ok := calleeCases(regoform.And(fs...))
	out := map[string]*rbacv3.Policy{}
	for i, p := range list {
		out[fmt.Sprintf("%s %d", gatePolicy, i)] = p
	}
	return out, ok
}

// calleeCases takes the questions that only a permission can ask out of f: for each
// combination of their answers there is a rule with what is left of f as principal.
func calleeCases(f *regoform.Formula) ([]*rbacv3.Policy, bool) {
	var asked []regoform.Atom
	index := map[string]int{}
	f.Map(func(a regoform.Atom) *regoform.Formula {
		if _, seen := index[a.String()]; !seen && onlyPermission(a.Kind) {
			index[a.String()] = len(asked)
			asked = append(asked, a)
		}
		return regoform.Of(a)
	})
	if len(asked) > maxCallee {
		return nil, false
	}
	var out []*rbacv3.Policy
	atoms := 0
	for answers := range 1 << len(asked) {
		rest := f.Map(func(a regoform.Atom) *regoform.Formula {
			i, known := index[a.String()]
			switch {
			case !known:
				return regoform.Of(a)
			case answers>>i&1 == 1:
				return regoform.Always()
			}
			return regoform.False()
		})
		if rest.Op() == regoform.OpFalse {
			continue
		}
		if atoms += rest.Atoms(); atoms > maxRegoAtoms {
			return nil, false
		}
		var permissions []*rbacv3.Permission
		for i, a := range asked {
			p := regoPermission(a)
			if answers>>i&1 == 0 {
				p = notRule(p)
			}
			permissions = append(permissions, p)
		}
		out = append(out, &rbacv3.Policy{
			Permissions: []*rbacv3.Permission{andRules(permissions)},
			Principals:  []*rbacv3.Principal{regoPrincipal(rest)},
		})
	}
	return out, true
}

func onlyPermission(k regoform.Kind) bool {
	return k == regoform.DestinationIP || k == regoform.DestinationPort || k == regoform.SNI
}

func regoPermission(a regoform.Atom) *rbacv3.Permission {
	switch a.Kind {
	case regoform.DestinationIP:
		if block, err := cidr(a.Value); err == nil {
			return &rbacv3.Permission{Rule: &rbacv3.Permission_DestinationIp{DestinationIp: block}}
		}
	case regoform.DestinationPort:
		if n, err := strconv.ParseUint(a.Value, 10, 16); err == nil {
			return &rbacv3.Permission{Rule: &rbacv3.Permission_DestinationPort{DestinationPort: uint32(n)}}
		}
	case regoform.SNI:
		return &rbacv3.Permission{Rule: &rbacv3.Permission_RequestedServerName{RequestedServerName: regoString(a)}}
	}
	// A port that is none, for example: it never is the one.
	return notRule(andRules(nil))
}

func regoPrincipal(f *regoform.Formula) *rbacv3.Principal {
	switch f.Op() {
	case regoform.OpTrue:
		return andIDs(nil)
	case regoform.OpNot:
		return notID(regoPrincipal(f.Parts()[0]))
	case regoform.OpAnd, regoform.OpOr:
		ids := make([]*rbacv3.Principal, len(f.Parts()))
		for i, p := range f.Parts() {
			ids[i] = regoPrincipal(p)
		}
		if f.Op() == regoform.OpAnd {
			return andIDs(ids)
		}
		return orIDs(ids)
	case regoform.OpAtom:
		return regoAtom(f.Atom())
	}
	return notID(andIDs(nil))
}

func regoAtom(a regoform.Atom) *rbacv3.Principal {
	switch a.Kind {
	case regoform.Header:
		m := &routev3.HeaderMatcher{Name: a.Name, HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}}
		if a.Test != regoform.Present {
			m.HeaderMatchSpecifier = &routev3.HeaderMatcher_StringMatch{StringMatch: regoString(a)}
		}
		return &rbacv3.Principal{Identifier: &rbacv3.Principal_Header{Header: m}}
	case regoform.Principal:
		return peer(regoString(a))
	case regoform.SourceIP:
		if block, err := cidr(a.Value); err == nil {
			return &rbacv3.Principal{Identifier: &rbacv3.Principal_DirectRemoteIp{DirectRemoteIp: block}}
		}
	case regoform.Token:
		return metadataID(metadata(jwtMetadata, []string{jwtPayload}, &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_PresentMatch{PresentMatch: true}}))
	case regoform.Claim:
		return metadataID(metadata(jwtMetadata, append([]string{jwtPayload}, a.Segments()...), regoValue(a)))
	}
	return notID(andIDs(nil))
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
	}
	return stringValue(regoString(a))
}

func regoString(a regoform.Atom) *matcherv3.StringMatcher {
	var m *matcherv3.StringMatcher
	switch a.Test {
	case regoform.Prefix:
		m = prefix(a.Value)
	case regoform.Suffix:
		m = suffix(a.Value)
	case regoform.Contains:
		m = &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Contains{Contains: a.Value}}
	case regoform.Regex:
		m = regex(a.Value)
	default:
		m = exact(a.Value)
	}
	m.IgnoreCase = a.Fold
	return m
}

// addRegoRules adds the filter for what needs no call. It says which policies authz
// is still asked about, and whether it need not be asked where the filter has found
// that they allow.
func (c *Compiler) addRegoRules(b *httpBuilder, placed []*placedRego) (asked []*model.RegoPolicy) {
	b.addGeneric(filterRegoRules, &rbachttpv3.RBAC{})
	rules := map[string]*rbacv3.Policy{}
	var allow []*regoform.Formula
	gate := true
	for _, p := range placed {
		if p.form != nil {
			maps.Copy(rules, p.rules)
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
	if len(rules) > 0 {
		out.Rules = &rbacv3.RBAC{Action: rbacv3.RBAC_DENY, Policies: rules}
		out.RulesStatPrefix = regoStatPrefix
	}
	if gate && len(allow) > 0 {
		if allowed, ok := gateRules(allow...); ok && len(allowed) > 0 {
			out.ShadowRules = &rbacv3.RBAC{Action: rbacv3.RBAC_ALLOW, Policies: allowed}
			out.ShadowRulesStatPrefix = regoGatePrefix
		}
	}
	if out.Rules != nil || out.ShadowRules != nil {
		b.enable(filterRegoRules, perRoute(out))
	}
	return asked
}

// unlessDecided holds for requests that the filter before has not found allowed.
func unlessDecided() *matcherv3.MetadataMatcher {
	m := metadata(rbacHTTPMetadata, []string{regoGatePrefix + "shadow_engine_result"}, stringValue(exact("allowed")))
	m.Invert = true
	return m
}

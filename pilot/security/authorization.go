package security

import (
	"fmt"
	"maps"
	"strings"

	xdsmatcherv3 "github.com/cncf/xds/go/xds/type/matcher/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	rbachttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	rbactcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	"google.golang.org/protobuf/proto"

	"github.com/writ-mesh/writ/pilot/envoy"
	"github.com/writ-mesh/writ/pilot/model"
)

// Names of the filters, under which virtual hosts bring their content.
const (
	filterCustom         = "writ.custom"
	filterCustomExtAuthz = "writ.custom.ext_authz"
	filterJWT            = "writ.jwt"
	filterAudit          = "writ.audit"
	filterDenyList       = "writ.deny.list"
	filterDeny           = "writ.deny"
	filterAllowList      = "writ.allow.list"
	filterAllow          = "writ.allow"
	filterRego           = "writ.rego"
	filterRegoOpen       = "writ.rego.open"
	filterQuota          = "writ.quota"
	filterQuotaClosed    = "writ.quota.closed"
	filterQuotaLocal     = "writ.quota.local"
	filterQuotaMark      = "writ.quota.mark"
	filterQuotaHold      = "writ.quota.hold"
	filterQuotaCost      = "writ.quota.cost"
	filterQuotaDone      = "writ.quota.done"
	filterDeniedBy       = "writ.denied_by"
	filterPeerAddress    = "writ.peer_address"
)

// Prefixes of the keys that the RBAC filters leave in the dynamic metadata
// envoy.filters.http.rbac and in statistics. Those of dry runs are Istio's.
const (
	denyStatPrefix        = "writ_deny_"
	allowStatPrefix       = "writ_allow_"
	allowListStatPrefix   = "writ_allow_list_"
	customStatPrefix      = "writ_custom_"
	dryRunDenyStatPrefix  = "istio_dry_run_deny_"
	dryRunAllowStatPrefix = "istio_dry_run_allow_"
	rbacHTTPMetadata      = "envoy.filters.http.rbac"
	rbacTCPMetadata       = "envoy.filters.network.rbac"
)

// ruleSet is the enforced and the dry-run policies of one action. A side is nil
// when no policy is on it.
type ruleSet struct {
	enforced, shadow *rbacv3.RBAC
	// refs are the policies of the enforced side, shadowRefs those of the other.
	refs, shadowRefs []model.Ref
	// made has the rules of the enforced side by name.
	made map[string]*madeRule
}

// entries gives those of an index for a rule of the enforced side.
func (s ruleSet) entries(gateway bool) func(string, *rbacv3.Policy) ([]entry, bool) {
	return func(name string, policy *rbacv3.Policy) ([]entry, bool) {
		if r := s.made[name]; r != nil && r.policy == policy {
			return r.entriesFor(gateway)
		}
		return entriesOf(name, policy, gateway)
	}
}

// compileSet compiles the policies of one action as a list.
func (c *Compiler) compileSet(policies []*model.AuthorizationPolicy, action rbacv3.RBAC_Action, tcp bool) (ruleSet, error) {
	set := ruleSet{made: map[string]*madeRule{}}
	for _, pol := range policies {
		side := &set.enforced
		if model.DryRun(pol) {
			side = &set.shadow
			set.shadowRefs = append(set.shadowRefs, pol.Ref)
		} else {
			set.refs = append(set.refs, pol.Ref)
		}
		if *side == nil {
			*side = &rbacv3.RBAC{Action: action, Policies: map[string]*rbacv3.Policy{}}
		}
		made, err := c.reuse.part(pol, action, tcp, func() (*part, error) { return c.compilePolicy(pol, action, tcp) })
		if err != nil {
			return ruleSet{}, err
		}
		for _, r := range made.rules {
			(*side).Policies[r.name] = r.policy
			if side == &set.enforced {
				set.made[r.name] = r
			}
		}
	}
	return set, nil
}

// compilePolicy compiles the rules of one policy.
func (c *Compiler) compilePolicy(pol *model.AuthorizationPolicy, action rbacv3.RBAC_Action, tcp bool) (*part, error) {
	r := ruleCompiler{trustDomains: c.trustDomains, federated: c.mesh.FederatedDomains, namespace: pol.Namespace, tcp: tcp, narrow: action == rbacv3.RBAC_ALLOW, closed: action == rbacv3.RBAC_DENY}
	out := &part{}
	for i, rule := range pol.Spec.GetRules() {
		compiled, err := r.policy(rule)
		if err != nil {
			return nil, fmt.Errorf("%s: rules[%d]: %w", pol.Ref, i, err)
		}
		if compiled != nil {
			out.rules = append(out.rules, &madeRule{name: policyID(pol, i), policy: compiled})
		}
	}
	return out, nil
}

// addAuthorization adds the filters for AUDIT, DENY and ALLOW and their content.
func (c *Compiler) addAuthorization(b *httpBuilder, p *model.Proxy, s selection) error {
	gateway := p.Type == model.GatewayProxy
	b.addGeneric(filterAudit, &rbachttpv3.RBAC{})
	if err := c.addAccess(b, p, s.lists); err != nil {
		return err
	}
	for _, name := range []string{filterDenyList, filterDeny, filterAllowList, filterAllow} {
		b.addGeneric(name, &rbachttpv3.RBAC{})
	}
	audit, err := c.compileSet(s.audit, rbacv3.RBAC_LOG, false)
	if err != nil {
		return err
	}
	if audit.enforced != nil {
		b.enable(filterAudit, perRoute(&rbachttpv3.RBAC{Rules: audit.enforced}))
	}
	deny, err := c.denyContents(p, s)
	if err != nil {
		return err
	}
	maps.Copy(b.PerFilterConfig, deny.filters)
	allow, err := c.reuse.once(rbacv3.RBAC_ALLOW, gateway, s.allow, func() (contents, error) {
		set, err := c.compileSet(s.allow, rbacv3.RBAC_ALLOW, false)
		return c.allowSet(set, gateway), err
	})
	if err != nil {
		return err
	}
	maps.Copy(b.PerFilterConfig, allow.filters)
	if len(allow.refs) > 0 {
		b.name(nameAllow, noRuleAllows(allow.refs))
	}
	if len(allow.shadowRefs) > 0 {
		b.name(nameDryRunAllow, policyNames(allow.shadowRefs))
	}
	return nil
}

// denyContents compiles what refuses: DENY policies, and what cannot be asked.
func (c *Compiler) denyContents(p *model.Proxy, s selection) (contents, error) {
	gateway := p.Type == model.GatewayProxy
	var unasked ruleSet
	c.denyWithoutAuthz(&unasked, p, s)
	c.denyWithoutRateLimit(&unasked, s.quota)
	compile := func() (contents, error) {
		set, err := c.compileSet(s.deny, rbacv3.RBAC_DENY, false)
		if err == nil && set.enforced == nil {
			set.enforced = unasked.enforced
		} else if err == nil {
			maps.Copy(set.enforced.GetPolicies(), unasked.enforced.GetPolicies())
		}
		return c.denySet(set, gateway), err
	}
	if unasked.enforced != nil {
		return compile()
	}
	return c.reuse.once(rbacv3.RBAC_DENY, gateway, s.deny, compile)
}

// denySet has rules that can be looked up in an index, and the others in a list, in a
// filter of its own: what passes has to pass both.
func (c *Compiler) denySet(set ruleSet, gateway bool) contents {
	out := contentsOf(set)
	if set.enforced == nil && set.shadow == nil {
		return out
	}
	x, rest := newIndex(set.enforced, c.treeThreshold, set.entries(gateway))
	if x == nil {
		out.enable(filterDeny, httpRBAC(set, denyStatPrefix, dryRunDenyStatPrefix))
		return out
	}
	if rest != nil {
		out.enable(filterDenyList, &rbachttpv3.RBAC{Rules: rest, RulesStatPrefix: denyStatPrefix})
	}
	out.filters[filterDeny] = perRouteWith(indexedRBAC(set, denyStatPrefix, dryRunDenyStatPrefix), x.matcher(wire(x.noMatch())))
	return out
}

// allowSet is the same for what lets requests pass: whether the list does is only noted
// before the index, which looks at that where none of its own rules matches.
func (c *Compiler) allowSet(set ruleSet, gateway bool) contents {
	out := contentsOf(set)
	if set.enforced == nil && set.shadow == nil {
		return out
	}
	x, rest := newIndex(set.enforced, c.treeThreshold, set.entries(gateway))
	if x == nil {
		out.enable(filterAllow, httpRBAC(set, allowStatPrefix, dryRunAllowStatPrefix))
		return out
	}
	otherwise := x.noMatch()
	if rest != nil {
		out.enable(filterAllowList, &rbachttpv3.RBAC{ShadowRules: rest, ShadowRulesStatPrefix: allowListStatPrefix})
		noted, _, _ := metadataPredicate(metadata(rbacHTTPMetadata, []string{allowListStatPrefix + shadowResult}, stringValue(exact("allowed"))))
		otherwise = nested(&xdsmatcherv3.Matcher{
			MatcherType: &xdsmatcherv3.Matcher_MatcherList_{MatcherList: &xdsmatcherv3.Matcher_MatcherList{
				Matchers: []*xdsmatcherv3.Matcher_MatcherList_FieldMatcher{{Predicate: noted, OnMatch: onMatch(filterAllowList, rbacv3.RBAC_ALLOW)}},
			}},
			OnNoMatch: otherwise,
		})
	}
	out.filters[filterAllow] = perRouteWith(indexedRBAC(set, allowStatPrefix, dryRunAllowStatPrefix), x.matcher(wire(otherwise)))
	return out
}

// httpRBAC enforces the rules of the set.
func httpRBAC(set ruleSet, prefix, shadowPrefix string) *rbachttpv3.RBAC {
	out := indexedRBAC(set, prefix, shadowPrefix)
	out.Rules = set.enforced
	return out
}

// indexedRBAC has everything of a set but the rules that it enforces.
func indexedRBAC(set ruleSet, prefix, shadowPrefix string) *rbachttpv3.RBAC {
	out := &rbachttpv3.RBAC{}
	if set.enforced != nil {
		out.RulesStatPrefix = prefix
	}
	if set.shadow != nil {
		out.ShadowRules = set.shadow
		out.ShadowRulesStatPrefix = shadowPrefix
	}
	return out
}

func perRoute(rbac *rbachttpv3.RBAC) *rbachttpv3.RBACPerRoute {
	return &rbachttpv3.RBACPerRoute{Rbac: rbac}
}

// noRuleAllows says that there are ALLOW policies and none of them lets the
// request through.
func noRuleAllows(refs []model.Ref) string {
	return policyNames(refs) + " no rule allows"
}

// policyNames names ALLOW policies; where they are what ServiceRoles come to, the
// object that has these enforced.
func policyNames(refs []model.Ref) string {
	if first := refs[0]; first.Kind != "AuthorizationPolicy" {
		return first.ID()
	}
	return "AuthorizationPolicy " + nameList(refs)
}

// maxNames bounds how many policies one text names.
const maxNames = 8

// nameList gives "<namespace>/<name>,..." without kinds.
func nameList(refs []model.Ref) string {
	var names []string
	for i, r := range refs {
		if i == maxNames {
			names = append(names, fmt.Sprintf("and %d more", len(refs)-i))
			break
		}
		names = append(names, r.Namespace+"/"+r.Name)
	}
	return strings.Join(names, ",")
}

// addTCP adds the network filters: CUSTOM, AUDIT, DENY, ALLOW.
func (c *Compiler) addTCP(out *TCP, s selection) error {
	if err := c.addCustomTCP(out, s); err != nil {
		return err
	}
	if err := c.addAccessTCP(out, s.lists); err != nil {
		return err
	}
	for _, group := range []struct {
		name         string
		policies     []*model.AuthorizationPolicy
		action       rbacv3.RBAC_Action
		shadowPrefix string
	}{
		{filterAudit, s.audit, rbacv3.RBAC_LOG, ""},
		{filterDeny, s.deny, rbacv3.RBAC_DENY, dryRunDenyStatPrefix},
		{filterAllow, s.allow, rbacv3.RBAC_ALLOW, dryRunAllowStatPrefix},
	} {
		set, err := c.compileSet(group.policies, group.action, true)
		if err != nil {
			return err
		}
		if set.enforced == nil && set.shadow == nil {
			continue
		}
		filter := &rbactcpv3.RBAC{StatPrefix: "tcp.", Rules: set.enforced, ShadowRules: set.shadow}
		if set.shadow != nil {
			filter.ShadowRulesStatPrefix = group.shadowPrefix
		}
		out.add(group.name, filter)
	}
	return nil
}

func (t *TCP) add(name string, config proto.Message) {
	t.Filters = append(t.Filters, &listenerv3.Filter{
		Name:       name,
		ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: envoy.Any(config)},
	})
}

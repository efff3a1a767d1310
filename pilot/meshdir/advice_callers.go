package meshdir

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	security "istio.io/api/security/v1beta1"

	"github.com/writ-mesh/writ/pilot/condition"
	"github.com/writ-mesh/writ/pilot/model"
)

// unknownCallers: exact identities of the mesh's own trust domain that nothing
// runs as. Wildcards and other trust domains may be about anybody.
func (a *assembler) unknownCallers(c *checker, p *security.AuthorizationPolicy) {
	for i, rule := range p.Rules {
		for _, s := range statements(index("spec.rules", i), rule) {
			for j, v := range s.values {
				if strings.Contains(v, "*") || v == "" {
					continue
				}
				at := index(s.at, j)
				switch s.key {
				case condition.Principal:
					a.unknownPrincipal(c, at, v)
				case condition.ServiceAccount:
					namespace, account, ok := strings.Cut(v, "/")
					if !ok {
						namespace, account = c.object.meta.Namespace, v
					}
					a.unknownAccount(c, at, namespace, account, func(namespace, account string) string {
						return namespace + "/" + account
					})
				case condition.Namespace:
					if _, ok := a.inventory.accounts[v]; !ok {
						c.warnf(at, "nothing runs in namespace %s%s", shorten(v), orElse(nearest(v, slices.Sorted(maps.Keys(a.inventory.accounts)))))
					}
				}
			}
		}
	}
}

// unknownPrincipal looks at <trust domain>/ns/<namespace>/sa/<account>.
func (a *assembler) unknownPrincipal(c *checker, at, value string) {
	if strings.HasPrefix(value, spiffePrefix) {
		return // said already
	}
	domain, _, slash := strings.Cut(value, "/")
	own := append([]string{a.mesh.TrustDomain, domainSuffix}, a.mesh.TrustDomainAliases...)
	if slash && !slices.Contains(own, domain) {
		return
	}
	parts := strings.Split(value, "/")
	if len(parts) != 5 || parts[1] != "ns" || parts[3] != "sa" {
		c.warnf(at, "%q is nobody's identity: a principal is %s/ns/NAMESPACE/sa/ACCOUNT", shorten(value), a.mesh.TrustDomain)
		return
	}
	a.unknownAccount(c, at, parts[2], parts[4], func(namespace, account string) string {
		return domain + "/ns/" + namespace + "/sa/" + account
	})
}

// unknownAccount warns of an account that nothing runs as; write gives the form
// in which one is written here.
func (a *assembler) unknownAccount(c *checker, at, namespace, account string, write func(namespace, account string) string) {
	if slices.Contains(a.inventory.accounts[namespace], account) {
		return
	}
	hint := ""
	if ns, name := a.nearestAccount(namespace, account); name != "" {
		hint = write(ns, name)
	}
	c.warnf(at, "nothing runs as %s%s", whole(write(namespace, account)), orElse(hint))
}

// nearestAccount looks in the namespace, then for the name in others, then in
// the namespace that looks like it.
func (a *assembler) nearestAccount(namespace, account string) (string, string) {
	accounts := a.inventory.accounts
	if near := nearest(account, accounts[namespace]); near != "" {
		return namespace, near
	}
	namespaces := slices.Sorted(maps.Keys(accounts))
	for _, ns := range namespaces {
		if slices.Contains(accounts[ns], account) {
			return ns, account
		}
	}
	ns := nearest(namespace, namespaces)
	return ns, nearest(account, accounts[ns])
}

// whole gives a name that is to be read, or copied, as it is, unless it is no name.
func whole(name string) string {
	if len(name) > 253 {
		return shorten(name)
	}
	return name
}

// orElse ends a sentence with a suggestion, if there is one.
func orElse(suggestion string) string {
	if suggestion == "" {
		return ", so this matches nobody"
	}
	return `, did you mean "` + suggestion + `"?`
}

// callersWithoutIdentity: a caller in plain text has no identity. Where a port
// takes nothing else, conditions on identities never match; where it takes plain
// text as well, "deny A" and "allow all but A" are got round by not using mTLS.
// To allow by identity is right in both. others says that the answer hung on other
// policies.
func (a *assembler) callersWithoutIdentity(c *checker, p *security.AuthorizationPolicy) (others bool) {
	workloads := a.selected(c.object.meta.Namespace, p.Selector.GetMatchLabels())
	// Gateways have no PeerAuthentication, their servers say what they take.
	workloads = slices.DeleteFunc(workloads, func(w workload) bool { return w.Type == model.GatewayProxy })
	for i, rule := range p.Rules {
		at := index("spec.rules", i)
		plain, mtls := portsByMode(a.inventory.modes, workloads, rule)
		all := statements(at, rule)
		first := slices.IndexFunc(all, statement.ofPeer)
		switch {
		case first < 0:
		case len(plain) > 0 && len(mtls) == 0 && !slices.ContainsFunc(plain, func(w withMode) bool { return w.mode != model.Disable }):
			effect := "never matches"
			if all[first].negative {
				effect = "always matches"
			}
			c.warnf(all[first].at, "%s takes plain text only (PeerAuthentication says DISABLE), where no caller has an identity: this %s", workloadNames([]workload{plain[0].workload}), effect)
			return others
		default:
			s, effect := evaded(at, rule, p.Action)
			if effect == "" || len(plain) == 0 {
				continue
			}
			others = true
			i := slices.IndexFunc(plain, func(w withMode) bool { return !a.refusesPlainText(w.workload) })
			if i < 0 {
				continue
			}
			c.warnf(s.at, "%s takes plain text too (mTLS mode %s), where callers have no identity, so %s: set PeerAuthentication to STRICT", workloadNames([]workload{plain[i].workload}), plain[i].mode, effect)
			return others
		}
	}
	return others
}

type withMode struct {
	workload
	mode model.PeerMode
}

// portsByMode sorts the ports that a rule is about: those that take plain text,
// and those that do not.
func portsByMode(modes model.PeerModes, workloads []workload, rule *security.Rule) (plain, mtls []withMode) {
	for _, w := range workloads {
		for _, port := range w.Ports {
			if !ruleHasPort(rule, port.Port) {
				continue
			}
			if m := modes.Of(w.Namespace, w.Labels, port.Port); m == model.Strict {
				mtls = append(mtls, withMode{w, m})
			} else {
				plain = append(plain, withMode{w, m})
			}
		}
	}
	return plain, mtls
}

func ruleHasPort(rule *security.Rule, port uint32) bool {
	holds := func(to *security.Rule_To) bool {
		ports := to.GetOperation().GetPorts()
		return len(ports) == 0 || slices.Contains(ports, strconv.Itoa(int(port)))
	}
	return len(rule.GetTo()) == 0 || slices.ContainsFunc(rule.GetTo(), holds)
}

// evaded finds what a caller without identity gets round in a rule: "" if nothing.
func evaded(at string, rule *security.Rule, action security.AuthorizationPolicy_Action) (statement, string) {
	switch action {
	case security.AuthorizationPolicy_DENY:
		for _, s := range statements(at, rule) {
			if s.ofPeer() && !s.negative {
				return s, "this does not deny them"
			}
		}
	case security.AuthorizationPolicy_ALLOW:
		for i, from := range rule.GetFrom() {
			source := sourceStatements(index(at+".from", i)+".source", from.GetSource())
			all := append(source, whenStatements(at, rule)...)
			if j := slices.IndexFunc(all, statement.ofPeer); j >= 0 && !needsIdentity(all) {
				return all[j], "this allows them"
			}
		}
		all := whenStatements(at, rule)
		if j := slices.IndexFunc(all, statement.ofPeer); j >= 0 && len(rule.GetFrom()) == 0 && !needsIdentity(all) {
			return all[j], "this allows them"
		}
	case security.AuthorizationPolicy_AUDIT, security.AuthorizationPolicy_CUSTOM:
	}
	return statement{}, ""
}

// needsIdentity says that statements which all have to hold never hold for a
// caller without identity.
func needsIdentity(all []statement) bool {
	return slices.ContainsFunc(all, func(s statement) bool { return s.ofPeer() && !s.negative })
}

// refusesPlainText says that the policies of a workload as a whole let nobody in
// without identity: it has ALLOW rules and all of them need one, or a DENY rule
// for whoever has none. Each policy of a workload asks, and the answer is worked out
// once.
func (a *assembler) refusesPlainText(w workload) bool {
	closed, known := a.inventory.closed[w.Proxy]
	if !known {
		closed = a.letsNobodyInUnknown(w)
		a.inventory.closed[w.Proxy] = closed
	}
	return closed
}

func (a *assembler) letsNobodyInUnknown(w workload) bool {
	allows, needed := false, true
	denied := a.inventory.authorizations.some(a.mesh.RootNamespace, w, func(p *model.AuthorizationPolicy) bool {
		if model.DryRun(p) {
			return false
		}
		switch p.Spec.Action {
		case security.AuthorizationPolicy_DENY:
			return slices.ContainsFunc(p.Spec.Rules, deniesNobody)
		case security.AuthorizationPolicy_ALLOW:
			allows = true
			needed = needed && !slices.ContainsFunc(p.Spec.Rules, func(r *security.Rule) bool { return !ruleNeedsIdentity(r) })
		case security.AuthorizationPolicy_AUDIT, security.AuthorizationPolicy_CUSTOM:
		}
		return false
	})
	return denied || allows && needed
}

func ruleNeedsIdentity(rule *security.Rule) bool {
	if needsIdentity(whenStatements("", rule)) {
		return true
	}
	return len(rule.GetFrom()) > 0 && !slices.ContainsFunc(rule.GetFrom(), func(from *security.Rule_From) bool {
		return !needsIdentity(sourceStatements("", from.GetSource()))
	})
}

// deniesNobody is the rule notPrincipals: ["*"], which denies who has no identity.
func deniesNobody(rule *security.Rule) bool {
	return len(rule.GetTo())+len(rule.GetWhen()) == 0 && slices.ContainsFunc(rule.GetFrom(), func(from *security.Rule_From) bool {
		all := sourceStatements("", from.GetSource())
		return len(all) == 1 && all[0].negative && all[0].ofPeer() && slices.Equal(all[0].values, []string{"*"}) && !hasAddresses(from.GetSource())
	})
}

func hasAddresses(s *security.Source) bool {
	return len(s.GetIpBlocks())+len(s.GetNotIpBlocks())+len(s.GetRemoteIpBlocks())+len(s.GetNotRemoteIpBlocks()) > 0
}

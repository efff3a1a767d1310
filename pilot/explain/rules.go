package explain

import (
	"fmt"
	"slices"
	"strings"

	meshv1 "istio.io/api/mesh/v1alpha1"

	"github.com/writ-mesh/writ/pilot/condition"
	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/security/eval"
)

// custom asks the CUSTOM rules. They come before the token is looked at.
func (l *life) custom() error {
	policies := enforced(l.policies.Custom)
	if len(policies) == 0 {
		return nil
	}
	rule, err := l.first(policies, "CUSTOM")
	if err != nil {
		return err
	}
	provider, service := customProvider(l.m, policies)
	s := Step{Name: "CUSTOM", Runs: l.envoy(), Result: Allowed}
	switch {
	case rule == nil:
		s.Detail = "no rule of " + names(policies) + " matches: the provider is not asked"
		l.pass(s)
		return nil
	case l.r.TCP && provider != "" && customIsHTTP(l.m, provider):
		s.Detail = "the provider " + provider + " speaks HTTP and is not asked about connections"
		l.pass(s)
		return nil
	}
	s.By, s.At = ruleName(&rule.Policy.Meta, rule.Index), rulePlace(&rule.Policy.Meta, rule.Index)
	if provider == "" {
		s.Detail = "there is not exactly one usable provider: what the rules match is refused"
		l.refuse(s, 403)
		return nil
	}
	s.Result, s.Runs = Depends, service
	s.Detail = "the provider " + provider + " is asked; what it answers cannot be told"
	l.depends = true
	l.pass(s)
	return nil
}

// customProvider gives the one provider that all policies name, and where it is;
// empty if they name several or one that is not there.
func customProvider(m *model.Mesh, policies []*model.AuthorizationPolicy) (name, service string) {
	name = policies[0].Spec.GetProvider().GetName()
	for _, p := range policies {
		if p.Spec.GetProvider().GetName() != name {
			return "", ""
		}
	}
	found := 0
	for _, e := range m.Config.GetExtensionProviders() {
		if e.GetName() != name {
			continue
		}
		found++
		if g := e.GetEnvoyExtAuthzGrpc(); g != nil {
			service = fmt.Sprintf("%s:%d", g.GetService(), g.GetPort())
		}
		if h := e.GetEnvoyExtAuthzHttp(); h != nil && !takesAllHeaders(h) {
			service = fmt.Sprintf("%s:%d", h.GetService(), h.GetPort())
		}
	}
	if found != 1 || service == "" {
		return "", ""
	}
	return name, service
}

// takesAllHeaders says that one of the provider's lists is "*", by which it is not
// usable.
func takesAllHeaders(h *meshv1.MeshConfig_ExtensionProvider_EnvoyExternalAuthorizationHttpProvider) bool {
	return slices.Contains(slices.Concat(
		h.GetIncludeRequestHeadersInCheck(), h.GetIncludeHeadersInCheck(), //nolint:staticcheck // still read where the newer field is empty
		h.GetHeadersToUpstreamOnAllow(), h.GetHeadersToDownstreamOnAllow(), h.GetHeadersToDownstreamOnDeny(),
	), "*")
}

func customIsHTTP(m *model.Mesh, name string) bool {
	for _, e := range m.Config.GetExtensionProviders() {
		if e.GetName() == name && e.GetEnvoyExtAuthzHttp() != nil {
			return true
		}
	}
	return false
}

// audit names the AUDIT rules and dry runs that match.
func (l *life) audit() error {
	all := slices.Concat(l.policies.Audit, dryRuns(l.policies.Deny), dryRuns(l.policies.Allow))
	for _, p := range all {
		rules, err := l.d.Compiled.Rules(l.domains(), p, l.r.TCP)
		if err != nil {
			return err
		}
		for _, r := range rules {
			if r.Match(&l.r) {
				what := p.Spec.GetAction().String()
				if model.DryRun(p) {
					what += ", dry run"
				}
				l.pass(Step{Name: "AuthorizationPolicy", Result: recorded, Runs: l.envoy(), By: ruleName(&p.Meta, r.Index), At: rulePlace(&p.Meta, r.Index), Detail: what})
				break
			}
		}
	}
	return nil
}

func (l *life) deny() error {
	policies := enforced(l.policies.Deny)
	if len(policies) == 0 {
		return nil
	}
	rule, err := l.first(policies, "DENY")
	if err != nil {
		return err
	}
	s := Step{Name: "AuthorizationPolicy DENY", Runs: l.envoy(), Result: Allowed, Detail: "no rule of " + names(policies) + " matches"}
	if rule == nil {
		l.pass(s)
		return nil
	}
	s.By, s.At, s.Detail = ruleName(&rule.Policy.Meta, rule.Index), rulePlace(&rule.Policy.Meta, rule.Index), "it matches"
	l.refuse(s, 403)
	return nil
}

func (l *life) allow() error {
	policies := enforced(l.policies.Allow)
	s := Step{Name: "AuthorizationPolicy ALLOW", Runs: l.envoy(), Result: Allowed, Detail: "no ALLOW policy applies: what is not refused passes"}
	if len(policies) == 0 {
		l.pass(s)
		l.by = "no ALLOW policy applies"
		return nil
	}
	rule, err := l.first(policies, "ALLOW")
	if err != nil {
		return err
	}
	if rule == nil {
		s.By, s.At, s.Detail = nobodyAllows(policies), place(policies[0].Ref), "there are ALLOW policies, and none of their rules matches"
		l.refuse(s, 403)
		return nil
	}
	s.By, s.At, s.Detail = ruleName(&rule.Policy.Meta, rule.Index), rulePlace(&rule.Policy.Meta, rule.Index), "it matches"
	l.by, l.at = s.By, s.At
	l.pass(s)
	return nil
}

// nobodyAllows names ALLOW policies of which no rule matches; where they are what
// ServiceRoles come to, the object that has these enforced.
func nobodyAllows(policies []*model.AuthorizationPolicy) string {
	if first := policies[0]; first.Kind != "AuthorizationPolicy" {
		return first.ID() + " no rule allows"
	}
	return "AuthorizationPolicy " + names(policies) + " no rule allows"
}

// maxNames is how many policies a refusal names, as the header of Envoy's does.
const maxNames = 8

func names(policies []*model.AuthorizationPolicy) string {
	var out []string
	for i, p := range policies {
		if i == maxNames {
			out = append(out, fmt.Sprintf("and %d more", len(policies)-i))
			break
		}
		out = append(out, p.Namespace+"/"+p.Name)
	}
	return strings.Join(out, ",")
}

func enforced(policies []*model.AuthorizationPolicy) []*model.AuthorizationPolicy {
	return slices.DeleteFunc(slices.Clone(policies), model.DryRun)
}

func dryRuns(policies []*model.AuthorizationPolicy) []*model.AuthorizationPolicy {
	return slices.DeleteFunc(slices.Clone(policies), func(p *model.AuthorizationPolicy) bool { return !model.DryRun(p) })
}

// first finds the rule that matches, and notes those that one condition keeps from it.
func (l *life) first(policies []*model.AuthorizationPolicy, action string) (*eval.Rule, error) {
	var found *eval.Rule
	for _, p := range policies {
		rules, err := l.d.Compiled.Rules(l.domains(), p, l.r.TCP)
		if err != nil {
			return nil, err
		}
		for _, r := range rules {
			if r.Match(&l.r) {
				if found == nil {
					found = r
				}
				continue
			}
			l.nearly(r, action)
		}
	}
	return found, nil
}

func (l *life) nearly(r *eval.Rule, action string) {
	n := Near{Action: action, Rule: ruleName(&r.Policy.Meta, r.Index), At: rulePlace(&r.Policy.Meta, r.Index), Runs: l.envoy()}
	failed := r.Failed(&l.r)
	switch {
	case r.Never != "" && len(failed) == 0:
		n.Field, n.Wants, n.Has = r.Never, "an HTTP request", "a connection of which no request is seen"
	case r.Never == "" && len(failed) == 1:
		c := failed[0]
		n.Field, n.Wants, n.Has = c.Where, strings.Join(c.Values, " or "), l.has(c.Key)
		if c.Negated {
			n.Wants = "none of " + strings.Join(c.Values, ", ")
		}
	default:
		return
	}
	l.near = append(l.near, n)
}

// has tells what the request has where a condition looks.
func (l *life) has(key string) string {
	r := &l.r
	var text string
	switch key {
	case eval.HostKey, eval.AnyFormHostKey:
		text = r.Host
	case eval.MethodKey:
		text = r.Method
	case eval.PathKey:
		text = r.Path
	case condition.Port:
		return fmt.Sprint(r.DestinationPort)
	case condition.DestinationIP:
		return r.Destination.String()
	case condition.SourceIP:
		return r.Source.String()
	case condition.RemoteIP:
		return r.Remote.String()
	case condition.SNI:
		text = r.SNI
	case condition.Principal, condition.Namespace, condition.ServiceAccount, condition.TrustDomain:
		text = r.Principal
		if text == "" {
			return "no identity"
		}
	default:
		return l.hasMore(key)
	}
	if text == "" {
		return "nothing"
	}
	return text
}

func (l *life) hasMore(key string) string {
	k, name, _ := condition.Find(key)
	switch k.Name {
	case condition.Headers:
		lines := l.r.Header(name)
		if lines == nil {
			return "no such header"
		}
		if strings.EqualFold(name, "authorization") || strings.EqualFold(name, "cookie") {
			return "another value" // it is a secret
		}
		return fmt.Sprintf("%q", strings.Join(lines, ","))
	case condition.EnvoyFilters:
		return "what other filters leave, which is not known here"
	}
	if l.r.Claims == nil {
		return "no token"
	}
	at := map[string]string{condition.Audiences: "aud", condition.Presenter: "azp", condition.Claims: name}[k.Name]
	if k.Name == condition.TokenPrincipal {
		return fmt.Sprintf("%v/%v", l.r.Claims["iss"], l.r.Claims["sub"])
	}
	if v := eval.Claim(l.r.Claims, at); v != nil {
		return fmt.Sprint(v)
	}
	return "no such claim"
}

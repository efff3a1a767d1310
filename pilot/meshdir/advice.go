package meshdir

import (
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	security "istio.io/api/security/v1beta1"

	"github.com/writ-mesh/writ/pilot/condition"
	"github.com/writ-mesh/writ/pilot/model"
)

// advise warns of what Istio accepts and what is probably not what was meant. A
// warning that is often wrong makes all of them unread: where a second reading
// of the object makes sense, nothing is said. What was said of policies before is said
// again.
func (a *assembler) advise(before map[*object][]Problem) {
	known := a.known()
	if known {
		a.inventory = a.takeInventory()
	}
	for _, o := range a.objects["AuthorizationPolicy"] {
		a.reportOnce(before, a.kept.advice, o, func(c *checker) (others bool) {
			p := o.spec.(*security.AuthorizationPolicy)
			c.valuesThatNeverMatch(p)
			c.emptyRules(p)
			if !known || slices.ContainsFunc(a.selected(o.meta.Namespace, p.Selector.GetMatchLabels()), a.servesTCP) {
				c.deniedOnTCP(p)
			}
			if known {
				a.unknownCallers(c, p)
				a.tokensNotLookedAt(c, p)
				others = a.callersWithoutIdentity(c, p)
			}
			return others
		})
	}
	if !a.broken() {
		a.conflicts()
	}
	if !known {
		return
	}
	a.severalSidecars()
	for kind, check := range map[string]func(*checker){
		"RequestAuthentication": a.tokensNotRequired,
		"Service":               a.deadServicePorts,
		"VirtualService":        a.hostsOfNobody,
		"DestinationRule":       a.subsetsOfNobody,
		"ServiceEntry":          a.rangesByName,
		"ServiceRoleBinding":    a.subjectsOfNobody,
		"RegoPolicy":            a.requestsOnTCP,
	} {
		for _, o := range a.objects[kind] {
			a.report(o, check)
		}
	}
}

// statement is one list of values of a rule: of a source, or of a condition.
type statement struct {
	at string
	// key is that of the condition; the fields of sources are conditions too.
	key      string
	values   []string
	negative bool
}

// sourceStatements lists what a source says of the caller's identity and token.
func sourceStatements(at string, s *security.Source) []statement {
	var out []statement
	add := func(field, key string, values []string, negative bool) {
		if len(values) > 0 {
			out = append(out, statement{at + field, key, values, negative})
		}
	}
	add(".principals", condition.Principal, s.GetPrincipals(), false)
	add(".notPrincipals", condition.Principal, s.GetNotPrincipals(), true)
	add(".namespaces", condition.Namespace, s.GetNamespaces(), false)
	add(".notNamespaces", condition.Namespace, s.GetNotNamespaces(), true)
	add(".serviceAccounts", condition.ServiceAccount, s.GetServiceAccounts(), false)
	add(".notServiceAccounts", condition.ServiceAccount, s.GetNotServiceAccounts(), true)
	add(".trustDomains", condition.TrustDomain, s.GetTrustDomains(), false)
	add(".notTrustDomains", condition.TrustDomain, s.GetNotTrustDomains(), true)
	add(".requestPrincipals", condition.TokenPrincipal, s.GetRequestPrincipals(), false)
	add(".notRequestPrincipals", condition.TokenPrincipal, s.GetNotRequestPrincipals(), true)
	return out
}

// whenStatements lists what the conditions of a rule say.
func whenStatements(at string, rule *security.Rule) []statement {
	var out []statement
	for i, when := range rule.GetWhen() {
		place := index(at+".when", i)
		key, _, ok := condition.Find(when.GetKey())
		if ok {
			out = append(out, statement{place + ".values", key.Name, when.GetValues(), false}, statement{place + ".notValues", key.Name, when.GetNotValues(), true})
		}
	}
	return given(out)
}

func given(list []statement) []statement {
	return slices.DeleteFunc(list, func(s statement) bool { return len(s.values) == 0 })
}

// statements lists all of a rule.
func statements(at string, rule *security.Rule) []statement {
	var out []statement
	for i, from := range rule.GetFrom() {
		out = append(out, sourceStatements(index(at+".from", i)+".source", from.GetSource())...)
	}
	return append(out, whenStatements(at, rule)...)
}

// ofPeer says that the statement is about the identity in the caller's certificate.
func (s statement) ofPeer() bool {
	return slices.Contains([]string{condition.Principal, condition.Namespace, condition.ServiceAccount, condition.TrustDomain}, s.key)
}

// ofToken says that it is about the request's token.
func (s statement) ofToken() bool {
	return slices.Contains([]string{condition.TokenPrincipal, condition.Audiences, condition.Presenter, condition.Claims}, s.key)
}

func isToken(s statement) bool { return s.ofToken() }

// valuesThatNeverMatch: identities with a scheme, methods in lower case, paths
// that begin with a name.
func (c *checker) valuesThatNeverMatch(p *security.AuthorizationPolicy) {
	for i, rule := range p.Rules {
		at := index("spec.rules", i)
		for _, s := range statements(at, rule) {
			for j, v := range s.values {
				if rest, ok := strings.CutPrefix(v, spiffePrefix); ok && s.key == condition.Principal {
					c.warnf(index(s.at, j), "a principal has no scheme, so this matches nobody: write %q", whole(rest))
				}
			}
		}
		for j, to := range rule.To {
			place, o := index(at+".to", j)+".operation", to.Operation
			c.methods(place+".methods", o.GetMethods())
			c.methods(place+".notMethods", o.GetNotMethods())
			c.paths(place+".paths", o.GetPaths())
			c.paths(place+".notPaths", o.GetNotPaths())
		}
		for j, when := range rule.When {
			if strings.EqualFold(when.Key, "request.headers[:method]") {
				c.methods(index(at+".when", j)+".values", when.Values)
				c.methods(index(at+".when", j)+".notValues", when.NotValues)
			}
		}
	}
}

const spiffePrefix = "spiffe://"

func (c *checker) methods(at string, values []string) {
	known := []string{"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"}
	for i, v := range values {
		if upper := strings.ToUpper(v); upper != v && slices.Contains(known, upper) {
			c.warnf(index(at, i), "methods are compared with their case, so %q matches no request: write %q", v, upper)
		}
	}
}

func (c *checker) paths(at string, values []string) {
	for i, v := range values {
		if v != "" && !strings.HasPrefix(v, "/") && !strings.HasPrefix(v, "*") {
			c.warnf(index(at, i), "a path begins with \"/\", so %q matches no request: write %q", whole(v), whole("/"+v))
		}
	}
}

// emptyRules: a rule that says nothing holds for every request. Alone it is
// Istio's way to say "all"; beside others it makes them void, as one dash too
// many does.
func (c *checker) emptyRules(p *security.AuthorizationPolicy) {
	effects := map[security.AuthorizationPolicy_Action]string{
		security.AuthorizationPolicy_ALLOW: "allows every request", security.AuthorizationPolicy_DENY: "denies every request",
	}
	effect, ok := effects[p.Action]
	if !ok || len(p.Rules) < 2 {
		return
	}
	for i, rule := range p.Rules {
		if len(rule.GetFrom())+len(rule.GetTo())+len(rule.GetWhen()) == 0 {
			c.warnf(index("spec.rules", i), "an empty rule %s, whatever the others say: remove it, or the others", effect)
		}
	}
}

// tokensNotLookedAt: without a RequestAuthentication no request has a token as
// far as policies go.
func (a *assembler) tokensNotLookedAt(c *checker, p *security.AuthorizationPolicy) {
	workloads := a.selected(c.object.meta.Namespace, p.Selector.GetMatchLabels())
	if len(workloads) == 0 || slices.ContainsFunc(workloads, a.readsTokens) {
		return
	}
	for i, rule := range p.Rules {
		all := statements(index("spec.rules", i), rule)
		if j := slices.IndexFunc(all, isToken); j >= 0 {
			effect := "never matches"
			if all[j].negative {
				effect = "matches every request"
			}
			c.warnf(all[j].at, "no RequestAuthentication is for %s, so no token is looked at and this %s: write one", workloadNames(workloads), effect)
			return
		}
	}
}

func (a *assembler) readsTokens(w workload) bool {
	return a.inventory.authentications.some(a.mesh.RootNamespace, w, func(r *model.RequestAuthentication) bool { return len(r.Spec.JwtRules) > 0 })
}

// tokensNotRequired: a RequestAuthentication refuses bad tokens and lets requests
// without one pass, which Istio's users learn late.
func (a *assembler) tokensNotRequired(c *checker) {
	r := c.object.spec.(*security.RequestAuthentication)
	workloads := a.selected(c.object.meta.Namespace, r.Selector.GetMatchLabels())
	if v := c.object.meta.Annotations[model.RequireAnnotation]; v == model.RequireAny || v == model.RequireAll || v == model.RequireObserve {
		return
	}
	if len(r.JwtRules) == 0 || len(workloads) == 0 || slices.ContainsFunc(r.JwtRules, handsOn) || slices.ContainsFunc(workloads, a.usesTokens) {
		return
	}
	c.warnf("spec.jwtRules", "a request without a token still passes: require one with an AuthorizationPolicy that has requestPrincipals")
}

// handsOn says that the token, or what it says, is for somebody else to judge.
func handsOn(r *security.JWTRule) bool {
	return r.ForwardOriginalToken || r.OutputPayloadToHeader != "" || len(r.OutputClaimToHeaders) > 0
}

// usesTokens says that something decides by the tokens of requests to a workload.
func (a *assembler) usesTokens(w workload) bool {
	if a.inventory.authorizations.some(a.mesh.RootNamespace, w, func(p *model.AuthorizationPolicy) bool {
		return p.Spec.Action == security.AuthorizationPolicy_CUSTOM ||
			slices.ContainsFunc(p.Spec.Rules, func(rule *security.Rule) bool { return slices.ContainsFunc(statements("", rule), isToken) })
	}) {
		return true
	}
	for _, p := range a.mesh.RegoPolicies {
		if a.selects(p.Namespace, p.Selector, w) {
			return true
		}
	}
	for _, p := range a.mesh.QuotaPolicies {
		asks := slices.ContainsFunc(p.Match, func(m model.QuotaMatch) bool { return len(m.Claims) > 0 })
		for _, l := range p.Limits {
			asks = asks || slices.ContainsFunc(l.Per, func(d model.Dimension) bool { return d.Kind == condition.Claims })
		}
		if asks && a.selects(p.Namespace, p.Selector, w) {
			return true
		}
	}
	return slices.ContainsFunc(a.mesh.VirtualServices, func(vs *model.VirtualService) bool { return routesByClaims(vs.Spec) })
}

func routesByClaims(vs *networking.VirtualService) bool {
	for _, r := range vs.Http {
		for _, m := range r.Match {
			for name := range m.GetHeaders() {
				if strings.HasPrefix(name, "@request.auth.claims") {
					return true
				}
			}
		}
	}
	return false
}

// workloadNames names a few of them.
func workloadNames(list []workload) string {
	var names []string
	for _, w := range list {
		names = append(names, w.Namespace+"/"+w.Name)
	}
	slices.Sort(names)
	if names = slices.Compact(names); len(names) > 2 {
		return names[0] + " and others"
	}
	return strings.Join(names, " and ")
}

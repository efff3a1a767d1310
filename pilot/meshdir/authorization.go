package meshdir

import (
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	security "istio.io/api/security/v1beta1"

	"github.com/writ-mesh/writ/pilot/condition"
	"github.com/writ-mesh/writ/pilot/model"
)

// checkAuthorizationPolicy follows the rules of Istio's validation of the kind.
func checkAuthorizationPolicy(c *checker) {
	p := c.object.spec.(*security.AuthorizationPolicy)
	c.policyTarget(p.Selector, p.TargetRef, p.TargetRefs)
	custom := p.Action == security.AuthorizationPolicy_CUSTOM
	switch {
	case custom && len(p.Rules) == 0:
		c.errorf("spec.rules", "a CUSTOM policy without rules never asks: write an empty rule {} to ask for every request")
	case custom && p.GetProvider().GetName() == "":
		c.errorf("spec.provider.name", "a CUSTOM policy needs a provider: name one of extensionProviders in mesh.yaml")
	case !custom && p.GetProvider() != nil:
		c.errorf("spec.provider", "is for action CUSTOM only")
	case p.Action == security.AuthorizationPolicy_DENY && len(p.Rules) == 0:
		c.errorf("spec.rules", "a DENY policy without rules never denies: write an empty rule {} to deny every request")
	}
	c.dryRun(p.Action)
	for i, rule := range p.Rules {
		c.authorizationRule(index("spec.rules", i), rule, p.Action)
	}
}

func (c *checker) dryRun(action security.AuthorizationPolicy_Action) {
	value, ok := c.object.meta.Annotations[model.DryRunAnnotation]
	if !ok {
		return
	}
	at := "metadata.annotations[" + model.DryRunAnnotation + "]"
	if action != security.AuthorizationPolicy_ALLOW && action != security.AuthorizationPolicy_DENY {
		c.errorf(at, "is for actions ALLOW and DENY only")
	}
	if _, err := strconv.ParseBool(value); err != nil {
		c.errorf(at, "%q is neither \"true\" nor \"false\"", shorten(value))
	}
}

func (c *checker) authorizationRule(at string, rule *security.Rule, action security.AuthorizationPolicy_Action) {
	for name, n := range map[string]int{"from": len(rule.From), "to": len(rule.To)} {
		if node := get(c.node(at), name); node != nil && n == 0 && !isNull(node) {
			c.errorf(at+"."+name, "is empty: remove it, or name whom it is about")
		}
	}
	for i, from := range rule.From {
		place := index(at+".from", i) + ".source"
		if from.Source == nil {
			c.errorf(place, "a source is missing")
			continue
		}
		c.source(place, from.Source, action)
	}
	for i, to := range rule.To {
		place := index(at+".to", i) + ".operation"
		if to.Operation == nil {
			c.errorf(place, "an operation is missing")
			continue
		}
		c.operation(place, to.Operation)
	}
	for i, when := range rule.When {
		c.condition(index(at+".when", i), when, action)
	}
}

// node finds where a path is written.
func (r *report) node(path string) *yaml.Node {
	value := r.root
	for path != "" && value != nil {
		var segment string
		segment, path = cutSegment(path)
		_, value = child(value, segment)
	}
	return value
}

func (c *checker) source(at string, s *security.Source, action security.AuthorizationPolicy_Action) {
	identities := map[string][]string{
		"principals": s.Principals, "notPrincipals": s.NotPrincipals, "requestPrincipals": s.RequestPrincipals, "notRequestPrincipals": s.NotRequestPrincipals,
		"namespaces": s.Namespaces, "notNamespaces": s.NotNamespaces, "serviceAccounts": s.ServiceAccounts, "notServiceAccounts": s.NotServiceAccounts,
		"trustDomains": s.TrustDomains, "notTrustDomains": s.NotTrustDomains,
	}
	addresses := map[string][]string{
		"ipBlocks": s.IpBlocks, "notIpBlocks": s.NotIpBlocks, "remoteIpBlocks": s.RemoteIpBlocks, "notRemoteIpBlocks": s.NotRemoteIpBlocks,
	}
	total := 0
	for name, values := range identities {
		total += len(values)
		c.noEmpty(at+"."+name, values)
		if len(values) > 0 && action == security.AuthorizationPolicy_CUSTOM {
			c.errorf(at+"."+name, "cannot be used with action CUSTOM: identities are not known yet when the provider is asked")
		}
	}
	for name, values := range addresses {
		total += len(values)
		for i, v := range values {
			c.network(index(at+"."+name, i), v)
		}
	}
	if total == 0 {
		c.errorf(at, "the source is empty: name whom it is about")
	}
	if len(s.Principals)+len(s.NotPrincipals)+len(s.Namespaces)+len(s.NotNamespaces) > 0 && len(s.ServiceAccounts)+len(s.NotServiceAccounts) > 0 {
		c.errorf(at+".serviceAccounts", "cannot go with principals or namespaces: write two sources")
	}
	c.serviceAccounts(at+".serviceAccounts", s.ServiceAccounts)
	c.serviceAccounts(at+".notServiceAccounts", s.NotServiceAccounts)
	c.trustDomains(at+".trustDomains", s.TrustDomains)
	c.trustDomains(at+".notTrustDomains", s.NotTrustDomains)
}

func (c *checker) serviceAccounts(at string, values []string) {
	if len(values) > 16 {
		c.errorf(at, "more than 16 service accounts: write several sources")
	}
	for i, v := range values {
		parts := strings.Split(v, "/")
		if len(v) > 320 || len(parts) > 2 || slices.Contains(parts, "") || strings.Contains(v, "*") {
			c.errorf(index(at, i), "%q is not serviceAccount or namespace/serviceAccount (wildcards are not allowed)", shorten(v))
		}
	}
}

func (c *checker) trustDomains(at string, values []string) {
	c.wildcards(at, values)
	for i, v := range values {
		if strings.Contains(v, "/") {
			c.errorf(index(at, i), "%q is not a trust domain: it has a /", shorten(v))
		}
	}
}

// wildcards: one * at the beginning or the end.
func (c *checker) wildcards(at string, values []string) {
	for i, v := range values {
		c.wildcard(index(at, i), v)
	}
}

func (c *checker) wildcard(at, v string) {
	if n := strings.Count(v, "*"); n > 1 || n == 1 && !strings.HasPrefix(v, "*") && !strings.HasSuffix(v, "*") {
		c.errorf(at, "%q: one * at the beginning or at the end is allowed", shorten(v))
	}
}

func (c *checker) operation(at string, o *security.Operation) {
	all := map[string][]string{
		"ports": o.Ports, "notPorts": o.NotPorts, "methods": o.Methods, "notMethods": o.NotMethods,
		"paths": o.Paths, "notPaths": o.NotPaths, "hosts": o.Hosts, "notHosts": o.NotHosts,
	}
	total := 0
	for name, values := range all {
		total += len(values)
		if name != "ports" && name != "notPorts" {
			c.noEmpty(at+"."+name, values)
		}
	}
	if total == 0 {
		c.errorf(at, "the operation is empty: name what it is about")
	}
	c.portTexts(at+".ports", o.Ports)
	c.portTexts(at+".notPorts", o.NotPorts)
	c.pathTemplates(at+".paths", o.Paths)
	c.pathTemplates(at+".notPaths", o.NotPaths)
}

func (c *checker) portTexts(at string, ports []string) {
	for i, p := range ports {
		if n, err := strconv.ParseUint(p, 10, 32); err != nil || n > 65535 {
			c.errorf(index(at, i), "%q is not a port from 0 to 65535", shorten(p))
		}
	}
}

// pathSegment is what may stand between the slashes of a template: pchar of RFC
// 3986 without "*".
var pathSegment = regexp.MustCompile(`^[a-zA-Z0-9\-._~%!$&'()+,;:@=]+$`)

// pathTemplates checks {*} (one segment) and {**} (the rest, last).
func (c *checker) pathTemplates(at string, paths []string) {
	for i, p := range paths {
		if problem := templateProblem(p); problem != "" {
			c.errorf(index(at, i), "%q: %s", shorten(p), problem)
		}
	}
}

func templateProblem(p string) string {
	template := strings.Contains(p, "{*}") || strings.Contains(p, "{**}")
	rest := false
	if template && (!strings.HasPrefix(p, "/") || strings.HasPrefix(p, "//")) {
		return "with a template the path begins with one /" // it could match nothing
	}
	for segment := range strings.SplitSeq(strings.Trim(p, "/"), "/") {
		switch {
		case segment == "{*}" || segment == "{**}":
			if rest {
				return "{**} must be the last template"
			}
			rest = segment == "{**}"
		case strings.ContainsAny(segment, "{}"):
			return "{ and } are allowed only in the templates {*} and {**}, which stand for whole segments"
		case template && !pathSegment.MatchString(segment):
			return "with a template the other segments must be plain text, without *"
		}
	}
	return ""
}

func (c *checker) condition(at string, when *security.Condition, action security.AuthorizationPolicy_Action) {
	key, _, ok := condition.Find(when.Key)
	if !ok {
		c.errorf(at+".key", "%s", conditionKeyProblem(when.Key))
		return
	}
	if action == security.AuthorizationPolicy_CUSTOM && key.Identity {
		c.errorf(at+".key", "%s cannot be used with action CUSTOM: identities are not known yet when the provider is asked", when.Key)
	}
	if len(when.Values)+len(when.NotValues) == 0 {
		c.errorf(at, "give values, notValues or both")
	}
	c.conditionValues(at+".values", key.Values, when.Values)
	c.conditionValues(at+".notValues", key.Values, when.NotValues)
}

// conditionKeyProblem says what is wrong with a key that is not in the table.
func conditionKeyProblem(key string) string {
	switch name, _, _ := strings.Cut(key, "["); name {
	case "":
		return "a key is missing"
	case "destination.namespace":
		return "destination.namespace is replaced by metadata.namespace of the policy"
	case "destination.labels":
		return "destination.labels is replaced by the selector of the policy"
	case "destination.name", "destination.user":
		return name + " was dropped with v1alpha1: use the selector of the policy"
	}
	if row, _, _ := condition.Find(key); row.Name != "" {
		return key + " needs a name in brackets: " + row.Example
	}
	var known []string
	for _, k := range condition.Keys() {
		known = append(known, k.Example)
	}
	return "unknown key " + strconv.Quote(shorten(key)) + didYouMean(key, known)
}

func (c *checker) conditionValues(at string, form condition.Form, values []string) {
	c.noEmpty(at, values)
	switch form {
	case condition.Text:
	case condition.Networks:
		for i, v := range values {
			c.network(index(at, i), v)
		}
	case condition.Ports:
		c.portTexts(at, values)
	case condition.Accounts:
		c.serviceAccounts(at, values)
	case condition.Domains:
		c.wildcards(at, values)
	}
}

package security

import (
	"regexp"
	"strings"

	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
)

// namesOf is what the namespaces and service accounts of a rule are of. In a mesh that
// accepts other trust domains, whose namespaces may have the same names, they are
// names of the mesh where they let somebody in, and of any trust domain where they keep
// somebody out: namespaces of ALLOW, notNamespaces of DENY, against the other way round.
func (r ruleCompiler) namesOf(negated bool) trustDomainPattern {
	if len(r.federated) == 0 || r.closed != negated {
		return ""
	}
	return ownDomains(r.trustDomains)
}

// trustDomainPattern is a regular expression for the beginning of SPIFFE IDs; empty is
// for those of any trust domain.
type trustDomainPattern string

// ownDomains is for the trust domains of the mesh. Their names have letters, digits,
// '-', '_' and '.'.
func ownDomains(trustDomains []string) trustDomainPattern {
	return trustDomainPattern(spiffeScheme + "(?:" + strings.ReplaceAll(strings.Join(trustDomains, "|"), ".", "[.]") + ")")
}

// or gives the pattern, or for any trust domain what stands for that.
func (p trustDomainPattern) or(anyOf string) string {
	if p == "" {
		return anyOf
	}
	return string(p)
}

// quotaNamespace takes the namespace, written with these characters, out of the
// caller's SPIFFE ID. Callers of other trust domains than ours are together in the quota
// of those without a namespace. The names of trust domains are not in the expression:
// Envoy takes small ones only there, see maxProgram.
func (c *Compiler) quotaNamespace(characters string) string {
	var domains []string
	if len(c.mesh.FederatedDomains) > 0 {
		for _, d := range c.trustDomains {
			domains = append(domains, peerSAN+".startsWith("+celString(spiffeScheme+d+"/")+")")
		}
	}
	return spiffePart("^"+spiffeScheme+"[^/]+/ns/("+characters+"+)/.*$", domains...)
}

func peerNamespace(of trustDomainPattern, value string) *matcherv3.StringMatcher {
	parts := strings.Split(value, "*")
	for i, p := range parts {
		parts[i] = regexp.QuoteMeta(p)
	}
	return regex(of.or(".*") + "/ns/" + strings.Join(parts, ".*") + "/.*")
}

// peerServiceAccount matches "name", in the policy's namespace, or "namespace/name".
func peerServiceAccount(of trustDomainPattern, policyNamespace, value string) *matcherv3.StringMatcher {
	ns, sa, ok := strings.Cut(value, "/")
	if !ok {
		ns, sa = policyNamespace, value
	}
	// Further path segments may stand between and after, not parts of a name.
	return regex(of.or(spiffeScheme+".+") + "/ns/" + regexp.QuoteMeta(ns) + "/(.+/|)sa/" + regexp.QuoteMeta(sa) + "(/.+)?")
}

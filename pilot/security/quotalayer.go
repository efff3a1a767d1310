package security

import (
	"regexp"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	setcommonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	exprv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/rate_limit_descriptors/expr/v3"

	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/security/eval"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

// quotaSpeaks begins the names in the filter state of the policies that speak of a
// request. What a request is like is looked at once, before a route changes its path or
// host, and all that asks about its quotas then and when it is over agrees.
const quotaSpeaks = "writ.quota.speaks."

// quotaLimit is a limit in front of a proxy, with the requests that it counts.
type quotaLimit struct {
	eval.CountedLimit
	model.QuotaLimit
	// condition is an expression that is true of these requests; empty for all.
	condition string
}

// quotaLimits gives the limits that count any request at all, and the values in the
// filter state that their conditions ask for.
func (c *Compiler) quotaLimits(policies []*model.QuotaPolicy) ([]quotaLimit, []*setcommonv3.FilterStateValue) {
	var out []quotaLimit
	asked := map[*model.QuotaPolicy]bool{}
	speaks := func(pol *model.QuotaPolicy) string {
		if len(pol.Match) == 0 {
			return always
		}
		asked[pol] = true
		return celString(speaksKey(pol)) + " in filter_state"
	}
	for _, counted := range eval.Layers(c.mesh.RootNamespace, policies) {
		condition := quotaCondition(counted, speaks)
		if condition == never {
			continue
		}
		if condition == always {
			condition = ""
		}
		out = append(out, quotaLimit{CountedLimit: counted, QuotaLimit: counted.Policy.Limits[counted.Index], condition: condition})
	}
	var values []*setcommonv3.FilterStateValue
	for _, pol := range policies {
		if asked[pol] {
			values = append(values, c.speaksValue(pol))
		}
	}
	return out, values
}

// always and never are expressions that need not be asked.
const (
	always = "true"
	never  = "false"
)

// quotaCondition says of which requests a limit counts, in terms of which policies speak
// of them.
func quotaCondition(l eval.CountedLimit, speaks func(*model.QuotaPolicy) string) string {
	terms := []string{speaks(l.Policy)}
	for _, t := range l.Takers {
		taken := []string{speaks(t.Policy)}
		for _, pol := range t.Unless {
			taken = append(taken, celNot(speaks(pol)))
		}
		terms = append(terms, celNot(celAll(taken)))
	}
	return celAll(terms)
}

func celAll(terms []string) string {
	var out []string
	for _, t := range terms {
		switch t {
		case never:
			return never
		case always:
		default:
			out = append(out, t)
		}
	}
	if len(out) == 0 {
		return always
	}
	return strings.Join(out, " && ")
}

// celAny is never without terms. It is in parentheses unless it is one of the words.
func celAny(terms []string) string {
	var out []string
	for _, t := range terms {
		switch t {
		case always:
			return always
		case never:
		default:
			out = append(out, t)
		}
	}
	if len(out) == 0 {
		return never
	}
	return "(" + strings.Join(out, " || ") + ")"
}

func celNot(term string) string {
	switch term {
	case always:
		return never
	case never:
		return always
	}
	return "!(" + term + ")"
}

func speaksKey(pol *model.QuotaPolicy) string { return quotaSpeaks + pol.Namespace + "/" + pol.Name }

// speaksValue is in the filter state of the requests that a policy speaks of, and of no
// others.
func (c *Compiler) speaksValue(pol *model.QuotaPolicy) *setcommonv3.FilterStateValue {
	var matches []string
	for i := range pol.Match {
		matches = append(matches, "("+c.quotaMatch(&pol.Match[i])+")")
	}
	return keep(speaksKey(pol), strings.Join(matches, " || ")+" ? '1' : ''")
}

// formatted is the command of a format for an expression, in whose texts no sign can end
// the command.
func formatted(expression string) string {
	return "%CEL(" + strings.ReplaceAll(expression, "%", `\x25`) + ")%"
}

// quotaMatch is true of the requests that a match fits.
func (c *Compiler) quotaMatch(m *model.QuotaMatch) string {
	var all []string
	add := func(values []string, compare func(string) []string) {
		var terms []string
		for _, v := range values {
			terms = append(terms, compare(v)...)
		}
		if len(terms) > 0 {
			all = append(all, "("+strings.Join(terms, " || ")+")")
		}
	}
	if len(m.Principals)+len(m.Namespaces) > 0 {
		all = append(all, "connection.mtls")
	}
	add(m.Principals, c.celPrincipal)
	add(m.Namespaces, func(ns string) []string {
		var out []string
		for _, td := range c.trustDomains {
			out = append(out, peerSAN+".startsWith("+celString(spiffeScheme+td+"/ns/"+ns+"/sa/")+")")
		}
		return out
	})
	add(m.Hosts, func(v string) []string { return []string{"request.host.matches(" + celString(hostExpression(v)) + ")"} })
	add(m.Methods, func(v string) []string { return []string{"request.method == " + celString(v)} })
	add(m.Paths, func(v string) []string { return []string{celPath(v)} })
	for _, claim := range m.Claims {
		all = append(all, celClaim(claim))
	}
	return strings.Join(all, " && ")
}

// celClaim compares a claim of the verified token: a text, or a list of them. What else
// it may be makes the expression fail, and the match does not fit.
func celClaim(claim model.QuotaClaim) string {
	tests, value := claimSteps(eval.ClaimNames(claim.Name))
	var texts, has []string
	for _, v := range claim.Values {
		texts = append(texts, celString(v))
		has = append(has, celString(v)+" in "+value)
	}
	return strings.Join(append(tests, "("+value+" in ["+strings.Join(texts, ", ")+"] || type("+value+") == list && ("+strings.Join(has, " || ")+"))"), " && ")
}

// celPrincipal compares the caller with a principal, once for each trust domain that is
// meant.
func (c *Compiler) celPrincipal(value string) []string {
	var out []string
	for _, v := range principalAliases(c.trustDomains, value) {
		switch {
		case v == "*":
			out = append(out, peerSAN+".startsWith("+celString(spiffeScheme)+")")
		case strings.HasPrefix(v, "*"):
			out = append(out, "("+peerSAN+".startsWith("+celString(spiffeScheme)+") && "+peerSAN+".endsWith("+celString(v[1:])+"))")
		case strings.HasSuffix(v, "*"):
			out = append(out, peerSAN+".startsWith("+celString(spiffeScheme+v[:len(v)-1])+")")
		default:
			out = append(out, peerSAN+" == "+celString(spiffeScheme+v))
		}
	}
	return out
}

// hostExpression is for a host in any case, with any port, and with a dot at its end.
// Envoy takes small expressions only, see maxProgram, and (?i) is large: it means letters
// beyond ASCII too.
func hostExpression(value string) string {
	const anyEnd = `\.?(:.*)?$`
	switch {
	case value == "*":
		return "."
	case strings.HasPrefix(value, "*"):
		return anyCase(value[1:]) + anyEnd
	case strings.HasSuffix(value, "*"):
		return "^" + anyCase(value[:len(value)-1])
	}
	return "^" + anyCase(value) + anyEnd
}

func anyCase(text string) string {
	var b strings.Builder
	for _, r := range text {
		if upper, lower := strings.ToUpper(string(r)), strings.ToLower(string(r)); upper != lower {
			b.WriteString("[" + upper + lower + "]")
		} else {
			b.WriteString(regexp.QuoteMeta(string(r)))
		}
	}
	return b.String()
}

// celPath compares the path without its query.
func celPath(value string) string {
	const path = "request.url_path"
	switch {
	case strings.Contains(value, "{*}") || strings.Contains(value, "{**}"):
		e := regexp.QuoteMeta(value)
		e = strings.ReplaceAll(e, regexp.QuoteMeta("{**}"), ".*")
		e = strings.ReplaceAll(e, regexp.QuoteMeta("{*}"), "[^/]+")
		return path + ".matches(" + celString("^"+e+"$") + ")"
	case value == "*":
		return path + " != ''"
	case strings.HasPrefix(value, "*"):
		return path + ".endsWith(" + celString(value[1:]) + ")"
	case strings.HasSuffix(value, "*"):
		return path + ".startsWith(" + celString(value[:len(value)-1]) + ")"
	}
	return path + " == " + celString(value)
}

// policyEntry names the policy. Where the condition does not hold the expression has no
// value, and Envoy leaves the whole descriptor out.
func policyEntry(name, condition string) *routev3.RateLimit_Action {
	if condition == "" {
		return constant(configpb.QuotaPolicyKey, name)
	}
	return &routev3.RateLimit_Action{ActionSpecifier: &routev3.RateLimit_Action_Extension{Extension: extension("envoy.rate_limit_descriptors.expr", &exprv3.Descriptor{
		DescriptorKey: configpb.QuotaPolicyKey,
		ExprSpecifier: &exprv3.Descriptor_Text{Text: condition + " ? " + celString(name) + " : " + celNoValue},
	})}}
}

// celNoValue is an expression that fails.
const celNoValue = "filter_state['" + quotaSpeaks + "']"

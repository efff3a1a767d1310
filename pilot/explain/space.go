package explain

import (
	"cmp"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	meshv1 "istio.io/api/mesh/v1alpha1"

	"github.com/writ-mesh/writ/pilot/condition"
	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/security/eval"
	"github.com/writ-mesh/writ/pilot/security/region"
)

// The variable for tokens is a text: nothing without a token, badToken for one that
// no issuer vouches for, or issuer, tokenJoint, subject.
const (
	badToken   = "\x01"
	tokenJoint = "\x00"
)

// The principal is a SPIFFE ID, or nothing.
const spiffeScheme = "spiffe://"

// noQuery stands for the characters of a path before its query, which path has too.
const (
	noQuery  = "[^?]"
	anyQuery = `(?:\?.*)?`
)

// requestSpace is the space of all requests to one port, as far as rules look at them.
type requestSpace struct {
	region.Space
	domains eval.Domains
	// issuers are those whose tokens anybody in question accepts.
	issuers []string
	// vars are by name, in the order in which they were made, which is the order in
	// which answers tell them: the caller first.
	vars  map[string]*region.Var
	notes map[string]bool
}

// The names of the variables that are there whatever the rules say.
const (
	principalVar = "principal"
	tokenVar     = "token"
	hostVar      = "host"
	methodVar    = "method"
	pathVar      = "path"
	sniVar       = "SNI"
	sourceVar    = "source address"
	remoteVar    = "client address"
)

// newSpace makes the variables for the clauses of all sides.
func newSpace(m *model.Mesh, tcp bool, issuers []string, sides ...*side) *requestSpace {
	domains := domainsOf(m)
	s := &requestSpace{domains: domains, issuers: issuers, vars: map[string]*region.Var{}, notes: map[string]bool{}}
	principal := s.text(principalVar)
	all := slices.Concat(domains.Own, domains.Federated)
	principal.Domain("|" + spiffeScheme + "(?:" + alternatives(all) + ")/ns/" + dnsName + "/sa/" + dnsName)
	principal.Match("nobody of the mesh", "")
	if !tcp {
		token := s.text(tokenVar)
		valid := ""
		for _, i := range issuers {
			valid += "|" + regexp.QuoteMeta(i) + tokenJoint + "[^\x00\x01]*"
			token.Match("a token of "+i, regexp.QuoteMeta(i)+tokenJoint+".*")
		}
		token.Domain("|" + badToken + valid)
		token.Match("no token", "")
		token.Match("an invalid token", badToken)
	}
	for _, name := range s.more(sides) {
		s.declare(name)
	}
	if !tcp {
		s.text(hostVar)
		s.text(methodVar).Domain("[!-~]+")
		path := s.text(pathVar)
		path.Domain("/[^#]*")
		normalized(m, path)
	}
	return s
}

// dnsName is the form of namespaces and service accounts.
const dnsName = "[a-z0-9.-]+"

// normalized leaves out the paths that no filter ever sees.
func normalized(m *model.Mesh, path *region.Var) {
	switch m.Config.GetPathNormalization().GetNormalization() {
	case meshv1.MeshConfig_ProxyPathNormalization_NONE:
		return
	case meshv1.MeshConfig_ProxyPathNormalization_MERGE_SLASHES, meshv1.MeshConfig_ProxyPathNormalization_DECODE_AND_MERGE_SLASHES:
		path.Never("[^?]*//.*")
	case meshv1.MeshConfig_ProxyPathNormalization_DEFAULT, meshv1.MeshConfig_ProxyPathNormalization_BASE:
	}
	path.Never(`(?:[^?]*/)?\.\.?(?:[/?].*)?`)
	path.Never(`[^?]*\\.*`)
}

func alternatives(names []string) string {
	var out []string
	for _, n := range names {
		out = append(out, regexp.QuoteMeta(n))
	}
	return strings.Join(out, "|")
}

func (s *requestSpace) text(name string) *region.Var {
	if s.vars[name] == nil {
		s.vars[name] = s.Text(name)
	}
	return s.vars[name]
}

// more gives the names of the variables that sides want besides those of every
// request: claims, headers, addresses, in this order.
func (s *requestSpace) more(sides []*side) []string {
	rank := func(name string) int {
		for i, prefix := range []string{"claim ", "header ", "filter ", sourceVar, remoteVar, sniVar} {
			if strings.HasPrefix(name, prefix) {
				return i
			}
		}
		return -1
	}
	var out []string
	for _, side := range sides {
		for _, c := range side.clauses() {
			out = append(out, s.variable(&c))
		}
		out = append(out, side.regoVariables()...)
	}
	out = slices.DeleteFunc(out, func(name string) bool { return rank(name) < 0 })
	slices.SortFunc(out, func(a, b string) int { return cmp.Or(rank(a)-rank(b), strings.Compare(a, b)) })
	return slices.Compact(out)
}

func (s *requestSpace) declare(name string) {
	kind, _, _ := strings.Cut(name, " ")
	switch {
	case name == sourceVar || name == remoteVar:
		s.vars[name] = s.Address(name)
	case name == sniVar:
		s.text(name).Match("none", "")
	case kind == "claim":
		s.text(name).MayBeAbsent().MayBeList()
	case kind == "filter":
		s.text(name).MayBeAbsent().MayBeList()
		s.notes["what other filters leave ("+name+") is not known: it is taken for anything"] = true
	case kind == "header":
		s.text(name).MayBeAbsent()
		switch strings.TrimPrefix(name, "header ") {
		case "authorization", "cookie", "x-forwarded-for":
			s.notes["the "+name+" and what else is taken from it are told as if one could be without the other"] = true
		}
	default:
		s.text(name)
	}
}

// variable is what a clause looks at, empty for what is the same for all requests to
// the port.
func (s *requestSpace) variable(c *eval.Clause) string {
	switch c.Key {
	case eval.HostKey, eval.AnyFormHostKey:
		return hostVar
	case eval.MethodKey:
		return methodVar
	case eval.PathKey:
		return pathVar
	case condition.SourceIP:
		return sourceVar
	case condition.RemoteIP:
		return remoteVar
	case condition.SNI:
		return sniVar
	case condition.Principal, condition.Namespace, condition.ServiceAccount, condition.TrustDomain:
		return principalVar
	case condition.TokenPrincipal:
		return tokenVar
	case condition.Audiences:
		return "claim aud"
	case condition.Presenter:
		return "claim azp"
	}
	k, name, _ := condition.Find(c.Key)
	switch k.Name {
	case condition.Claims:
		if name == "iss" || name == "sub" {
			return tokenVar
		}
		return "claim " + name
	case condition.Headers:
		switch name = strings.ToLower(name); name {
		case ":authority", "host":
			return hostVar
		case ":method":
			return methodVar
		case ":path":
			return pathVar
		}
		return "header " + name
	case condition.EnvoyFilters:
		return "filter " + name
	}
	return ""
}

// predicate is a clause as a set: what it wants of one variable.
type predicate struct {
	v       *region.Var
	tests   []region.Test
	negated bool
	// somebody: no test holds of a caller without an identity.
	somebody bool
}

func (p predicate) set() region.Set {
	set := p.v.All().Minus(p.v.All())
	for _, t := range p.tests {
		set = set.Or(t.Set())
	}
	if p.somebody {
		set = set.Minus(p.v.Match("nobody of the mesh", "").Set())
	}
	if p.negated {
		return p.v.All().Minus(set)
	}
	return set
}

// predicate makes the tests of a clause.
func (s *requestSpace) predicate(c *eval.Clause) predicate {
	v := s.vars[s.variable(c)]
	p := predicate{v: v, negated: c.Negated}
	for _, value := range c.Values {
		switch name := s.variable(c); name {
		case sourceVar, remoteVar:
			block, err := parseBlock(value)
			if err != nil {
				continue // matches nothing
			}
			p.tests = append(p.tests, v.Within("in "+value, block))
		default:
			label, expression := s.expression(c, name, value)
			p.tests = append(p.tests, v.Match(label, expression))
		}
	}
	return p
}

func parseBlock(value string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(value); err == nil {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	return netip.ParsePrefix(value)
}

// expression gives the regular expression that is what a value of a clause means, and
// how to tell it.
func (s *requestSpace) expression(c *eval.Clause, variable, value string) (label, expression string) {
	switch c.Key {
	case eval.HostKey:
		return value, "(?i)" + pattern(value, ".")
	case eval.AnyFormHostKey:
		e := pattern(value, ".")
		if value != "*" && (strings.HasPrefix(value, "*") || !strings.HasSuffix(value, "*")) {
			e += `\.?(?::.*)?`
		}
		return value + " (any port)", "(?i)" + e
	case eval.PathKey:
		return value, pathExpression(value) + anyQuery
	case condition.Principal:
		return value, spiffeScheme + "(?:" + s.principalExpression(value) + ")"
	case condition.Namespace:
		return "an identity of namespace " + value, spiffeScheme + s.namesOf(c) + "/ns/" + globExpression(value) + "/sa/[^/]*"
	case condition.ServiceAccount:
		ns, sa := c.Account(value)
		return "service account " + ns + "/" + sa, spiffeScheme + s.namesOf(c) + "/ns/" + regexp.QuoteMeta(ns) + "/sa/" + regexp.QuoteMeta(sa)
	case condition.TrustDomain:
		e := pattern(value, "[^/]")
		if slices.Contains(s.domains.Own, value) {
			e = alternatives(s.domains.Own)
		}
		return "trust domain " + value, spiffeScheme + "(?:" + e + ")/.*"
	case condition.TokenPrincipal:
		if value == "*" {
			return "any valid token", tokenExpression(value)
		}
		return "a token of " + value, tokenExpression(value)
	}
	k, name, _ := condition.Find(c.Key)
	switch {
	case variable == tokenVar && name == "iss":
		return "a token of issuer " + value, pattern(value, "[^\x00\x01]") + tokenJoint + ".*"
	case variable == tokenVar:
		return "a token of subject " + value, "[^\x00\x01]+" + tokenJoint + pattern(value, ".")
	case k.Name == condition.Headers && value == "*" && strings.HasPrefix(variable, "header "):
		return "present", ".*"
	}
	return value, pattern(value, ".")
}

// namesOf is for the trust domains of a namespace or account, as eval has them.
func (s *requestSpace) namesOf(c *eval.Clause) string {
	if c.OwnNames() {
		return "(?:" + alternatives(s.domains.Own) + ")"
	}
	return "[^/]*"
}

// pattern is the four forms of values; of is the characters that a star stands for.
func pattern(value, of string) string {
	switch {
	case value == "*":
		return of + "+"
	case strings.HasPrefix(value, "*"):
		return of + "*" + regexp.QuoteMeta(value[1:])
	case strings.HasSuffix(value, "*"):
		return regexp.QuoteMeta(value[:len(value)-1]) + of + "*"
	}
	return regexp.QuoteMeta(value)
}

func globExpression(value string) string {
	parts := strings.Split(value, "*")
	for i, p := range parts {
		parts[i] = regexp.QuoteMeta(p)
	}
	return strings.Join(parts, "[^/]*")
}

func pathExpression(value string) string {
	if !strings.Contains(value, "{*}") && !strings.Contains(value, "{**}") {
		return pattern(value, noQuery)
	}
	segments := strings.Split(value, "/")
	for i, seg := range segments {
		switch seg {
		case "{*}":
			segments[i] = "[^/?]+"
		case "{**}":
			segments[i] = noQuery + "*"
		default:
			segments[i] = regexp.QuoteMeta(seg)
		}
	}
	return strings.Join(segments, "/")
}

// principalExpression has the trust domains of the mesh stand for each other.
func (s *requestSpace) principalExpression(value string) string {
	e := pattern(value, ".")
	td, rest, _ := strings.Cut(value, "/")
	known := td == "cluster.local" || slices.ContainsFunc(s.domains.Own, func(have string) bool {
		return regexp.MustCompile("^(?:" + pattern(td, ".") + ")$").MatchString(have)
	})
	if td != "*" && strings.Count(value, "/") == 4 && known {
		e += "|(?:" + alternatives(s.domains.Own) + ")/" + pattern(rest, ".")
	}
	return e
}

// tokenExpression is for requestPrincipals, "<issuer>/<subject>".
func tokenExpression(value string) string {
	const char = "[^\x00\x01]"
	slash := strings.LastIndex(value, "/")
	switch {
	case value == "*":
		return char + "+" + tokenJoint + char + "+"
	case slash < 0 && strings.HasPrefix(value, "*"):
		return char + "+" + tokenJoint + pattern(value, char)
	case slash < 0 && strings.HasSuffix(value, "*"):
		return pattern(value, char) + tokenJoint + char + "+"
	case slash < 0:
		return regexp.QuoteMeta(value) + tokenJoint
	case strings.HasPrefix(value, "*"):
		return pattern(value[:slash], char) + tokenJoint + regexp.QuoteMeta(value[slash+1:])
	}
	return regexp.QuoteMeta(value[:slash]) + tokenJoint + pattern(value[slash+1:], char)
}

// describe tells the constraints of a region.
func (s *requestSpace) describe(r region.Region) (conditions []Condition, callers region.Set) {
	for _, c := range r.Constraints {
		text := c.Var.Describe(c.Set)
		if c.Var == s.vars[principalVar] {
			callers = c.Set
		}
		conditions = append(conditions, Condition{c.Var.Name(), text})
	}
	return conditions, callers
}

// Condition is what must hold of one part of a request.
type Condition struct {
	Of string `json:"of"`
	Is string `json:"is"`
}

func (c Condition) String() string { return fmt.Sprintf("%s: %s", c.Of, c.Is) }

// name tells the identities of the mesh's workloads apart from all others.
func (s *requestSpace) name(identities []string) {
	for _, id := range identities {
		s.vars[principalVar].Match(id, regexp.QuoteMeta(spiffeScheme+id))
	}
}

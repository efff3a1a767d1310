package eval

import (
	"fmt"
	"slices"
	"strings"

	security "istio.io/api/security/v1beta1"

	"github.com/writ-mesh/writ/pilot/condition"
	"github.com/writ-mesh/writ/pilot/model"
)

// Keys for the fields of an operation that no condition has; the others are of
// package condition.
const (
	HostKey = "hosts"
	// AnyFormHostKey is a host with any port, and as an absolute name: a rule that
	// refuses means the server, however the caller writes it.
	AnyFormHostKey = "hosts in any form"
	MethodKey      = "methods"
	PathKey        = "paths"
)

// Rule is one rule of a policy, taken apart: it matches if one of From, one of To
// and all of When hold. A From or To that the rule does not have is one empty
// alternative.
type Rule struct {
	Policy   *model.AuthorizationPolicy
	Index    int
	From, To [][]Clause
	When     []Clause
	// Never is why the rule matches nothing at a port where only connections are
	// seen: the field that only HTTP has. Empty for a rule that may match.
	Never string
}

// Clause is one condition: one of Values or, if Negated, none of them.
type Clause struct {
	// Where is the field in the rule, such as from[0].source.principals.
	Where   string
	Key     string
	Values  []string
	Negated bool

	// namespace is the policy's, refuses that its rules refuse, or ask first.
	namespace string
	refuses   bool
	domains   *Domains
}

// Rules takes a policy apart. The error names the rule and the key that is not known.
func Rules(d Domains, pol *model.AuthorizationPolicy, tcp bool) ([]*Rule, error) {
	action := pol.Spec.GetAction()
	b := builder{tcp: tcp, Clause: Clause{
		namespace: pol.Namespace, domains: &d,
		refuses: action == security.AuthorizationPolicy_DENY || action == security.AuthorizationPolicy_CUSTOM,
	}}
	var out []*Rule
	for i, rule := range pol.Spec.GetRules() {
		r, err := b.rule(rule)
		if err != nil {
			return nil, fmt.Errorf("%s: rules[%d]: %w", pol.Ref, i, err)
		}
		if action != security.AuthorizationPolicy_ALLOW {
			r.Never = "" // the rest of the rule counts
		}
		r.Policy, r.Index = pol, i
		out = append(out, r)
	}
	return out, nil
}

// Match says whether the rule matches a request.
func (r *Rule) Match(req *Request) bool {
	holds := func(clauses []Clause) bool {
		return !slices.ContainsFunc(clauses, func(c Clause) bool { return !c.Holds(req) })
	}
	return r.Never == "" && slices.ContainsFunc(r.From, holds) && slices.ContainsFunc(r.To, holds) && holds(r.When)
}

// Failed gives the clauses that keep the rule from matching: those of the From and
// of the To that come nearest, and of When. None if it matches, or never does.
func (r *Rule) Failed(req *Request) []Clause {
	failing := func(clauses []Clause) []Clause {
		return slices.DeleteFunc(slices.Clone(clauses), func(c Clause) bool { return c.Holds(req) })
	}
	nearest := func(alternatives [][]Clause) []Clause {
		best := failing(alternatives[0])
		for _, a := range alternatives[1:] {
			if f := failing(a); len(f) < len(best) {
				best = f
			}
		}
		return best
	}
	return slices.Concat(nearest(r.From), nearest(r.To), failing(r.When))
}

// Holds says whether the clause is true of a request.
func (c *Clause) Holds(req *Request) bool {
	return slices.ContainsFunc(c.Values, func(v string) bool { return c.value(req, v) }) != c.Negated
}

// builder makes the clauses of one policy, of which its own is the pattern.
type builder struct {
	Clause
	tcp bool
}

func (b builder) rule(rule *security.Rule) (*Rule, error) {
	out := &Rule{}
	for i, f := range rule.GetFrom() {
		s := f.GetSource()
		at := fmt.Sprintf("from[%d].source.", i)
		out.From = append(out.From, b.clauses(out, at, []field{
			{condition.Principal, "principals", s.GetPrincipals(), s.GetNotPrincipals()},
			{condition.TokenPrincipal, "requestPrincipals", s.GetRequestPrincipals(), s.GetNotRequestPrincipals()},
			{condition.ServiceAccount, "serviceAccounts", s.GetServiceAccounts(), s.GetNotServiceAccounts()},
			{condition.TrustDomain, "trustDomains", s.GetTrustDomains(), s.GetNotTrustDomains()},
			{condition.Namespace, "namespaces", s.GetNamespaces(), s.GetNotNamespaces()},
			{condition.SourceIP, "ipBlocks", s.GetIpBlocks(), s.GetNotIpBlocks()},
			{condition.RemoteIP, "remoteIpBlocks", s.GetRemoteIpBlocks(), s.GetNotRemoteIpBlocks()},
		}))
	}
	hosts := HostKey
	if b.refuses {
		hosts = AnyFormHostKey
	}
	for i, t := range rule.GetTo() {
		o := t.GetOperation()
		at := fmt.Sprintf("to[%d].operation.", i)
		out.To = append(out.To, b.clauses(out, at, []field{
			{hosts, "hosts", o.GetHosts(), nil},
			{HostKey, "hosts", nil, o.GetNotHosts()},
			{MethodKey, "methods", o.GetMethods(), o.GetNotMethods()},
			{PathKey, "paths", o.GetPaths(), o.GetNotPaths()},
			{condition.Port, "ports", o.GetPorts(), o.GetNotPorts()},
		}))
	}
	for i, w := range rule.GetWhen() {
		if _, _, ok := condition.Find(w.GetKey()); !ok {
			return nil, fmt.Errorf("when: unknown key %q", w.GetKey())
		}
		at := fmt.Sprintf("when[%d] %s ", i, w.GetKey())
		out.When = append(out.When, b.clauses(out, at, []field{{w.GetKey(), "values", w.GetValues(), w.GetNotValues()}})...)
	}
	if len(out.From) == 0 {
		out.From = [][]Clause{nil}
	}
	if len(out.To) == 0 {
		out.To = [][]Clause{nil}
	}
	return out, nil
}

// field is a field with its not-form.
type field struct {
	key, name         string
	values, notValues []string
}

// clauses makes those of fields that have values. What only HTTP has is left out
// where connections are seen, and noted in the rule.
func (b builder) clauses(of *Rule, at string, fields []field) []Clause {
	var out []Clause
	add := func(f field, name string, values []string, negated bool) {
		if len(values) == 0 {
			return
		}
		c := b.Clause
		c.Where, c.Key, c.Values, c.Negated = at+name, f.key, values, negated
		if b.tcp && httpOnly(f.key) {
			of.Never = c.Where
			return
		}
		out = append(out, c)
	}
	for _, f := range fields {
		add(f, f.name, f.values, false)
		add(f, "not"+strings.ToUpper(f.name[:1])+f.name[1:], f.notValues, true)
	}
	return out
}

func httpOnly(key string) bool {
	k, _, _ := condition.Find(key)
	return k.HTTPOnly || key == HostKey || key == AnyFormHostKey || key == MethodKey || key == PathKey
}

// Account takes a value of a service account apart: one without a namespace is of the
// policy's.
func (c *Clause) Account(value string) (namespace, account string) {
	if ns, sa, both := strings.Cut(value, "/"); both {
		return ns, sa
	}
	return c.namespace, value
}

// OwnNames says that namespaces and accounts of the clause are those of the mesh's own
// trust domains. Those of another trust domain let nobody in; they do keep out.
func (c *Clause) OwnNames() bool {
	return len(c.domains.Federated) > 0 && c.refuses == c.Negated
}

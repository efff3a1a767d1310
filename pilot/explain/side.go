package explain

import (
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/writ-mesh/writ/pilot/condition"
	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/security/eval"
	"github.com/writ-mesh/writ/pilot/security/region"
)

// side is one port of one workload in one mesh: what decides there.
type side struct {
	m        *model.Mesh
	proxy    *model.Proxy
	port     model.WorkloadPort
	mode     model.PeerMode
	policies eval.Policies

	custom, deny, allow []*eval.Rule
	// closed are those of CUSTOM rules whose matches are refused, for want of a provider.
	provider string
	closed   bool
	hasAllow bool
	issuers  []issuer
	// after is what else has to let a request pass: RegoPolicies by name, and lists.
	after []string
	// fixed are parts of the request that a question gives; nil for a question about all.
	fixed *eval.Request
	// fixedPath is that of fixed with its query.
	fixedPath string
}

// issuer is one rule of a RequestAuthentication.
type issuer struct {
	name      string
	audiences []string
	// keys tells issuers of one name apart.
	keys string
	// policy is the RequestAuthentication, which asks for require.
	policy, require string
}

func newSide(m *model.Mesh, p *model.Proxy, port model.WorkloadPort, fixed *eval.Request, path string) (*side, error) {
	s := &side{m: m, proxy: p, port: port, policies: eval.Select(m, p), fixed: fixed, fixedPath: path, mode: model.Permissive}
	if p.Type == model.SidecarProxy {
		s.mode = model.NewPeerModes(m).Of(p.Namespace, p.Labels, port.Port)
	} else {
		s.mode = doorOf(serversFor(m, p, port.Port, "")).mode()
	}
	var err error
	d, tcp := domainsOf(m), s.tcp()
	rules := func(policies []*model.AuthorizationPolicy) (out []*eval.Rule) {
		for _, pol := range enforced(policies) {
			var more []*eval.Rule
			if more, err = eval.Rules(d, pol, tcp); err != nil {
				return nil
			}
			out = append(out, slices.DeleteFunc(more, func(r *eval.Rule) bool { return r.Never != "" })...)
		}
		return out
	}
	s.deny, s.allow = rules(s.policies.Deny), rules(s.policies.Allow)
	s.hasAllow = len(enforced(s.policies.Allow)) > 0
	if custom := enforced(s.policies.Custom); len(custom) > 0 {
		s.provider, _ = customProvider(m, custom)
		s.closed = s.provider == ""
		if s.closed || !tcp || !customIsHTTP(m, s.provider) {
			s.custom = rules(custom)
		}
	}
	if err != nil {
		return nil, err
	}
	if !tcp {
		s.findIssuers()
	}
	s.findAfter()
	return s, nil
}

func (s *side) tcp() bool { return !s.port.Protocol.IsHTTP() }

func (s *side) findIssuers() {
	for _, ra := range s.policies.JWT {
		for _, r := range ra.Spec.GetJwtRules() {
			s.issuers = append(s.issuers, issuer{r.GetIssuer(), r.GetAudiences(), r.GetJwks() + r.GetJwksUri(), ra.ID(), model.TokenRequirement(ra)})
		}
	}
}

// findAfter names what is asked about every request that rules let pass. What only
// observes is left out.
func (s *side) findAfter() {
	for _, p := range s.policies.Rego {
		if _, known := s.regoRefusals(p); !known && !p.Observe {
			s.after = append(s.after, p.ID())
		}
	}
	for _, l := range s.policies.Lists {
		if !s.tcp() && !l.Observe && !s.computable(l) {
			s.after = append(s.after, l.ID())
		}
	}
}

func (s *side) clauses() []eval.Clause {
	var out []eval.Clause
	for _, r := range slices.Concat(s.custom, s.deny, s.allow) {
		for _, clauses := range slices.Concat(r.From, r.To) {
			out = append(out, clauses...)
		}
		out = append(out, r.When...)
	}
	for _, i := range s.issuers {
		if len(i.audiences) > 0 {
			out = append(out, eval.Clause{Key: condition.Audiences, Values: i.audiences})
		}
	}
	for _, l := range s.lists() {
		out = append(out, listClause(l))
	}
	return slices.DeleteFunc(out, func(c eval.Clause) bool { return s.known(&c) })
}

// known says that the clause is the same for all requests in question.
func (s *side) known(c *eval.Clause) bool {
	k, _, _ := condition.Find(c.Key)
	switch {
	case c.Key == condition.Port || c.Key == condition.DestinationIP:
		return true
	case s.fixed != nil && asksFixed(c):
		return true
	case s.mode == model.Disable && (c.Key == condition.SNI || k.Identity && !k.HTTPOnly):
		return true // in plain text nobody has an identity
	case len(s.issuers) == 0 && k.Identity && k.HTTPOnly:
		return true // no token is looked at
	}
	return false
}

// asksFixed says that a clause is about what a question about one request gives: host,
// method and path, also under the names that they have as headers.
func asksFixed(c *eval.Clause) bool {
	if k, name, _ := condition.Find(c.Key); k.Name == condition.Headers {
		return slices.Contains([]string{":method", ":path", ":authority", "host"}, strings.ToLower(name))
	}
	return slices.Contains([]string{eval.HostKey, eval.AnyFormHostKey, eval.MethodKey, eval.PathKey}, c.Key)
}

// request is what is known of all requests in question.
func (s *side) request() *eval.Request {
	r := eval.Request{}
	if s.fixed != nil {
		r = *s.fixed
	}
	r.TCP, r.Destination, r.DestinationPort = s.tcp(), s.proxy.Address, s.port.Port
	return &r
}

// sets is a side in a space: its rules as terms.
type sets struct {
	*side
	space *requestSpace
	// terms are those of custom, deny and allow, to be made after Split.
	custom, deny, allow []predicates
}

// predicates have to hold together.
type predicates []predicate

func (s *side) in(space *requestSpace) *sets {
	out := &sets{side: s, space: space}
	out.custom = out.rules(s.custom, true)
	out.deny = out.rules(s.deny, false)
	out.allow = out.rules(s.allow, false)
	if s.closed {
		out.deny, out.custom = append(out.deny, out.custom...), nil
	}
	if s.mode == model.Strict {
		out.deny = append(out.deny, predicates{out.is(principalVar, "nobody of the mesh", "")})
	}
	out.addRevoked()
	out.tokens()
	out.addLists()
	out.addRego()
	return out
}

func (s *sets) is(variable, label, expression string) predicate {
	v := s.space.vars[variable]
	return predicate{v: v, tests: []region.Test{v.Match(label, expression)}}
}

// tokens refuses what RequestAuthentication does: the rules of a policy that requires a
// token refuse all that none of them accepts, the others together all tokens that no
// rule accepts. A request has one token here.
func (s *sets) tokens() {
	groups := map[string][]issuer{}
	for _, i := range s.issuers {
		switch i.require {
		case model.RequireNone:
			groups[""] = append(groups[""], i)
		case model.RequireObserve:
		default:
			groups[i.policy] = append(groups[i.policy], i)
		}
	}
	for policy, group := range groups {
		if policy == "" {
			s.refuseBad(s.issuers)
			continue
		}
		s.deny = append(s.deny, predicates{s.is(tokenVar, "no token", "")})
		s.refuseBad(group)
	}
}

// refuseBad refuses the tokens that none of some rules accepts.
func (s *sets) refuseBad(rules []issuer) {
	s.deny = append(s.deny, predicates{s.is(tokenVar, "an invalid token", badToken)})
	for _, name := range s.space.issuers {
		term := predicates{s.is(tokenVar, "a token of "+name, regexp.QuoteMeta(name)+tokenJoint+".*")}
		for _, i := range rules {
			if i.name != name {
				continue
			}
			if len(i.audiences) == 0 {
				term = nil // one of the rules takes any audience
				break
			}
			term = append(term, s.space.predicate(&eval.Clause{Key: condition.Audiences, Values: i.audiences, Negated: true}))
		}
		if term != nil { // without a rule of that name the token is refused
			s.deny = append(s.deny, term)
		}
	}
}

// severalTokens says why the sets of requests, which have one token, are not all.
func (s *side) severalTokens() []string {
	var out []string
	count := map[string]int{}
	for _, i := range s.issuers {
		count[i.policy]++
		switch {
		case i.require == model.RequireAll && count[i.policy] == 2:
			out = append(out, i.policy+" requires several tokens: it is told as if one were enough")
		case i.require == model.RequireObserve && count[i.policy] == 1:
			out = append(out, i.policy+" only observes tokens: those of issuers that it does not know are told as if it knew them")
		}
	}
	return out
}

// rules turns rules into terms: one for each pair of a From and a To. A CUSTOM rule
// is asked before any token is looked at.
func (s *sets) rules(rules []*eval.Rule, custom bool) []predicates {
	var out []predicates
	for _, r := range rules {
		for _, from := range r.From {
			for _, to := range r.To {
				if term, possible := s.term(slices.Concat(from, to, r.When), custom); possible {
					out = append(out, term)
				}
			}
		}
	}
	return out
}

// term asks what is known first, so that a term that is not possible asks nothing of
// the space.
func (s *sets) term(clauses []eval.Clause, custom bool) (term predicates, possible bool) {
	var open []*eval.Clause
	for i := range clauses {
		c := &clauses[i]
		k, _, _ := condition.Find(c.Key)
		switch {
		case !s.known(c) && !(custom && k.Identity && k.HTTPOnly):
			open = append(open, c)
		case !c.Holds(s.request()):
			return nil, false
		}
	}
	for _, c := range open {
		term = append(term, s.space.predicate(c))
	}
	return term, true
}

// terms are the sets of predicates; the space has to be split.
func terms(all []predicates) []region.Term {
	var out []region.Term
	for _, ps := range all {
		term := region.Term{}
		for _, p := range ps {
			term = append(term, region.Constraint{Var: p.v, Set: p.set()})
		}
		out = append(out, term)
	}
	return out
}

// impossible are requests that there are not: claims without a token, a server name
// in plain text.
func (s *requestSpace) impossible() []region.Term {
	var out []region.Term
	token := s.vars[tokenVar]
	for name, v := range s.vars {
		if strings.HasPrefix(name, "claim ") {
			none := token.Match("no token", "").Set().Or(token.Match("an invalid token", badToken).Set())
			out = append(out, region.Term{{Var: token, Set: none}, {Var: v, Set: v.All().Minus(v.Absent())}})
		}
	}
	if sni := s.vars[sniVar]; sni != nil {
		principal := s.vars[principalVar]
		plain := principal.Match("nobody of the mesh", "").Set()
		out = append(out, region.Term{{Var: principal, Set: plain}, {Var: sni, Set: sni.All().Minus(sni.Match("none", "").Set())}})
	}
	return out
}

// outcome says what a side does where custom, deny and allow are as given.
func (s *side) outcome(custom, deny, allow region.State) (string, bool) {
	if !s.hasAllow {
		allow = region.True
	}
	switch {
	case deny == region.True || allow == region.False:
		return Refused, true
	case deny == region.Open || allow == region.Open || custom == region.Open:
		return "", false
	}
	also := slices.Clone(s.after)
	if custom == region.True {
		also = append([]string{"the provider " + s.provider}, also...)
	}
	if len(also) == 0 {
		return Allowed, true
	}
	return Allowed + " if " + strings.Join(also, " and ") + " allows", true
}

func portText(port uint32) string { return strconv.FormatUint(uint64(port), 10) }

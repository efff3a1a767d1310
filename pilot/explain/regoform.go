package explain

import (
	"net/netip"
	"regexp"
	"strings"

	"github.com/writ-mesh/writ/internal/regoform"
	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/security/eval"
	"github.com/writ-mesh/writ/pilot/security/region"
)

// maxRegoTerms bounds the products that the refusals of one RegoPolicy come to.
const maxRegoTerms = 2000

// literal is a question that a RegoPolicy asks, or its opposite.
type literal struct {
	atom    regoform.Atom
	negated bool
}

// regoRefusals gives when a RegoPolicy refuses, as products of literals of which one
// has to hold; not ok if not all of it is known without evaluating it, or if it asks
// what no variable stands for.
func (s *side) regoRefusals(p *model.RegoPolicy) ([][]literal, bool) {
	if p.Form == nil || !p.Form.Whole() || s.tcp() && len(p.Form.Requests) > 0 {
		return nil, false
	}
	f := p.Form.Refuse()
	if s.tcp() {
		f = regoform.Not(p.Form.Perhaps) // no connection is a malformed request
	}
	possible := true
	f.Map(func(a regoform.Atom) *regoform.Formula {
		possible = possible && s.asks(a)
		return regoform.Of(a)
	})
	if !possible {
		return nil, false
	}
	return products(f, false)
}

// asks says whether a variable stands for what an atom asks.
func (s *side) asks(a regoform.Atom) bool {
	switch a.Kind {
	case regoform.Header, regoform.Principal, regoform.SNI:
		if a.Kind == regoform.Principal && s.mode == model.Disable {
			return true
		}
		return region.Check(atomExpression(a)) == nil
	case regoform.SourceIP, regoform.DestinationIP:
		_, err := netip.ParsePrefix(a.Value)
		return err == nil
	case regoform.DestinationPort, regoform.Token:
		return true
	case regoform.DestinationPrincipal, regoform.Claim, regoform.NoToken:
	}
	return false
}

// products is the disjunctive form of a formula, or of its opposite.
func products(f *regoform.Formula, negated bool) ([][]literal, bool) {
	op := f.Op()
	if negated {
		op = map[regoform.Op]regoform.Op{
			regoform.OpFalse: regoform.OpTrue, regoform.OpTrue: regoform.OpFalse, regoform.OpAnd: regoform.OpOr, regoform.OpOr: regoform.OpAnd,
			regoform.OpAtom: regoform.OpAtom, regoform.OpNot: regoform.OpNot,
		}[op]
	}
	switch op {
	case regoform.OpFalse:
		return nil, true
	case regoform.OpTrue:
		return [][]literal{nil}, true
	case regoform.OpAtom:
		return [][]literal{{{f.Atom(), negated}}}, true
	case regoform.OpNot:
		return products(f.Parts()[0], !negated)
	case regoform.OpOr:
		var out [][]literal
		for _, part := range f.Parts() {
			more, ok := products(part, negated)
			if out = append(out, more...); !ok || len(out) > maxRegoTerms {
				return nil, false
			}
		}
		return out, true
	case regoform.OpAnd:
	}
	out := [][]literal{nil}
	for _, part := range f.Parts() {
		more, ok := products(part, negated)
		if !ok || len(out)*len(more) > maxRegoTerms {
			return nil, false
		}
		var next [][]literal
		for _, a := range out {
			for _, b := range more {
				next = append(next, append(append([]literal{}, a...), b...))
			}
		}
		out = next
	}
	return out, true
}

// atomVariable names the variable of an atom, empty for what is known beforehand.
func (s *side) atomVariable(a regoform.Atom) string {
	switch a.Kind {
	case regoform.Header:
		name := map[string]string{":path": pathVar, ":method": methodVar, ":authority": hostVar}[a.Name]
		switch {
		case name == "":
			return "header " + a.Name
		case s.fixed != nil:
			return ""
		}
		return name
	case regoform.Principal:
		if s.mode != model.Disable {
			return principalVar
		}
	case regoform.SNI:
		if s.mode != model.Disable {
			return sniVar
		}
	case regoform.SourceIP:
		return sourceVar
	case regoform.Token:
		if len(s.issuers) > 0 {
			return tokenVar
		}
	case regoform.DestinationIP, regoform.DestinationPort, regoform.DestinationPrincipal, regoform.Claim, regoform.NoToken:
	}
	return ""
}

// atomKnown decides an atom that is the same for all requests in question.
func (s *side) atomKnown(a regoform.Atom) bool {
	switch a.Kind {
	case regoform.Header:
		return a.Holds(map[string]string{":path": s.fixedPath, ":method": s.request().Method, ":authority": s.request().Host}[a.Name])
	case regoform.DestinationIP:
		block, err := netip.ParsePrefix(a.Value)
		return err == nil && block.Contains(s.proxy.Address)
	case regoform.DestinationPort:
		return a.Value == portText(s.port.Port)
	case regoform.Principal, regoform.SNI, regoform.SourceIP, regoform.Token, regoform.DestinationPrincipal, regoform.Claim, regoform.NoToken:
	}
	return false // it is not there
}

// addRego makes terms of what RegoPolicies refuse.
func (s *sets) addRego() {
	for _, p := range s.policies.Rego {
		refusals, ok := s.regoRefusals(p)
		if p.Observe || !ok {
			continue
		}
		for _, product := range refusals {
			if term, possible := s.regoTerm(product); possible {
				s.deny = append(s.deny, term)
			}
		}
	}
}

func (s *sets) regoTerm(product []literal) (term predicates, possible bool) {
	for _, l := range product {
		name := s.atomVariable(l.atom)
		if name == "" {
			if s.atomKnown(l.atom) == l.negated {
				return nil, false
			}
			continue
		}
		p := predicate{v: s.space.vars[name], negated: l.negated, somebody: name == principalVar}
		switch name {
		case sourceVar:
			if block, err := netip.ParsePrefix(l.atom.Value); err == nil {
				p.tests = append(p.tests, p.v.Within("in "+l.atom.Value, block))
			}
		case tokenVar:
			p.tests = append(p.tests, p.v.Match("any valid token", "[^\x00\x01]+"+tokenJoint+".*"))
		default:
			p.tests = append(p.tests, p.v.Match(atomLabel(l.atom), atomExpression(l.atom)))
		}
		term = append(term, p)
	}
	return term, true
}

// atomExpression is the regular expression of an atom about a text.
func atomExpression(a regoform.Atom) string {
	value := regexp.QuoteMeta(a.Value)
	e := value
	switch a.Test {
	case regoform.Present:
		return ".*"
	case regoform.Prefix:
		e = value + ".*"
	case regoform.Suffix:
		e = ".*" + value
	case regoform.Contains:
		e = ".*" + value + ".*"
	case regoform.Regex:
		return "(?:" + strings.ReplaceAll(a.Value, `\C`, "(?s:.)") + ")"
	case regoform.Equal, regoform.Within, regoform.Has, regoform.True, regoform.Untrue, regoform.Text, regoform.List:
	}
	if a.Fold {
		return "(?i:" + e + ")"
	}
	return e
}

func atomLabel(a regoform.Atom) string {
	switch a.Test {
	case regoform.Present:
		return "present"
	case regoform.Prefix:
		return a.Value + "*"
	case regoform.Suffix:
		return "*" + a.Value
	case regoform.Contains:
		return "*" + a.Value + "*"
	case regoform.Regex:
		return "like " + a.Value
	case regoform.Equal, regoform.Within, regoform.Has, regoform.True, regoform.Untrue, regoform.Text, regoform.List:
	}
	return strings.TrimPrefix(a.Value, spiffeScheme)
}

// regoVariables names those that RegoPolicies want.
func (s *side) regoVariables() []string {
	var out []string
	for _, p := range s.policies.Rego {
		refusals, ok := s.regoRefusals(p)
		if p.Observe || !ok {
			continue
		}
		for _, product := range refusals {
			for _, l := range product {
				if name := s.atomVariable(l.atom); name != "" {
					out = append(out, name)
				}
			}
		}
	}
	return out
}

// refusesByRego says which RegoPolicy refuses a request, of those of which that is known.
func (s *side) refusesByRego(req *eval.Request, path string) (model.Ref, bool) {
	for _, p := range s.policies.Rego {
		if refusals, ok := s.regoRefusals(p); ok && !p.Observe {
			for _, product := range refusals {
				if s.allHold(product, req, path) {
					return p.Ref, true
				}
			}
		}
	}
	return model.Ref{}, false
}

func (s *side) allHold(product []literal, req *eval.Request, path string) bool {
	for _, l := range product {
		if s.holds(l.atom, req, path) == l.negated {
			return false
		}
	}
	return true
}

func (s *side) holds(a regoform.Atom, req *eval.Request, path string) bool {
	switch a.Kind {
	case regoform.Header:
		value, there := req.Headers[a.Name]
		switch a.Name {
		case ":path":
			value, there = path, true
		case ":method":
			value, there = req.Method, true
		case ":authority":
			value, there = req.Host, true
		}
		return there && a.Holds(value)
	case regoform.Principal:
		return req.Principal != "" && a.Holds(spiffeScheme+req.Principal)
	case regoform.SNI:
		return req.SNI != "" && a.Holds(req.SNI)
	case regoform.SourceIP:
		block, err := netip.ParsePrefix(a.Value)
		return err == nil && block.Contains(req.Source)
	case regoform.Token:
		return req.Claims != nil
	case regoform.DestinationIP, regoform.DestinationPort, regoform.DestinationPrincipal, regoform.Claim, regoform.NoToken:
	}
	return s.atomKnown(a)
}

package rego

import (
	"strconv"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/writ-mesh/writ/internal/regoform"
)

// maxDepth bounds how deep rules of a residue may lie in each other.
const maxDepth = 16

// residue turns what partial evaluation leaves into formulas.
type residue struct {
	// support are rules that the residue refers to, by their full name.
	support map[string][]*ast.Rule
	reasons []regoform.Reason
	named   map[regoform.Reason]bool
	// left is how many more expressions are looked at.
	left  int
	depth int
}

// cannot notes an expression that has to be evaluated.
func (r *residue) cannot(e *ast.Expr, why string) bounds {
	reason := regoform.Reason{Why: why, Expression: firstLine(e.String())}
	if e.Location != nil && len(e.Location.Text) > 0 {
		reason.Line, reason.Expression = e.Location.Row, firstLine(string(e.Location.Text))
	}
	if !r.named[reason] && len(r.reasons) < maxReasons {
		r.named[reason] = true
		r.reasons = append(r.reasons, reason)
	}
	return anything()
}

func (r *residue) anyBody(bodies []ast.Body) bounds {
	all := make([]bounds, 0, len(bodies))
	for _, b := range bodies {
		if r.left <= 0 {
			return anything()
		}
		all = append(all, r.body(b))
	}
	return anyOf(all...)
}

// scope is what is known of the variables of one body.
type scope struct {
	bound map[ast.Var]value
	// uses counts where each variable stands; one that stands once is a wildcard.
	uses map[ast.Var]int
}

func (s *scope) once(v ast.Var) bool { return s.uses[v] == 1 }

// body is the conjunction of its expressions.
func (r *residue) body(b ast.Body) bounds {
	s := &scope{bound: map[ast.Var]value{}, uses: map[ast.Var]int{}}
	ast.WalkVars(b, func(v ast.Var) bool {
		s.uses[v]++
		return false
	})
	binds := make([]bool, len(b))
	all := make([]bounds, len(b))
	// What binds a variable may stand behind what uses it.
	for range 2 {
		for i, e := range b {
			if holds, ok := s.bind(e); ok && !binds[i] {
				binds[i], all[i] = true, holds
			}
		}
	}
	for i, e := range b {
		if binds[i] {
			continue
		}
		r.left--
		all[i] = r.expression(e, s)
	}
	return allOf(all...)
}

// bind takes an expression that only gives a variable its value, and says when
// there is one.
func (s *scope) bind(e *ast.Expr) (bounds, bool) {
	if e.Negated || len(e.With) > 0 || !e.IsCall() {
		return bounds{}, false
	}
	args := e.Operands()
	var v ast.Var
	var val value
	ok := false
	switch name := e.Operator().String(); {
	case name == ast.Equality.Name && len(args) == 2:
		for _, pair := range [][2]*ast.Term{{args[0], args[1]}, {args[1], args[0]}} {
			if v, ok = pair[0].Value.(ast.Var); ok {
				if val, ok = s.value(pair[1]); ok {
					break
				}
			}
		}
	case len(args) > 1:
		if v, ok = args[len(args)-1].Value.(ast.Var); ok {
			val, ok = s.call(name, args[:len(args)-1])
		}
	}
	if !ok {
		return bounds{}, false
	}
	if _, twice := s.bound[v]; twice {
		return bounds{}, false
	}
	s.bound[v] = val
	return val.there(), true
}

func (r *residue) expression(e *ast.Expr, s *scope) bounds {
	if e.Negated {
		return r.expression(e.Complement(), s).not()
	}
	switch terms := e.Terms.(type) {
	case *ast.Term:
		return r.term(e, terms, s)
	case []*ast.Term:
		if len(e.With) == 0 {
			return r.call(e, s)
		}
	case *ast.Every:
		return r.cannot(e, "every over a list")
	}
	return r.cannot(e, "not supported in an Envoy")
}

// term is a value that must be there and not false.
func (r *residue) term(e *ast.Expr, t *ast.Term, s *scope) bounds {
	if b, ok := t.Value.(ast.Boolean); ok {
		if b {
			return exactly(regoform.Always())
		}
		return exactly(regoform.False())
	}
	if f, ok := r.rule(t); ok {
		return f
	}
	if v, ok := s.value(t); ok && v.text() {
		return v.there()
	}
	return r.cannot(e, whyNot(t))
}

// rulesOf gives the rules of the residue that t names, none if it names none or they
// are too deep in each other.
func (r *residue) rulesOf(t *ast.Term) []*ast.Rule {
	ref, ok := t.Value.(ast.Ref)
	if !ok || !ref.HasPrefix(ast.DefaultRootRef) || r.depth >= maxDepth {
		return nil
	}
	return r.support[ref.String()]
}

// rule is a rule of the residue that has only the value true.
func (r *residue) rule(t *ast.Term) (bounds, bool) {
	rules := r.rulesOf(t)
	if len(rules) == 0 {
		return bounds{}, false
	}
	var bodies []ast.Body
	for _, rule := range rules {
		isTrue := rule.Head.Value != nil && rule.Head.Value.Equal(ast.BooleanTerm(true))
		if rule.Head.RuleKind() != ast.SingleValue || len(rule.Head.Args) > 0 || rule.Else != nil || !rule.Head.Ref().IsGround() {
			return bounds{}, false
		}
		switch {
		case rule.Default && rule.Head.Value.Equal(ast.BooleanTerm(false)):
		case rule.Default || !isTrue:
			return bounds{}, false
		default:
			bodies = append(bodies, rule.Body)
		}
	}
	r.depth++
	defer func() { r.depth-- }()
	return r.anyBody(bodies), true
}

// empty is a set of the residue that has no element.
func (r *residue) empty(t *ast.Term) (bounds, bool) {
	rules := r.rulesOf(t)
	if len(rules) == 0 {
		return bounds{}, false
	}
	var bodies []ast.Body
	for _, rule := range rules {
		key := rule.Head.Key
		if rule.Head.RuleKind() != ast.MultiValue || rule.Else != nil || rule.Default || key == nil || !plainKey(key) {
			return bounds{}, false
		}
		bodies = append(bodies, rule.Body)
	}
	r.depth++
	defer func() { r.depth-- }()
	return r.anyBody(bodies).not(), true
}

// plainKey is an element that is there whenever its rule's body holds.
func plainKey(t *ast.Term) bool {
	_, isVar := t.Value.(ast.Var)
	return isVar || isConstant(t)
}

// call is a comparison or another function whose answer counts.
func (r *residue) call(e *ast.Expr, s *scope) bounds {
	name, args := e.Operator().String(), e.Operands()
	if len(args) == 2 {
		switch name {
		case ast.Equality.Name, ast.Equal.Name, ast.Assign.Name:
			return r.equal(e, args[0], args[1], s)
		case ast.NotEqual.Name:
			if c, ok := stringOf(args[1]); ok && c == definedMark {
				if v, ok := s.value(args[0]); ok {
					return v.there()
				}
				return r.cannot(e, whyNot(args[0]))
			}
			if b, ok := s.compare(args[0], args[1]); ok {
				return allOf(b.there, b.equal.not())
			}
			return r.cannot(e, whyNot(args...))
		case ast.Count.Name:
			if b, ok := r.empty(args[0]); ok && args[1].Equal(ast.IntNumberTerm(0)) {
				return b
			}
		}
	}
	if b, ok := s.test(name, args); ok {
		return b
	}
	// The answer is compared at once: lower(x) == "a".
	if n := len(args) - 1; n > 0 {
		if v, ok := s.call(name, args[:n]); ok {
			if b, ok := v.equals(args[n], s); ok {
				return b
			}
		}
	}
	return r.cannot(e, whyNot(append([]*ast.Term{e.OperatorTerm()}, args...)...))
}

func (r *residue) equal(e *ast.Expr, a, b *ast.Term, s *scope) bounds {
	if c, ok := s.compare(a, b); ok {
		return c.equal
	}
	for _, pair := range [][2]*ast.Term{{a, b}, {b, a}} {
		if pair[1].Equal(ast.BooleanTerm(true)) {
			if f, ok := r.rule(pair[0]); ok {
				return f
			}
		}
		if v, ok := s.value(pair[0]); ok {
			if f, ok := v.equals(pair[1], s); ok {
				return f
			}
		}
	}
	return r.cannot(e, whyNot(a, b))
}

// comparison is a value against a constant.
type comparison struct{ there, equal bounds }

func (s *scope) compare(a, b *ast.Term) (comparison, bool) {
	for _, pair := range [][2]*ast.Term{{a, b}, {b, a}} {
		v, ok := s.value(pair[0])
		if !ok || !isConstant(pair[1]) {
			continue
		}
		if equal, ok := v.equals(pair[1], s); ok && v.single() {
			return comparison{v.there(), equal}, true
		}
	}
	return comparison{}, false
}

// whyNot says in one word what of an expression an Envoy cannot look at.
func whyNot(terms ...*ast.Term) string {
	why := "not supported in an Envoy"
	for _, t := range terms {
		ast.WalkRefs(t, func(ref ast.Ref) bool {
			switch {
			case ref.HasPrefix(ast.InputRootRef) && !knownInput(ref):
				why = "an Envoy has no " + clipped(ref.String())
			case ref.HasPrefix(ast.DefaultRootRef):
				why = "it needs " + clipped(ref.String()) + " evaluated"
			case len(ref) == 2 && !ref.HasPrefix(ast.InputRootRef):
				why = "the function " + ref.String() + " is evaluated by authz"
			}
			return false
		})
	}
	return why
}

func knownInput(ref ast.Ref) bool {
	_, ok := inputValue(ref, &scope{uses: map[ast.Var]int{}})
	return ok
}

// stringOf is a constant string.
func stringOf(t *ast.Term) (string, bool) {
	s, ok := t.Value.(ast.String)
	return string(s), ok
}

// wholeOf is a constant whole number.
func wholeOf(t *ast.Term) (string, bool) {
	n, ok := t.Value.(ast.Number)
	if !ok {
		return "", false
	}
	i, ok := n.Int()
	return strconv.Itoa(i), ok
}

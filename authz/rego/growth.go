package rego

import (
	"fmt"

	"github.com/open-policy-agent/opa/v1/ast"
)

// maxParts bounds the parts of a value that one rule puts together out of its
// variables: [y, y] with y := [z, z] and so on has twice as many in each line. OPA
// writes such a value out in one go that cannot be cancelled, so it is refused when
// the policy is compiled.
const maxParts = 1 << 16

// checkGrowth refuses a rule, or a query, that puts too large a value together.
func checkGrowth(x any) error {
	g := growth{made: make(map[ast.Var][]*ast.Term), parts: make(map[ast.Var]int)}
	ast.NewGenericVisitor(g.collect).Walk(x)
	for v := range g.made {
		if g.of(v) > maxParts {
			return fmt.Errorf("a value of more than %d parts is put together", maxParts)
		}
	}
	return nil
}

// growth counts the parts of variables' values.
type growth struct {
	// made are the terms that a variable may be equal to.
	made map[ast.Var][]*ast.Term
	// parts are the counts so far; a variable that is being counted has one part.
	parts map[ast.Var]int
}

// collect implements a visitor.
func (g growth) collect(x any) bool {
	e, ok := x.(*ast.Expr)
	if !ok || !(e.IsEquality() || e.IsAssignment()) {
		return false
	}
	a, b := e.Operand(0), e.Operand(1)
	g.equal(a, b)
	g.equal(b, a)
	return false
}

func (g growth) equal(a, b *ast.Term) {
	if a == nil || b == nil {
		return
	}
	if v, ok := a.Value.(ast.Var); ok {
		g.made[v] = append(g.made[v], b)
	}
}

// of counts the parts of a variable's value.
func (g growth) of(v ast.Var) int {
	if n, ok := g.parts[v]; ok {
		return n
	}
	g.parts[v] = 1
	most := 1
	for _, t := range g.made[v] {
		most = max(most, g.term(t.Value))
	}
	g.parts[v] = most
	return most
}

func (g growth) term(v ast.Value) int {
	sum := 1
	add := func(t *ast.Term) { sum = min(sum+g.term(t.Value), maxParts+1) }
	switch v := v.(type) {
	case ast.Var:
		return g.of(v)
	case *ast.Array, ast.Set:
		if v.IsGround() {
			return 1 // shared, not written out
		}
		each(v, func(t *ast.Term) bool { add(t); return true })
	case ast.Object:
		if v.IsGround() {
			return 1
		}
		v.Foreach(func(k, e *ast.Term) { add(k); add(e) })
	}
	return sum
}

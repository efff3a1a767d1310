package rego

import (
	"maps"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

// certain refuses rules for which partial evaluation may say something else than
// evaluation: two values of one rule at once are an error, which refuses, and
// partial evaluation does not see it.
func certain(compiler *ast.Compiler, roots []*ast.Rule) error {
	seen := map[*ast.Rule]bool{}
	var visit func(r *ast.Rule) error
	visit = func(r *ast.Rule) error {
		if seen[r] {
			return nil
		}
		seen[r] = true
		if err := stable(r); err != nil {
			return err
		}
		if r.Else != nil {
			if err := visit(r.Else); err != nil {
				return err
			}
		}
		for dep := range compiler.Graph.Dependencies(r) {
			if rule, ok := dep.(*ast.Rule); ok {
				if err := visit(rule); err != nil {
					return err
				}
			}
		}
		return nil
	}
	for _, r := range roots {
		if err := visit(r); err != nil {
			return err
		}
	}
	all := slices.SortedFunc(maps.Keys(seen), func(a, b *ast.Rule) int { return a.Location.Compare(b.Location) })
	groups := map[string][]*ast.Rule{}
	for _, r := range all {
		path := r.Module.Package.Path.Extend(r.Head.Ref()).String()
		groups[path] = append(groups[path], r)
		if err := oneValue(groups[path]); err != nil {
			return err
		}
	}
	for _, r := range all {
		keepDefined(r)
	}
	return nil
}

// definedMark is a text that no value is: to differ from it is to be defined.
const definedMark = "\x00defined\x00"

// keepDefined writes down in a rule what evaluation requires and partial evaluation
// forgets. OPA evaluates what a negated expression looks at before it negates, so
// "not startswith(input.x, y)" does not hold without input.x; partial evaluation
// puts input.x back where it was, and then it seems to hold. So it is with values
// that are bound and not used.
func keepDefined(r *ast.Rule) {
	head := ast.VarSet{}
	ast.WalkVars(r.Head, func(v ast.Var) bool {
		head.Add(v)
		return false
	})
	uses, negated, positive := map[ast.Var]int{}, map[ast.Var]bool{}, map[ast.Var]bool{}
	var order []ast.Var
	for _, e := range r.Body {
		// What is within comprehensions and the like is bound there.
		outside := e.Vars(ast.VarVisitorParams{SkipClosures: true, SkipRefCallHead: true})
		ast.WalkVars(e, func(v ast.Var) bool {
			if uses[v]++; uses[v] == 1 {
				order = append(order, v)
			}
			negated[v] = negated[v] || e.Negated
			positive[v] = positive[v] || !e.Negated && outside.Contains(v)
			return false
		})
	}
	for _, v := range order {
		if ast.RootDocumentNames.Contains(ast.NewTerm(v)) || !positive[v] || !v.IsGenerated() && !strings.HasPrefix(string(v), "__") {
			continue
		}
		if negated[v] || uses[v] == 1 && !head.Contains(v) {
			e := ast.NotEqual.Expr(ast.NewTerm(v), ast.StringTerm(definedMark))
			e.Location = r.Location
			r.Body.Append(e)
		}
	}
}

// stable refuses what partial evaluation and evaluation may see differently, and
// functions that OPA would evaluate ahead where their arguments are constants and
// that need much time or memory, or answer otherwise the next time: this runs where
// nobody has asked to run the policy.
func stable(r *ast.Rule) error {
	var err error
	ast.WalkExprs(r, func(e *ast.Expr) bool {
		switch {
		case err != nil:
		case len(e.With) > 0:
			err = stays(e.Location, "it changes the input by with")
		case e.IsNot() || e.IsAnd() || e.IsOr():
			err = stays(e.Location, "conditions within conditions")
		case e.IsCall() && !harmless(e):
			err = stays(e.Location, "the function %s is evaluated by authz", e.Operator())
		}
		return err != nil
	})
	return err
}

// harmless are functions of the policy itself and those built-in ones whose answer
// depends on their arguments alone and is about as large as these.
func harmless(e *ast.Expr) bool {
	name := e.Operator().String()
	switch name {
	case "eq", "equal", "assign", "neq", "lt", "lte", "gt", "gte", "internal.member_2", "internal.member_3", "startswith", "endswith", "contains", "lower", "upper",
		"split", "concat", "trim", "trim_left", "trim_right", "trim_prefix", "trim_suffix", "trim_space", "replace", "count", "regex.match", "glob.match",
		"net.cidr_contains", "object.get", "object.keys", "array.concat", "array.slice", "to_number":
		return true
	case "sprintf":
		// A width could be any number.
		format, ok := stringOf(e.Operand(0))
		return ok && !strings.ContainsAny(format, "0123456789*")
	}
	return strings.HasPrefix(name, "data.") || strings.HasPrefix(name, "time.") || strings.HasPrefix(name, "is_")
}

// oneValue refuses definitions of one rule or function that could have two values
// at once.
func oneValue(rules []*ast.Rule) error {
	var value *ast.Term
	definitions := 0
	for _, r := range rules {
		if r.Head.RuleKind() == ast.MultiValue || r.Default {
			continue
		}
		if !r.Head.Ref().IsGround() {
			return stays(r.Location, "it is a rule with computed keys")
		}
		definitions++
		if value == nil {
			value = r.Head.Value
		}
		if definitions > 1 && (!isConstant(value) || !isConstant(r.Head.Value) || !value.Equal(r.Head.Value)) {
			return stays(r.Location, "the rule has several values, and two at once are an error")
		}
		if !isConstant(r.Head.Value) && iterates(r) {
			return stays(r.Location, "the rule may have several values, and two at once are an error")
		}
	}
	return nil
}

// iterates says whether the body may hold in several ways.
func iterates(r *ast.Rule) bool {
	given := ast.VarSet{}
	for _, a := range r.Head.Args {
		given.Update(a.Vars())
	}
	found := false
	look := func(ref ast.Ref) bool {
		for _, t := range ref[1:] {
			ast.WalkVars(t, func(v ast.Var) bool {
				found = found || !given.Contains(v)
				return false
			})
		}
		return false
	}
	ast.WalkRefs(r.Body, look)
	ast.WalkRefs(r.Head.Value, look)
	ast.WalkExprs(r.Body, func(e *ast.Expr) bool {
		found = found || e.IsCall() && e.Operator().String() == "walk"
		return false
	})
	return found
}

package rego

import (
	"maps"
	"slices"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/storage"
)

// wholeData finds the parts of the data that a policy asks for as a whole or walks
// through: data.users as a value, or data.users[x] where nothing has given x a value
// before. They are made before the first request. It is a hint: what it misses is made
// when it is asked for.
func wholeData(query ast.Body, rules []*ast.Rule) []storage.Path {
	w := &whole{bound: make(map[ast.Var]bool), found: make(map[string]storage.Path)}
	w.body(query)
	for _, r := range rules {
		for ; r != nil; r = r.Else {
			for _, arg := range r.Head.Args {
				w.bind(arg)
			}
			w.body(r.Body)
			w.walk(r.Head)
		}
	}
	var out []storage.Path
	for _, name := range slices.Sorted(maps.Keys(w.found)) { // what is around comes first
		if path := w.found[name]; !slices.ContainsFunc(out, path.HasPrefix) {
			out = append(out, path)
		}
	}
	return out
}

type whole struct {
	// bound are the variables that have a value where the walk is. The compiler has
	// brought the expressions into the order in which they are evaluated, and names
	// variables uniquely.
	bound map[ast.Var]bool
	found map[string]storage.Path
}

func (w *whole) body(b ast.Body) {
	for _, e := range b {
		w.walk(e)
		w.bind(e)
	}
}

// bind marks all variables in x.
func (w *whole) bind(x any) {
	ast.NewGenericVisitor(func(x any) bool {
		if v, ok := x.(ast.Var); ok {
			w.bound[v] = true
		}
		return false
	}).Walk(x)
}

func (w *whole) walk(x any) { ast.NewGenericVisitor(w.visit).Walk(x) }

// visit implements a visitor.
func (w *whole) visit(x any) bool {
	switch x := x.(type) {
	case ast.Body:
		w.body(x)
		return true
	case *ast.With:
		w.walk(x.Value)
		return true
	case ast.Ref:
		if x.HasPrefix(ast.DefaultRootRef) {
			w.ref(x)
		}
		for _, part := range x[1:] {
			w.walk(part)
		}
		return true
	}
	return false
}

func (w *whole) ref(r ast.Ref) {
	var path storage.Path
	for _, part := range r[1:] {
		switch p := part.Value.(type) {
		case ast.String:
			path = append(path, string(p))
			continue
		case ast.Number:
			path = append(path, string(p))
			continue
		case ast.Var:
			if w.bound[p] {
				return // one of them
			}
		default:
			return
		}
		break
	}
	w.found[path.String()] = path
}

package rego

import (
	"encoding/binary"

	"github.com/open-policy-agent/opa/v1/ast"
)

// Share has a compiler use one term wherever its rules have the same one, of names,
// constants and references: rules are full of them, and nothing writes to them any more.
// These have no place in the text then; expressions and rules, of which errors at run time
// name the places, do.
func Share(c *ast.Compiler) {
	c.WithStageAfterID(ast.StageCheckDeprecatedBuiltins, ast.CompilerStageDefinition{
		Name: "WritShare", MetricName: "compile_stage_writ_share", Stage: share, // before the stages that build what refers to terms
	})
}

func share(c *ast.Compiler) *ast.Error {
	s := sharing{plain: make(map[ast.Value]*ast.Term), refs: make(map[string]*ast.Term), ids: make(map[*ast.Term]uint32)}
	for _, m := range c.Modules {
		for _, rule := range m.Rules {
			for branch := rule; branch != nil; branch = branch.Else {
				s.head(branch)
				s.body(branch.Body)
			}
		}
	}
	return nil
}

// sharing are the terms that are used for all that are the same.
type sharing struct {
	// plain are names and constants, refs references by the ids of what they are of.
	plain map[ast.Value]*ast.Term
	refs  map[string]*ast.Term
	ids   map[*ast.Term]uint32
	// at is where the rule or the expression is whose terms are looked at.
	at  *ast.Location
	key []byte
}

func (s *sharing) head(r *ast.Rule) {
	h := r.Head
	s.at = r.Location
	if s.isHere(h.Location) {
		h.Location = s.at
	}
	h.Reference = s.terms(h.Reference)
	h.Args = s.terms(h.Args)
	if h.Key != nil {
		h.Key = s.term(h.Key)
	}
	if h.Value != nil {
		h.Value = s.term(h.Value)
	}
}

func (s *sharing) body(b ast.Body) {
	for _, expr := range b {
		s.at = expr.Location
		switch terms := expr.Terms.(type) {
		case *ast.Term:
			expr.Terms = s.term(terms)
		case []*ast.Term:
			expr.Terms = s.terms(terms)
		case *ast.Every:
			s.within(terms.Body)
		}
	}
}

// terms gives a new slice: OPA may have one of its own in several places.
func (s *sharing) terms(all []*ast.Term) []*ast.Term {
	if all == nil {
		return nil
	}
	out := make([]*ast.Term, len(all))
	for i, t := range all {
		out[i] = s.term(t)
	}
	return out
}

// term gives the term that is used for t. By the terms of comprehensions OPA finds their
// indexes, so these stay.
func (s *sharing) term(t *ast.Term) *ast.Term {
	s.place(t) // which expressions that others were made of have too
	switch v := t.Value.(type) {
	case ast.Null, ast.Boolean, ast.Number, ast.String, ast.Var:
		if one := s.plain[v]; one != nil {
			return one
		}
		one := ast.NewTerm(v)
		s.plain[v] = one
		s.ids[one] = uint32(len(s.ids)) //nolint:gosec // there is not so much memory
		return one
	case ast.Ref:
		return s.ref(t, v)
	case ast.Call:
		return &ast.Term{Value: ast.Call(s.terms(v)), Location: t.Location}
	case *ast.ArrayComprehension:
		s.within(v.Body)
	case *ast.SetComprehension:
		s.within(v.Body)
	case *ast.ObjectComprehension:
		s.within(v.Body)
	case *ast.Array, ast.Object, ast.Set:
		ast.WalkTerms(t, func(below *ast.Term) bool {
			s.place(below)
			return false
		})
	}
	return t
}

// within is body of a term in an expression.
func (s *sharing) within(b ast.Body) {
	at := s.at
	s.body(b)
	s.at = at
}

// place gives a term the place of what it is in where that is the same line, as which
// errors name it: places are the most numerous of what is left. A term that has none may be
// one of OPA's own, which all share.
func (s *sharing) place(t *ast.Term) {
	if s.isHere(t.Location) {
		t.Location = s.at
	}
}

func (s *sharing) isHere(l *ast.Location) bool {
	return l != nil && s.at != nil && l.Row == s.at.Row && l.File == s.at.File
}

func (s *sharing) ref(t *ast.Term, v ast.Ref) *ast.Term {
	parts := ast.Ref(s.terms(v))
	s.key = s.key[:0]
	for _, part := range parts {
		id, shared := s.ids[part]
		if !shared {
			return &ast.Term{Value: parts, Location: t.Location}
		}
		s.key = binary.NativeEndian.AppendUint32(s.key, id)
	}
	one := s.refs[string(s.key)]
	if one == nil {
		one = ast.NewTerm(parts)
		s.refs[string(s.key)] = one
	}
	return one
}

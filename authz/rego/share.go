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
			place(rule, rule.Location)
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
	key   []byte
}

func (s *sharing) head(r *ast.Rule) {
	h := r.Head
	if l := h.Location; l != nil && r.Location != nil && l.Row == r.Location.Row && l.File == r.Location.File {
		h.Location = r.Location
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
		switch terms := expr.Terms.(type) {
		case *ast.Term:
			expr.Terms = s.term(terms)
		case []*ast.Term:
			expr.Terms = s.terms(terms)
		case *ast.Every:
			s.body(terms.Body)
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
		s.body(v.Body)
	case *ast.SetComprehension:
		s.body(v.Body)
	case *ast.ObjectComprehension:
		s.body(v.Body)
	}
	return t
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

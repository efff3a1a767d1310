package rego

import (
	"crypto/sha256"
	"encoding/binary"

	"github.com/open-policy-agent/opa/v1/ast"
)

// Key stands for everything that a pure policy's decision depends on: the
// program, with its data, and what it reads of the input.
type Key [sha256.Size]byte

// Key gives the key of a request, false if the decision may depend on something
// else too (see Impure). It is a hash, so that nothing of the request is kept
// where it is.
func (p *Program) Key(in *Input) (Key, bool) {
	if p.impure != "" {
		return Key{}, false
	}
	doc, err := in.document(p.reads)
	if err != nil {
		return Key{}, false
	}
	b := make([]byte, 0, 512)
	b = append(b, p.id[:]...)
	b, ok := appendValue(b, doc)
	return sha256.Sum256(b), ok
}

// Impure names the built-in function that makes a decision depend on more than the
// input and the data, for example time.now_ns; empty if there is none.
func (p *Program) Impure() string { return p.impure }

// Reads are the parts of the input that the program can look at, as references:
// "input.attributes.request.http.path", or "input" for the whole.
func (p *Program) Reads() []string { return p.reads.paths("input") }

// appendValue writes a value so that different values give different bytes: a
// letter for the type, the length, the content. It is false for values that are not
// in an input document.
func appendValue(b []byte, v ast.Value) ([]byte, bool) {
	switch v := v.(type) {
	case ast.Null:
		return append(b, 'n'), true
	case ast.Boolean:
		if v {
			return append(b, 't'), true
		}
		return append(b, 'f'), true
	case ast.Number:
		return appendText(b, '#', string(v)), true
	case ast.String:
		return appendText(b, '"', string(v)), true
	case *ast.Array:
		b = binary.AppendUvarint(append(b, '['), uint64(v.Len())) //nolint:gosec // a length
		ok := true
		for i := range v.Len() {
			if b, ok = appendValue(b, v.Elem(i).Value); !ok {
				return b, false
			}
		}
		return b, true
	case ast.Object:
		b = binary.AppendUvarint(append(b, '{'), uint64(v.Len())) //nolint:gosec // a length
		stopped := v.Until(func(k, e *ast.Term) bool {            // in the order of the keys
			var ok bool
			if b, ok = appendValue(b, k.Value); ok {
				b, ok = appendValue(b, e.Value)
			}
			return !ok
		})
		return b, !stopped
	}
	return b, false
}

func appendText(b []byte, kind byte, s string) []byte {
	b = binary.AppendUvarint(append(b, kind), uint64(len(s)))
	return append(b, s...)
}

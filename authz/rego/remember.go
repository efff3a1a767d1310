package rego

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
)

// maxRemembered bounds what is remembered of one request, in bytes; most have no more
// than usuallyRemembered.
const maxRemembered, usuallyRemembered = 1 << 10, 1 << 8

// Remembered is what a program read of a request, in a compact form: another program that
// reads the same can decide it.
type Remembered struct {
	program, read [sha256.Size]byte
	// document is the part of the input document, as appendValue writes it.
	document string
}

// Size is about the memory that it takes, in bytes.
func (r *Remembered) Size() int { return 2*sha256.Size + 2*8 + len(r.document) }

// Remember gives what the program reads of a request, nil if that is too much or if a
// decision depends on something else (see Impure).
func (p *Program) Remember(in *Input) *Remembered {
	if p.impure != "" {
		return nil
	}
	read, ok := p.readOf(in)
	if !ok {
		return nil
	}
	doc, err := in.document(p.reads)
	if err != nil {
		return nil
	}
	text, ok := appendValue(make([]byte, 0, usuallyRemembered), doc)
	if !ok || len(text) > maxRemembered {
		return nil
	}
	return &Remembered{program: p.id, read: read, document: string(text)}
}

// Remembers says that it was this program, or one that decides alike, that read it.
func (p *Program) Remembers(r *Remembered) bool { return p.id == r.program }

// Follows says whether the program can decide what another one has read, and decides it
// otherwise, or may.
func (p *Program) Follows(other *Program) bool {
	return p.id != other.id && p.impure == "" && other.impure == "" && p.reads.equal(other.reads)
}

// EvalRemembered decides what a program that this one follows has read of a request, as
// Eval decides the request, and gives the key of that. It decides where it is called, and
// so does not return before a built-in function does that takes long.
func (p *Program) EvalRemembered(ctx context.Context, r *Remembered, limit time.Duration) (Key, *Remembered, Decision, error) {
	mine := &Remembered{program: p.id, read: r.read, document: r.document}
	doc, rest, err := readValue(r.document)
	if err == nil && rest != "" {
		err = errRest
	}
	if err != nil {
		return Key{}, nil, Decision{}, fmt.Errorf("remembered request: %w", err)
	}
	w := newWatch(limit, p.memory)
	defer w.stop()
	d, err := p.eval(ctx, doc, w)
	w.ended()
	return p.keyOf(r.read), mine, d, err
}

var (
	errRest  = errors.New("it has something behind its end")
	errShort = errors.New("it ends too early")
	errKind  = errors.New("it has a value of an unknown kind")
)

// readValue reads what appendValue wrote, and gives what is behind it.
func readValue(s string) (v ast.Value, rest string, err error) {
	if s == "" {
		return nil, "", errShort
	}
	kind, s := s[0], s[1:]
	switch kind {
	case 'n':
		return ast.NullValue, s, nil
	case 't', 'f':
		return ast.InternedTerm(kind == 't').Value, s, nil
	}
	n, s, err := readLength(s)
	if err != nil {
		return nil, "", err
	}
	switch kind {
	case '#', '"':
		if n > len(s) {
			return nil, "", errShort
		}
		if kind == '#' {
			return ast.Number(s[:n]), s[n:], nil
		}
		return ast.String(s[:n]), s[n:], nil
	case '[':
		terms := make([]*ast.Term, 0, min(n, len(s)))
		for range n {
			if v, s, err = readValue(s); err != nil {
				return nil, "", err
			}
			terms = append(terms, ast.NewTerm(v))
		}
		return ast.NewArray(terms...), s, nil
	case '{':
		o := ast.NewObjectWithCapacity(min(n, len(s)))
		for range n {
			var k ast.Value
			if k, s, err = readValue(s); err == nil {
				v, s, err = readValue(s)
			}
			if err != nil {
				return nil, "", err
			}
			o.Insert(ast.NewTerm(k), ast.NewTerm(v))
		}
		return o, s, nil
	}
	return nil, "", errKind
}

func readLength(s string) (n int, rest string, err error) {
	var buf [binary.MaxVarintLen64]byte
	u, size := binary.Uvarint(buf[:copy(buf[:], s)])
	if size <= 0 || u > uint64(maxRemembered) {
		return 0, "", errShort
	}
	return int(u), s[size:], nil //nolint:gosec // bounded above
}

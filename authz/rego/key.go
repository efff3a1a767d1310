package rego

import (
	"crypto/sha256"
	"encoding/binary"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/open-policy-agent/opa/v1/ast"
)

// Key stands for everything that a pure policy's decision depends on: what the program
// can look at of rules and data, and what it reads of the input.
type Key [sha256.Size]byte

// Key gives the key of a request, false if the decision may depend on something
// else too (see Impure). It is a hash, so that nothing of the request is kept
// where it is.
func (p *Program) Key(in *Input) (Key, bool) {
	if p.impure != "" {
		return Key{}, false
	}
	read, ok := p.readOf(in)
	return p.keyOf(read), ok
}

// readOf is a hash of what the program reads of a request, false if that cannot be told.
// It is the same for programs that read the same.
func (p *Program) readOf(in *Input) (read [sha256.Size]byte, ok bool) {
	if in.readFor != p.reads {
		var buf [512]byte
		b, ok := in.appendKey(buf[:0], p.reads)
		if !ok {
			return read, false
		}
		in.read, in.readFor = sha256.Sum256(b), p.reads
	}
	return in.read, true
}

func (p *Program) keyOf(read [sha256.Size]byte) Key {
	var b [2 * sha256.Size]byte
	copy(b[:], p.id[:])
	copy(b[sha256.Size:], read[:])
	return sha256.Sum256(b[:])
}

// Impure names the built-in function that makes a decision depend on more than the
// input and the data, for example time.now_ns; empty if there is none.
func (p *Program) Impure() string { return p.impure }

// Headers and Claims name the headers of a request, and the claims of its token, that the
// program can look at. They are empty where it can look at all of them.
func (p *Program) Headers() []string { return p.headers }

// Claims are of the token what Headers are of the request.
func (p *Program) Claims() []string { return p.claims }

// Narrow says that the program looks at no body, and of headers and claims only at those
// that Headers and Claims name.
func (p *Program) Narrow() bool { return p.narrow }

// Reads are the parts of the input that the program can look at, as references:
// "input.attributes.request.http.path", or "input" for the whole.
func (p *Program) Reads() []string { return p.reads.paths("input") }

// appendValue writes a value so that different values give different bytes: a
// letter for the type, the length, the content. It is false for values that are not
// in an input document.
func appendValue(b []byte, v ast.Value) ([]byte, bool) {
	if b, ok := appendScalar(b, v); ok {
		return b, true
	}
	w := &valueWriter{b: b}
	w.write = w.member
	ok := w.value(v)
	return w.b, ok
}

func appendScalar(b []byte, v ast.Value) ([]byte, bool) {
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
	}
	return b, false
}

// valueWriter writes arrays and objects. What is called for each member of an object is
// made once for all.
type valueWriter struct {
	b     []byte
	write func(key, value *ast.Term) (stop bool)
}

func (w *valueWriter) member(key, value *ast.Term) (stop bool) {
	return !w.value(key.Value) || !w.value(value.Value)
}

func (w *valueWriter) value(v ast.Value) (ok bool) {
	if w.b, ok = appendScalar(w.b, v); ok {
		return true
	}
	switch v := v.(type) {
	case *ast.Array:
		w.b = binary.AppendUvarint(append(w.b, '['), uint64(v.Len())) //nolint:gosec // a length
		for i := range v.Len() {
			if !w.value(v.Elem(i).Value) {
				return false
			}
		}
		return true
	case ast.Object:
		w.b = binary.AppendUvarint(append(w.b, '{'), uint64(v.Len())) //nolint:gosec // a length
		return !v.Until(w.write)                                      // in the order of the keys
	}
	return false
}

func appendText(b []byte, kind byte, s string) []byte {
	b = binary.AppendUvarint(append(b, kind), uint64(len(s)))
	return append(b, s...)
}

// absent stands for a value that is not there.
const absent = 'x'

// appendKey writes what r is of the document, in the order of r, so that requests
// whose documents differ in it give different bytes. What most policies read comes
// straight from the message; the rest by way of the document. A test holds the two
// equal.
func (in *Input) appendKey(b []byte, r *reads) ([]byte, bool) {
	if r.all {
		return in.appendDocument(b, r)
	}
	ok := true
	for _, k := range r.keys {
		switch k.name {
		case "attributes":
			b, ok = appendAttributes(b, in.req.GetAttributes(), k.below)
		case "source_principal":
			b = appendText(b, '"', in.req.GetAttributes().GetSource().GetPrincipal())
		case "parsed_path":
			b = binary.AppendUvarint(append(b, '['), uint64(len(in.path)))
			for _, part := range in.path {
				b = appendText(b, '"', part)
			}
		case "jwt_error":
			b = appendText(b, '"', in.options.TokenError)
		default:
			b, ok = in.appendDocument(b, &reads{keys: []key{k}})
		}
		if !ok {
			return b, false
		}
	}
	return b, true
}

func (in *Input) appendDocument(b []byte, r *reads) ([]byte, bool) {
	doc, err := in.make(r)
	if err != nil {
		return b, false
	}
	return appendValue(b, doc)
}

func appendAttributes(b []byte, a *authv3.AttributeContext, r *reads) ([]byte, bool) {
	switch {
	case a == nil:
		return append(b, absent), true
	case r.all:
		return appendValue(b, attributes(a, r).Value)
	}
	b = append(b, '{')
	var ok bool
	for _, k := range r.keys {
		switch k.name {
		case "source":
			b, ok = appendPeer(b, a.GetSource(), k.below)
		case "destination":
			b, ok = appendPeer(b, a.GetDestination(), k.below)
		case "request":
			b, ok = appendRequest(b, a.GetRequest(), k.below)
		default:
			b, ok = appendValue(b, attributes(a, &reads{keys: []key{k}}).Value)
		}
		if !ok {
			return b, false
		}
	}
	return b, true
}

func appendPeer(b []byte, p *authv3.AttributeContext_Peer, r *reads) ([]byte, bool) {
	switch {
	case p == nil:
		return append(b, absent), true
	case len(r.keys) == 1 && r.keys[0].name == "principal":
		return appendText(append(b, '{'), '"', p.GetPrincipal()), true
	}
	return appendValue(b, peer(p, r).Value)
}

func appendRequest(b []byte, q *authv3.AttributeContext_Request, r *reads) ([]byte, bool) {
	switch {
	case q == nil:
		return append(b, absent), true
	case r.all || len(r.keys) != 1 || r.keys[0].name != "http":
		return appendValue(b, requestTerm(q, r).Value)
	}
	return appendHTTP(append(b, '{'), q.GetHttp(), r.keys[0].below)
}

func appendHTTP(b []byte, h *authv3.AttributeContext_HttpRequest, r *reads) ([]byte, bool) {
	switch {
	case h == nil:
		return append(b, absent), true
	case r.all:
		return appendValue(b, httpRequest(h, r).Value)
	}
	b = append(b, '{')
	ok := true
	for _, k := range r.keys {
		switch k.name {
		case "method":
			b = appendText(b, '"', h.GetMethod())
		case "path":
			b = appendText(b, '"', h.GetPath())
		case "host":
			b = appendText(b, '"', h.GetHost())
		case "headers":
			b, ok = appendHeaders(b, h, k)
		default:
			b, ok = appendValue(b, httpRequest(h, &reads{keys: []key{k}}).Value)
		}
		if !ok {
			return b, false
		}
	}
	return b, true
}

func appendHeaders(b []byte, h *authv3.AttributeContext_HttpRequest, k key) ([]byte, bool) {
	switch {
	case len(h.GetHeaders()) == 0:
		return append(b, absent), true
	case k.below.all:
		return appendValue(b, httpRequest(h, &reads{keys: []key{k}}).Value)
	}
	b = append(b, '{')
	for _, name := range k.below.keys {
		if v, ok := h.GetHeaders()[name.name]; ok {
			b = appendText(b, '"', v)
		} else {
			b = append(b, absent)
		}
	}
	return b, true
}

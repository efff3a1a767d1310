package basedoc

import (
	"fmt"
	"iter"
	"maps"
	"slices"
	"sync"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/storage"
)

// value is a part of the data. It is immutable: a change makes another one that shares
// what is the same. The zero value is nothing.
type value struct {
	// doc and at are a value of a document.
	doc *document
	at  int
	// object is an object that is put together; doc is nil then.
	object *object
}

// object is put together of objects of documents, which have no name in common except
// those in over, and of what over has instead: nothing, where a member was removed.
type object struct {
	of   []value
	over map[string]value

	whole sync.Once
	value ast.Value
}

func (v value) isNothing() bool { return v.doc == nil && v.object == nil }

func (v value) isObject() bool { return v.object != nil || v.doc != nil && v.doc.isObject(v.at) }

func (v value) isNull() bool { return v.doc != nil && v.doc.b[v.at] == kindNull }

// child is a member, or nothing.
func (v value) child(name string) value {
	if v.object == nil {
		if v.doc != nil {
			if at, ok := v.doc.child(v.at, name); ok {
				return value{doc: v.doc, at: at}
			}
		}
		return value{}
	}
	if c, ok := v.object.over[name]; ok {
		return c
	}
	for _, part := range v.object.of {
		if c := part.child(name); !c.isNothing() {
			return c
		}
	}
	return value{}
}

func (v value) find(path storage.Path) value {
	for _, name := range path {
		if v = v.child(name); v.isNothing() {
			return v
		}
	}
	return v
}

// members are those of an object.
func (v value) members() iter.Seq2[string, value] {
	return func(yield func(string, value) bool) {
		if v.object == nil {
			v.doc.members(v.at, func(name string, at int) bool { return yield(name, value{doc: v.doc, at: at}) })
			return
		}
		for name, c := range v.object.over {
			if !c.isNothing() && !yield(name, c) {
				return
			}
		}
		for _, part := range v.object.of {
			for name, c := range part.members() {
				if _, other := v.object.over[name]; !other && !yield(name, c) {
					return
				}
			}
		}
	}
}

func (d *document) members(at int, yield func(string, int) bool) {
	from, to := d.body(at)
	for from < to {
		begin, at := d.text(from)
		if !yield(string(d.b[begin:at]), at) {
			return
		}
		from = d.end(at)
	}
}

// size is about how many bytes an object's members have.
func (v value) size() int {
	if v.object == nil {
		return v.doc.end(v.at) - v.at
	}
	n := 0
	for _, part := range v.object.of {
		n += part.size()
	}
	return n + len(v.object.over)
}

// ast gives the value as one of Rego, which the caller must not change.
func (v value) ast() ast.Value {
	o := v.object
	if o == nil {
		return v.doc.value(v.at)
	}
	o.whole.Do(func() {
		var members [][2]*ast.Term
		for name, c := range v.members() {
			members = append(members, [2]*ast.Term{ast.InternedTerm(name), ast.NewTerm(c.ast())})
		}
		o.value = ast.NewObject(members...)
	})
	return o.value
}

// set gives an object in which a member is another one, or is not if c is nothing.
func (v value) set(name string, c value) value {
	o := &object{of: []value{v}}
	if v.object != nil {
		o = &object{of: v.object.of, over: maps.Clone(v.object.over)}
	}
	if o.over == nil {
		o.over = make(map[string]value, 1)
	}
	o.over[name] = c
	if c.isNothing() && !slices.ContainsFunc(o.of, func(part value) bool { return !part.child(name).isNothing() }) {
		delete(o.over, name)
	}
	return value{object: o}
}

// wrapped puts a value into objects of one member, the first of path outermost.
func (v value) wrapped(path storage.Path) value {
	for _, name := range slices.Backward(path) {
		v = value{object: &object{over: map[string]value{name: v}}}
	}
	return v
}

// conflictError is a place where two files of data cannot be put together.
type conflictError struct{ path storage.Path }

func (e *conflictError) Error() string {
	return fmt.Sprintf("another file has %s too", e.path.Ref(ast.DefaultRootDocument))
}

// merge puts two objects together of which nothing was removed, and which nobody else has
// yet: it changes the larger one, since each of many files is merged into those before.
// Each name that both have must be an object in both.
func merge(a, b value, path storage.Path) (value, error) {
	if !a.isObject() || !b.isObject() {
		return value{}, &conflictError{slices.Clone(path)}
	}
	if a.size() < b.size() {
		a, b = b, a
	}
	o := a.object
	if o == nil {
		o = &object{of: a.parts()}
	}
	over := make(map[string]value)
	if b.object != nil {
		maps.Copy(over, b.object.over)
	}
	for name, c := range b.members() {
		other := a.child(name)
		if other.isNothing() {
			continue
		}
		both, err := merge(other, c, append(path, name))
		if err != nil {
			return value{}, err
		}
		over[name] = both
	}
	if o.over == nil {
		o.over = over
	} else {
		maps.Copy(o.over, over)
	}
	o.of = append(o.of, b.parts()...)
	return value{object: o}, nil
}

// parts are the objects of documents that an object is put together of.
func (v value) parts() []value {
	if v.object == nil {
		return []value{v}
	}
	return v.object.of
}

// The ways in which a write is refused, as OPA's store has them.
var (
	errNotFound = &storage.Error{Code: storage.NotFoundErr, Message: "document does not exist"}
	errRoot     = &storage.Error{Code: storage.InvalidPatchErr, Message: "root cannot be removed"}
	errNoObject = &storage.Error{Code: storage.InvalidPatchErr, Message: "root must be object"}
)

// write gives the root after an operation. Members of arrays are not written.
func (v value) write(op storage.PatchOp, path storage.Path, c value) (value, error) {
	if len(path) == 0 {
		switch {
		case op == storage.RemoveOp:
			return value{}, errRoot
		case !c.isObject():
			return value{}, errNoObject
		}
		return c, nil
	}
	if !v.isObject() {
		return value{}, errNotFound
	}
	have := v.child(path[0])
	if len(path) == 1 {
		if op != storage.AddOp && have.isNothing() {
			return value{}, errNotFound
		}
		if op == storage.RemoveOp {
			c = value{}
		}
		return v.set(path[0], c), nil
	}
	if have.isNothing() {
		return value{}, errNotFound
	}
	below, err := have.write(op, path[1:], c)
	if err != nil {
		return value{}, err
	}
	return v.set(path[0], below), nil
}

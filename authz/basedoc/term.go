package basedoc

import (
	"maps"
	"sync"

	"github.com/open-policy-agent/opa/v1/ast"
)

const (
	// keptFrom is from how many bytes of a document on the value that was made of them
	// is kept: smaller ones are made in some microseconds.
	keptFrom = 1 << 10
	// keptBytes bounds the values of one document that are kept, in bytes of the
	// document; as values they take five to ten times that. What is larger than a
	// quarter of it is kept in any case, since making it again takes a second.
	keptBytes = 16 << 20
	// sharedTexts and sharedLength bound the texts that a value shares, in number and
	// in bytes: roles, say, that each user has.
	sharedTexts  = 1 << 16
	sharedLength = 64
)

// value gives what is at a position as a value of Rego.
func (d *document) value(at int) ast.Value {
	size := d.end(at) - at
	if size < keptFrom {
		return d.make(at, nil).Value
	}
	if v := d.made.get(at); v != nil {
		return v
	}
	if size < keptBytes/4 {
		v := d.make(at, nil).Value
		d.made.keep(at, size, v)
		return v
	}
	return d.large(at)
}

// large gives a value that is kept for good: a part of one that is, or a new one. One is
// made at a time, and each once.
func (d *document) large(at int) ast.Value {
	d.made.large.Lock()
	defer d.made.large.Unlock()
	if v := d.made.get(at); v != nil {
		return v
	}
	end := d.end(at)
	v := d.partOf(at, end)
	if v == nil {
		v = d.make(at, make(map[string]*ast.Term)).Value
	}
	d.made.mu.Lock()
	defer d.made.mu.Unlock()
	if d.made.held == nil {
		d.made.held = make(map[int]ast.Value)
	}
	// Its own parts, if they were asked for before, are in memory once only.
	maps.DeleteFunc(d.made.held, func(part int, _ ast.Value) bool { return part > at && part < end })
	d.made.held[at] = v
	return v
}

// partOf finds the value from at to end in one that is held, nil if it is in none.
func (d *document) partOf(at, end int) ast.Value {
	d.made.mu.RLock()
	var v ast.Value
	from := -1
	for around, held := range d.made.held {
		if around < at && d.end(around) >= end && around > from {
			from, v = around, held
		}
	}
	d.made.mu.RUnlock()
	for v != nil && from < at {
		from, v = d.childAround(from, at, v)
	}
	return v
}

// childAround goes from a container, which is v, to the member that has the position at.
func (d *document) childAround(container, at int, v ast.Value) (int, ast.Value) {
	next, to := d.body(container)
	switch v := v.(type) {
	case *ast.Array:
		for i := 0; next < to; i++ {
			if end := d.end(next); at < end {
				return next, v.Elem(i).Value
			}
			next = d.end(next)
		}
	case ast.Object:
		for next < to {
			begin, value := d.text(next)
			if next = d.end(value); at >= next {
				continue
			}
			if t := v.Get(ast.StringTerm(string(d.b[begin:value]))); t != nil {
				return value, t.Value
			}
			break
		}
	}
	return at, nil
}

// make makes a value. Texts are shared by way of shared, which may be nil.
func (d *document) make(at int, shared map[string]*ast.Term) *ast.Term {
	switch t := d.b[at]; {
	case t == kindNull:
		return ast.InternedNullTerm
	case t == kindFalse, t == kindTrue:
		return ast.InternedTerm(t == kindTrue)
	case t >= shortNumber, t == kindNumber:
		from, to := d.text(at)
		s := string(d.b[from:to])
		if n := ast.InternedIntNumberTermFromString(s); n != nil {
			return n
		}
		return &ast.Term{Value: ast.Number(s)}
	case t >= shortText, t == kindText:
		from, to := d.text(at)
		return textTerm(d.b[from:to], shared)
	case d.isArray(at):
		from, to := d.body(at)
		var elements []*ast.Term
		for ; from < to; from = d.end(from) {
			elements = append(elements, d.make(from, shared))
		}
		return ast.NewTerm(ast.NewArray(elements...))
	default:
		from, to := d.body(at)
		var members [][2]*ast.Term
		for from < to {
			begin, value := d.text(from)
			members = append(members, [2]*ast.Term{textTerm(d.b[begin:value], shared), d.make(value, shared)})
			from = d.end(value)
		}
		return ast.NewTerm(ast.NewObject(members...))
	}
}

func textTerm(b []byte, shared map[string]*ast.Term) *ast.Term {
	if shared == nil || len(b) > sharedLength {
		return ast.InternedTerm(string(b))
	}
	if t := shared[string(b)]; t != nil {
		return t
	}
	t := ast.InternedTerm(string(b))
	if len(shared) < sharedTexts {
		shared[string(t.Value.(ast.String))] = t //nolint:forcetypeassert // just made
	}
	return t
}

// made are values of a document that are kept, by position. It forgets, once as much
// as keptBytes/2 came anew, what was not asked for meanwhile.
type made struct {
	// large is held while something large is made.
	large sync.Mutex

	mu         sync.RWMutex
	held       map[int]ast.Value
	young, old map[int]kept
	bytes      int
}

type kept struct {
	value ast.Value
	size  int
}

func (m *made) get(at int) ast.Value {
	m.mu.RLock()
	v, held := m.held[at]
	young, isYoung := m.young[at]
	old, isOld := m.old[at]
	m.mu.RUnlock()
	switch {
	case held:
		return v
	case isYoung:
		return young.value
	case isOld:
		m.keep(at, old.size, old.value)
		return old.value
	}
	return nil
}

func (m *made) keep(at, size int, v ast.Value) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, known := m.young[at]; known {
		return
	}
	if m.bytes += size; m.young == nil || m.bytes > keptBytes/2 {
		m.young, m.old, m.bytes = make(map[int]kept), m.young, size
	}
	m.young[at] = kept{v, size}
}

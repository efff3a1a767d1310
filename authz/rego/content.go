package rego

import (
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"maps"
	"slices"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/storage"

	"github.com/writ-mesh/writ/authz/basedoc"
)

// maxContent bounds the data that are looked through to tell whether a program decides as
// another one did, in bytes: a tenth of a second of work.
const maxContent = 32 << 20

// needed are the parts of data, rules and base documents alike, that a query can look at:
// a tree of names. What is below a part that is needed whole is not listed.
type needed struct {
	whole bool
	below map[string]*needed
}

// add adds what is at the end of a path, and below.
func (n *needed) add(path []string) {
	for _, name := range path {
		if n.whole {
			return
		}
		next := n.below[name]
		if next == nil {
			next = new(needed)
			if n.below == nil {
				n.below = make(map[string]*needed)
			}
			n.below[name] = next
		}
		n = next
	}
	n.whole, n.below = true, nil
}

// contentID stands for all that the decisions of a program depend on besides its input:
// the query, what it reads, the rules and the data that it can look at, and what
// functions can see of how it was compiled. Two programs have the same one only if they
// decide each input alike. Names of variables that the compiler made up are replaced by
// their order, places in the text and comments are left out, so that it stays the same
// where only other modules have changed. It is false if that cannot be told: data are too
// large, or there is something that is not known here.
func contentID(c *ast.Compiler, query ast.Body, found *analysis, store *basedoc.Store, txn storage.Transaction, o Options) (id [sha256.Size]byte, ok bool) {
	if c == nil || c.RuleTree == nil {
		return id, false
	}
	w := &contentWriter{to: sha256.New(), vars: make(map[ast.Var]int)}
	w.environment(c, o)
	w.body(query)
	for _, path := range found.reads.paths("input") {
		w.text('i', path)
	}
	w.rules(c.RuleTree.Child(ast.DefaultRootDocument.Value), &found.data)
	w.flush()
	if !w.failed {
		w.base(&found.data, nil, store, txn, maxContent)
	}
	return [sha256.Size]byte(w.to.Sum(nil)), !w.failed
}

// contentWriter writes to a hash so that different things give different bytes: a letter
// for the kind, the length, the content, as appendValue does.
type contentWriter struct {
	to  hash.Hash
	buf []byte
	// vars are the variables of the rule that is written, in the order in which they come.
	vars map[ast.Var]int
	// failed says that there was something that cannot be written.
	failed bool
}

// flushFrom is how much is gathered before it is hashed, in bytes.
const flushFrom = 4 << 10

func (w *contentWriter) flush() {
	_, _ = w.to.Write(w.buf) // never fails
	w.buf = w.buf[:0]
}

func (w *contentWriter) text(kind byte, s string) { w.buf = appendText(w.buf, kind, s) }

// number writes how many of a kind follow.
func (w *contentWriter) number(kind byte, n int) {
	w.buf = binary.AppendUvarint(append(w.buf, kind), uint64(n)) //nolint:gosec // a length
}

func (w *contentWriter) truth(is bool) {
	kind := byte('f')
	if is {
		kind = 't'
	}
	w.buf = append(w.buf, kind)
}

// environment writes what functions can see of how a program was compiled.
func (w *contentWriter) environment(c *ast.Compiler, o Options) {
	w.truth(o.Network)
	w.truth(o.V0)
	w.number('v', int(c.DefaultRegoVersion()))
	caps := c.Capabilities()
	if caps == nil {
		w.failed = true
		return
	}
	w.number('b', len(caps.Builtins))
	for _, b := range caps.Builtins {
		w.text('b', b.Name)
	}
	for _, list := range [][]string{caps.FutureKeywords, caps.Features, caps.AllowNet} {
		w.number('c', len(list))
		for _, s := range list {
			w.text('c', s)
		}
	}
}

// rules writes the rules at a node of the compiler's tree that are needed: all on the way
// to what is needed, and all below it. Rules whose name has a variable in it are
// evaluated together with all below them.
func (w *contentWriter) rules(n *ast.TreeNode, need *needed) {
	if n == nil {
		w.buf = append(w.buf, absent)
		return
	}
	if n.External != nil {
		w.failed = true
		return
	}
	w.number('N', len(n.Values))
	w.truth(n.Hide)
	whole := need.whole
	for _, r := range n.Values {
		w.rule(r)
		whole = whole || r.Head == nil || !r.Head.Ref().IsGround()
	}
	if whole {
		w.number('A', len(n.Children))
		for _, key := range slices.SortedFunc(maps.Keys(n.Children), ast.Value.Compare) {
			w.value(key)
			w.rules(n.Children[key], &needed{whole: true})
		}
		return
	}
	w.number('S', len(need.below))
	for _, name := range slices.Sorted(maps.Keys(need.below)) {
		w.text('"', name)
		w.rules(n.Child(ast.String(name)), need.below[name])
	}
}

// rule writes a rule and its else branches. What a rule is in the text is not written, and
// neither is what is said about it, which is in its body where it asks for that.
func (w *contentWriter) rule(r *ast.Rule) {
	clear(w.vars)
	if r.Module == nil || r.Module.Package == nil {
		w.failed = true
		return
	}
	w.terms('P', r.Module.Package.Path)
	for branch := r; branch != nil; branch = branch.Else {
		h := branch.Head
		if h == nil {
			w.failed = true
			return
		}
		w.buf = append(w.buf, 'R')
		w.truth(branch.Default)
		w.truth(h.Assign)
		w.text('"', string(h.Name))
		w.terms('r', h.Reference)
		w.number('a', len(h.Args))
		w.terms('a', h.Args)
		w.term(h.Key)
		w.term(h.Value)
		w.body(branch.Body)
	}
	w.buf = append(w.buf, 'e')
	if len(w.buf) >= flushFrom {
		w.flush()
	}
}

func (w *contentWriter) body(b ast.Body) {
	w.number('B', len(b))
	for _, e := range b {
		w.expr(e)
	}
}

func (w *contentWriter) expr(e *ast.Expr) {
	w.truth(e.Negated)
	w.truth(e.Generated)
	w.number('x', e.Index)
	switch terms := e.Terms.(type) {
	case *ast.Term:
		w.term(terms)
	case []*ast.Term:
		w.terms('T', terms)
	case *ast.Every:
		w.buf = append(w.buf, 'E')
		w.term(terms.Key)
		w.term(terms.Value)
		w.term(terms.Domain)
		w.body(terms.Body)
	default:
		w.failed = true
	}
	w.number('w', len(e.With))
	for _, with := range e.With {
		w.term(with.Target)
		w.term(with.Value)
	}
}

func (w *contentWriter) terms(kind byte, all []*ast.Term) {
	w.number(kind, len(all))
	for _, t := range all {
		w.term(t)
	}
}

func (w *contentWriter) term(t *ast.Term) {
	if t == nil {
		w.buf = append(w.buf, absent)
		return
	}
	w.value(t.Value)
}

func (w *contentWriter) value(v ast.Value) {
	switch v := v.(type) {
	case ast.Null, ast.Boolean, ast.Number, ast.String:
		w.buf, _ = appendValue(w.buf, v)
	case ast.Var:
		w.variable(v)
	case ast.Ref:
		w.terms('r', v)
	case ast.Call:
		w.terms('C', v)
	case *ast.Array:
		w.number('[', v.Len())
		for i := range v.Len() {
			w.term(v.Elem(i))
		}
	case ast.Object:
		w.number('{', v.Len())
		v.Foreach(func(k, e *ast.Term) {
			w.term(k)
			w.term(e)
		})
	case ast.Set:
		w.number('<', v.Len())
		v.Foreach(w.term)
	case *ast.ArrayComprehension:
		w.buf = append(w.buf, 'p')
		w.term(v.Term)
		w.body(v.Body)
	case *ast.SetComprehension:
		w.buf = append(w.buf, 's')
		w.term(v.Term)
		w.body(v.Body)
	case *ast.ObjectComprehension:
		w.buf = append(w.buf, 'o')
		w.term(v.Key)
		w.term(v.Value)
		w.body(v.Body)
	default:
		w.failed = true
	}
}

// variable writes one of a rule. The names of those that were made up count through all
// modules, so that only their order is written; OPA tells both kinds by how they begin.
func (w *contentWriter) variable(v ast.Var) {
	kind := byte('L')
	switch {
	case v.IsWildcard():
		kind = 'W'
	case !v.IsGenerated():
		w.text('V', string(v))
		return
	}
	n, seen := w.vars[v]
	if !seen {
		n = len(w.vars)
		w.vars[v] = n
	}
	w.number(kind, n)
}

// base writes the data that are needed.
func (w *contentWriter) base(need *needed, path storage.Path, store *basedoc.Store, txn storage.Transaction, room int) (left int) {
	if need.whole {
		w.text('D', path.String())
		w.flush()
		n, err := store.Content(txn, path, w.to, room)
		w.failed = w.failed || err != nil
		return room - n
	}
	for _, name := range slices.Sorted(maps.Keys(need.below)) {
		if room = w.base(need.below[name], append(slices.Clone(path), name), store, txn, room); w.failed {
			break
		}
	}
	return room
}

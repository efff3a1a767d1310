package rego

import (
	"maps"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

// Links are all of a module that what becomes of others in a compiler can depend on, and
// all that it depends on itself, as it was parsed: names, no values. Equal ones link alike. They are kept for each
// module of a bundle, so that they are few texts.
type Links struct {
	// pkg is the module's package; rules are where those rules are whose names have one part,
	// and deep those of others; refs is what it refers to. All as far as these are known.
	pkg, rules, deep, refs Paths
}

// LinksOf is false if a module depends on more than what it names, as one that asks for
// annotations.
func LinksOf(m *ast.Module) (Links, bool) {
	for _, a := range m.Annotations {
		if a.Scope == "subpackages" || len(a.Schemas) > 0 {
			return Links{}, false
		}
	}
	if readsMetadata(m) {
		return Links{}, false
	}
	l := linker{aliases: make(map[ast.Var]ast.Ref), ok: true}
	pkg := m.Package.Path
	for _, i := range m.Imports {
		if path, ok := i.Path.Value.(ast.Ref); ok && len(path) > 0 && path[0].Equal(ast.DefaultRootDocument) {
			l.aliases[i.Name()] = path
		}
	}
	out := Links{pkg: l.path(pkg)}
	for _, r := range m.Rules {
		if name := r.Head.Ref(); len(staticPath(name)) == 0 {
			out.rules += l.path(pkg.Extend(name))
		} else {
			out.deep += l.path(pkg.Extend(name))
		}
		for branch := r; branch != nil; branch = branch.Else {
			for _, part := range branch.Head.Reference[min(1, len(branch.Head.Reference)):] {
				l.walk(part)
			}
			l.walk(branch)
		}
	}
	for _, path := range slices.Sorted(maps.Keys(l.refs)) { // links are compared
		out.refs += path
	}
	return out, l.ok && len(staticPath(pkg)) == len(pkg)-1
}

type linker struct {
	aliases map[ast.Var]ast.Ref
	refs    map[Paths]bool
	ok      bool
}

func (l *linker) walk(x any) { ast.NewGenericVisitor(l.visit).Walk(x) }

// visit implements ast.GenericVisitor; true leaves out what is below x.
func (l *linker) visit(x any) bool {
	switch x := x.(type) {
	case ast.Var:
		l.refer(x, nil)
	case ast.Ref:
		if len(x) == 0 {
			return true
		}
		if head, ok := x[0].Value.(ast.Var); ok {
			l.refer(head, x[1:])
		} else {
			l.walk(x[0])
		}
		for _, part := range x[1:] {
			if _, text := part.Value.(ast.String); !text {
				l.walk(part)
			}
		}
		return true
	}
	return false
}

// refer takes in a reference that begins with a name.
func (l *linker) refer(head ast.Var, rest ast.Ref) {
	var path ast.Ref
	switch alias, ok := l.aliases[head]; {
	case ok:
		path = append(append(path, alias...), rest...)
	case head.Equal(ast.DefaultRootDocument.Value):
		path = append(append(path, ast.DefaultRootDocument), rest...)
	default:
		return
	}
	if l.refs == nil {
		l.refs = make(map[Paths]bool)
	}
	l.refs[l.path(path)] = true
}

// path is a reference as it is kept, as far as it is known.
func (l *linker) path(ref ast.Ref) Paths {
	p, ok := pathOf(staticPath(ref))
	l.ok = l.ok && ok
	return p
}

// staticPath are the names behind a reference's first part, up to the first that is not known.
func staticPath(ref ast.Ref) (path []string) {
	for _, part := range ref[min(1, len(ref)):] {
		name, ok := part.Value.(ast.String)
		if !ok {
			break
		}
		path = append(path, string(name))
	}
	return path
}

// Linked are modules, and which of them depend on which.
type Linked struct {
	root    *place
	modules map[string]int
	// On what each thing depends, and what depends on it: things are modules, and the rules,
	// the packages and all that is at or below a place.
	on, by [][]int
}

// place is one below data: a package, what is around packages, and a rule whose name has
// several parts or where a package is.
type place struct {
	children map[string]*place
	rules    int // all rules that are here; noThing if there are none
	pkg      int // all modules of this package; noThing if there are none
	below    int // all that is here and below
}

const noThing = -1

// Link finds out how modules depend on each other. Each may have several links, as of
// before and after a change.
func Link(modules map[string][]Links) *Linked {
	g := &Linked{modules: make(map[string]int, len(modules))}
	g.root = g.place()
	every := func(visit func(module int, l Links)) {
		for name, links := range modules {
			for _, l := range links {
				visit(g.modules[name], l)
			}
		}
	}
	for name := range modules {
		g.modules[name] = g.thing()
	}
	every(func(m int, l Links) { l.pkg.Each(func(path Path) { g.both(m, g.some(&g.at(path).pkg)) }) })
	every(func(m int, l Links) { l.deep.Each(func(path Path) { g.both(m, g.some(&g.at(path).rules)) }) })
	every(func(m int, l Links) {
		if p := g.find(Path(strings.TrimSuffix(string(l.pkg), pathEnd))); len(p.children) == 0 {
			return
		}
		l.rules.Each(func(path Path) {
			if p := g.find(path); p != nil {
				g.both(m, g.some(&p.rules))
			}
		})
	})
	every(func(m int, l Links) {
		l.refs.Each(func(path Path) {
			for _, thing := range g.meant(path) {
				g.depends(m, thing)
			}
		})
	})
	g.conflicts(g.root, noThing)
	return g
}

func (g *Linked) thing() int {
	g.on, g.by = append(g.on, nil), append(g.by, nil)
	return len(g.on) - 1
}

func (g *Linked) some(thing *int) int {
	if *thing == noThing {
		*thing = g.thing()
	}
	return *thing
}

func (g *Linked) place() *place { return &place{rules: noThing, pkg: noThing, below: g.thing()} }

// at makes a place if there is none.
func (g *Linked) at(path Path) *place {
	p := g.root
	for name := ""; len(path) > 0; {
		name, path = path.next()
		child := p.children[name]
		if child == nil {
			child = g.place()
			if p.children == nil {
				p.children = make(map[string]*place)
			}
			p.children[name] = child
		}
		p = child
	}
	return p
}

// find is nil if there is no such place.
func (g *Linked) find(path Path) *place {
	p := g.root
	for name := ""; p != nil && len(path) > 0; {
		name, path = path.next()
		p = p.children[name]
	}
	return p
}

func (g *Linked) depends(a, b int) {
	g.on[a] = append(g.on[a], b)
	g.by[b] = append(g.by[b], a)
}

func (g *Linked) both(a, b int) {
	g.depends(a, b)
	g.depends(b, a)
}

// meant are what a reference may mean: rules in whose value it ends, the package in which
// it is a rule, or all at its end and below.
func (g *Linked) meant(path Path) (things []int) {
	p := g.root
	for name := ""; len(path) > 0; {
		if p.rules != noThing {
			things = append(things, p.rules)
		}
		name, path = path.next()
		child := p.children[name]
		if child == nil {
			if p.pkg != noThing {
				things = append(things, p.pkg)
			}
			return things
		}
		p = child
	}
	return append(things, p.below)
}

// conflicts has all below a place depend on it, and has rules depend on what is below
// them, and that on them: they must not both be there. above are the next rules above.
func (g *Linked) conflicts(p *place, above int) {
	for _, thing := range []int{p.rules, p.pkg} {
		if thing != noThing {
			g.depends(p.below, thing)
			if above != noThing {
				g.both(above, thing)
			}
		}
	}
	if p.rules != noThing {
		if p.pkg != noThing {
			g.both(p.rules, p.pkg)
		}
		above = p.rules
	}
	for _, child := range p.children {
		g.depends(p.below, child.below)
		g.conflicts(child, above)
	}
}

// DependOn names modules, and all that depend on any of them.
func (g *Linked) DependOn(names map[string]bool) map[string]bool {
	return g.closure(g.by, g.things(names))
}

// With names modules, and all that they depend on.
func (g *Linked) With(names map[string]bool) map[string]bool { return g.closure(g.on, g.things(names)) }

// Reached names the modules that queries can reach, and all that these depend on.
func (g *Linked) Reached(queries ...ast.Body) map[string]bool {
	l := linker{ok: true}
	for _, q := range queries {
		l.walk(q)
	}
	if !l.ok { // a name that is not kept
		return g.closure(g.on, []int{g.root.below})
	}
	var things []int
	for text := range l.refs {
		text.Each(func(path Path) { things = append(things, g.meant(path)...) })
	}
	return g.closure(g.on, things)
}

func (g *Linked) things(names map[string]bool) (things []int) {
	for name := range names {
		if thing, ok := g.modules[name]; ok {
			things = append(things, thing)
		}
	}
	return things
}

// closure names the modules among things, and all that edges lead to from them.
func (g *Linked) closure(edges [][]int, todo []int) map[string]bool {
	found := make([]bool, len(edges))
	for len(todo) > 0 {
		thing := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if !found[thing] {
			found[thing] = true
			todo = append(todo, edges[thing]...)
		}
	}
	names := make(map[string]bool)
	for name, thing := range g.modules {
		if found[thing] {
			names[name] = true
		}
	}
	return names
}

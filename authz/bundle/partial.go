package bundle

import (
	"maps"

	"github.com/open-policy-agent/opa/v1/ast"
	opabundle "github.com/open-policy-agent/opa/v1/bundle"

	"github.com/writ-mesh/writ/authz/rego"
	"github.com/writ-mesh/writ/authz/unpack"
)

// part is one module of a bundle: what it was parsed from, and what it has to do with others.
type part struct {
	text  unpack.Digest
	links rego.Links
}

// partsOf is nil if one of the modules may have to do with more than it names.
func partsOf(is unpack.Modules, modules []opabundle.ModuleFile) map[string]part {
	parts := make(map[string]part, len(is.Each))
	for _, m := range modules {
		text, ok := is.Each[m.Path]
		if !ok {
			return nil
		}
		links, ok := rego.LinksOf(m.Parsed)
		if !ok {
			return nil
		}
		parts[m.Path] = part{text, links}
	}
	return parts
}

// picking finds out how much of a bundle has to be compiled: nothing, if no module has
// changed; those that depend on what has changed, with what they depend on, which OPA would
// find right or wrong the same way among all others; or everything.
type picking struct {
	m *Manager
	o *opabundle.ActivateOpts
	// again activates the bundle as it was picked. It is false if that cannot be, and nil
	// if everything was picked.
	again func(activate func() error) (bool, error)

	parts map[string]part // of what has changed
}

// of picks of the bundle of that name.
func (p *picking) of(name string) unpack.Pick {
	return func(is unpack.Modules, parsed map[string]*ast.Module) ([]string, bool) {
		return p.pick(name, is, parsed)
	}
}

// pick implements unpack.Pick for the bundle of that name.
func (p *picking) pick(name string, is unpack.Modules, parsed map[string]*ast.Module) (names []string, all bool) {
	was := p.m.compiled
	// Each activation that changes modules of another bundle makes a compiler.
	if was == nil || was.rules == nil || len(p.o.Bundles) != 1 || was.compiler != p.m.opa.GetCompiler() {
		return nil, true
	}
	digest, known := was.digests[name]
	switch {
	case known && digest == is.Digest:
		p.again = func(activate func() error) (bool, error) { return p.m.again(p.o, activate) }
		return nil, false
	case !known || !p.m.divisible(p.o, is):
		return nil, true
	}
	changed := make(map[string]bool)
	for name, text := range is.Each {
		if now, there := was.parts[name]; !there || now.text != text {
			changed[name] = true
		}
	}
	if 2*len(changed) > len(is.Each) {
		return nil, true
	}
	if missing := without(changed, parsed); len(missing) > 0 {
		return missing, false
	}
	p.parts = make(map[string]part, len(changed))
	for name := range changed {
		links, ok := rego.LinksOf(parsed[name])
		if !ok {
			return nil, true
		}
		p.parts[name] = part{is.Each[name], links}
	}
	needed, asked, ok := p.m.needed(p.parts)
	if !ok || 4*len(needed) > 3*len(is.Each) {
		return nil, true
	}
	if missing := without(needed, parsed); len(missing) > 0 {
		return missing, false
	}
	p.again = func(activate func() error) (bool, error) { return p.m.compilePartly(p, name, is, asked, activate) }
	return nil, false
}

// divisible says that what is in force can stay but for what depends on changes.
func (m *Manager) divisible(o *opabundle.ActivateOpts, is unpack.Modules) bool {
	was, current := m.compiled, m.current.Load()
	// That it decides means that nothing in it is refused that OPA allows.
	if current == nil || current.compiler != was.compiler || !was.slim || was.parts == nil || was.around != is.Around || len(o.ExtraModules) > 0 {
		return false
	}
	for name := range was.parts {
		if _, there := is.Each[name]; !there {
			return false // what OPA keeps of it would have to go
		}
	}
	return true
}

// sameLinks says that changed modules have to do with others as they had before.
func (c *compiled) sameLinks(changed map[string]part) bool {
	for name, p := range changed {
		if was, there := c.parts[name]; !there || was.links != p.links {
			return false
		}
	}
	return true
}

// linkedWith links all modules as they were and as they have become.
func (c *compiled) linkedWith(changed map[string]part) *rego.Linked {
	same := c.sameLinks(changed)
	if same && c.linked != nil {
		return c.linked
	}
	links := make(map[string][]rego.Links, len(c.parts))
	for name, p := range c.parts {
		links[name] = append(links[name], p.links)
	}
	if same {
		c.linked = rego.Link(links)
		return c.linked
	}
	for name, p := range changed {
		links[name] = append(links[name], p.links)
	}
	return rego.Link(links)
}

// needed are the modules to compile for what has changed. If queries can reach any that
// depend on it, those that they can reach are among them, and the queries are given.
func (m *Manager) needed(changed map[string]part) (names map[string]bool, asked []ast.Body, ok bool) {
	if asked = m.asked(); asked == nil {
		return nil, nil, false
	}
	begin := make(map[string]bool, len(changed))
	for name := range changed {
		begin[name] = true
	}
	linked := m.compiled.linkedWith(changed)
	depend := linked.DependOn(begin)
	names = linked.With(depend)
	reached := linked.Reached(asked...)
	for name := range depend {
		if reached[name] {
			maps.Copy(names, reached)
			return names, asked, true
		}
	}
	return names, nil, true
}

// without names those that were not parsed.
func without(names map[string]bool, parsed map[string]*ast.Module) (missing []string) {
	for name := range names {
		if parsed[name] == nil {
			missing = append(missing, name)
		}
	}
	return missing
}

// compilePartly activates a bundle that has come with what was picked of its modules. What
// queries reach is in force from then on if it was picked, that is if there are asked;
// else it stays. It is false if data are where a rule is.
func (m *Manager) compilePartly(p *picking, name string, is unpack.Modules, asked []ast.Body, activate func() error) (bool, error) {
	was, o := m.compiled, p.o
	endWith(o.Ctx, o.Compiler)
	if asked != nil {
		rego.Share(o.Compiler)
	}
	if err := m.beyondModules(o, activate); err != nil {
		return true, err
	}
	paths := rego.RulePaths(o.Compiler)
	if paths == nil {
		return false, nil
	}
	next := &compiled{compiler: o.Compiler, digests: maps.Clone(was.digests), around: is.Around, slim: true}
	next.digests[name] = is.Digest
	next.rules = maps.Clone(was.rules)
	maps.Copy(next.rules, paths)
	if free, err := pathsAreFree(o, next.rules); err != nil || !free {
		return false, err
	}
	next.parts = maps.Clone(was.parts)
	maps.Copy(next.parts, p.parts)
	if was.sameLinks(p.parts) {
		next.linked = was.linked
	}
	if asked != nil {
		parsed := o.Bundles[name].ParsedModules(name)
		*o.Compiler = *rego.Only(o.Compiler, parsed, m.opa.EnablePrintStatements(), asked...)
		m.keep(next, parsed)
		return true, nil
	}
	required := o.Compiler.Required // by which modules are refused, reached or not
	*o.Compiler = *was.compiler     // it is not used to compile again
	o.Compiler.Required = required
	next.parsed = was.parsed
	m.compiled = next
	return true, nil
}

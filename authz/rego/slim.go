package rego

import (
	"maps"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

// fewModules are too few to be worth leaving some of them out.
const fewModules = 16

// Slim gives a compiler of only those modules that queries can reach, for which it decides
// as the full one, whose modules were parsed as parsed has them. What it leaves out is
// neither in memory nor looked through by the garbage collector any more. Where little can be left
// out, or it cannot be told what a query reaches, that is the full one itself. prints says
// whether print statements are compiled.
func Slim(full *ast.Compiler, parsed map[string]*ast.Module, prints bool, queries ...ast.Body) *ast.Compiler {
	if len(full.Modules) <= fewModules {
		return full
	}
	names := seenBy(full, queries)
	if 4*len(names) > 3*len(full.Modules) {
		return full
	}
	return slimmed(names, full, parsed, prints)
}

// Only is Slim however little can be left out.
func Only(full *ast.Compiler, parsed map[string]*ast.Module, prints bool, queries ...ast.Body) *ast.Compiler {
	names := seenBy(full, queries)
	if len(names) == len(full.Modules) {
		return full
	}
	return slimmed(names, full, parsed, prints)
}

// seenBy names the modules of which queries see something.
func seenBy(full *ast.Compiler, queries []ast.Body) map[string]bool {
	names := reachedBy(full, queries)
	for name, m := range full.Modules {
		if len(m.Rules) == 0 { // its package is an empty object in what is around it
			names[name] = true
		}
	}
	return names
}

func slimmed(names map[string]bool, full *ast.Compiler, parsed map[string]*ast.Module, prints bool) *ast.Compiler {
	picked := make(map[string]*ast.Module, len(names))
	for name := range names {
		m := parsed[name]
		if m == nil || readsMetadata(m) {
			return full
		}
		picked[name] = m
	}
	c := ast.NewCompiler().WithCapabilities(full.Capabilities()).WithEnablePrintStatements(prints).WithDefaultRegoVersion(full.DefaultRegoVersion())
	Share(c)
	if c.Compile(picked); c.Failed() {
		return full
	}
	c.Required = full.Required // by which modules are refused, reached or not
	return c
}

// Trim takes out of a compiler what only compiling modules needs.
func Trim(c *ast.Compiler) {
	c.Graph = nil
	for _, m := range c.Modules {
		m.Comments = nil
	}
}

// readsMetadata says that a module asks for annotations, which may be those of modules
// that it does not refer to.
func readsMetadata(m *ast.Module) bool {
	found := false
	ast.WalkRefs(m, func(r ast.Ref) bool {
		found = found || len(r) > 1 && r[0].Value.Compare(ast.Var("rego")) == 0 && r[1].Value.Compare(ast.String("metadata")) == 0
		return found
	})
	return found
}

// reachedBy names the modules of the rules that queries can reach, and of all that any
// rule of these modules can.
func reachedBy(c *ast.Compiler, queries []ast.Body) map[string]bool {
	r := reaching{compiler: c, names: make(map[*ast.Module]string, len(c.Modules)), found: make(map[string]bool)}
	for name, m := range c.Modules {
		r.names[m] = name
	}
	for _, q := range queries {
		r.walk(q)
	}
	for len(r.todo) > 0 {
		m := r.todo[len(r.todo)-1]
		r.todo = r.todo[:len(r.todo)-1]
		for _, rule := range m.Rules {
			for branch := rule; branch != nil; branch = branch.Else {
				for _, part := range branch.Head.Reference[1:] {
					r.walk(part)
				}
			}
			r.walk(rule)
		}
	}
	return r.found
}

type reaching struct {
	compiler *ast.Compiler
	names    map[*ast.Module]string
	found    map[string]bool
	todo     []*ast.Module
}

func (r *reaching) walk(x any) { ast.NewGenericVisitor(r.visit).Walk(x) }

// visit implements the visitor; true leaves out what is below x.
func (r *reaching) visit(x any) bool {
	switch x := x.(type) {
	case ast.Var: // not as the head of a reference
		if x.Equal(ast.DefaultRootDocument.Value) {
			r.reach(ast.DefaultRootRef)
		}
	case ast.Ref:
		if len(x) == 0 {
			return true
		}
		if x[0].Equal(ast.DefaultRootDocument) {
			r.reach(x)
		} else if _, name := x[0].Value.(ast.Var); !name {
			r.walk(x[0])
		}
		for _, part := range x[1:] {
			r.walk(part)
		}
		return true
	}
	return false
}

func (r *reaching) reach(ref ast.Ref) {
	for _, rule := range r.compiler.GetRulesDynamicWithOpts(ref, ast.RulesOptions{IncludeHiddenModules: true}) {
		name, known := r.names[rule.Module]
		if !known {
			maps.Copy(r.found, all(r.compiler))
			return
		}
		if !r.found[name] {
			r.found[name] = true
			r.todo = append(r.todo, rule.Module)
		}
	}
}

func all(c *ast.Compiler) map[string]bool {
	out := make(map[string]bool, len(c.Modules))
	for name := range c.Modules {
		out[name] = true
	}
	return out
}

// RulePaths are where a compiler's rules are, by the modules that they are in; nil if one
// cannot be written so.
func RulePaths(c *ast.Compiler) map[string]Paths {
	texts := make(map[string]*strings.Builder, len(c.Modules))
	names := make(map[*ast.Module]string, len(c.Modules))
	for name, m := range c.Modules {
		texts[name], names[m] = new(strings.Builder), name
	}
	ok := true
	var below func(n *ast.TreeNode, path []string)
	below = func(n *ast.TreeNode, path []string) {
		last := ""
		for _, rule := range n.Values {
			if name := names[rule.Module]; name != last { // usually all are in one
				text, written := pathOf(path)
				if texts[name] == nil { // of no module that is known
					texts[name] = new(strings.Builder)
				}
				texts[name].WriteString(string(text))
				last, ok = name, ok && written
			}
		}
		for _, child := range n.Children {
			if key, is := child.Key.(ast.String); is {
				below(child, append(path, string(key)))
			}
		}
	}
	if root := c.RuleTree.Child(ast.DefaultRootDocument.Value); root != nil {
		below(root, nil)
	}
	if !ok {
		return nil
	}
	out := make(map[string]Paths, len(texts))
	for name, text := range texts {
		out[name] = Paths(text.String())
	}
	return out
}

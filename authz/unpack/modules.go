package unpack

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/maphash"
	"maps"
	"slices"

	"github.com/open-policy-agent/opa/v1/ast"
	opabundle "github.com/open-policy-agent/opa/v1/bundle"
	"github.com/open-policy-agent/opa/v1/metrics"
)

// Digest stands for a text, or for several of them, as long as this process runs. Nobody else
// can tell which texts have the same one.
type Digest [2]uint64

// seeds are secret. A bundle is compared each time that it comes, while requests are
// decided: to do that by a hash that needs no secret takes a processor ten times as long.
var seeds = [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}

func digestOf(text []byte) (d Digest) {
	for i, seed := range seeds {
		d[i] = maphash.Bytes(seed, text)
	}
	return d
}

func (d Digest) appendTo(b []byte) []byte {
	return binary.NativeEndian.AppendUint64(binary.NativeEndian.AppendUint64(b, d[0]), d[1])
}

// Modules are what a bundle's modules are read from.
type Modules struct {
	// Digest stands for all of it.
	Digest Digest
	// Around stands for what the modules are parsed as, and for all that the manifest says
	// but the revision and what is for others.
	Around Digest
	// Each are the texts of modules, by the names of files.
	Each map[string]Digest
}

// modules is false if one is not in the Rego of the options, or if two have one name.
func (l *listing) modules(m opabundle.Manifest, versions []ast.RegoVersion, o Options) (Modules, bool) {
	m.Revision, m.Metadata = "", nil
	manifest, err := json.Marshal(m)
	if err != nil {
		return Modules{}, false
	}
	for _, v := range versions {
		if v != o.Parser.RegoVersion {
			return Modules{}, false
		}
	}
	is := Modules{
		Around: digestOf(fmt.Appendf(nil, "%q %v %q\n", o.Name, o.Parser.ProcessAnnotation, manifest)),
		Each:   make(map[string]Digest, len(versions)),
	}
	all := is.Around.appendTo(nil)
	for _, f := range l.files {
		if f.isModule() {
			d := digestOf(f.text)
			all = d.appendTo(append(binary.AppendUvarint(all, uint64(len(f.path))), f.path...))
			is.Each[f.path] = d
		}
	}
	is.Digest = digestOf(all)
	return is, len(is.Each) == len(versions)
}

// module is one that was parsed, the file of that path.
type module struct {
	path string
	name string
	text []byte
	tree *ast.Module
}

// stub is a text with the same package and nothing else.
func (m module) stub() string { return m.tree.Package.String() }

// pick parses the modules that are picked, and gives them in their order. It is false if
// one is wrong. The error is that ctx has ended.
func (l *listing) pick(ctx context.Context, m opabundle.Manifest, versions []ast.RegoVersion, o Options) ([]module, bool, error) {
	o.Metrics.Timer(metrics.RegoModuleParse).Start()
	defer o.Metrics.Timer(metrics.RegoModuleParse).Stop()
	p := parsing{options: o, versions: versions, capabilities: make(map[ast.RegoVersion]*ast.Capabilities), parsed: make(map[int]module)}
	is, ok := Modules{}, false
	if o.Pick != nil {
		is, ok = l.modules(m, versions, o)
	}
	for trees := make(map[string]*ast.Module); ok; {
		names, all := o.Pick(is, trees)
		if all {
			break
		}
		wanted := make(map[string]bool, len(names))
		for _, name := range names {
			wanted[name] = true
		}
		before := len(p.parsed)
		if ok, err := p.parse(ctx, l, func(f file) bool { return wanted[f.path] }); !ok || err != nil {
			return nil, false, err
		}
		if len(p.parsed) == before {
			return p.inOrder(), true, nil
		}
		for _, m := range p.parsed {
			trees[m.path] = m.tree
		}
	}
	ok, err := p.parse(ctx, l, func(file) bool { return true })
	return p.inOrder(), ok, err
}

// parsing is how modules are parsed, and those that are.
type parsing struct {
	options      Options
	versions     []ast.RegoVersion
	capabilities map[ast.RegoVersion]*ast.Capabilities
	parsed       map[int]module // by their place among the modules
}

// inOrder are those that are parsed.
func (p *parsing) inOrder() []module {
	out := make([]module, 0, len(p.parsed))
	for _, at := range slices.Sorted(maps.Keys(p.parsed)) {
		out = append(out, p.parsed[at])
	}
	return out
}

// parse parses those that are wanted and not parsed yet, in their order.
func (p *parsing) parse(ctx context.Context, l *listing, wanted func(file) bool) (bool, error) {
	next := 0
	for _, f := range l.files {
		if !f.isModule() {
			continue
		}
		at := next
		next++
		if _, done := p.parsed[at]; done || !wanted(f) {
			continue
		}
		if ctx.Err() != nil {
			return false, context.Cause(ctx)
		}
		if int64(len(f.text)) > p.options.SizeLimit {
			return false, nil
		}
		how := p.options.Parser
		how.RegoVersion = p.versions[at]
		if how.Capabilities == nil { // the parser would list and sort them for each module
			if p.capabilities[how.RegoVersion] == nil {
				p.capabilities[how.RegoVersion] = ast.CapabilitiesForThisVersion(ast.CapabilitiesRegoVersion(how.RegoVersion))
			}
			how.Capabilities = p.capabilities[how.RegoVersion]
		}
		name := f.nameIn(p.options.Folder)
		tree, err := ast.ParseModuleWithOpts(name, string(f.text), how)
		if err != nil {
			return false, nil //nolint:nilerr // OPA's reader reports it
		}
		p.parsed[at] = module{f.path, name, f.text, tree}
	}
	return true, nil
}

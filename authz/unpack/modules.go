package unpack

import (
	"crypto/sha256"
	"fmt"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/metrics"
)

// keptText bounds the modules that are remembered, in bytes of their text; what is made
// of it takes about twenty times as much.
const keptText = 4 << 20

// key is a module's name and text and how it was parsed.
type key [sha256.Size]byte

// module is one that was parsed. OPA's compiler changes a copy.
type module struct {
	name string
	text []byte
	tree *ast.Module
}

// stub is a text with the same package and nothing else.
func (m module) stub() string { return m.tree.Package.String() }

// parse parses the modules of a bundle, in their order. It is false if one is wrong.
func (m *Modules) parse(l *listing, versions []ast.RegoVersion, o Options) ([]module, bool) {
	m.mu.Lock()
	known := m.parsed
	m.mu.Unlock()
	o.Metrics.Timer(metrics.RegoModuleParse).Start()
	defer o.Metrics.Timer(metrics.RegoModuleParse).Stop()

	parsed := make([]module, 0, len(versions))
	next := make(map[key]*ast.Module, len(versions))
	size := 0
	for _, f := range l.files {
		if !f.isModule() {
			continue
		}
		if int64(len(f.text)) > o.SizeLimit {
			return nil, false
		}
		how := o.Parser
		how.RegoVersion = versions[len(parsed)]
		name := f.nameIn(o.Folder)
		k := keyOf(name, f.text, how)
		tree := known[k]
		if tree == nil {
			var err error
			if tree, err = ast.ParseModuleWithOpts(name, string(f.text), how); err != nil {
				return nil, false
			}
		}
		if size += len(f.text); size <= keptText {
			next[k] = tree
		}
		parsed = append(parsed, module{name, f.text, tree})
	}
	m.mu.Lock()
	m.parsed = next
	m.mu.Unlock()
	return parsed, true
}

func keyOf(name string, text []byte, how ast.ParserOptions) key {
	h := sha256.New()
	_, _ = fmt.Fprintf(h, "%d %v %q\n", how.RegoVersion, how.ProcessAnnotation, name)
	_, _ = h.Write(text)
	return key(h.Sum(nil))
}

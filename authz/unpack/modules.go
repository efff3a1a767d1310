package unpack

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"

	"github.com/open-policy-agent/opa/v1/ast"
	opabundle "github.com/open-policy-agent/opa/v1/bundle"
	"github.com/open-policy-agent/opa/v1/metrics"
)

// Digest stands for a bundle's modules, their names and texts, what they are parsed as,
// and all that its manifest says but the revision and what is for others.
type Digest [sha256.Size]byte

// digest is false if a module is not in the Rego of the options.
func (l *listing) digest(m opabundle.Manifest, versions []ast.RegoVersion, o Options) (Digest, bool) {
	m.Revision, m.Metadata = "", nil
	manifest, err := json.Marshal(m)
	if err != nil {
		return Digest{}, false
	}
	h := sha256.New()
	_, _ = fmt.Fprintf(h, "%q %v %q\n", o.Name, o.Parser.ProcessAnnotation, manifest)
	for _, v := range versions {
		if v != o.Parser.RegoVersion {
			return Digest{}, false
		}
	}
	for _, f := range l.files {
		if f.isModule() {
			_, _ = fmt.Fprintf(h, "%q %d\n", f.nameIn(o.Folder), len(f.text))
			_, _ = h.Write(f.text)
		}
	}
	return Digest(h.Sum(nil)), true
}

// module is one that was parsed.
type module struct {
	name string
	text []byte
	tree *ast.Module
}

// stub is a text with the same package and nothing else.
func (m module) stub() string { return m.tree.Package.String() }

// parse parses the modules of a bundle, in their order. It is false if one is wrong. The
// error is that ctx has ended.
func (l *listing) parse(ctx context.Context, versions []ast.RegoVersion, o Options) ([]module, bool, error) {
	o.Metrics.Timer(metrics.RegoModuleParse).Start()
	defer o.Metrics.Timer(metrics.RegoModuleParse).Stop()

	parsed := make([]module, 0, len(versions))
	known := make(map[ast.RegoVersion]*ast.Capabilities)
	for _, f := range l.files {
		if !f.isModule() {
			continue
		}
		if ctx.Err() != nil {
			return nil, false, context.Cause(ctx)
		}
		if int64(len(f.text)) > o.SizeLimit {
			return nil, false, nil
		}
		how := o.Parser
		how.RegoVersion = versions[len(parsed)]
		if how.Capabilities == nil { // the parser would list and sort them for each module
			if known[how.RegoVersion] == nil {
				known[how.RegoVersion] = ast.CapabilitiesForThisVersion(ast.CapabilitiesRegoVersion(how.RegoVersion))
			}
			how.Capabilities = known[how.RegoVersion]
		}
		name := f.nameIn(o.Folder)
		tree, err := ast.ParseModuleWithOpts(name, string(f.text), how)
		if err != nil {
			return nil, false, nil //nolint:nilerr // OPA's reader reports it
		}
		parsed = append(parsed, module{name, f.text, tree})
	}
	return parsed, true, nil
}

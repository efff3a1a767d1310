package unpack

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	opabundle "github.com/open-policy-agent/opa/v1/bundle"
	"github.com/open-policy-agent/opa/v1/loader/filter"
	"github.com/open-policy-agent/opa/v1/metrics"
)

// Pick names the modules that are needed, as files; the bundle comes with them alone. It is
// told what modules there are and, by their names, those that it has named before, parsed;
// it is asked until it names no other, which is the end, or wants all. It is not asked about
// what is left to OPA's reader, nor about modules in another Rego than Parser's.
type Pick func(is Modules, parsed map[string]*ast.Module) (names []string, all bool)

// Options are those of OPA's reader.
type Options struct {
	// Name is the bundle's, which begins the names of its modules.
	Name string
	// Folder begins the names of files in errors; empty for an archive.
	Folder string
	// ETag is the server's.
	ETag string
	// Verify says how the bundle has to be signed; nil for not at all. Unverified takes
	// a signed bundle for an unsigned one.
	Verify     *opabundle.VerificationConfig
	Unverified bool
	// SizeLimit bounds each file, in bytes; zero is OPA's own limit.
	SizeLimit int64
	// Parser are the options that modules are parsed with.
	Parser  ast.ParserOptions
	Metrics metrics.Metrics
	// Pick says which modules are needed; nil for all.
	Pick Pick
}

// Read reads a bundle with the texts of its data left as they are, as OPA's reader does
// when it is told to be lazy.
func Read(ctx context.Context, files opabundle.DirectoryLoader, o Options) (*opabundle.Bundle, error) {
	o = o.withDefaults()
	list := &listing{limit: o.SizeLimit, keepAll: o.Verify != nil && !o.Unverified}
	if err := list.read(files.WithSizeLimitBytes(o.SizeLimit)); err != nil {
		return nil, err
	}
	return list.bundle(ctx, o)
}

func (o Options) withDefaults() Options {
	o.SizeLimit = cmp.Or(o.SizeLimit, opabundle.DefaultSizeLimitBytes)
	if o.Metrics == nil {
		o.Metrics = metrics.NoOp()
	}
	return o
}

// bundle is made of the files.
func (l *listing) bundle(ctx context.Context, o Options) (*opabundle.Bundle, error) {
	manifest, ok := l.manifest()
	if !ok {
		return l.asItIs(o)
	}
	if manifest.Roots != nil && len(*manifest.Roots) > maxRoots {
		return nil, fmt.Errorf("the manifest has %d roots, more than %d", len(*manifest.Roots), maxRoots)
	}
	versions, ok := l.versions(manifest, o.Parser)
	if !ok {
		return l.asItIs(o)
	}
	signatures, ok := l.verified(o)
	if !ok {
		return l.asItIs(o)
	}
	parsed, ok, err := l.pick(ctx, manifest, versions, o)
	switch {
	case err != nil:
		return nil, err
	case !ok:
		return l.asItIs(o)
	}
	b, err := l.with(parsed).reader(o, parsed).WithCapabilities(stubCapabilities(o.Parser, versions)).WithSkipBundleVerification(true).Read()
	if err != nil {
		return nil, err
	}
	if !putBack(&b, parsed) {
		return nil, errors.New("the bundle's modules are not those that were parsed")
	}
	b.Signatures = signatures
	return &b, nil
}

// with are the files without modules that were not parsed.
func (l *listing) with(parsed []module) *listing {
	names := make(map[string]bool, len(parsed))
	for _, m := range parsed {
		names[m.path] = true
	}
	left := func(f file) bool { return f.isModule() && !names[f.path] }
	return &listing{limit: l.limit, files: slices.DeleteFunc(slices.Clone(l.files), left)}
}

// asItIs has OPA's reader do everything.
func (l *listing) asItIs(o Options) (*opabundle.Bundle, error) {
	b, err := l.reader(o, nil).WithSkipBundleVerification(o.Unverified).WithBundleVerificationConfig(o.Verify).Read()
	if err != nil {
		return nil, err
	}
	return &b, nil
}

// stubCapabilities are those by which OPA's reader parses the packages of modules, all at the
// same moment: if it had to list and sort them, that would take three times as long.
func stubCapabilities(o ast.ParserOptions, versions []ast.RegoVersion) *ast.Capabilities {
	if o.Capabilities != nil || len(versions) == 0 || slices.ContainsFunc(versions, func(v ast.RegoVersion) bool { return v != versions[0] }) {
		return o.Capabilities
	}
	return ast.CapabilitiesForThisVersion(ast.CapabilitiesRegoVersion(versions[0]))
}

// reader is OPA's, of which modules that are parsed get nothing but their packages.
func (l *listing) reader(o Options, parsed []module) *opabundle.Reader {
	r := opabundle.NewCustomReader(&replay{files: l.files, stubs: parsed}).
		WithMetrics(o.Metrics).
		WithSizeLimitBytes(o.SizeLimit).
		WithBundleEtag(o.ETag).
		WithBundleName(o.Name).
		WithRegoVersion(o.Parser.RegoVersion).
		WithProcessAnnotations(o.Parser.ProcessAnnotation).
		WithCapabilities(o.Parser.Capabilities).
		WithLazyLoadingMode(true)
	if o.Folder != "" {
		r.WithBaseDir(o.Folder)
	}
	return r
}

// putBack puts modules and their texts into a bundle that was read without them. It is
// false if that has other modules.
func putBack(b *opabundle.Bundle, parsed []module) bool {
	if len(b.Modules) != len(parsed) {
		return false
	}
	for i := range b.Modules {
		if b.Modules[i].Path != parsed[i].name {
			return false
		}
		b.Modules[i].Parsed, b.Modules[i].Raw = parsed[i].tree, parsed[i].text
	}
	next := 0
	for i := range b.Raw {
		if !strings.HasSuffix(b.Raw[i].Path, opabundle.RegoExt) {
			continue
		}
		if next == len(parsed) {
			return false
		}
		b.Raw[i].Value = parsed[next].text
		next++
	}
	return next == len(parsed)
}

// replay is a loader of files that were read already.
type replay struct {
	files []file
	// stubs stand for the modules, in their order; nil for the modules themselves.
	stubs []module
}

// NextFile implements opabundle.DirectoryLoader.
func (r *replay) NextFile() (*opabundle.Descriptor, error) {
	if len(r.files) == 0 {
		return nil, errEnd
	}
	f := r.files[0]
	r.files = r.files[1:]
	switch {
	case f.unread != nil:
		return f.unread, nil
	case r.stubs != nil && f.isModule():
		stub := r.stubs[0].stub()
		r.stubs = r.stubs[1:]
		return opabundle.NewDescriptor(f.url, f.path, bytes.NewBufferString(stub)), nil
	}
	return opabundle.NewDescriptor(f.url, f.path, bytes.NewBuffer(f.text)), nil
}

// WithFilter implements opabundle.DirectoryLoader; what is there has passed already.
func (r *replay) WithFilter(filter.LoaderFilter) opabundle.DirectoryLoader { return r }

// WithPathFormat implements opabundle.DirectoryLoader.
func (r *replay) WithPathFormat(opabundle.PathFormat) opabundle.DirectoryLoader { return r }

// WithSizeLimitBytes implements opabundle.DirectoryLoader.
func (r *replay) WithSizeLimitBytes(int64) opabundle.DirectoryLoader { return r }

// WithFollowSymlinks implements opabundle.DirectoryLoader.
func (r *replay) WithFollowSymlinks(bool) opabundle.DirectoryLoader { return r }

// nameIn is what a file is called in errors, and as a module.
func (f file) nameIn(folder string) string {
	path := filepath.ToSlash(f.path)
	if folder != "" {
		path = filepath.Join(folder, path)
	}
	return path
}

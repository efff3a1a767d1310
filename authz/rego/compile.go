package rego

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/bundle"
	"github.com/open-policy-agent/opa/v1/loader"
	oparego "github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/topdown/cache"

	"github.com/writ-mesh/writ/authz/basedoc"
	"github.com/writ-mesh/writ/authz/unpack"
)

// Source says where the text of a policy comes from. The parts add up.
type Source struct {
	// Modules are Rego texts by file name; the name appears in errors.
	Modules map[string]string
	// Bundles are directories or gzipped tarballs in OPA's bundle format.
	Bundles []string
}

// Options change how a policy is compiled.
type Options struct {
	// Network allows http.send and net.lookup_ip_addr. Without it a policy that
	// names them does not compile.
	Network bool
	// V0 reads modules as Rego of OPA before 1.0.
	V0 bool
	// Undefined accepts a query that names no rule and no data. It always
	// denies, so it is only for callers whose users expect that to start.
	Undefined bool
	// Memory is by how many bytes the heap may grow while an evaluation runs that
	// takes long; then that is cancelled. Zero is DefaultMemory, less is no bound.
	Memory int64
}

// DefaultMemory is the default of Options.Memory, in bytes: far more than a decision
// takes, far less than a machine has.
const DefaultMemory = 256 << 20

// networkBuiltins reach out of the process.
var networkBuiltins = []string{"http.send", "net.lookup_ip_addr"}

// Program is a compiled policy with its data and its prepared query.
type Program struct {
	prepared oparego.PreparedEvalQuery
	// txn is one read transaction for the life of the program: nothing writes
	// to the store after Compile, so no request needs its own.
	txn    storage.Transaction
	values cache.InterQueryValueCache
	web    cache.InterQueryCache
	// id is the same for programs that decide alike only: nothing that was kept for one is
	// found for another.
	id    [sha256.Size]byte
	reads *reads
	// headers and claims are names within reads.
	headers, claims []string
	narrow          bool
	impure          string
	memory          int64
	// stuck counts evaluations that have not ended though they were cancelled.
	stuck atomic.Int64
}

// Compile parses and compiles a policy and prepares its query, for example
// "data.office.allow". The error gives file and line as Rego does, on one line.
func Compile(ctx context.Context, src Source, query string, o Options) (*Program, error) {
	if strings.TrimSpace(query) == "" {
		return nil, errors.New("query: missing")
	}
	LimitBuiltins()
	body, err := ast.ParseBody(query)
	if err != nil {
		return nil, fmt.Errorf("query %q: %w", query, oneLine(err))
	}
	bundles, err := readBundles(ctx, src.Bundles, o)
	if err != nil {
		return nil, oneLine(err)
	}
	store := basedoc.New()
	load, err := store.NewTransaction(ctx, storage.WriteParams)
	if err != nil {
		return nil, fmt.Errorf("open the policy's data: %w", err)
	}
	var compiler *ast.Compiler
	r := oparego.New(append(sourceOptions(src, bundles, o),
		oparego.ParsedQuery(body),
		oparego.Store(store),
		oparego.Transaction(load),
		oparego.CompilerHook(func(c *ast.Compiler) {
			compiler = c
			Share(c)
		}))...)
	prepared, err := r.PrepareForEval(ctx)
	if err != nil {
		store.Abort(ctx, load)
		return nil, oneLine(err)
	}
	if err := store.Commit(ctx, load); err != nil {
		return nil, fmt.Errorf("load the policy's data: %w", err)
	}
	parsed := make(map[string]*ast.Module)
	for path, b := range bundles {
		maps.Copy(parsed, b.ParsedModules(path))
	}
	if slim := Slim(compiler, parsed, false, body); slim != compiler {
		Trim(slim)
		return Adopt(ctx, slim, store, query, o)
	}
	for _, b := range bundles {
		b.Raw, b.Modules = nil, nil // prepared holds them
	}
	if len(bundles) > 0 {
		Trim(compiler)
	}
	return newProgram(ctx, prepared, compiler, store, body, o)
}

// newProgram completes a program. Nothing writes to store from now on.
func newProgram(ctx context.Context, prepared oparego.PreparedEvalQuery, compiler *ast.Compiler, store *basedoc.Store, query ast.Body, o Options) (*Program, error) {
	p := &Program{
		prepared: prepared,
		values:   cache.NewInterQueryValueCache(ctx, nil),
		memory:   cmp.Or(o.Memory, DefaultMemory),
	}
	found := analyze(compiler, query)
	if found.grows != nil {
		return nil, found.grows
	}
	p.reads, p.impure = found.reads, found.impure
	p.headers, p.claims = p.reads.names("attributes", "request", "http", "headers"), p.reads.names("jwt", "claims")
	p.narrow = p.reads.narrow()
	if o.Network {
		p.web = cache.NewInterQueryCache(nil)
	}
	var err error
	if p.txn, err = store.NewTransaction(ctx); err != nil {
		return nil, fmt.Errorf("open the policy's data: %w", err)
	}
	same := false
	if p.impure == "" {
		p.id, same = contentID(compiler, query, found, store, p.txn, o)
	}
	if !same {
		_, _ = rand.Read(p.id[:]) // never fails
	}
	if !o.Undefined {
		if err := p.defined(ctx, compiler, store, query); err != nil {
			return nil, err
		}
	}
	for _, path := range found.whole {
		store.Warm(path)
	}
	return p, nil
}

// Check compiles module under the file name name and its query, and returns
// what Compile would: nil, or an error with file and line. It is for validation
// without a running service.
func Check(name, module, query string) error {
	_, err := Compile(context.Background(), Source{Modules: map[string]string{name: module}}, query, Options{})
	return err
}

// QueryOfPath turns a decision's path, for example envoy/authz/allow, into the
// query data["envoy"]["authz"]["allow"].
func QueryOfPath(path string) string {
	var b strings.Builder
	b.WriteString("data")
	for part := range strings.SplitSeq(path, "/") {
		if part != "" {
			fmt.Fprintf(&b, "[%s]", ast.String(part).String())
		}
	}
	return b.String()
}

func sourceOptions(src Source, bundles map[string]*bundle.Bundle, o Options) []func(*oparego.Rego) {
	opts := []func(*oparego.Rego){
		oparego.SetRegoVersion(o.version()),
		oparego.Capabilities(capabilities(o)),
	}
	for name, text := range src.Modules {
		opts = append(opts, oparego.Module(name, text))
	}
	for path, b := range bundles {
		opts = append(opts, oparego.ParsedBundle(path, b))
	}
	return opts
}

// readBundles reads bundles, the text of all data too.
func readBundles(ctx context.Context, paths []string, o Options) (map[string]*bundle.Bundle, error) {
	if len(paths) > 0 {
		basedoc.Everywhere()
	}
	bundles := make(map[string]*bundle.Bundle, len(paths))
	for _, path := range paths {
		b, err := readBundle(ctx, path, o)
		if err != nil {
			return nil, fmt.Errorf("bundle %s: %w", path, err)
		}
		bundles[path] = b
	}
	return bundles, nil
}

// readBundle reads a folder or a gzipped tarball.
func readBundle(ctx context.Context, path string, o Options) (*bundle.Bundle, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	how := unpack.Options{Name: path, Unverified: true, Parser: ast.ParserOptions{
		ProcessAnnotation: true, Capabilities: capabilities(o), RegoVersion: o.version(),
	}}
	if info.IsDir() {
		how.Folder = path
		return unpack.Read(ctx, bundle.NewDirectoryLoader(path), how)
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("neither a folder nor a file") // a pipe would hold up who reads it, and all other work of this kind
	}
	f, err := os.Open(path) //nolint:gosec // the caller's
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return unpack.Read(ctx, bundle.NewTarballLoaderWithBaseURL(f, path), how)
}

func (o Options) version() ast.RegoVersion {
	if o.V0 {
		return ast.RegoV0
	}
	return ast.RegoV1
}

// capabilities lists the built-in functions that a policy may name.
func capabilities(o Options) *ast.Capabilities {
	c := ast.CapabilitiesForThisVersion(ast.CapabilitiesRegoVersion(o.version()))
	if !o.Network {
		c.Builtins = slices.DeleteFunc(slices.Clone(c.Builtins), func(b *ast.Builtin) bool {
			return slices.Contains(networkBuiltins, b.Name)
		})
	}
	return c
}

// defined refuses a query that is a plain reference to nothing: such a policy
// denies every request, which is hardly ever what was meant.
func (p *Program) defined(ctx context.Context, compiler *ast.Compiler, store storage.Store, query ast.Body) error {
	if len(query) != 1 {
		return nil
	}
	term, ok := query[0].Terms.(*ast.Term)
	if !ok {
		return nil
	}
	ref, ok := term.Value.(ast.Ref)
	if !ok || !ref.HasPrefix(ast.DefaultRootRef) || !ref.IsGround() {
		return nil
	}
	for _, module := range compiler.Modules {
		for _, rule := range module.Rules {
			full := rule.Ref().GroundPrefix() // the compiler has put the package in front
			if full.HasPrefix(ref) || ref.HasPrefix(full) {
				return nil
			}
		}
	}
	if path, err := storage.NewPathForRef(ref); err == nil {
		if _, err := store.Read(ctx, p.txn, path); err == nil {
			return nil
		}
	}
	return fmt.Errorf("query %s: the policy has no such rule and no such data", ref)
}

// oneLine turns the lists of errors of Rego and its loader, which have several
// lines, into one: the first error and how many more there are.
func oneLine(err error) error {
	list := leaves(err)
	lines := strings.Split(strings.TrimSpace(list[0].Error()), "\n")
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	text := strings.Join(lines, " ")
	if more := len(list) - 1; more > 0 {
		text += fmt.Sprintf(" (and %d more)", more)
	}
	return errors.New(text)
}

// leaves are the errors in a list, or the error itself; never empty.
func leaves(err error) []error {
	var all []error
	var asRego oparego.Errors
	var asLoader loader.Errors
	var asAST ast.Errors
	switch {
	case errors.As(err, &asRego):
		for _, e := range asRego {
			all = append(all, leaves(e)...)
		}
	case errors.As(err, &asLoader):
		for _, e := range asLoader {
			all = append(all, leaves(e)...)
		}
	case errors.As(err, &asAST):
		for _, e := range asAST {
			all = append(all, e)
		}
	}
	if len(all) == 0 {
		return []error{err}
	}
	return all
}

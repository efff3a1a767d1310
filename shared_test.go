package writ_test

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// ownByRight are names below internal that one user has, each with the reason why
// it is not that user's own.
var ownByRight = map[string]string{
	"internal/kubeapi.Client.Watch":      "is the other way to call the same API",
	"internal/kubeapi.StatusError":       "is what Call returns",
	"internal/kubeapi.StatusError.Error": "makes it an error",
	"internal/peercred.Of":               "is what Credentials asks; nodeagent/attest pins the process besides",
	"internal/witness.Open":              "reads what others remember; the authority compares its own log with such a one",
	"internal/witness.Checkpoint":        "is what Open reads",
	"internal/x509proof.Verify":          "checks what Sign made, which is the other side",
	"internal/credential.Consumer":       "hears of the one stream of the bundle that a process has, which is the source's",
	"internal/credential.Standing":       "is what a Consumer adds to the acknowledgements on that stream",
	"internal/credential.Source.Attach":  "puts a Consumer there",
	"internal/credential.Foreign":        "are roots beside the bundle that the source follows",

	"internal/credential.Source.DialFor":              "is Dial with those, and ends with a revocation as that does",
	"internal/credential.Source.ServerCredentialsFor": "are ServerCredentials with those, and end so too",

	"internal/pemroots.Parse":        "is what Load reads; pilot reads its files by rules of its own",
	"internal/service.Garbage.Raise": "changes what Pace set, for a while",
	"internal/service.Health.Ready":  "is asked over HTTP, and by the tests of the services",
}

// agreedOn are packages below internal that two services agree on, one of which makes
// what the other reads: half of the names are for either.
var agreedOn = map[string]string{
	"internal/refusal":  "authz answers with what pilot has Envoys answer with",
	"internal/regoform": "authz/rego makes the conditions that pilot gives to Envoys",
	"internal/revoked":  "pilot puts tokens into a table in which both look them up",
}

// TestInternalNamesAreShared: internal is for what several services need. What
// one alone uses is at home there. A service and its command are one user, the
// program writ is another, and another package of internal stands for all who use
// it. A type is used by whoever has a value of it; fields are not looked at, nor
// methods that an interface asks for.
func TestInternalNamesAreShared(t *testing.T) {
	c := newChecker(t)
	users := map[string]map[string]bool{} // by name: who uses it
	for _, p := range c.own {
		c.uses(p, func(name string) {
			if users[name] == nil {
				users[name] = map[string]bool{}
			}
			users[name][user(p.ImportPath)] = true
		})
	}
	kept := maps.Clone(ownByRight)
	for _, p := range c.own {
		folder := strings.TrimPrefix(p.ImportPath, module)
		if !strings.HasPrefix(folder, "internal/") || strings.HasSuffix(folder, "test") {
			continue // the kits of tests, such as internal/proctest
		}
		if agreedOn[folder] != "" {
			continue
		}
		for _, name := range c.declares(p) {
			by := map[string]bool{}
			for u := range users[name] {
				if u != folder {
					c.standsFor(u, by)
				}
			}
			reason := kept[name]
			delete(kept, name)
			switch {
			case len(by) < 2 && reason == "":
				t.Errorf("%s: used by %v only", name, slices.Sorted(maps.Keys(by)))
			case len(by) >= 2 && reason != "":
				t.Errorf("%s is no exception: it is used by %v", name, slices.Sorted(maps.Keys(by)))
			}
		}
	}
	for name := range kept {
		t.Errorf("%s is an exception and does not exist", name)
	}
}

// user is who a package belongs to: a service, a program or a package of internal.
func user(importPath string) string {
	folder := strings.TrimPrefix(importPath, module)
	parts := strings.Split(folder, "/")
	switch {
	case parts[0] == "internal":
		return folder
	case parts[0] == "cmd" && len(parts) > 1:
		return strings.TrimPrefix(parts[1], "writ-")
	}
	return parts[0]
}

// standsFor adds to by the services and programs that a user is or that use it.
func (c *checker) standsFor(user string, by map[string]bool) {
	if !strings.HasPrefix(user, "internal/") {
		if user != "bench" {
			by[user] = true
		}
		return
	}
	for importer := range c.importers[user] {
		c.standsFor(importer, by)
	}
}

// listed is a package as go list tells it.
type listed struct {
	ImportPath, Dir, Export string
	GoFiles                 []string
	Module                  *struct{ Main bool }
}

// checker knows the types of the repository's programs, without their tests.
type checker struct {
	t        *testing.T
	own      []listed
	infos    map[string]*types.Info
	packages map[string]*types.Package
	// importers are the users of each package below internal.
	importers map[string]map[string]bool
	// interfaces of all packages that they import, by the names of their methods.
	interfaces map[string][]*types.Interface
}

func newChecker(t *testing.T) *checker {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-export", "-deps", "-json=ImportPath,Dir,Export,GoFiles,Module", "./...")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // as the programs are built: their packages are compiled already
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	c := &checker{t: t, infos: map[string]*types.Info{}, packages: map[string]*types.Package{}, importers: map[string]map[string]bool{}, interfaces: map[string][]*types.Interface{}}
	exports := map[string]string{}
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		exports[p.ImportPath] = p.Export
		if p.Module != nil && p.Module.Main && len(p.GoFiles) > 0 && !strings.HasPrefix(p.ImportPath, module+"proto/") {
			c.own = append(c.own, p)
		}
	}
	fset := token.NewFileSet()
	imports := importer.ForCompiler(fset, "gc", func(path string) (io.ReadCloser, error) { return os.Open(exports[path]) })
	seen := map[*types.Package]bool{}
	for _, p := range c.own {
		c.check(fset, imports, p, seen)
	}
	for pkg := range seen {
		c.collect(pkg)
	}
	return c
}

func (c *checker) check(fset *token.FileSet, imports types.Importer, p listed, seen map[*types.Package]bool) {
	c.t.Helper()
	var files []*ast.File
	for _, name := range p.GoFiles {
		f, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
		if err != nil {
			c.t.Fatal(err)
		}
		files = append(files, f)
	}
	info := &types.Info{Uses: map[*ast.Ident]types.Object{}, Types: map[ast.Expr]types.TypeAndValue{}}
	pkg, err := (&types.Config{Importer: imports}).Check(p.ImportPath, fset, files, info)
	if err != nil {
		c.t.Fatal(err)
	}
	c.infos[p.ImportPath], c.packages[p.ImportPath] = info, pkg
	for _, imported := range pkg.Imports() {
		seen[imported] = true
		folder := strings.TrimPrefix(imported.Path(), module)
		if c.importers[folder] == nil {
			c.importers[folder] = map[string]bool{}
		}
		c.importers[folder][user(p.ImportPath)] = true
	}
}

// uses calls f with each name below internal that a package uses.
func (c *checker) uses(p listed, f func(name string)) {
	for _, o := range c.infos[p.ImportPath].Uses {
		if name := nameOf(o); name != "" {
			f(name)
		}
	}
	for _, tv := range c.infos[p.ImportPath].Types {
		if named := namedType(tv.Type); named != nil {
			if name := nameOf(named.Obj()); name != "" {
				f(name)
			}
		}
	}
}

// declares gives the exported names of a package: functions, types, constants,
// variables, and the methods of its types that no interface asks for. The names
// of one type of constants are one enumeration, of which one counts for all.
func (c *checker) declares(p listed) []string {
	scope := c.packages[p.ImportPath].Scope()
	var out []string
	for _, name := range scope.Names() {
		o := scope.Lookup(name)
		if !o.Exported() {
			continue
		}
		out = append(out, nameOf(o))
		tn, ok := o.(*types.TypeName)
		if !ok {
			continue
		}
		for m := range types.NewMethodSet(types.NewPointer(tn.Type())).Methods() {
			if m.Obj().Exported() && len(m.Index()) == 1 && !c.askedFor(tn.Type(), m.Obj().Name()) {
				out = append(out, nameOf(m.Obj()))
			}
		}
	}
	return out
}

// askedFor tells whether a type has a method because of an interface.
func (c *checker) askedFor(t types.Type, method string) bool {
	if types.IsInterface(t) || method == "String" {
		return true
	}
	return slices.ContainsFunc(c.interfaces[method], func(i *types.Interface) bool { return types.Implements(types.NewPointer(t), i) })
}

// collect notes the interfaces of a package by their methods.
func (c *checker) collect(pkg *types.Package) {
	for _, name := range pkg.Scope().Names() {
		tn, ok := pkg.Scope().Lookup(name).(*types.TypeName)
		if !ok || !tn.Exported() {
			continue
		}
		i, ok := tn.Type().Underlying().(*types.Interface)
		if named, is := tn.Type().(*types.Named); !ok || is && named.TypeParams().Len() > 0 {
			continue
		}
		for m := range i.Methods() {
			c.interfaces[m.Name()] = append(c.interfaces[m.Name()], i)
		}
	}
}

// nameOf gives a name below internal as "internal/x.Name" or "internal/x.Type.Method";
// it is empty for others, for fields and for what is local.
func nameOf(o types.Object) string {
	if o == nil || o.Pkg() == nil || !o.Exported() {
		return ""
	}
	folder, ok := strings.CutPrefix(o.Pkg().Path(), module)
	if !ok || !strings.HasPrefix(folder, "internal/") {
		return ""
	}
	if f, ok := o.(*types.Func); ok && f.Signature().Recv() != nil {
		if named := namedType(f.Signature().Recv().Type()); named != nil {
			return folder + "." + named.Obj().Name() + "." + f.Name()
		}
		return ""
	}
	if o.Parent() != o.Pkg().Scope() {
		return ""
	}
	return folder + "." + o.Name()
}

// namedType gives the named type that t is or points to, else nil.
func namedType(t types.Type) *types.Named {
	if p, ok := t.(*types.Pointer); ok {
		t = p.Elem()
	}
	named, _ := types.Unalias(t).(*types.Named)
	return named
}

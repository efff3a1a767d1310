package writ_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// declaration is one declaration of a package: the exported functions,
// variables and constants that it brings. The names of one enumeration belong
// together, so one that is used keeps the others.
type declaration struct {
	folder string
	names  []string
}

// TestExportedNamesAreUsed: a name is exported for another package. Methods and
// types, which are used without being named, are not looked at, nor are the kits
// for tests.
func TestExportedNamesAreUsed(t *testing.T) {
	var declared []declaration
	used := map[string]bool{} // folder.Name
	err := filepath.WalkDir(".", func(file string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && file != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata"):
			return filepath.SkipDir
		case !strings.HasSuffix(file, ".go"):
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		folder := filepath.ToSlash(filepath.Dir(file))
		if !strings.HasSuffix(file, "_test.go") && !strings.HasSuffix(folder, "test") && !ast.IsGenerated(f) && f.Name.Name != "main" {
			declared = append(declared, exported(f, folder)...)
		}
		for name := range namedBy(f) {
			used[name] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range declared {
		if !slices.ContainsFunc(d.names, func(name string) bool { return used[d.folder+"."+name] }) {
			t.Errorf("%s: no other package uses %s", d.folder, strings.Join(d.names, ", "))
		}
	}
}

// exported gives the exported functions, variables and constants of f.
func exported(f *ast.File, folder string) []declaration {
	var out []declaration
	for _, decl := range f.Decls {
		switch d := decl.(type) {
		case *ast.FuncDecl:
			if d.Recv == nil && d.Name.IsExported() {
				out = append(out, declaration{folder, []string{d.Name.Name}})
			}
		case *ast.GenDecl:
			var enumeration []string
			for _, spec := range d.Specs {
				v, ok := spec.(*ast.ValueSpec)
				if !ok {
					continue
				}
				for _, name := range v.Names {
					switch {
					case !name.IsExported():
					case d.Tok == token.CONST && (v.Type != nil || len(v.Values) == 0):
						enumeration = append(enumeration, name.Name)
					default:
						out = append(out, declaration{folder, []string{name.Name}})
					}
				}
			}
			if len(enumeration) > 0 {
				out = append(out, declaration{folder, enumeration})
			}
		}
	}
	return out
}

// namedBy gives the names of this repository's other packages that f uses, each
// as folder.Name.
func namedBy(f *ast.File) map[string]bool {
	folders := map[string]string{} // by the name that f gives the package
	for _, spec := range f.Imports {
		importPath, err := strconv.Unquote(spec.Path.Value)
		folder, own := strings.CutPrefix(importPath, module)
		if err != nil || !own {
			continue
		}
		name := folder[strings.LastIndex(folder, "/")+1:]
		if spec.Name != nil {
			name = spec.Name.Name
		}
		folders[name] = folder
	}
	used := map[string]bool{}
	ast.Inspect(f, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok {
			if x, ok := s.X.(*ast.Ident); ok && folders[x.Name] != "" {
				used[folders[x.Name]+"."+s.Sel.Name] = true
			}
		}
		return true
	})
	return used
}

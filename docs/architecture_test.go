package docs_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/writ-mesh/writ"

func goList(t *testing.T, args ...string) []string {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list"}, args...)...)
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list %v: %v", args, err)
	}
	return strings.Fields(string(out))
}

// TestPackagesAreNamed: the table of architecture.md has every package, once,
// sorted, with a sentence.
func TestPackagesAreNamed(t *testing.T) {
	var want []string
	for _, p := range goList(t, "./...") {
		if rest, ok := strings.CutPrefix(p, module+"/"); ok {
			want = append(want, rest)
		}
	}
	_, table, ok := strings.Cut(read(t, "architecture.md"), "| package | what it is for |")
	if !ok {
		t.Fatal("the table of packages is missing")
	}
	var got []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\| (.*) \\|$").FindAllStringSubmatch(table, -1) {
		got = append(got, m[1])
		if len(strings.Fields(m[2])) < 2 {
			t.Errorf("%s: %q says too little", m[1], m[2])
		}
	}
	for _, p := range want {
		if !slices.Contains(got, p) {
			t.Errorf("%s is missing", p)
		}
	}
	for i, p := range got {
		if !slices.Contains(want, p) || slices.Index(got, p) != i {
			t.Errorf("%s is no package, or is there twice", p)
		}
	}
}

// sources parses the program's Go files below a folder.
func sources(t *testing.T, dir string) map[string]*ast.File {
	t.Helper()
	out := map[string]*ast.File{}
	err := filepath.WalkDir(filepath.Join("..", dir), func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		out[path] = f
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestCallersAreTold: every method that a service lists in its rpc.Methods is
// in the table of who may call what.
func TestCallersAreTold(t *testing.T) {
	page := read(t, "architecture.md")
	found := 0
	for _, dir := range []string{"ca", "nodeagent", "pilot", "authz", "ratelimit"} {
		for path, f := range sources(t, dir) {
			ast.Inspect(f, func(n ast.Node) bool {
				sel, ok := n.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				name, ok := strings.CutSuffix(sel.Sel.Name, "_FullMethodName")
				if !ok {
					return true
				}
				found++
				method := "`" + strings.Replace(name, "_", "/", 1) + "`"
				if !strings.Contains(page, method) {
					t.Errorf("%s lets somebody call %s, which the table does not have", path, method)
				}
				return true
			})
		}
	}
	if found < 15 {
		t.Errorf("only %d methods were found", found)
	}
}

// TestEveryServerChecksItsMethods: a server of ours is never made without
// comparing what it serves with the list of who may call what. The one exception
// stands in for the OPA-Envoy plugin, which serves whoever reaches it.
func TestEveryServerChecksItsMethods(t *testing.T) {
	made := 0
	open := map[string]int{filepath.Join("..", "authz", "alone.go"): 1}
	for _, dir := range []string{"ca", "nodeagent", "pilot", "authz", "ratelimit"} {
		for path, f := range sources(t, dir) {
			count := map[string]int{}
			ast.Inspect(f, func(n ast.Node) bool {
				if sel, ok := n.(*ast.SelectorExpr); ok {
					if pkg, ok := sel.X.(*ast.Ident); ok {
						count[pkg.Name+"."+sel.Sel.Name]++
					}
				}
				return true
			})
			made += count["rpc.NewServer"]
			if count["rpc.NewServer"] != count["rpc.CheckMethods"] || count["grpc.NewServer"] != open[path] {
				t.Errorf("%s makes %d servers with rpc.NewServer, %d without, and checks the methods of %d", path, count["rpc.NewServer"], count["grpc.NewServer"], count["rpc.CheckMethods"])
			}
		}
	}
	if made < 5 {
		t.Errorf("only %d servers were found", made)
	}
}

func TestModelKnowsNoEnvoy(t *testing.T) {
	for _, p := range goList(t, "-deps", "./pilot/model") {
		if strings.Contains(p, "envoyproxy/") || strings.Contains(p, "cncf/xds") {
			t.Errorf("the model of the mesh depends on %s", p)
		}
	}
}

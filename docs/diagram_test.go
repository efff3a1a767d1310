package docs_test

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "draw the diagram of packages anew")

// TestDiagramOfPackages: the diagram of architecture.md has the packages and the
// imports that exist. `go test ./docs -run Diagram -update` draws it anew.
func TestDiagramOfPackages(t *testing.T) {
	const begin, end = "```mermaid\n", "```\n"
	page := read(t, "architecture.md")
	before, rest, ok := strings.Cut(page, begin)
	if !ok {
		t.Fatal("the diagram is missing")
	}
	got, after, ok := strings.Cut(rest, end)
	if !ok {
		t.Fatal("the diagram does not end")
	}
	want := diagram(imports(t))
	if got == want {
		return
	}
	if *update {
		if err := os.WriteFile("architecture.md", []byte(before+begin+want+end+after), 0o644); err != nil { //nolint:gosec // a page
			t.Fatal(err)
		}
		return
	}
	t.Errorf("the diagram is not what the packages are; draw it anew with: go test ./docs -run Diagram -update\nwant:\n%s", want)
}

// imports maps each package of the product to the packages of it that it imports.
// What is there for tests alone, and the examples, are left out.
func imports(t *testing.T) map[string][]string {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,GoFiles", "./...")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]string{}
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			ImportPath       string
			Imports, GoFiles []string
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimPrefix(p.ImportPath, module+"/")
		if len(p.GoFiles) == 0 || !drawn(name) {
			continue
		}
		all[name] = []string{}
		for _, i := range p.Imports {
			if i, ours := strings.CutPrefix(i, module+"/"); ours && drawn(i) {
				all[name] = append(all[name], i)
			}
		}
	}
	return all
}

func drawn(name string) bool {
	switch room, _, _ := strings.Cut(name, "/"); room {
	case "bench", "deploy", "docs", "e2e", "examples", "hack", module:
		return false
	}
	return !slices.Contains([]string{"envoytest", "fieldtest", "ledgertest", "pkitest", "proctest", "redistest", "storetest"}, path.Base(name))
}

// diagram draws a room for each folder at the top, in it its packages. An arrow is
// an import; one that a longer way of arrows says already is left out. Everybody
// may use internal and proto, so that these have no arrows.
func diagram(all map[string][]string) string {
	rooms := map[string][]string{}
	arrows := map[string][]string{}
	for name, to := range all {
		room, _, _ := strings.Cut(name, "/")
		rooms[room] = append(rooms[room], name)
		for _, i := range to {
			if at, _, _ := strings.Cut(i, "/"); at == room || at != "internal" && at != "proto" {
				arrows[name] = append(arrows[name], i)
			}
		}
	}
	var b strings.Builder
	b.WriteString("flowchart TD\n")
	for _, room := range slices.Sorted(maps.Keys(rooms)) {
		fmt.Fprintf(&b, "  subgraph room_%s[%s]\n", room, room)
		for _, name := range slices.Sorted(slices.Values(rooms[room])) {
			fmt.Fprintf(&b, "    %s[%s]\n", id(name), strings.TrimPrefix(name, room+"/"))
		}
		b.WriteString("  end\n")
	}
	for _, from := range slices.Sorted(maps.Keys(arrows)) {
		for _, to := range slices.Sorted(slices.Values(arrows[from])) {
			if !longWay(arrows, from, to) {
				fmt.Fprintf(&b, "  %s --> %s\n", id(from), id(to))
			}
		}
	}
	return b.String()
}

func id(name string) string { return strings.NewReplacer("/", "_", "-", "_").Replace(name) }

// longWay says whether to is reached from another import of from.
func longWay(arrows map[string][]string, from, to string) bool {
	seen := map[string]bool{}
	var reaches func(string) bool
	reaches = func(at string) bool {
		if at == to {
			return true
		}
		if seen[at] {
			return false
		}
		seen[at] = true
		return slices.ContainsFunc(arrows[at], reaches)
	}
	return slices.ContainsFunc(arrows[from], func(next string) bool { return next != to && reaches(next) })
}

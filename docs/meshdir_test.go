package docs_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/writ-mesh/writ/pilot/meshdir"
)

// snippets are the blocks of a language on a page.
func snippets(t *testing.T, page, language string) []string {
	t.Helper()
	var out []string
	for _, m := range regexp.MustCompile("(?s)```"+language+"\n(.*?)```").FindAllStringSubmatch(read(t, page), -1) {
		out = append(out, m[1])
	}
	return out
}

// TestSnippetsAreValid puts every piece of YAML into a mesh directory of its own
// and validates it as `writ validate` does.
func TestSnippetsAreValid(t *testing.T) {
	all := snippets(t, "meshdir.md", "yaml")
	for _, text := range snippets(t, "quotas.md", "yaml") {
		if strings.Contains(text, "\nkind: ") { // the others are configurations of ratelimit
			all = append(all, text)
		}
	}
	if len(all) < 7 {
		t.Fatalf("only %d pieces of YAML were found", len(all))
	}
	for _, text := range all {
		name := "snippet.yaml"
		if first, _, _ := strings.Cut(text, "\n"); strings.HasPrefix(first, "# ") && strings.HasSuffix(first, ".yaml") {
			name = strings.TrimPrefix(first, "# ")
		}
		title := regexp.MustCompile(`(?m)^kind: (\w+)`).FindStringSubmatch(text)
		t.Run(strings.Join(append(title, name), " "), func(t *testing.T) {
			dir := t.TempDir()
			// What is added to a copy of the example is valid there.
			if added, ok := strings.CutPrefix(name, "shop/"); ok {
				name = added
				if err := os.CopyFS(dir, os.DirFS(filepath.Join("..", "examples", "bookinfo"))); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if name == "checks.yaml" {
				checksAreKnown(t, text)
				return
			}
			mesh, problems := meshdir.Validate(meshdir.Options{Dir: dir})
			for _, p := range problems {
				// A policy alone has nobody whom it is about, and each EnvoyFilter has a warning.
				if p.Severity == meshdir.Error || !strings.Contains(p.Message, "no workload") && !strings.HasPrefix(p.Object, "EnvoyFilter ") {
					t.Errorf("%s", p)
				}
			}
			if mesh == nil {
				t.Error("no mesh came of it")
			}
		})
	}
}

// checksAreKnown compares the keys with those of the example that `make demo`
// runs: the package that reads them is internal to the command.
func checksAreKnown(t *testing.T, text string) {
	t.Helper()
	source := read(t, filepath.Join("..", "cmd", "writ", "internal", "check", "check.go"))
	known := matches(source, "`yaml:\"(\\w+)\"`")
	var file struct {
		Checks []map[string]any `yaml:"checks"`
	}
	dec := yaml.NewDecoder(strings.NewReader(text))
	dec.KnownFields(true)
	if err := dec.Decode(&file); err != nil || len(file.Checks) == 0 {
		t.Fatalf("%d checks, %v", len(file.Checks), err)
	}
	for _, check := range file.Checks {
		for key, value := range check {
			keys := []string{key}
			if inner, ok := value.(map[string]any); ok {
				for k := range inner {
					keys = append(keys, k)
				}
			}
			for _, k := range keys {
				if !slices.Contains(known, k) {
					t.Errorf("check %v has a key %q that checks do not have", check["name"], k)
				}
			}
		}
	}
}

// TestReadyFileOnThePage: the example of the ready file has the fields that the
// program writes, and no other.
func TestReadyFileOnThePage(t *testing.T) {
	all := snippets(t, "meshdir.md", "json")
	if len(all) != 1 {
		t.Fatalf("%d pieces of JSON, want the ready file", len(all))
	}
	known := matches(read(t, filepath.Join("..", "cmd", "writ", "internal", "stack", "ready.go")), "`json:\"(\\w+)")
	var file map[string]any
	if err := json.Unmarshal([]byte(all[0]), &file); err != nil {
		t.Fatal(err)
	}
	keys := []string{"revision", "trustDomain", "workloads", "gateways", "services"}
	for k := range file {
		if !slices.Contains(keys, k) {
			t.Errorf("the page has the field %s", k)
		}
	}
	for _, list := range []string{"workloads", "gateways"} {
		for _, one := range file[list].([]any) {
			for k := range one.(map[string]any) {
				keys = append(keys, k)
			}
		}
	}
	for _, k := range keys {
		if !slices.Contains(known, k) {
			t.Errorf("the program writes no field %s", k)
		}
	}
}

// TestKindsAreTold: the table has the kinds that the program says it knows.
func TestKindsAreTold(t *testing.T) {
	_, problems := meshdir.Parse(map[string][]byte{"a.yaml": []byte("kind: Nonsense\nmetadata: {name: x}\n")}, nil, meshdir.Options{})
	if len(problems) != 1 {
		t.Fatal(problems)
	}
	_, list, ok := strings.Cut(problems[0].Message, "known are ")
	if !ok {
		t.Fatal(problems[0].Message)
	}
	_, table, _ := strings.Cut(read(t, "meshdir.md"), "| kind | apiVersion |")
	table, _, _ = strings.Cut(table, "\n\n")
	var told []string
	for _, cell := range matches(table, `(?m)^\| ([A-Z][\w, ]+) \|`) {
		told = append(told, strings.Split(cell, ", ")...)
	}
	slices.Sort(told)
	if want := strings.Split(list, ", "); !slices.Equal(told, want) {
		t.Errorf("the page tells\n%v, the program knows\n%v", told, want)
	}
}

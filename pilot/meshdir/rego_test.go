package meshdir

import (
	"errors"
	"strings"
	"testing"
)

// TestLinesOfRego: what a compiler says of a line of the module is told of the
// line in the file that the module is written in.
func TestLinesOfRego(t *testing.T) {
	const head = "kind: RegoPolicy\nmetadata: {name: r}\nspec:\n  query: data.p.allow\n"
	refuse := func(name, _, _ string) error {
		return errors.New("2 errors occurred:\n" + name + ":2: rego_parse_error: a\n" + name + ":3:7: rego_parse_error: b")
	}
	for name, tc := range map[string]struct{ spec, place, want string }{
		"block":     {"  module: |\n    package p\n    allow :=\n    allow :=\n", "a.yaml:9", "line 9: rego_parse_error: a line 10: rego_parse_error: b"},
		"stripped":  {"  module: |-\n    package p\n    allow :=\n    allow :=\n", "a.yaml:9", "line 9: rego_parse_error: a"},
		"in a line": {`  module: "package p\nallow :="` + "\n", "a.yaml:7", "line 2 of the module: rego_parse_error: a"},
		"folded":    {"  module: >\n    package p\n\n    allow :=\n", "a.yaml:7", "line 2 of the module: rego_parse_error: a"},
		"file":      {"  moduleFile: p.rego\n", "a.yaml:7", "p.rego:2: rego_parse_error: a p.rego:3: rego_parse_error: b"},
	} {
		files := map[string][]byte{"a.yaml": []byte("# a comment\n---\n" + head + tc.spec), "p.rego": []byte("package p\nallow :=\nallow :=\n")}
		_, problems := Parse(files, nil, Options{CompileRego: refuse})
		if len(problems) != 1 || !strings.HasPrefix(problems[0].String(), tc.place+": ") || !strings.Contains(problems[0].Message, tc.want) {
			t.Errorf("%s: %v, want %q and %q", name, problems, tc.place, tc.want)
		}
	}
}

package docs_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// groups are the rows of features.md: every identifier from 01 to n.
var groups = []struct {
	name string
	n    int
}{
	{"DP", 42},
	{"PI", 35},
	{"TM", 64},
	{"GW", 30},
	{"GA", 20},
	{"CA", 37},
	{"ND", 12},
	{"AN", 15},
	{"AZ", 27},
	{"MP", 32},
	{"MT", 13},
	{"OB", 32},
	{"IN", 22},
	{"OP", 34},
	{"MC", 12},
	{"BI", 20},
	{"EX", 12},
	{"OS", 18},
}

// row is a line of a table: identifier, capability, proof.
var (
	row   = regexp.MustCompile(`^\| ([A-Z]{2}-\d\d) \| (.+) \| (.+) \|$`)
	proof = regexp.MustCompile("^`([a-z][a-z0-9/-]*)\\.(Test[A-Z]\\w*)`$")
)

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestEveryFeatureIsHereOnceAndInOrder(t *testing.T) {
	var want, got []string
	for _, g := range groups {
		for i := range g.n {
			want = append(want, fmt.Sprintf("%s-%02d", g.name, i+1))
		}
	}
	for line := range strings.Lines(read(t, "features.md")) {
		if strings.HasPrefix(line, "| X-") {
			continue // the conflicts
		}
		if m := row.FindStringSubmatch(strings.TrimSpace(line)); m != nil {
			got = append(got, m[1])
		} else if regexp.MustCompile(`^\|\s*[A-Z]{2}-`).MatchString(line) {
			t.Errorf("not a row: %s", line)
		}
	}
	for i := range max(len(want), len(got)) {
		switch {
		case i >= len(got):
			t.Fatalf("%s is missing", want[i])
		case i >= len(want):
			t.Fatalf("%s is too much", got[i])
		case want[i] != got[i]:
			t.Fatalf("%s stands where %s is expected", got[i], want[i])
		}
	}
}

func TestEveryProofExists(t *testing.T) {
	funcs := map[string]map[string]bool{}
	counts := map[string][3]int{}
	for line := range strings.Lines(read(t, "features.md")) {
		m := row.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			continue
		}
		id, text := m[1], m[3]
		c := counts[id[:2]]
		reason, na := strings.CutPrefix(text, "n/a: ")
		switch {
		case text == "not yet":
			c[1]++
		case na:
			c[2]++
			if len(strings.Fields(reason)) < 2 {
				t.Errorf("%s: n/a needs a reason", id)
			}
			if other, same := strings.CutPrefix(reason, "same as "); same && !regexp.MustCompile(`^[A-Z]{2}-\d\d$`).MatchString(other) {
				t.Errorf("%s: same as what? %q", id, other)
			}
		default:
			c[0]++
			for one := range strings.SplitSeq(text, ", ") {
				p := proof.FindStringSubmatch(one)
				if p == nil {
					t.Errorf("%s: %q is none of `folder.TestName`, not yet, n/a: reason", id, one)
					continue
				}
				if funcs[p[1]] == nil {
					funcs[p[1]] = testsOf(t, filepath.Join("..", p[1]))
				}
				if !funcs[p[1]][p[2]] {
					t.Errorf("%s: there is no test %s in %s", id, p[2], p[1])
				}
			}
		}
		counts[id[:2]] = c
	}
	var all [3]int
	for _, g := range groups {
		c := counts[g.name]
		for i := range all {
			all[i] += c[i]
		}
		if want := fmt.Sprintf(" | %d | %d | %d |", c[0], c[1], c[2]); !regexp.MustCompile(`(?m)^\| ` + g.name + ` .*` + regexp.QuoteMeta(want) + `$`).MatchString(read(t, "features.md")) {
			t.Errorf("the summary of %s does not say%s", g.name, want)
		}
	}
	if want := fmt.Sprintf("| all %d | %d | %d | %d |", all[0]+all[1]+all[2], all[0], all[1], all[2]); !strings.Contains(read(t, "features.md"), want) {
		t.Errorf("the summary does not say %s", want)
	}
}

// testsOf lists the test functions of a folder.
func testsOf(t *testing.T, dir string) map[string]bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]bool{}
	for _, file := range files {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil {
				out[fn.Name.Name] = true
			}
		}
	}
	return out
}

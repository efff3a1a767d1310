package meshdir

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestTemplatesInPer: which templates are taken, the largest included, which real Envoys
// take in package security.
func TestTemplatesInPer(t *testing.T) {
	for text, names := range map[string][]string{
		"/users/{id}/orders": {"id"}, "/": nil, "/login/": nil, "/a.b(c);x%20/{*}/{**}/end": nil, "/{a}/{_b2}/{**}": {"a", "_b2"},
		"/{a}/{b}/{c}/{d}/" + strings.Repeat("k", 11): {"a", "b", "c", "d"}, "/{*}/{**}/" + strings.Repeat("k", 65): nil, "/" + strings.Repeat("k", 79): nil,
	} {
		d, problem := parseDimension("request.path[" + text + "]")
		if problem != "" || d.Template() != text || d.Text != "request.path["+text+"]" || !slices.Equal(d.TemplateNames(), names) {
			t.Errorf("%s: %+v, names %q, %s", text, d, d.TemplateNames(), problem)
		}
	}
	if d, problem := parseDimension("request.path[/" + strings.Repeat("k", 80) + "]"); problem == "" {
		t.Errorf("a template that is too large is taken: %+v", d)
	}
	if d, _ := parseDimension("request.path"); d.Template() != "" || d.Kind != "request.path" {
		t.Errorf("the path itself is %+v", d)
	}
}

// TestWhenOfThePage: the match by claims of docs/quotas.md is one.
func TestWhenOfThePage(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "quotas.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, match, found := strings.Cut(string(page), "```yaml\nmatch:\n")
	match, _, closed := strings.Cut(match, "```")
	if !found || !closed {
		t.Fatal("docs/quotas.md has no match by itself")
	}
	text := "kind: QuotaPolicy\nmetadata: {name: q}\nspec:\n limits: [{requests: 1, every: 1s}]\n match:\n" + strings.ReplaceAll(" "+match, "\n", "\n ")
	mesh, problems := Parse(map[string][]byte{"a.yaml": []byte(text)}, nil, Options{})
	if len(problems) > 0 || len(mesh.QuotaPolicies) != 1 || len(mesh.QuotaPolicies[0].Match[0].Claims) != 2 || !mesh.QuotaPolicies[0].Match[0].Callers() {
		t.Errorf("%v", problems)
	}
}

package eval

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/writ-mesh/writ/pilot/model"
)

// TestPathsOfThePage: paths are counted by the templates of docs/quotas.md as it says.
func TestPathsOfThePage(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "..", "docs", "quotas.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, text, found := strings.Cut(string(page), "```paths\n")
	text, _, closed := strings.Cut(text, "```")
	if !found || !closed {
		t.Fatal("docs/quotas.md has no paths")
	}
	n := 0
	for line := range strings.Lines(text) {
		template, rest, ok := strings.Cut(strings.TrimSpace(line), ": ")
		for one := range strings.SplitSeq(rest, ", ") {
			path, want, both := strings.Cut(one, " ")
			if !ok || !both {
				t.Fatalf("%q is no line of a template and paths", line)
			}
			n++
			path, _, _ = strings.Cut(path, "?")
			got, fits := TemplateValue(template, path)
			if !fits {
				got = "-"
			}
			if got != want {
				t.Errorf("%s: %s is counted by %q, want %q", template, path, got, want)
			}
		}
	}
	if n < 10 {
		t.Errorf("%d paths", n)
	}
}

// FuzzTemplate: whatever the path, a value has as many segments as the template has
// names, of characters that have one spelling, and is bounded; a path with parameters
// behind a named segment is counted as the one without.
func FuzzTemplate(f *testing.F) {
	for _, path := range []string{"/users/1/orders", "/users/1;x/orders", "/users/%C3%A9/orders", "/users/%2f/orders", "/users//orders", "//", "", "/users/\xff/orders", "/users/1/orders/" + strings.Repeat("x", 3000)} {
		f.Add(path)
	}
	form := regexp.MustCompile("^(?:[-._~!$&'()*+,=:@a-zA-Z0-9]|%[89A-F][0-9A-F])+$")
	f.Fuzz(func(t *testing.T, path string) {
		for _, template := range []string{"/users/{id}/orders", "/{a}/{b}/{**}", "/{*}/{**}/orders", "/{**}"} {
			value, fits := TemplateValue(template, path)
			names := len(model.Dimension{Kind: "request.path", Arg: template}.TemplateNames())
			switch {
			case !fits && value != "" || fits && len(path) > model.MaxTemplatePath:
				t.Errorf("%s: %q, %v of %q", template, value, fits, path)
			case !fits:
			case names == 0 && value != template:
				t.Errorf("%s: %q of %q", template, value, path)
			case names > 0:
				held := strings.Split(value, "/")
				for _, h := range held {
					if !form.MatchString(h) {
						t.Errorf("%s: %q of %q", template, value, path)
					}
				}
				if len(held) != names {
					t.Errorf("%s: %q of %q has not %d names", template, value, path, names)
				}
			}
		}
		if before, after, ok := strings.Cut(path, "/orders"); ok {
			plain, _ := TemplateValue("/users/{id}/orders", path)
			with, fits := TemplateValue("/users/{id}/orders", before+";x=y/orders"+after)
			if fits && plain != with {
				t.Errorf("%q is %q, with parameters %q", path, plain, with)
			}
		}
	})
}

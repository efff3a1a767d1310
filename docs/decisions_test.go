package docs_test

import (
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestDecisions: numbered without a gap, of one form, at most a page, and all in
// the list.
func TestDecisions(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("decisions", "0*.md"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	slices.Sort(files)
	list := read(t, filepath.Join("decisions", "README.md"))
	heading := regexp.MustCompile(`(?m)^## (.*)$`)
	for i, file := range files {
		number := fmt.Sprintf("%04d", i+1)
		name := filepath.Base(file)
		text := read(t, file)
		title, _, _ := strings.Cut(strings.TrimPrefix(text, "# "), "\n")
		if !strings.HasPrefix(name, number+"-") || !strings.HasPrefix(title, number+": ") {
			t.Errorf("%s: want number %s in the name and in the title", name, number)
		}
		var parts []string
		for _, m := range heading.FindAllStringSubmatch(text, -1) {
			parts = append(parts, m[1])
		}
		if want := []string{"Context", "Decision", "Consequences", "Security"}; !slices.Equal(parts, want) {
			t.Errorf("%s: has %v, want %v", name, parts, want)
		}
		if n := len(strings.Fields(text)); n > 400 {
			t.Errorf("%s: %d words are more than a page", name, n)
		}
		if !strings.Contains(list, "["+title+"]("+name+")") {
			t.Errorf("%s is not in the list", name)
		}
		for _, m := range regexp.MustCompile(`\((0\d{3})\)`).FindAllStringSubmatch(text, -1) {
			if m[1] > fmt.Sprintf("%04d", len(files)) {
				t.Errorf("%s refers to decision %s, which does not exist", name, m[1])
			}
		}
	}
}

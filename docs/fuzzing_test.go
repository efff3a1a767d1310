package docs_test

import (
	"io/fs"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestEveryParserIsFuzzed: security/fuzzing.md names each fuzz test of the tree, once,
// and no other, and each of them has seeds.
func TestEveryParserIsFuzzed(t *testing.T) {
	named := map[string]int{}
	one := regexp.MustCompile("^`([a-z][a-z0-9/-]*\\.Fuzz[A-Z]\\w*)`$")
	for line := range strings.Lines(read(t, "security/fuzzing.md")) {
		cells := strings.Split(strings.TrimSpace(line), " | ")
		if !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| what is read |") {
			continue
		}
		if len(cells) != 3 {
			t.Errorf("not a row: %s", line)
			continue
		}
		for name := range strings.SplitSeq(strings.TrimSuffix(cells[2], " |"), ", ") {
			m := one.FindStringSubmatch(name)
			if m == nil {
				t.Errorf("%q is no `folder.FuzzName`: %s", name, line)
				continue
			}
			named[m[1]]++
		}
	}
	seeded := fuzzTests(t)
	for _, name := range slices.Sorted(maps.Keys(seeded)) {
		if named[name] != 1 {
			t.Errorf("%s is in the table %d times", name, named[name])
		}
		if !seeded[name] {
			t.Errorf("%s has no seeds", name)
		}
	}
	for name := range named {
		if _, ok := seeded[name]; !ok {
			t.Errorf("there is no %s", name)
		}
	}
}

// fuzzTests are those of the tree, and whether they have seeds.
func fuzzTests(t *testing.T) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	start := regexp.MustCompile(`(?m)^func (Fuzz[A-Z]\w*)\(`)
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if path != ".." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "bin" || d.Name() == "testdata") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, "_test.go") {
			return nil
		}
		text := read(t, path)
		for _, at := range start.FindAllStringSubmatchIndex(text, -1) {
			body, _, _ := strings.Cut(text[at[0]:], "\n}\n")
			folder := filepath.ToSlash(strings.TrimPrefix(filepath.Dir(path), "../"))
			out[folder+"."+text[at[2]:at[3]]] = strings.Contains(body, "f.Add(")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

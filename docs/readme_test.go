package docs_test

import (
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var link = regexp.MustCompile(`\[[^\]]*\]\(([^)\s]+)\)`)

// pages are README and every page of this folder.
func pages(t *testing.T) []string {
	t.Helper()
	out := []string{filepath.Join("..", "README.md")}
	err := filepath.WalkDir(".", func(path string, _ os.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".md") {
			out = append(out, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestLinksResolve(t *testing.T) {
	for _, page := range pages(t) {
		for _, m := range link.FindAllStringSubmatch(read(t, page), -1) {
			target, _, _ := strings.Cut(m[1], "#")
			if u, err := url.Parse(target); err != nil || u.IsAbs() || target == "" {
				continue
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(page), target)); err != nil {
				t.Errorf("%s links to %s: %v", page, target, err)
			}
		}
	}
}

// code gives what a page shows as code, in lines and in blocks.
func code(t *testing.T, page string) []string {
	t.Helper()
	var out []string
	block := false
	for line := range strings.Lines(read(t, page)) {
		if strings.HasPrefix(line, "```") {
			block = !block
			continue
		}
		if block {
			out = append(out, strings.TrimSpace(line))
			continue
		}
		for i, part := range strings.Split(line, "`") {
			if i%2 == 1 {
				out = append(out, part)
			}
		}
	}
	return out
}

func matches(text, pattern string) []string {
	var out []string
	for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
		out = append(out, m[1])
	}
	return out
}

// TestReadme: what README tells a newcomer to type is there to be typed.
func TestReadme(t *testing.T) {
	targets := matches(read(t, filepath.Join("..", "Makefile")), `(?m)^([a-z-]+):`)
	sources, err := filepath.Glob(filepath.Join("..", "cmd", "writ", "internal", "cli", "*.go"))
	if err != nil || len(sources) == 0 {
		t.Fatal(sources, err)
	}
	var commands []string
	for _, f := range sources {
		commands = append(commands, matches(read(t, f), `Use:\s+"([a-z-]+)`)...)
	}
	made, run := 0, 0
	for _, page := range pages(t) {
		for _, text := range code(t, page) {
			for _, target := range matches(text, `^make ([a-z-]+)`) {
				made++
				if !slices.Contains(targets, target) {
					t.Errorf("%s: there is no target %s", page, target)
				}
			}
			for _, command := range matches(text, `^(?:bin/)?writ ([a-z-]+)`) {
				run++
				if !slices.Contains(commands, command) {
					t.Errorf("%s: there is no command writ %s", page, command)
				}
			}
			for _, path := range matches(text, `\b((?:examples|docs|deploy)/[a-z0-9./-]+)`) {
				if strings.Contains(path, ".writ") {
					continue // made at run time
				}
				if _, err := os.Stat(filepath.Join("..", strings.TrimRight(path, "."))); err != nil {
					t.Errorf("%s names %s: %v", page, path, err)
				}
			}
		}
	}
	if made == 0 || run == 0 {
		t.Errorf("%d make targets and %d commands were found: README has no commands?", made, run)
	}
}

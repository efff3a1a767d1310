package ratelimit

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestAuditFileIsMoved: changes are written under the file's name, whoever moved it
// aside; if it cannot be opened nothing is changed, and it is tried again.
func TestAuditFileIsMoved(t *testing.T) {
	dir := t.TempDir()
	c, err := openChanges(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.close() }()
	path := filepath.Join(dir, changesFile)
	add := func(name string) error { return c.add(change{What: "reset", Counter: name}) }
	move := func() {
		t.Helper()
		if err := os.Rename(path, filepath.Join(dir, "moved")); err != nil {
			t.Fatal(err)
		}
	}
	want := func(what string, names ...string) {
		t.Helper()
		text, err := os.ReadFile(path)
		if err != nil || strings.Count(string(text), "\n") != len(names) {
			t.Fatalf("%s: %v\n%s", what, err, text)
		}
		for _, name := range names {
			if !strings.Contains(string(text), `"counter":"`+name+`"`) {
				t.Errorf("%s: no %s in\n%s", what, name, text)
			}
		}
	}
	for _, name := range []string{"a", "b"} {
		if err := add(name); err != nil {
			t.Fatal(err)
		}
	}
	move()
	if err := add("c"); err != nil {
		t.Fatal(err)
	}
	want("moved", "c")
	move()
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := add("d"); err == nil {
			t.Error("a change that could not be written down was taken")
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := add("e"); err != nil {
		t.Fatal(err)
	}
	want("opened again", "e")
	if got := c.list(); len(got) != 4 || got[0].Counter != "e" {
		t.Errorf("%d changes are told: %+v", len(got), got)
	}
}

package plans

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// replace puts a file in the place of another as an operator should.
func replace(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func newBook(t testing.TB, dir string) (*Book, *bytes.Buffer) {
	t.Helper()
	var log bytes.Buffer
	return New(Options{Folder: dir, MaxCallers: 1000, Now: time.Now, Log: slog.New(slog.NewTextHandler(&log, nil))}), &log
}

// TestFolder: each look takes in what was replaced, and keeps the last good table
// whatever happens to the file.
func TestFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "plans")
	file := filepath.Join(dir, "customers"+Suffix)
	b, log := newBook(t, dir) // the folder is not there yet
	h := b.Handle("customers")
	want := func(when string, requests uint32, by int) {
		t.Helper()
		b.folder.look()
		if f := h.Find("alice", ""); f.Number.Requests != requests || f.by != by {
			t.Errorf("%s: %+v", when, f)
		}
	}
	want("no folder", 0, byNothing)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	want("no file", 0, byNothing)
	replace(t, file, "numbers n\ncaller alice 1\n")
	want("a file", 1, byItself)
	first := h.table.Load()
	want("the same file", 1, byItself)
	if h.table.Load() != first {
		t.Error("a file that did not change was read again")
	}
	replace(t, file, "numbers n\ncaller alice 2\n")
	want("another one", 2, byItself)
	if h.failures.Load() != 0 || log.Len() != 0 {
		t.Errorf("%d failures, %s", h.failures.Load(), log)
	}
	replace(t, file, "numbers n\ncaller alice -2\n")
	want("a broken one", 2, byItself)
	want("a broken one again", 2, byItself)
	if h.failures.Load() != 1 || !strings.Contains(log.String(), `plans refused, the last good ones stay" table=customers error="customers.plans:2: n: \"-2\" is below 0"`) {
		t.Errorf("%d failures, %s", h.failures.Load(), log)
	}
	current := h.current.Load()
	want("still broken", 2, byItself)
	if h.current.Load() != current {
		t.Error("the age of a table begins anew though its file is broken")
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	want("gone", 2, byItself)
	if !strings.Contains(log.String(), "customers.plans is gone") {
		t.Errorf("%s", log)
	}
	replace(t, file, "numbers n\ndefault refuse\n")
	want("well again", 0, byRefusal)
	if h.current.Load() == current {
		t.Error("the age of a table does not begin anew")
	}
}

// TestFilesOfOthers: whoever may write a table gets no other file read by it, nor the
// service to wait.
func TestFilesOfOthers(t *testing.T) {
	dir := t.TempDir()
	secret := filepath.Join(t.TempDir(), "secret")
	replace(t, secret, "hunter2\n")
	for name, make := range map[string]func(path string) error{
		"link":   func(path string) error { return os.Symlink(secret, path) },
		"pipe":   func(path string) error { return syscall.Mkfifo(path, 0o600) },
		"folder": func(path string) error { return os.Mkdir(path, 0o700) },
		"open": func(path string) error {
			replace(t, path, "numbers n\n")
			return os.Chmod(path, 0o666) //nolint:gosec // what is to be refused
		},
	} {
		if err := make(filepath.Join(dir, name+Suffix)); err != nil {
			t.Fatal(err)
		}
	}
	replace(t, filepath.Join(dir, "Bad Name"+Suffix), "x")
	b, log := newBook(t, dir)
	for _, h := range b.all() {
		if h.table.Load() != nil || h.failures.Load() != 1 {
			t.Errorf("%s was read", h.name)
		}
	}
	for _, want := range []string{"link.plans: openat link.plans: path escapes from parent", "pipe.plans: is not a file", "folder.plans: is not a file", "open.plans: has mode 0666"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log does not say %q:\n%s", want, log)
		}
	}
	if strings.Contains(log.String(), "hunter2") {
		t.Error("the log shows another file")
	}
	good, problems := Check(dir, 10)
	if len(good) != 0 || len(problems) != 4 {
		t.Errorf("%v, %v", good, problems)
	}
}

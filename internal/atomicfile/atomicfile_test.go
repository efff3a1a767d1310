package atomicfile_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/writ-mesh/writ/internal/atomicfile"
)

func TestWriteReplacesAndSetsMode(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for _, content := range []string{"one", "two"} {
		if err := atomicfile.Write(path, []byte(content), 0o640); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != content {
			t.Fatalf("got %q, %v", got, err)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o640 {
		t.Fatalf("got %v, %v", info.Mode(), err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Fatalf("left behind: %v", left)
	}
}

func TestFailureLeavesOldContentAndNoLitter(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	if err := os.Mkdir(path, 0o700); err != nil { // a directory cannot be replaced by a file
		t.Fatal(err)
	}
	if err := atomicfile.Write(path, []byte("x"), 0o600); err == nil {
		t.Fatal("no error")
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Fatalf("left behind: %v", left)
	}
}

func TestSweepRemovesWhatADeathLeft(t *testing.T) {
	dir := t.TempDir()
	want := map[string]bool{".hidden": true, "root.key": true, "a.1": true, ".folder.2": true}
	for _, name := range []string{".hidden", "root.key", "a.1", ".root.key.123", ".bundle.pem.4"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, ".folder.2"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := atomicfile.Sweep(dir); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != len(want) {
		t.Errorf("left are %v, %v", left, err)
	}
	for _, e := range left {
		if !want[e.Name()] {
			t.Errorf("%s is still there", e.Name())
		}
	}
	if err := atomicfile.Sweep(filepath.Join(dir, "nowhere")); err == nil {
		t.Error("a directory that is not there was swept")
	}
}

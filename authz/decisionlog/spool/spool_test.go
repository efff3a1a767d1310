package spool_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/writ-mesh/writ/authz/decisionlog/spool"
)

func ten(b byte) []byte { return bytes.Repeat([]byte{b}, 10) }

// each runs a test with batches on disk and in memory.
func each(t *testing.T, f func(t *testing.T, dir string)) {
	t.Helper()
	t.Run("disk", func(t *testing.T) { f(t, filepath.Join(t.TempDir(), "spool")) })
	t.Run("memory", func(t *testing.T) { f(t, "") })
}

// drain takes everything and gives the first byte of each batch.
func drain(t *testing.T, s *spool.Spool) string {
	t.Helper()
	out := ""
	for {
		b, ok := s.Next()
		if !ok {
			if s.Bytes() != 0 {
				t.Errorf("an empty spool has %d bytes", s.Bytes())
			}
			return out
		}
		data, err := s.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		out += string(data[0])
		if err := s.Remove(b); err != nil {
			t.Fatal(err)
		}
	}
}

// TestMakesRoom: what has to go goes by class, the oldest first, and class 0 never.
func TestMakesRoom(t *testing.T) {
	type put struct {
		class   int
		content byte
	}
	for name, c := range map[string]struct {
		puts    []put
		evicted int
		full    int
		left    string
	}{
		"there is room":        {[]put{{2, 'a'}, {0, 'b'}, {1, 'c'}}, 0, 0, "bca"},
		"allows go first":      {[]put{{1, 'o'}, {2, 'a'}, {0, 'r'}, {0, 's'}}, 1, 0, "rso"},
		"the oldest of them":   {[]put{{2, 'a'}, {2, 'b'}, {2, 'c'}, {2, 'd'}}, 1, 0, "bcd"},
		"observed go next":     {[]put{{1, 'o'}, {0, 'r'}, {0, 's'}, {0, 't'}}, 1, 0, "rst"},
		"refusals stay":        {[]put{{0, 'r'}, {0, 's'}, {0, 't'}, {0, 'u'}, {0, 'v'}}, 0, 2, "rst"},
		"nobody else gets in":  {[]put{{0, 'r'}, {0, 's'}, {0, 't'}, {2, 'a'}, {1, 'o'}}, 0, 2, "rst"},
		"allows push no other": {[]put{{1, 'o'}, {1, 'p'}, {1, 'q'}, {2, 'a'}}, 0, 1, "opq"},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, dir string) {
				s, err := spool.Open(dir, 30)
				if err != nil {
					t.Fatal(err)
				}
				evicted, full := 0, 0
				for _, p := range c.puts {
					gone, err := s.Put(p.class, 1, ten(p.content))
					evicted += len(gone)
					if errors.Is(err, spool.ErrFull) {
						full++
					} else if err != nil {
						t.Fatal(err)
					}
				}
				if left := drain(t, s); evicted != c.evicted || full != c.full || left != c.left {
					t.Errorf("%d made room, %d found none, %q stayed; want %d, %d, %q", evicted, full, left, c.evicted, c.full, c.left)
				}
			})
		})
	}
}

// TestOpensAgain: what was kept is there after a restart, with its order, and
// nobody else can read it.
func TestOpensAgain(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	s, err := spool.Open(dir, 1000)
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range "ab" {
		if _, err := s.Put(2-2*i, 7, ten(byte(c))); err != nil {
			t.Fatal(err)
		}
	}
	// What a death leaves in the middle of a write, and a file of somebody else.
	for _, name := range []string{".0-0000000000000003-1.json.gz.123", "notes.txt", "0-1-1.json.gz"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if s, err = spool.Open(dir, 1000); err != nil {
		t.Fatal(err)
	}
	if b, ok := s.Next(); !ok || b.Records != 7 || s.Bytes() != 20 {
		t.Errorf("found %+v, %d bytes", b, s.Bytes())
	}
	if _, err := s.Put(0, 1, ten('c')); err != nil {
		t.Fatal(err)
	}
	files(t, dir, 5)
	if left := drain(t, s); left != "bca" {
		t.Errorf("%q is there", left)
	}
	files(t, dir, 2)
}

func files(t *testing.T, dir string, want int) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != want {
		t.Errorf("%d files, %v; want %d", len(entries), err, want)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the folder's mode is %v, %v", info.Mode(), err)
	}
	if slices.ContainsFunc(entries, func(e os.DirEntry) bool {
		info, err := e.Info()
		return err != nil || info.Mode().Perm() != 0o600
	}) {
		t.Error("a file is not 0600")
	}
}

// TestRemovedBehindItsBack: a batch that made room while it was being sent is gone
// without an error.
func TestRemovedBehindItsBack(t *testing.T) {
	each(t, func(t *testing.T, dir string) {
		s, err := spool.Open(dir, 10)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Put(2, 1, ten('a')); err != nil {
			t.Fatal(err)
		}
		b, _ := s.Next()
		if gone, err := s.Put(0, 1, ten('r')); err != nil || len(gone) != 1 {
			t.Fatal(gone, err)
		}
		if err := s.Remove(b); err != nil || s.Bytes() != 10 {
			t.Errorf("%v, %d bytes", err, s.Bytes())
		}
	})
}

// TestFolder: a folder into which others may write is refused, and nothing but files in
// one is taken for batches.
func TestFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for mode, ok := range map[os.FileMode]bool{0o700: true, 0o750: true, 0o770: false, 0o707: false, 0o777: false} {
		if err := os.Chmod(dir, mode); err != nil { //nolint:gosec // that is what is refused
			t.Fatal(err)
		}
		if _, err := spool.Open(dir, 100); (err == nil) != ok {
			t.Errorf("mode %v: %v", mode, err)
		}
	}
	if err := os.Chmod(dir, 0o700); err != nil { //nolint:gosec // a folder
		t.Fatal(err)
	}
	batch := func(sequence string) string { return filepath.Join(dir, "0-000000000000000"+sequence+"-1.json.gz") }
	if err := syscall.Mkfifo(batch("1"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", batch("2")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(batch("3"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(batch("4"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := spool.Open(dir, 100)
	if err != nil {
		t.Fatal(err)
	}
	if left := drain(t, s); left != "x" {
		t.Errorf("%q is there", left)
	}
}

package statefile_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/writ-mesh/writ/nodeagent/statefile"
)

const magic = "WRITTST1"

func TestWriteRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	if _, err := statefile.Read(path, magic, 1<<10); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("reading a missing file: %v, want fs.ErrNotExist", err)
	}
	for _, payload := range [][]byte{nil, []byte("one"), bytes.Repeat([]byte{7}, 500)} {
		if err := statefile.Write(path, magic, payload); err != nil {
			t.Fatal(err)
		}
		got, err := statefile.Read(path, magic, 1<<10)
		if err != nil || !bytes.Equal(got, payload) {
			t.Fatalf("read %q, %v; want %q", got, err, payload)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode is %v, %v; want 0600", info.Mode(), err)
	}
}

func TestCorruptFileIsMovedAside(t *testing.T) {
	good := statefile.Seal(magic, []byte("payload"))
	flipped := bytes.Clone(good)
	flipped[len(flipped)-1] ^= 1
	for name, data := range map[string][]byte{
		"empty":       {},
		"truncated":   good[:20],
		"cut payload": good[:len(good)-1],
		"flipped bit": flipped,
		"other magic": statefile.Seal("OTHERXX1", []byte("payload")),
		"too large":   statefile.Seal(magic, make([]byte, 2000)),
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state")
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := statefile.Read(path, magic, 1<<10); !errors.Is(err, statefile.ErrCorrupt) {
				t.Fatalf("read: %v, want ErrCorrupt", err)
			}
			aside, err := os.ReadFile(path + ".corrupt")
			if err != nil || !bytes.Equal(aside, data) {
				t.Fatalf("the bad file is not kept: %v", err)
			}
			if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("the bad file is still in place: %v", err)
			}
		})
	}
}

func FuzzOpen(f *testing.F) {
	f.Add([]byte{})
	f.Add(statefile.Seal(magic, []byte("payload")))
	f.Add(statefile.Seal(magic, nil)[:30])
	f.Fuzz(func(t *testing.T, data []byte) {
		payload, err := statefile.Open(magic, data)
		if err == nil && !bytes.Equal(statefile.Seal(magic, payload), data) {
			t.Fatalf("opened data that Seal does not make: %x", data)
		}
	})
}

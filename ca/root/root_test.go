package root_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-mesh/writ/ca/root"
)

var spec = root.Spec{TrustDomain: spiffeid.RequireTrustDomainFromString("example.org"), Life: 24 * time.Hour, Skew: 10 * time.Second}

func open(t *testing.T, dir string) (*root.Root, error) {
	t.Helper()
	return root.Open(t.Context(), dir, spec, time.Now())
}

func TestMadeOnceThenLoaded(t *testing.T) {
	dir := t.TempDir()
	first, err := open(t, dir)
	if err != nil || !first.New {
		t.Fatalf("got %+v, %v", first, err)
	}
	second, err := open(t, dir)
	if err != nil || second.New || !second.Cert.Equal(first.Cert) {
		t.Fatalf("the second start has another root: %v", err)
	}
	if info, err := os.Stat(filepath.Join(dir, root.KeyFile)); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("root key: %v, %v", info.Mode(), err)
	}
}

// A first start that is cut off between its two files goes on with the key.
func TestCutOffFirstStart(t *testing.T) {
	dir := t.TempDir()
	first, err := open(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	remove(t, dir, root.CertFile)
	again, err := open(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(again.Cert.RawSubjectPublicKeyInfo, first.Cert.RawSubjectPublicKeyInfo) {
		t.Fatal("the key was replaced")
	}
}

// Whatever is wrong with the files, the error is one line that names the file,
// and the files stay as they are.
func TestDamageIsAnErrorAndStays(t *testing.T) {
	for _, tc := range []struct {
		name  string
		spoil func(t *testing.T, dir string)
		file  string
		want  string
	}{
		{"key cut", func(t *testing.T, dir string) { cut(t, dir, root.KeyFile) }, root.KeyFile, "is damaged"},
		{"key empty", func(t *testing.T, dir string) { write(t, dir, root.KeyFile, nil) }, root.KeyFile, "is damaged"},
		{"key appended", func(t *testing.T, dir string) {
			write(t, dir, root.KeyFile, append(read(t, dir, root.KeyFile), "x"...))
		}, root.KeyFile, "is damaged"},
		{"key is a certificate", func(t *testing.T, dir string) { write(t, dir, root.KeyFile, read(t, dir, root.CertFile)) }, root.KeyFile, "is damaged"},
		{"key readable", func(t *testing.T, dir string) { chmod(t, filepath.Join(dir, root.KeyFile), 0o640) }, root.KeyFile, "chmod 600"},
		{"key missing", func(t *testing.T, dir string) { remove(t, dir, root.KeyFile) }, root.CertFile, "is missing"},
		{"key is a link", func(t *testing.T, dir string) {
			write(t, dir, "elsewhere", read(t, dir, root.KeyFile))
			remove(t, dir, root.KeyFile)
			if err := os.Symlink("elsewhere", filepath.Join(dir, root.KeyFile)); err != nil {
				t.Fatal(err)
			}
		}, root.KeyFile, "no regular file"},
		{"certificate cut", func(t *testing.T, dir string) { cut(t, dir, root.CertFile) }, root.CertFile, "is damaged"},
		{"certificate of another key", func(t *testing.T, dir string) {
			other := t.TempDir()
			if _, err := open(t, other); err != nil {
				t.Fatal(err)
			}
			write(t, dir, root.CertFile, read(t, other, root.CertFile))
		}, root.CertFile, "not the certificate of the key"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			if _, err := open(t, dir); err != nil {
				t.Fatal(err)
			}
			tc.spoil(t, dir)
			before := snapshot(t, dir)
			_, err := open(t, dir)
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), filepath.Join(dir, tc.file)) && tc.name != "key missing" {
				t.Fatalf("got error %v, want %q and the file", err, tc.want)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Fatalf("error of several lines: %q", err)
			}
			if after := snapshot(t, dir); after != before {
				t.Fatalf("files were changed:\n%s\n%s", before, after)
			}
		})
	}
}

func TestLossAfterUse(t *testing.T) {
	inUse := spec
	inUse.InUse = true
	if _, err := root.Open(t.Context(), t.TempDir(), inUse, time.Now()); err == nil || !strings.Contains(err.Error(), "certificates were issued from this directory") {
		t.Fatalf("got %v", err)
	}
}

func TestClockAnHourBehind(t *testing.T) {
	dir := t.TempDir()
	if _, err := open(t, dir); err != nil {
		t.Fatal(err)
	}
	_, err := root.Open(t.Context(), dir, spec, time.Now().Add(-time.Hour))
	if err == nil || !strings.Contains(err.Error(), "set the clock") {
		t.Fatalf("got %v", err)
	}
}

func TestDir(t *testing.T) {
	made := filepath.Join(t.TempDir(), "a", "b")
	d, err := root.OpenDir(made)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(made); err != nil || info.Mode().Perm() != 0o700 {
		t.Fatalf("got %v, %v", info.Mode(), err)
	}
	if _, err := root.OpenDir(made); err == nil || !strings.Contains(err.Error(), "in use by another") {
		t.Fatalf("locked twice: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	chmod(t, made, 0o750)
	if _, err := root.OpenDir(made); err == nil || !strings.Contains(err.Error(), "chmod 700") {
		t.Fatalf("a wide mode was taken: %v", err)
	}
	empty := t.TempDir()
	chmod(t, empty, 0o755)
	d, err = root.OpenDir(empty)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if info, err := os.Stat(empty); err != nil || info.Mode().Perm() != 0o700 {
		t.Fatalf("an empty directory was not closed to others: %v, %v", info.Mode(), err)
	}
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := root.OpenDir(file); err == nil || !strings.Contains(err.Error(), file) {
		t.Fatalf("got %v", err)
	}
}

func read(t *testing.T, dir, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func write(t *testing.T, dir, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func cut(t *testing.T, dir, name string) {
	t.Helper()
	data := read(t, dir, name)
	write(t, dir, name, data[:len(data)/2])
}

func remove(t *testing.T, dir, name string) {
	t.Helper()
	if err := os.Remove(filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

func chmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func snapshot(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for _, e := range entries {
		out.WriteString(e.Name() + "\n" + string(read(t, dir, e.Name())))
	}
	return out.String()
}

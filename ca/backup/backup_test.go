package backup_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/ca/backup"
	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/ledger/checkpoint"
	"github.com/writ-mesh/writ/ca/ledger/filelog"
	"github.com/writ-mesh/writ/ca/ledger/ledgertest"
)

// now is when backups are restored.
var now = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// state is a state directory with a ledger of some entries and its checkpoint.
func state(t *testing.T, entries int) string {
	t.Helper()
	dir := t.TempDir()
	log, err := filelog.Open(filepath.Join(dir, filelog.Name), filelog.Options{})
	must(t, err)
	for n := range entries {
		_, err := log.Commit(t.Context(), ledgertest.Issue(n))
		must(t, err)
	}
	_, err = log.Commit(t.Context(), ledgertest.Put("tokens/1", "secret"))
	must(t, err)
	key, err := checkpoint.OpenKey(filepath.Join(dir, checkpoint.KeyFile), "example.org/ledger")
	must(t, err)
	head, err := log.Head(t.Context())
	must(t, err)
	text, err := key.Sign(head)
	must(t, err)
	must(t, log.Close())
	must(t, os.Mkdir(filepath.Join(dir, "roots"), 0o700))
	for name, data := range map[string]string{
		checkpoint.File: string(text), "root.key": "the key", "root.crt": "the certificate", "roots/a.key": "another key",
		"lock": "", filelog.Name + ".torn": "x", ".root.key.123": "x",
	} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600))
	}
	must(t, os.Chmod(filepath.Join(dir, "root.crt"), 0o644)) //nolint:gosec // as the authority has it
	return dir
}

func write(t *testing.T, dir string) []byte {
	t.Helper()
	var out bytes.Buffer
	must(t, backup.Write(dir, &out))
	return out.Bytes()
}

// files are the contents and modes of a directory, without the ledger.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := make(map[string]string)
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		must(t, err)
		data, err := os.ReadFile(path)
		must(t, err)
		name, err := filepath.Rel(dir, path)
		must(t, err)
		out[name] = info.Mode().String() + " " + string(data)
		return nil
	}))
	return out
}

func TestThereAndBack(t *testing.T) {
	from := state(t, 5)
	for _, empty := range []bool{false, true} {
		to := filepath.Join(t.TempDir(), "ca")
		if empty {
			must(t, os.Mkdir(to, 0o700))
		}
		w, err := backup.Restore(t.Context(), bytes.NewReader(write(t, from)), to, "", now)
		must(t, err)
		if !w.To.Equal(now) || !w.From.Equal(ledgertest.Put("", "").Entry.Time) {
			t.Errorf("got %+v", w)
		}
		want, got := files(t, from), files(t, to)
		for _, name := range []string{"root.key", "root.crt", "roots/a.key", checkpoint.KeyFile} {
			if got[name] != want[name] {
				t.Errorf("%s is %q, want %q", name, got[name], want[name])
			}
		}
		for _, name := range []string{"lock", filelog.Name + ".torn", ".root.key.123"} {
			if got[name] != "" {
				t.Errorf("%s is there", name)
			}
		}
		if !strings.HasPrefix(strings.SplitN(got[filelog.Name], " ", 3)[2], strings.SplitN(want[filelog.Name], " ", 3)[2]) {
			t.Error("the ledger does not begin as it was")
		}
		if info, err := os.Stat(to); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("got %v, %v", info.Mode(), err)
		}
		restored(t, to)
	}
}

// restored looks at the ledger that was restored: it says so, and agrees with its
// checkpoint.
func restored(t *testing.T, dir string) {
	t.Helper()
	log, err := filelog.Open(filepath.Join(dir, filelog.Name), filelog.Options{})
	must(t, err)
	defer log.Close()
	entries := ledgertest.All(t, log)
	if last := entries[len(entries)-1]; len(entries) != 7 || last.Kind != ledger.Restored || last.Detail["entries"] != "6" {
		t.Errorf("%d entries, the last is %+v", len(entries), last)
	}
	if d, err := log.Get(t.Context(), "tokens/1"); err != nil || string(d.Value) != "secret" {
		t.Errorf("got %v, %v", d, err)
	}
	if docs, err := log.List(t.Context(), backup.WindowPrefix); err != nil || len(docs) != 1 {
		t.Errorf("got %v, %v", docs, err)
	}
	key, err := checkpoint.OpenKey(filepath.Join(dir, checkpoint.KeyFile), "")
	must(t, err)
	text, err := os.ReadFile(filepath.Join(dir, checkpoint.File))
	must(t, err)
	cp, err := checkpoint.Open(text, key.Verifier)
	must(t, err)
	if head, err := log.Head(t.Context()); err != nil || head != cp.Head {
		t.Errorf("the log says %+v, its checkpoint %+v, %v", head, cp.Head, err)
	}
}

// What the authority was writing by half is cut off on the way back.
func TestBackupWhileTheLedgerIsWritten(t *testing.T) {
	from := state(t, 5)
	f, err := os.OpenFile(filepath.Join(from, filelog.Name), os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	_, err = f.WriteString("0a1b2c3d 6 6 {\"kind\":\"iss")
	must(t, errors.Join(err, f.Close()))
	to := filepath.Join(t.TempDir(), "ca")
	_, err = backup.Restore(t.Context(), bytes.NewReader(write(t, from)), to, "", now)
	must(t, err)
	restored(t, to)
}

func TestWithoutALedger(t *testing.T) {
	from := state(t, 1)
	must(t, os.Remove(filepath.Join(from, filelog.Name)))
	w, err := backup.Restore(t.Context(), bytes.NewReader(write(t, from)), filepath.Join(t.TempDir(), "ca"), "", now)
	if err != nil || w != nil {
		t.Fatalf("got %v, %v", w, err)
	}
}

// The ledger of a cluster comes from its authority, and is a file from then on; what the
// member has is not in the backup.
func TestLedgerOfACluster(t *testing.T) {
	from := state(t, 5)
	var records []ledger.Record
	log, err := filelog.Open(filepath.Join(from, filelog.Name), filelog.Options{})
	must(t, err)
	must(t, log.Each(t.Context(), 0, func(r ledger.Record) error {
		records = append(records, ledger.Record{Index: r.Index, Leaf: bytes.Clone(r.Leaf), Values: bytes.Clone(r.Values)})
		return nil
	}))
	must(t, errors.Join(log.Close(), os.Remove(filepath.Join(from, filelog.Name))))
	must(t, os.MkdirAll(filepath.Join(from, "etcd", "member"), 0o700))
	must(t, os.WriteFile(filepath.Join(from, "etcd", "member", "db"), []byte("x"), 0o600))
	if err := backup.Write(from, new(bytes.Buffer)); err == nil || !strings.Contains(err.Error(), "--admin") {
		t.Errorf("a backup without the ledger: %v", err)
	}
	each := func(f func(ledger.Record) error) error {
		for _, r := range records {
			if err := f(r); err != nil {
				return err
			}
		}
		return nil
	}
	beside := filepath.Join(t.TempDir(), "l")
	var out bytes.Buffer
	must(t, backup.WriteWithLedger(from, each, beside, &out))
	if _, err := os.Stat(beside); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left beside: %v", err)
	}
	to := filepath.Join(t.TempDir(), "ca")
	_, err = backup.Restore(t.Context(), &out, to, "", now)
	must(t, err)
	restored(t, to)
	if _, err := os.Stat(filepath.Join(to, "etcd")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a member's data was restored: %v", err)
	}
	records = records[1:]
	if err := backup.WriteWithLedger(from, each, beside, new(bytes.Buffer)); err == nil {
		t.Error("a ledger without its first entry was backed up")
	}
	if _, err := os.Stat(beside); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left beside: %v", err)
	}
}

// Whatever is wrong with a backup, or with where it is to go, nothing is left behind.
func TestBadBackup(t *testing.T) {
	good := write(t, state(t, 3))
	parent := t.TempDir()
	to := filepath.Join(parent, "ca")
	try := func(what string, data []byte, want string) {
		t.Helper()
		_, err := backup.Restore(t.Context(), bytes.NewReader(data), to, "", now)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", what, err, want)
		}
		if left, err := os.ReadDir(parent); err != nil || len(left) > 0 {
			t.Fatalf("%s: left behind: %v, %v", what, left, err)
		}
	}
	for cut := 0; cut < len(good)-1024; cut += 509 {
		try("cut", good[:cut], "")
	}
	random := rand.New(rand.NewPCG(3, 4)) //nolint:gosec // which bytes are tried
	for range 200 {
		bad := bytes.Clone(good)
		// The contents; a header has unused bytes.
		at := bytes.Index(bad, []byte(`"kind"`)) + random.IntN(600)
		bad[at] ^= byte(1 + random.IntN(255))
		try("changed", bad, "")
	}
	evil := func(h *tar.Header) []byte {
		var out bytes.Buffer
		w := tar.NewWriter(&out)
		must(t, w.WriteHeader(h))
		must(t, w.Close())
		return out.Bytes()
	}
	for _, name := range []string{"../root.key", "/etc/x", "a/../../x", "."} {
		try(name, evil(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o600}), "is in no backup")
	}
	try("link", evil(&tar.Header{Name: "root.key", Typeflag: tar.TypeSymlink, Linkname: "/etc/shadow"}), "is in no backup")
	forged := state(t, 3)
	other := state(t, 4)
	log, err := os.ReadFile(filepath.Join(other, filelog.Name))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(forged, filelog.Name), bytes.Replace(log, []byte("x"), []byte("x"), 1)[:len(log)/2], 0o600))
	try("an earlier ledger", write(t, forged), "not the one of its checkpoint")
	must(t, os.Mkdir(to, 0o700))
	must(t, os.WriteFile(filepath.Join(to, "root.key"), nil, 0o600))
	if _, err := backup.Restore(t.Context(), bytes.NewReader(good), to, "", now); err == nil || !strings.Contains(err.Error(), "is not empty") {
		t.Errorf("got %v", err)
	}
	if err := backup.Write(t.TempDir(), new(bytes.Buffer)); err == nil || !strings.Contains(err.Error(), "nothing of an authority") {
		t.Errorf("got %v", err)
	}
	if err := backup.Write(filepath.Join(parent, "nowhere"), new(bytes.Buffer)); err == nil {
		t.Error("a directory that is not there was backed up")
	}
}

// A later file of the ledger takes the place of the one in the backup, if it goes on
// from there.
func TestLaterLedger(t *testing.T) {
	from := state(t, 5)
	saved := write(t, from)
	path := filepath.Join(from, filelog.Name)
	log, err := filelog.Open(path, filelog.Options{})
	must(t, err)
	_, err = log.Commit(t.Context(), ledgertest.Put("revocations/identities/1", "thief"))
	must(t, errors.Join(err, log.Close()))
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	_, err = f.WriteString("0a1b2c3d 7 7 {\"kind\":\"iss") // it died
	must(t, errors.Join(err, f.Close()))
	to := filepath.Join(t.TempDir(), "ca")
	if _, err := backup.Restore(t.Context(), bytes.NewReader(saved), to, path, now); err != nil {
		t.Fatal(err)
	}
	again, err := filelog.Open(filepath.Join(to, filelog.Name), filelog.Options{})
	must(t, err)
	defer again.Close()
	if d, err := again.Get(t.Context(), "revocations/identities/1"); err != nil || string(d.Value) != "thief" {
		t.Errorf("what came after the backup: %v, %v", d, err)
	}
	for name := range files(t, to) {
		if strings.Contains(name, "newer") || strings.HasSuffix(name, ".torn") {
			t.Errorf("%s is there", name)
		}
	}
	parent := t.TempDir()
	for what, other := range map[string]string{"another": filepath.Join(state(t, 9), filelog.Name), "an earlier": filepath.Join(state(t, 2), filelog.Name), "none": filepath.Join(parent, "nowhere")} {
		if _, err := backup.Restore(t.Context(), bytes.NewReader(saved), filepath.Join(parent, "ca"), other, now); err == nil || !strings.Contains(err.Error(), other) {
			t.Errorf("%s ledger: %v", what, err)
		}
		if left, err := os.ReadDir(parent); err != nil || len(left) > 0 {
			t.Fatalf("%s: left behind: %v, %v", what, left, err)
		}
	}
}

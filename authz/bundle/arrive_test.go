package bundle

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/authz/bundletest"
	"github.com/writ-mesh/writ/internal/atomicfile"
	"github.com/writ-mesh/writ/internal/proctest"
)

const keysSection = `{"keys": {"k": {"algorithm": "HS256", "key": "the right key"}}, `

// kept is a configuration whose bundle stays on disk.
func kept(url, dir, more string) string {
	return strings.Replace(polled(url, `, "persist": true`+more), "{", fmt.Sprintf(`{"persistence_directory": %q, `, dir), 1)
}

// A bundle that unpacks to more than the limit is refused, and the last good one stays.
func TestUnpacksToMuch(t *testing.T) {
	t.Parallel() // it mostly waits
	s := newServer(t)
	s.set("/b.tar.gz", bundletest.Tarball(t, policy(1)))
	o := options(polled(s.URL, ""))
	o.Limits = defaultLimits()
	o.Limits.Unpacked = 1 << 20
	r := run(t, o)
	r.decides(t, "1 1")
	s.set("/b.tar.gz", bundletest.Tarball(t, map[string]string{"data.json": strings.Repeat(" ", 1<<20)}))
	r.fails(t, "b", "larger than the limit of 1048576 bytes when unpacked")
	if got := r.ask(t); got != "1 1" {
		t.Errorf("decides %q", got)
	}
}

// A bundle that was kept decides after a restart while the server is away, signed or not,
// as this version writes it and as those before wrote it; one that was changed on disk
// does not.
func TestKeptOnDisk(t *testing.T) {
	t.Parallel() // it mostly waits
	for name, c := range map[string]struct {
		more, keys string
		bundle     func(revision int) []byte
	}{
		"not signed": {"", "{", func(n int) []byte { return bundletest.Tarball(t, policy(n)) }},
		"signed":     {`, "signing": {"keyid": "k"}`, keysSection, func(n int) []byte { return signed(t, policy(n), "the right key", "k") }},
		"keys alone": {"", keysSection, func(n int) []byte { return signed(t, policy(n), "the right key", "k") }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // it mostly waits
			dir := t.TempDir()
			path := filepath.Join(dir, "bundles", "b", "bundle.tar.gz")
			config := func(url string) string {
				return strings.Replace(kept(url, dir, c.more), "{", c.keys, 1)
			}
			restart := func(title string, look func(t *testing.T, r *running)) {
				t.Run(title, func(t *testing.T) { look(t, run(t, options(config("http://127.0.0.1:1")))) })
			}
			t.Run("first", func(t *testing.T) {
				s := newServer(t)
				s.set("/b.tar.gz", c.bundle(1))
				r := run(t, options(config(s.URL)))
				r.decides(t, "1 1")
				r.ready(t)
			})
			written, err := os.ReadFile(path)
			if err != nil || !isWrapped(written) {
				t.Fatalf("what is on disk: %d bytes, error %v", len(written), err)
			}
			restart("again", func(t *testing.T, r *running) { r.decides(t, "1 1") })
			if err := os.WriteFile(path, c.bundle(2), 0o600); err != nil {
				t.Fatal(err)
			}
			restart("of an earlier version", func(t *testing.T, r *running) { r.decides(t, "2 2") })
			files := contents(t, c.bundle(3))
			files["/policy.rego"] = strings.Replace(files["/policy.rego"], "true", "false", 1)
			for title, changed := range map[string][]byte{"changed": wrap(bundletest.Tarball(t, files)), "changed, earlier": bundletest.Tarball(t, files)} {
				if name == "not signed" {
					continue
				}
				if err := os.WriteFile(path, changed, 0o600); err != nil {
					t.Fatal(err)
				}
				restart(title, func(t *testing.T, r *running) {
					r.fails(t, "b", "127.0.0.1:1") // which it tries after what is on disk
					if got := r.ask(t); strings.Contains(got, "3") {
						t.Errorf("decides %q", got)
					}
				})
			}
		})
	}
}

// A bundle that has to be signed gets in by its server only: OPA, which was not told,
// has not verified what is not wrapped.
func TestNotWrapped(t *testing.T) {
	t.Parallel() // it mostly waits
	dir := t.TempDir()
	s := newServer(t)
	o := options(strings.Replace(kept(s.URL, dir, `, "signing": {"keyid": "k"}`), "{", keysSection, 1))
	m, err := NewManager(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "bundles", "b", "bundle.tar.gz")
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := atomicfile.Write(path, bundletest.Tarball(t, policy(1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := m.opa.Start(t.Context()); err != nil { // as if wrapKept had failed
		t.Fatal(err)
	}
	defer m.stop(t.Context())
	if err := m.take(t.Context()); err != nil || len(m.Current().Revisions) != 0 {
		t.Errorf("in force: %v, error %v", m.Current().Revisions, err)
	}
}

// What OPA is not told any more counts nevertheless, and a server that sends an archive in
// an archive gets that far only.
func TestArrivals(t *testing.T) {
	t.Parallel() // it mostly waits
	s := newServer(t)
	r := run(t, options(polled(s.URL, `, "size_limit_bytes": 400`)))
	s.set("/b.tar.gz", bundletest.Tarball(t, policy(1)))
	r.decides(t, "1 1")
	large := policy(2)
	large["policy.rego"] += "#" + strings.Repeat("x", 400)
	s.set("/b.tar.gz", bundletest.Tarball(t, large))
	r.fails(t, "b", "size_limit_bytes (400 bytes)")
	s.set("/b.tar.gz", bundletest.Tarball(t, policy(3)))
	r.decides(t, "3 3")
	proctest.Eventually(t, 30*time.Second, func() error { return r.report("b").Err })
	s.set("/b.tar.gz", wrap([]byte(strings.Repeat("x", 100))))
	r.fails(t, "b", "data.json")
	if got, revision := r.ask(t), r.Current().Revisions["b"]; got != "3 3" || revision != "r3" {
		t.Errorf("decides %q by revision %q", got, revision)
	}
}

// A bundle that takes its time is made ready beside those that are decided by the one
// before, and stays out as a whole if one of its modules does not fit the others.
func TestLargeBundle(t *testing.T) {
	t.Parallel() // it mostly waits
	s := newServer(t)
	r := run(t, options(polled(s.URL, "")))
	large := func(revision int, conflict bool) []byte {
		files := policy(revision)
		files[".manifest"] = fmt.Sprintf(`{"revision": "r%d"}`, revision)
		for i := range 100 {
			name := fmt.Sprintf("team%d", i)
			files[name+".rego"] = fmt.Sprintf("package %s\n# %s\nallow if input.team == %q\nrevision := %d\n", name, rand.Text()+rand.Text()+rand.Text(), name, revision)
		}
		if conflict {
			files["more.rego"] = "package team7\nrevision := 0\ndefault revision := 1\ndefault revision := 2\n"
		}
		return bundletest.Tarball(t, files)
	}
	if n := len(large(1, false)); n <= smallBytes {
		t.Fatalf("the bundle has %d bytes", n)
	}
	for revision := 1; revision < 4; revision++ {
		s.set("/b.tar.gz", large(revision, false))
		r.decides(t, fmt.Sprintf("%d %d", revision, revision))
		proctest.Eventually(t, 30*time.Second, func() error { return r.report("b").Err })
		s.set("/b.tar.gz", large(100, true))
		r.fails(t, "b", "rego_type_error")
	}
	if got, revision := r.ask(t), r.Current().Revisions["b"]; got != "3 3" || revision != "r3" {
		t.Errorf("decides %q by revision %q", got, revision)
	}
}

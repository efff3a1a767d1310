// Package pgtest starts real PostgreSQL servers for tests, on a unix socket only, and
// does to them what befalls a database.
package pgtest

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/writ-mesh/writ/internal/proctest"
)

// nobody is the user that a server runs as if the test runs as root, which PostgreSQL
// refuses.
const nobody = 65534

// Server is one PostgreSQL server.
type Server struct {
	*proctest.Process
	t        testing.TB // whose end is the server's
	bin, dir string
	schemas  atomic.Int64
}

var shared proctest.Shared[*Server] //nolint:gochecknoglobals // what the tests of a package share

// Shared is the schema of a server that tests which run at the same time share. They do
// nothing to the server itself; making one takes more than a second of a processor.
func Shared(t testing.TB) string {
	t.Helper()
	return shared.Get(t, Start).Schema(t)
}

// Start makes a database and starts its server, and stops it with the test. With no
// PostgreSQL on the machine the test is skipped, or fails where CI=true.
func Start(t testing.TB) *Server {
	t.Helper()
	bin := binaries()
	if bin == "" {
		if os.Getenv("CI") == "true" {
			t.Fatal("initdb and postgres are missing (Debian package postgresql)")
		}
		t.Skip("initdb and postgres are missing (Debian package postgresql)")
	}
	dir, err := os.MkdirTemp("", "pg") //nolint:usetesting // t.TempDir is too long a path for a socket, and closed to other users
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if os.Geteuid() == 0 {
		if err := os.Chown(dir, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	s := &Server{t: t, bin: bin, dir: dir}
	// Small pieces of log, and no other locale, since making them is most of the work.
	args := s.as("initdb", "-D", s.data(), "-U", "writ", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C", "--wal-segsize=1")
	initdb := exec.Command(args[0], args[1:]...) //nolint:gosec,noctx // a test's own
	initdb.Env = append(os.Environ(), "LC_ALL=C")
	if out, err := initdb.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v: %s", err, out)
	}
	s.Restart(t)
	t.Cleanup(s.Stop)
	return s
}

// binaries is the folder of PostgreSQL's programs: the newest of Debian's, or that of
// PATH; empty if there is none.
func binaries() string {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if len(found) > 0 {
		return filepath.Dir(slices.Max(found))
	}
	if path, err := exec.LookPath("initdb"); err == nil {
		return filepath.Dir(path)
	}
	return ""
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }

// as is a command line of one of the programs, run by a user that may.
func (s *Server) as(program string, args ...string) []string {
	line := append([]string{filepath.Join(s.bin, program)}, args...)
	if os.Geteuid() == 0 {
		id := strconv.Itoa(nobody)
		line = append([]string{"setpriv", "--reuid=" + id, "--regid=" + id, "--clear-groups", "--pdeathsig=QUIT"}, line...)
	}
	return line
}

// Restart starts the server again after Kill, with what it had.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	// What a killed server leaves: it would wait for its old self.
	_ = os.Remove(filepath.Join(s.data(), "postmaster.pid"))
	args := s.as("postgres", "-D", s.data(), "-k", s.dir, "-c", "listen_addresses=", "-c", "max_connections=200")
	s.Process = proctest.Start(s.t, args[0], args[1:]...)
	proctest.Eventually(t, 30*time.Second, func() error {
		c, err := pgx.Connect(context.WithoutCancel(t.Context()), s.URL("public"))
		if err != nil {
			return err
		}
		return c.Close(context.WithoutCancel(t.Context()))
	})
}

// URL is that of a schema, in which a test is alone.
func (s *Server) URL(schema string) string {
	u := url.URL{Scheme: "postgres", User: url.User("writ"), Path: "/postgres", RawQuery: url.Values{"host": {s.dir}, "search_path": {schema}}.Encode()}
	return u.String()
}

// Schema makes a schema and returns its URL.
func (s *Server) Schema(t testing.TB) string {
	t.Helper()
	name := fmt.Sprintf("t%d", s.schemas.Add(1))
	s.Exec(t, s.URL("public"), "CREATE SCHEMA "+name)
	return s.URL(name)
}

// Exec runs one statement.
func (*Server) Exec(t testing.TB, url, sql string) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	c, err := pgx.Connect(ctx, url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close(ctx) }()
	if _, err := c.Exec(ctx, sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// Stop ends the server as a machine that loses its power does, and all its sessions.
func (s *Server) Stop() {
	s.Signal(syscall.SIGQUIT)
	<-s.Done()
}

// Children are the processes of the server's sessions and helpers.
func (s *Server) Children(t testing.TB) []int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", s.PID(), s.PID()))
	if err != nil {
		t.Fatal(err)
	}
	var out []int
	for f := range strings.FieldsSeq(string(data)) {
		pid, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, pid)
	}
	return out
}

// Package redistest starts real redis-server processes for tests, on a free
// loopback port and a unix socket, and does to them what befalls a Redis.
package redistest

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/proctest"
)

// Server is one redis-server.
type Server struct {
	*proctest.Process
	bin, dir string
	port     int
	args     []string
}

// Start starts a server with further arguments and stops it with the test. With
// no redis-server on the machine the test is skipped, or fails where CI=true.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	s := unstarted(t, args...)
	s.Restart(t)
	return s
}

// unstarted makes a server that is not started.
func unstarted(t testing.TB, args ...string) *Server {
	t.Helper()
	bin, err := exec.LookPath("redis-server")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("redis-server is missing (Debian package redis-server)")
		}
		t.Skip("redis-server is missing (Debian package redis-server)")
	}
	dir, err := os.MkdirTemp("", "redis") //nolint:usetesting // t.TempDir is too long a path for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return &Server{bin: bin, dir: dir, port: proctest.Port(t), args: args}
}

// Address is host:port.
func (s *Server) Address() string { return fmt.Sprintf("127.0.0.1:%d", s.port) }

// Socket is the unix:///path address.
func (s *Server) Socket() string { return "unix://" + filepath.Join(s.dir, "s") }

// Restart starts the server again after Kill, empty, on the same address.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	port := []string{"--port", fmt.Sprint(s.port)}
	if s.roots() != "" {
		port = []string{"--port", "0", "--tls-port", fmt.Sprint(s.port)}
	}
	s.Process = proctest.Start(t, s.bin, append(append(port,
		"--bind", "127.0.0.1", "--unixsocket", filepath.Join(s.dir, "s"),
		"--save", "", "--appendonly", "no", "--dir", s.dir, "--daemonize", "no",
	), s.args...)...)
	s.listens(t, "tcp", s.Address())
	s.listens(t, "unix", filepath.Join(s.dir, "s")) // which comes after the port
}

// roots is the file with the roots of a server that speaks TLS to everybody, its
// replicas included; empty for one that does not.
func (s *Server) roots() string {
	if slices.Contains(s.args, "--tls-replication") {
		return s.args[slices.Index(s.args, "--tls-ca-cert-file")+1]
	}
	return ""
}

func (s *Server) listens(t testing.TB, network, address string) {
	t.Helper()
	proctest.Eventually(t, 10*time.Second, func() error {
		c, err := net.DialTimeout(network, address, time.Second)
		if err != nil {
			return err
		}
		return c.Close()
	})
}

// Freeze stops the process without closing its sockets: what a Redis looks like
// whose machine hangs.
func (s *Server) Freeze() { s.Signal(syscall.SIGSTOP) }

// Thaw lets a frozen process go on.
func (s *Server) Thaw() { s.Signal(syscall.SIGCONT) }

// Command runs one command through redis-cli and returns its output.
func (s *Server) Command(t testing.TB, args ...string) string {
	t.Helper()
	out, err := s.Try(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Try is Command of a server that may not take it just now.
func (s *Server) Try(args ...string) (string, error) {
	way := []string{"-p", fmt.Sprint(s.port)}
	if roots := s.roots(); roots != "" {
		way = append(way, "--tls", "--cacert", roots)
	}
	out, err := exec.Command("redis-cli", append(way, args...)...).CombinedOutput() //nolint:gosec,noctx // a test's own
	if err != nil {
		return "", fmt.Errorf("redis-cli %v: %w: %s", args, err, out)
	}
	return strings.TrimSpace(string(out)), nil
}

// Package redistest starts real redis-server processes for tests, on a free
// loopback port and a unix socket, and does to them what befalls a Redis.
package redistest

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Server is one redis-server. Its methods fail the test on errors.
type Server struct {
	bin, dir string
	port     int
	args     []string
	cmd      *exec.Cmd
	out      bytes.Buffer
}

// Start starts a server with further arguments and stops it with the test. With
// no redis-server on the machine the test is skipped, or fails where CI=true.
func Start(t testing.TB, args ...string) *Server {
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
	s := &Server{bin: bin, dir: dir, port: freePort(t), args: args}
	s.Restart(t)
	t.Cleanup(func() { s.Kill(t) })
	return s
}

// Address is host:port.
func (s *Server) Address() string { return fmt.Sprintf("127.0.0.1:%d", s.port) }

// Socket is the unix:///path address.
func (s *Server) Socket() string { return "unix://" + filepath.Join(s.dir, "s") }

// PID is the server's process id.
func (s *Server) PID() int { return s.cmd.Process.Pid }

// Restart starts the server again after Kill, empty, on the same address.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	args := append([]string{
		"--bind", "127.0.0.1", "--port", fmt.Sprint(s.port), "--unixsocket", filepath.Join(s.dir, "s"),
		"--save", "", "--appendonly", "no", "--dir", s.dir, "--daemonize", "no",
	}, s.args...)
	s.cmd = exec.Command(s.bin, args...) //nolint:gosec,noctx // a test's own server, ended by Kill
	s.out.Reset()
	s.cmd.Stdout, s.cmd.Stderr = &s.out, &s.out
	// The kernel ends it if the test is ended by force.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	Eventually(t, 10*time.Second, "redis-server", func() error {
		c, err := net.DialTimeout("tcp", s.Address(), time.Second)
		if err != nil {
			return err
		}
		return c.Close()
	})
}

// Kill ends the server at once, as a crash does.
func (s *Server) Kill(t testing.TB) {
	t.Helper()
	if s.cmd.ProcessState != nil {
		return
	}
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait() // says that it was killed
}

// Freeze stops the process without closing its sockets: what a Redis looks like
// whose machine hangs.
func (s *Server) Freeze(t testing.TB) { s.signal(t, syscall.SIGSTOP) }

// Thaw lets a frozen process go on.
func (s *Server) Thaw(t testing.TB) { s.signal(t, syscall.SIGCONT) }

func (s *Server) signal(t testing.TB, sig syscall.Signal) {
	t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

// Command runs one command through redis-cli and returns its output.
func (s *Server) Command(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command("redis-cli", append([]string{"-p", fmt.Sprint(s.port)}, args...)...).CombinedOutput() //nolint:gosec,noctx // a test's own
	if err != nil {
		t.Fatalf("redis-cli %v: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// Eventually calls f until it returns nil, for at most so long.
func Eventually(t testing.TB, atMost time.Duration, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(atMost)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s: %v", what, atMost, err)
		}
		<-tick.C
	}
}

func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port //nolint:forcetypeassert // a TCP listener
}

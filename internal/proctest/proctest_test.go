package proctest_test

import (
	"errors"
	"fmt"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/proctest"
)

// TestPortIsGivenOnce: two tests never share a port, and a port that is in use is
// given to none.
func TestPortIsGivenOnce(t *testing.T) {
	seen := make(map[int]bool)
	for range 200 {
		port := proctest.Port(t)
		if seen[port] {
			t.Fatalf("port %d was given twice", port)
		}
		seen[port] = true
	}
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", proctest.Port(t)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
}

// TestPortComesBack: a port is free again after its test.
func TestPortComesBack(t *testing.T) {
	var port int
	t.Run("owner", func(t *testing.T) { port = proctest.Port(t) })
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
	if err != nil {
		t.Fatalf("the lock on port %d outlived its test: %v", port, err)
	}
	_ = c.Close()
}

func TestProcessEndsWithItsTest(t *testing.T) {
	var p *proctest.Process
	t.Run("owner", func(t *testing.T) {
		p = proctest.Start(t, "sh", "-c", "echo hello; exec sleep 60")
		proctest.Until(t, 10*time.Second, "it says hello", func() bool { return strings.Contains(p.Output.String(), "hello") })
	})
	select {
	case <-p.Done():
	default:
		t.Error("the program outlived its test")
	}
}

func TestWaitSaysHowItEnded(t *testing.T) {
	if err := proctest.Start(t, "true").Wait(); err != nil {
		t.Error(err)
	}
	var exit *exec.ExitError
	if err := proctest.Start(t, "sh", "-c", "exit 3").Wait(); !errors.As(err, &exit) || exit.ExitCode() != 3 {
		t.Errorf("got %v, want exit code 3", err)
	}
	p := proctest.Start(t, "sleep", "60")
	p.Kill()
	if err := p.Wait(); !errors.As(err, &exit) || exit.Exited() {
		t.Errorf("got %v, want a signal", err)
	}
}

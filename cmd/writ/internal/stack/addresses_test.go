package stack

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func open(t *testing.T, path string) *addresses {
	t.Helper()
	a, err := openAddresses(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.close() })
	return a
}

func TestAddressesStayAfterARestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "addresses.json")
	a := open(t, path)
	first, err := a.host("default/a-1")
	if err != nil {
		t.Fatal(err)
	}
	port, err := a.app("default/a-1/80")
	if err != nil {
		t.Fatal(err)
	}
	if err := a.save(); err != nil {
		t.Fatal(err)
	}
	if err := a.close(); err != nil {
		t.Fatal(err)
	}
	b := open(t, path)
	other, err := b.host("default/b-1")
	if err != nil {
		t.Fatal(err)
	}
	again, err := b.host("default/a-1")
	if err != nil || again != first || other == first || !first.IsLoopback() {
		t.Errorf("first %s, again %s, other %s, %v", first, again, other, err)
	}
	if p, err := b.app("default/a-1/80"); err != nil || p != port {
		t.Errorf("port %d, again %d, %v", port, p, err)
	}
}

func TestTwoMeshesNeverShareABlock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "addresses.json")
	a := open(t, path)
	b := open(t, path) // the same state would give the same block
	if a.Block == b.Block {
		t.Errorf("both have block %d", a.Block)
	}
}

func TestATakenPortIsNotGivenToAProgram(t *testing.T) {
	path := filepath.Join(t.TempDir(), "addresses.json")
	a := open(t, path)
	port, err := a.app("default/a-1/80")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(port)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	// In this run it is the program itself that has the port.
	if p, err := a.app("default/a-1/80"); err != nil || p != port {
		t.Errorf("port %d instead of %d, %v", p, port, err)
	}
	if p, err := a.app("default/b-1/80"); err != nil || p == port {
		t.Errorf("port %d is given twice, %v", p, err)
	}
	if err := a.save(); err != nil {
		t.Fatal(err)
	}
	// In the next it is somebody else.
	b := open(t, path)
	if p, err := b.app("default/a-1/80"); err != nil || p == port {
		t.Errorf("port %d is given though taken, %v", p, err)
	}
}

func TestCorruptAddressesAreNamed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "addresses.json")
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openAddresses(path); err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "remove it") {
		t.Errorf("got %v", err)
	}
}

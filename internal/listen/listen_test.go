package listen_test

import (
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/writ-mesh/writ/internal/listen"
)

func TestUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := listen.Listen("unix://" + path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != listen.UnixMode {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if _, err := listen.Listen("unix://" + path); err == nil || !strings.Contains(err.Error(), "another process listens there") {
		t.Errorf("a live socket was replaced: %v", err)
	}
	// What a killed process leaves behind: the file without a listener.
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	_ = l.Close()
	l, err = listen.WithMode("unix://"+path, 0o666)
	if err != nil {
		t.Fatalf("a stale socket: %v", err)
	}
	defer l.Close()
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o666 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestWhatIsNoSocketStays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listen.Listen("unix://" + path); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("got %v", err)
	}
	if data, err := os.ReadFile(path); err != nil || string(data) != "precious" {
		t.Errorf("%q, %v", data, err)
	}
	if _, err := listen.Listen("unix:///nowhere/at/all"); err == nil || !strings.Contains(err.Error(), "/nowhere/at/all") {
		t.Errorf("got %v", err)
	}
}

func TestPortInUse(t *testing.T) {
	l, err := listen.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := listen.Listen(l.Addr().String()); err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("got %v", err)
	}
	if _, err := listen.Listen("192.0.2.1:80"); err == nil || !strings.Contains(err.Error(), "192.0.2.1:80") {
		t.Errorf("an address of another machine: %v", err)
	}
}

func TestValid(t *testing.T) {
	for addr, want := range map[string]string{
		"127.0.0.1:8443": "", "[::1]:1": "", ":15014": "", "localhost:0": "", "ca.example:65535": "", "unix:///run/writ/ca.sock": "",
		"": "want host:port", "8443": "want host:port", "127.0.0.1": "want host:port", "::1:80": "want host:port", "http://x:80": "want host:port",
		"127.0.0.1:": "port", "127.0.0.1:https": "port", "127.0.0.1:65536": "port", "127.0.0.1:-1": "port",
		"unix://run/x": "absolute/path", "unix:/run/x": "absolute/path", "unix:": "absolute/path",
		"unix:///" + strings.Repeat("x", 106): "", "unix:///" + strings.Repeat("x", 107): "at most 107 bytes",
	} {
		err := listen.Valid(addr)
		if (err == nil) != (want == "") || err != nil && (!strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), addr)) {
			t.Errorf("%q: got %v, want %q", addr, err, want)
		}
	}
}

func TestUnix(t *testing.T) {
	for addr, want := range map[string]string{"unix:///a/b": "/a/b", "unix://a": "", "host:1": "", "unix:///": "/"} {
		if path, ok := listen.Unix(addr); ok != (want != "") || ok && path != want {
			t.Errorf("%q: %q, %v", addr, path, ok)
		}
	}
}

func TestLoopback(t *testing.T) {
	for addr, ok := range map[string]bool{
		"127.0.0.1:1": true, "127.9.9.9:1": true, "[::1]:1": true, "[::ffff:127.0.0.1]:1": true,
		"localhost:1": false, "localhost.evil:1": false, "unix:///a": false, "0.0.0.0:1": false, ":1": false, "10.0.0.1:1": false,
		"[::]:1": false, "[::1%lo]:1": true, "127.0.0.1": false, "127.1:1": false, "": false,
	} {
		if err := listen.Loopback(addr); (err == nil) != ok {
			t.Errorf("%q: %v", addr, err)
		}
	}
}

func TestMode(t *testing.T) {
	for text, want := range map[string]fs.FileMode{
		"": 0o600, "0600": 0o600, "600": 0o600, "0660": 0o660, "0620": 0o620, "0666": 0o666,
		"0777": 0, "0700": 0, "0400": 0, "0066": 0, "01600": 0, "rw": 0, "0o600": 0, "-600": 0, "9": 0, "40000000600": 0,
	} {
		mode, err := listen.Mode(text)
		if mode != want || (err == nil) != (want != 0) || err != nil && !strings.HasPrefix(err.Error(), "socket_mode: ") {
			t.Errorf("%q: %v, %v", text, mode, err)
		}
	}
}

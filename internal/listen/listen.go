// Package listen opens the sockets that Writ's services listen on, TCP or unix,
// from one form of address.
package listen

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// UnixMode is the mode of unix sockets: only the user that runs the service (and
// root) may connect.
const UnixMode fs.FileMode = 0o600

// Listen listens on "unix:///path" or "host:port". A unix socket gets mode
// UnixMode; one that a dead process left behind is replaced, one that somebody
// listens on is refused.
func Listen(addr string) (net.Listener, error) { return WithMode(addr, UnixMode) }

// WithMode is Listen with the mode that a unix socket gets.
func WithMode(addr string, mode fs.FileMode) (net.Listener, error) {
	path, ok := Unix(addr)
	if !ok {
		l, err := net.Listen("tcp", addr)
		if errors.Is(err, syscall.EADDRINUSE) {
			return nil, fmt.Errorf("listen on %s: the port is in use by another process; stop it or choose another port", addr)
		}
		if err != nil {
			return nil, fmt.Errorf("listen on %s: %w", addr, err)
		}
		return l, nil
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	if err := os.Chmod(path, mode); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	return l, nil
}

// Unix returns the path of a "unix:///path" address.
func Unix(addr string) (path string, ok bool) {
	path, ok = strings.CutPrefix(addr, "unix://")
	return path, ok && strings.HasPrefix(path, "/")
}

// Valid checks an address without opening it.
func Valid(addr string) error {
	if strings.HasPrefix(addr, "unix:") {
		path, ok := Unix(addr)
		if !ok {
			return fmt.Errorf("address %q: want unix:///absolute/path", addr)
		}
		// sun_path has 108 bytes with the final zero, unix(7).
		if len(path) > 107 {
			return fmt.Errorf("address %q: the path of a unix socket has at most 107 bytes, this one has %d", addr, len(path))
		}
		return nil
	}
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("address %q: want host:port or unix:///path", addr)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("address %q: the port must be a number up to 65535", addr)
	}
	return nil
}

// Loopback checks that only processes of this machine can reach a host:port
// address, where nobody is asked who they are. Names do not count: what they
// stand for may change.
func Loopback(addr string) error {
	if err := Valid(addr); err != nil {
		return err
	}
	host, _, _ := net.SplitHostPort(addr) //nolint:errcheck // empty for a unix socket
	if ip, err := netip.ParseAddr(host); err != nil || !ip.Unmap().IsLoopback() {
		return fmt.Errorf("address %q: plain text is spoken on loopback IP addresses only, such as 127.0.0.1 and ::1", addr)
	}
	return nil
}

// Mode reads the mode of a unix socket from a configuration's socket_mode: octal,
// empty for UnixMode. Who runs the service can always connect; to execute a
// socket means nothing.
func Mode(text string) (fs.FileMode, error) {
	if text == "" {
		return UnixMode, nil
	}
	n, err := strconv.ParseUint(text, 8, 32)
	if mode := fs.FileMode(n); err == nil && mode&^0o666 == 0 && mode&UnixMode == UnixMode {
		return mode, nil
	}
	return 0, fmt.Errorf("socket_mode: %q: want an octal mode from 0600 to 0666", text)
}

func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("listen on unix://%s: %w", path, err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("listen on unix://%s: the path exists and is no socket; remove it or choose another", path)
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		_ = c.Close()
		return fmt.Errorf("listen on unix://%s: another process listens there; stop it or choose another path", path)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("listen on unix://%s: %w", path, err)
	}
	return nil
}

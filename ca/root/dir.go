package root

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/writ-mesh/writ/internal/atomicfile"
)

// lockFile is held with flock(2) as long as a process uses the directory; the
// kernel lets go of it when the process dies.
const lockFile = "lock"

// Dir is a state directory that this process alone uses.
type Dir struct {
	Path string
	lock *os.File
}

// OpenDir checks and locks a state directory, and makes it with mode 0700 if it
// is not there. An empty directory gets that mode; one with content and a wider
// mode is refused, since others may have read or changed what is in it.
func OpenDir(path string) (*Dir, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("state directory: %w; choose another with -state", err)
	}
	if err := checkDirMode(path); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(path, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		if errors.Is(err, unix.EROFS) || errors.Is(err, fs.ErrPermission) {
			return nil, fmt.Errorf("state directory %s cannot be written: %w; make it writable for this user, or choose another with -state", path, err)
		}
		return nil, fmt.Errorf("state directory: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("state directory %s is in use by another writ-ca; stop it, or choose another with -state", path)
		}
		return nil, fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	d := &Dir{Path: path, lock: lock}
	if err := d.sweep(); err != nil {
		return nil, errors.Join(fmt.Errorf("state directory %s: %w", path, err), lock.Close())
	}
	return d, nil
}

// sweep removes what a process before this one was writing when it died, keys among
// it.
func (d *Dir) sweep() error {
	if err := atomicfile.Sweep(d.Path); err != nil {
		return err
	}
	if err := atomicfile.Sweep(filepath.Join(d.Path, furtherDir)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Close lets other processes use the directory.
func (d *Dir) Close() error { return d.lock.Close() }

func checkDirMode(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	if !info.IsDir() {
		return fmt.Errorf("state directory %s is no directory; choose another with -state", path)
	}
	mode := info.Mode().Perm()
	if mode&0o077 == 0 {
		return nil
	}
	content, err := os.ReadDir(path)
	if err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	if len(content) > 0 {
		return fmt.Errorf("state directory %s has mode %04o, so that other users can look into it; chmod 700 it", path, mode)
	}
	if err := os.Chmod(path, 0o700); err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	return nil
}

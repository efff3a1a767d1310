package attest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// maxExecutable bounds a file that is hashed, in bytes; the largest that are
	// usual, an Envoy with its symbols among them, are below it.
	maxExecutable = 1 << 30
	// maxSums bounds how many hashes are remembered.
	maxSums = 1024
	// hashers is how many files are hashed at once; callers beyond that wait.
	hashers  = 2
	hashStep = 1 << 20
)

// fileID is what changes when a file or its content does.
type fileID struct {
	dev, ino     uint64
	size         int64
	mtime, ctime unix.Timespec
}

func idOf(st *unix.Stat_t) fileID {
	return fileID{dev: st.Dev, ino: st.Ino, size: st.Size, mtime: st.Mtim, ctime: st.Ctim}
}

// executable identifies the file that the process executes: what it was loaded
// from, whatever has its name now.
func (p *procDir) executable() (fileID, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(p.fd, "exe", &st, 0); err != nil {
		return fileID{}, fmt.Errorf("exe: %w", err)
	}
	return idOf(&st), nil
}

// path is the absolute path of the executed file, as this agent sees it. Another
// mount namespace can have any file under any name, and a file can be replaced
// or deleted while it runs; so the path counts only if it leads, from here, to
// the very file that is executed, which is running.
func (p *procDir) path(running fileID) (string, error) {
	name, err := p.link("exe")
	if err != nil {
		return "", err
	}
	var st unix.Stat_t
	if err := unix.Lstat(name, &st); err != nil {
		return "", fmt.Errorf("exe: %q is not there from where the agent looks: %w", name, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Dev != running.dev || st.Ino != running.ino {
		return "", fmt.Errorf("exe: %q is another file than the one that runs", name)
	}
	return name, nil
}

// sums remembers the SHA-256 of executables.
type sums struct {
	slots chan struct{}

	mu    sync.Mutex
	known map[fileID]string
}

func newSums() *sums {
	return &sums{slots: make(chan struct{}, hashers), known: make(map[fileID]string)}
}

// of gives the hash of what the process executes, which is id. The file is read
// through the process's own link, so that it is the one that runs even if it was
// replaced.
func (s *sums) of(ctx context.Context, p *procDir, id fileID) (string, error) {
	if sum, ok := s.get(id); ok {
		return sum, nil
	}
	if id.size > maxExecutable {
		return "", fmt.Errorf("exe has %d bytes, only files of at most %d are hashed", id.size, int64(maxExecutable))
	}
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return "", ctx.Err()
	}
	if sum, ok := s.get(id); ok { // somebody else did it meanwhile
		return sum, nil
	}
	sum, err := hashExecutable(ctx, p, id)
	if err != nil {
		return "", err
	}
	s.put(id, sum)
	return sum, nil
}

func (s *sums) get(id fileID) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sum, ok := s.known[id]
	return sum, ok
}

func (s *sums) put(id fileID, sum string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for old := range s.known { // any one
		if len(s.known) < maxSums {
			break
		}
		delete(s.known, old)
	}
	s.known[id] = sum
}

var errFileChanged = errors.New("exe changed while it was read")

func hashExecutable(ctx context.Context, p *procDir, want fileID) (string, error) {
	fd, err := unix.Openat(p.fd, "exe", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("exe: %w", err)
	}
	f := os.NewFile(uintptr(fd), "exe")
	defer func() { _ = f.Close() }()
	same := func() bool {
		var st unix.Stat_t
		return unix.Fstat(fd, &st) == nil && idOf(&st) == want
	}
	if !same() {
		return "", errFileChanged
	}
	h := sha256.New()
	for {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		_, err := io.CopyN(h, f, hashStep)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", fmt.Errorf("exe: %w", err)
		}
	}
	if !same() {
		return "", errFileChanged
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

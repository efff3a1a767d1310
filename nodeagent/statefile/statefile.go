// Package statefile keeps one blob per file so that what is read back is what
// was written: a magic that names kind and version, a SHA-256 checksum, and the
// payload. Writing is atomic (mode 0600). A file that does not check out is moved
// aside and reported, never used and never deleted.
//
// The checksum guards against torn writes and disk faults, not against somebody
// who may write to the state directory: who can do that, may.
package statefile

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/writ-mesh/writ/internal/atomicfile"
)

// magicLen is the length of a file's magic in bytes.
const magicLen = 8

const headerLen = magicLen + sha256.Size

// ErrCorrupt is wrapped by the errors of Open and Read for data that Seal did
// not make.
var ErrCorrupt = errors.New("not a valid state file")

// Seal returns the file's content for a payload. The magic has 8 bytes.
func Seal(magic string, payload []byte) []byte {
	sum := sha256.Sum256(payload)
	out := make([]byte, 0, headerLen+len(payload))
	out = append(out, magic...)
	out = append(out, sum[:]...)
	return append(out, payload...)
}

// Open returns the payload of what Seal made, sharing data's memory.
func Open(magic string, data []byte) ([]byte, error) {
	switch {
	case len(data) < headerLen:
		return nil, fmt.Errorf("%w: %d bytes are too few", ErrCorrupt, len(data))
	case string(data[:magicLen]) != magic:
		return nil, fmt.Errorf("%w: it does not begin with %q", ErrCorrupt, magic)
	}
	payload := data[headerLen:]
	if sum := sha256.Sum256(payload); !bytes.Equal(sum[:], data[magicLen:headerLen]) {
		return nil, fmt.Errorf("%w: the checksum does not match", ErrCorrupt)
	}
	return payload, nil
}

// Write seals payload into the file at path, mode 0600, atomically.
func Write(path, magic string, payload []byte) error {
	if len(magic) != magicLen {
		return fmt.Errorf("write %s: magic %q has not %d bytes", path, magic, magicLen)
	}
	return atomicfile.Write(path, Seal(magic, payload), 0o600)
}

// Read returns the payload of the file at path, which may have at most limit
// bytes. A missing file is an error that wraps fs.ErrNotExist; a corrupt or too
// large one wraps ErrCorrupt and has been renamed to path + ".corrupt".
func Read(path, magic string, limit int64) ([]byte, error) {
	payload, err := read(path, magic, limit)
	if !errors.Is(err, ErrCorrupt) {
		return payload, err
	}
	if rerr := os.Rename(path, path+".corrupt"); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
		return nil, errors.Join(err, rerr)
	}
	return nil, fmt.Errorf("%w; kept as %s.corrupt", err, path)
}

func read(path, magic string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("read %s: %w: larger than %d bytes", path, ErrCorrupt, limit)
	}
	payload, err := Open(magic, data)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return payload, nil
}

package jwtsvid

import (
	"fmt"
	"io"
	"os"

	"github.com/writ-mesh/writ/internal/atomicfile"
)

// maxFile bounds the file of the keys, in bytes.
const maxFile = 64 << 10

// File is a Storage in a file of mode 0600.
type File string

// Load implements Storage. A file that others may read is refused: they may have
// the keys.
func (f File) Load() ([]byte, error) {
	file, err := os.Open(string(f))
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("%s has mode %04o, so that other users may have read it; if none has, chmod 600 it", f, mode)
	}
	data, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("%s has more than %d bytes", f, maxFile)
	}
	return data, nil
}

// Save implements Storage.
func (f File) Save(data []byte) error { return atomicfile.Write(string(f), data, 0o600) }

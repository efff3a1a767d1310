package bundle

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"path"
)

// maxFiles bounds the entries of an archive: each costs memory beside its bytes.
const maxFiles = 100_000

// gzipMagic is the beginning of each gzip file (RFC 1952, section 2.3.1).
const gzipMagic = "\x1f\x8b"

// errDelta refuses OPA's delta bundles, which are changes of what is in force:
// OPA makes them where requests are being decided.
var errDelta = errors.New("a delta bundle is not supported: serve snapshots")

// checkArchive measures a gzipped tarball without keeping what is in it: an
// answer of a megabyte can unpack to a gigabyte, and OPA's reader bounds single
// files but not their sum. What is not gzip passes, and so does an archive that
// is broken before a limit: OPA's reader says what is wrong with it.
func checkArchive(b []byte, limit int64) error {
	if !bytes.HasPrefix(b, []byte(gzipMagic)) {
		return nil
	}
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil //nolint:nilerr // see above
	}
	// The tar reader skips what it does not give, so the bytes are counted below it.
	counted := &bounded{r: z, left: limit}
	tr := tar.NewReader(counted)
	var claimed int64
	for files := 0; ; files++ {
		if files > maxFiles {
			return fmt.Errorf("the bundle has more than %d files", maxFiles)
		}
		header, err := tr.Next()
		if err == nil && path.Base(header.Name) == "patch.json" {
			return errDelta
		}
		if err == nil {
			// A sparse file has few bytes and is read as many.
			claimed += min(header.Size, limit+1)
		}
		if claimed > limit || errors.Is(err, errTooLarge) {
			return fmt.Errorf("%w of %d bytes when unpacked", errTooLarge, limit)
		}
		if err != nil {
			// Behind the archive's end there may be more, which OPA does not read.
			return nil //nolint:nilerr // see above
		}
	}
}

// bounded fails once more than left bytes were read.
type bounded struct {
	r    io.Reader
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return n, errTooLarge
	}
	return n, err
}

package bundle

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"

	opabundle "github.com/open-policy-agent/opa/v1/bundle"
)

const (
	// smallBytes and smallModules are up to where a bundle as it came, or its policies, are
	// made ready at once: that takes some milliseconds, and who waits for it should not wait
	// for processors that others use.
	smallBytes   = 4 << 10
	smallModules = 16
	// smallUnpacked is the same for what is in an archive, since a few KiB of it can be
	// megabytes; smallRead bounds what is unpacked to find out, headers and padding included.
	smallUnpacked, smallRead = 4 * smallBytes, 16 * smallBytes
	// smallWrapped is up to where an archive is put into another one at once, which copies it.
	smallWrapped = 1 << 20
)

// small says that bundles are made ready in no time.
func small(bundles map[string]*opabundle.Bundle) bool {
	bytes, modules := 0, 0
	for _, b := range bundles {
		for _, file := range b.Raw {
			bytes += len(file.Value)
		}
		for _, module := range b.Modules {
			bytes += len(module.Raw)
		}
		if archive, wrapped := unwrap(b); wrapped && len(archive) <= smallBytes {
			more, ok := smallArchive(archive)
			if !ok {
				return false
			}
			modules += more
		}
	}
	return bytes <= smallBytes && modules <= smallModules
}

// smallArchive says whether there is little in an archive, and how many files. One that is
// damaged is not small: whoever reads it will tell.
func smallArchive(archive []byte) (files int, ok bool) {
	z, err := gzip.NewReader(bytes.NewReader(archive))
	if err != nil {
		return 0, false
	}
	looked := &io.LimitedReader{R: z, N: smallRead}
	r, size := tar.NewReader(looked), int64(0)
	for {
		switch h, err := r.Next(); {
		case errors.Is(err, io.EOF):
			return files, looked.N > 0 // else the archive may go on where what was looked at ends
		case err != nil:
			return 0, false
		default:
			files++
			if size += h.Size; size > smallUnpacked {
				return 0, false
			}
		}
	}
}

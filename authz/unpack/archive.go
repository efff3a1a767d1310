package unpack

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"path/filepath"

	opabundle "github.com/open-policy-agent/opa/v1/bundle"
)

// maxFiles bounds the entries of an archive: each costs memory beside its bytes.
const maxFiles = 100_000

// GzipMagic is the beginning of each gzip file (RFC 1952, section 2.3.1).
const GzipMagic = "\x1f\x8b"

// The ways in which an archive is refused.
var (
	// ErrTooLarge is wrapped in errors that name the limit.
	ErrTooLarge = errors.New("the bundle is larger than the limit")
	// ErrDelta refuses OPA's delta bundles, which are changes of what is in force: OPA makes
	// them where requests are being decided.
	ErrDelta = errors.New("a delta bundle is not supported: serve snapshots")
)

// ReadArchive is [Read] for a gzipped tarball of somebody who may want it to unpack to more
// than limit bytes. It refuses what [Check] refuses.
func ReadArchive(ctx context.Context, archive []byte, limit int64, o Options) (*opabundle.Bundle, error) {
	o = o.withDefaults()
	if files, ok := plainFiles(archive, limit, o.SizeLimit); ok {
		return (&listing{limit: o.SizeLimit, files: files}).bundle(ctx, o)
	}
	if err := Check(archive, limit); err != nil {
		return nil, err
	}
	return Read(ctx, opabundle.NewTarballLoaderWithBaseURL(bytes.NewReader(archive), ""), o)
}

// Check measures a gzipped tarball without keeping what is in it: an answer of a megabyte
// can unpack to a gigabyte, and OPA's reader bounds single files but not their sum. What is
// not gzip passes, and so does an archive that is broken before a limit: OPA's reader says
// what is wrong with it.
func Check(archive []byte, limit int64) error {
	if !bytes.HasPrefix(archive, []byte(GzipMagic)) {
		return nil
	}
	z, err := gzip.NewReader(bytes.NewReader(archive))
	if err != nil {
		return nil //nolint:nilerr // see above
	}
	// The tar reader skips what it does not give, so the bytes are counted below it.
	tr := tar.NewReader(&bounded{r: z, left: limit})
	var claimed int64
	for files := 0; ; files++ {
		if files > maxFiles {
			return fmt.Errorf("the bundle has more than %d files", maxFiles)
		}
		header, err := tr.Next()
		if err == nil && path.Base(header.Name) == patchName {
			return ErrDelta
		}
		if err == nil {
			// A sparse file has few bytes and is read as many.
			claimed += min(header.Size, limit+1)
		}
		if claimed > limit || errors.Is(err, ErrTooLarge) {
			return fmt.Errorf("%w of %d bytes when unpacked", ErrTooLarge, limit)
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
		return 0, ErrTooLarge // io.ReadFull would not mind an error beside all that it wanted
	}
	return n, err
}

// plainFiles reads an archive that has nothing unusual, as nearly all are, and is within all
// limits: once, and without decoding more of a header than matters here, which takes
// archive/tar longer than everything else. It is false for any other, of which [Check] and
// OPA's reader say what is wrong, if anything is.
func plainFiles(archive []byte, limit, sizeLimit int64) (files []file, ok bool) {
	z, err := gzip.NewReader(bytes.NewReader(archive))
	if err != nil {
		return nil, false
	}
	r := &bounded{r: z, left: limit}
	var h header
	var padding [len(h)]byte
	var claimed int64
	for entries := 0; ; entries++ {
		_, err := io.ReadFull(r, h[:])
		zero := err == nil && h == (header{})
		if zero { // the first of the two that mark the end
			_, err = io.ReadFull(r, h[:])
		}
		if errors.Is(err, io.EOF) || zero && err == nil && h == (header{}) {
			return files, true // archive/tar needs neither of them
		}
		if zero || err != nil || entries > maxFiles {
			return nil, false
		}
		name, size, folder, ok := h.plain()
		if claimed += size; !ok || size > sizeLimit || claimed > limit || path.Base(name) == patchName {
			return nil, false
		}
		if folder {
			continue
		}
		text := make([]byte, size)
		if _, err := io.ReadFull(r, text); err != nil {
			return nil, false
		}
		if _, err := io.ReadFull(r, padding[:-size&int64(len(h)-1)]); err != nil {
			return nil, false
		}
		files = append(files, file{url: filepath.Clean(name), path: name, text: text})
	}
}

// header is the block before each entry of a tar archive (POSIX.1-1988, "ustar", and GNU's,
// which has the same fields in the same places up to that of devices).
type header [512]byte

// Fields of a header; those of numbers have octal digits.
const (
	nameEnd              = 100
	sizeBegin, sizeEnd   = 124, 136
	sumBegin, sumEnd     = 148, 156
	typeAt               = 156
	magicBegin, magicEnd = 257, 265
	deviceBegin          = 329
	prefixBegin          = 345
	magicUSTAR, magicGNU = "ustar\x0000", "ustar  \x00"
	typeFile, typeFolder = '0', '5'
)

// plain reads the header of a file or folder whose name is no longer than its field. It is
// false for what archive/tar would refuse or might take otherwise.
func (h *header) plain() (name string, size int64, folder, ok bool) {
	if magic := string(h[magicBegin:magicEnd]); magic != magicUSTAR && magic != magicGNU {
		return "", 0, false, false
	}
	for _, at := range []struct{ begin, end int }{
		{100, 108}, {108, 116}, {116, 124}, {136, sumBegin}, {deviceBegin, 337}, {337, prefixBegin}, // mode, owner, group, time, device
	} {
		if _, ok := octal(h[at.begin:at.end]); !ok {
			return "", 0, false, false
		}
	}
	size, sized := octal(h[sizeBegin:sizeEnd])
	sum, summed := octal(h[sumBegin:sumEnd])
	if !sized || !summed || sum != h.sum() || [len(h) - prefixBegin]byte(h[prefixBegin:]) != ([len(h) - prefixBegin]byte{}) {
		return "", 0, false, false
	}
	text, _, _ := bytes.Cut(h[:nameEnd], []byte{0})
	switch h[typeAt] {
	case typeFile:
		return string(text), size, false, true
	case typeFolder:
		return string(text), 0, true, size == 0
	}
	return "", 0, false, false
}

// octal is false for anything but digits in front of spaces and zero bytes.
func octal(field []byte) (n int64, ok bool) {
	at := 0
	for ; at < len(field) && '0' <= field[at] && field[at] <= '7'; at++ {
		n = n<<3 | int64(field[at]-'0')
	}
	for ; at < len(field); at++ {
		if field[at] != ' ' && field[at] != 0 {
			return 0, false
		}
	}
	return n, true
}

// sum adds up all bytes, with spaces in the place of the sum itself.
func (h *header) sum() (sum int64) {
	for _, b := range h {
		sum += int64(b)
	}
	for _, b := range h[sumBegin:sumEnd] {
		sum += ' ' - int64(b)
	}
	return sum
}

// Package backup copies an authority's state directory, keys and ledger included,
// into one file and back.
//
// The file is a tar archive (pax) whose last member, SHA256SUMS, has the SHA-256 of
// every other one, so that a damaged backup is found before it is used. It holds the
// root key: whoever reads it is the authority.
//
// A backup may be made while the authority runs. The ledger in it ends where the file
// ended at that moment; what was written by half is cut off on the way back. The other
// files are small and replaced as a whole; they are read before and after the ledger,
// and anew if one changed meanwhile.
//
// What the authority did after the backup is lost with the directory that the backup
// replaces. Restore writes that into the ledger, as an entry and as a document with
// the time between, by which the authority knows certificates of that time when it
// meets them.
package backup

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/ledger/checkpoint"
	"github.com/writ-mesh/writ/ca/ledger/filelog"
)

// sumsFile is the last member of a backup.
const sumsFile = "SHA256SUMS"

// etcdDir is the folder of a state directory with what a member of a cluster has, which
// is worth nothing in another one.
const etcdDir = "etcd"

// attempts is how often the small files are read until none changes meanwhile.
const attempts = 5

// Write writes a backup of the state directory dir.
func Write(dir string, w io.Writer) error {
	if _, err := os.Stat(filepath.Join(dir, etcdDir)); err == nil {
		return fmt.Errorf("backup: the ledger of the authority in %s is in etcd; name its admin socket (--admin unix:///PATH), over which the ledger is read", dir)
	}
	small, size, err := read(dir)
	if err != nil {
		return err
	}
	return write(small, filepath.Join(dir, filelog.Name), size, w)
}

// WriteWithLedger writes a backup of the state directory dir of an authority whose
// ledger is elsewhere and comes from each, into a file beside the backup meanwhile. In
// the backup it is a file, as that of an authority alone.
func WriteWithLedger(dir string, each func(func(ledger.Record) error) error, beside string, w io.Writer) (err error) {
	for range attempts {
		// The files first: their checkpoint may not be ahead of the ledger.
		before, err := readSmall(dir)
		if err != nil {
			return err
		}
		if err := filelog.Create(beside, each); err != nil {
			return errors.Join(fmt.Errorf("backup: %w", err), removed(beside))
		}
		info, err := os.Stat(beside)
		if err != nil {
			return fmt.Errorf("backup: %w", err)
		}
		after, err := readSmall(dir)
		if err == nil && len(before) > 0 && same(before, after, checkpoint.File) {
			return errors.Join(write(before, beside, info.Size(), w), removed(beside))
		}
		if err := errors.Join(err, removed(beside)); err != nil {
			return err
		}
	}
	return fmt.Errorf("backup: the files in %s change all the time, or there are none; try again", dir)
}

func removed(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// same tells whether files are the same, but for one.
func same(before, after map[string]small, but string) bool {
	before, after = maps.Clone(before), maps.Clone(after)
	delete(before, but)
	delete(after, but)
	return maps.EqualFunc(before, after, func(a, b small) bool { return a.mode == b.mode && bytes.Equal(a.data, b.data) })
}

// write writes the files, and size bytes of the ledger, if that is not negative.
func write(small map[string]small, log string, size int64, w io.Writer) error {
	sums := make(map[string]string)
	out := tar.NewWriter(w)
	for _, name := range slices.Sorted(maps.Keys(small)) {
		f := small[name]
		if err := add(out, sums, name, f.mode, int64(len(f.data)), bytes.NewReader(f.data)); err != nil {
			return err
		}
	}
	if size >= 0 {
		f, err := os.Open(log)
		if err != nil {
			return fmt.Errorf("backup: %w", err)
		}
		defer func() { _ = f.Close() }() // read only
		if err := add(out, sums, filelog.Name, 0o600, size, io.NewSectionReader(f, 0, size)); err != nil {
			return err
		}
	}
	var list strings.Builder
	for _, name := range slices.Sorted(maps.Keys(sums)) {
		fmt.Fprintf(&list, "%s  %s\n", sums[name], name)
	}
	if err := add(out, make(map[string]string), sumsFile, 0o600, int64(list.Len()), strings.NewReader(list.String())); err != nil {
		return err
	}
	if err := out.Close(); err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	return nil
}

func add(out *tar.Writer, sums map[string]string, name string, mode fs.FileMode, size int64, data io.Reader) error {
	err := out.WriteHeader(&tar.Header{Name: name, Mode: int64(mode.Perm()), Size: size, Typeflag: tar.TypeReg, Format: tar.FormatPAX})
	if err == nil {
		sum := sha256.New()
		_, err = io.Copy(io.MultiWriter(out, sum), data)
		sums[name] = hex.EncodeToString(sum.Sum(nil))
	}
	if err != nil {
		return fmt.Errorf("backup of %s: %w", name, err)
	}
	return nil
}

// small is a file other than the ledger.
type small struct {
	data []byte
	mode fs.FileMode
}

// read reads the small files, and how long the ledger is when they are all there; -1
// if there is none.
func read(dir string) (files map[string]small, size int64, err error) {
	before, err := readSmall(dir)
	for range attempts {
		if err != nil {
			return nil, 0, err
		}
		size = -1
		if info, err := os.Stat(filepath.Join(dir, filelog.Name)); err == nil {
			size = info.Size()
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, 0, fmt.Errorf("backup: %w", err)
		}
		var after map[string]small
		if after, err = readSmall(dir); err == nil && maps.EqualFunc(before, after, func(a, b small) bool { return a.mode == b.mode && bytes.Equal(a.data, b.data) }) {
			if len(after) == 0 {
				return nil, 0, fmt.Errorf("backup: %s has nothing of an authority; name its state directory", dir)
			}
			return after, size, nil
		}
		before = after
	}
	return nil, 0, fmt.Errorf("backup: the files in %s change all the time; try again", dir)
}

func readSmall(dir string) (map[string]small, error) {
	files := make(map[string]small)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && path == filepath.Join(dir, etcdDir) {
			return filepath.SkipDir
		}
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil || !d.Type().IsRegular() || !kept(name) {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		data, err := os.ReadFile(path)
		files[name] = small{data, info.Mode()}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		if _, gone := os.Stat(dir); gone == nil {
			return files, nil // a file that was replaced just now; the next look has it
		}
	}
	if err != nil {
		return nil, fmt.Errorf("backup: %w", err)
	}
	return files, nil
}

// kept tells whether a file other than the ledger belongs into a backup: not the lock,
// what is being written, or what was cut off.
func kept(name string) bool {
	base := filepath.Base(name)
	return name != filelog.Name && base != "lock" && !strings.HasPrefix(base, ".") && !strings.HasSuffix(base, ".torn") && !strings.HasSuffix(base, ".imported")
}

package backup

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/ledger/checkpoint"
	"github.com/writ-mesh/writ/ca/ledger/filelog"
	"github.com/writ-mesh/writ/internal/atomicfile"
)

// WindowPrefix is that of the keys of documents about times of which the ledger was
// lost.
const WindowPrefix = "restored/"

// Window is a time of which the ledger was lost: what was issued in it is not there.
type Window struct {
	// From is the time of the last entry of the backup.
	From time.Time `json:"from"`
	// To is when it was restored.
	To time.Time `json:"to"`
}

// maxSums bounds SHA256SUMS, in bytes.
const maxSums = 1 << 20

// Restore makes the state directory dir, which must be empty or not there, out of a
// backup. If it fails it leaves nothing behind. newer is a later file of the same
// ledger, if that can still be read, which then takes the place of the one in the
// backup; empty for none. The result is nil if the backup has no ledger, because that
// is in a database.
func Restore(ctx context.Context, r io.Reader, dir, newer string, now time.Time) (*Window, error) {
	content, err := os.ReadDir(dir)
	there := err == nil
	switch {
	case len(content) > 0:
		return nil, fmt.Errorf("restore: %s is not empty; name a new directory, or move what is there away first", dir)
	case !there && !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("restore: %w", err)
	}
	dir = filepath.Clean(dir)
	parent := filepath.Dir(dir)
	if there {
		parent = dir // which may be where a volume is mounted, and cannot be replaced
	}
	staging, err := os.MkdirTemp(parent, ".restore*") // mode 0700
	if err != nil {
		return nil, fmt.Errorf("restore: %w", err)
	}
	w, err := restore(ctx, r, staging, newer, now)
	if err == nil && there {
		err = move(staging, dir)
	} else if err == nil {
		err = os.Rename(staging, dir)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("restore: %w", err), os.RemoveAll(staging))
	}
	return w, syncDir(parent)
}

// move moves what is in one directory to another. The checkpoint goes first: an
// authority that finds it without its ledger does not start, so a restore that is cut
// off here is noticed.
func move(from, to string) error {
	members, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	isCheckpoint := func(m fs.DirEntry) bool { return m.Name() == checkpoint.File }
	if i := slices.IndexFunc(members, isCheckpoint); i > 0 {
		members[0], members[i] = members[i], members[0]
	}
	for _, m := range members {
		if err := os.Rename(filepath.Join(from, m.Name()), filepath.Join(to, m.Name())); err != nil {
			return err
		}
	}
	return os.Remove(from)
}

func restore(ctx context.Context, r io.Reader, dir, newer string, now time.Time) (*Window, error) {
	if err := unpack(r, dir); err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(dir, filelog.Name)); errors.Is(err, fs.ErrNotExist) {
		if newer != "" {
			return nil, fmt.Errorf("%s: the backup has no ledger that it could go on from; that is in a database", newer)
		}
		return nil, nil //nolint:nilnil // said in the comment of Restore
	}
	if newer != "" {
		if err := exchange(ctx, filepath.Join(dir, filelog.Name), newer); err != nil {
			return nil, err
		}
	}
	return reopen(ctx, dir, now)
}

// unpack writes the members of a backup and compares their sums.
func unpack(r io.Reader, dir string) error {
	in, sums := tar.NewReader(r), make(map[string]string)
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return errors.New("the backup is cut off: it has no SHA256SUMS")
		}
		if err != nil {
			return fmt.Errorf("the backup is damaged: %w", err)
		}
		if h.Name == sumsFile {
			text, err := io.ReadAll(io.LimitReader(in, maxSums))
			if err != nil {
				return fmt.Errorf("the backup is damaged: %w", err)
			}
			return compare(string(text), sums)
		}
		if h.Typeflag != tar.TypeReg || !filepath.IsLocal(h.Name) || h.Name != filepath.Clean(h.Name) || h.Name == "." {
			return fmt.Errorf("%q is in no backup of an authority", h.Name)
		}
		if sums[h.Name], err = unpackFile(in, filepath.Join(dir, h.Name), h.FileInfo().Mode().Perm()); err != nil {
			return err
		}
	}
}

func unpackFile(r io.Reader, path string, mode fs.FileMode) (sum string, err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return "", err
	}
	hash := sha256.New()
	_, err = io.Copy(io.MultiWriter(f, hash), r)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	return hex.EncodeToString(hash.Sum(nil)), err
}

func compare(text string, sums map[string]string) error {
	for line := range strings.Lines(text) {
		sum, name, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "  ")
		if !ok || sums[name] != sum {
			return fmt.Errorf("the backup is damaged: %s is not what was backed up", name)
		}
		delete(sums, name)
	}
	for name := range sums {
		return fmt.Errorf("the backup is damaged: %s has no sum", name)
	}
	return nil
}

// exchange puts a later file of the same ledger in the place of the one at path.
func exchange(ctx context.Context, path, newer string) (err error) {
	old, err := filelog.Open(path, filelog.Options{}) // which cuts off what was written by half
	if err != nil {
		return err
	}
	head, err := old.Head(ctx)
	if err = errors.Join(err, old.Close()); err != nil {
		return err
	}
	in, err := os.Open(newer)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }() // read only
	if _, err := unpackFile(in, path+".newer", 0o600); err != nil {
		return err
	}
	log, err := filelog.Open(path+".newer", filelog.Options{})
	if err != nil {
		return fmt.Errorf("a copy of %s: %w; restore without it", newer, err)
	}
	err = checkpoint.Compare(ctx, log, head)
	if err = errors.Join(err, log.Close()); err != nil {
		return fmt.Errorf("%s does not go on from the ledger in the backup: %w", newer, err)
	}
	if err := os.Remove(path + ".newer.torn"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Rename(path+".newer", path)
}

// reopen looks whether the ledger is the one of its checkpoint, and writes into it
// that it was restored.
func reopen(ctx context.Context, dir string, now time.Time) (w *Window, err error) {
	log, err := filelog.Open(filepath.Join(dir, filelog.Name), filelog.Options{})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	key, err := checkpoint.OpenKey(filepath.Join(dir, checkpoint.KeyFile), "")
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(dir, checkpoint.File))
	switch {
	case errors.Is(err, fs.ErrNotExist): // of an authority that had just begun
	case err != nil:
		return nil, err
	default:
		cp, err := checkpoint.Open(text, key.Verifier)
		if err != nil {
			return nil, err
		}
		if err := checkpoint.Compare(ctx, log, cp.Head); err != nil {
			return nil, fmt.Errorf("the ledger in the backup is not the one of its checkpoint: %w", err)
		}
	}
	return record(ctx, log, key, dir, now.UTC())
}

func record(ctx context.Context, log *filelog.Log, key *checkpoint.Signer, dir string, now time.Time) (*Window, error) {
	w := &Window{To: now}
	head, err := log.Head(ctx)
	if err != nil {
		return nil, err
	}
	if head.Size > 0 {
		err = log.Each(ctx, head.Size-1, func(r ledger.Record) error {
			e, err := r.Entry()
			w.From = e.Time
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	value, err := json.Marshal(w)
	if err != nil {
		return nil, err
	}
	_, err = log.Commit(ctx, ledger.Change{
		Entry: ledger.Entry{
			Kind: ledger.Restored, Time: now, Actor: fmt.Sprintf("uid=%d", os.Getuid()),
			Detail: map[string]string{"from": w.From.Format(time.RFC3339Nano), "entries": fmt.Sprint(head.Size)},
		},
		Put: map[string][]byte{fmt.Sprintf("%s%d", WindowPrefix, head.Size): value},
	})
	if err != nil {
		return nil, err
	}
	if head, err = log.Head(ctx); err != nil {
		return nil, err
	}
	text, err := key.Sign(head)
	if err != nil {
		return nil, err
	}
	return w, atomicfile.Write(filepath.Join(dir, checkpoint.File), text, 0o600)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

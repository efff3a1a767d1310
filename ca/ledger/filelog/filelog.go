package filelog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/ledger/docstore"
	"github.com/writ-mesh/writ/ca/ledger/group"
	"github.com/writ-mesh/writ/ca/ledger/hashtree"
)

// Name is that of the file in an authority's state directory.
const Name = "ledger.log"

// file is what a Log needs of its file; tests make it fail.
type file interface {
	WriteAt(b []byte, off int64) (int, error)
	Truncate(size int64) error
	// Sync is fdatasync(2).
	Sync() error
	Close() error
}

// Options are the optional parts of Open.
type Options struct {
	// Log gets what happened at the start; nil means nothing is logged.
	Log *slog.Logger
	// Committed is called after each commit with the number of entries, how long
	// it took and whether it worked. It must not block. May be nil.
	Committed func(entries int, took time.Duration, err error)
}

// Log is a ledger.Store in one file.
type Log struct {
	hashtree.Prover

	path  string
	queue *group.Queue

	docs *docstore.Store

	// What is durable.
	mu      sync.Mutex
	size    int64 // in bytes
	tree    hashtree.Tree
	offsets []int64 // of every stride-th entry

	// The committer's own.
	f     file
	dirty bool // the file may go on after size
}

// Open opens the ledger at path, makes it (mode 0600) if it is not there, and
// cuts off a torn end. The caller sees to it that no other process has it open.
func Open(path string, opts Options) (*Log, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("ledger: %w", err)
	}
	c, err := load(f, opts.Log)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return start(path, diskFile{f}, c, opts), nil
}

func load(f *os.File, log *slog.Logger) (contents, error) {
	c, err := scan(f, f.Name(), nil)
	if err != nil {
		return c, err
	}
	torn, err := keepTorn(f, c.size)
	if err != nil {
		return c, fmt.Errorf("ledger: keep the torn end of %s: %w", f.Name(), err)
	}
	if torn > 0 {
		if err := f.Truncate(c.size); err != nil {
			return c, fmt.Errorf("ledger: cut the torn end of %s: %w", f.Name(), err)
		}
		if log != nil {
			log.Warn("ledger: entries that never became durable were cut off",
				slog.String("file", f.Name()), slog.Int64("offset", c.size), slog.Int64("bytes", torn), slog.String("kept_in", f.Name()+".torn"))
		}
	}
	// Also what an earlier process wrote but could not sync before it died.
	if err := f.Sync(); err != nil {
		return c, fmt.Errorf("ledger: sync %s: %w", f.Name(), err)
	}
	dir, err := os.Open(filepath.Dir(f.Name()))
	if err != nil {
		return c, fmt.Errorf("ledger: %w", err)
	}
	return c, errors.Join(dir.Sync(), dir.Close())
}

func start(path string, f file, c contents, opts Options) *Log {
	l := &Log{path: path, f: f, docs: c.docs, size: c.size, tree: c.tree, offsets: c.offsets}
	l.Prover = hashtree.Prover{Whole: l.whole, Leaves: l.hashes}
	l.queue = group.New(l.commit, opts.Committed)
	return l
}

// Commit implements ledger.Store.
func (l *Log) Commit(ctx context.Context, c ledger.Change) (uint64, error) {
	return l.queue.Commit(ctx, c)
}

// Check implements ledger.Store.
func (l *Log) Check(ctx context.Context) error { return l.queue.Check(ctx) }

// Get implements ledger.Documents.
func (l *Log) Get(_ context.Context, key string) (ledger.Document, error) { return l.docs.Get(key) }

// List implements ledger.Documents.
func (l *Log) List(_ context.Context, prefix string) ([]ledger.Document, error) {
	return l.docs.List(prefix), nil
}

// Watch implements ledger.Documents.
func (l *Log) Watch(ctx context.Context, prefix string, f func(ledger.Update) error) error {
	return l.docs.Watch(ctx, l.queue.Done(), prefix, f)
}

// Close implements ledger.Store.
func (l *Log) Close() error {
	if !l.queue.Close() {
		return nil
	}
	return l.f.Close()
}

// diskFile is an os.File whose Sync leaves out what no reader needs.
type diskFile struct{ *os.File }

// Sync implements file. fdatasync(2) also writes the size of a file that grew.
func (d diskFile) Sync() error {
	for {
		err := unix.Fdatasync(int(d.Fd()))
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

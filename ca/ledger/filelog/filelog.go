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
	"github.com/writ-mesh/writ/ca/ledger/hashtree"
)

// maxBatch bounds how many entries become durable together, so that the first of
// them does not wait for ever.
const maxBatch = 1024

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
	path      string
	committed func(int, time.Duration, error)

	queue chan *pending
	done  chan struct{} // closed when the committer has stopped
	// closing guards queue against sends after its end.
	closing sync.RWMutex
	closed  bool

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

// pending is a change that waits for its commit.
type pending struct {
	// probe tells that there is no change: only whether the disk takes it matters.
	probe  bool
	change ledger.Change
	record ledger.Record
	hash   []byte
	done   chan error
	err    error
}

func newPending(c ledger.Change, r ledger.Record) *pending {
	return &pending{change: c, record: r, hash: hashtree.Hash(r.Leaf), done: make(chan error, 1)}
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
	l := &Log{
		path: path, committed: opts.Committed, f: f,
		docs: c.docs, size: c.size, tree: c.tree, offsets: c.offsets,
		queue: make(chan *pending, maxBatch), done: make(chan struct{}),
	}
	if l.committed == nil {
		l.committed = func(int, time.Duration, error) {}
	}
	go l.run()
	return l
}

// Commit implements ledger.Store.
func (l *Log) Commit(ctx context.Context, c ledger.Change) (uint64, error) {
	r, err := ledger.Encode(c)
	if err != nil {
		return 0, err
	}
	p := newPending(c, r)
	if err := l.submit(ctx, p); err != nil {
		return 0, err
	}
	return p.record.Index + 1, nil
}

// Check implements ledger.Store.
func (l *Log) Check(ctx context.Context) error {
	return l.submit(ctx, &pending{probe: true, done: make(chan error, 1)})
}

func (l *Log) submit(ctx context.Context, p *pending) error {
	if err := l.enqueue(ctx, p); err != nil {
		return err
	}
	select {
	case err := <-p.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l *Log) enqueue(ctx context.Context, p *pending) error {
	l.closing.RLock()
	defer l.closing.RUnlock()
	if l.closed {
		return fmt.Errorf("%w: it is closed", ledger.ErrUnavailable)
	}
	select {
	case l.queue <- p:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Get implements ledger.Documents.
func (l *Log) Get(_ context.Context, key string) (ledger.Document, error) { return l.docs.Get(key) }

// List implements ledger.Documents.
func (l *Log) List(_ context.Context, prefix string) ([]ledger.Document, error) {
	return l.docs.List(prefix), nil
}

// Watch implements ledger.Documents.
func (l *Log) Watch(ctx context.Context, prefix string, f func(ledger.Update) error) error {
	return l.docs.Watch(ctx, l.done, prefix, f)
}

// Close implements ledger.Store.
func (l *Log) Close() error {
	l.closing.Lock()
	first := !l.closed
	l.closed = true
	if first {
		close(l.queue)
	}
	l.closing.Unlock()
	<-l.done
	if !first {
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

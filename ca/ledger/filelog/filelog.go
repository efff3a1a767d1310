package filelog

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/writ-mesh/writ/ca/ledger"
)

// maxBatch bounds how many records become durable together, so that the first of
// them does not wait for ever.
const maxBatch = 1024

// forget is how long after its expiry an unused token is forgotten.
const forget = time.Hour

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
	// Committed is called after each commit with the number of records, how long
	// it took and whether it worked. It must not block. May be nil.
	Committed func(records int, took time.Duration, err error)
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

	size       atomic.Int64 // end of the durable records
	lastIssued time.Time    // as it was at the start

	mu     sync.Mutex
	tokens map[string]ledger.Token

	// The committer's own.
	f     file
	next  uint64
	dirty bool // the file may go on after size
}

// pending is a record that waits for its commit.
type pending struct {
	kind kind
	body []byte
	// admit is called by the committer in the order of the records; an error keeps
	// the record out. undo takes its effect back if the commit fails.
	admit func() error
	undo  func()
	done  chan error
	err   error
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
	c, err := scan(f, f.Name())
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
			log.Warn("ledger: records that never became durable were cut off",
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
		path: path, committed: opts.Committed, f: f, next: c.next, tokens: c.tokens,
		queue: make(chan *pending, maxBatch), done: make(chan struct{}),
	}
	if l.committed == nil {
		l.committed = func(int, time.Duration, error) {}
	}
	l.size.Store(c.size)
	// What cannot be read there is found by Each; here it only serves a warning.
	if last, ok, err := c.last.certificate(); ok && err == nil {
		l.lastIssued = last.IssuedAt
	}
	go l.run()
	return l
}

// Empty tells whether nothing was ever recorded.
func (l *Log) Empty() bool { return l.size.Load() == 0 }

// LastIssued is when the last certificate was issued before this process, by the
// clock of that time; zero if the file does not end in one.
func (l *Log) LastIssued() time.Time { return l.lastIssued }

// Record implements ledger.Certificates.
func (l *Log) Record(ctx context.Context, c ledger.Certificate) error {
	return l.append(ctx, kindCert, c, nil, nil)
}

// AddToken implements ledger.Tokens.
func (l *Log) AddToken(ctx context.Context, t ledger.Token) error {
	if err := l.append(ctx, kindToken, t, nil, nil); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tokens[t.ID] = t
	// Those that were never used: nobody can tell them from unknown ones.
	for id, old := range l.tokens {
		if t.CreatedAt.Sub(old.ExpiresAt) > forget {
			delete(l.tokens, id)
		}
	}
	return nil
}

// Token implements ledger.Tokens.
func (l *Log) Token(_ context.Context, id string) (ledger.Token, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t, ok := l.tokens[id]
	if !ok {
		return ledger.Token{}, ledger.ErrNoToken
	}
	return t, nil
}

// RecordJoin implements ledger.Tokens. One record holds both facts, so that no
// crash can part them.
func (l *Log) RecordJoin(ctx context.Context, tokenID string, c ledger.Certificate) error {
	var taken ledger.Token
	return l.append(ctx, kindJoin, joined{TokenID: tokenID, Certificate: c}, func() error {
		l.mu.Lock()
		defer l.mu.Unlock()
		t, ok := l.tokens[tokenID]
		if !ok {
			return ledger.ErrNoToken
		}
		taken = t
		delete(l.tokens, tokenID)
		return nil
	}, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.tokens[tokenID] = taken
	})
}

// Check implements ledger.Store.
func (l *Log) Check(ctx context.Context) error { return l.submit(ctx, &pending{}) }

func (l *Log) append(ctx context.Context, k kind, content any, admit func() error, undo func()) error {
	body, err := json.Marshal(content)
	if err != nil {
		return fmt.Errorf("ledger: %w", err)
	}
	// The rest of a line has at most 60 bytes.
	if len(body) > maxLine-64 {
		return fmt.Errorf("ledger: record of %d bytes is too long", len(body))
	}
	return l.submit(ctx, &pending{kind: k, body: body, admit: admit, undo: undo})
}

func (l *Log) submit(ctx context.Context, p *pending) error {
	p.done = make(chan error, 1)
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

// Each implements ledger.Certificates.
func (l *Log) Each(ctx context.Context, f func(ledger.Certificate) error) error {
	size := l.size.Load()
	in, err := os.Open(l.path)
	if err != nil {
		return fmt.Errorf("ledger: %w", err)
	}
	defer func() { _ = in.Close() }() // read only: nothing can be lost
	r := bufio.NewReaderSize(io.LimitReader(in, size), maxLine)
	for off := int64(0); off < size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		b, err := r.ReadSlice('\n')
		if err != nil {
			return fmt.Errorf("ledger: read %s at offset %d: %w", l.path, off, err)
		}
		rec, err := parseLine(b[:len(b)-1])
		if err != nil {
			return fmt.Errorf("ledger: %s is damaged at offset %d: %w; restore the file from a backup", l.path, off, err)
		}
		c, ok, err := rec.certificate()
		if err != nil {
			return fmt.Errorf("ledger: %s, offset %d: %w", l.path, off, err)
		}
		off += int64(len(b))
		if !ok {
			continue
		}
		if err := f(c); err != nil {
			return err
		}
	}
	return nil
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

// Package group gathers the changes of many callers, so that a store makes them
// durable together: those that arrive while it is busy with earlier ones wait, and
// are the next batch. It also settles which of them hold, in the order in which they
// came. A store brings how a batch is made durable.
package group

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/ledger/hashtree"
)

// maxBatch bounds how many entries become durable together, so that the first of
// them does not wait for ever.
const maxBatch = 1024

// maxBatchBytes bounds a batch in the same way; the last change of one may go beyond it.
const maxBatchBytes = 1 << 20

// pace is the least time between the beginnings of two commits while several
// callers commit at once. A sync costs about 50 microseconds of processor time for
// however many entries, a sixth of an issuance, so they gather for a moment. A
// caller who is alone never waits.
const pace = 2 * time.Millisecond

// Queue is where changes wait for their turn.
type Queue struct {
	commit    func(*Batch) error
	committed func(entries int, took time.Duration, err error)

	queue chan *waiting
	done  chan struct{} // closed when nothing is committed any more
	// closing guards queue against sends after its end.
	closing sync.RWMutex
	closed  bool
}

// waiting is a change that waits for its commit.
type waiting struct {
	// probe tells that there is no change: only whether one could be made matters.
	probe  bool
	change ledger.Change
	record ledger.Record
	hash   []byte
	done   chan error
	err    error
}

// size is about what the change takes up in a store, in bytes.
func (w *waiting) size() int {
	n := len(w.record.Leaf) + len(w.record.Values)
	for _, value := range w.change.Put {
		n += len(value)
	}
	return n
}

// New starts a queue. commit makes a batch durable; it is called for one at a time.
// committed is called after it with the number of entries; it may be nil.
func New(commit func(*Batch) error, committed func(entries int, took time.Duration, err error)) *Queue {
	if committed == nil {
		committed = func(int, time.Duration, error) {}
	}
	q := &Queue{commit: commit, committed: committed, queue: make(chan *waiting, maxBatch), done: make(chan struct{})}
	go q.run()
	return q
}

func newWaiting(c ledger.Change) (*waiting, error) {
	r, err := ledger.Encode(c)
	if err != nil {
		return nil, err
	}
	return &waiting{change: c, record: r, hash: hashtree.Hash(r.Leaf), done: make(chan error, 1)}, nil
}

// Commit is that of ledger.Store. What can be done outside the commit, such as
// encoding, is done by the caller's goroutine.
func (q *Queue) Commit(ctx context.Context, c ledger.Change) (uint64, error) {
	w, err := newWaiting(c)
	if err != nil {
		return 0, err
	}
	if err := q.submit(ctx, w); err != nil {
		return 0, err
	}
	return w.record.Index + 1, nil
}

// Check is that of ledger.Store.
func (q *Queue) Check(ctx context.Context) error {
	return q.submit(ctx, &waiting{probe: true, done: make(chan error, 1)})
}

func (q *Queue) submit(ctx context.Context, w *waiting) error {
	if err := q.enqueue(ctx, w); err != nil {
		return err
	}
	select {
	case err := <-w.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (q *Queue) enqueue(ctx context.Context, w *waiting) error {
	q.closing.RLock()
	defer q.closing.RUnlock()
	if q.closed {
		return fmt.Errorf("%w: it is closed", ledger.ErrUnavailable)
	}
	select {
	case q.queue <- w:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Waiting is how many wait for the next batch.
func (q *Queue) Waiting() int { return len(q.queue) }

// Done is closed when nothing is committed any more.
func (q *Queue) Done() <-chan struct{} { return q.done }

// Close takes no more, and waits until those that it took are committed. It returns
// whether it was open.
func (q *Queue) Close() bool {
	q.closing.Lock()
	first := !q.closed
	q.closed = true
	if first {
		close(q.queue)
	}
	q.closing.Unlock()
	<-q.done
	return first
}

// run commits what is queued until the queue is closed and empty.
func (q *Queue) run() {
	defer close(q.done)
	next := time.Now()
	for w := range q.queue {
		b := &Batch{all: q.fill([]*waiting{w}, next)}
		begin := time.Now()
		next = begin
		if len(b.all) > 1 {
			next = next.Add(pace)
		}
		err := q.commit(b)
		q.committed(len(b.entries), time.Since(begin), err)
		b.answer(err)
	}
}

// fill adds what queues up until the given time, and what has queued up anyway.
func (q *Queue) fill(batch []*waiting, until time.Time) []*waiting {
	var gathering <-chan time.Time // nil when it is time
	if wait := time.Until(until); wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		gathering = timer.C
	}
	size := batch[0].size()
	for len(batch) < maxBatch && size < maxBatchBytes {
		w := q.take(gathering)
		switch {
		case w != nil:
			batch = append(batch, w)
			size += w.size()
		case gathering != nil:
			gathering = nil
		default:
			return batch
		}
	}
	return batch
}

// take gives the next of the queue, for which it waits until the timer fires, or
// not at all without one. It is nil if there is none.
func (q *Queue) take(timer <-chan time.Time) *waiting {
	if timer == nil {
		select {
		case w := <-q.queue:
			return w
		default:
			return nil
		}
	}
	select {
	case w := <-q.queue:
		return w
	case <-timer:
		return nil
	}
}

package filelog

import (
	"fmt"
	"time"

	"github.com/writ-mesh/writ/ca/ledger"
)

// probeSize is what a check writes: a block, since a full disk may still have
// room for a few bytes in the block that is begun.
const probeSize = 4096

// pace is the least time between the beginnings of two commits while several
// callers record at once. A sync costs about 50 microseconds of processor time for
// however many records, a sixth of an issuance, so they gather for a moment. A
// caller who is alone never waits.
const pace = 2 * time.Millisecond

// run commits what is queued until the queue is closed and empty.
func (l *Log) run() {
	defer close(l.done)
	batch := make([]*pending, 0, maxBatch)
	next := time.Now()
	for p := range l.queue {
		batch = l.fill(append(batch[:0], p), next)
		next = time.Now()
		if len(batch) > 1 {
			next = next.Add(pace)
		}
		l.commit(batch)
	}
}

// fill adds what queues up until the given time, and what has queued up anyway.
func (l *Log) fill(batch []*pending, until time.Time) []*pending {
	var gathering <-chan time.Time // nil when it is time
	if wait := time.Until(until); wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		gathering = timer.C
	}
	for len(batch) < maxBatch {
		p := l.take(gathering)
		switch {
		case p != nil:
			batch = append(batch, p)
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
func (l *Log) take(timer <-chan time.Time) *pending {
	if timer == nil {
		select {
		case p := <-l.queue:
			return p
		default:
			return nil
		}
	}
	select {
	case p := <-l.queue:
		return p
	case <-timer:
		return nil
	}
}

// commit makes a batch durable and tells the waiting. If it fails, everybody in
// the batch is told that, also who was kept out: what kept him out was undone.
func (l *Log) commit(batch []*pending) {
	begin := time.Now()
	buf, records, probe := l.encode(batch)
	err := l.write(buf, probe)
	if err != nil {
		err = fmt.Errorf("%w: %s: %w", ledger.ErrUnavailable, l.path, err)
		for i := len(batch) - 1; i >= 0; i-- {
			if p := batch[i]; p.err == nil && p.undo != nil {
				p.undo()
			}
		}
	} else {
		l.next += uint64(records)
		l.size.Add(int64(len(buf)))
	}
	l.committed(records, time.Since(begin), err)
	for _, p := range batch {
		if err != nil {
			p.err = err
		}
		p.done <- p.err
	}
}

// encode admits the records of a batch in their order and lays them out.
func (l *Log) encode(batch []*pending) (buf []byte, records int, probe bool) {
	for _, p := range batch {
		if p.kind == "" {
			probe = true
			continue
		}
		if p.admit != nil {
			if p.err = p.admit(); p.err != nil {
				continue
			}
		}
		buf = appendLine(buf, line{index: l.next + uint64(records), batch: l.next, kind: p.kind, body: p.body})
		records++
	}
	return buf, records, probe
}

// write puts buf at the end of the file and syncs it. After a failure, also of
// the sync, whose effect is unknown, the file is cut back to what is durable
// before anything else is written.
func (l *Log) write(buf []byte, probe bool) error {
	if l.dirty {
		if err := l.f.Truncate(l.size.Load()); err != nil {
			return err
		}
		l.dirty = false
	}
	if len(buf) == 0 && !probe {
		return nil
	}
	l.dirty = true
	out := buf
	if len(buf) == 0 {
		out = make([]byte, probeSize)
	}
	if _, err := l.f.WriteAt(out, l.size.Load()); err != nil {
		// At once, so that the file has no torn end if this process dies now; if
		// it does not work, the next write does it.
		if l.f.Truncate(l.size.Load()) == nil {
			l.dirty = false
		}
		return err
	}
	if err := l.f.Sync(); err != nil {
		return err
	}
	l.dirty = false
	if len(buf) == 0 {
		l.dirty = l.f.Truncate(l.size.Load()) != nil
	}
	return nil
}

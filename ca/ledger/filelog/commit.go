package filelog

import (
	"fmt"
	"maps"
	"time"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/ledger/hashtree"
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

// group is what becomes durable together.
type group struct {
	entries []*pending // those that are admitted
	buf     []byte
	ends    []int64 // of each entry in buf
	// staged are the versions of the documents that entries of the group touch; 0
	// stands for a deleted one.
	staged map[string]uint64
	probe  bool
}

// commit makes a batch durable and tells the waiting. If it fails, everybody in
// the batch is told that, also who was kept out because of others in it.
func (l *Log) commit(batch []*pending) {
	begin := time.Now()
	g := l.encode(batch)
	tree, err := l.grown(g)
	if err == nil {
		err = l.write(g.buf, g.probe)
	}
	if err != nil {
		err = fmt.Errorf("%w: %s: %w", ledger.ErrUnavailable, l.path, err)
	} else {
		l.publish(g, tree)
	}
	l.committed(len(g.entries), time.Since(begin), err)
	for _, p := range batch {
		if err != nil {
			p.err = err
		}
		p.done <- p.err
	}
}

// encode admits the changes of a batch in their order and lays them out.
func (l *Log) encode(batch []*pending) *group {
	g := &group{entries: make([]*pending, 0, len(batch))}
	first := l.tree.Size()
	for _, p := range batch {
		if p.probe {
			g.probe = true
			continue
		}
		if p.err = l.conflict(g, p.change); p.err != nil {
			continue
		}
		p.record.Index = first + uint64(len(g.entries))
		g.buf = appendLine(g.buf, line{batch: first, record: p.record})
		g.ends = append(g.ends, int64(len(g.buf)))
		g.entries = append(g.entries, p)
		g.stage(p.change, p.record.Index+1)
	}
	return g
}

// conflict tells which precondition does not hold.
func (l *Log) conflict(g *group, c ledger.Change) error {
	for key, want := range c.If {
		is, staged := g.staged[key]
		if !staged {
			is = l.docs.Version(key)
		}
		if is != want {
			return fmt.Errorf("%w: %s has version %d, not %d", ledger.ErrConflict, key, is, want)
		}
	}
	return nil
}

func (g *group) stage(c ledger.Change, version uint64) {
	if g.staged == nil && len(c.Put)+len(c.Delete) > 0 {
		g.staged = make(map[string]uint64)
	}
	for key := range c.Put {
		g.staged[key] = version
	}
	for _, key := range c.Delete {
		g.staged[key] = 0
	}
}

// grown is the tree with the group. Only the committer changes l.tree, so it need
// not lock to read it.
func (l *Log) grown(g *group) (hashtree.Tree, error) {
	hashes := make([][]byte, 0, len(g.entries))
	for _, p := range g.entries {
		hashes = append(hashes, p.hash)
	}
	return l.tree.Grown(hashes...)
}

// publish shows a group that is durable.
func (l *Log) publish(g *group, tree hashtree.Tree) {
	l.mu.Lock()
	at := l.size
	for i, p := range g.entries {
		if p.record.Index%stride == 0 {
			l.offsets = append(l.offsets, at)
		}
		at = l.size + g.ends[i]
	}
	l.size, l.tree = at, tree
	l.mu.Unlock()
	for _, p := range g.entries {
		if c := p.change; len(c.Put)+len(c.Delete) > 0 {
			l.docs.Apply(p.record.Index+1, values(c))
		}
	}
}

// values are the documents of a change as ledger.Record.Documents gives them.
func values(c ledger.Change) map[string][]byte {
	out := maps.Clone(c.Put)
	if out == nil {
		out = make(map[string][]byte, len(c.Delete))
	}
	for _, key := range c.Delete {
		out[key] = nil
	}
	return out
}

// write puts buf at the end of the file and syncs it. After a failure, also of
// the sync, whose effect is unknown, the file is cut back to what is durable
// before anything else is written.
func (l *Log) write(buf []byte, probe bool) error {
	if l.dirty {
		if err := l.f.Truncate(l.size); err != nil {
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
	if _, err := l.f.WriteAt(out, l.size); err != nil {
		// At once, so that the file has no torn end if this process dies now; if
		// it does not work, the next write does it.
		if l.f.Truncate(l.size) == nil {
			l.dirty = false
		}
		return err
	}
	if err := l.f.Sync(); err != nil {
		return err
	}
	l.dirty = false
	if len(buf) == 0 {
		l.dirty = l.f.Truncate(l.size) != nil
	}
	return nil
}

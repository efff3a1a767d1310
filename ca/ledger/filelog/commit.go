package filelog

import (
	"fmt"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/ledger/group"
	"github.com/writ-mesh/writ/ca/ledger/hashtree"
)

// probeSize is what a check writes: a block, since a full disk may still have
// room for a few bytes in the block that is begun.
const probeSize = 4096

// commit makes a batch durable and shows it.
func (l *Log) commit(b *group.Batch) error {
	// Only this goroutine changes l.tree and l.size, so it need not lock to read them.
	b.Admit(l.tree.Size(), l.docs.Version)
	buf, ends := l.encode(b)
	tree, err := l.tree.Grown(b.Hashes()...)
	if err == nil {
		err = l.write(buf, b.Probe())
	}
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ledger.ErrUnavailable, l.path, err)
	}
	l.publish(b, tree, ends)
	return nil
}

// encode lays out the entries; ends are where each ends.
func (l *Log) encode(b *group.Batch) (buf []byte, ends []int64) {
	for i := range b.Len() {
		buf = appendLine(buf, line{batch: l.tree.Size(), record: b.Record(i)})
		ends = append(ends, int64(len(buf)))
	}
	return buf, ends
}

// publish shows a batch that is durable.
func (l *Log) publish(b *group.Batch, tree hashtree.Tree, ends []int64) {
	l.mu.Lock()
	at := l.size
	for i, end := range ends {
		if b.Record(i).Index%stride == 0 {
			l.offsets = append(l.offsets, at)
		}
		at = l.size + end
	}
	l.size, l.tree = at, tree
	l.mu.Unlock()
	if put, deleted := b.Documents(); len(put)+len(deleted) > 0 {
		l.docs.Apply(put, deleted)
	}
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

package group

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/writ-mesh/writ/ca/ledger"
)

// Batch is what becomes durable together.
type Batch struct {
	all     []*waiting
	entries []*waiting // those that are admitted
	docs    map[string]document
}

// document is what a batch leaves of a document; deleted ones have version 0.
type document struct {
	value   []byte
	version uint64
}

// NewBatch makes a batch by hand, for tests of a store.
func NewBatch(changes ...ledger.Change) (*Batch, error) {
	b := new(Batch)
	for _, c := range changes {
		w, err := newWaiting(c)
		if err != nil {
			return nil, err
		}
		b.all = append(b.all, w)
	}
	return b, nil
}

// Conditions are the keys of the documents whose versions Admit asks for.
func (b *Batch) Conditions() []string {
	keys := make(map[string]struct{})
	for _, w := range b.all {
		for key := range w.change.If {
			keys[key] = struct{}{}
		}
	}
	return slices.Collect(maps.Keys(keys))
}

// Admit decides which changes hold, one after the other, for a log of that size, and
// gives their entries the next indexes. version tells the versions of documents
// before the batch.
func (b *Batch) Admit(size uint64, version func(key string) uint64) {
	b.entries, b.docs = make([]*waiting, 0, len(b.all)), nil
	for _, w := range b.all {
		if w.probe {
			continue
		}
		if w.err = b.conflict(w.change.If, version); w.err != nil {
			continue
		}
		w.record.Index = size + uint64(len(b.entries))
		b.entries = append(b.entries, w)
		if b.docs == nil && len(w.change.Put)+len(w.change.Delete) > 0 {
			b.docs = make(map[string]document)
		}
		for key, value := range w.change.Put {
			b.docs[key] = document{value, w.record.Index + 1}
		}
		for _, key := range w.change.Delete {
			b.docs[key] = document{}
		}
	}
}

// conflict tells which precondition does not hold.
func (b *Batch) conflict(conditions map[string]uint64, version func(string) uint64) error {
	for key, want := range conditions {
		d, touched := b.docs[key]
		is := d.version
		if !touched {
			is = version(key)
		}
		if is != want {
			return fmt.Errorf("%w: %s has version %d, not %d", ledger.ErrConflict, key, is, want)
		}
	}
	return nil
}

// Len is the number of admitted entries.
func (b *Batch) Len() int { return len(b.entries) }

// Probe tells whether somebody wants to know if a change could be made.
func (b *Batch) Probe() bool {
	return slices.ContainsFunc(b.all, func(w *waiting) bool { return w.probe })
}

// Record is the i-th admitted entry.
func (b *Batch) Record(i int) ledger.Record { return b.entries[i].record }

// Hashes are those of the leaves.
func (b *Batch) Hashes() [][]byte {
	out := make([][]byte, 0, len(b.entries))
	for _, w := range b.entries {
		out = append(out, w.hash)
	}
	return out
}

// Documents is what the batch does to documents all in all.
func (b *Batch) Documents() (put []ledger.Document, deleted []string) {
	for key, d := range b.docs {
		if d.version == 0 {
			deleted = append(deleted, key)
		} else {
			put = append(put, ledger.Document{Key: key, Value: d.value, Version: d.version})
		}
	}
	slices.SortFunc(put, func(a, b ledger.Document) int { return cmp.Compare(a.Key, b.Key) })
	slices.Sort(deleted)
	return put, deleted
}

// answer tells the waiting. If the commit failed, everybody is told that, also who was
// kept out because of others in the batch.
func (b *Batch) answer(err error) {
	for _, w := range b.all {
		if err != nil {
			w.err = err
		}
		w.done <- w.err
	}
}

package ledgertest

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/ledger/docstore"
	"github.com/writ-mesh/writ/ca/ledger/hashtree"
)

// Memory is a store that forgets everything when the process ends, for tests of what
// uses a store.
type Memory struct {
	mu      sync.Mutex
	records []ledger.Record
	hashes  [][]byte
	tree    hashtree.Tree
	docs    *docstore.Store
	end     chan struct{}
	close   func()
}

// NewMemory returns an empty store.
func NewMemory() *Memory {
	m := &Memory{docs: docstore.New(), end: make(chan struct{})}
	m.close = sync.OnceFunc(func() { close(m.end) })
	return m
}

// Commit implements ledger.Store.
func (m *Memory) Commit(_ context.Context, c ledger.Change) (uint64, error) {
	r, err := ledger.Encode(c)
	if err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for key, want := range c.If {
		if is := m.docs.Version(key); is != want {
			return 0, fmt.Errorf("%w: %s has version %d, not %d", ledger.ErrConflict, key, is, want)
		}
	}
	r.Index = uint64(len(m.records))
	put, deleted, err := r.Documents()
	if err != nil {
		return 0, err
	}
	hash := hashtree.Hash(r.Leaf)
	if m.tree, err = m.tree.Grown(hash); err != nil {
		return 0, err
	}
	m.records = append(m.records, r)
	m.hashes = append(m.hashes, hash)
	m.docs.Apply(put, deleted)
	return r.Index + 1, nil
}

// Head implements ledger.Log.
func (m *Memory) Head(context.Context) (ledger.Head, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.tree.Head()
}

// Each implements ledger.Log.
func (m *Memory) Each(_ context.Context, from uint64, f func(ledger.Record) error) error {
	m.mu.Lock()
	records := slices.Clone(m.records[min(from, uint64(len(m.records))):])
	m.mu.Unlock()
	for _, r := range records {
		if err := f(r); err != nil {
			return err
		}
	}
	return nil
}

func (m *Memory) leaves(_ context.Context, begin, end uint64) ([][]byte, error) {
	return m.hashes[begin:end], nil
}

// InclusionProof implements ledger.Log.
func (m *Memory) InclusionProof(ctx context.Context, index, size uint64) ([][]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.tree.Inclusion(ctx, m.leaves, index, size)
}

// ConsistencyProof implements ledger.Log.
func (m *Memory) ConsistencyProof(ctx context.Context, from, to uint64) ([][]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.tree.Consistency(ctx, m.leaves, from, to)
}

// Get implements ledger.Documents.
func (m *Memory) Get(_ context.Context, key string) (ledger.Document, error) { return m.docs.Get(key) }

// List implements ledger.Documents.
func (m *Memory) List(_ context.Context, prefix string) ([]ledger.Document, error) {
	return m.docs.List(prefix), nil
}

// Watch implements ledger.Documents.
func (m *Memory) Watch(ctx context.Context, prefix string, f func(ledger.Update) error) error {
	return m.docs.Watch(ctx, m.end, prefix, f)
}

// Check implements ledger.Store.
func (*Memory) Check(context.Context) error { return nil }

// Close implements ledger.Store.
func (m *Memory) Close() error {
	m.close()
	return nil
}

package ca

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/writ-mesh/writ/ca/ledger"
)

// countedStore counts what is asked of a ledger. What watches it waits for changes
// and counts once.
type countedStore struct {
	ledger.Store

	commits, checks, reads, watches prometheus.Counter
}

// counted counts what is asked of store from now on.
func counted(store ledger.Store, r prometheus.Registerer) ledger.Store {
	operations := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "writ_ca_ledger_operations_total", Help: "What was asked of the ledger: commit, check, read, or the begin of a watch.",
	}, []string{"operation"})
	r.MustRegister(operations)
	return &countedStore{
		Store: store, commits: operations.WithLabelValues("commit"), checks: operations.WithLabelValues("check"),
		reads: operations.WithLabelValues("read"), watches: operations.WithLabelValues("watch"),
	}
}

// uncounted is the store itself.
func uncounted(store ledger.Store) ledger.Store {
	if c, ok := store.(*countedStore); ok {
		return c.Store
	}
	return store
}

// Commit implements ledger.Store.
func (s *countedStore) Commit(ctx context.Context, c ledger.Change) (uint64, error) {
	s.commits.Inc()
	return s.Store.Commit(ctx, c)
}

// Check implements ledger.Store.
func (s *countedStore) Check(ctx context.Context) error {
	s.checks.Inc()
	return s.Store.Check(ctx)
}

// Head implements ledger.Log.
func (s *countedStore) Head(ctx context.Context) (ledger.Head, error) {
	s.reads.Inc()
	return s.Store.Head(ctx)
}

// Each implements ledger.Log.
func (s *countedStore) Each(ctx context.Context, from uint64, f func(ledger.Record) error) error {
	s.reads.Inc()
	return s.Store.Each(ctx, from, f)
}

// InclusionProof implements ledger.Log.
func (s *countedStore) InclusionProof(ctx context.Context, index, size uint64) ([][]byte, error) {
	s.reads.Inc()
	return s.Store.InclusionProof(ctx, index, size)
}

// ConsistencyProof implements ledger.Log.
func (s *countedStore) ConsistencyProof(ctx context.Context, from, to uint64) ([][]byte, error) {
	s.reads.Inc()
	return s.Store.ConsistencyProof(ctx, from, to)
}

// Get implements ledger.Documents.
func (s *countedStore) Get(ctx context.Context, key string) (ledger.Document, error) {
	s.reads.Inc()
	return s.Store.Get(ctx, key)
}

// List implements ledger.Documents.
func (s *countedStore) List(ctx context.Context, prefix string) ([]ledger.Document, error) {
	s.reads.Inc()
	return s.Store.List(ctx, prefix)
}

// Watch implements ledger.Documents.
func (s *countedStore) Watch(ctx context.Context, prefix string, f func(ledger.Update) error) error {
	s.watches.Inc()
	return s.Store.Watch(ctx, prefix, f)
}

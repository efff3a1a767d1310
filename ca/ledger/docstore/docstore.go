// Package docstore holds the documents of a store in memory and tells watchers
// what changes. The store decides what may change and sees to it that it lasts.
package docstore

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/writ-mesh/writ/ca/ledger"
)

// Store is what is known of the documents. It may be used concurrently.
type Store struct {
	mu       sync.Mutex
	docs     map[string]ledger.Document
	watchers map[*watcher]struct{}
}

type watcher struct {
	prefix string
	// changed are the keys that changed since the watcher looked last, so that one
	// who is slow costs no more than the documents have keys.
	changed map[string]struct{}
	wake    chan struct{}
}

// New returns an empty store.
func New() *Store {
	return &Store{docs: make(map[string]ledger.Document), watchers: make(map[*watcher]struct{})}
}

// Version is that of a document, 0 if it is not there.
func (s *Store) Version(key string) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.docs[key].Version
}

// Apply puts and deletes documents. Those of one call are seen together.
func (s *Store) Apply(put []ledger.Document, deleted []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range put {
		s.docs[d.Key] = d
		s.tell(d.Key)
	}
	for _, key := range deleted {
		if _, ok := s.docs[key]; ok {
			delete(s.docs, key)
			s.tell(key)
		}
	}
}

// Replace makes docs all that there is.
func (s *Store) Replace(docs []ledger.Document) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.docs
	s.docs = make(map[string]ledger.Document, len(docs))
	for _, d := range docs {
		s.docs[d.Key] = d
		if old[d.Key].Version != d.Version {
			s.tell(d.Key)
		}
		delete(old, d.Key)
	}
	for key := range old {
		s.tell(key)
	}
}

// tell marks a key as changed. The lock is held.
func (s *Store) tell(key string) {
	for w := range s.watchers {
		if !strings.HasPrefix(key, w.prefix) {
			continue
		}
		w.changed[key] = struct{}{}
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

// Get returns a document or ledger.ErrNoDocument.
func (s *Store) Get(key string) (ledger.Document, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, ok := s.docs[key]
	if !ok {
		return ledger.Document{}, ledger.ErrNoDocument
	}
	return d, nil
}

// List returns the documents whose keys begin with prefix, in their order.
func (s *Store) List(prefix string) []ledger.Document {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.list(prefix)
}

func (s *Store) list(prefix string) []ledger.Document {
	var out []ledger.Document
	for key, d := range s.docs {
		if strings.HasPrefix(key, prefix) {
			out = append(out, d)
		}
	}
	sortDocuments(out)
	return out
}

func sortDocuments(docs []ledger.Document) {
	slices.SortFunc(docs, func(a, b ledger.Document) int { return cmp.Compare(a.Key, b.Key) })
}

// Watch is that of ledger.Documents. It ends too when stop is closed, with an
// error that wraps ledger.ErrUnavailable.
func (s *Store) Watch(ctx context.Context, stop <-chan struct{}, prefix string, f func(ledger.Update) error) error {
	w := &watcher{prefix: prefix, changed: make(map[string]struct{}), wake: make(chan struct{}, 1)}
	s.mu.Lock()
	s.watchers[w] = struct{}{}
	u := ledger.Update{Put: s.list(prefix)}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.watchers, w)
	}()
	for {
		if err := f(u); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-stop:
			return fmt.Errorf("%w: it is closed", ledger.ErrUnavailable)
		case <-w.wake:
		}
		u = s.since(w)
	}
}

func (s *Store) since(w *watcher) ledger.Update {
	s.mu.Lock()
	defer s.mu.Unlock()
	var u ledger.Update
	for key := range w.changed {
		if d, ok := s.docs[key]; ok {
			u.Put = append(u.Put, d)
		} else {
			u.Deleted = append(u.Deleted, key)
		}
	}
	clear(w.changed)
	sortDocuments(u.Put)
	slices.Sort(u.Deleted)
	return u
}

package docstore

import (
	"context"
	"fmt"
	"sync"

	"github.com/writ-mesh/writ/ca/ledger"
)

// Mark is how far the documents in memory have come in a log, for those who wait until
// that is far enough.
type Mark struct {
	mu   sync.Mutex
	at   uint64
	any  bool
	step chan struct{} // closed at the next step
}

// NewMark returns one that has come nowhere, not even to the beginning.
func NewMark() *Mark { return &Mark{step: make(chan struct{})} }

// Set moves it.
func (m *Mark) Set(at uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.at, m.any = at, true
	close(m.step)
	m.step = make(chan struct{})
}

// Reach waits until it is at least at. It ends too when stop is closed, with an error
// that wraps ledger.ErrUnavailable.
func (m *Mark) Reach(ctx context.Context, at uint64, stop <-chan struct{}) error {
	for {
		m.mu.Lock()
		there, step := m.any && m.at >= at, m.step
		m.mu.Unlock()
		if there {
			return nil
		}
		select {
		case <-step:
		case <-stop:
			return fmt.Errorf("%w: it is closed", ledger.ErrUnavailable)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

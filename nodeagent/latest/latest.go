// Package latest holds a value that one side replaces and others wait for. Only
// the newest value counts; nobody sees every one.
package latest

import "sync"

// Value is safe for concurrent use; the zero Value holds the zero T.
type Value[T any] struct {
	mu      sync.Mutex
	v       T
	changed chan struct{}
}

// Get returns the value and a channel that is closed when it is replaced.
func (l *Value[T]) Get() (T, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.changed == nil {
		l.changed = make(chan struct{})
	}
	return l.v, l.changed
}

// Set replaces the value.
func (l *Value[T]) Set(v T) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.v = v
	if l.changed != nil {
		close(l.changed)
	}
	l.changed = make(chan struct{})
}

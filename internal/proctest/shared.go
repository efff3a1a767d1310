package proctest

import (
	"sync"
	"testing"
)

// Shared is a program that takes long to start and that tests which run at the same
// time may use together. Its zero value is ready for use.
type Shared[T any] struct {
	mu    sync.Mutex
	users int // besides the test that started it
	left  sync.Cond
	on    bool
	value T
}

// Get starts it by start, unless it runs. It ends with the test that started it, whose
// cleanup waits for all others that got it meanwhile; who comes later starts it again.
// It is for tests side by side that have called Parallel before: a test that uses what its
// own subtest started would wait for itself.
func (s *Shared[T]) Get(t testing.TB, start func(testing.TB) T) T {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock() // also if start ends the test
	if s.on {
		s.users++
		t.Cleanup(func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.users--
			s.left.Signal()
		})
		return s.value
	}
	s.value, s.left.L = start(t), &s.mu
	s.on = true
	t.Cleanup(func() { // before those of start
		s.mu.Lock()
		defer s.mu.Unlock()
		for s.users > 0 {
			s.left.Wait()
		}
		s.on = false
	})
	return s.value
}

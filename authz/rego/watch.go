package rego

import (
	"runtime/metrics"
	"sync"
	"sync/atomic"
	"time"

	"github.com/open-policy-agent/opa/v1/topdown"
)

const (
	// patience is how long an evaluation goes on unwatched: nearly all have ended by
	// then.
	patience = 10 * time.Millisecond
	// interval is how often the heap is looked at from then on.
	interval = 5 * time.Millisecond
	// heapMetric counts live objects and those that are not swept yet. Reading it
	// takes a microsecond and stops nothing.
	heapMetric = "/memory/classes/heap/objects:bytes"
)

// watch cancels an evaluation that takes longer than it may, or while which the heap
// grows by more than it may. Go does not say who took memory: of several evaluations
// that take long at that moment all are cancelled, the one at fault among them. All of
// it is one timer, and nothing else until that fires for the first time.
type watch struct {
	cancel topdown.Cancel
	// overdue is closed when an evaluation that was cancelled has not ended.
	overdue  chan struct{}
	deadline time.Time // zero for none
	memory   uint64    // bytes by which the heap may grow, 0 for any

	mu      sync.Mutex
	timer   *time.Timer
	watched bool
	base    uint64
	why     error
	state   watchState
}

type watchState int

const (
	stateRunning watchState = iota
	stateEnded
	stateAbandoned
)

func newWatch(limit time.Duration, memory int64) *watch {
	w := &watch{cancel: topdown.NewCancel(), overdue: make(chan struct{}), memory: uint64(max(memory, 0))}
	first := patience
	switch {
	case limit > 0:
		w.deadline = time.Now().Add(limit)
		first = min(first, limit)
	case memory <= 0:
		return w
	}
	w.mu.Lock()
	w.timer = time.AfterFunc(first, w.tick)
	w.mu.Unlock()
	return w
}

// tick looks at clock and heap, and comes again.
func (w *watch) tick() {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.state != stateRunning:
		return
	case w.why != nil:
		close(w.overdue)
		return
	}
	left := interval
	if !w.deadline.IsZero() {
		left = min(left, time.Until(w.deadline))
	}
	heap := heapBytes()
	if !w.watched {
		w.watched, w.base = true, heap
	}
	switch {
	case left <= 0:
		w.why = ErrTimeout
	case w.memory > 0 && heap > w.base+w.memory:
		w.why = ErrMemory
	}
	if w.why != nil {
		w.cancel.Cancel()
		left = grace
	}
	w.timer.Reset(left)
}

func heapBytes() uint64 {
	s := []metrics.Sample{{Name: heapMetric}}
	metrics.Read(s)
	if s[0].Value.Kind() != metrics.KindUint64 {
		return 0
	}
	return s[0].Value.Uint64()
}

func (w *watch) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.timer != nil {
		w.timer.Stop()
	}
}

// reason is why the evaluation was cancelled.
func (w *watch) reason() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.why == nil {
		return ErrTimeout // the caller's own deadline
	}
	return w.why
}

// ended says that the evaluation is over, and gives whether it had been abandoned.
func (w *watch) ended() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	was := w.state
	w.state = stateEnded
	return was == stateAbandoned
}

// abandon leaves an evaluation that does not end to itself, and counts it, unless it
// is over meanwhile.
func (w *watch) abandon(stuck *atomic.Int64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.state != stateRunning {
		return false
	}
	w.state = stateAbandoned
	stuck.Add(1)
	return true
}

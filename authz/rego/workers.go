package rego

import (
	"context"
	"runtime"
	"sync"
	"time"
)

// Workers are goroutines that evaluate, one policy at a time each. Rego needs a deep
// stack, and they keep theirs: a new goroutine spends a third of an evaluation on
// growing one. What finds none of them idle runs on a new goroutine, so the nil
// Workers are as good, and slower.
type Workers struct{ jobs chan func() }

// NewWorkers makes workers, which work while Run does.
func NewWorkers() *Workers { return &Workers{jobs: make(chan func())} }

// Run starts as many workers as can be of use and stops them when ctx ends. It does
// not wait for one whose evaluation does not end.
func (w *Workers) Run(ctx context.Context) error {
	var ready sync.WaitGroup
	for range 4 * runtime.GOMAXPROCS(0) {
		ready.Add(1)
		go func() {
			ready.Done()
			for {
				select {
				case job := <-w.jobs:
					job()
				case <-ctx.Done():
					return
				}
			}
		}()
	}
	ready.Wait()
	<-ctx.Done()
	return nil
}

// Eval is Program.Eval on an idle worker.
func (w *Workers) Eval(ctx context.Context, p *Program, in *Input, limit time.Duration) (Decision, error) {
	return p.evalOn(ctx, w, in, limit)
}

func (w *Workers) start(job func()) {
	if w != nil {
		select {
		case w.jobs <- job:
			return
		default:
		}
	}
	go job()
}

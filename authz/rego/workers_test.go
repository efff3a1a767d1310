package rego

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Evaluations go to idle workers, to new goroutines if there are none, and the workers
// end with their context.
func TestWorkers(t *testing.T) {
	p := compile(t, "package x\nd if input.parsed_path[0] == \"ratings\"", "data.x.d")
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		w := NewWorkers()
		done := make(chan error)
		go func() { done <- w.Run(ctx) }()
		synctest.Wait() // all are idle
		var on sync.WaitGroup
		release := make(chan struct{})
		for range 1000 { // more than there are
			on.Add(1)
			w.start(func() { on.Done(); <-release })
		}
		on.Wait()
		close(release)
		synctest.Wait()
		for range 20 {
			d, err := w.Eval(ctx, p, input(t, request(), InputOptions{}), time.Second)
			if err != nil || !d.Allowed {
				t.Fatalf("%v, %v", d, err)
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		// The bubble ends only if all workers do.
	})
}

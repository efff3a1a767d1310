package main

import (
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/internal/stoptest"
)

// TestNoRefusalDiesWithItsProcess kills the authz that is shipped while many callers ask
// it: each refusal that a caller has seen is on disk, though no batch is due for a
// minute, and in the sink when it has started again.
func TestNoRefusalDiesWithItsProcess(t *testing.T) {
	t.Parallel()
	// The wait is longer than a busy machine may stop the process for.
	h := newHome(t, filepath.Join(t.TempDir(), "h"), "flush: 1m, refusal_wait: 1m")
	command := []string{stoptest.Shipped(t, "writ-authz"), "-config", h.config}
	p := proctest.Start(t, command[0], command[1:]...)
	defer p.Kill()
	connect(t, h, p).waits(t)
	const callers, enough = 8, 400
	var (
		wg   sync.WaitGroup
		all  atomic.Int64
		seen [callers][]string
	)
	for i := range callers {
		a := connect(t, h, p)
		wg.Go(func() {
			for {
				id, err := a.refusal()
				if err != nil {
					return // it has died
				}
				seen[i] = append(seen[i], id)
				if all.Add(1) == enough {
					p.Kill()
				}
			}
		})
	}
	wg.Wait()
	left := h.onDisk(t)
	var ids []string
	for _, some := range seen {
		for _, id := range some {
			if ids = append(ids, id); !left[id] {
				t.Errorf("the refusal %s was seen and is not on disk", id)
			}
		}
	}
	if len(ids) < enough {
		t.Fatalf("only %d refusals", len(ids))
	}
	if len(h.sinkLines()) > 0 {
		t.Error("a batch was due before its time, so that this shows nothing")
	}
	again := proctest.Start(t, command[0], command[1:]...)
	defer again.Kill()
	proctest.Eventually(t, killBudget, func() error { return h.arrived(ids) })
}

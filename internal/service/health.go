package service

import (
	"errors"
	"net/http"
	"sort"
	"strings"
	"sync"
)

var errStarting = errors.New("starting")

// Health collects the state of a service's subsystems. It is safe for concurrent
// use.
type Health struct {
	mu    sync.Mutex
	state map[string]error
}

// Register adds a subsystem, which is not ready until Set says so.
func (h *Health) Register(subsystem string) { h.Set(subsystem, errStarting) }

// Set records a subsystem's state; nil is ready.
func (h *Health) Set(subsystem string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.state == nil {
		h.state = make(map[string]error)
	}
	h.state[subsystem] = err
}

// Ready returns nil if every subsystem is ready, else an error that names those
// that are not and why.
func (h *Health) Ready() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var bad []string
	for name, err := range h.state {
		if err != nil {
			bad = append(bad, name+": "+err.Error())
		}
	}
	if len(bad) == 0 {
		return nil
	}
	sort.Strings(bad)
	return errors.New(strings.Join(bad, "; "))
}

func (h *Health) serveReady(w http.ResponseWriter, _ *http.Request) {
	if err := h.Ready(); err != nil {
		http.Error(w, "not ready: "+err.Error(), http.StatusServiceUnavailable)
		return
	}
	_, _ = w.Write([]byte("ready\n"))
}

package attest

import (
	"context"
	"log/slog"
	"sync"

	"google.golang.org/grpc/peer"
)

// StartTime and ParseStartTime are for tests.
var (
	StartTime      = startTime
	ParseStartTime = parseStartTime
)

// Calling is the context of a call by c.
func Calling(ctx context.Context, c Caller) context.Context {
	return peer.NewContext(ctx, &peer.Peer{AuthInfo: authInfo{caller: c}})
}

// Envoys is how many processes are held as Envoys.
func (a *Attestor) Envoys() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.envoys)
}

// Inspect asks the runtime at a socket about a container, for tests.
func Inspect(ctx context.Context, socket, id string) ([]string, error) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	c, err := newDocker(ctx, socket, &wg, slog.New(slog.DiscardHandler)).inspect(ctx, id)
	return c.facts, err
}

// ParseInspected is for tests.
func ParseInspected(data []byte, id string) ([]string, error) {
	c, err := parseInspected(data, id)
	return c.facts, err
}

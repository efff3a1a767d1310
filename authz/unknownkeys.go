package authz

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/writ-mesh/writ/authz/accesslog"
	pilotpb "github.com/writ-mesh/writ/proto/writ/pilot/v1"
)

const (
	// maxUnknownKeys bounds the places that are told to pilot at once.
	maxUnknownKeys = 1000
	// unknownKeysPause is between two calls: pilot looks at an issuer once a second.
	unknownKeysPause = 250 * time.Millisecond
	// unknownKeysTimeout is for one call.
	unknownKeysTimeout = 5 * time.Second
)

// unknownKeys tells pilot where Envoys refused tokens that no key verifies which they
// know. Envoys do not look for new keys themselves, and pilot sees no requests.
type unknownKeys struct {
	log  *slog.Logger
	wake chan struct{}

	mu sync.Mutex
	at map[refusedAt]struct{}
}

type refusedAt struct{ proxy, identity string }

func newUnknownKeys(log *slog.Logger) *unknownKeys {
	return &unknownKeys{log: log, wake: make(chan struct{}, 1), at: map[refusedAt]struct{}{}}
}

// see takes note of a report, and waits for nothing.
func (u *unknownKeys) see(r accesslog.Report) {
	if !r.UnknownKey() {
		return
	}
	place := refusedAt{identity: r.To}
	if place.identity == "" {
		place.proxy = r.Proxy // a gateway, or plain text
	}
	u.mu.Lock()
	if len(u.at) < maxUnknownKeys {
		u.at[place] = struct{}{}
	}
	u.mu.Unlock()
	select {
	case u.wake <- struct{}{}:
	default:
	}
}

func (u *unknownKeys) take() *pilotpb.ReportUnknownKeysRequest {
	u.mu.Lock()
	defer u.mu.Unlock()
	out := &pilotpb.ReportUnknownKeysRequest{}
	for place := range u.at {
		out.At = append(out.At, &pilotpb.UnknownKeys{Proxy: place.proxy, Identity: place.identity})
	}
	clear(u.at)
	return out
}

// follow tells pilot until ctx ends. What pilot cannot be told is forgotten: it looks at
// all issuers now and then anyway, and the next such token says it again.
func (u *unknownKeys) follow(ctx context.Context, pilot grpc.ClientConnInterface) error {
	client := pilotpb.NewKeySetsClient(pilot)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-u.wake:
		}
		if err := u.report(ctx, client); err != nil && ctx.Err() == nil {
			u.log.DebugContext(ctx, "pilot is not told that keys of tokens are unknown", slog.Any("error", err))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(unknownKeysPause):
		}
	}
}

func (u *unknownKeys) report(ctx context.Context, client pilotpb.KeySetsClient) error {
	ctx, cancel := context.WithTimeout(ctx, unknownKeysTimeout)
	defer cancel()
	_, err := client.ReportUnknownKeys(ctx, u.take())
	return err
}

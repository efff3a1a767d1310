package nodeagent

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"

	"github.com/writ-mesh/writ/internal/witness"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

const (
	// seenFile in the state directory has what was seen of the authority's ledger.
	seenFile = "ledger.json"
	// ledgerEvery is how often the authority is asked whether its ledger goes on from
	// there, besides at each connection: an agent in five thousand must not be heard.
	ledgerEvery = time.Hour
	// ledgerRetry is how long to wait after it did not answer.
	ledgerRetry = 30 * time.Second
)

// openSeen reads what was seen of the ledger. A damaged file is kept aside: it may be
// evidence, and the agent goes on without it.
func (a *agent) openSeen(ctx context.Context) {
	path := filepath.Join(a.cfg.State, seenFile)
	seen, err := witness.Load(path)
	if err != nil {
		aside := path + ".corrupt"
		a.rt.Log.ErrorContext(ctx, "what was seen of the authority's ledger cannot be used, and begins anew", slog.Any("error", err), slog.String("kept_in", aside))
		if err := os.Rename(path, aside); err != nil {
			a.rt.Log.ErrorContext(ctx, "the file stays where it is", slog.Any("error", err))
		}
	}
	a.setSeen(seen)
}

func (a *agent) setSeen(s witness.Seen) {
	a.seen.Set(s)
	a.metrics.setLedger(s.Size, s.Contradiction != nil)
}

// watchLedger asks the authority at each connection whether its ledger goes on from
// what was seen of it, until ctx ends. A contradiction is told and stays told; the agent
// goes on, since it cannot know which of the two is right.
func (a *agent) watchLedger(ctx context.Context, conn grpc.ClientConnInterface) error {
	client := capb.NewWitnessClient(conn)
	for {
		wait := ledgerEvery/2 + rand.N(ledgerEvery)
		if err := a.lookAtLedger(ctx, client); err != nil {
			wait = ledgerRetry/2 + rand.N(ledgerRetry)
			a.rt.Log.DebugContext(ctx, "the authority's ledger was not looked at", slog.Any("error", err), slog.Duration("retry_in", wait))
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-a.connected:
		case <-timer.C:
		}
		timer.Stop()
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

func (a *agent) lookAtLedger(ctx context.Context, client capb.WitnessClient) error {
	before, _ := a.seen.Get()
	answer, err := client.ProveContinuation(ctx, &capb.ProveContinuationRequest{Size: before.Size}, grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	seen, contradiction := before.Take(answer, time.Now())
	switch {
	case contradiction != nil:
		a.rt.Log.ErrorContext(ctx, "THE AUTHORITY'S LEDGER CONTRADICTS what this node saw of it; both checkpoints are in the file", slog.Any("contradiction", contradiction), slog.String("file", filepath.Join(a.cfg.State, seenFile)))
	case seen.Restored != nil && (before.Restored == nil || *before.Restored != *seen.Restored):
		a.rt.Log.WarnContext(ctx, "the authority's ledger was restored from a backup", slog.String("ledger", seen.String()))
	}
	if err := seen.Save(filepath.Join(a.cfg.State, seenFile)); err != nil {
		a.rt.Log.ErrorContext(ctx, "what was seen of the authority's ledger is not saved; after a restart this node knows less of it", slog.Any("error", err))
	}
	a.setSeen(seen)
	return nil
}

// sawAuthority has the ledger looked at.
func (a *agent) sawAuthority() {
	select {
	case a.connected <- struct{}{}:
	default:
	}
}

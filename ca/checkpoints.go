package ca

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/ledger/checkpoint"
	"github.com/writ-mesh/writ/internal/atomicfile"
	"github.com/writ-mesh/writ/internal/service"
)

// The files in the state directory that show that the ledger is the same as ever.
const (
	ledgerKeyFile        = checkpoint.KeyFile
	ledgerPublicFile     = checkpoint.PublicFile
	ledgerCheckpointFile = checkpoint.File
)

// checkpointEvery is how long an entry may be without a checkpoint on disk.
const checkpointEvery = 5 * time.Second

// checkpoints keeps the newest checkpoint on disk, where the next start compares
// it with the ledger. It is no part of an issuance.
type checkpoints struct {
	log    ledger.Log
	signer *checkpoint.Signer
	path   string
	kept   uint64 // the size of the log that the file is about
}

// openCheckpoints loads the ledger's key and finds out whether the ledger is the
// one of the checkpoint on disk, or a longer one.
func openCheckpoints(ctx context.Context, c Config, log ledger.Log) (*checkpoints, error) {
	signer, err := checkpoint.OpenKey(filepath.Join(c.State, ledgerKeyFile), c.TrustDomain+"/ledger")
	if err != nil {
		return nil, err
	}
	if signer.Log != c.TrustDomain+"/ledger" {
		return nil, fmt.Errorf("%s is the key of %s, and the configured trust domain is spiffe://%s; choose the state directory of that trust domain with -state",
			filepath.Join(c.State, ledgerKeyFile), signer.Log, c.TrustDomain)
	}
	if err := atomicfile.Write(filepath.Join(c.State, ledgerPublicFile), []byte(signer.Verifier+"\n"), 0o644); err != nil {
		return nil, fmt.Errorf("the ledger's public key: %w", err)
	}
	k := &checkpoints{log: log, signer: signer, path: filepath.Join(c.State, ledgerCheckpointFile)}
	text, err := os.ReadFile(k.path)
	if errors.Is(err, fs.ErrNotExist) {
		return k, nil
	}
	if err != nil {
		return nil, fmt.Errorf("the ledger's checkpoint: %w", err)
	}
	cp, err := checkpoint.Open(text, signer.Verifier)
	if err != nil {
		return nil, fmt.Errorf("%s: %w; restore it and %s from the same backup", k.path, err, ledgerKeyFile)
	}
	if err := checkpoint.Compare(ctx, log, cp.Head); err != nil {
		if errors.Is(err, ledger.ErrUnavailable) {
			return nil, err
		}
		return nil, fmt.Errorf("the ledger is not the one of %s: %w; restore the ledger from a backup (writ certs verify-log tells more), or move that file away to go on with what there is", k.path, err)
	}
	k.kept = cp.Size
	return k, nil
}

// run keeps the file up to date until ctx ends.
func (k *checkpoints) run(ctx context.Context, log *slog.Logger) error {
	return service.Every(ctx, checkpointEvery, func(time.Time) { k.tryKeep(ctx, log) })
}

// tryKeep says so if no checkpoint can be kept: an older one serves as well, for less.
func (k *checkpoints) tryKeep(ctx context.Context, log *slog.Logger) {
	if err := k.keep(ctx); err != nil && ctx.Err() == nil {
		log.WarnContext(ctx, "the ledger's checkpoint cannot be kept; the next start compares the ledger with an older one", slog.Any("error", err))
	}
}

// keep writes a checkpoint of the ledger as it is now, if that is news.
func (k *checkpoints) keep(ctx context.Context) error {
	head, err := k.log.Head(ctx)
	if err != nil || head.Size == k.kept {
		return err
	}
	text, err := k.signer.Sign(head)
	if err != nil {
		return err
	}
	if err := atomicfile.Write(k.path, text, 0o600); err != nil {
		return err
	}
	k.kept = head.Size
	return nil
}

package ca

import (
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"

	"google.golang.org/grpc"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/ledger/checkpoint"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// ledgerServer implements writ.ca.v1.Ledger.
type ledgerServer struct {
	capb.UnimplementedLedgerServer

	store  ledger.Store
	signer *checkpoint.Signer
	audit  func(ctx context.Context, method string, err error, attrs ...slog.Attr)
}

// GetCheckpoint implements writ.ca.v1.Ledger.
func (s *ledgerServer) GetCheckpoint(ctx context.Context, _ *capb.GetCheckpointRequest) (*capb.GetCheckpointResponse, error) {
	head, err := s.store.Head(ctx)
	if err != nil {
		return nil, reading(ctx, err)
	}
	text, err := s.signer.Sign(head)
	if err != nil {
		return nil, reading(ctx, err)
	}
	return &capb.GetCheckpointResponse{Checkpoint: string(text), Verifier: s.signer.Verifier}, nil
}

// ReadEntries implements writ.ca.v1.Ledger.
func (s *ledgerServer) ReadEntries(req *capb.ReadEntriesRequest, stream grpc.ServerStreamingServer[capb.LedgerEntry]) error {
	ctx := stream.Context()
	err := s.store.Each(ctx, req.GetFrom(), func(r ledger.Record) error {
		e := &capb.LedgerEntry{Index: r.Index, Entry: r.Leaf}
		if req.GetDocuments() {
			e.Documents = r.Values
		}
		return stream.Send(e)
	})
	s.audit(ctx, "ReadEntries", err, slog.Bool("documents", req.GetDocuments()))
	if err != nil {
		return reading(ctx, err)
	}
	return nil
}

// ReadDocuments implements writ.ca.v1.Ledger.
func (s *ledgerServer) ReadDocuments(_ *capb.ReadDocumentsRequest, stream grpc.ServerStreamingServer[capb.LedgerDocument]) error {
	ctx := stream.Context()
	docs, err := s.store.List(ctx, "")
	s.audit(ctx, "ReadDocuments", err)
	if err != nil {
		return reading(ctx, err)
	}
	for _, d := range docs {
		sum := sha256.Sum256(d.Value)
		if err := stream.Send(&capb.LedgerDocument{Key: d.Key, Sha256: sum[:], Version: d.Version}); err != nil {
			return err
		}
	}
	return nil
}

// ProveInclusion implements writ.ca.v1.Ledger.
func (s *ledgerServer) ProveInclusion(ctx context.Context, req *capb.ProveInclusionRequest) (*capb.LedgerProof, error) {
	p, err := s.store.InclusionProof(ctx, req.GetIndex(), req.GetSize())
	if err != nil {
		return nil, reading(ctx, err)
	}
	return &capb.LedgerProof{Hashes: p}, nil
}

// ProveConsistency implements writ.ca.v1.Ledger.
func (s *ledgerServer) ProveConsistency(ctx context.Context, req *capb.ProveConsistencyRequest) (*capb.LedgerProof, error) {
	p, err := s.store.ConsistencyProof(ctx, req.GetFrom(), req.GetTo())
	if err != nil {
		return nil, reading(ctx, err)
	}
	return &capb.LedgerProof{Hashes: p}, nil
}

// reading makes a refusal of an error of reading the ledger.
func reading(ctx context.Context, err error) *refusal {
	switch {
	case ctx.Err() != nil:
		return refuse(gone, "the caller went away").because(err)
	case errors.Is(err, ledger.ErrNoEntry):
		return refuse(invalid, "%v", err)
	case errors.Is(err, ledger.ErrUnavailable):
		return refuse(unavailable, "the ledger cannot be read at the moment; see the authority's log").because(err)
	}
	return refuse(internal, "the ledger cannot be read; see the authority's log").because(err)
}

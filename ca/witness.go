package ca

import (
	"context"
	"errors"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/internal/rpc"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// witnessServer implements writ.ca.v1.Witness. Others remember what it says of the
// log, and ask whether that is still true.
type witnessServer struct {
	capb.UnimplementedWitnessServer

	a *Authority
}

func (*witnessServer) methods() rpc.Methods {
	return rpc.Methods{capb.Witness_ProveContinuation_FullMethodName: rpc.Or(rpc.AnyNode(), rpc.AnyService(services()...))}
}

// ProveContinuation implements writ.ca.v1.Witness.
func (s *witnessServer) ProveContinuation(ctx context.Context, req *capb.ProveContinuationRequest) (*capb.ProveContinuationResponse, error) {
	head, err := s.a.store.Head(ctx)
	if err != nil {
		return nil, reading(ctx, err)
	}
	text, err := s.a.signer.Sign(head)
	if err != nil {
		return nil, reading(ctx, err)
	}
	resp := &capb.ProveContinuationResponse{Checkpoint: string(text), Verifier: s.a.signer.Verifier}
	if size := req.GetSize(); size <= head.Size {
		if resp.Consistency, err = s.a.store.ConsistencyProof(ctx, size, head.Size); err != nil {
			return nil, reading(ctx, err)
		}
	}
	index, there := s.a.lost.before(min(req.GetSize(), head.Size))
	if !there {
		return resp, nil
	}
	if resp.Restored, err = entryAt(ctx, s.a.store, index); err == nil {
		resp.Inclusion, err = s.a.store.InclusionProof(ctx, index, head.Size)
	}
	if err != nil {
		return nil, reading(ctx, err)
	}
	return resp, nil
}

func entryAt(ctx context.Context, log ledger.Log, index uint64) (out *capb.LedgerEntry, err error) {
	enough := errors.New("enough")
	err = log.Each(ctx, index, func(r ledger.Record) error {
		out = &capb.LedgerEntry{Index: r.Index, Entry: append([]byte(nil), r.Leaf...)}
		return enough
	})
	if err != nil && !errors.Is(err, enough) {
		return nil, err
	}
	return out, nil
}

// statement signs lines as the authority's word. An authority without a key for that,
// as in tests of a part, says nothing.
func (a *Authority) statement(kind string, lines ...string) (string, error) {
	if a.signer == nil {
		return "", nil
	}
	text, err := a.signer.Statement(kind, lines...)
	return string(text), err
}

package ca

import (
	"context"
	"errors"
	"time"

	"github.com/writ-mesh/writ/ca/nodeattest"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// proofRefused is all that a stranger learns about a proof; the reason is in the
// log.
const proofRefused = "the proof of who joins is not taken; the authority's log has the reason"

// joiners takes each kind of proof to the joiner that knows it.
type joiners struct {
	token  tokenJoiner
	attest *nodeattest.Attestor
}

// prove implements joiner.
func (j joiners) prove(ctx context.Context, req *capb.JoinRequest) (entrant, error) {
	var got nodeattest.Entrant
	var err error
	e := entrant{}
	switch p := req.GetProof().(type) {
	case *capb.JoinRequest_KubernetesToken:
		e.requester = "kubernetes"
		got, err = j.attest.Kubernetes(ctx, p.KubernetesToken)
	case *capb.JoinRequest_X509:
		e.requester = "x509"
		got, err = j.attest.X509(nodeattest.X509Proof{
			Chain: p.X509.GetChain(), Time: time.Unix(p.X509.GetTime(), 0), Signature: p.X509.GetSignature(),
		}, req.GetCsr())
	default:
		return j.token.prove(ctx, req)
	}
	if got.Requester != "" {
		e.requester, e.facts = got.Requester, got.Facts
	}
	switch {
	case ctx.Err() != nil:
		return e, refuse(gone, "the caller did not wait for the proof to be checked").because(err)
	case errors.Is(err, nodeattest.ErrUnavailable):
		return e, refuse(unavailable, "the proof cannot be checked now; try again").because(err)
	case err != nil:
		return e, refuse(denied, proofRefused).because(err)
	}
	e.id = got.ID
	return e, nil
}

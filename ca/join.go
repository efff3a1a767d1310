package ca

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-mesh/writ/ca/jointoken"
	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/internal/identity"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// tokenRefused is all that a stranger learns about a token.
const tokenRefused = "the join token is unknown, expired or already used; ask for a new one"

var (
	errTokenSecret  = errors.New("the token's secret does not match")
	errTokenExpired = errors.New("the token has expired")
)

// joiner is one way in which a node agent or a service of Writ that has no
// certificate yet proves who it is. It says who that is and no more: what may
// join at all is for Authority.issue to hold every joiner to.
type joiner interface {
	// prove looks at the proof in req, and at nothing else there, so that a
	// stranger costs little. Errors are refusals; the entrant has its requester
	// with them too.
	prove(ctx context.Context, req *capb.JoinRequest) (entrant, error)
}

// entrant is who joins.
type entrant struct {
	// id is what the proof is for.
	id spiffeid.ID
	// requester names the proof for the ledger and the log.
	requester string
	// record records the certificate and uses up the proof, both or neither. It is
	// nil for a proof that is good more than once.
	record recorder
}

// recorder returns once a certificate is durable in the ledger.
type recorder func(context.Context, ledger.Certificate) error

// services are those of Writ that have their certificates from here. The
// authority's own never leaves its process.
func services() []string { return []string{identity.Pilot, identity.Authz, identity.RateLimit} }

// joinable returns an error unless id may be had by joining: it is a node agent's
// of the trust domain or that of one of its services.
func (a *Authority) joinable(id spiffeid.ID) error {
	if !id.MemberOf(a.td) {
		return fmt.Errorf("%s is not in the trust domain %s", id, a.td.Name())
	}
	if _, node := identity.NodeOf(id); node {
		return nil
	}
	if name, ok := identity.ServiceOf(id); ok && slices.Contains(services(), name) {
		return nil
	}
	return fmt.Errorf("%s cannot join; joining is for node agents (%s/writ/node/NAME) and the services %s (%s/writ/NAME)", id, a.td.IDString(), strings.Join(services(), ", "), a.td.IDString())
}

// tokenJoiner takes one-time tokens (package jointoken).
type tokenJoiner struct{ a *Authority }

// prove implements joiner.
func (j tokenJoiner) prove(ctx context.Context, req *capb.JoinRequest) (entrant, error) {
	e := entrant{requester: "join-token"}
	token, err := jointoken.Parse(req.GetToken())
	if err != nil {
		return e, refuse(denied, tokenRefused).because(err)
	}
	kept, err := j.a.store.Token(ctx, token.ID)
	if err != nil {
		return e, recording(err)
	}
	if !token.Matches(kept.Hash) {
		return e, refuse(denied, tokenRefused).because(errTokenSecret)
	}
	if !j.a.now().Before(kept.ExpiresAt) {
		return e, refuse(denied, tokenRefused).because(errTokenExpired)
	}
	if e.id, err = spiffeid.FromString(kept.SPIFFEID); err != nil {
		return e, refuse(internal, "the join token cannot be read").because(err)
	}
	e.record = func(ctx context.Context, c ledger.Certificate) error { return j.a.store.RecordJoin(ctx, token.ID, c) }
	return e, nil
}

package ca

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-mesh/writ/ca/jointoken"
	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/internal/identity"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// tokenRefused is all that a stranger learns about a token.
const tokenRefused = "the join token is unknown, expired or already used; ask for a new one"

// tokenPrefix is that of the keys of join tokens in the ledger.
const tokenPrefix = "tokens/"

const (
	// forget is how long after its expiry an unused token is forgotten.
	forget = time.Hour
	// maxForgotten is how many of them are at once.
	maxForgotten = 100
)

// keptToken is what the ledger keeps of a join token: never the secret itself.
// Its key has the token's ID, which is no secret.
type keptToken struct {
	// Hash is that of the secret (see package jointoken).
	Hash []byte `json:"hash"`
	// SPIFFEID is the only identity that the token is good for.
	SPIFFEID  string    `json:"spiffe_id"`
	ExpiresAt time.Time `json:"expires_at"`
}

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
	// proof is the document of a proof that is good once, used up with the record
	// of the certificate; zero for a proof that is good more often.
	proof ledger.Document
	// facts are what the proof says besides, for the ledger.
	facts []string
}

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
	doc, err := j.a.store.Get(ctx, tokenPrefix+token.ID)
	switch {
	case errors.Is(err, ledger.ErrNoDocument):
		return e, refuse(denied, tokenRefused).because(err)
	case err != nil:
		return e, recording(err)
	}
	var kept keptToken
	if err := json.Unmarshal(doc.Value, &kept); err != nil {
		return e, refuse(internal, "the join token cannot be read").because(err)
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
	e.proof = doc
	return e, nil
}

// newToken is the change that adds a token, and drops those that were never used
// and that nobody can tell from unknown ones any more.
func (a *Authority) newToken(ctx context.Context, id string, t keptToken, now time.Time) (ledger.Change, error) {
	value, err := json.Marshal(t)
	if err != nil {
		return ledger.Change{}, refuse(internal, "no token could be made; see the authority's log").because(err)
	}
	key := tokenPrefix + id
	c := ledger.Change{
		If:    map[string]uint64{key: 0},
		Entry: ledger.Entry{Kind: ledger.TokenMade, Time: now, Subject: t.SPIFFEID, NotAfter: t.ExpiresAt},
		Put:   map[string][]byte{key: value},
	}
	old, err := a.store.List(ctx, tokenPrefix)
	if err != nil {
		return ledger.Change{}, recording(err)
	}
	for _, d := range old {
		var t keptToken
		if err := json.Unmarshal(d.Value, &t); err == nil && now.Sub(t.ExpiresAt) > forget && len(c.Delete) < maxForgotten {
			c.Delete = append(c.Delete, d.Key)
		}
	}
	return c, nil
}

package ca

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"

	"github.com/writ-mesh/writ/ca/jointoken"
	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/ledger/ledgertest"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// mustNotJoin are identities that no proof whatever is good for.
var mustNotJoin = []string{
	reviewsID,
	"spiffe://example.org/writ/ca",
	"spiffe://example.org/writ/node",
	"spiffe://example.org/writ/other",
	"spiffe://example.org/writ/node/n1/x",
	"spiffe://example.org/somebody",
	"spiffe://example.org",
	"spiffe://" + foreignTD + "/writ/node/n1",
	"spiffe://" + foreignTD + "/writ/pilot",
	"spiffe://" + foreignTD + "/ns/default/sa/reviews",
}

// willing is a joiner that believes everybody to be one and the same.
type willing struct{ id spiffeid.ID }

func (w willing) prove(context.Context, *capb.JoinRequest) (entrant, error) {
	return entrant{id: w.id, requester: "willing"}, nil
}

// Only node agents and services join, whatever a joiner says.
func TestWhoMayJoin(t *testing.T) {
	_, der := request(t, "")
	join := func(t *testing.T, id string) (ledger.Store, error) {
		t.Helper()
		a := newAuthority(t, ledgertest.NewMemory(), time.Now)
		s := &server{a: a, joiner: willing{spiffeid.RequireFromString(id)}}
		_, err := s.Join(t.Context(), &capb.JoinRequest{Csr: der})
		return a.store, err
	}
	for _, id := range mustNotJoin {
		t.Run(id, func(t *testing.T) {
			store, err := join(t, id)
			wantCode(t, err, codes.PermissionDenied)
			if got := ledgertest.All(t, store); len(got) > 0 {
				t.Errorf("recorded: %v", got)
			}
		})
	}
	for _, id := range []string{nodeID, pilotID} {
		t.Run(id, func(t *testing.T) {
			store, err := join(t, id)
			if err != nil {
				t.Fatal(err)
			}
			if got := ledgertest.All(t, store); len(got) != 1 || got[0].SPIFFEID != id || got[0].Requester != "willing" {
				t.Errorf("recorded: %v", got)
			}
		})
	}
}

// A token that got into the ledger for another identity, by whatever way, buys
// nothing.
func TestTokenInTheLedgerForAnotherIdentity(t *testing.T) {
	_, der := request(t, "")
	for _, id := range mustNotJoin {
		t.Run(id, func(t *testing.T) {
			a := newAuthority(t, ledgertest.NewMemory(), time.Now)
			token, err := jointoken.New()
			if err != nil {
				t.Fatal(err)
			}
			kept := ledger.Token{ID: token.ID, Hash: token.Hash(), SPIFFEID: id, ExpiresAt: time.Now().Add(time.Hour)}
			if err := a.store.AddToken(t.Context(), kept); err != nil {
				t.Fatal(err)
			}
			_, err = (&server{a: a, joiner: tokenJoiner{a}}).Join(t.Context(), &capb.JoinRequest{Token: token.Reveal(), Csr: der})
			wantCode(t, err, codes.PermissionDenied)
			if got := ledgertest.All(t, a.store); len(got) > 0 {
				t.Errorf("recorded: %v", got)
			}
			if _, err := a.store.Token(t.Context(), token.ID); errors.Is(err, ledger.ErrNoToken) {
				t.Error("a refusal uses up the token")
			}
		})
	}
}

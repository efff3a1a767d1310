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
			if got := ledgertest.All(t, store); len(got) != 1 || got[0].Subject != id || got[0].Actor != "willing" || got[0].Request != kindJoin {
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
			kept := keptToken{Hash: token.Hash(), SPIFFEID: id, ExpiresAt: time.Now().Add(time.Hour)}
			c, err := a.newToken(t.Context(), token.ID, kept, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := a.store.Commit(t.Context(), c); err != nil {
				t.Fatal(err)
			}
			_, err = (&server{a: a, joiner: tokenJoiner{a}}).Join(t.Context(), &capb.JoinRequest{Proof: &capb.JoinRequest_Token{Token: token.Reveal()}, Csr: der})
			wantCode(t, err, codes.PermissionDenied)
			if got := ledgertest.All(t, a.store); len(got) != 1 || got[0].Kind != ledger.TokenMade {
				t.Errorf("recorded: %v", got)
			}
			if _, err := a.store.Get(t.Context(), tokenPrefix+token.ID); errors.Is(err, ledger.ErrNoDocument) {
				t.Error("a refusal uses up the token")
			}
		})
	}
}

// Tokens that were never used are forgotten some time after they expired.
func TestUnusedTokensAreForgotten(t *testing.T) {
	now := time.Now()
	a := newAuthority(t, ledgertest.NewMemory(), func() time.Time { return now })
	make1 := func() {
		t.Helper()
		if _, err := (&admin{a: a}).CreateJoinToken(t.Context(), &capb.CreateJoinTokenRequest{SpiffeId: nodeID}); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		make1()
	}
	for _, step := range []struct {
		later time.Duration
		want  int
	}{{0, 4}, {forget + 11*time.Minute, 1}} {
		now = now.Add(step.later)
		make1()
		docs, err := a.store.List(t.Context(), tokenPrefix)
		if err != nil || len(docs) != step.want {
			t.Errorf("%s later: %d tokens, want %d (%v)", step.later, len(docs), step.want, err)
		}
	}
}

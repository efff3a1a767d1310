package ca

import (
	"context"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/internal/rpc"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// TestFloodingNodeIsHeldBack, and the others are served as before; an administrator
// has no such bound.
func TestFloodingNodeIsHeldBack(t *testing.T) {
	h := start(t, func(c *Config) {
		c.PlacementWait = 0
		c.Limits.CallerRate, c.Limits.CallerBurst = 1, 5
	})
	_, der := request(t, "")
	bad, good := h.as(h.mint(nodeID)), h.as(h.mint("spiffe://example.org/writ/node/n2"))
	held := 0
	for range 40 {
		_, err := bad.Renew(t.Context(), &capb.RenewRequest{Csr: der})
		if err == nil {
			continue
		}
		wantCode(t, err, codes.ResourceExhausted)
		if wait := rpc.RetryAfter(err); wait <= 0 || wait > 10*time.Second {
			t.Errorf("told to wait %s", wait)
		}
		held++
	}
	if held < 20 {
		t.Errorf("%d of 40 were held back", held)
	}
	for range 5 {
		if _, err := good.Renew(t.Context(), &capb.RenewRequest{Csr: der}); err != nil {
			t.Errorf("another node: %v", err)
		}
	}
	for range 20 {
		h.mint(reviewsID)
	}
	// Who may not call at all is refused for that and uses nothing up.
	wantCode(t, second(h.as(h.mint(reviewsID)).Renew(t.Context(), &capb.RenewRequest{Csr: der})), codes.PermissionDenied)
}

func second[T any](_ T, err error) error { return err }

// TestFloodOfJoinsIsHeldBack: strangers, with whatever token, wait; nodes that have a
// certificate do not.
func TestFloodOfJoinsIsHeldBack(t *testing.T) {
	h := start(t, func(c *Config) { c.Limits.JoinRate, c.Limits.JoinBurst = 1, 5 })
	_, der := request(t, "")
	node, stranger := h.as(h.mint(nodeID)), h.as(nil)
	held := 0
	for range 40 {
		_, err := stranger.Join(t.Context(), &capb.JoinRequest{Csr: der, Proof: &capb.JoinRequest_Token{Token: "guess"}})
		if status.Code(err) == codes.ResourceExhausted {
			held++
		} else {
			wantCode(t, err, codes.PermissionDenied)
		}
	}
	if held < 20 {
		t.Errorf("%d of 40 were held back", held)
	}
	if _, err := node.Renew(t.Context(), &capb.RenewRequest{Csr: der}); err != nil {
		t.Errorf("a node: %v", err)
	}
}

// TestHeldBackIsCountedInTheLedger: one entry for a minute's flood.
func TestHeldBackIsCountedInTheLedger(t *testing.T) {
	r := newRefusals(nil, time.Now, newRuntime().Log)
	for range 1000 {
		r.count("Issue", limited)
	}
	e, some := r.summary()
	if !some || e.Kind != ledger.Refused || e.Detail["Issue limited"] != "1000" || e.Detail["count"] != "1000" {
		t.Errorf("%+v", e)
	}
	if len(r.entries) != 0 {
		t.Error("written down one by one")
	}
	(*refusals)(nil).count("Issue", limited)
}

// TestStreamsAreBounded for each caller.
func TestStreamsAreBounded(t *testing.T) {
	h := start(t, func(c *Config) { c.Limits.CallerStreams = 3 })
	ctx, cancel := context.WithTimeout(t.Context(), testBudget)
	defer cancel()
	client := h.as(h.mint(nodeID))
	for n := range 4 {
		stream, err := client.WatchBundle(ctx)
		if err == nil {
			_, err = stream.Recv()
		}
		if n < 3 && err != nil {
			t.Fatal(err)
		}
		if n == 3 {
			wantCode(t, err, codes.ResourceExhausted)
		}
	}
}

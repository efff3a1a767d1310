package ca

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/writ-mesh/writ/ca/ledger"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

func (h *harness) jwtKeys() []*capb.JWTKey {
	h.t.Helper()
	list, err := capb.NewJWTKeysClient(h.adminConn()).ListJWTKeys(h.t.Context(), &capb.ListJWTKeysRequest{})
	if err != nil {
		h.t.Fatal(err)
	}
	return list.GetKeys()
}

// A key that is dropped is in no bundle from then on, also after a restart; another one
// signs, and the ledger says who wanted it.
func TestDropJWTKey(t *testing.T) {
	t.Parallel()
	h := start(t, nil)
	first := h.jwtKeys()
	if len(first) != 1 || !first[0].GetActive() || !h.jwks().HasJWTAuthority(first[0].GetKid()) {
		t.Fatalf("keys: %v", first)
	}
	client := capb.NewJWTKeysClient(h.adminConn())
	_, err := client.DropJWTKey(t.Context(), &capb.DropJWTKeyRequest{Kid: "nobody's"})
	wantCode(t, err, codes.InvalidArgument)
	resp, err := client.DropJWTKey(t.Context(), &capb.DropJWTKeyRequest{Kid: first[0].GetKid()})
	if err != nil || resp.GetActive() == first[0].GetKid() {
		t.Fatalf("%v, %v", resp, err)
	}
	for range 2 {
		if got := h.jwtKeys(); len(got) != 1 || !got[0].GetActive() || got[0].GetKid() != resp.GetActive() {
			t.Errorf("keys: %v", got)
		}
		if set := h.jwks(); set.HasJWTAuthority(first[0].GetKid()) || !set.HasJWTAuthority(resp.GetActive()) {
			t.Errorf("the bundle has %v", set.JWTAuthorities())
		}
		h.restart()
	}
	told := false
	for _, r := range h.entries() {
		if e, err := r.Entry(); err == nil && e.Kind == ledger.Rotated && e.Subject == first[0].GetKid() && strings.HasPrefix(e.Actor, "admin uid=") {
			told = true
		}
	}
	if !told {
		t.Error("the ledger says nothing of it")
	}
}

package ca

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/writ-mesh/writ/internal/proctest"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

const compromised = capb.RevocationReason_REVOCATION_REASON_CA_COMPROMISE

func (h *harness) revokeRoot(keyID string) *capb.RevokeRootResponse {
	h.t.Helper()
	resp, err := h.roots().RevokeRoot(h.t.Context(), &capb.RevokeRootRequest{KeyId: keyID, Reason: compromised})
	if err != nil {
		h.t.Fatal(err)
	}
	return resp
}

// trusts lists the key ids of the roots in the bundle.
func trusts(st *capb.RootsStatus) string {
	var ids []string
	for _, r := range st.GetRoots() {
		ids = append(ids, r.GetKeyId())
	}
	return strings.Join(ids, " ")
}

// TestRevokeRoot: whatever part a root has, it is out of the bundle when the command
// ends, another one signs, and everybody is told.
func TestRevokeRoot(t *testing.T) {
	t.Parallel()
	manual := &capb.RotateRootRequest{Manual: true, Force: true}
	for name, tc := range map[string]struct {
		// before gives the root to revoke.
		before func(*harness) string
		// stays: the root that signed before goes on.
		stays bool
	}{
		"the one that signs": {before: func(h *harness) string { return activeOf(h.status()) }},
		"by its beginning":   {before: func(h *harness) string { return strings.ToUpper(activeOf(h.status())[:12]) }},
		"the old one, which signs": {before: func(h *harness) string {
			return h.rotate(manual).GetRotation().GetOldRoot()
		}},
		"the new one, which does not sign": {stays: true, before: func(h *harness) string {
			return h.rotate(manual).GetRotation().GetNewRoot()
		}},
		"the old one, which signs no more": {stays: true, before: func(h *harness) string {
			h.rotate(manual)
			h.rotate(manual)
			return h.step(capb.RotationStep_ROTATION_STEP_DRAINING).GetRotation().GetOldRoot()
		}},
		"the new one, which signs": {before: func(h *harness) string {
			h.rotate(manual)
			h.rotate(manual)
			return h.step(capb.RotationStep_ROTATION_STEP_DRAINING).GetRotation().GetNewRoot()
		}},
		"one that is out of the bundle": {stays: true, before: func(h *harness) string {
			h.mint(reviewsID)
			old := activeOf(h.status())
			h.rotate(&capb.RotateRootRequest{Force: true})
			h.step(0)
			return old
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := start(t, nil)
			feed, err := capb.NewRevocationFeedClient(h.connAs(h.mint(pilotID))).WatchRevocations(t.Context(), &capb.WatchRevocationsRequest{})
			if err == nil {
				_, err = feed.Recv()
			}
			if err != nil {
				t.Fatal(err)
			}
			keyID := tc.before(h)
			signed := activeOf(h.status())
			resp := h.revokeRoot(keyID)
			full := resp.GetRevocation().GetAuthority()
			st := h.status()
			if !strings.HasPrefix(full, strings.ToLower(keyID)) || strings.Contains(trusts(st), full) || len(st.GetRoots()) != 1 || st.GetRotation() != nil {
				t.Errorf("revoked %s: %v, the roots are %s, rotation %v", keyID, resp, trusts(st), st.GetRotation())
			}
			if activeOf(st) != resp.GetActive() || (resp.GetActive() == signed) != tc.stays {
				t.Errorf("%s signs, as is told, %s; before it was %s", activeOf(st), resp.GetActive(), signed)
			}
			for {
				l, err := feed.Recv()
				if err != nil {
					t.Fatal(err)
				}
				if l.GetSequence() < resp.GetSequence() {
					continue
				}
				if r := l.GetRevocations(); len(r) != 1 || r[0].GetAuthority() != full || r[0].GetSerial() != "" || r[0].GetSpiffeId() != "" || r[0].GetReason() != compromised || l.GetProblem() != "" {
					t.Errorf("everybody is told %v", l)
				}
				break
			}
			if again := h.revokeRoot(full); !again.GetAlready() || again.GetSequence() != resp.GetSequence() || activeOf(h.status()) != resp.GetActive() {
				t.Errorf("said twice: %v", again)
			}
		})
	}
}

// TestRevokedRootIsRefused: nobody gets in with a certificate of it, but who was
// connected gets another.
func TestRevokedRootIsRefused(t *testing.T) {
	t.Parallel()
	h := start(t, nil)
	node := h.mint(nodeID)
	live := h.as(node)
	_, csr := request(t, "")
	if _, err := live.Renew(t.Context(), &capb.RenewRequest{Csr: csr}); err != nil {
		t.Fatal(err)
	}
	w := h.watcher(pilotID)
	w.says(w.has(1).GetSequence(), activeOf(h.status()))
	began := time.Now()
	resp := h.revokeRoot(activeOf(h.status()))
	if b := resp.GetBehind(); len(b) != 1 || b[0] != pilotID {
		t.Errorf("behind are %v", b)
	}
	t.Logf("took %s", time.Since(began))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := h.as(node).Renew(ctx, &capb.RenewRequest{Csr: csr}); err == nil {
		t.Error("a new connection with a certificate of the revoked root came about")
	}
	proctest.Until(t, 10*time.Second, "over the connection from before there is a new certificate", func() bool {
		_, err := live.Renew(ctx, &capb.RenewRequest{Csr: csr})
		return err == nil
	})
}

func TestRootsThatCannotBeRevoked(t *testing.T) {
	t.Parallel()
	h := start(t, nil)
	for name, tc := range map[string]struct {
		req  *capb.RevokeRootRequest
		text string
	}{
		"nothing":   {&capb.RevokeRootRequest{}, "no authority"},
		"too short": {&capb.RevokeRootRequest{KeyId: activeOf(h.status())[:7]}, "8 digits"},
		"unknown":   {&capb.RevokeRootRequest{KeyId: "0123456789abcdef"}, "no authority"},
		"a reason":  {&capb.RevokeRootRequest{KeyId: activeOf(h.status()), Reason: 8}, "reason"},
	} {
		_, err := h.roots().RevokeRoot(t.Context(), tc.req)
		wantCode(t, err, codes.InvalidArgument)
		if !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if st := h.status(); len(st.GetRoots()) != 1 || st.GetLast() != nil {
		t.Errorf("something was changed: %v", st)
	}
}

// TestForeignRootsAreNotRevoked: what somebody else has to do is said, and nothing is
// changed.
func TestForeignRootsAreNotRevoked(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	top, other := newForeign(t, "root", nil, 24*time.Hour), newForeign(t, "other root", nil, 24*time.Hour)
	issuing := newForeign(t, "issuing", top, 12*time.Hour)
	plug(t, dir, issuing, nil, top, other)
	h := start(t, withFiles(dir))
	h.mint(reviewsID)
	for keyID, text := range map[string]string{issuing.id(): "under the root " + top.id(), top.id(): "not the authority's own", other.id(): "root-cert.pem"} {
		_, err := h.roots().RevokeRoot(t.Context(), &capb.RevokeRootRequest{KeyId: keyID})
		wantCode(t, err, codes.FailedPrecondition)
		if !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v, want %q", keyID, err, text)
		}
	}
	if got := h.bundle().X509Authorities(); len(got) != 2 || h.active() != top.id() {
		t.Errorf("%d roots, %s signs", len(got), h.active())
	}
}

package ca

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	keys "github.com/writ-mesh/writ/ca/jwtsvid"
	"github.com/writ-mesh/writ/internal/config"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// jwtRig is an authority with a pilot that places reviews on node n1 and ratings
// on n2, and what n1 may call.
func jwtRig(t *testing.T, change func(*Config)) (*harness, capb.JWTAuthorityClient) {
	t.Helper()
	pilot := newFakePilot(t)
	pilot.place("n1", reviewsID)
	pilot.place("n2", ratingsID)
	h := start(t, func(c *Config) {
		c.Pilot, c.PlacementWait = pilot.addr, config.Duration(200*time.Millisecond)
		if change != nil {
			change(c)
		}
	})
	n1 := capb.NewJWTAuthorityClient(h.connAs(h.mint(nodeID)))
	h.eventually("the placement arrives", func() bool {
		_, err := n1.IssueJWT(t.Context(), &capb.IssueJWTRequest{SpiffeId: reviewsID, Audiences: []string{"a"}})
		return err == nil
	})
	return h, n1
}

func (h *harness) jwks() *jwtbundle.Bundle {
	h.t.Helper()
	resp, err := h.admin().GetBundle(h.t.Context(), &capb.GetBundleRequest{})
	if err != nil {
		h.t.Fatal(err)
	}
	b, err := jwtbundle.Parse(td, resp.GetJwks())
	if err != nil {
		h.t.Fatal(err)
	}
	return b
}

// TestNodeGetsTokensOfWhatIsPlacedOnIt: the same right as for certificates, and
// nothing else of the request is believed.
func TestNodeGetsTokensOfWhatIsPlacedOnIt(t *testing.T) {
	t.Parallel()
	h, n1 := jwtRig(t, nil)
	resp, err := n1.IssueJWT(t.Context(), &capb.IssueJWTRequest{SpiffeId: reviewsID, Audiences: []string{"spiffe://example.org/ns/default/sa/ratings", "b"}})
	if err != nil {
		t.Fatal(err)
	}
	svid, err := jwtsvid.ParseAndValidate(resp.GetToken(), h.jwks(), []string{"b"})
	if err != nil {
		t.Fatal(err)
	}
	if life := time.Until(svid.Expiry); svid.ID.String() != reviewsID || len(svid.Audience) != 2 || life > 5*time.Minute || life < 4*time.Minute {
		t.Errorf("%s for %v, %s", svid.ID, svid.Audience, life)
	}
	if !resp.GetExpiresAt().AsTime().Equal(svid.Expiry) {
		t.Errorf("expiry %s of a token until %s", resp.GetExpiresAt().AsTime(), svid.Expiry)
	}
	one := []string{"a"}
	for _, tc := range []struct {
		name string
		req  *capb.IssueJWTRequest
		want codes.Code
	}{
		{"another node's", &capb.IssueJWTRequest{SpiffeId: ratingsID, Audiences: one}, codes.PermissionDenied},
		{"its own", &capb.IssueJWTRequest{SpiffeId: nodeID, Audiences: one}, codes.PermissionDenied},
		{"pilot", &capb.IssueJWTRequest{SpiffeId: pilotID, Audiences: one}, codes.PermissionDenied},
		{"foreign", &capb.IssueJWTRequest{SpiffeId: "spiffe://" + foreignTD + "/ns/default/sa/reviews", Audiences: one}, codes.PermissionDenied},
		{"nothing", &capb.IssueJWTRequest{Audiences: one}, codes.InvalidArgument},
		{"no audience", &capb.IssueJWTRequest{SpiffeId: reviewsID}, codes.InvalidArgument},
		{"empty audience", &capb.IssueJWTRequest{SpiffeId: reviewsID, Audiences: []string{""}}, codes.InvalidArgument},
		{"huge audience", &capb.IssueJWTRequest{SpiffeId: reviewsID, Audiences: []string{strings.Repeat("a", 4096)}}, codes.InvalidArgument},
		{"negative life", &capb.IssueJWTRequest{SpiffeId: reviewsID, Audiences: one, Ttl: durationpb.New(-time.Second)}, codes.InvalidArgument},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := n1.IssueJWT(t.Context(), tc.req)
			wantCode(t, err, tc.want)
		})
	}
	long, err := n1.IssueJWT(t.Context(), &capb.IssueJWTRequest{SpiffeId: reviewsID, Audiences: one, Ttl: durationpb.New(1000 * time.Hour)})
	if err != nil || time.Until(long.GetExpiresAt().AsTime()) > time.Hour {
		t.Errorf("until %s, %v", long.GetExpiresAt().AsTime(), err)
	}
	for name, id := range map[string]string{"workload": reviewsID, "service": pilotID, "the authority": "spiffe://example.org/writ/ca"} {
		_, err := capb.NewJWTAuthorityClient(h.connAs(h.mint(id))).IssueJWT(t.Context(), &capb.IssueJWTRequest{SpiffeId: reviewsID, Audiences: one})
		if wantCode(t, err, codes.PermissionDenied); t.Failed() {
			t.Errorf("caller: %s", name)
		}
	}
	_, err = capb.NewJWTAuthorityClient(h.connAs(nil)).IssueJWT(t.Context(), &capb.IssueJWTRequest{SpiffeId: reviewsID, Audiences: one})
	wantCode(t, err, codes.PermissionDenied)
}

// TestTokensOutliveRestarts: the keys in the bundle stay the same, and are in a
// file that nobody else can read.
func TestTokensOutliveRestarts(t *testing.T) {
	h, n1 := jwtRig(t, nil)
	resp, err := n1.IssueJWT(t.Context(), &capb.IssueJWTRequest{SpiffeId: reviewsID, Audiences: []string{"a"}})
	if err != nil {
		t.Fatal(err)
	}
	before := h.jwks()
	for range 3 {
		h.restart()
	}
	if after := h.jwks(); !after.Equal(before) {
		t.Error("the keys changed")
	}
	if _, err := jwtsvid.ParseAndValidate(resp.GetToken(), h.jwks(), []string{"a"}); err != nil {
		t.Error(err)
	}
	path := filepath.Join(h.config.State, jwtKeysFile)
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := h.stop(); err != nil {
		t.Fatal(err)
	}
	if err := Run(t.Context(), h.config, newRuntime()); err == nil || !strings.Contains(err.Error(), "0644") {
		t.Errorf("keys that others may have read: %v", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	h.run()
}

// TestNextKeyIsPushed: a watcher gets the next key before it signs, with a higher
// number, and tokens of the key before stay valid.
func TestNextKeyIsPushed(t *testing.T) {
	t.Parallel()
	h, n1 := jwtRig(t, func(c *Config) {
		c.JWT = JWTConfig{TTL: config.Duration(10 * time.Second), MaxTTL: config.Duration(10 * time.Second), KeyTTL: config.Duration(20 * time.Second)}
		// The key is eight seconds old, so that the next one is due in two.
		if err := os.MkdirAll(c.State, 0o700); err != nil {
			t.Fatal(err)
		}
		if _, err := keys.Open(t.Context(), c.jwtKeys(slog.New(slog.DiscardHandler)), time.Now().Add(-8*time.Second)); err != nil {
			t.Fatal(err)
		}
	})
	stream, err := h.as(h.mint(nodeID)).WatchBundle(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	first, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	old, err := n1.IssueJWT(t.Context(), &capb.IssueJWTRequest{SpiffeId: reviewsID, Audiences: []string{"a"}})
	if err != nil {
		t.Fatal(err)
	}
	second, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if second.GetSequence() <= first.GetSequence() || bytes.Equal(second.GetJwks(), first.GetJwks()) {
		t.Fatalf("%d after %d", second.GetSequence(), first.GetSequence())
	}
	b, err := jwtbundle.Parse(td, second.GetJwks())
	if err != nil || len(b.JWTAuthorities()) != 2 {
		t.Fatalf("%d keys, %v", len(b.JWTAuthorities()), err)
	}
	if svid, err := jwtsvid.ParseAndValidate(old.GetToken(), b, []string{"a"}); err != nil {
		t.Errorf("%v, %v", svid, err)
	}
}

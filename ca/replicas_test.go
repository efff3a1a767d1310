package ca

import (
	"crypto/x509"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-mesh/writ/ca/ledger/pgtest"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// replica starts an authority over the same database and with the same keys as
// another.
func replica(t *testing.T, of *harness) *harness {
	t.Helper()
	return start(t, func(c *Config) {
		c.Ledger = of.config.Ledger
		if err := os.Mkdir(c.State, 0o700); err != nil {
			t.Fatal(err)
		}
		files, err := os.ReadDir(of.config.State)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if !f.Type().IsRegular() || f.Name() == "lock" || f.Name() == ledgerCheckpointFile {
				continue
			}
			if err := os.WriteFile(filepath.Join(c.State, f.Name()), mustRead(t, filepath.Join(of.config.State, f.Name())), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// Two authorities share a ledger: a token that one makes is good at the other, once;
// each knows what the other issued; one goes on without the other; without the
// database nothing is issued, and with it all goes on by itself.
func TestReplicasShareALedger(t *testing.T) {
	server := pgtest.Start(t)
	url := server.Schema(t)
	a := start(t, func(c *Config) { c.Ledger.Postgres = url })
	if _, err := os.Stat(filepath.Join(a.config.State, ledgerFile)); !os.IsNotExist(err) {
		t.Errorf("there is a ledger in the state directory too: %v", err)
	}
	b := replica(t, a)
	token := a.token(nodeID)
	_, der := request(t, "")
	join := func(h *harness) error {
		_, err := h.as(nil).Join(t.Context(), &capb.JoinRequest{Proof: &capb.JoinRequest_Token{Token: token}, Csr: der})
		return err
	}
	if err := join(b); err != nil {
		t.Fatal(err)
	}
	wantCode(t, join(a), codes.PermissionDenied)
	var wg sync.WaitGroup
	for _, h := range []*harness{a, b} {
		wg.Go(func() {
			for range 10 {
				h.mint(reviewsID)
			}
		})
	}
	wg.Wait()
	for _, h := range []*harness{a, b} {
		if n := len(h.ledger(&capb.ListCertificatesRequest{SpiffeId: reviewsID})); n != 20 {
			t.Errorf("a replica knows of %d certificates, want 20", n)
		}
	}
	if one, other := a.checkpoint(), b.checkpoint(); one.Log != other.Log {
		t.Errorf("checkpoints of %s and %s", one.Log, other.Log)
	}
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	b.mint(reviewsID)
	server.Stop()
	_, err := b.admin().Mint(t.Context(), &capb.MintRequest{SpiffeId: reviewsID, Csr: der})
	wantCode(t, err, codes.Unavailable)
	if text := status.Convert(err).Message(); strings.Contains(text, "PostgreSQL") {
		t.Errorf("the caller learns: %s", text)
	}
	server.Restart(t)
	b.eventually("it issues again", func() bool {
		_, err := b.admin().Mint(t.Context(), &capb.MintRequest{SpiffeId: reviewsID, Csr: der})
		return err == nil
	})
	a.run() // the checkpoint that it kept is that of the ledger
}

// One authority replaces the root. Another one over the same ledger signs nothing
// under the root of before from the moment on that the new one is active, not even
// if it cannot go on; with the new root's key it goes on by itself.
func TestReplicasFollowTheRoots(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t)
	url := server.Schema(t)
	a := start(t, func(c *Config) { c.Ledger.Postgres = url; c.Listen = "" })
	b := replica(t, a)
	old := activeOf(a.status())
	a.rotate(&capb.RotateRootRequest{Manual: true})
	if got := activeOf(b.status()); got != old {
		t.Fatalf("root %s signs, want %s", got, old)
	}
	b.mint(reviewsID)
	a.rotate(&capb.RotateRootRequest{Manual: true})
	fresh := activeOf(a.step(capb.RotationStep_ROTATION_STEP_DRAINING))
	if fresh == old {
		t.Fatal("the old root signs")
	}
	_, der := request(t, "")
	_, err := b.admin().Mint(t.Context(), &capb.MintRequest{SpiffeId: reviewsID, Csr: der})
	wantCode(t, err, codes.Unavailable)
	if err := os.CopyFS(filepath.Join(b.config.State, "roots"), os.DirFS(filepath.Join(a.config.State, "roots"))); err != nil {
		t.Fatal(err)
	}
	if err := filepath.WalkDir(filepath.Join(b.config.State, "roots"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			err = os.Chmod(path, 0o600)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	b.eventually("it issues under the new root", func() bool {
		resp, err := b.admin().Mint(t.Context(), &capb.MintRequest{SpiffeId: reviewsID, Csr: der})
		if err != nil {
			return false
		}
		cert, err := x509.ParseCertificate(resp.GetChain()[0])
		return err == nil && issuerOf(cert) == fresh
	})
}

package ca

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-mesh/writ/ca/ledger/pglog"
	"github.com/writ-mesh/writ/ca/ledger/pgtest"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// replica starts an authority over the same database and with the same keys as
// another; change may alter its configuration.
func replica(t *testing.T, of *harness, change ...func(*Config)) *harness {
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
		for _, f := range change {
			f(c)
		}
	})
}

// Two authorities share a ledger: a token that one makes is good at the other, once;
// each knows what the other issued; one goes on without the other; without the
// database nothing is issued, and with it all goes on by itself.
func TestReplicasShareALedger(t *testing.T) {
	t.Parallel()
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

// One authority replaces the root. Another one over the same ledger is handed the new
// root's key and signs with it, without anybody's help; nobody signs with a root that was
// replaced.
func TestReplicasFollowTheRoots(t *testing.T) {
	t.Parallel()
	url := pgtest.Shared(t)
	a := start(t, func(c *Config) { c.Ledger.Postgres = url; c.Listen = "" })
	b := replica(t, a)
	old := activeOf(a.status())
	a.rotate(&capb.RotateRootRequest{Manual: true})
	b.step(capb.RotationStep_ROTATION_STEP_DISTRIBUTING)
	if got := activeOf(b.status()); got != old {
		t.Fatalf("root %s signs, want %s", got, old)
	}
	b.mint(reviewsID)
	b.rotate(&capb.RotateRootRequest{Manual: true}) // whichever goes on
	fresh := activeOf(a.step(capb.RotationStep_ROTATION_STEP_DRAINING))
	if fresh == old {
		t.Fatal("the old root signs")
	}
	// Whoever signed under the old one in that moment was not recorded.
	for _, h := range []*harness{a, b} {
		h.step(capb.RotationStep_ROTATION_STEP_DRAINING)
		if got := issuerOf(h.mint(reviewsID).Certificates[0]); got != fresh {
			t.Errorf("signed by %s, want %s", got, fresh)
		}
		path := filepath.Join(h.config.State, "roots", fresh+".key")
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("the key: %v, %v", info, err)
		}
	}
	a.rotate(&capb.RotateRootRequest{Force: true})
	for _, h := range []*harness{a, b} {
		h.step(capb.RotationStep_ROTATION_STEP_UNSPECIFIED)
		h.onlyRoot(fresh)
	}
	if got := a.steps(); !slices.Equal(got, []string{"first", "jwt keys", "prepare", "continue", "activate", "continue", "retire"}) {
		t.Errorf("the ledger has the steps %v", got)
	}
	// What was for the rotation went with it.
	store, err := pglog.Open(t.Context(), pglog.Config{URL: url}, pglog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	if docs, err := store.List(t.Context(), heardPrefix); err != nil || len(docs) > 0 {
		t.Errorf("left behind: %v, %v", docs, err)
	}
}

// The gate of a rotation hears the watchers of every replica, whichever they are
// connected to; those of one that dies in the middle are waited for until they are heard
// elsewhere.
func TestGateHearsTheWatchersOfAllReplicas(t *testing.T) {
	t.Parallel()
	url := pgtest.Shared(t)
	a := start(t, func(c *Config) { c.Ledger.Postgres = url })
	b := replica(t, a)
	old := activeOf(a.status())
	n1, n2 := a.watcher(nodeID), b.watcher(n2ID)
	a.rotate(&capb.RotateRootRequest{})
	n1.says(n1.has(2).GetSequence(), old)
	first := n2.has(2).GetSequence()
	n2.says(first-1, old, "sidecar~reviews-1")
	want := n2ID + " has not acknowledged bundle 2 sidecar~reviews-1"
	for _, h := range []*harness{a, b} {
		h.eventually("only n2 holds it up", func() bool { return gateOf(h.status()) == want })
	}
	if err := b.stop(); err != nil {
		t.Fatal(err)
	}
	again := a.watcher(n2ID)
	again.says(again.has(2).GetSequence(), old)
	if fresh := activeOf(a.step(capb.RotationStep_ROTATION_STEP_DRAINING)); fresh == old {
		t.Error("the old root signs")
	}
}

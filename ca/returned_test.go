package ca

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/writ-mesh/writ/ca/backup"
	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/ledger/pgtest"
	"github.com/writ-mesh/writ/internal/credential"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// backup copies the state directory as it is now.
func (h *harness) backup() []byte {
	h.t.Helper()
	var saved bytes.Buffer
	if err := backup.Write(h.config.State, &saved); err != nil {
		h.t.Fatal(err)
	}
	return saved.Bytes()
}

// restore stops the authority and begins again from a backup.
func (h *harness) restore(saved []byte) {
	h.t.Helper()
	if err := h.stop(); err != nil {
		h.t.Fatal(err)
	}
	bundle, err := os.ReadFile(h.config.trustBundle())
	if err != nil {
		h.t.Fatal(err)
	}
	h.config.State = filepath.Join(h.t.TempDir(), "restored")
	if _, err := backup.Restore(h.t.Context(), bytes.NewReader(saved), h.config.State, "", time.Now()); err != nil {
		h.t.Fatal(err)
	}
	h.run()
	if again, err := os.ReadFile(h.config.trustBundle()); err != nil || !bytes.Equal(again, bundle) {
		h.t.Fatalf("another trust bundle: %v", err)
	}
}

// holder is a service that follows what is revoked, as pilot and node agents do.
func (h *harness) holder(id string) {
	h.t.Helper()
	dir := h.t.TempDir()
	token := filepath.Join(dir, "token")
	if err := os.WriteFile(token, []byte(h.token(id)), 0o600); err != nil {
		h.t.Fatal(err)
	}
	bundle := filepath.Join(dir, "roots.pem") // where it stays when the authority moves
	data, err := os.ReadFile(h.config.trustBundle())
	if err != nil {
		h.t.Fatal(err)
	}
	if err := os.WriteFile(bundle, data, 0o600); err != nil {
		h.t.Fatal(err)
	}
	source, err := credential.New(h.t.Context(), credential.Config{
		CA: h.config.Listen, TrustBundle: bundle, TokenFile: token, Dir: filepath.Join(dir, "credential"), TrustDomain: td.Name(),
	}, spiffeid.RequireFromString(id), slog.New(slog.DiscardHandler))
	if err != nil {
		h.t.Fatal(err)
	}
	heard := make(chan *capb.RevocationList, 1)
	source.OnRevocations(func(l *capb.RevocationList) {
		select {
		case <-heard:
		default:
		}
		heard <- l
	}, nil)
	ctx, cancel := context.WithCancel(h.t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = source.Run(ctx) }()
	h.t.Cleanup(func() { cancel(); <-done })
	want := h.list().GetSequence()
	for l := range heard {
		if l.GetSequence() >= want {
			return
		}
	}
}

// What was revoked after the backup is revoked after the restore, because somebody kept
// the list; and what was taken back stays so.
func TestRevocationSurvivesARestore(t *testing.T) {
	t.Parallel()
	h := start(t, nil)
	before, after := h.mint(reviewsID), h.mint(ratingsID)
	h.revoke(bySerial(serialOf(before.Certificates[0])))
	saved := h.backup()
	h.revoke(bySerial(serialOf(after.Certificates[0])))
	thief, other := "spiffe://example.org/ns/default/sa/thief", "spiffe://example.org/ns/default/sa/other"
	h.revoke(byID(thief))
	h.revoke(byID(other))
	if _, err := h.revocations().Unrevoke(t.Context(), &capb.UnrevokeRequest{Subject: &capb.UnrevokeRequest_SpiffeId{SpiffeId: other}}); err != nil {
		t.Fatal(err)
	}
	const many = 60 // more than one message takes
	for i := range many {
		h.revoke(byID(fmt.Sprintf("spiffe://example.org/ns/%0200d/sa/a", i)))
	}
	was := h.list()
	h.holder(nodeID)
	h.restore(saved)
	h.eventually("what was revoked is revoked again", func() bool { return len(h.list().GetRevocations()) == 3+many })
	for _, want := range was.GetRevocations() {
		found := false
		for _, got := range h.list().GetRevocations() {
			got, want := proto.CloneOf(got), proto.CloneOf(want)
			got.Sequence, want.Sequence = 0, 0
			found = found || proto.Equal(got, want)
		}
		if !found {
			t.Errorf("not as it was: %v", want)
		}
	}
	_, der := request(t, "")
	_, err := h.admin().Mint(t.Context(), &capb.MintRequest{SpiffeId: thief, Csr: der})
	wantCode(t, err, codes.PermissionDenied)
	h.mint(other)
	// Another who kept the list brings nothing new, also after the operator took one back.
	if _, err := h.revocations().Unrevoke(t.Context(), &capb.UnrevokeRequest{Subject: &capb.UnrevokeRequest_SpiffeId{SpiffeId: thief}}); err != nil {
		t.Fatal(err)
	}
	if n, err := h.giveBack(was.GetStatement(), was.GetRevocations()); err != nil || n != 0 {
		t.Errorf("revoked again: %d, %v", n, err)
	}
	again := 0
	for _, r := range h.entries() {
		if e, err := r.Entry(); err == nil && e.Kind == ledger.Revoked && e.Actor == nodeID && e.Detail["text"] != "" {
			again++
		}
	}
	if again != 2+many {
		t.Errorf("%d entries of what was revoked again, want %d", again, 2+many)
	}
}

// giveBack returns a list as a node agent.
func (h *harness) giveBack(statement string, list []*capb.Revocation) (uint32, error) {
	h.t.Helper()
	stream, err := capb.NewRevocationFeedClient(h.connAs(h.mint("spiffe://example.org/writ/node/holder"))).ReturnRevocations(h.t.Context())
	if err != nil {
		return 0, err
	}
	for part := range slices.Chunk(list, 20) {
		if err := stream.Send(&capb.ReturnRevocationsRequest{Statement: statement, Revocations: part}); err != nil {
			return 0, err
		}
	}
	resp, err := stream.CloseAndRecv()
	return resp.GetAdopted(), err
}

// A list is taken back that this authority signed in a time that it lost, and no other.
func TestListsThatAreNotTakenBack(t *testing.T) {
	t.Parallel()
	h, stranger := start(t, nil), start(t, nil)
	early := proto.CloneOf(h.list())
	h.revoke(byID(reviewsID))
	old := proto.CloneOf(h.list())
	if _, err := h.revocations().Unrevoke(t.Context(), &capb.UnrevokeRequest{Subject: &capb.UnrevokeRequest_SpiffeId{SpiffeId: reviewsID}}); err != nil {
		t.Fatal(err)
	}
	if n, err := h.giveBack(old.GetStatement(), old.GetRevocations()); err != nil || n != 0 {
		t.Errorf("nothing was lost: %d, %v", n, err)
	}
	saved := h.backup()
	h.revoke(byID(ratingsID))
	lost := proto.CloneOf(h.list())
	stranger.revoke(byID(ratingsID))
	foreign := stranger.list()
	h.restore(saved)
	added := append(lost.GetRevocations(), &capb.Revocation{SpiffeId: pilotID})
	changed := proto.CloneOf(lost).GetRevocations()
	changed[0].SpiffeId = pilotID
	for what, l := range map[string]struct {
		statement string
		list      []*capb.Revocation
		want      codes.Code
	}{
		"unsigned":             {"", lost.GetRevocations(), codes.InvalidArgument},
		"another's":            {foreign.GetStatement(), foreign.GetRevocations(), codes.InvalidArgument},
		"one too many":         {lost.GetStatement(), added, codes.InvalidArgument},
		"another subject":      {lost.GetStatement(), changed, codes.InvalidArgument},
		"of another list":      {early.GetStatement(), lost.GetRevocations(), codes.InvalidArgument},
		"a checkpoint":         {h.note(), lost.GetRevocations(), codes.InvalidArgument},
		"taken back meanwhile": {old.GetStatement(), old.GetRevocations(), codes.OK},
	} {
		n, err := h.giveBack(l.statement, l.list)
		if n != 0 {
			t.Errorf("%s: %d are revoked", what, n)
		}
		t.Run(what, func(t *testing.T) { wantCode(t, err, l.want) })
	}
	stream, err := capb.NewRevocationFeedClient(h.connAs(h.mint(reviewsID))).ReturnRevocations(t.Context())
	if err == nil {
		_, err = stream.CloseAndRecv()
	}
	wantCode(t, err, codes.PermissionDenied) // it is a workload
	if n := len(h.list().GetRevocations()); n != 0 {
		t.Errorf("%d are revoked", n)
	}
	if n, err := h.giveBack(lost.GetStatement(), lost.GetRevocations()); err != nil || n != 1 {
		t.Errorf("the list itself: %d, %v", n, err)
	}
}

// note is a checkpoint in its signed form.
func (h *harness) note() string {
	h.t.Helper()
	cp, err := capb.NewLedgerClient(h.adminConn()).GetCheckpoint(h.t.Context(), &capb.GetCheckpointRequest{})
	if err != nil {
		h.t.Fatal(err)
	}
	return cp.GetCheckpoint()
}

// A list that another authority over the same ledger signed, with a key of its own, is
// known too.
func TestListOfAnotherReplicaIsKnown(t *testing.T) {
	t.Parallel()
	url := pgtest.Shared(t)
	a := start(t, func(c *Config) { c.Ledger.Postgres = url })
	b := replica(t, a, func(c *Config) {
		if err := os.Remove(filepath.Join(c.State, ledgerKeyFile)); err != nil {
			t.Fatal(err)
		}
	})
	stranger := start(t, nil)
	for _, h := range []*harness{a, stranger} {
		h.revoke(byID(ratingsID))
	}
	list, foreign := a.list(), stranger.list()
	if _, err := b.giveBack(list.GetStatement(), list.GetRevocations()); err != nil {
		t.Errorf("the list of a replica: %v", err)
	}
	_, err := b.giveBack(foreign.GetStatement(), foreign.GetRevocations())
	wantCode(t, err, codes.InvalidArgument)
}

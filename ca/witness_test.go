package ca

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/writ-mesh/writ/internal/witness"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// look asks an authority whether its log goes on from what was seen.
func look(t *testing.T, conn grpc.ClientConnInterface, seen witness.Seen) (witness.Seen, error) {
	t.Helper()
	resp, err := capb.NewWitnessClient(conn).ProveContinuation(t.Context(), &capb.ProveContinuationRequest{Size: seen.Size})
	if err != nil {
		t.Fatal(err)
	}
	return seen.Take(resp, time.Now())
}

// Whoever remembers a checkpoint sees that the log goes on, also over restarts; that it
// was restored from a backup, and what was lost; that it was rolled back, exchanged or
// altered; and that somebody else signs it.
func TestWhatWitnessesSee(t *testing.T) {
	t.Parallel()
	h := start(t, nil)
	conn := h.connAs(h.mint(nodeID))
	var seen witness.Seen
	sees := func(what string) {
		t.Helper()
		var err error
		if seen, err = look(t, conn, seen); err != nil || seen.Contradiction != nil {
			t.Fatalf("%s: %v, %v", what, err, seen)
		}
	}
	sees("the first time")
	_, der := request(t, "")
	for range 300 { // more than one piece of the tree
		if _, err := h.admin().Mint(t.Context(), &capb.MintRequest{SpiffeId: reviewsID, Csr: der}); err != nil {
			t.Fatal(err)
		}
	}
	sees("it goes on")
	saved := h.backup()
	h.mint(reviewsID)
	h.restart()
	conn = h.adminConn()
	sees("after a restart")

	// Another authority over the same ledger signs with a key of its own.
	if err := h.stop(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{ledgerKeyFile, ledgerCheckpointFile} {
		if err := os.Remove(filepath.Join(h.config.State, name)); err != nil {
			t.Fatal(err)
		}
	}
	h.run()
	conn = h.adminConn()
	sees("of another key")
	before := seen

	// Somebody puts the ledger of before in the place of the one of now.
	h.rollBack(saved)
	if after, err := look(t, h.adminConn(), seen); err == nil || !strings.Contains(after.String(), "rolled back") || after.Size != before.Size {
		t.Fatalf("rolled back: %v, %v", err, after)
	}
	for h.size() <= before.Size {
		h.mint(ratingsID)
	}
	fork, err := look(t, h.adminConn(), seen)
	if err == nil || !strings.Contains(fork.String(), "CONTRADICTION: the log of now") {
		t.Fatalf("a fork: %v, %v", err, fork)
	}
	if again, err := look(t, h.adminConn(), fork); err == nil || again.Contradiction.At != fork.Contradiction.At {
		t.Fatalf("the first contradiction was forgotten: %v", again)
	}

	// A restore says itself what it is.
	h.restore(saved)
	conn = h.adminConn()
	sees("a restore")
	if seen.Restored == nil || seen.Restored.Seen != before.Size || !strings.Contains(seen.String(), "restored from a backup") {
		t.Fatalf("after a restore: %v", seen)
	}
	h.mint(reviewsID)
	sees("it goes on after a restore")

	// The same restore is no excuse for the next time.
	early := h.backup()
	h.mint(reviewsID)
	sees("before the next rollback")
	seen.At = seen.At.Add(time.Hour)
	h.rollBack(early)
	if after, err := look(t, h.adminConn(), seen); err == nil {
		t.Fatalf("rolled back with an old excuse: %v", after)
	}
	stranger := start(t, nil)
	for stranger.size() <= seen.Size {
		stranger.mint(reviewsID)
	}
	if after, err := look(t, stranger.adminConn(), seen); err == nil || !strings.Contains(err.Error(), "is signed by another key") {
		t.Fatalf("another authority: %v, %v", err, after)
	}
}

// rollBack puts a backup in place without saying so.
func (h *harness) rollBack(saved []byte) {
	h.t.Helper()
	h.restore(saved)
	if err := h.stop(); err != nil {
		h.t.Fatal(err)
	}
	path := filepath.Join(h.config.State, ledgerFile)
	data, err := os.ReadFile(path)
	if err != nil {
		h.t.Fatal(err)
	}
	// Without the last restore and what follows it.
	at := strings.LastIndex(string(data), `{"kind":"restored"`)
	cut := strings.LastIndex(string(data[:at]), "\n") + 1
	if err := os.WriteFile(path, data[:cut], 0o600); err != nil {
		h.t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(h.config.State, ledgerCheckpointFile)); err != nil {
		h.t.Fatal(err)
	}
	h.run()
}

func (h *harness) size() uint64 {
	h.t.Helper()
	resp, err := capb.NewWitnessClient(h.adminConn()).ProveContinuation(h.t.Context(), &capb.ProveContinuationRequest{})
	if err != nil {
		h.t.Fatal(err)
	}
	cp, err := witness.Open([]byte(resp.GetCheckpoint()), resp.GetVerifier())
	if err != nil {
		h.t.Fatal(err)
	}
	return cp.Size
}

// What is remembered is read back, and what was damaged is not believed.
func TestWhatIsRemembered(t *testing.T) {
	t.Parallel()
	h := start(t, nil)
	seen, err := look(t, h.adminConn(), witness.Seen{})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "seen")
	if got, err := witness.Load(path); err != nil || got.Size != 0 {
		t.Fatalf("without a file: %v, %v", got, err)
	}
	if err := seen.Save(path); err != nil {
		t.Fatal(err)
	}
	if got, err := witness.Load(path); err != nil || got.String() != seen.String() || got.Checkpoint != seen.Checkpoint {
		t.Fatalf("got %v, %v", got, err)
	}
	forged := seen
	forged.Size++
	other := seen
	lines := strings.SplitN(seen.Checkpoint, "\n", 4) // origin, size, root hash, signatures
	first := "A"
	if strings.HasPrefix(lines[2], first) {
		first = "B"
	}
	lines[2] = first + lines[2][1:]
	other.Checkpoint = strings.Join(lines, "\n")
	for what, data := range map[string][]byte{"no JSON": []byte("{"), "another size": encoded(t, forged), "another checkpoint": encoded(t, other)} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := witness.Load(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func encoded(t *testing.T, s witness.Seen) []byte {
	t.Helper()
	data, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

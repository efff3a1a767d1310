package nodeagent_test

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/writ-mesh/writ/internal/witness"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
	nodeagentpb "github.com/writ-mesh/writ/proto/writ/nodeagent/v1"
)

// fakeWitness answers what a test says.
type fakeWitness struct {
	capb.UnimplementedWitnessServer

	mu     sync.Mutex
	answer *capb.ProveContinuationResponse
}

func (f *fakeWitness) ProveContinuation(_ context.Context, r *capb.ProveContinuationRequest) (*capb.ProveContinuationResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.answer == nil {
		return nil, status.Error(codes.Unavailable, "not now")
	}
	if r.GetSize() == 1 {
		return f.answer, nil
	}
	answer := proto.CloneOf(f.answer) // from nothing, or to the same size, there is nothing to prove
	answer.Consistency = nil
	return answer, nil
}

func (f *fakeWitness) say(answer *capb.ProveContinuationResponse) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answer = answer
}

// signedLog is a log of one or two entries.
type signedLog struct {
	signer   note.Signer
	verifier string
}

func newSignedLog(t *testing.T) signedLog {
	t.Helper()
	secret, public, err := note.GenerateKey(rand.Reader, domain+"/ledger")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(secret)
	if err != nil {
		t.Fatal(err)
	}
	return signedLog{signer, public}
}

// holding is the answer of a log with these entries, which proves that it goes on from
// its first one.
func (l signedLog) holding(t *testing.T, first string, more ...string) *capb.ProveContinuationResponse {
	t.Helper()
	h := rfc6962.DefaultHasher
	root, proof := h.HashLeaf([]byte(first)), [][]byte(nil)
	if len(more) > 0 {
		proof = [][]byte{h.HashLeaf([]byte(more[0]))}
		root = h.HashChildren(root, proof[0])
	}
	text := fmt.Sprintf("%s\n%d\n%s\n", l.signer.Name(), 1+len(more), base64.StdEncoding.EncodeToString(root))
	signed, err := note.Sign(&note.Note{Text: text}, l.signer)
	if err != nil {
		t.Fatal(err)
	}
	return &capb.ProveContinuationResponse{Checkpoint: string(signed), Verifier: l.verifier, Consistency: proof}
}

// An agent remembers the newest checkpoint over restarts, has the authority prove at
// each connection that its ledger goes on from there, and says loudly if it does not.
func TestLedgerIsRemembered(t *testing.T) {
	t.Parallel()
	r := newOwnRig(t)
	log := newSignedLog(t)
	ledgerIs := func(what, want string) {
		t.Helper()
		r.status(t, what, func(st *nodeagentpb.GetStatusResponse) bool { return strings.HasPrefix(st.GetLedger(), want) })
	}
	again := func() {
		t.Helper()
		r.agent.Kill()
		r.start(t)
	}
	r.ca.witness.say(log.holding(t, "a"))
	r.start(t)
	ledgerIs("the first checkpoint", "1 entries are signed for")
	r.ca.witness.say(log.holding(t, "a", "b"))
	again()
	ledgerIs("it goes on", "2 entries are signed for")
	if got := r.metric(t, "writ_nodeagent_ledger_contradiction"); got != "0" {
		t.Errorf("contradiction %q", got)
	}
	r.ca.witness.say(log.holding(t, "a"))
	again()
	ledgerIs("it was rolled back", "CONTRADICTION: the log has 1 entries, and had 2")
	if got := r.metric(t, "writ_nodeagent_ledger_contradiction"); got != "1" {
		t.Errorf("contradiction %q", got)
	}
	if !strings.Contains(r.agent.Output.String(), "CONTRADICTS") {
		t.Error("the log says nothing of it")
	}
	// Nor is it forgotten when all seems well again.
	r.ca.witness.say(log.holding(t, "a", "b"))
	again()
	ledgerIs("the contradiction stays", "CONTRADICTION: the log has 1 entries")
	seen, err := witness.Load(r.path("state/ledger.json"))
	if err != nil || seen.Size != 2 || seen.Contradiction == nil || seen.Contradiction.Checkpoint == "" {
		t.Fatalf("remembered: %+v, %v", seen, err)
	}
	// A damaged file is kept. With another key nothing else is believed than with the
	// first.
	r.agent.Kill() // it may be about to write the file
	if err := os.WriteFile(r.path("state/ledger.json"), []byte("{}x"), 0o600); err != nil {
		t.Fatal(err)
	}
	again()
	ledgerIs("it begins anew", "2 entries are signed for")
	if _, err := os.Stat(r.path("state/ledger.json.corrupt")); err != nil {
		t.Error(err)
	}
	other := newSignedLog(t)
	r.ca.witness.say(other.holding(t, "a", "b"))
	again()
	ledgerIs("the same log by another authority", "2 entries are signed for")
	r.ca.witness.say(other.holding(t, "a", "c"))
	again()
	ledgerIs("another log", "CONTRADICTION: the log of now, of 2 entries, does not go on")
}

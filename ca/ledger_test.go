package ca

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"google.golang.org/grpc/codes"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/ledger/checkpoint"
	"github.com/writ-mesh/writ/ca/ledger/filelog"
	"github.com/writ-mesh/writ/ca/ledger/hashtree"
	"github.com/writ-mesh/writ/ca/ledger/ledgertest"
	"github.com/writ-mesh/writ/internal/service"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

func (h *harness) auditor() capb.LedgerClient { return capb.NewLedgerClient(h.adminConn()) }

// checkpoint gets a checkpoint and verifies it.
func (h *harness) checkpoint() checkpoint.Checkpoint {
	h.t.Helper()
	resp, err := h.auditor().GetCheckpoint(h.t.Context(), &capb.GetCheckpointRequest{})
	if err != nil {
		h.t.Fatal(err)
	}
	public, err := os.ReadFile(filepath.Join(h.config.State, ledgerPublicFile))
	if err != nil || string(public) != resp.GetVerifier()+"\n" {
		h.t.Fatalf("the public key on disk is %q, the authority says %q (%v)", public, resp.GetVerifier(), err)
	}
	cp, err := checkpoint.Open([]byte(resp.GetCheckpoint()), resp.GetVerifier())
	if err != nil {
		h.t.Fatal(err)
	}
	return cp
}

// entries reads the log over the admin socket.
func (h *harness) entries() []ledger.Record {
	h.t.Helper()
	stream, err := h.auditor().ReadEntries(h.t.Context(), &capb.ReadEntriesRequest{Documents: true})
	if err != nil {
		h.t.Fatal(err)
	}
	var out []ledger.Record
	for {
		e, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			h.t.Fatal(err)
		}
		out = append(out, ledger.Record{Index: e.GetIndex(), Leaf: e.GetEntry(), Values: e.GetDocuments()})
	}
}

// Who issued a certificate can be held to it: it is in the log of every later
// checkpoint, and no later log is another one.
func TestLedgerProofs(t *testing.T) {
	h := start(t, func(c *Config) { c.Listen = "" })
	h.token(nodeID)
	svid := h.mint(reviewsID)
	first := h.checkpoint()
	for range 5 {
		h.mint(ratingsID)
	}
	h.restart()
	later := h.checkpoint()
	if first.Log != "example.org/ledger" || later.Size != first.Size+5 {
		t.Fatalf("got %+v, then %+v", first, later)
	}
	records := h.entries()
	e, err := records[first.Size-1].Entry()
	leaf := svid.Certificates[0]
	if err != nil || e.Kind != ledger.Issued || e.Subject != reviewsID || e.Request != kindMint || !e.NotAfter.Equal(leaf.NotAfter) ||
		e.Authority != fmt.Sprintf("%x", leaf.AuthorityKeyId) || e.SHA256 == "" || !strings.HasPrefix(e.Actor, "admin uid=") {
		t.Fatalf("got %+v, %v", e, err)
	}
	for size, root := range map[uint64][32]byte{first.Size: first.Root, later.Size: later.Root} {
		resp, err := h.auditor().ProveInclusion(t.Context(), &capb.ProveInclusionRequest{Index: first.Size - 1, Size: size})
		if err != nil {
			t.Fatal(err)
		}
		if err := proof.VerifyInclusion(rfc6962.DefaultHasher, first.Size-1, size, hashtree.Hash(records[first.Size-1].Leaf), resp.GetHashes(), root[:]); err != nil {
			t.Errorf("of %d: %v", size, err)
		}
	}
	resp, err := h.auditor().ProveConsistency(t.Context(), &capb.ProveConsistencyRequest{From: first.Size, To: later.Size})
	if err != nil {
		t.Fatal(err)
	}
	if err := proof.VerifyConsistency(rfc6962.DefaultHasher, first.Size, later.Size, resp.GetHashes(), first.Root[:], later.Root[:]); err != nil {
		t.Error(err)
	}
	_, err = h.auditor().ProveInclusion(t.Context(), &capb.ProveInclusionRequest{Index: 1, Size: later.Size + 1})
	wantCode(t, err, codes.InvalidArgument)
	_, err = h.auditor().ProveConsistency(t.Context(), &capb.ProveConsistencyRequest{From: 3, To: 2})
	wantCode(t, err, codes.InvalidArgument)
}

// A start finds a ledger that lost entries or was altered, says so in one line, and
// leaves it as it is.
func TestLedgerIsNotTheOneOfTheCheckpoint(t *testing.T) {
	h := start(t, func(c *Config) { c.Listen = "" })
	for range 3 {
		h.mint(reviewsID)
	}
	if err := h.stop(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(h.config.State, ledgerFile)
	good := mustRead(t, path)
	kept := mustRead(t, filepath.Join(h.config.State, ledgerCheckpointFile))
	lines := bytes.SplitAfter(good, []byte("\n"))
	other := start(t, func(c *Config) { c.Listen = "" })
	for range 3 {
		other.mint(reviewsID)
	}
	for name, tc := range map[string]struct {
		ledger, checkpoint []byte
		want               string
	}{
		"as it was":            {good, kept, ""},
		"last entry gone":      {bytes.Join(lines[:3], nil), kept, "it has 3 entries, and had 4"},
		"ledger gone":          {nil, kept, "it has 0 entries, and had 4"},
		"torn":                 {good[:len(good)-5], kept, "it has 3 entries, and had 4"},
		"another ledger":       {mustRead(t, filepath.Join(other.config.State, ledgerFile)), kept, "not those that it had"},
		"damaged checkpoint":   {good, kept[:len(kept)-9], ledgerCheckpointFile},
		"no checkpoint":        {good, nil, ""},
		"back as it was again": {good, kept, ""},
	} {
		t.Run(name, func(t *testing.T) {
			for file, data := range map[string][]byte{path: tc.ledger, filepath.Join(h.config.State, ledgerCheckpointFile): tc.checkpoint} {
				if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
					t.Fatal(err)
				}
				if data == nil {
					continue
				}
				if err := os.WriteFile(file, data, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			ctx, cancel := context.WithCancel(t.Context())
			if tc.want == "" {
				cancel() // it starts and ends
			}
			defer cancel()
			err := Run(ctx, h.config, &service.Runtime{Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(), Health: new(service.Health)})
			if tc.want == "" && err != nil && !errors.Is(err, context.Canceled) ||
				tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "\n")) {
				t.Fatalf("got %v, want %q", err, tc.want)
			}
		})
	}
}

// What is refused is in the ledger with who asked and why; a flood is counted, and
// that of strangers leaves room for what callers with a name are refused.
func TestRefusalsAreRecorded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := ledgertest.NewMemory()
		r := newRefusals(store, time.Now, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- r.run(ctx) }()
		r.note(kindIssue, nodeID, reviewsID, refuse(denied, "the mesh does not place %s there", reviewsID).because(errors.New("secret")))
		r.note(kindIssue, nodeID, reviewsID, refuse(unavailable, "later"))
		r.note(kindIssue, nodeID, reviewsID, refuse(gone, "away"))
		synctest.Wait()
		got := ledgertest.All(t, store)
		if len(got) != 1 || got[0].Kind != ledger.Refused || got[0].Actor != nodeID || got[0].Subject != reviewsID || got[0].Request != kindIssue ||
			got[0].Detail["reason"] != "denied" || got[0].Detail["text"] != "the mesh does not place "+reviewsID+" there" {
			t.Fatalf("got %+v", got)
		}
		const flood = 5000
		for range flood {
			r.note(kindJoin, "join-token", "", refuse(denied, "%s", strings.Repeat("x", 5000)))
		}
		synctest.Wait()
		r.note(kindIssue, nodeID, ratingsID, refuse(denied, "no"))
		<-time.After(refusalSummary + time.Second) // fake time
		synctest.Wait()
		got = ledgertest.All(t, store)
		counted, written, named := 0, 0, false
		for _, e := range got {
			switch {
			case e.Detail["count"] != "":
				fmt.Sscan(e.Detail["join denied"], &counted)
			case e.Request == kindJoin:
				written++
				if len(e.Detail["text"]) > maxReason {
					t.Errorf("a text of %d bytes", len(e.Detail["text"]))
				}
			case e.Subject == ratingsID:
				named = true
			}
		}
		if counted+written != flood || written > refusalBurst || !named {
			t.Fatalf("%d counted, %d written of %d; a node's: %v", counted, written, flood, named)
		}
		// A day of it.
		before := len(got)
		for range 24 * 60 {
			for range 100 {
				r.note(kindJoin, "join-token", "", refuse(denied, "x"))
			}
			<-time.After(time.Minute) // fake time
		}
		if n := len(ledgertest.All(t, store)) - before; n > 24*60*7+1 {
			t.Fatalf("%d entries in a day", n)
		}
		r.note(kindJoin, "join-token", "", refuse(denied, "last"))
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		if got = ledgertest.All(t, store); got[len(got)-1].Detail["text"] != "last" && got[len(got)-1].Detail["count"] == "" {
			t.Fatalf("the end was not waited for: %+v", got[len(got)-1])
		}
	})
}

// The whole way: a refused call is in the ledger of the authority.
func TestRefusedCallIsInTheLedger(t *testing.T) {
	h := start(t, nil)
	_, der := request(t, "")
	_, err := h.as(nil).Join(t.Context(), &capb.JoinRequest{Csr: der})
	if err == nil {
		t.Fatal("joined without any proof")
	}
	h.eventually("the refusal is in the ledger", func() bool {
		for _, r := range h.entries() {
			e, err := r.Entry()
			if err != nil {
				t.Fatal(err)
			}
			if e.Kind == ledger.Refused && e.Request == kindJoin && e.Detail["text"] != "" {
				return true
			}
		}
		return false
	})
}

// BenchmarkListOneIdentity finds the certificates of one identity among a hundred
// thousand in a file: the goal is a second.
func BenchmarkListOneIdentity(b *testing.B) {
	store, err := filelog.Open(filepath.Join(b.TempDir(), "l"), filelog.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer store.Close()
	const count, workers = 100_000, 500
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for n := w; n < count; n += workers {
				if _, err := store.Commit(b.Context(), ledgertest.Issue(n)); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	a := &Authority{store: store}
	for b.Loop() {
		found := 0
		err := a.eachCertificate(b.Context(), ledgertest.Certificate(3).Subject, func(ledger.Entry) error { found++; return nil })
		if err != nil || found != count/7+1 {
			b.Fatalf("found %d, %v", found, err)
		}
	}
}

// Tokens are recorded like certificates, what is refused of them too.
func TestTokensAreInTheLedger(t *testing.T) {
	t.Parallel()
	h, n1 := jwtRig(t, nil)
	resp, err := n1.IssueJWT(t.Context(), &capb.IssueJWTRequest{SpiffeId: reviewsID, Audiences: []string{"a", "b"}})
	if err != nil {
		t.Fatal(err)
	}
	records := h.entries()
	e, err := records[len(records)-1].Entry()
	if err != nil || e.Kind != ledger.IssuedJWT || e.Actor != nodeID || e.Subject != reviewsID || e.Authority == "" ||
		!e.NotAfter.Equal(resp.GetExpiresAt().AsTime()) || e.Detail["audiences"] != "a b" {
		t.Fatalf("got %+v, %v", e, err)
	}
	if strings.Contains(string(records[len(records)-1].Leaf), resp.GetToken()) {
		t.Error("the token itself is in the ledger")
	}
	_, err = n1.IssueJWT(t.Context(), &capb.IssueJWTRequest{SpiffeId: ratingsID, Audiences: []string{"a"}})
	wantCode(t, err, codes.PermissionDenied)
	h.eventually("the refusal is in the ledger", func() bool {
		records := h.entries()
		e, err := records[len(records)-1].Entry()
		return err == nil && e.Kind == ledger.Refused && e.Request == kindJWT && e.Subject == ratingsID && e.Actor == nodeID
	})
}

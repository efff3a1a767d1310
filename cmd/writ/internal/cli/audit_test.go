package cli

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/ledger/checkpoint"
	"github.com/writ-mesh/writ/ca/ledger/filelog"
	"github.com/writ-mesh/writ/ca/ledger/ledgertest"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// openAuthority is one that runs, of which the test has the ledger in its hands.
type openAuthority struct {
	capb.UnimplementedLedgerServer
	capb.UnimplementedWitnessServer

	log *filelog.Log
	key *checkpoint.Signer
	// lacking is a document that it does not go by, though its log has it.
	lacking string
}

func newOpenAuthority(t *testing.T) *openAuthority {
	t.Helper()
	dir := t.TempDir()
	log, err := filelog.Open(filepath.Join(dir, "l"), filelog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = log.Close() })
	key, err := checkpoint.OpenKey(filepath.Join(dir, "k"), "example.org/ledger")
	if err != nil {
		t.Fatal(err)
	}
	return &openAuthority{log: log, key: key}
}

func (a *openAuthority) put(t *testing.T, keys ...string) {
	t.Helper()
	for _, k := range keys {
		if _, err := a.log.Commit(t.Context(), ledgertest.Put(k, "value")); err != nil {
			t.Fatal(err)
		}
	}
}

func (a *openAuthority) signed(ctx context.Context) (string, error) {
	head, err := a.log.Head(ctx)
	if err != nil {
		return "", err
	}
	text, err := a.key.Sign(head)
	return string(text), err
}

func (a *openAuthority) GetCheckpoint(ctx context.Context, _ *capb.GetCheckpointRequest) (*capb.GetCheckpointResponse, error) {
	text, err := a.signed(ctx)
	return &capb.GetCheckpointResponse{Checkpoint: text, Verifier: a.key.Verifier}, err
}

func (a *openAuthority) ReadEntries(_ *capb.ReadEntriesRequest, s grpc.ServerStreamingServer[capb.LedgerEntry]) error {
	return a.log.Each(s.Context(), 0, func(r ledger.Record) error {
		return s.Send(&capb.LedgerEntry{Index: r.Index, Entry: r.Leaf, Documents: r.Values})
	})
}

func (a *openAuthority) ReadDocuments(_ *capb.ReadDocumentsRequest, s grpc.ServerStreamingServer[capb.LedgerDocument]) error {
	docs, err := a.log.List(s.Context(), "")
	for _, d := range docs {
		sum := sha256.Sum256(d.Value)
		if d.Key != a.lacking {
			err = errors.Join(err, s.Send(&capb.LedgerDocument{Key: d.Key, Sha256: sum[:], Version: d.Version}))
		}
	}
	return err
}

func (a *openAuthority) ProveContinuation(ctx context.Context, r *capb.ProveContinuationRequest) (*capb.ProveContinuationResponse, error) {
	text, err := a.signed(ctx)
	resp := &capb.ProveContinuationResponse{Checkpoint: text, Verifier: a.key.Verifier}
	if head, herr := a.log.Head(ctx); err == nil && herr == nil && r.GetSize() <= head.Size {
		resp.Consistency, err = a.log.ConsistencyProof(ctx, r.GetSize(), head.Size)
	}
	return resp, err
}

func (a *openAuthority) serve(t *testing.T) (socket string) {
	t.Helper()
	return adminServer(t, func(s *grpc.Server) {
		capb.RegisterLedgerServer(s, a)
		capb.RegisterWitnessServer(s, a)
	})
}

func writ(args ...string) (code int, out string) {
	var b bytes.Buffer
	code = Main(args, &b, &b)
	return code, b.String()
}

// A document that is not as the log has it is named.
func TestVerifyLogComparesDocuments(t *testing.T) {
	a := newOpenAuthority(t)
	a.put(t, "revocations/identities/1", "registrations/2")
	socket := a.serve(t)
	if code, out := writ("certs", "verify-log", "--admin", socket); code != 0 || !strings.Contains(out, "2: those that the authority goes by are those of the log") {
		t.Fatalf("exit code %d:\n%s", code, out)
	}
	a.lacking = "revocations/identities/1"
	if code, out := writ("certs", "verify-log", "--admin", socket); code != 1 || !strings.Contains(out, "revocations/identities/1, which entry 0 put, is not among") || strings.Contains(out, "OK\tnothing") {
		t.Fatalf("exit code %d:\n%s", code, out)
	}
}

// Whoever remembers a checkpoint is told that the log goes on from it, or that it does
// not, and keeps both.
func TestCheckpointIsRemembered(t *testing.T) {
	a := newOpenAuthority(t)
	a.put(t, "a", "b")
	socket, file := a.serve(t), filepath.Join(t.TempDir(), "seen.json")
	for _, want := range []string{"2 entries are signed for", "3 entries are signed for"} {
		if code, out := writ("certs", "checkpoint", "--admin", socket, "--remember", file); code != 0 || !strings.Contains(out, want) {
			t.Fatalf("exit code %d, want %q:\n%s", code, want, out)
		}
		a.put(t, "after-"+want[:1])
	}
	other := newOpenAuthority(t)
	other.key = a.key
	other.put(t, "a")
	for range 2 { // it stays
		if code, out := writ("certs", "checkpoint", "--admin", other.serve(t), "--remember", file); code != 1 || !strings.Contains(out, "CONTRADICTION: the log has 1 entries, and had 3") {
			t.Fatalf("exit code %d:\n%s", code, out)
		}
	}
	if code, out := writ("certs", "checkpoint", "--file", "/nowhere/ledger.log", "--remember", file); code != 2 {
		t.Errorf("exit code %d:\n%s", code, out)
	}
}

// keptJWTKeys are an authority's keys of JWT-SVIDs.
type keptJWTKeys struct {
	capb.UnimplementedJWTKeysServer

	keys []*capb.JWTKey
}

func (k *keptJWTKeys) ListJWTKeys(context.Context, *capb.ListJWTKeysRequest) (*capb.ListJWTKeysResponse, error) {
	return &capb.ListJWTKeysResponse{Keys: k.keys}, nil
}

func (k *keptJWTKeys) DropJWTKey(_ context.Context, r *capb.DropJWTKeyRequest) (*capb.DropJWTKeyResponse, error) {
	if r.GetKid() != k.keys[0].GetKid() {
		return nil, status.Errorf(codes.InvalidArgument, "there is no key %s", r.GetKid())
	}
	k.keys = k.keys[1:]
	k.keys[0].Active = true
	return &capb.DropJWTKeyResponse{Active: k.keys[0].GetKid()}, nil
}

func TestJWTKeys(t *testing.T) {
	socket := adminServer(t, func(s *grpc.Server) {
		capb.RegisterJWTKeysServer(s, &keptJWTKeys{keys: []*capb.JWTKey{{Kid: "k1", Active: true}, {Kid: "k2"}, {Kid: "k3", Elsewhere: true}}})
	})
	for _, tc := range []struct {
		args string
		code int
		want string
	}{
		{"", 0, "k1   signs"},
		{"--drop k9", 1, "there is no key k9"},
		{"--drop k1 -o json", 0, `"state": "signs"`},
		{"", 0, "k2   signs"},
		{"", 0, "k3   elsewhere"},
	} {
		if code, out := writ(append([]string{"certs", "jwt-keys", "--admin", socket}, strings.Fields(tc.args)...)...); code != tc.code || !strings.Contains(out, tc.want) {
			t.Errorf("%q: exit code %d:\n%s", tc.args, code, out)
		}
	}
}

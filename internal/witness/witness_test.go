package witness

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"

	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// now is when answers come.
var now = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// scribe signs logs.
type scribe struct {
	signer   note.Signer
	verifier string
}

func newScribe(t testing.TB) scribe {
	t.Helper()
	secret, public, err := note.GenerateKey(rand.Reader, "example.org/ledger")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(secret)
	if err != nil {
		t.Fatal(err)
	}
	return scribe{signer, public}
}

// answer is about a log of one or two entries; from is how many the caller knows.
func (s scribe) answer(t testing.TB, from int, entries ...string) *capb.ProveContinuationResponse {
	t.Helper()
	h := rfc6962.DefaultHasher
	first := h.HashLeaf([]byte(entries[0]))
	root := first
	resp := &capb.ProveContinuationResponse{Verifier: s.verifier}
	if len(entries) == 2 {
		second := h.HashLeaf([]byte(entries[1]))
		root = h.HashChildren(first, second)
		if from == 1 {
			resp.Consistency = [][]byte{second}
		}
		resp.Restored, resp.Inclusion = &capb.LedgerEntry{Index: 1, Entry: []byte(entries[1])}, [][]byte{first}
	}
	text := fmt.Sprintf("%s\n%d\n%s\n", s.signer.Name(), len(entries), base64.StdEncoding.EncodeToString(root))
	signed, err := note.Sign(&note.Note{Text: text}, s.signer)
	if err != nil {
		t.Fatal(err)
	}
	resp.Checkpoint = string(signed)
	return resp
}

func restoredAt(t testing.TB, kind string, at time.Time) string {
	t.Helper()
	data, err := json.Marshal(map[string]any{"kind": kind, "time": at})
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestTake(t *testing.T) {
	s, other := newScribe(t), newScribe(t)
	one, err := Seen{}.Take(s.answer(t, 0, "a"), now)
	if err != nil || one.Size != 1 {
		t.Fatalf("the first: %v, %v", one, err)
	}
	two, err := one.Take(s.answer(t, 1, "a", "b"), now)
	if err != nil || two.Size != 2 || two.Restored != nil {
		t.Fatalf("it goes on: %v, %v", two, err)
	}
	unproven := s.answer(t, 1, "a", "b")
	unproven.Consistency = nil
	forged := s.answer(t, 1, "a", "b")
	forged.Checkpoint = strings.Replace(forged.Checkpoint, "\n2\n", "\n3\n", 1)
	younger, older := restoredAt(t, restoredKind, now.Add(time.Minute)), restoredAt(t, restoredKind, now.Add(-time.Hour))
	elsewhere := s.answer(t, 2, "a", younger)
	elsewhere.Restored.Entry = []byte(restoredAt(t, restoredKind, now.Add(2*time.Minute)))
	for what, tc := range map[string]struct {
		seen Seen
		got  *capb.ProveContinuationResponse
		want string // empty: no contradiction
	}{
		"the same":                           {two, s.answer(t, 2, "a", "b"), ""},
		"the same by another key":            {two, other.answer(t, 2, "a", "b"), ""},
		"it goes on, by another key":         {one, other.answer(t, 1, "a", "b"), ""},
		"it was restored":                    {two, s.answer(t, 2, "a", younger), ""},
		"without a proof":                    {one, unproven, "does not go on"},
		"another log":                        {two, s.answer(t, 2, "a", "c"), "does not go on"},
		"another log of another key":         {two, other.answer(t, 2, "a", "c"), "signed by another key"},
		"rolled back":                        {two, s.answer(t, 2, "a"), "rolled back"},
		"a restore of long ago":              {two, s.answer(t, 2, "a", older), "does not go on"},
		"an entry that is no restore":        {two, s.answer(t, 2, "a", restoredAt(t, "issued", now.Add(time.Minute))), "does not go on"},
		"a restore that is not in the log":   {two, elsewhere, "does not go on"},
		"a checkpoint that is not signed so": {one, forged, "not signed"},
		"nothing":                            {one, &capb.ProveContinuationResponse{}, "public key"},
	} {
		next, err := tc.seen.Take(tc.got, now.Add(2*time.Minute))
		switch {
		case tc.want == "":
			if err != nil || next.Contradiction != nil || next.Checkpoint != tc.got.GetCheckpoint() {
				t.Errorf("%s: %v, %v", what, next, err)
			}
		case err == nil || !strings.Contains(err.Error(), tc.want):
			t.Errorf("%s: %v, want %q", what, err, tc.want)
		case next.Checkpoint != tc.seen.Checkpoint || next.Contradiction == nil || next.Contradiction.Checkpoint != tc.got.GetCheckpoint():
			t.Errorf("%s: remembered is %+v", what, next)
		}
	}
	restored, _ := two.Take(s.answer(t, 2, "a", younger), now.Add(2*time.Minute))
	if restored.Restored == nil || !strings.Contains(restored.String(), "entries 1 to 1 of before are lost") {
		t.Errorf("after a restore: %s", restored)
	}
	if later, err := restored.Take(s.answer(t, 2, "a", younger), now.Add(tellRestore+time.Hour)); err != nil || later.Restored != nil {
		t.Errorf("a week later: %v, %v", later, err)
	}
}

// FuzzOpen: what is read as a checkpoint is signed by the key, and says what it says
// when it is written again.
func FuzzOpen(f *testing.F) {
	s := newScribe(f)
	good := s.answer(f, 0, "a").GetCheckpoint()
	f.Add([]byte(good))
	f.Add([]byte(strings.Replace(good, "\n1\n", "\n01\n", 1)))
	f.Add([]byte("example.org/ledger\n18446744073709551616\nAAAA\n\n\u2014 example.org/ledger x\n"))
	f.Add(bytes.Repeat([]byte("\n"), 100))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Open(data, s.verifier)
		if err != nil {
			return
		}
		text := fmt.Sprintf("%s\n%d\n%s\n", c.Log, c.Size, base64.StdEncoding.EncodeToString(c.Root[:]))
		if !bytes.HasPrefix(data, []byte(text)) {
			t.Errorf("%q is read as %q", data, text)
		}
	})
}

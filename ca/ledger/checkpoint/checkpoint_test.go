package checkpoint_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/ledger/checkpoint"
	"github.com/writ-mesh/writ/ca/ledger/ledgertest"
)

const name = "example.org/ledger"

func key(t *testing.T, path string) *checkpoint.Signer {
	t.Helper()
	s, err := checkpoint.OpenKey(path, name)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func memory(t *testing.T, from, to int) *ledgertest.Memory {
	t.Helper()
	m := ledgertest.NewMemory()
	for n := from; n < to; n++ {
		if _, err := m.Commit(t.Context(), ledgertest.Issue(n)); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func head(t *testing.T, m *ledgertest.Memory) ledger.Head {
	t.Helper()
	h, err := m.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.key")
	first := key(t, path)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("got %v, %v", info.Mode(), err)
	}
	if again := key(t, path); again.Verifier != first.Verifier || again.Log != name {
		t.Fatal("the second start has another key")
	}
	secret, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for what, spoil := range map[string]func() error{
		"damaged": func() error { return os.WriteFile(path, secret[:len(secret)/2], 0o600) },
		"empty":   func() error { return os.WriteFile(path, nil, 0o600) },
		"renamed": func() error {
			return os.WriteFile(path, []byte(strings.Replace(string(secret), name, "a/ledger", 1)), 0o600)
		},
		"mode": func() error { return os.Chmod(path, 0o640) },
	} {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, secret, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		if _, err := checkpoint.OpenKey(path, name); err == nil || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "PRIVATE") {
			t.Errorf("%s: got %v", what, err)
		}
	}
}

func TestSignedAndRead(t *testing.T) {
	s := key(t, filepath.Join(t.TempDir(), "k"))
	want := head(t, memory(t, 0, 5))
	text, err := s.Sign(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := checkpoint.Open(text, s.Verifier+"\n")
	if err != nil || got.Head != want || got.Log != name {
		t.Fatalf("got %+v, %v", got, err)
	}
	other := key(t, filepath.Join(t.TempDir(), "k"))
	if _, err := checkpoint.Open(text, other.Verifier); err == nil {
		t.Error("another key's word was taken")
	}
	if _, err := checkpoint.Open(text, ""); err == nil {
		t.Error("a checkpoint was taken without a key")
	}
	for at := range text {
		bad := []byte(string(text))
		bad[at] ^= 1
		if cp, err := checkpoint.Open(bad, s.Verifier); err == nil && cp.Head != want {
			t.Errorf("byte %d is changed, and %+v was read", at, cp)
		}
	}
}

// A log is the same one, perhaps longer, or it is found out.
func TestCompare(t *testing.T) {
	earlier := head(t, memory(t, 0, 300))
	for what, tc := range map[string]struct {
		now  *ledgertest.Memory
		want string
	}{
		"same": {memory(t, 0, 300), ""}, "longer": {memory(t, 0, 301), ""}, "shorter": {memory(t, 0, 299), "the last ones are lost"},
		"another": {memory(t, 1, 301), "altered"}, "another, longer": {memory(t, 1, 600), "altered"}, "empty": {memory(t, 0, 0), "lost"},
	} {
		err := checkpoint.Compare(t.Context(), tc.now, earlier)
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: got %v", what, err)
		}
	}
	if err := checkpoint.Compare(t.Context(), memory(t, 0, 3), head(t, memory(t, 0, 0))); err != nil {
		t.Errorf("from nothing on: %v", err)
	}
}

func TestAudit(t *testing.T) {
	m := memory(t, 0, 1500)
	known := []ledger.Head{head(t, memory(t, 0, 7)), head(t, memory(t, 0, 1024)), head(t, m), head(t, memory(t, 0, 0))}
	audit := func(known []ledger.Head, change func(*ledger.Record)) error {
		a := checkpoint.Audit{Known: append([]ledger.Head{}, known...)}
		err := m.Each(t.Context(), 0, func(r ledger.Record) error {
			if change != nil {
				change(&r)
			}
			return a.Add(r)
		})
		if err != nil {
			return err
		}
		h, err := a.End()
		if err == nil && h != head(t, m) {
			t.Errorf("got %+v", h)
		}
		return err
	}
	if err := audit(known, nil); err != nil {
		t.Fatal(err)
	}
	longer := append(known, head(t, memory(t, 0, 1501)))
	for what, err := range map[string]error{
		"had 1501":     audit(longer, nil),
		"first 7 ent":  audit(known, func(r *ledger.Record) { swap(r, 3) }),
		"first 1024":   audit(known, func(r *ledger.Record) { swap(r, 7) }),
		"first 1500":   audit(known, func(r *ledger.Record) { swap(r, 1499) }),
		"comes where":  audit(nil, func(r *ledger.Record) { r.Index++ }),
		"entry 5":      audit(nil, func(r *ledger.Record) { cut(r, 5) }),
		"does not nam": audit(nil, func(r *ledger.Record) { r.Values = []byte(`{"a":"YQ=="}`) }),
	} {
		if err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: got %v", what, err)
		}
	}
}

func swap(r *ledger.Record, index uint64) {
	if r.Index == index {
		r.Leaf = []byte(strings.Replace(string(r.Leaf), "issued", "issueD", 1))
	}
}

func cut(r *ledger.Record, index uint64) {
	if r.Index == index {
		r.Leaf = r.Leaf[:10]
	}
}

package basedoc

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/storage"
)

// contentAt is the hash of what is at a path.
func contentAt(t *testing.T, s *Store, most int, path ...string) ([sha256.Size]byte, int, error) {
	t.Helper()
	txn, err := s.NewTransaction(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Abort(t.Context(), txn)
	h := sha256.New()
	n, err := s.Content(txn, path, h, most)
	return [sha256.Size]byte(h.Sum(nil)), n, err
}

// Two values have the same content only if they are the same, wherever in their documents
// they are; and of what is the same, in the same order, it is the same.
func TestContent(t *testing.T) {
	first := make(map[[sha256.Size]byte]ast.Value)
	add := func(text string) {
		doc, err := parse([]byte(text))
		if err != nil || !json.Valid([]byte(text)) { // what is YAML is not the same in a document
			return
		}
		s := New()
		s.Fill(Data{root: value{object: &object{over: map[string]value{"x": {doc: doc}}}}})
		sum, n, err := contentAt(t, s, 1<<30, "x")
		if err != nil {
			t.Fatal(err)
		}
		v := value{doc: doc}.ast()
		if was, seen := first[sum]; seen && was.Compare(v) != 0 {
			t.Errorf("the same content for\n%v\n%v", was, v)
		}
		first[sum] = v

		around, err := parse([]byte(`{"before": [` + strings.TrimSuffix(strings.Repeat("1,", 400), ",") + `], "x": ` + text + `, "after": 1}`))
		if err != nil {
			return // too deep
		}
		s.Fill(Data{root: value{doc: around}})
		if got, again, err := contentAt(t, s, 1<<30, "x"); got != sum || again != n || err != nil {
			t.Errorf("another content, error %v, further behind in a document, of %.100s", err, text)
		}
		if _, _, err := contentAt(t, s, n-1, "x"); !errors.Is(err, errLarge) {
			t.Errorf("error %v for %d bytes of room", err, n-1)
		}
	}
	for _, text := range texts() {
		add(text)
	}
	r := rand.New(rand.NewPCG(7, 8)) //nolint:gosec // a test's
	for range 1000 {
		add(randomJSON(r, 0))
	}
	if len(first) < 500 {
		t.Errorf("%d different contents", len(first))
	}
}

// randomJSON has containers small and large in each other, and few different members.
func randomJSON(r *rand.Rand, depth int) string {
	kind := r.IntN(7)
	if depth > 2 {
		kind = r.IntN(4)
	}
	switch kind {
	case 0:
		return []string{"null", "true", "false", "1", "10", "1.0", `""`, `"1"`}[r.IntN(8)]
	case 1:
		return fmt.Sprintf("%q", strings.Repeat("x", 62+r.IntN(3)))
	case 2:
		return fmt.Sprint(r.IntN(3))
	case 3:
		return fmt.Sprintf("%q", fmt.Sprint(r.IntN(3)))
	}
	n := []int{0, 1, 2, 3, 17, 60}[r.IntN(6)]
	if depth > 0 {
		n = min(n, 20-6*depth)
	}
	members := make([]string, n)
	for i := range members {
		members[i] = randomJSON(r, depth+1)
		if kind > 4 {
			members[i] = fmt.Sprintf(`"%d": %s`, i, members[i])
		}
	}
	if kind > 4 {
		return "{" + strings.Join(members, ",") + "}"
	}
	return "[" + strings.Join(members, ",") + "]"
}

// Each write below a path changes what is there, unless nothing changes.
func TestContentFollowsWrites(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 10)) //nolint:gosec // a test's
	s := New()
	seen := make(map[[sha256.Size]byte]ast.Value)
	names := []string{"a", "b", "c"}
	for range 3000 {
		var path storage.Path
		for range 1 + r.IntN(3) {
			path = append(path, names[r.IntN(len(names))])
		}
		op := []storage.PatchOp{storage.AddOp, storage.AddOp, storage.RemoveOp}[r.IntN(3)]
		_ = storage.WriteOne(t.Context(), s, op, path, []any{map[string]any{}, "b", r.IntN(4), map[string]any{"b": 1}}[r.IntN(4)])
		for _, at := range []storage.Path{{}, {"a"}, {"a", "b"}} {
			sum, _, err := contentAt(t, s, 1<<20, at...)
			if err != nil {
				t.Fatal(err)
			}
			v, err := storage.ReadOne(t.Context(), s, at)
			if err != nil {
				v = ast.Var("nothing")
			}
			if was, ok := seen[sum]; ok && was.Compare(v.(ast.Value)) != 0 {
				t.Fatalf("the same content for %v and %v", was, v)
			}
			seen[sum] = v.(ast.Value)
		}
	}
	if len(seen) < 100 {
		t.Errorf("%d different contents", len(seen))
	}
}

package cli

import (
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/ledger/ledgertest"
)

// The documents of a moment are compared with the log, which may have gone on since.
func TestDocumentsAreThoseOfTheLog(t *testing.T) {
	changes := []ledger.Change{
		ledgertest.Put("a", "1"), ledgertest.Put("b", "1"), ledgertest.Put("a", "2"), ledgertest.Issue(1),
		{Entry: ledger.Entry{Kind: ledger.Unrevoked}, Delete: []string{"b"}},
		ledgertest.Put("c", "1"),
	}
	var log []ledger.Record
	for i, c := range changes {
		r, err := ledger.Encode(c)
		if err != nil {
			t.Fatal(err)
		}
		r.Index = uint64(i)
		log = append(log, r)
	}
	doc := func(version int, value string) heldDocument {
		return heldDocument{uint64(version), sha256.Sum256([]byte(value))}
	}
	type docs = map[string]heldDocument
	for i, tc := range []struct {
		from uint64
		live docs
		want string
	}{
		{6, docs{"a": doc(3, "2"), "c": doc(6, "1")}, ""},
		{4, docs{"a": doc(3, "2"), "b": doc(2, "1")}, ""},
		{4, docs{"a": doc(3, "2")}, ""},                   // read after b was deleted
		{4, docs{"a": doc(3, "2"), "c": doc(6, "1")}, ""}, // and after c came
		{0, docs{}, ""},
		{6, docs{"a": doc(3, "2")}, "document c, which entry 5 put, is not among"},
		{6, docs{"a": doc(1, "1"), "c": doc(6, "1")}, "document a that the authority goes by (of entry 0) is not the one that entry 2 put"},
		{6, docs{"a": doc(3, "3"), "c": doc(6, "1")}, "document a that"},
		{6, docs{"a": doc(3, "2"), "b": doc(2, "1"), "c": doc(6, "1")}, "document b that the log does not have"},
		{6, docs{"a": doc(3, "2"), "c": doc(6, "1"), "d": doc(7, "1")}, "document d that the log does not have"},
		{2, docs{"a": doc(1, "1")}, ""}, // b went later
		{2, docs{"b": doc(2, "1")}, "document a, which entry 2 put"},
	} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			a := newDocumentsAudit(tc.from, tc.live)
			for _, r := range log {
				if err := a.add(r); err != nil {
					t.Fatal(err)
				}
			}
			err := a.end()
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

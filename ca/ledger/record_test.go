package ledger_test

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/ledger/ledgertest"
)

// What Encode lays out is read again as it was, on one line.
func TestRecord(t *testing.T) {
	for name, c := range map[string]ledger.Change{
		"certificate": ledgertest.Issue(3),
		"document":    ledgertest.Put("a/1", "line\nand\ttab \x00\xff"),
		"both":        {Entry: ledger.Entry{Kind: ledger.Rotated, Actor: "a\nb\tc<&>\u2028"}, Put: map[string][]byte{"a": {}}, Delete: []string{"b", "c"}},
	} {
		r, err := ledger.Encode(c)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.ContainsAny(r.Leaf, "\n\t") || bytes.ContainsAny(r.Values, "\n\t") {
			t.Errorf("%s: it is of several lines or fields: %q, %q", name, r.Leaf, r.Values)
		}
		e, err := r.Entry()
		if err != nil || e.Kind != c.Entry.Kind || e.Actor != c.Entry.Actor || !e.Time.Equal(c.Entry.Time) || len(e.Documents) != len(c.Put)+len(c.Delete) {
			t.Errorf("%s: got %+v, %v", name, e, err)
		}
		put, deleted, err := r.Documents()
		if err != nil || len(put) != len(c.Put) || len(deleted) != len(c.Delete) {
			t.Fatalf("%s: got %v, %v, %v", name, put, deleted, err)
		}
		for _, d := range put {
			if !bytes.Equal(d.Value, c.Put[d.Key]) || d.Value == nil {
				t.Errorf("%s: %s is %q", name, d.Key, d.Value)
			}
		}
	}
}

// An entry may not name documents by itself.
func TestDocumentsAreTheStores(t *testing.T) {
	r, err := ledger.Encode(ledger.Change{Entry: ledger.Entry{Kind: ledger.Issued, Time: time.Now(), Documents: map[string]string{"a": "b"}}})
	if err != nil {
		t.Fatal(err)
	}
	if put, deleted, err := r.Documents(); err != nil || len(put)+len(deleted) > 0 {
		t.Fatalf("got %v, %v, %v", put, deleted, err)
	}
}

// Any bytes are an entry with its documents, or an error; and documents that are taken
// are those that the entry names.
func FuzzRecord(f *testing.F) {
	for _, c := range []ledger.Change{ledgertest.Issue(1), ledgertest.Put("a", "b"), ledgertest.Use("a", 1, 2)} {
		r, err := ledger.Encode(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(r.Leaf, r.Values)
	}
	f.Add([]byte(`{"kind":"x","documents":{"a":""}}`), []byte(`{"a":null}`))
	f.Add([]byte(`{"kind":"x","documents":null}`), []byte(`{}`))
	f.Add([]byte(`null`), []byte(`null`))
	f.Fuzz(func(t *testing.T, leaf, values []byte) {
		r := ledger.Record{Leaf: leaf, Values: values}
		put, deleted, err := r.Documents()
		if err != nil || len(put)+len(deleted) == 0 {
			return
		}
		e, err := r.Entry()
		if err != nil {
			t.Fatalf("documents without an entry: %v", err)
		}
		if len(e.Documents) != len(put)+len(deleted) {
			t.Fatalf("the entry names %v, got %v and %v", e.Documents, put, deleted)
		}
		for _, d := range put {
			if len(e.Documents[d.Key]) != 64 {
				t.Fatalf("%s has the hash %q", d.Key, e.Documents[d.Key])
			}
		}
		if _, err := json.Marshal(e); err != nil {
			t.Fatal(err)
		}
	})
}

package ledger

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
)

const (
	// maxLeaf bounds an entry as it is stored, in bytes.
	maxLeaf = 64 << 10
	// maxValues bounds the values that one change puts, in bytes.
	maxValues = 256 << 10
	// maxKey bounds the key of a document, in bytes.
	maxKey = 512
)

// Record is an entry as it is stored, with the documents put along with it.
type Record struct {
	// Index is the number of the entry, from 0.
	Index uint64
	// Leaf is the entry in JSON, without a newline or a tab. It is what the Merkle
	// tree is over.
	Leaf []byte
	// Values are the documents in JSON, each in base64 by its key; empty if none was
	// put. The leaf has their hashes.
	Values []byte
}

// Encode checks a change and lays it out for a store; the index is the store's to
// fill in.
func Encode(c Change) (Record, error) {
	e := c.Entry
	if e.Kind == "" {
		return Record{}, errors.New("ledger: a change without an entry")
	}
	e.Documents = nil
	var r Record
	if len(c.Put)+len(c.Delete) > 0 {
		if err := checkDocuments(c); err != nil {
			return Record{}, err
		}
		e.Documents = make(map[string]string, len(c.Put)+len(c.Delete))
		for key, value := range c.Put {
			e.Documents[key] = hashOf(value)
		}
		for _, key := range c.Delete {
			e.Documents[key] = ""
		}
	}
	var err error
	if len(c.Put) > 0 {
		if r.Values, err = json.Marshal(c.Put); err != nil {
			return Record{}, fmt.Errorf("ledger: %w", err)
		}
	}
	if r.Leaf, err = json.Marshal(e); err != nil {
		return Record{}, fmt.Errorf("ledger: %w", err)
	}
	if len(r.Leaf) > maxLeaf {
		return Record{}, fmt.Errorf("ledger: an entry of %d bytes is too long, %d are the most", len(r.Leaf), maxLeaf)
	}
	return r, nil
}

func checkDocuments(c Change) error {
	total := 0
	for key, value := range c.Put {
		if value == nil {
			return fmt.Errorf("ledger: document %s has no value", key)
		}
		if total += len(value); total > maxValues {
			return fmt.Errorf("ledger: documents of more than %d bytes in one change", maxValues)
		}
		if slices.Contains(c.Delete, key) {
			return fmt.Errorf("ledger: document %s is both put and deleted", key)
		}
	}
	for _, keys := range [][]string{c.Delete, slices.Collect(maps.Keys(c.Put))} {
		for _, key := range keys {
			if !validKey(key) {
				return fmt.Errorf("ledger: %q cannot be the key of a document", key)
			}
		}
	}
	return nil
}

func validKey(key string) bool {
	for _, c := range []byte(key) {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return key != "" && len(key) <= maxKey
}

func hashOf(value []byte) string {
	sum := sha256.Sum256(value)
	return hex.EncodeToString(sum[:])
}

// Entry reads the entry.
func (r Record) Entry() (Entry, error) {
	var e Entry
	if err := json.Unmarshal(r.Leaf, &e); err != nil {
		return Entry{}, fmt.Errorf("entry %d: %w", r.Index, err)
	}
	if e.Kind == "" {
		return Entry{}, fmt.Errorf("entry %d says nothing of what happened", r.Index)
	}
	return e, nil
}

// Holds tells whether the record put that document.
func (r Record) Holds(d Document) error {
	e, err := r.Entry()
	if err != nil {
		return err
	}
	if hash := e.Documents[d.Key]; d.Version != r.Index+1 || hash == "" || hash != hashOf(d.Value) {
		return fmt.Errorf("document %s is not the one that entry %d names", d.Key, r.Index)
	}
	return nil
}

// Documents returns what the record did to documents: those that it put, and the keys
// of those that it deleted. Values that are not those that the entry names are an
// error.
func (r Record) Documents() (put []Document, deleted []string, err error) {
	if len(r.Values) == 0 && !bytes.Contains(r.Leaf, []byte(`"documents"`)) {
		return nil, nil, nil // as most do
	}
	e, err := r.Entry()
	if err != nil {
		return nil, nil, err
	}
	var values map[string][]byte
	if len(r.Values) > 0 {
		if err := json.Unmarshal(r.Values, &values); err != nil {
			return nil, nil, fmt.Errorf("entry %d: its documents: %w", r.Index, err)
		}
	}
	for key, hash := range e.Documents {
		value, found := values[key]
		switch {
		case found != (hash != ""), found && (value == nil || hashOf(value) != hash):
			return nil, nil, fmt.Errorf("entry %d: document %s is not the one that the entry names", r.Index, key)
		case found:
			put = append(put, Document{Key: key, Value: value, Version: r.Index + 1})
		default:
			deleted = append(deleted, key)
		}
		delete(values, key)
	}
	if len(values) > 0 {
		return nil, nil, fmt.Errorf("entry %d: it has documents that it does not name", r.Index)
	}
	return put, deleted, nil
}

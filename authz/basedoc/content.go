package basedoc

import (
	"encoding/binary"
	"errors"
	"hash"
	"maps"
	"slices"

	"github.com/open-policy-agent/opa/v1/storage"
)

// errLarge says that there is more than was asked for.
var errLarge = errors.New("the data are larger")

const (
	// contentNothing, contentDocument and contentObject begin what is written of a value.
	contentNothing  = 'x'
	contentDocument = 'd'
	contentObject   = 'o'
	// tableAt is where the head of a large container says where its table is.
	tableAt = 9
)

// Content writes what a transaction sees at a path to h, so that different values give
// different bytes; the same value may give different ones as well, if its members come in
// another order. It gives how many bytes were written, and fails beyond most of them.
func (s *Store) Content(txn storage.Transaction, path storage.Path, h hash.Hash, most int) (int, error) {
	t, err := s.own(txn)
	if err != nil {
		return 0, err
	}
	c := content{to: h, left: most}
	err = c.value(t.root.find(path))
	return most - c.left, err
}

// content is written to a hash, as long as something is left of the room for it.
type content struct {
	to   hash.Hash
	left int
}

func (c *content) write(b []byte) error {
	if c.left -= len(b); c.left < 0 {
		c.left = 0
		return errLarge
	}
	_, err := c.to.Write(b)
	return err
}

// number writes what kind something is and how many of it there are.
func (c *content) number(kind byte, n int) error {
	return c.write(binary.AppendUvarint([]byte{kind}, uint64(n))) //nolint:gosec // a length
}

func (c *content) value(v value) error {
	switch {
	case v.isNothing():
		return c.write([]byte{contentNothing})
	case v.object == nil:
		if err := c.write([]byte{contentDocument}); err != nil {
			return err
		}
		return c.document(v.doc, v.at)
	}
	members := maps.Collect(v.members())
	if err := c.number(contentObject, len(members)); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(members)) {
		if err := c.number(kindText, len(name)); err != nil {
			return err
		}
		if err := c.write([]byte(name)); err != nil {
			return err
		}
		if err := c.value(members[name]); err != nil {
			return err
		}
	}
	return nil
}

// document writes the bytes of a value, without the places of tables: these depend on what
// else is in the document. Only a large container has such places in it.
func (c *content) document(d *document, at int) error {
	if !d.isLarge(at) {
		return c.write(d.b[at:d.end(at)])
	}
	if err := c.write(d.b[at : at+tableAt]); err != nil {
		return err
	}
	begin, to := d.body(at)
	for next := begin; next < to; {
		if d.isObject(at) {
			_, next = d.text(next)
		}
		if d.isLarge(next) {
			if err := c.write(d.b[begin:next]); err != nil {
				return err
			}
			if err := c.document(d, next); err != nil {
				return err
			}
			begin = d.end(next)
		}
		next = d.end(next)
	}
	return c.write(d.b[begin:to])
}

func (d *document) isLarge(at int) bool { return d.b[at] == kindArray || d.b[at] == kindObject }

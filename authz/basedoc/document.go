package basedoc

import (
	"encoding/binary"
	"hash/maphash"
	"math/bits"

	"github.com/open-policy-agent/opa/v1/util"
)

// document is a JSON value in the form in which it is kept. Each value is a byte that
// says what it is, and its content:
//
//	null, false, true             nothing
//	short text, number            up to 63 bytes; their number is in the first byte
//	long text, number             uvarint, so many bytes
//	small array, object           one byte, so many bytes of members
//	large array, object           three little-endian uint32: bytes of members,
//	                              how many members, where in tables they are found
//	                              plus one, or 0
//
// Members of an object are a text and a value each. Texts are UTF-8 and have no escapes;
// no object has a name twice.
type document struct {
	b []byte
	// tables find members of large containers. Of an array: the position of each.
	// Of an object: how many slots follow, and in each the position of a member plus
	// one, or 0; the first slot to look at is by the hash of the name.
	tables []uint32
	seed   maphash.Seed

	made made
}

const (
	kindNull = iota
	kindFalse
	kindTrue
	kindText
	kindNumber
	kindSmallArray
	kindSmallObject
	kindArray
	kindObject

	shortText   = 0x80
	shortNumber = 0xc0
	shortMask   = 0x3f
	maxShort    = 0x3f

	// smallHead and largeHead are the bytes before the members of a container.
	smallHead = 2
	largeHead = 13
	// smallBody is what the members of a small container have at most, in bytes.
	smallBody = 0xff
	// fewMembers are looked through one by one.
	fewMembers = 16
)

// text is a text or a number at a position: where its bytes begin and end.
func (d *document) text(at int) (from, to int) {
	t := d.b[at]
	if t >= shortText {
		return at + 1, at + 1 + int(t&shortMask)
	}
	n, w := binary.Uvarint(d.b[at+1:])
	from = at + 1 + w
	return from, from + int(n) //nolint:gosec // within the document
}

// body is where the members of a container begin and end.
func (d *document) body(at int) (from, to int) {
	switch d.b[at] {
	case kindSmallArray, kindSmallObject:
		from = at + smallHead
		return from, from + int(d.b[at+1])
	default:
		from = at + largeHead
		return from, from + int(binary.LittleEndian.Uint32(d.b[at+1:]))
	}
}

// table is where in tables a container's is, false if it has none.
func (d *document) table(at int) (int, bool) {
	switch d.b[at] {
	case kindArray, kindObject:
		t := binary.LittleEndian.Uint32(d.b[at+9:])
		return int(t) - 1, t > 0
	}
	return 0, false
}

// end is where a value ends.
func (d *document) end(at int) int {
	switch t := d.b[at]; {
	case t >= shortText || t == kindText || t == kindNumber:
		_, to := d.text(at)
		return to
	case t <= kindTrue:
		return at + 1
	default:
		_, to := d.body(at)
		return to
	}
}

func (d *document) isObject(at int) bool {
	return d.b[at] == kindObject || d.b[at] == kindSmallObject
}

func (d *document) isArray(at int) bool {
	return d.b[at] == kindArray || d.b[at] == kindSmallArray
}

// child finds a member by its name or, in an array, its number.
func (d *document) child(at int, name string) (int, bool) {
	switch {
	case d.isObject(at):
		return d.member(at, name)
	case d.isArray(at):
		i, ok := util.Atoi(name)
		if !ok || i < 0 {
			return 0, false
		}
		return d.element(at, i)
	}
	return 0, false
}

func (d *document) member(at int, name string) (int, bool) {
	if t, ok := d.table(at); ok {
		slots := d.tables[t+1 : t+1+int(d.tables[t])]
		for i := slot(maphash.String(d.seed, name), len(slots)); slots[i] != 0; i = next(i, len(slots)) {
			if from, to := d.text(int(slots[i] - 1)); string(d.b[from:to]) == name {
				return to, true
			}
		}
		return 0, false
	}
	from, to := d.body(at)
	for from < to {
		begin, value := d.text(from)
		if string(d.b[begin:value]) == name {
			return value, true
		}
		from = d.end(value)
	}
	return 0, false
}

func (d *document) element(at, i int) (int, bool) {
	if t, ok := d.table(at); ok {
		if n := int(binary.LittleEndian.Uint32(d.b[at+5:])); i >= n {
			return 0, false
		}
		return int(d.tables[t+i]), true
	}
	from, to := d.body(at)
	for ; from < to; from = d.end(from) {
		if i == 0 {
			return from, true
		}
		i--
	}
	return 0, false
}

// slot spreads a hash over n slots.
func slot(hash uint64, n int) int {
	hi, _ := bits.Mul64(hash, uint64(n)) //nolint:gosec // a length
	return int(hi)                       //nolint:gosec // less than n
}

func next(i, n int) int {
	if i++; i == n {
		return 0
	}
	return i
}

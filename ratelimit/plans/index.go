package plans

import (
	"hash/maphash"
	"slices"
)

// index maps callers to entries: a hash table with open addressing in slices without
// pointers. A caller takes its name, 8 bytes and 5 to 11 for its slot. The
// names have at most maxNames bytes, so that offsets fit.
type index struct {
	seed maphash.Seed
	// slots are indexes into the callers, plus one, and above them eight bits of the
	// name's hash, so that hardly a name is compared that is another. There is a power of
	// two of them, at most three quarters in use.
	slots   []uint32
	starts  []uint32 // of the callers' names in text, each ends where the next begins
	entries []entry
	text    []byte
}

func newIndex() *index {
	return &index{seed: maphash.MakeSeed(), slots: make([]uint32, 64)}
}

func (x *index) len() int { return len(x.entries) }

func (x *index) name(i uint32) []byte {
	end := len(x.text)
	if int(i)+1 < len(x.starts) {
		end = int(x.starts[i+1])
	}
	return x.text[x.starts[i]:end]
}

// indexBits of a slot are the index.
const indexBits = 24

// tag is the bits of a hash that stand in a slot.
func tag(hash uint64) uint32 { return uint32(hash>>(64-8)) << indexBits } //nolint:gosec // eight bits

// find gives a caller's entry, nobody if there is none.
func (x *index) find(caller string) entry { return findIn(x, maphash.String(x.seed, caller), caller) }

// findBytes is find.
func (x *index) findBytes(caller []byte) entry {
	return findIn(x, maphash.Bytes(x.seed, caller), caller)
}

func findIn[S string | []byte](x *index, hash uint64, caller S) entry {
	mask := uint64(len(x.slots) - 1)
	for at := hash & mask; ; at = (at + 1) & mask {
		slot := x.slots[at]
		if slot == 0 {
			return nobody
		}
		if i := slot&(1<<indexBits-1) - 1; slot&^(1<<indexBits-1) == tag(hash) && string(x.name(i)) == string(caller) {
			return x.entries[i]
		}
	}
}

// put sets a caller's entry and says whether there was one.
func (x *index) put(caller []byte, e entry) (was bool) {
	if (len(x.entries)+1)*4 > len(x.slots)*3 {
		x.rehash(2 * len(x.slots))
	}
	mask, hash := uint64(len(x.slots)-1), maphash.Bytes(x.seed, caller)
	at := hash & mask
	for ; x.slots[at] != 0; at = (at + 1) & mask {
		slot := x.slots[at]
		if i := slot&(1<<indexBits-1) - 1; slot&^(1<<indexBits-1) == tag(hash) && string(x.name(i)) == string(caller) {
			x.entries[i] = e
			return true
		}
	}
	x.starts = append(doubled(x.starts, 1), uint32(len(x.text))) //nolint:gosec // at most maxNames
	x.text = append(doubled(x.text, len(caller)), caller...)
	x.entries = append(doubled(x.entries, 1), e)
	x.slots[at] = uint32(len(x.entries)) | tag(hash) //nolint:gosec // at most MaxCallers
	return false
}

// reserve makes room for so many callers, whose names have so many bytes together.
func (x *index) reserve(callers, names int) {
	slots := len(x.slots)
	for slots*3 < callers*4 {
		slots *= 2
	}
	if slots > len(x.slots) {
		x.rehash(slots)
	}
	x.starts, x.entries = slices.Grow(x.starts, max(0, callers-len(x.starts))), slices.Grow(x.entries, max(0, callers-len(x.entries)))
	x.text = slices.Grow(x.text, max(0, names-len(x.text)))
}

// rehash makes so many slots, a power of two.
func (x *index) rehash(slots int) {
	x.slots = make([]uint32, slots)
	mask := uint64(len(x.slots) - 1)
	for i := range x.entries {
		hash := maphash.Bytes(x.seed, x.name(uint32(i))) //nolint:gosec // at most MaxCallers
		at := hash & mask
		for x.slots[at] != 0 {
			at = (at + 1) & mask
		}
		x.slots[at] = uint32(i+1) | tag(hash) //nolint:gosec // at most MaxCallers
	}
}

// doubled has room for n more. Append alone grows what is large by a quarter, and copies
// the more often.
func doubled[E any](s []E, n int) []E {
	if len(s)+n <= cap(s) {
		return s
	}
	return slices.Grow(s, max(len(s), n))
}

// clip gives back what the slices have in reserve.
func (x *index) clip() {
	x.text, x.starts, x.entries = clipped(x.text), clipped(x.starts), clipped(x.entries)
}

func clipped[E any](s []E) []E {
	if cap(s)-len(s) < len(s)/16 {
		return s
	}
	return append(make([]E, 0, len(s)), s...)
}

// each calls f for all callers, in the order in which they came.
func (x *index) each(f func(caller []byte, e entry)) {
	for i, e := range x.entries {
		f(x.name(uint32(i)), e) //nolint:gosec // at most MaxCallers
	}
}

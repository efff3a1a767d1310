package region

import (
	"iter"
	"math/bits"
	"slices"
)

// Set is a set of cells of one variable.
type Set []uint64

func newSet(cells int) Set { return make(Set, (cells+63)/64) }

func (s Set) has(i int) bool { return s[i/64]&(1<<(i%64)) != 0 }

func (s Set) add(i int) { s[i/64] |= 1 << (i % 64) }

// Or gives the union of sets of one variable.
func (s Set) Or(o Set) Set {
	out := make(Set, len(s))
	for i := range s {
		out[i] = s[i] | o[i]
	}
	return out
}

// And gives the intersection.
func (s Set) And(o Set) Set {
	out := make(Set, len(s))
	for i := range s {
		out[i] = s[i] & o[i]
	}
	return out
}

// Minus gives what is in s and not in o.
func (s Set) Minus(o Set) Set {
	out := make(Set, len(s))
	for i := range s {
		out[i] = s[i] &^ o[i]
	}
	return out
}

// Empty says that no cell is in the set.
func (s Set) Empty() bool { return s.len() == 0 }

func (s Set) len() int {
	n := 0
	for _, w := range s {
		n += bits.OnesCount64(w)
	}
	return n
}

func (s Set) equal(o Set) bool { return slices.Equal(s, o) }

// inside says that s has nothing that o has not.
func (s Set) inside(o Set) bool {
	for i := range s {
		if s[i]&^o[i] != 0 {
			return false
		}
	}
	return true
}

// common counts the cells that are in both.
func (s Set) common(o Set) int {
	n := 0
	for i := range s {
		n += bits.OnesCount64(s[i] & o[i])
	}
	return n
}

// all gives the cells in their order.
func (s Set) all() iter.Seq[int] {
	return func(yield func(int) bool) {
		for i, w := range s {
			for ; w != 0; w &= w - 1 {
				if !yield(i*64 + bits.TrailingZeros64(w)) {
					return
				}
			}
		}
	}
}

// first gives the least cell, -1 if there is none.
func (s Set) first() int {
	for i, w := range s {
		if w != 0 {
			return i*64 + bits.TrailingZeros64(w)
		}
	}
	return -1
}

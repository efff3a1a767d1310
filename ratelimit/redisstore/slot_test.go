package redisstore

import (
	"math/rand/v2"
	"testing"
)

// TestSlot: as CLUSTER KEYSLOT of a real Redis says.
func TestSlot(t *testing.T) {
	for key, want := range map[string]uint16{
		"123456789": 12739, "": 0, "foo": 12182, "{foo}.bar": 12182, "a{foo}{bar}": 12182, "{}foo": 9500, "foo{": 7673, "writ:{default/q}:0:s": 15836,
	} {
		if got := slot(key); got != want {
			t.Errorf("%q is in slot %d, want %d", key, got, want)
		}
	}
}

// TestTagOf: each slot has one, which is no search that a caller's name can ask for.
func TestTagOf(t *testing.T) {
	for of := range uint16(slots) {
		if tag := tagOf(of); len(tag) != 2 || slot("x{"+tag+"}y") != of {
			t.Errorf("the tag of slot %d is %q", of, tag)
		}
	}
}

// TestIDsAreBesideTheirCounters: one script may touch both, whatever callers are called.
func TestIDsAreBesideTheirCounters(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		counter := make([]byte, rng.IntN(8))
		for i := range counter {
			counter[i] = "ab{}{}:\xff"[rng.IntN(8)]
		}
		if key := idKey(string(counter), "{x}"); slot(key) != slot(string(counter)) {
			t.Errorf("the id of %q is %q, in slot %d and not %d", counter, key, slot(key), slot(string(counter)))
		}
	}
}

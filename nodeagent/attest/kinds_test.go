package attest

import (
	"math/bits"
	"testing"

	"github.com/writ-mesh/writ/internal/fact"
)

// TestEachKindHasAPlace: none shares a bit with another, and none is unknown here.
func TestEachKindHasAPlace(t *testing.T) {
	for _, k := range fact.Kinds() {
		if place(k) >= len(fact.Kinds()) {
			t.Errorf("%s has no place", k)
		}
	}
	if n := bits.OnesCount32(uint32(allKinds())); n != len(fact.Kinds()) {
		t.Errorf("%d kinds have %d places", len(fact.Kinds()), n)
	}
}

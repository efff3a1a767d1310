package xds

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestWithIsTheSetOfBoth: whatever the two parts hold, With gives the set that
// Set makes of one list, and gives it again for the same parts.
func TestWithIsTheSetOfBoth(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		b, plain := NewBuilder(), NewBuilder()
		list := func(b *Builder, names, generations []int) (out []*Resource) {
			for i, n := range names {
				r, err := b.Resource(fmt.Sprint("c", n), cluster(n, generations[i]), nil)
				if err != nil {
					t.Fatal(err)
				}
				out = append(out, r)
			}
			return out
		}
		part := func() (names, generations []int) {
			for range random.IntN(6) {
				names, generations = append(names, random.IntN(8)), append(generations, random.IntN(2))
			}
			return names, generations
		}
		ownNames, ownGenerations := part()
		names, generations := part()
		shared := b.Set(ClusterType, list(b, names, generations))
		got := b.With(shared, ClusterType, list(b, ownNames, ownGenerations))
		want := plain.Set(ClusterType, slices.Concat(list(plain, ownNames, ownGenerations), list(plain, names, generations)))
		if got.Hash != want.Hash || got.Len() != want.Len() || !slices.Equal(got.needed, want.needed) {
			t.Fatalf("%v %v with %v %v: %d resources, want %d", ownNames, ownGenerations, names, generations, got.Len(), want.Len())
		}
		for i, r := range got.Resources() {
			if !r.same(want.Resources()[i]) {
				t.Fatalf("%v %v with %v %v: resource %d differs", ownNames, ownGenerations, names, generations, i)
			}
		}
		if again := b.With(shared, ClusterType, list(b, ownNames, ownGenerations)); again != got {
			t.Fatal("the same parts are put together twice")
		}
	}
}

// TestWithNothingShared: the resources alone are the set.
func TestWithNothingShared(t *testing.T) {
	b := NewBuilder()
	r, err := b.Resource("c1", cluster(1, 1), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := b.With(nil, ClusterType, []*Resource{r}); got != b.Set(ClusterType, []*Resource{r}) {
		t.Error("With without a shared part is not Set")
	}
	if got := b.With(nil, ClusterType, nil); got.Len() != 0 || got.TypeURL != ClusterType {
		t.Errorf("nothing at all gives %+v", got)
	}
}

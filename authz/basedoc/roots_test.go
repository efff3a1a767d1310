package basedoc

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	opabundle "github.com/open-policy-agent/opa/v1/bundle"
)

// Roots contain what OPA says they do.
func TestRootSet(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4)) //nolint:gosec // a test's
	path := func() string {
		parts := make([]string, r.IntN(4))
		for i := range parts {
			parts[i] = []string{"a", "ab", "b", "", "a.b"}[r.IntN(5)]
		}
		return strings.Join(parts, "/")
	}
	contained, begun := 0, 0
	const rounds = 20_000
	for range rounds {
		roots := make([]string, r.IntN(5))
		for i := range roots {
			roots[i] = path()
		}
		s, p := newRootSet(roots), path()
		want := opabundle.RootPathsContain(roots, p)
		if s.contain(p) != want {
			t.Fatalf("%q contain %q: %v, OPA says %v", roots, p, !want, want)
		}
		begins := slices.ContainsFunc(roots, func(root string) bool { return strings.HasPrefix(strings.Trim(root, "/"), p) })
		if s.begin(p) != begins {
			t.Fatalf("%q begin with %q: %v", roots, p, !begins)
		}
		if want {
			contained++
		}
		if begins {
			begun++
		}
	}
	if contained < rounds/10 || contained > rounds*9/10 || begun < rounds/20 || begun > rounds*9/10 {
		t.Errorf("of %d paths %d are contained and %d begin a root", rounds, contained, begun)
	}
}

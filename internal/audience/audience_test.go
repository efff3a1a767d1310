package audience_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/writ-mesh/writ/internal/audience"
)

func TestCheck(t *testing.T) {
	many := make([]string, 17)
	for i := range many {
		many[i] = strings.Repeat("a", i+1)
	}
	for name, tc := range map[string]struct {
		in   []string
		want []string
	}{
		"one":             {[]string{"https://example.org/x?y=z"}, []string{"https://example.org/x?y=z"}},
		"twice":           {[]string{"b", "a", "b"}, []string{"b", "a"}},
		"sixteen":         {many[:16], many[:16]},
		"longest":         {[]string{strings.Repeat("x", 512)}, []string{strings.Repeat("x", 512)}},
		"none":            {nil, nil},
		"empty":           {[]string{"a", ""}, nil},
		"too many":        {many, nil},
		"too long":        {[]string{strings.Repeat("x", 513)}, nil},
		"together":        {[]string{strings.Repeat("a", 512), strings.Repeat("b", 512), strings.Repeat("c", 512), strings.Repeat("d", 512), "e"}, nil},
		"the same, often": {slices.Repeat([]string{strings.Repeat("a", 512)}, 16), nil},
		"no UTF-8":        {[]string{"\xff"}, nil},
		"a line end":      {[]string{"a\nb"}, nil},
	} {
		got, err := audience.Check(tc.in)
		if (err == nil) != (tc.want != nil) || !slices.Equal(got, tc.want) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

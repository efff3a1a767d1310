package meshdir

import (
	"fmt"
	"strings"
	"testing"
)

// TestMatchesAreBounded: a policy whose matches come to more than an Envoy takes is
// refused here, because an Envoy would refuse all that comes with it.
func TestMatchesAreBounded(t *testing.T) {
	const policy = "kind: QuotaPolicy\nmetadata: {name: q}\nspec: {limits: [{requests: 1, every: 1m}], match: [%s]}\n"
	var principals []string
	for i := range maxQuotaValues {
		principals = append(principals, fmt.Sprintf("cluster.local/ns/default/sa/caller-%d", i))
	}
	match := "{principals: [" + strings.Join(principals, ", ") + "]}"
	for text, refused := range map[string]bool{
		match: false,
		strings.Join([]string{match, match, match}, ", "):                                 false,
		strings.TrimSuffix(strings.Repeat(match+", ", maxQuotaMatches), ", "):             true,
		"{paths: [/" + strings.Repeat("a", maxQuotaText) + "]}":                           true,
		"{methods: [GET], paths: [/" + strings.Repeat("a", 1000) + ", /b], hosts: [a.b]}": false,
	} {
		_, problems := Parse(map[string][]byte{"a.yaml": fmt.Appendf(nil, policy, text)}, nil, Options{})
		found := false
		for _, p := range Errors(problems) {
			if !strings.Contains(p.Message, "too long for Envoy") {
				t.Error(p)
			}
			found = true
		}
		if found != refused {
			t.Errorf("%s: refused: %v, want %v", shorten(text), found, refused)
		}
	}
}

package meshdir

import (
	"strings"
	"testing"
)

// TestAliasesOfALongText: a file of less than a mebibyte must not become
// gigabytes in whoever writes its values out.
func TestAliasesOfALongText(t *testing.T) {
	quota := "apiVersion: policy.writ.mesh/v1alpha1\nkind: QuotaPolicy\nmetadata: {name: q}\nspec:\n  limits: [{requests: 1, every: ["
	for name, values := range map[string]string{
		"as values": `&a "` + strings.Repeat("x", 900<<10) + `"` + strings.Repeat(", *a", 2000),
		"as keys":   `&a "` + strings.Repeat("x", 900<<10) + `"` + strings.Repeat(", {*a : 1}", 2000),
		"in lists":  `&a ["` + strings.Repeat("x", 900<<10) + `"]` + strings.Repeat(", *a", 2000),
	} {
		t.Run(name, func(t *testing.T) {
			_, problems := Parse(map[string][]byte{"q.yaml": []byte(quota + values + "]}]\n")}, nil, Options{})
			if len(problems) != 1 || !strings.Contains(problems[0].Message, "more than 4 MiB of text once aliases are expanded") {
				t.Errorf("problems: %d", len(problems))
			}
		})
	}
}

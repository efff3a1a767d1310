package security

import (
	"fmt"
	"strings"
	"testing"
)

// TestMarkIsBounded: what a mark asks is not more than an Envoy takes, however many
// limits there are.
func TestMarkIsBounded(t *testing.T) {
	if got := anyLimit([]string{"a", "b", "a"}); got != "(a || b)" {
		t.Errorf("conditions that are the same: %q", got)
	}
	if got := anyLimit(nil); got != never {
		t.Errorf("no limit: %q", got)
	}
	var conditions []string
	for i := 0; len(strings.Join(conditions, " || ")) < maxAnyLimit; i++ {
		text := anyLimit(conditions)
		mark := openMark(text, text).GetResponseMutations()[0].GetAppend().GetHeader().GetValue()
		if text == always || len(mark) > 100_000 {
			t.Fatalf("%d conditions: %.20s..., a mark of %d", i, text, len(mark))
		}
		conditions = append(conditions, fmt.Sprintf("%0*d in filter_state", maxAnyLimit/10, i))
	}
	if got := anyLimit(conditions); got != always {
		t.Errorf("a condition of %d", len(got))
	}
}

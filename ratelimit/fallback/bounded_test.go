package fallback

import (
	"fmt"
	"testing"

	"github.com/writ-mesh/writ/ratelimit/limit"
)

// TestDebtsAreBounded: an outage costs no more memory than so many counters.
func TestDebtsAreBounded(t *testing.T) {
	var d debts
	l, err := limit.New(limit.Sliding, 10, 1e9)
	if err != nil {
		t.Fatal(err)
	}
	for i := range maxDebts + 100 {
		d.add([]limit.Use{{Key: fmt.Sprint(i), Limit: l, Hits: 1}}, []limit.Outcome{{Taken: 1}})
	}
	if n := d.len(); n != maxDebts {
		t.Errorf("%d debts, want at most %d", n, maxDebts)
	}
}

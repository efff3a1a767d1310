package fallback

import (
	"fmt"
	"testing"
	"time"

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

// TestPlacesWithoutNames: to end what has no name ends nothing, and what others took is
// owed on.
func TestPlacesWithoutNames(t *testing.T) {
	var d debts
	l, err := limit.New(limit.Concurrency, 10, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	u, out := limit.Use{Key: "k", Limit: l, Hits: 1}, []limit.Outcome{{Taken: 1}}
	end := u
	end.Op, end.Hits = limit.Settle, 0
	for range 3 {
		d.add([]limit.Use{u}, out)
	}
	d.add([]limit.Use{end}, []limit.Outcome{{}})
	if owed := d.all[debt{counter: l.CounterKey("k", out[0].At)}]; owed.Op != limit.Charge || owed.Hits != 3 {
		t.Errorf("%+v is owed, want a charge of 3", owed)
	}
}

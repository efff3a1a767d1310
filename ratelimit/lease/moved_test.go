package lease_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/writ-mesh/writ/ratelimit/lease"
	"github.com/writ-mesh/writ/ratelimit/limit"
	"github.com/writ-mesh/writ/ratelimit/memory"
	"github.com/writ-mesh/writ/ratelimit/storetest"
)

// TestHoldOutlastsItsMode: what is held when a limit is edited to be counted elsewhere
// ends all the same, once, and what it came to counts where the limit is counted then.
func TestHoldOutlastsItsMode(t *testing.T) {
	modes := map[limit.Mode]string{limit.Exact: "exact", limit.Leased: "leased", limit.Local: "local"}
	for _, a := range []limit.Algorithm{limit.Sliding, limit.GCRA, limit.Concurrency} {
		for before, from := range modes {
			for after, to := range modes {
				t.Run(fmt.Sprintf("%s, %s to %s", a, from, to), func(t *testing.T) {
					shared, local, now := memory.New(10), memory.New(10), time.Unix(1_000_000, 0)
					s := lease.New(shared, local, 10, func() time.Time { return now }, prometheus.NewRegistry())
					decide := func(u limit.Use) limit.Outcome {
						t.Helper()
						u.Key, u.Limit, u.HoldFor = "k", storetest.New(t, a, 1000, time.Hour), time.Minute
						out := make([]limit.Outcome, 1)
						if err := s.Decide(t.Context(), now, []limit.Use{u}, out); err != nil {
							t.Fatal(err)
						}
						return out[0]
					}
					left := func(mode limit.Mode) uint32 { return decide(limit.Use{Mode: mode}).Remaining }
					decide(limit.Use{Mode: before, Hold: "x", Hits: 50})
					if got := left(before); got != 950 {
						t.Fatalf("%d left while 50 are held", got)
					}
					hits, want := uint64(30), uint32(970)
					if a == limit.Concurrency {
						hits, want = 0, 1000
					}
					for i := range 3 {
						u := limit.Use{Mode: after, Op: limit.Settle, Hold: "x", Hits: hits}
						if out := decide(u); out.Remaining != want && i > 0 || out.Taken != hits && i == 0 || out.Taken != 0 && i > 0 {
							t.Errorf("end %d: %+v", i, out)
						}
						if got := left(after); got != want {
							t.Errorf("end %d: %d left, want %d", i, got, want)
						}
					}
					if got := left(before); got != 1000 && after != before && (before == limit.Local || after == limit.Local) {
						t.Errorf("%d left where it was counted before", got)
					}
				})
			}
		}
	}
}

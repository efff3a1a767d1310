package quota

import (
	"testing"
	"time"

	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"

	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/ratelimit/limit"
	"github.com/writ-mesh/writ/ratelimit/redisstore"
	"github.com/writ-mesh/writ/ratelimit/redistest"
	"github.com/writ-mesh/writ/ratelimit/storetest"
)

// TestAlgorithmIsEdited: a limit that counts by another algorithm from one
// revision to the next begins anew in a real Redis. Nothing fails, no more passes
// than of a counter that was never used, and the way back finds what it left.
func TestAlgorithmIsEdited(t *testing.T) {
	const requests = 5
	server := redistest.Start(t)
	s, err := redisstore.New(redisstore.Options{Address: server.Address(), Timeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	proctest.Background(t, s.Run)
	// Not across the edge of a fixed window.
	now := time.Now().Truncate(time.Hour)
	pass := func(a limit.Algorithm, n int) (passed int) {
		t.Helper()
		l := &Limit{Rule: storetest.New(t, a, requests, time.Hour)}
		l.prefix = prefix("default/q", 0, l.Rule)
		key := l.key([]*commonv3.RateLimitDescriptor_Entry{{Key: "source.principal", Value: "cluster.local/ns/a/sa/b"}})
		for range n {
			var out [1]limit.Outcome
			if err := s.Decide(t.Context(), now, []limit.Use{{Key: key, Limit: l.Rule, Hits: 1}}, out[:]); err != nil {
				t.Fatalf("%s: %v", a, err)
			}
			if !out[0].Over {
				passed++
			}
		}
		return passed
	}
	for _, from := range limit.Algorithms() {
		for _, to := range limit.Algorithms() {
			if from == to {
				continue
			}
			t.Run(from.String()+" to "+to.String(), func(t *testing.T) {
				server.Command(t, "FLUSHALL")
				if got := pass(from, 3); got != 3 {
					t.Fatalf("%d of the first 3 passed", got)
				}
				if got := pass(to, 4*requests); got != requests {
					t.Errorf("%d passed after the edit, want %d as of a fresh counter", got, requests)
				}
				if got := pass(from, 4*requests); got != requests-3 {
					t.Errorf("%d passed after the way back, want the %d that were left", got, requests-3)
				}
			})
		}
	}
}

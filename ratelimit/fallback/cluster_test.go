package fallback_test

import (
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/ratelimit/fallback"
	"github.com/writ-mesh/writ/ratelimit/limit"
	"github.com/writ-mesh/writ/ratelimit/memory"
	"github.com/writ-mesh/writ/ratelimit/redisstore"
	"github.com/writ-mesh/writ/ratelimit/redistest"
	"github.com/writ-mesh/writ/ratelimit/storetest"
)

// TestOneMasterAway: while one master of a cluster hangs, replicas count as one what is
// with the others, and each by itself what is with that one, of which the cluster hears
// when it is back.
func TestOneMasterAway(t *testing.T) {
	t.Parallel()
	set := redistest.StartCluster(t, nil, "--cluster-require-full-coverage", "no")
	replica := func() (*redisstore.Store, *fallback.Guard) {
		store, err := redisstore.New(redisstore.Options{Cluster: set.Addresses(), Timeout: 100 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		g := fallback.New(store, memory.New(0), slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		proctest.Background(t, store.Run)
		proctest.Background(t, g.Run)
		return store, g
	}
	store, one := replica()
	_, other := replica()
	const most = 1_000_000
	use := func(node int, hits uint64) limit.Use {
		return limit.Use{Key: set.Key(t, node), Limit: storetest.Sliding(t, most, time.Hour), Hits: hits}
	}
	near, far := use(0, 1), use(1, 1)
	passed := map[string]uint32{}
	ask := func(g *fallback.Guard, uses ...limit.Use) {
		t.Helper()
		if err := g.Decide(t.Context(), time.Now(), uses, make([]limit.Outcome, len(uses))); err != nil {
			t.Fatal(err)
		}
		for _, u := range uses {
			passed[u.Key]++
		}
	}
	// counted waits until the cluster knows of all that passed. It may know of more: what
	// was under way when nobody waited for it any more.
	counted := func(u limit.Use) {
		t.Helper()
		u.Hits = 0
		out := make([]limit.Outcome, 1)
		proctest.Until(t, 20*time.Second, "all of "+u.Key+" to be counted", func() bool {
			return store.Decide(t.Context(), time.Now(), []limit.Use{u}, out) == nil && out[0].Remaining <= most-passed[u.Key]
		})
	}
	for _, g := range []*fallback.Guard{one, other} {
		proctest.Until(t, 20*time.Second, "the cluster to be known", func() bool {
			ask(g, near)
			ask(g, far)
			return !g.Degraded() && store.Node(time.Now(), &near) != store.Node(time.Now(), &far)
		})
	}
	counted(near)
	counted(far)
	set.Nodes[1].Freeze()
	for _, g := range []*fallback.Guard{one, other} {
		proctest.Until(t, 20*time.Second, "the circuit to open", func() bool {
			ask(g, far)
			return g.Alone(time.Now(), []limit.Use{far})
		})
	}
	for range 50 {
		ask(one, near)
		ask(other, near)
		ask(one, near, far)
	}
	if !one.Alone(time.Now(), []limit.Use{far}) {
		t.Error("a master that hangs is back")
	}
	proctest.Until(t, 20*time.Second, "the others to be asked", func() bool {
		return !one.Alone(time.Now(), []limit.Use{near}) && !other.Alone(time.Now(), []limit.Use{near})
	})
	counted(near) // while the one hangs
	set.Nodes[1].Thaw()
	proctest.Until(t, 20*time.Second, "the circuits to close", func() bool { return !one.Degraded() && !other.Degraded() })
	counted(far)
}

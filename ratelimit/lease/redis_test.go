package lease_test

import (
	"context"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/ratelimit/fallback"
	"github.com/writ-mesh/writ/ratelimit/lease"
	"github.com/writ-mesh/writ/ratelimit/limit"
	"github.com/writ-mesh/writ/ratelimit/memory"
	"github.com/writ-mesh/writ/ratelimit/redisstore"
	"github.com/writ-mesh/writ/ratelimit/redistest"
	"github.com/writ-mesh/writ/ratelimit/storetest"
)

// passage is when a use passed: somewhere between these.
type passage struct{ from, to time.Duration }

// surely is how many passed at least within any stretch of time as long as the
// window: those that came and had their answer in it.
func surely(passed []passage, window time.Duration) (most int) {
	slices.SortFunc(passed, func(a, b passage) int { return int(a.from - b.from) })
	for i, first := range passed {
		n := 0
		for _, p := range passed[i:] {
			if p.from >= first.from+window {
				break
			}
			if p.to < first.from+window {
				n++
			}
		}
		most = max(most, n)
	}
	return most
}

// TestTenReplicasOneRedis: ten replicas with the whole stack of stores over one real
// Redis, and never more passes than the limit. How often Redis is asked hangs on how
// much there is to do on a busy machine; TestNeverMoreThanTheLimit holds it to a tenth.
func TestTenReplicasOneRedis(t *testing.T) {
	const replicas, limited, window, length = 10, 3000, 2 * time.Second, 3 * time.Second
	server := redistest.Start(t)
	var (
		stores []*lease.Store
		mu     sync.Mutex
		passed []passage
		asked  atomic.Int64
		wg     sync.WaitGroup
	)
	for range replicas {
		// Patient, so that a busy machine does not make a replica decide alone: in
		// an outage more may pass.
		shared, err := redisstore.New(redisstore.Options{Address: server.Address(), Timeout: 10 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		local := memory.New(0)
		guard := fallback.New(shared, local, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		s := lease.New(guard, local, 1000, time.Now, prometheus.NewRegistry())
		stores = append(stores, s)
		proctest.Background(t, shared.Run)
		proctest.Background(t, s.Run)
	}
	begin := time.Now()
	ctx, cancel := context.WithDeadline(t.Context(), begin.Add(length))
	defer cancel()
	for i, s := range stores {
		wg.Go(func() {
			uses := []limit.Use{{Key: "k", Limit: storetest.Sliding(t, limited, window), Hits: 1, Mode: limit.Leased}}
			out := make([]limit.Outcome, 1)
			tick := time.NewTicker(time.Duration(2+i%3) * time.Millisecond) // twice the limit and more
			defer tick.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
				now := time.Now()
				if err := s.Decide(t.Context(), now, uses, out); err != nil {
					t.Errorf("decide: %v", err)
					return
				}
				asked.Add(1)
				if !out[0].Over {
					mu.Lock()
					passed = append(passed, passage{now.Sub(begin), time.Since(begin)})
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	if got := surely(passed, window); got > limited {
		t.Errorf("%d passed within %s, the limit is %d", got, window, limited)
	}
	commands := evaluations(t, server)
	t.Logf("%d decisions, %d passed, %d commands (%.3f per decision)", asked.Load(), len(passed), commands, float64(commands)/float64(asked.Load()))
}

// evaluations is how many scripts a server has run.
func evaluations(t *testing.T, server *redistest.Server) int {
	t.Helper()
	for line := range strings.Lines(server.Command(t, "INFO", "commandstats")) {
		if rest, ok := strings.CutPrefix(line, "cmdstat_evalsha:calls="); ok {
			count, _, _ := strings.Cut(rest, ",")
			n, err := strconv.Atoi(count)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	return 0
}

package assign_test

import (
	"context"
	"testing"
	"time"

	"github.com/writ-mesh/writ/ratelimit/assign"
	"github.com/writ-mesh/writ/ratelimit/limit"
	"github.com/writ-mesh/writ/ratelimit/memory"
	"github.com/writ-mesh/writ/ratelimit/redisstore"
	"github.com/writ-mesh/writ/ratelimit/redistest"
)

// A real Redis keeps the same books as the memory of one process.
func TestBooksInRedis(t *testing.T) {
	rule, err := limit.New(limit.Sliding, 100, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	shared, err := redisstore.New(redisstore.Options{Address: redistest.Start(t).Address(), Timeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- shared.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	play := func(store assign.Store) (lumps []uint32) {
		books := assign.New(store, "test")
		a, b := open(t, books), open(t, books)
		bucket := assign.Bucket{ID: "b", Key: "writ:{default/q}:0:s", Rule: rule}
		for i, r := range []struct {
			p               *assign.Proxy
			passed, refused uint64
		}{{a, 1, 0}, {b, 1, 0}, {a, 48, 30}, {b, 5, 0}, {a, 20, 9}, {b, 0, 0}, {b, 0, 0}, {a, 4, 50}} {
			answer, err := report(t, r.p, time.Now(), bucket, r.passed, r.refused)
			if err != nil {
				t.Fatalf("report %d: %v", i, err)
			}
			lumps = append(lumps, answer.Lump)
		}
		if err := a.Close(t.Context(), time.Now()); err != nil {
			t.Fatal(err)
		}
		out := make([]limit.Outcome, 1)
		if err := store.Decide(t.Context(), time.Now(), []limit.Use{{Key: bucket.Key, Limit: rule, HoldFor: time.Second, Observe: true}}, out); err != nil {
			t.Fatal(err)
		}
		return append(lumps, out[0].Remaining)
	}
	inMemory, inRedis := play(memory.New(10)), play(shared)
	t.Log(inMemory)
	for i := range inMemory {
		if inMemory[i] != inRedis[i] {
			t.Fatalf("in memory %d, in Redis %d", inMemory, inRedis)
		}
	}
}

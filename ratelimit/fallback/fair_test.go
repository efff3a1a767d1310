package fallback_test

import (
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/writ-mesh/writ/ratelimit/fallback"
	"github.com/writ-mesh/writ/ratelimit/limit"
	"github.com/writ-mesh/writ/ratelimit/memory"
	"github.com/writ-mesh/writ/ratelimit/storetest"
)

// TestFairLimitForgotten: what a shared store forgets of a limit that is shared fairly
// this replica knows; the store hears what is asked for all the same, and has counted
// nothing of it.
func TestFairLimitForgotten(t *testing.T) {
	store, now := &shared{store: memory.New(0)}, time.Now()
	g := fallback.New(store, memory.New(0), slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	all := limit.Use{Key: "k", Limit: storetest.Sliding(t, 64, time.Hour), Hits: 1}
	ask := func(who string, times int) (passed int) {
		part := all
		part.Key, part.Of, part.Limit, part.Share = "k&"+who, "k", all.Limit.Share(), 1
		uses, out := []limit.Use{all, part}, make([]limit.Outcome, 2)
		for range times {
			if err := g.Decide(t.Context(), now, uses, out); err != nil {
				t.Fatal(err)
			}
			switch {
			case !limit.Refused(uses, out):
				passed++
			case !out[1].Over || out[0].Taken+out[1].Taken > 0:
				t.Fatalf("refused: %+v", out)
			}
		}
		return passed
	}
	if a, b := ask("a", 100), ask("b", 100); a != 60 || b != 4 {
		t.Errorf("%d and %d of 64 passed, want 60 and 4", a, b)
	}
	store.mu.Lock()
	store.store = memory.New(0)
	store.mu.Unlock()
	before := store.count()
	if got := ask("b", 20); got != 0 {
		t.Errorf("%d passed when the store had forgotten the 64", got)
	}
	if asked := store.count() - before; asked < 20 {
		t.Errorf("the store heard of %d of 20", asked)
	}
	uses, out := []limit.Use{all}, make([]limit.Outcome, 1)
	uses[0].Hits = 0
	if err := store.Decide(t.Context(), now, uses, out); err != nil || out[0].Remaining != 64 {
		t.Errorf("the store has %d of 64 left, %v", out[0].Remaining, err)
	}
	store.set(errors.New("away"))
	if got := ask("c", 20); got != 0 {
		t.Errorf("%d passed when the store was away", got)
	}
}

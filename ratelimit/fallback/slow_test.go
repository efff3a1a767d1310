package fallback

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/ratelimit/limit"
	"github.com/writ-mesh/writ/ratelimit/memory"
	"github.com/writ-mesh/writ/ratelimit/redisstore"
	"github.com/writ-mesh/writ/ratelimit/redistest"
)

// TestSlowAnswersCountOnce: what a real Redis did and said too late counts once, for the
// answer came before Redis was told of it; on a machine that keeps answers for long it may
// count twice, and never more often.
func TestSlowAnswersCountOnce(t *testing.T) {
	const limited = 1000
	server := redistest.Start(t)
	slow := redistest.StartSlow(t, server)
	open := func(address string, timeout time.Duration) *redisstore.Store {
		t.Helper()
		s, err := redisstore.New(redisstore.Options{Address: address, Timeout: timeout})
		if err != nil {
			t.Fatal(err)
		}
		proctest.Background(t, s.Run)
		return s
	}
	store, patient := open(slow.Address(), 20*time.Millisecond), open(server.Address(), 10*time.Second)
	g := New(store, memory.New(0), slog.New(slog.DiscardHandler), prometheus.NewRegistry()) // it tells when the test says so
	l, err := limit.New(limit.Sliding, limited, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	out := make([]limit.Outcome, 1)
	round := 0
	proctest.Until(t, 60*time.Second, "a round in which each use counts once", func() bool {
		round++
		g.circuits[0].score.Store(0) // rounds before are no outage
		u := limit.Use{Key: fmt.Sprint("k", round), Limit: l, Hits: 7}
		proctest.Until(t, 20*time.Second, "an answer", func() bool { return g.circuits[0].probe(t.Context()) == nil })
		slow.Delay(60 * time.Millisecond)
		passed := uint32(0)
		for range 3 {
			if err := g.Decide(t.Context(), time.Now(), []limit.Use{u}, out); err != nil || out[0].Over {
				t.Fatal(err, out)
			}
			passed += 7
		}
		for range 50 {
			if heard(&g.circuits[0].debts) {
				break
			}
			<-time.After(10 * time.Millisecond)
		}
		slow.Delay(0)
		used := func() uint32 {
			asks := limit.Use{Key: u.Key, Limit: l}
			if err := patient.Decide(t.Context(), time.Now(), []limit.Use{asks}, out); err != nil {
				t.Fatal(err)
			}
			return limited - out[0].Remaining
		}
		done := used() // without a word
		proctest.Until(t, 20*time.Second, "Redis to be told", func() bool {
			return g.circuits[0].settle(t.Context()) == nil && g.circuits[0].debts.len() == 0
		})
		counts := used()
		if counts < passed || counts > 2*passed {
			t.Fatalf("%d passed, and %d count", passed, counts)
		}
		return done > 0 && counts == passed
	})
}

// heard says whether all answers have come that debts wait for.
func heard(d *debts) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, o := range d.all {
		for _, doubt := range o.doubts {
			if _, ok := doubt.answer.Late(); !ok {
				return false
			}
		}
	}
	return true
}

// overslept is a store that lets a window end before it says that it was told nothing.
type overslept struct {
	*memory.Store

	told int
}

func (s *overslept) Tell(ctx context.Context, now time.Time, uses []limit.Use, _ []string) error {
	if s.told++; s.told == 1 {
		<-time.After(2 * time.Second)
		return errors.New("too late")
	}
	return s.Decide(ctx, now, uses, make([]limit.Outcome, len(uses)))
}

// TestNextWindowOwesNothing: what is told as a window ends counts in none but that.
func TestNextWindowOwesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &overslept{Store: memory.New(0)}
		g := New(store, memory.New(0), slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		l, err := limit.New(limit.Fixed, 10, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		<-time.After(l.UntilNext(time.Now()) - time.Second)
		uses, out := []limit.Use{{Key: "k", Limit: l, Hits: 3}}, make([]limit.Outcome, 1)
		if err := g.alone(t.Context(), time.Now(), uses, out, nil); err != nil {
			t.Fatal(err)
		}
		if err := g.circuits[0].settle(t.Context()); err != nil || store.told != 2 || g.circuits[0].debts.len() > 0 {
			t.Fatalf("told %d times, %v", store.told, err)
		}
		uses[0].Hits = 0
		if err := store.Decide(t.Context(), time.Now(), uses, out); err != nil || out[0].Remaining != 10 {
			t.Errorf("%d of 10 are left of the next window, %v", out[0].Remaining, err)
		}
	})
}

package fallback_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/writ-mesh/writ/ratelimit/fallback"
	"github.com/writ-mesh/writ/ratelimit/limit"
	"github.com/writ-mesh/writ/ratelimit/memory"
	"github.com/writ-mesh/writ/ratelimit/storetest"
)

// late does what it is asked for the counter k, says that it did not, and does not answer
// the probe after that.
type late struct {
	shared

	busy bool
}

func (s *late) Decide(ctx context.Context, now time.Time, uses []limit.Use, out []limit.Outcome) error {
	if err := s.shared.Decide(ctx, now, uses, out); err != nil {
		return err
	}
	return s.after(uses)
}

func (s *late) Tell(ctx context.Context, now time.Time, uses []limit.Use, ids []string) error {
	if err := s.shared.Tell(ctx, now, uses, ids); err != nil {
		return err
	}
	return s.after(uses)
}

func (s *late) after(uses []limit.Use) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	told := slices.ContainsFunc(uses, func(u limit.Use) bool { return u.Key == "k" })
	defer func() { s.busy = told }()
	if told || s.busy {
		return errors.New("too late")
	}
	return nil
}

// TestAlwaysTooLate: what a store does that is too late each time counts twice, once when
// it was asked and once for all times that it is told, and it is not told of it for ever.
func TestAlwaysTooLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &late{shared: shared{store: memory.New(0)}}
		g := fallback.New(store, memory.New(0), slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- g.Run(ctx) }()
		synctest.Wait()
		u := limit.Use{Key: "k", Limit: storetest.Sliding(t, 1000, time.Hour), Hits: 1}
		if err := g.Decide(ctx, time.Now(), []limit.Use{u}, make([]limit.Outcome, 1)); err != nil {
			t.Fatal(err)
		}
		sleep(time.Minute)
		u.Hits = 0
		if used := 1000 - storeDecide(t, store.store, u).Remaining; used != 2 {
			t.Errorf("one hit counts %d times, want twice", used)
		}
		before := store.count()
		sleep(time.Minute)
		if n := store.count() - before; n > 0 {
			t.Errorf("asked %d times more: it is told for ever", n)
		}
		cancel()
		<-done
	})
}

// moody is a store that fails, does what it is asked and says that it did not, or does it
// long after it was asked, at random. What it is told it takes at the fourth time.
type moody struct {
	shared

	rng     *rand.Rand
	away    bool // it says nothing at all
	later   []func()
	silent  map[string]uint64 // what was done of each counter that was not told, and not said
	refused map[string]int    // how often an id was told in vain
}

func (s *moody) Decide(ctx context.Context, now time.Time, uses []limit.Use, out []limit.Outcome) error {
	s.mu.Lock()
	mood := s.rng.IntN(8)
	if s.away {
		mood = s.rng.IntN(4)
	}
	s.mu.Unlock()
	do := func(out []limit.Outcome) {
		if s.store.Decide(ctx, time.Now(), uses, out) != nil {
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		for i := range uses {
			if mood < 3 {
				s.silent[uses[i].Key] += out[i].Taken
			}
		}
	}
	switch mood {
	case 0:
	case 1:
		do(make([]limit.Outcome, len(uses)))
	case 2:
		s.afterwards(func() { do(make([]limit.Outcome, len(uses))) })
	case 3: // it is heard of it before it tells the store
		do(out)
		return heard{slices.Clone(out)}
	default:
		do(out)
		return nil
	}
	return errors.New("moody")
}

// heard is an answer that came too late.
type heard struct{ out []limit.Outcome }

func (heard) Error() string                   { return "too late" }
func (h heard) Late() ([]limit.Outcome, bool) { return h.out, true }

func (s *moody) Tell(ctx context.Context, now time.Time, uses []limit.Use, ids []string) error {
	s.mu.Lock()
	mood := s.rng.IntN(6)
	if s.away {
		mood = s.rng.IntN(3)
	}
	for _, id := range ids {
		if s.refused[id]++; s.refused[id] > 3 && !s.away { // each attempt is of many and then of one
			mood = 5
		}
	}
	s.mu.Unlock()
	do := func() {
		if err := s.shared.Tell(ctx, time.Now(), uses, ids); err != nil {
			panic(err)
		}
	}
	switch mood {
	case 0:
	case 1:
		do()
	case 2:
		s.afterwards(do)
	default:
		do()
		return nil
	}
	return errors.New("moody")
}

func (s *moody) afterwards(do func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.later = append(s.later, do)
}

// thaw does what was to be done later.
func (s *moody) thaw() {
	s.mu.Lock()
	later := s.later
	s.later = nil
	s.mu.Unlock()
	for _, do := range later {
		do()
	}
}

// TestToldOnce: whatever the store fails to do, does too late or does not say that it did,
// it counts what passed, and beside that only what it was asked and did without ever saying
// so: once.
func TestToldOnce(t *testing.T) {
	for seed := range uint64(30) {
		synctest.Test(t, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 7))
			store := &moody{shared: shared{store: memory.New(0)}, rng: rand.New(rand.NewPCG(seed, 8)), silent: make(map[string]uint64), refused: make(map[string]int)}
			g := fallback.New(store, memory.New(0), slog.New(slog.DiscardHandler), prometheus.NewRegistry())
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error)
			go func() { done <- g.Run(ctx) }()
			limits := []limit.Limit{storetest.Sliding(t, 1<<20, 24*time.Hour), storetest.New(t, limit.GCRA, 1<<20, 80000*time.Hour)} // nothing of the bucket drains in a minute
			uses := make([]limit.Use, 0, 40)
			for i := range cap(uses) {
				uses = append(uses, limit.Use{Key: fmt.Sprint(i), Limit: limits[i%len(limits)]})
			}
			passed := make(map[string]uint64)
			for range 400 {
				if rng.IntN(40) == 0 {
					store.mu.Lock()
					store.away = !store.away
					store.mu.Unlock()
				}
				if rng.IntN(20) == 0 {
					store.thaw()
				}
				some := slices.Clone(uses[rng.IntN(len(uses)-2):][:1+rng.IntN(2)])
				for i := range some {
					some[i].Hits = 1 + rng.Uint64N(3)
					passed[some[i].Key] += some[i].Hits
				}
				if err := g.Decide(ctx, time.Now(), some, make([]limit.Outcome, len(some))); err != nil {
					t.Fatal(err)
				}
				sleep(time.Duration(rng.IntN(100)) * time.Millisecond)
			}
			store.mu.Lock()
			store.away = false
			store.mu.Unlock()
			for range 60 { // until all is told
				sleep(time.Second)
				store.thaw()
			}
			for _, u := range uses {
				want := uint32(1<<20 - passed[u.Key] - store.silent[u.Key])
				if left := storeDecide(t, store.store, u).Remaining; left != want {
					t.Errorf("seed %d: %s has %d left, want %d: %d passed, and %d were done without a word", seed, u.Key, left, want, passed[u.Key], store.silent[u.Key])
				}
			}
			cancel()
			<-done
		})
	}
}

package memory_test

import (
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/writ-mesh/writ/ratelimit/limit"
	"github.com/writ-mesh/writ/ratelimit/memory"
	"github.com/writ-mesh/writ/ratelimit/storetest"
)

var epoch = time.Date(2026, 8, 1, 12, 0, 0, 0, time.UTC)

func TestConformance(t *testing.T) {
	fresh := func(*testing.T) storetest.Store { return memory.New(0) }
	storetest.Run(t, fresh)
	storetest.Shares(t, fresh)
}

func use(t testing.TB, s *memory.Store, now time.Time, key string, l limit.Limit) limit.Outcome {
	t.Helper()
	var out [1]limit.Outcome
	if err := s.Decide(t.Context(), now, []limit.Use{{Key: key, Limit: l, Hits: 1}}, out[:]); err != nil {
		t.Fatal(err)
	}
	return out[0]
}

func TestMemoryIsBounded(t *testing.T) {
	s := memory.New(640)
	l := storetest.Sliding(t, 1, time.Minute)
	for i := range 10_000 {
		use(t, s, epoch, fmt.Sprint("key-", i), l)
	}
	if n := s.Len(); n > 640 {
		t.Errorf("%d counters are held, want at most 640", n)
	}
	if s.Evicted() != 10_000-uint64(s.Len()) {
		t.Errorf("evicted says %d of 10000, %d are left", s.Evicted(), s.Len())
	}
	if !use(t, s, epoch, "key-9999", l).Over {
		t.Error("the newest counter was evicted")
	}
}

func TestIdleCountersGoFirst(t *testing.T) {
	// Of 60 places in each of 64 shards about 34 are taken each time, so that most
	// shards run full only in the second round.
	s := memory.New(64 * 60)
	for i := range 2200 {
		use(t, s, epoch, fmt.Sprint("short-", i), storetest.Sliding(t, 1, time.Second))
	}
	later := epoch.Add(2 * time.Second)
	for i := range 2200 {
		use(t, s, later, fmt.Sprint("long-", i), storetest.Sliding(t, 1, time.Hour))
	}
	if s.Evicted() > 0 {
		t.Errorf("%d counters that still counted were evicted", s.Evicted())
	}
	s.Sweep(later)
	if n := s.Len(); n != 2200 {
		t.Errorf("%d counters after a sweep, want the 2200 that count", n)
	}
	s.Sweep(later.Add(time.Hour))
	if n := s.Len(); n != 0 {
		t.Errorf("%d counters after all windows", n)
	}
}

func TestPeekAndRecord(t *testing.T) {
	s := memory.New(0)
	uses := []limit.Use{{Key: "k", Limit: storetest.Sliding(t, 2, time.Minute), Hits: 1}}
	out := make([]limit.Outcome, 1)
	for range 5 {
		if s.Peek(epoch, uses, out) {
			t.Fatal("peeking took something")
		}
	}
	if s.Len() != 0 {
		t.Error("peeking made a counter")
	}
	for range 3 { // somebody else admitted one more than the limit
		s.Record(epoch, uses, []limit.Outcome{{Taken: 1}})
	}
	if !s.Peek(epoch, uses, out) || out[0].RetryAfter != time.Minute {
		t.Errorf("after recording 3 of 2: %+v", out[0])
	}
	s.Record(epoch, []limit.Use{{Key: "other", Limit: uses[0].Limit, Hits: 1}}, []limit.Outcome{{Over: true}})
	if out := use(t, s, epoch, "other", uses[0].Limit); out.Remaining != 1 {
		t.Errorf("recording took for a use that was over: %+v", out)
	}
}

// TestDecidedInAnotherOrder: callers look at the clock and are decided in another order.
// A counter whose time went back and forth with them would let more pass.
func TestDecidedInAnotherOrder(t *testing.T) {
	gcra, err := limit.NewGCRA(1000, time.Second, 1)
	if err != nil {
		t.Fatal(err)
	}
	s, passed := memory.New(0), 0
	const step = 100 * time.Microsecond
	for now := time.Duration(0); now < time.Second; now += step {
		for _, late := range []time.Duration{0, 80 * time.Microsecond} {
			if !use(t, s, epoch.Add(now-late), "gcra", gcra).Over {
				passed++
			}
		}
	}
	if passed != 1000 {
		t.Errorf("%d passed in a second of a bucket of one and 1000 in a second", passed)
	}
	sliding := storetest.Sliding(t, 1, time.Second)
	for _, c := range []struct {
		ms   int64
		over bool
	}{{200, false}, {100, true}, {1150, true}, {1200, false}} {
		if over := use(t, s, epoch.Add(time.Duration(c.ms)*time.Millisecond), "sliding", sliding).Over; over != c.over {
			t.Errorf("at %d ms: over is %v", c.ms, over)
		}
	}
	if out := use(t, s, epoch.Add(-time.Hour), "sliding", sliding); !out.Over || out.RetryAfter > time.Second {
		t.Errorf("a clock that was set back: %+v, want no more than a window to wait", out)
	}
}

func BenchmarkDecide(b *testing.B) {
	s := memory.New(0)
	uses := []limit.Use{{Key: "default/q:0:source.principal=spiffe://cluster.local/ns/default/sa/x", Limit: storetest.Sliding(b, 1_000_000_000, time.Minute), Hits: 1}}
	out := make([]limit.Outcome, 1)
	b.ReportAllocs()
	for b.Loop() {
		if err := s.Decide(b.Context(), time.Now(), uses, out); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkDecideNewKeys is what callers cause who make up keys.
func BenchmarkDecideNewKeys(b *testing.B) {
	s := memory.New(0)
	uses := []limit.Use{{Limit: storetest.Sliding(b, 10, time.Minute), Hits: 1}}
	out := make([]limit.Outcome, 1)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		uses[0].Key = "default/q:0:request.headers[x]=" + strconv.Itoa(i)
		if err := s.Decide(b.Context(), time.Now(), uses, out); err != nil {
			b.Fatal(err)
		}
	}
}

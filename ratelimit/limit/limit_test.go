package limit

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

var epoch = time.Date(2026, 8, 1, 12, 0, 0, 0, time.UTC)

func mustNew(t testing.TB, a Algorithm, requests uint32, window time.Duration) Limit {
	t.Helper()
	l, err := New(a, requests, window)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// The tests below speak of times as stores do.

func (s *sliding) Check(l Limit, now time.Time, hits, pending uint64) Outcome {
	return s.check(l, now.UnixMicro(), min(hits, maxHits), pending)
}

func (s *sliding) Add(l Limit, now time.Time, hits uint64) {
	s.add(l, now.UnixMicro(), min(hits, maxHits))
}

func (s *sliding) Idle(l Limit, now time.Time) bool { return s.idle(l, now.UnixMicro()) }

func (f *fixed) Check(l Limit, now time.Time, hits, pending uint64) Outcome {
	return f.check(l, now.UnixMicro(), min(hits, maxHits), pending)
}

func (f *fixed) Add(l Limit, now time.Time, hits uint64) {
	f.add(l, now.UnixMicro(), min(hits, maxHits))
}

func (f *fixed) After(l Limit, now time.Time) (uint32, time.Duration) {
	return f.after(l, now.UnixMicro())
}

func (f *fixed) Idle(l Limit, now time.Time) bool { return f.idle(l, now.UnixMicro()) }

func TestNewRefusesWhatIsNoLimit(t *testing.T) {
	for _, c := range []struct {
		name   string
		alg    Algorithm
		window time.Duration
		ok     bool
	}{
		{"no algorithm", 0, time.Second, false},
		{"unknown algorithm", 9, time.Second, false},
		{"no window", Sliding, 0, false},
		{"negative window", Sliding, -time.Second, false},
		{"below the shortest", Fixed, minWindow - 1, false},
		{"shortest", Fixed, minWindow, true},
		{"longest", Sliding, maxWindow, true},
		{"above the longest", Sliding, maxWindow + 1, false},
		{"the greatest duration", Sliding, math.MaxInt64, false},
	} {
		if _, err := New(c.alg, 1, c.window); (err == nil) != c.ok {
			t.Errorf("%s: error %v, want ok %v", c.name, err, c.ok)
		}
	}
	if got := mustNew(t, Sliding, 1, time.Millisecond+1).Window(); got != time.Millisecond+time.Microsecond {
		t.Errorf("window is rounded to %s, want up to the next microsecond", got)
	}
}

// TestNeverMoreThanTheLimitInAnyWindow plays random traffic and looks at every
// window that begins with an admitted use: those are the fullest ones.
func TestNeverMoreThanTheLimitInAnyWindow(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 1))
		l := mustNew(t, Sliding, uint32(rng.IntN(200)), time.Duration(1+rng.IntN(100_000_000))*time.Microsecond+minWindow)
		type admitted struct {
			at   time.Time
			hits uint64
		}
		var (
			w    sliding
			past []admitted
			now  = epoch
		)
		for range 600 {
			now = now.Add(time.Duration(rng.Int64N(int64(l.Window())/20 + 1)))
			hits := uint64(1)
			if rng.IntN(5) == 0 {
				hits = uint64(rng.IntN(20))
			}
			if w.Check(l, now, hits, 0).Over {
				continue
			}
			w.Add(l, now, hits)
			past = append(past, admitted{now, hits})
		}
		for i, first := range past {
			sum := uint64(0)
			for _, a := range past[i:] {
				// Both ends are cut to microseconds, so that is how exact the promise is.
				if a.at.UnixMicro()-first.at.UnixMicro() >= l.window {
					break
				}
				sum += a.hits
			}
			if sum > uint64(l.Requests()) {
				t.Fatalf("seed %d: %d passed within %s of %s, limit %d", seed, sum, l.Window(), first.at, l.Requests())
			}
		}
	}
}

// TestNoStarvation: what was admitted is given back after one window and one step
// at the latest, however much is refused meanwhile.
func TestNoStarvation(t *testing.T) {
	for _, requests := range []uint32{1, 2, 10, steps, steps + 1, 100, 10_000} {
		l := mustNew(t, Sliding, requests, 10*time.Second)
		var w sliding
		for i := range requests {
			now := epoch.Add(time.Duration(i) * 5 * time.Second / time.Duration(requests))
			if w.Check(l, now, 1, 0).Over {
				t.Fatalf("limit %d: use %d refused", requests, i)
			}
			w.Add(l, now, 1)
		}
		for i := range 1000 { // hammering moves nothing
			if !w.Check(l, epoch.Add(5*time.Second+time.Duration(i)*time.Microsecond), 1, 0).Over {
				t.Fatalf("limit %d: more than the limit passed", requests)
			}
		}
		if w.Check(l, epoch.Add(l.Window()+l.Window()/steps), 1, 0).Over {
			t.Errorf("limit %d: still refused a window and a step after the first use", requests)
		}
		if end := epoch.Add(5*time.Second + l.Window()); w.Check(l, end, uint64(requests), 0).Over || !w.Idle(l, end) {
			t.Errorf("limit %d: not wholly free a window after the last use", requests)
		}
	}
}

// TestRetryAfterIsTrue: at the time that a refusal names the use passes, and not
// a microsecond earlier.
func TestRetryAfterIsTrue(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 2))
		l := mustNew(t, Sliding, uint32(1+rng.IntN(100)), time.Duration(1+rng.IntN(60))*time.Second)
		var w sliding
		now := epoch
		for range 300 {
			now = now.Add(time.Duration(rng.Int64N(int64(l.Window()) / 30))).Truncate(time.Microsecond)
			hits := uint64(1 + rng.IntN(int(min(l.Requests(), 5))))
			out := w.Check(l, now, hits, 0)
			if !out.Over {
				w.Add(l, now, hits)
				continue
			}
			if out.RetryAfter <= 0 || out.RetryAfter > l.Window() || out.RetryAfter > out.Reset {
				t.Fatalf("seed %d: retry after %s, window %s, reset %s", seed, out.RetryAfter, l.Window(), out.Reset)
			}
			early := sliding{entries: append([]entry(nil), w.entries...), used: w.used}
			if !early.Check(l, now.Add(out.RetryAfter-time.Microsecond), hits, 0).Over {
				t.Fatalf("seed %d: passes before the time that was named", seed)
			}
			later := sliding{entries: append([]entry(nil), w.entries...), used: w.used}
			if later.Check(l, now.Add(out.RetryAfter), hits, 0).Over {
				t.Fatalf("seed %d: refused at the time that was named", seed)
			}
		}
	}
}

func TestRefusedTakesNothing(t *testing.T) {
	l := mustNew(t, Sliding, 10, time.Minute)
	var w sliding
	w.Add(l, epoch, 8)
	for range 50 {
		if out := w.Check(l, epoch, 3, 0); !out.Over || out.Remaining != 2 {
			t.Fatalf("got %+v, want over with 2 remaining", out)
		}
	}
	if out := w.Check(l, epoch, 2, 0); out.Over {
		t.Error("what is left does not pass after refusals")
	}
	if out := w.Check(l, epoch, 2, 1); !out.Over {
		t.Error("pending hits of the same decision are not counted")
	}
}

// TestRaisedLimit: 50 refused, then 10 more allowed: exactly 10 more pass.
func TestRaisedLimit(t *testing.T) {
	l := mustNew(t, Sliding, 5, time.Minute)
	var w sliding
	pass := func(l Limit, n int) (passed int) {
		for range n {
			if !w.Check(l, epoch, 1, 0).Over {
				w.Add(l, epoch, 1)
				passed++
			}
		}
		return passed
	}
	if got := pass(l, 55); got != 5 {
		t.Fatalf("%d passed, want 5", got)
	}
	if got := pass(mustNew(t, Sliding, 15, time.Minute), 50); got != 10 {
		t.Errorf("%d more passed after raising the limit by 10", got)
	}
}

func TestHugeAndZeroHits(t *testing.T) {
	l := mustNew(t, Sliding, math.MaxUint32, time.Second)
	var w sliding
	if out := w.Check(l, epoch, math.MaxUint64, 0); !out.Over || out.RetryAfter != time.Second {
		t.Errorf("2^64-1 hits: %+v", out)
	}
	if out := w.Check(l, epoch, math.MaxUint32, 0); out.Over {
		t.Errorf("the whole of the greatest limit at once: %+v", out)
	}
	w.Add(l, epoch, math.MaxUint64)
	w.Add(l, epoch, 0)
	if len(w.entries) != 1 {
		t.Errorf("taking nothing left an entry")
	}
	none := mustNew(t, Sliding, 0, time.Second)
	if out := new(sliding).Check(none, epoch, 0, 0); !out.Over || out.RetryAfter != time.Second {
		t.Errorf("a limit of nothing: %+v", out)
	}
}

func TestMemoryOfAWindowIsBounded(t *testing.T) {
	l := mustNew(t, Sliding, 3, time.Hour)
	var w sliding
	for i := range 100_000 {
		w.Add(l, epoch.Add(time.Duration(i)*time.Microsecond), 1)
	}
	if len(w.entries) > maxEntries || w.used != 100_000 {
		t.Errorf("%d entries for %d uses, want at most %d", len(w.entries), w.used, maxEntries)
	}
}

func TestClockSetBack(t *testing.T) {
	for _, back := range []time.Duration{time.Second, time.Minute, 24 * time.Hour} {
		l := mustNew(t, Sliding, 2, time.Second)
		var w sliding
		w.Add(l, epoch, 2)
		now := epoch.Add(-back)
		if !w.Check(l, now, 1, 0).Over {
			t.Errorf("back by %s: the limit is forgotten", back)
		}
		if w.Check(l, now.Add(l.Window()), 1, 0).Over {
			t.Errorf("back by %s: still refused a window later", back)
		}
	}
}

func TestFixedCountsLikeTheIncumbent(t *testing.T) {
	l := mustNew(t, Fixed, 2, time.Minute)
	at := epoch.Add(12300 * time.Millisecond)
	var c fixed
	count := func(now time.Time, hits uint64) Outcome {
		out := c.Check(l, now, hits, 0)
		c.Add(l, now, hits)
		out.Remaining, out.Reset = c.After(l, now)
		return out
	}
	for i, want := range []Outcome{
		{Remaining: 1, Reset: 47700 * time.Millisecond},
		{Remaining: 0, Reset: 47700 * time.Millisecond},
		{Over: true, Reset: 47700 * time.Millisecond, RetryAfter: 47700 * time.Millisecond},
	} {
		if got := count(at, 1); got != want {
			t.Errorf("use %d: %+v, want %+v", i+1, got, want)
		}
	}
	if got := count(epoch.Add(time.Minute), 0); got.Over || got.Remaining != 2 {
		t.Errorf("next window, asked only: %+v", got)
	}
	if got := count(epoch.Add(time.Minute), 3); !got.Over || got.Remaining != 0 {
		t.Errorf("three at once: %+v", got)
	}
	for range 3 {
		count(epoch.Add(time.Minute), math.MaxUint64)
	}
	if got := count(epoch.Add(time.Minute), math.MaxUint64); !got.Over {
		t.Errorf("the count ran over: %+v", got)
	}
	if c.Idle(l, epoch.Add(119*time.Second)) || !c.Idle(l, epoch.Add(2*time.Minute)) {
		t.Error("idle is not the end of the window")
	}
}

// TestEveryAlgorithmIsWhole: what is listed has all that the stores ask for, and
// what is not listed is refused wherever it is asked for.
func TestEveryAlgorithmIsWhole(t *testing.T) {
	all := Algorithms()
	if len(all) == 0 || all[0] != Sliding || !slices.Contains(all, Fixed) {
		t.Fatalf("algorithms: %v", all)
	}
	names := map[string]Algorithm{}
	for _, a := range all {
		for _, name := range []string{a.String(), a.Code()} {
			if other, taken := names[name]; taken || name == "" || strings.ContainsAny(name, "():&=#%") {
				t.Errorf("%d: the name %q is empty, is no plain word or is that of %d", a, name, other)
			}
			names[name] = a
		}
		l := mustNew(t, a, 1, time.Second)
		counter, err := NewCounter(l)
		if err != nil {
			t.Fatalf("%s: %v", a, err)
		}
		if !counter.Idle(l, epoch) || counter.Check(&Use{Limit: l, Hits: 1}, epoch, 0).Over {
			t.Errorf("%s: an unused counter is in use: %+v", a, counter)
		}
		if !strings.HasPrefix(l.CounterKey("key", epoch), "key") {
			t.Errorf("%s: the counter is %q", a, l.CounterKey("key", epoch))
		}
	}
	if counter, err := NewCounter(Limit{}); err == nil {
		t.Errorf("what is no limit has the counter %v", counter)
	}
	if unknown := all[len(all)-1] + 1; unknown.Code() != "" || unknown.String() != fmt.Sprintf("algorithm(%d)", unknown) {
		t.Errorf("an unknown algorithm is called %s, %q", unknown, unknown.Code())
	}
}

// TestGCRANeverMoreThanItsRateAndBurst plays random traffic and looks at every
// stretch of time between two admitted uses: no more pass in it than the burst and
// what the rate gives in the time between them.
func TestGCRANeverMoreThanItsRateAndBurst(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 4))
		requests := uint32(1 + rng.IntN(200))
		l, err := NewGCRA(requests, time.Duration(1+rng.IntN(100_000_000))*time.Microsecond+minWindow, uint32(1+rng.IntN(50)))
		if err != nil {
			t.Fatal(err)
		}
		type admitted struct {
			at   int64
			hits uint64
		}
		var (
			g    gcra
			past []admitted
			now  = epoch.UnixMicro()
		)
		for range 400 {
			now += rng.Int64N(l.window/int64(requests)*2 + 2)
			hits := uint64(1 + rng.IntN(3))
			if out := g.check(l, now, hits, 0); out.Over {
				early, later := g, g
				at := now + out.RetryAfter.Microseconds()
				if hits <= uint64(l.burst) && (!early.check(l, at-1, hits, 0).Over || later.check(l, at, hits, 0).Over) {
					t.Fatalf("seed %d: %+v is not when it passes", seed, out)
				}
				continue
			}
			g.add(l, now, hits)
			past = append(past, admitted{now, hits})
		}
		for i, first := range past {
			sum := uint64(0)
			for _, a := range past[i:] {
				sum += a.hits
				// In whole hits: burst + (a.at - first.at) * requests / window.
				most := uint64(l.burst) + uint64((a.at-first.at)*int64(requests)/l.window)
				if sum > most {
					t.Fatalf("seed %d: %d passed within %d us, want at most %d (%d in %s, burst %d)", seed, sum, a.at-first.at, most, requests, l.Window(), l.burst)
				}
			}
		}
	}
}

// TestGCRAWindowEdge: with a burst of one never more than the limit passes in any
// window, whatever edge it has, and all of it does.
func TestGCRAWindowEdge(t *testing.T) {
	for _, requests := range []uint32{1, 3, 7, 10, 1000, 9_973} {
		l := mustNew(t, GCRA, requests, time.Second)
		var g gcra
		passed, begin := 0, epoch.UnixMicro()
		for now := begin; now < begin+l.window; {
			out := g.check(l, now, 1, 0)
			if out.Over {
				now += out.RetryAfter.Microseconds()
				continue
			}
			g.add(l, now, 1)
			passed++
		}
		if passed > int(requests) || passed < int(requests)*99/100 {
			t.Errorf("%d of %d passed in a window", passed, requests)
		}
	}
}

// TestGCRAGivesAllBack: what is refused for now is not refused for ever, and a
// clock that was set back costs no more than it had to wait.
func TestGCRAGivesAllBack(t *testing.T) {
	l, err := NewGCRA(10, time.Second, 5)
	if err != nil {
		t.Fatal(err)
	}
	var g gcra
	now := epoch.UnixMicro()
	g.add(l, now, maxHits)
	if out := g.check(l, now, 1, 0); !out.Over || out.Reset > 2*time.Second {
		t.Errorf("far too much was charged: %+v", out)
	}
	g.run(now - time.Hour.Microseconds())
	if out := g.check(l, now-time.Hour.Microseconds()+2*l.window, 5, 0); out.Over {
		t.Errorf("two windows after the clock was set back: %+v", out)
	}
	for burst, ok := range map[uint32]bool{0: false, 1: true, math.MaxUint32: true} {
		if _, err := NewGCRA(100, time.Second, burst); (err == nil) != ok {
			t.Errorf("burst %d: %v", burst, err)
		}
	}
	if _, err := NewGCRA(1, maxWindow, 2); err == nil {
		t.Error("a burst that takes 20 years to be free again was taken")
	}
}

// TestConcurrency: as many as there are places are under way, whoever ends makes
// room, and who never ends does so after the window.
func TestConcurrency(t *testing.T) {
	l := mustNew(t, Concurrency, 3, 10*time.Second)
	for seed := range uint64(100) {
		rng := rand.New(rand.NewPCG(seed, 6))
		c, err := NewCounter(l)
		if err != nil {
			t.Fatal(err)
		}
		ends, now := map[string]time.Time{}, epoch
		for i := range 500 {
			now = now.Add(time.Duration(rng.IntN(3_000_000)) * time.Microsecond)
			running := 0
			for _, at := range ends {
				if at.After(now) {
					running++
				}
			}
			u := Use{Limit: l, Hits: 1, Hold: fmt.Sprint(i)}
			if rng.IntN(3) == 0 {
				u.Op, u.Hits, u.Hold = Settle, 0, fmt.Sprint(rng.IntN(i+1))
				c.Apply(&u, now)
				delete(ends, u.Hold)
				continue
			}
			out := c.Check(&u, now, 0)
			if out.Over != (running >= 3) || int(out.Remaining) != 3-min(running, 3) {
				t.Fatalf("seed %d: %d under way: %+v", seed, running, out)
			}
			if out.Over {
				later := Counter{state: c.state, holds: c.holds.clone()}
				if later.Check(&u, now.Add(out.RetryAfter), 0).Over {
					t.Fatalf("seed %d: over at the time that was named", seed)
				}
				continue
			}
			c.Take(&u, now, out.Taken)
			ends[u.Hold] = now.Add(l.Window())
		}
	}
}

func (h *holds) clone() holds {
	out := holds{sum: h.sum, last: h.last, seen: h.seen, by: make(map[string]*hold, len(h.by))}
	for _, x := range h.due {
		y := *x
		out.by[x.name], out.due = &y, append(out.due, &y)
	}
	return out
}

// TestHoldsInOrder: holds end one after the other, and in any order if they are settled.
func TestHoldsInOrder(t *testing.T) {
	var h holds
	for i := range 1000 {
		h.put(fmt.Sprint(i), 0, hold{hits: 1, length: int64(10 * (i + 1))})
	}
	for now := int64(0); now <= 500; now++ {
		if h.run(now); len(h.by) != 1000-int(now/10) || h.sum != uint64(len(h.by)) || h.due[0].next() <= now {
			t.Fatalf("at %d %d of 1000 are held, %d hits, the next one until %d", now, len(h.by), h.sum, h.due[0].next())
		}
	}
	for i := range 950 { // settled in any order
		if !h.end(fmt.Sprint(50 + (i*7)%950)) {
			t.Fatalf("hold %d is gone", i)
		}
	}
	if len(h.by)+len(h.due) != 0 || h.sum != 0 {
		t.Errorf("%d, %d and %d hits are left", len(h.by), len(h.due), h.sum)
	}
}

// TestHoldsAreBounded: names that nobody settles cost no more than so many places.
func TestHoldsAreBounded(t *testing.T) {
	l := mustNew(t, Sliding, math.MaxUint32, time.Minute)
	c, err := NewCounter(l)
	if err != nil {
		t.Fatal(err)
	}
	for i := range maxHolds + 10 {
		u := Use{Limit: l, Hits: 1, Hold: fmt.Sprint(i), HoldFor: time.Second}
		if out := c.Check(&u, epoch, 0); out.Over != (i >= maxHolds) {
			t.Fatalf("hold %d: %+v", i, out)
		} else if !out.Over {
			c.Take(&u, epoch, 1)
		}
	}
	if c.Idle(l, epoch.Add(2*time.Second-1000)) || !c.Idle(l, epoch.Add(2*time.Second)) {
		t.Error("holds are forgotten too early or too late")
	}
}

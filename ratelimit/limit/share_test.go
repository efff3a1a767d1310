package limit

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// sharing is a limit that tenants share.
type sharing struct {
	t       *testing.T
	limit   Limit
	whole   *Counter
	tenants map[int]*Counter
	passed  []passing
}

type passing struct {
	at     time.Time
	tenant int
	hits   uint64
}

func newSharing(t *testing.T, requests uint32, window time.Duration) *sharing {
	t.Helper()
	l, err := New(Sliding, requests, window)
	if err != nil {
		t.Fatal(err)
	}
	return &sharing{t: t, limit: l, whole: counterOf(t, l), tenants: make(map[int]*Counter)}
}

func counterOf(t *testing.T, l Limit) *Counter {
	t.Helper()
	c, err := NewCounter(l)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// ask asks for hits and says what became of it.
func (s *sharing) ask(tenant int, weight uint32, hits uint64, now time.Time) (out Outcome, wholeOver bool) {
	if s.tenants[tenant] == nil {
		s.tenants[tenant] = counterOf(s.t, s.limit)
	}
	uses := []Use{{Key: "all", Limit: s.limit, Hits: hits}, {Key: fmt.Sprint(tenant), Limit: s.limit.Share(), Hits: hits, Share: weight, Of: "all"}}
	part, outs := s.tenants[tenant], make([]Outcome, 2)
	whole := Whole{Use: &uses[0], Counter: s.whole, Outcome: &outs[0]}
	outs[0] = s.whole.Check(&uses[0], now, 0)
	outs[1] = part.CheckPart(&uses[1], now, 0, whole)
	refused := Refused(uses, outs)
	if !refused {
		s.whole.Take(&uses[0], now, hits)
		part.Take(&uses[1], now, hits)
	}
	s.whole.After(&uses[0], now, &outs[0])
	part.AfterPart(&uses[1], now, &outs[1], whole)
	if !refused {
		s.passed = append(s.passed, passing{now, tenant, hits})
	}
	return outs[1], outs[0].Over
}

// got is how much each tenant got since then.
func (s *sharing) got(since time.Time) map[int]uint64 {
	out := make(map[int]uint64)
	for _, p := range slices.Backward(s.passed) {
		if p.at.Before(since) {
			break
		}
		out[p.tenant] += p.hits
	}
	return out
}

// play lets tenants ask at these rates (hits in a window, evenly spread) until the end,
// and gives how often each was refused from then on.
func (s *sharing) play(rates []float64, weights []uint32, from time.Time, windows float64, watch time.Time) (refused map[int]int) {
	refused = make(map[int]int)
	next := make([]time.Time, len(rates))
	for i := range next {
		next[i] = from
	}
	end := from.Add(time.Duration(windows * float64(s.limit.Window())))
	for {
		i := 0
		for k := range next {
			if rates[k] > 0 && (next[k].Before(next[i]) || rates[i] == 0) {
				i = k
			}
		}
		if !next[i].Before(end) {
			return refused
		}
		if out, _ := s.ask(i, weights[i], 1, next[i]); out.Over && !next[i].Before(watch) {
			refused[i]++
		}
		next[i] = next[i].Add(time.Duration(float64(s.limit.Window()) / rates[i])).Truncate(time.Microsecond)
	}
}

var noon = time.Date(2026, 8, 1, 12, 0, 0, 0, time.UTC)

// TestFairIsMaxMin: whatever tenants of whatever weights ask for, in the long run each
// gets what it asks for or as much of the limit as those who get less than they ask
// for, times its weight, and at least 7/8 of the limit are used.
func TestFairIsMaxMin(t *testing.T) {
	for seed := range uint64(6) {
		rng := rand.New(rand.NewPCG(seed, 9))
		const requests, window = 800, 10 * time.Second
		rates, weights := make([]float64, 2+rng.IntN(6)), []uint32(nil)
		for i := range rates {
			rates[i] = requests * []float64{0.01, 0.05, 0.1, 0.3, 1, 3}[rng.IntN(6)]
			weights = append(weights, uint32(1+rng.IntN(3)))
		}
		s := newSharing(t, requests, window)
		watch := noon.Add(3 * window)
		refused := s.play(rates, weights, noon, 6, watch)
		s.neverMore(requests)
		got := s.got(watch)
		// The water level: what a refused tenant got for each weight.
		var level, total float64
		heavy := uint32(0)
		for i := range rates {
			total += float64(got[i]) / 3
			if refused[i] > 0 {
				heavy += weights[i]
				level = max(level, float64(got[i])/3/float64(weights[i]))
			}
		}
		for i := range rates {
			mine := float64(got[i]) / 3
			switch {
			case refused[i] == 0 && mine > level*float64(weights[i])*1.15+2 && heavy > 0:
				t.Errorf("seed %d: tenant %d got %.0f and was never refused, others got %.0f for each weight", seed, i, mine, level)
			case refused[i] > 0 && mine < level*float64(weights[i])*0.9-2:
				t.Errorf("seed %d: tenant %d got %.0f of weight %d, others got %.0f for each", seed, i, mine, weights[i], level)
			}
		}
		// A sixteenth is kept for who comes, and each use counts up to two of 32 steps longer.
		if heavy > 0 && total < requests*7/8 {
			t.Errorf("seed %d: %.0f of %d are used though some want more", seed, total, requests)
		}
	}
}

// neverMore: no window has more than the limit.
func (s *sharing) neverMore(requests uint64) {
	s.t.Helper()
	first, sum := 0, uint64(0)
	for _, p := range s.passed {
		sum += p.hits
		for !s.passed[first].at.After(p.at.Add(-s.limit.Window())) {
			sum -= s.passed[first].hits
			first++
		}
		if sum > requests {
			s.t.Fatalf("%d of %d passed in a window", sum, requests)
		}
	}
}

// TestBelowItsShare: who asks for no more than its part of a limit among those who ask
// is never refused for their sake, however they flood.
func TestBelowItsShare(t *testing.T) {
	for _, floods := range []int{1, 2, 7} {
		t.Run(fmt.Sprint(floods), func(t *testing.T) {
			const requests, window = 400, 10 * time.Second
			s := newSharing(t, requests, window)
			// One asks for four fifths of what is its part.
			rates, weights := []float64{0.8 * requests / float64(floods+1)}, []uint32{1}
			for range floods {
				rates, weights = append(rates, 4*requests), append(weights, 1)
			}
			if refused := s.play(rates, weights, noon, 5, noon.Add(2*window)); refused[0] > 0 {
				t.Errorf("refused %d times beside %d floods", refused[0], floods)
			}
			s.neverMore(requests)
		})
	}
}

// TestWhoeverComes: one that took all it could leaves a sixteenth, which the next one
// has at once; all that a window sets free is for that one, until both have the same.
func TestWhoeverComes(t *testing.T) {
	const requests, window = 960, 32 * time.Second
	s := newSharing(t, requests, window)
	flood := func(now time.Time, tenant int) (passed int) {
		for range 2 * requests {
			if out, _ := s.ask(tenant, 1, 1, now); !out.Over {
				passed++
			}
		}
		return passed
	}
	// So much in each second that it leaves the window evenly.
	now := noon
	for range 32 {
		for range 28 {
			s.ask(0, 1, 1, now)
		}
		now = now.Add(time.Second)
	}
	if got := flood(now.Add(-time.Millisecond), 0); got > 4 {
		t.Errorf("one that has 896 of 960 got %d more", got)
	}
	if got := flood(now.Add(-time.Millisecond), 1); got < 60 {
		t.Errorf("the next one got %d at once, want 60", got)
	}
	for range 13 {
		now = now.Add(time.Second)
		if got := flood(now, 0); got != 0 {
			t.Errorf("the flood got %d of what was set free", got)
		}
		if got := flood(now, 1); got < 25 {
			t.Errorf("%d of about 28 were set free for who has less", got)
		}
	}
	if got := s.got(now.Add(-window)); got[1] < 400 || got[1] > 480 {
		t.Errorf("13 seconds later the next one has %d of 960, the flood %d", got[1], got[0])
	}
	s.neverMore(requests)
}

// TestRemainingIsTrue: as many hits pass one by one as were told to remain, and no more.
func TestRemainingIsTrue(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 5))
		s := newSharing(t, uint32(1+rng.IntN(100)), time.Minute)
		for range rng.IntN(40) {
			s.ask(rng.IntN(3), 1, uint64(rng.IntN(8)), noon)
		}
		weight := uint32(1 + rng.IntN(3))
		out, _ := s.ask(7, weight, 0, noon)
		left := int(out.Remaining)
		for i := range left + 1 {
			if out, _ := s.ask(7, weight, 1, noon); out.Over != (i == left) {
				t.Fatalf("seed %d: %d were left, hit %d: %+v", seed, left, i+1, out)
			}
		}
	}
}

// TestManyTenants: however many names are asked for, few are remembered, and a tenant
// that was there gets its part.
func TestManyTenants(t *testing.T) {
	const requests, window = 1000, 10 * time.Second
	s := newSharing(t, requests, window)
	now := noon
	for i := range 4 * maxTenants {
		s.ask(1000+i, 1, 1, now)
		now = now.Add(window / maxTenants / 4).Truncate(time.Microsecond)
		if n := len(s.whole.demands.now); n > maxTenants+1 {
			t.Fatalf("%d demands are remembered", n)
		}
	}
	s.neverMore(requests)
	now = noon.Add(window)
	for range 100 {
		s.ask(0, 1, 1, now)
		now = now.Add(time.Millisecond)
	}
	if d, known := s.whole.demands.now["0"]; !known || d.hits != 100 {
		t.Errorf("one that asks in the next window: %+v, %v", d, known)
	}
}

// TestFairExamplesOfThePage plays those of docs/quotas.md.
func TestFairExamplesOfThePage(t *testing.T) {
	page, err := os.ReadFile("../../docs/quotas.md")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(page), "```fair\n")
	block, _, _ := strings.Cut(after, "\n```")
	lines := strings.Split(block, "\n")
	if len(lines) < 4 {
		t.Fatalf("the page has %d examples", len(lines))
	}
	for _, line := range lines {
		asked, _, _ := strings.Cut(line, " -> ")
		words := strings.Fields(asked)
		var requests uint32
		if _, err := fmt.Sscan(words[0], &requests); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		var names []string
		var rates []float64
		var weights []uint32
		for i := 3; i+2 < len(words); i += 3 { // a asks 100,
			name, weight, weighted := strings.Cut(words[i], "*")
			w, rate := uint32(1), 0.0
			if weighted {
				if _, err := fmt.Sscan(weight, &w); err != nil {
					t.Fatalf("%q: %v", line, err)
				}
			}
			if _, err := fmt.Sscan(strings.TrimSuffix(words[i+2], ","), &rate); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			names, rates, weights = append(names, name), append(rates, rate), append(weights, w)
		}
		window := duration(t, strings.TrimSuffix(words[2], ":"))
		s := newSharing(t, requests, window)
		s.play(rates, weights, noon, 6, noon)
		got := s.got(noon.Add(3 * window))
		asked += " ->"
		for i, name := range names {
			asked += strings.Repeat(",", min(i, 1)) + fmt.Sprintf(" %s %d", name, (got[i]+1)/3)
		}
		if asked != line {
			t.Errorf("the page says\n%s\nand it is\n%s", line, asked)
		}
	}
}

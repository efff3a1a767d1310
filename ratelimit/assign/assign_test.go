package assign_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/writ-mesh/writ/ratelimit/assign"
	"github.com/writ-mesh/writ/ratelimit/limit"
	"github.com/writ-mesh/writ/ratelimit/memory"
)

// envoy does what Envoy's filter does with what it is told, for one bucket.
type envoy struct {
	books           *assign.Proxy
	assigned        bool
	serial          uint32
	tokens          uint32
	passed, refused uint64
	nextReport      time.Time
	known           bool
}

// request says whether a request passes, and whether it did before there was a lump.
func (e *envoy) request() (passed, unassigned bool) {
	if !e.known || e.assigned && e.tokens > 0 || !e.assigned {
		if e.assigned {
			e.tokens--
		}
		e.passed++
		return true, !e.assigned
	}
	e.refused++
	return false, false
}

func (e *envoy) take(a assign.Answer) {
	if a.Abandon {
		*e = envoy{books: e.books}
		return
	}
	if !e.assigned || a.Serial != e.serial {
		e.tokens = a.Lump
	}
	e.assigned, e.serial = true, a.Serial
}

func (e *envoy) report(t *testing.T, now time.Time, b assign.Bucket) assign.Answer {
	t.Helper()
	a, err := report(t, e.books, now, b, e.passed, e.refused)
	if err != nil {
		t.Fatal(err)
	}
	e.passed, e.refused, e.known = 0, 0, true
	return a
}

// open opens books for a proxy.
func open(t *testing.T, books *assign.Books) *assign.Proxy {
	t.Helper()
	p, err := books.Open("caller")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// report tells of one bucket. There is no answer if nothing could be found out.
func report(t *testing.T, p *assign.Proxy, now time.Time, b assign.Bucket, passed, refused uint64) (assign.Answer, error) {
	t.Helper()
	answers, err := p.Report(t.Context(), now, []assign.Usage{{Bucket: b, Passed: passed, Refused: refused}})
	if len(answers) == 0 {
		return assign.Answer{}, err
	}
	return answers[0], err
}

// world is some proxies that share a limit. Answers need a while to come.
type world struct {
	now     time.Time
	bucket  assign.Bucket
	envoys  []*envoy
	way     []onTheWay
	passed  []time.Time // what passed under a lump
	refused int
	free    int // what passed without one
}

type onTheWay struct {
	at     time.Time
	to     *envoy
	answer assign.Answer
}

func newWorld(t *testing.T, proxies int, requests uint32, window time.Duration) *world {
	t.Helper()
	rule, err := limit.New(limit.Sliding, requests, window)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{now: time.Unix(1_000_000, 0), bucket: assign.Bucket{ID: "b", Key: "k", Rule: rule}}
	books := assign.New(memory.New(100), "test")
	for range proxies {
		w.envoys = append(w.envoys, &envoy{books: open(t, books)})
	}
	return w
}

// step lets so much time go by.
func (w *world) step(t *testing.T, d time.Duration, r *rand.Rand) {
	t.Helper()
	w.now = w.now.Add(d)
	rest := w.way[:0]
	for _, m := range w.way {
		if m.at.After(w.now) {
			rest = append(rest, m)
			continue
		}
		m.to.take(m.answer)
	}
	w.way = rest
	for _, e := range w.envoys {
		if e.known && !w.now.Before(e.nextReport) {
			w.report(t, e, r)
		}
		answers, _, err := e.books.Retry(t.Context(), w.now)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range answers {
			w.send(e, a, r)
		}
	}
}

// send puts an answer on its way, behind all that were sent to the same proxy.
func (w *world) send(e *envoy, a assign.Answer, r *rand.Rand) {
	at := w.now.Add(time.Duration(r.IntN(200)) * time.Millisecond)
	for _, m := range w.way {
		if m.to == e && m.at.After(at) {
			at = m.at
		}
	}
	w.way = append(w.way, onTheWay{at, e, a})
}

func (w *world) report(t *testing.T, e *envoy, r *rand.Rand) {
	t.Helper()
	e.nextReport = w.now.Add(assign.ReportEvery)
	w.send(e, e.report(t, w.now, w.bucket), r)
}

func (w *world) request(t *testing.T, e *envoy, r *rand.Rand) bool {
	t.Helper()
	first := !e.known
	passed, free := e.request()
	switch {
	case passed && free:
		w.free++
	case passed:
		w.passed = append(w.passed, w.now)
	default:
		w.refused++
	}
	if first {
		w.report(t, e, r)
	}
	return passed
}

// most is how many passed in any window.
func (w *world) most() int {
	most, from := 0, 0
	for i, at := range w.passed {
		for !w.passed[from].After(at.Add(-w.bucket.Rule.Window())) {
			from++
		}
		most = max(most, i-from+1)
	}
	return most
}

// Whatever the proxies are asked for: no stretch of time as long as the window sees
// more than the limit, but for what passed before there was a lump.
func TestNeverMoreThanTheLimit(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 1))
		w := newWorld(t, 1+r.IntN(8), uint32(1+r.IntN(300)), time.Duration(10+r.IntN(60))*time.Second)
		busy := make([]float64, len(w.envoys))
		for range 3000 {
			w.step(t, 50*time.Millisecond, r)
			for i, e := range w.envoys {
				if r.IntN(100) == 0 {
					busy[i] = float64(r.IntN(4)) * r.Float64()
				}
				for n := busy[i] + r.Float64(); n >= 1; n-- {
					w.request(t, e, r)
				}
			}
		}
		if most, allowed := w.most(), int(w.bucket.Rule.Requests()); most > allowed {
			t.Errorf("seed %d: %d passed in a window of %s, the limit is %d", seed, most, w.bucket.Rule.Window(), allowed)
		}
	}
}

// A limit that is asked for steadily is used up nearly, by one proxy or by many, even
// if some are asked for ten times as much as others.
func TestTheLimitIsUsedUp(t *testing.T) {
	for _, proxies := range []int{1, 2, 10} {
		t.Run(fmt.Sprint(proxies), func(t *testing.T) {
			r := rand.New(rand.NewPCG(7, 7))
			w := newWorld(t, proxies, 600, time.Minute)
			steps := 6000 // five minutes
			for i := range steps {
				w.step(t, 50*time.Millisecond, r)
				for n, e := range w.envoys {
					if n == 0 || i%10 == 0 {
						w.request(t, e, r)
					}
				}
			}
			// The first minute finds everybody's share.
			after := 0
			for _, at := range w.passed {
				if at.Sub(time.Unix(1_000_000, 0)) > time.Minute {
					after++
				}
			}
			if want := 600 * 4 * 8 / 10; after < want {
				t.Errorf("%d of at most %d passed in four minutes, want at least %d", after, 600*4, want)
			}
			t.Logf("%d of 2400", after)
		})
	}
}

// What stays below the limit is not refused once shares are found.
func TestNothingIsRefusedBelowTheLimit(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	w := newWorld(t, 4, 1200, time.Minute)
	for i := range 6000 {
		w.step(t, 50*time.Millisecond, r)
		if i == 600 {
			w.refused = 0
		}
		for n, e := range w.envoys {
			if (i+n)%8 == 0 { // 2.5 a second each, 600 a minute together
				w.request(t, e, r)
			}
		}
	}
	if w.refused > 0 {
		t.Errorf("%d were refused of what is half of the limit", w.refused)
	}
}

// A proxy that goes away counts as having used what it had; a bucket that is not used
// is given up, and all of its limit is free again.
func TestWhatIsNotUsedComesBack(t *testing.T) {
	rule, err := limit.New(limit.Sliding, 100, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	store := memory.New(100)
	books := assign.New(store, "test")
	now := time.Unix(1_000_000, 0)
	b := assign.Bucket{ID: "b", Key: "k", Rule: rule}
	left := func() uint32 {
		out := make([]limit.Outcome, 1)
		if err := store.Decide(context.Background(), now, []limit.Use{{Key: "k", Limit: rule, HoldFor: time.Second}}, out); err != nil {
			t.Fatal(err)
		}
		return out[0].Remaining
	}
	p := open(t, books)
	a, err := report(t, p, now, b, 1, 0)
	if err != nil || a.Lump == 0 || left() != 99-a.Lump {
		t.Fatalf("first report: %+v, %v, %d left", a, err, left())
	}
	abandoned := false
	for range 10 {
		now = now.Add(assign.ReportEvery)
		if a, err = report(t, p, now, b, 0, 0); err != nil {
			t.Fatal(err)
		}
		if abandoned = a.Abandon; abandoned {
			break
		}
	}
	if !abandoned || p.Len() != 0 || left() != 98 {
		t.Errorf("abandoned: %v, %d buckets, %d left of 100, want 98: one passed, one might have", abandoned, p.Len(), left())
	}
	if a, err = report(t, p, now, b, 1, 0); err != nil || a.Lump == 0 {
		t.Fatalf("again: %+v, %v", a, err)
	}
	before := left()
	if err := p.Close(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	if left() != before {
		t.Errorf("%d left after the proxy went, %d before", left(), before)
	}
	now = now.Add(2 * time.Minute)
	if left() != 100 {
		t.Errorf("%d left two minutes later", left())
	}
}

// What a proxy says that cannot be is not believed: it could use up everybody's limit
// otherwise, or have everything for itself.
func TestProxyThatLies(t *testing.T) {
	rule, err := limit.New(limit.Sliding, 100, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	books := assign.New(memory.New(100), "test")
	now := time.Unix(1_000_000, 0)
	liar, honest := open(t, books), open(t, books)
	b := assign.Bucket{ID: "b", Key: "k", Rule: rule}
	var lumps uint32
	for range 4 {
		a, err := report(t, honest, now, b, 5, 0)
		if err != nil {
			t.Fatal(err)
		}
		lumps += a.Lump
		if _, err := report(t, liar, now, assign.Bucket{ID: "c", Key: "other", Rule: rule}, ^uint64(0), ^uint64(0)); err != nil {
			t.Fatal(err)
		}
		now = now.Add(assign.ReportEvery)
	}
	if lumps < 30 {
		t.Errorf("the honest one was given %d", lumps)
	}
	for i := range assign.MaxBuckets + 10 {
		if _, err := report(t, liar, now, assign.Bucket{ID: fmt.Sprint(i), Key: "k", Rule: rule}, 0, 0); err != nil {
			t.Fatal(err)
		}
	}
	if liar.Len() > assign.MaxBuckets {
		t.Errorf("%d buckets", liar.Len())
	}
}

// failing is a store that can be away. It sums up what was counted beside holds.
type failing struct {
	assign.Store
	away      bool
	awayAfter int // decisions; 0 is never
	counted   uint64
}

func (f *failing) Decide(ctx context.Context, now time.Time, uses []limit.Use, outcomes []limit.Outcome) error {
	if f.awayAfter > 0 {
		f.awayAfter--
		f.away = f.away || f.awayAfter == 0
	}
	if f.away {
		return errors.New("away")
	}
	err := f.Store.Decide(ctx, now, uses, outcomes)
	for i, u := range uses {
		if err == nil && (u.Op == limit.Settle || u.Op == limit.Charge && u.Hold == "") {
			f.counted += outcomes[i].Taken
		}
	}
	return err
}

func must(answers []assign.Answer, err error) []assign.Answer {
	if err != nil {
		panic(err)
	}
	return answers
}

// What is reported while the store is away is counted when it is back; meanwhile a
// proxy goes on with what it has.
func TestStoreAway(t *testing.T) {
	rule, err := limit.New(limit.Sliding, 100, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	store := &failing{Store: memory.New(10)}
	now := time.Unix(1_000_000, 0)
	p := open(t, assign.New(store, "test"))
	b := assign.Bucket{ID: "b", Key: "k", Rule: rule}
	first, err := report(t, p, now, b, 1, 0)
	if err != nil || first.Lump < 10 {
		t.Fatalf("%+v, %v", first, err)
	}
	store.away = true
	for range 2 {
		if a, err := report(t, p, now, b, 5, 0); err == nil || a.Serial != first.Serial || a.Lump != first.Lump {
			t.Errorf("away: %+v, %v", a, err)
		}
	}
	store.away = false
	if _, err := report(t, p, now, b, 2, 0); err != nil {
		t.Fatal(err)
	}
	if store.counted != 13 {
		t.Errorf("%d were counted after 13 passed", store.counted)
	}
}

// crossed is a proxy of which a report was on its way already when it was given a
// lump that no report asked for.
type crossed struct {
	p    *assign.Proxy
	b    assign.Bucket
	now  time.Time
	lump assign.Answer
	left func() uint32
}

// cross has others use up the limit but for so many requests, which the proxy has when
// it is tried again.
func cross(t *testing.T, has uint32) *crossed {
	t.Helper()
	rule, err := limit.New(limit.Sliding, 50, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	store := memory.New(10)
	c := &crossed{p: open(t, assign.New(store, "test")), b: assign.Bucket{ID: "b", Key: "k", Rule: rule}, now: time.Unix(1_000_000, 0)}
	out := make([]limit.Outcome, 1)
	decide := func(u limit.Use) limit.Outcome {
		t.Helper()
		u.Key, u.Limit = "k", rule
		if err := store.Decide(t.Context(), c.now, []limit.Use{u}, out); err != nil {
			t.Fatal(err)
		}
		return out[0]
	}
	c.left = func() uint32 { return decide(limit.Use{HoldFor: time.Second, Observe: true}).Remaining }
	decide(limit.Use{Op: limit.Charge, Hits: uint64(50 - has)})
	c.now = c.now.Add(50 * time.Second)
	c.report(t, 0, 5)
	c.report(t, 0, 5)
	c.now = c.now.Add(11 * time.Second)
	decide(limit.Use{Op: limit.Charge, Hits: 20})
	answers, next, err := c.p.Retry(t.Context(), c.now)
	if err != nil || len(answers) != 1 || answers[0].Lump == 0 || !next.IsZero() {
		t.Fatalf("retry: %+v, %s, %v", answers, next, err)
	}
	c.lump = answers[0]
	decide(limit.Use{Op: limit.Charge, Hits: uint64(c.left())})
	return c
}

func (c *crossed) report(t *testing.T, passed, refused uint64) assign.Answer {
	t.Helper()
	a, err := report(t, c.p, c.now, c.b, passed, refused)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// A lump that came between two reports stays held, whatever a report says that was
// under way before it came.
func TestReportsCross(t *testing.T) {
	c := cross(t, 0)
	for i, refused := range []uint64{3, 1} { // the second refused before the lump came
		if a := c.report(t, 0, refused); a.Serial != c.lump.Serial || c.left() != 0 {
			t.Errorf("report %d: %+v after %+v, %d left", i, a, c.lump, c.left())
		}
	}
	c = cross(t, 3)
	if a := c.report(t, 0, 0); a.Serial != c.lump.Serial || c.left() != 0 {
		t.Errorf("%+v after %+v, %d left of what is still with the proxy", a, c.lump, c.left())
	}
}

// A bucket that is not asked for gets its lump as soon as there is one: the next
// request is not refused for nothing.
func TestQuietBucketIsTriedAgain(t *testing.T) {
	rule, err := limit.New(limit.Sliding, 10, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	store := memory.New(10)
	b, now := assign.Bucket{ID: "b", Key: "k", Rule: rule}, time.Unix(1_000_000, 0)
	if err := store.Decide(t.Context(), now.Add(-50*time.Second), []limit.Use{{Key: "k", Limit: rule, Hits: 10}}, make([]limit.Outcome, 1)); err != nil {
		t.Fatal(err)
	}
	p := open(t, assign.New(store, "test"))
	for _, refused := range []uint64{4, 0} {
		if a, err := report(t, p, now, b, 0, refused); err != nil || a.Lump != 0 {
			t.Fatalf("%+v, %v", a, err)
		}
	}
	now = now.Add(11 * time.Second)
	if answers, _, err := p.Retry(t.Context(), now); err != nil || len(answers) != 1 || answers[0].Lump == 0 {
		t.Errorf("%+v, %v", answers, err)
	}
}

// Buckets that are due one after the other are not looked at one by one.
func TestRetriesAreGathered(t *testing.T) {
	rule, err := limit.New(limit.Sliding, 0, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	p, now := open(t, assign.New(memory.New(100), "test")), time.Unix(1_000_000, 0)
	for i := range 2 {
		at := now.Add(time.Duration(i) * time.Millisecond)
		if _, err := report(t, p, at, assign.Bucket{ID: fmt.Sprint(i), Key: fmt.Sprint(i), Rule: rule}, 0, 1); err != nil {
			t.Fatal(err)
		}
	}
	now = now.Add(assign.ReportEvery)
	if _, next, err := p.Retry(t.Context(), now); err != nil || next.Sub(now) < 100*time.Millisecond {
		t.Errorf("next in %s, %v", next.Sub(now), err)
	}
}

// What was reported when the store forgot its hold and went away then is counted once
// it is back.
func TestHoldLostThenStoreAway(t *testing.T) {
	rule, err := limit.New(limit.Sliding, 100, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	store := &failing{Store: memory.New(10)}
	p, now := open(t, assign.New(store, "test")), time.Unix(1_000_000, 0)
	b := assign.Bucket{ID: "b", Key: "k", Rule: rule}
	if _, err := report(t, p, now, b, 1, 0); err != nil {
		t.Fatal(err)
	}
	store.Store, store.awayAfter, store.counted = memory.New(10), 2, 0 // it comes back empty
	if _, err := report(t, p, now, b, 5, 0); err == nil {
		t.Fatal("the store was not away")
	}
	store.away = false
	if _, err := report(t, p, now, b, 2, 0); err != nil {
		t.Fatal(err)
	}
	if store.counted != 7 {
		t.Errorf("%d were counted after 7 passed", store.counted)
	}
}

// counting counts decisions, and the uses of the largest.
type counting struct {
	assign.Store
	decisions, most int
}

func (c *counting) Decide(ctx context.Context, now time.Time, uses []limit.Use, outcomes []limit.Outcome) error {
	c.decisions++
	c.most = max(c.most, len(uses))
	return c.Store.Decide(ctx, now, uses, outcomes)
}

// A report of thousands of buckets takes few requests to the store, none of them large,
// and each bucket gets what it gets by itself.
func TestManyBucketsAreSettledTogether(t *testing.T) {
	rule, err := limit.New(limit.Sliding, 100, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	const buckets = 2000
	play := func(atOnce int) (lumps []uint32, c counting) {
		c.Store = memory.New(10 * buckets)
		p, now := open(t, assign.New(&c, "test")), time.Unix(1_000_000, 0)
		for round := range 3 {
			var usages []assign.Usage
			for i := range buckets {
				b := assign.Bucket{ID: fmt.Sprint(i), Key: fmt.Sprint(i % (buckets / 2)), Rule: rule}
				usages = append(usages, assign.Usage{Bucket: b, Passed: uint64(i % 7), Refused: uint64((i + round) % 3)})
			}
			for some := range slices.Chunk(usages, atOnce) {
				for _, a := range must(p.Report(t.Context(), now, some)) {
					lumps = append(lumps, a.Lump)
				}
			}
			now = now.Add(assign.ReportEvery)
		}
		if err := p.Close(t.Context(), now); err != nil {
			t.Fatal(err)
		}
		return lumps, c
	}
	alone, many := play(1)
	together, few := play(buckets)
	if !slices.Equal(alone, together) {
		t.Error("buckets get something else together than one by one")
	}
	if few.decisions > many.decisions/10 || few.most > 100 {
		t.Errorf("%d requests to the store instead of %d, the largest of %d uses", few.decisions, many.decisions, few.most)
	}
}

// A bucket that is named twice in a report is settled twice.
func TestNamedTwice(t *testing.T) {
	rule, err := limit.New(limit.Sliding, 100, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	store := &failing{Store: memory.New(10)}
	p, now := open(t, assign.New(store, "test")), time.Unix(1_000_000, 0)
	u := assign.Usage{Bucket: assign.Bucket{ID: "b", Key: "k", Rule: rule}, Passed: 3}
	must(p.Report(t.Context(), now, []assign.Usage{u, u}))
	if store.counted != 6 {
		t.Errorf("%d were counted after 3 and 3 passed", store.counted)
	}
}

// What a replica had given counts until it has left its window, if nobody hears of the
// replica again.
func TestReplicaIsKilled(t *testing.T) {
	for _, window := range []time.Duration{10 * time.Second, time.Minute, time.Hour} {
		rule, err := limit.New(limit.Sliding, 100, window)
		if err != nil {
			t.Fatal(err)
		}
		store, now := memory.New(10), time.Unix(1_000_000, 0)
		p := open(t, assign.New(store, "killed"))
		a, err := report(t, p, now, assign.Bucket{ID: "b", Key: "k", Rule: rule}, 0, 1)
		if err != nil || a.Lump < 10 {
			t.Fatalf("%+v, %v", a, err)
		}
		left := func(after time.Duration) uint32 {
			out := make([]limit.Outcome, 1)
			if err := store.Decide(t.Context(), now.Add(after), []limit.Use{{Key: "k", Limit: rule, HoldFor: time.Second, Observe: true}}, out); err != nil {
				t.Fatal(err)
			}
			return out[0].Remaining
		}
		// The proxy may use it for so long.
		if got := left(assign.TTL + window - time.Second); got != 100-a.Lump {
			t.Errorf("window %s: %d left, want %d", window, got, 100-a.Lump)
		}
		if got := left(2*assign.TTL + window); got != 100 {
			t.Errorf("window %s: %d left in the end", window, got)
		}
	}
}

// A caller has so many streams and buckets and no more, and others have theirs.
func TestCallersAreBounded(t *testing.T) {
	rule, err := limit.New(limit.Sliding, 100, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	books := assign.New(memory.New(100), "test")
	var all []*assign.Proxy
	for range assign.MaxStreams {
		all = append(all, open(t, books))
	}
	if _, err := books.Open("caller"); !errors.Is(err, assign.ErrStreams) {
		t.Errorf("one more: %v", err)
	}
	if _, err := books.Open("other"); err != nil {
		t.Errorf("somebody else: %v", err)
	}
	now, has := time.Unix(1_000_000, 0), 0
	for n := range 12 {
		usages := make([]assign.Usage, assign.MaxBuckets)
		for i := range usages {
			usages[i].Bucket = assign.Bucket{ID: fmt.Sprint(i), Key: "k", Rule: rule}
		}
		must(all[n].Report(t.Context(), now, usages))
		has += all[n].Len()
	}
	if has != 10*assign.MaxBuckets {
		t.Errorf("12 streams have %d buckets", has)
	}
	for range 2 { // the second time does nothing
		if err := all[0].Close(t.Context(), now); err != nil {
			t.Fatal(err)
		}
	}
	open(t, books)
	if _, err := books.Open("caller"); !errors.Is(err, assign.ErrStreams) {
		t.Errorf("one more once one was closed: %v", err)
	}
	if a, err := report(t, all[11], now, assign.Bucket{ID: "x", Key: "x", Rule: rule}, 1, 0); err != nil || a.Lump == 0 {
		t.Errorf("a bucket in place of those of a closed stream: %+v, %v", a, err)
	}
}

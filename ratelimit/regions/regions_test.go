package regions

import (
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	ratelimitpb "github.com/writ-mesh/writ/proto/writ/ratelimit/v1"
	"github.com/writ-mesh/writ/ratelimit/limit"
)

var twoShares = map[string]int{"east": 1, "west": 1}

// TestFourPerMinute: the smallest limit that two regions can divide and lend of. One
// that asks alone gets its part and what the other lends, which keeps the rest.
func TestFourPerMinute(t *testing.T) {
	for _, c := range []struct{ percent, east, west int }{{50, 3, 1}, {100, 4, 0}, {0, 2, 2}} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, sliding(t, 4, time.Minute), twoShares)
			w.start("east", c.percent, 0)
			w.start("west", c.percent, time.Hour)
			sleep(time.Second) // they have met
			passed := map[string]int{}
			for range 10 {
				for _, name := range []string{"east", "west"} {
					if name == "west" && len(w.passed) < c.east {
						continue
					}
					if w.ask(name) {
						passed[name]++
					}
				}
			}
			if passed["east"] != c.east || passed["west"] != c.west {
				t.Errorf("lend %d: %v passed, want %d and %d", c.percent, passed, c.east, c.west)
			}
			sleep(time.Minute + 10*time.Second)
			for range 10 {
				w.ask("west")
				w.ask("east")
			}
			if most := w.most(); most > 4 || len(w.passed) != 8 {
				t.Errorf("lend %d: %d in a minute, %d in two", c.percent, most, len(w.passed))
			}
			w.stop()
		})
	}
}

// TestNeverMoreThanTheLimit: regions whose clocks differ by hours, under loads that go
// up and down, while links are cut and restored and regions are killed and started
// anew: in no window more than the limit.
func TestNeverMoreThanTheLimit(t *testing.T) {
	for _, c := range []struct {
		name   string
		limit  uint32
		shares map[string]int
	}{
		{"4 in two", 4, twoShares},
		{"100 in two", 100, map[string]int{"east": 3, "west": 1}},
		{"700 in three", 700, map[string]int{"east": 2, "west": 1, "north": 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const window = 10 * time.Second
				random := rand.New(rand.NewPCG(1, uint64(c.limit)))
				w := newWorld(t, sliding(t, c.limit, window), c.shares)
				skew := map[string]time.Duration{"east": 0, "west": -5 * time.Hour, "north": 90 * time.Second}
				for name := range c.shares {
					w.start(name, 100, skew[name])
				}
				borrowed := false
				for range 30 {
					for _, name := range slices.Sorted(maps.Keys(c.shares)) {
						// From nothing to four times the whole limit.
						load := random.IntN(int(c.limit)/5*4 + 8)
						switch event := random.IntN(12); {
						case event == 0:
							w.at(name).cut.Store(true)
						case event == 1:
							w.kill(name)
							w.start(name, 100, skew[name])
						case event < 6:
							w.at(name).cut.Store(false)
						}
						for range load {
							w.ask(name)
							if random.IntN(20) == 0 {
								sleep(time.Millisecond)
							}
						}
						borrowed = borrowed || w.at(name).lentTo()
					}
					sleep(time.Duration(random.IntN(1500)) * time.Millisecond)
				}
				if most := w.most(); most > int(c.limit) {
					t.Errorf("%d passed in %s, the limit is %d", most, window, c.limit)
				}
				if !borrowed {
					t.Error("nothing was ever borrowed")
				}
				w.stop()
			})
		})
	}
}

// lentTo says whether something is in hand.
func (r *region) lentTo() bool {
	for i := range r.shards {
		sh := &r.shards[i]
		sh.mu.Lock()
		n := 0
		for _, c := range sh.cells {
			n += len(c.loans)
		}
		sh.mu.Unlock()
		if n > 0 {
			return true
		}
	}
	return false
}

// TestMuchOfTheLimitIsUsed: with all demand in one region most of the limit passes there.
func TestMuchOfTheLimitIsUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, sliding(t, 600, time.Minute), twoShares)
		w.start("east", 100, 0)
		w.start("west", 100, 0)
		for range 3 * 60 * 20 { // twice the limit, for three minutes
			w.ask("east")
			sleep(50 * time.Millisecond)
		}
		if n := len(w.passed); n < 3*600*8/10 {
			t.Errorf("%d passed in three minutes, the limit is 600 a minute", n)
		} else {
			t.Logf("%d passed in three minutes", n)
		}
		if most := w.most(); most > 600 {
			t.Errorf("%d passed in a minute", most)
		}
		w.stop()
	})
}

// TestCutOff: a region alone has its part, and no more; when it is back it borrows again.
func TestCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, sliding(t, 100, time.Minute), map[string]int{"east": 4, "west": 1})
		east := w.start("east", 50, 0)
		w.start("west", 50, 0)
		sleep(3 * time.Second)
		east.cut.Store(true)
		sleep(3 * time.Second)
		for range 200 {
			w.ask("west")
		}
		if n := len(w.passed); n != 20 {
			t.Errorf("cut off %d of 100 pass, want its fifth", n)
		}
		if text := east.Declare(w.rule, limit.Exact, "here"); !strings.Contains(text, "region east has 80 of 100") || !strings.Contains(text, "west is away for ") {
			t.Errorf("declared: %s", text)
		}
		east.cut.Store(false)
		sleep(3 * time.Second)
		for range 200 {
			w.ask("west")
			sleep(10 * time.Millisecond)
		}
		if n := len(w.passed); n != 20+40 { // half of the other's
			t.Errorf("back again %d of 100 have passed, want 60", n)
		}
		if text := east.Declare(w.rule, limit.Exact, "here"); !strings.Contains(text, "west answered") {
			t.Errorf("declared: %s", text)
		}
		w.stop()
	})
}

// TestUnusedComesBack: what a region borrowed and did not use, the other can use.
func TestUnusedComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, sliding(t, 100, time.Hour), twoShares)
		w.start("east", 100, 0)
		w.start("west", 100, 0)
		sleep(3 * time.Second)
		for range 51 { // of what it borrows it uses one
			w.ask("east")
			sleep(5 * time.Millisecond)
		}
		if left := w.remaining("west"); left > 45 {
			t.Fatalf("west has %d left: nothing was lent", left)
		}
		sleep(20 * time.Second)
		if left := w.remaining("west"); left != 49 {
			t.Errorf("west has %d left, want 49", left)
		}
		w.stop()
	})
}

// remaining is what a region's part has left.
func (w *world) remaining(name string) uint32 {
	u, out := []limit.Use{{Key: "k", Limit: w.rule, Observe: true, HoldFor: time.Second}}, make([]limit.Outcome, 1)
	if err := w.at(name).Decide(w.t.Context(), time.Now(), u, out); err != nil {
		w.t.Fatal(err)
	}
	return out[0].Remaining
}

// TestTogether: a request that another limit refuses takes nothing of what is borrowed,
// and one for which nothing is lent nothing of the others.
func TestTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, sliding(t, 100, time.Hour), twoShares)
		w.start("east", 100, 0)
		w.start("west", 100, 0)
		sleep(3 * time.Second)
		shared := limit.Use{Key: "k", Limit: w.rule, Hits: 1}
		for range 55 {
			w.ask("east")
		}
		before := len(w.passed)
		if before != 55 {
			t.Fatalf("%d of 55 passed", before)
		}
		none := limit.Use{Key: "none", Limit: sliding(t, 0, time.Hour), Hits: 1}
		for range 200 {
			if w.uses("east", shared, none) {
				t.Fatal("a request passed that a limit of 0 refuses")
			}
		}
		for range 200 {
			w.ask("east")
		}
		if n := len(w.passed); n != 100 {
			t.Errorf("%d of 100 passed", n)
		}
		other := limit.Use{Key: "nameless", Limit: sliding(t, 10, time.Hour), Hits: 1}
		for range 50 {
			w.uses("east", other, shared)
		}
		w.passed = nil
		for range 50 {
			w.uses("east", other)
		}
		if n := len(w.passed); n != 5 {
			t.Errorf("%d of a part of 5 passed: refused requests took some", n)
		}
		w.stop()
	})
}

// TestKindsThatAreNotLent: they are divided, and the parts add up to the limit.
func TestKindsThatAreNotLent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bucket, err := limit.NewGCRA(60, time.Minute, 5)
		if err != nil {
			t.Fatal(err)
		}
		places, err := limit.New(limit.Concurrency, 5, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			name string
			use  limit.Use
			want int
		}{
			{"bucket", limit.Use{Key: "g", Limit: bucket, Hits: 1}, 5},
			{"places", limit.Use{Key: "c", Limit: places, Hits: 1}, 5},
			{"reserved", limit.Use{Key: "h", Limit: sliding(t, 5, time.Minute), Hits: 1, Hold: "x", HoldFor: time.Minute}, 5},
			{"too short to lend of", limit.Use{Key: "s", Limit: sliding(t, 5, 700*time.Millisecond), Hits: 1}, 5},
			{"local", limit.Use{Key: "l", Limit: sliding(t, 5, time.Minute), Hits: 1, Mode: limit.Local}, 10},
		} {
			w := newWorld(t, c.use.Limit, twoShares)
			w.start("east", 100, 0)
			w.start("west", 100, 0)
			for range 30 {
				w.uses("east", c.use)
				w.uses("west", c.use)
			}
			if n := len(w.passed); n != c.want {
				t.Errorf("%s: %d passed, want %d", c.name, n, c.want)
			}
			w.stop()
		}
	})
}

// TestRegionThatLies: one that lies gets no more of another's part than it lends, ends
// nothing of others, and lends no more than it can have.
func TestRegionThatLies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, sliding(t, 1000, time.Minute), map[string]int{"east": 1, "west": 1, "north": 2})
		east := w.start("east", 20, 0)
		w.start("west", 20, 0)
		w.start("north", 20, 0)
		borrow := func(from, division string, asks ...*ratelimitpb.Ask) (*ratelimitpb.BorrowResponse, error) {
			return east.lender.Borrow(as(t.Context(), from), &ratelimitpb.BorrowRequest{Division: division, Asks: asks})
		}
		all := &ratelimitpb.Ask{Counter: "k", Hits: 4_000_000_000}
		const division = "east=1,north=2,west=1"
		got, ids := uint32(0), []string{}
		for range 100 {
			resp, err := borrow("west", division, all)
			if err != nil {
				t.Fatal(err)
			}
			for _, l := range resp.GetLoans() {
				got += l.GetHits()
				ids = append(ids, l.GetId())
			}
			// Ids that it made up, that are another's, and that say more than they are.
			for _, id := range []string{"50.x", "4000000000." + strings.TrimLeft(ids[0], "0123456789.")} {
				_, err := east.lender.Return(as(t.Context(), "west"), &ratelimitpb.ReturnRequest{Returned: []*ratelimitpb.Returned{{Counter: "k", Id: id}}})
				if err != nil {
					t.Fatal(err)
				}
			}
			_, err = east.lender.Return(as(t.Context(), "north"), &ratelimitpb.ReturnRequest{Returned: []*ratelimitpb.Returned{{Counter: "k", Id: ids[0]}}})
			if err != nil {
				t.Fatal(err)
			}
		}
		if got != 50 { // a fifth of 250
			t.Errorf("west borrowed %d, want a fifth of 250", got)
		}
		if resp, err := borrow("north", division, all); err != nil || resp.GetLoans()[0].GetHits() == 0 {
			t.Errorf("north gets nothing: %v, %v", resp, err)
		}
		if resp, err := borrow("west", division, &ratelimitpb.Ask{Counter: "unknown", Hits: 1}, &ratelimitpb.Ask{Counter: strings.Repeat("x", 20<<10), Hits: 1}); err != nil ||
			resp.GetLoans()[0].GetHits()+resp.GetLoans()[1].GetHits() > 0 {
			t.Errorf("an unknown counter: %v, %v", resp, err)
		}
		if _, err := borrow("west", "east=1,west=9"); err == nil || !strings.Contains(err.Error(), "divided otherwise here: "+division) {
			t.Errorf("another division: %v", err)
		}
		if _, err := borrow("west", division, make([]*ratelimitpb.Ask, 65)...); err == nil {
			t.Error("65 asks are answered")
		}
		if _, err := east.lender.Return(as(t.Context(), "west"), &ratelimitpb.ReturnRequest{Returned: []*ratelimitpb.Returned{{Counter: "k", Id: "x"}}}); err == nil {
			t.Error("an id that is none is taken")
		}
		w.stop()
	})
}

package storetest

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-mesh/writ/ratelimit/limit"
)

// divisible are the algorithms of limits that can be shared fairly.
func divisible(a limit.Algorithm) bool { return a == limit.Sliding }

// shared is one hit by somebody who shares a limit with others.
func shared(t *testing.T, a limit.Algorithm, key, who string, weight, requests uint32, window time.Duration) []limit.Use {
	t.Helper()
	whole := use(t, a, key, requests, window)
	part := whole
	part.Key, part.Share = key+"&"+who, weight
	part.Limit, part.Of = whole.Limit.Share(), key
	return []limit.Use{whole, part}
}

// parts: one alone leaves something to whoever comes, who gets it, and what nobody may
// have is taken from nobody.
func parts(t *testing.T, s Store, a limit.Algorithm) {
	if !divisible(a) {
		u := shared(t, a, "k", "a", 1, 9, time.Minute)
		if out := decide(t, s, start(), u...); out[1].Over || out[1].Remaining != 8 {
			t.Errorf("a limit that cannot be shared: %+v", out)
		}
		return
	}
	now := start()
	ask := func(who string, weight uint32, times int) (passed int) {
		for range times {
			u := shared(t, a, "k", who, weight, 90, time.Minute)
			out := decide(t, s, now, u...)
			if out[0].Taken != out[1].Taken {
				t.Fatalf("%s took %d of all and %d for itself", who, out[0].Taken, out[1].Taken)
			}
			if !limit.Refused(u, out) {
				passed++
			}
		}
		return passed
	}
	if out := decide(t, s, now, shared(t, a, "k", "flood", 1, 90, time.Minute)...); out[1].Remaining != 84 || out[0].Remaining != 89 {
		t.Errorf("after the first: %+v", out)
	}
	if got := ask("flood", 1, 200) + 1; got != 85 {
		t.Errorf("one alone got %d of 90, want 85", got)
	}
	out := decide(t, s, now, shared(t, a, "k", "flood", 1, 90, time.Minute)...)
	if out[0].Over || !out[1].Over || out[1].RetryAfter != time.Minute*33/32 || out[1].Remaining != 0 || out[0].Remaining != 5 {
		t.Errorf("one that has its part: %+v", out)
	}
	if got := ask("second", 1, 200); got != 5 {
		t.Errorf("a second one got %d of the 5 that were left", got)
	}
	if out := decide(t, s, now, shared(t, a, "k", "third", 1, 90, time.Minute)...); !out[0].Over || !out[1].Over || out[1].RetryAfter != out[0].RetryAfter {
		t.Errorf("all is used up: %+v", out)
	}
	// When the window is over each of the two that asked for more than they got gets as
	// much as the other, and one of weight 3 three times as much.
	longer := time.Minute + 2*time.Second // a use counts for a step longer for its tenant
	now = now.Add(longer)
	if a, b := ask("flood", 1, 200), ask("second", 1, 200); a != 42 || b != 42 {
		t.Errorf("two got %d and %d of 90, want 42 each", a, b)
	}
	now = now.Add(longer / 2)
	if got := ask("heavy", 3, 400); got != 6 {
		t.Errorf("one that comes got %d of 6", got)
	}
	now = now.Add(longer / 2)
	if a, b, c := ask("flood", 1, 200), ask("second", 1, 200), ask("heavy", 3, 200); a != 17 || b != 17 || c != 51-6 {
		t.Errorf("three got %d, %d and %d of 90, want 17, 17 and 45", a, b, c)
	}
}

// watchedParts: who is only watched takes nothing of the whole when it is over.
func watchedParts(t *testing.T, s Store, a limit.Algorithm) {
	if !divisible(a) {
		return
	}
	now := start()
	u := shared(t, a, "k", "a", 1, 9, time.Minute)
	u[0].Observe, u[1].Observe = true, true
	for range 20 {
		if out := decide(t, s, now, u...); limit.Refused(u, out) {
			t.Fatal("a watched limit refuses")
		}
	}
	if out := decide(t, s, now, u...); !out[1].Over || out[0].Over || out[0].Remaining != 1 || out[0].Taken != 0 {
		t.Errorf("a watched flood: %+v", out)
	}
}

// partsAsTheArithmeticSays plays random sequences on the store and on the bare
// arithmetic, several hits at once and operations that do not take among them.
func partsAsTheArithmeticSays(t *testing.T, s Store, a limit.Algorithm) {
	if !divisible(a) {
		return
	}
	for seed := range uint64(6) {
		rng := rand.New(rand.NewPCG(seed, 31))
		requests, window, now := uint32(1+rng.IntN(200)), time.Duration(1+rng.IntN(50))*100*time.Millisecond, start()
		counters := make(map[string]*limit.Counter)
		counter := func(u *limit.Use) *limit.Counter {
			if counters[u.Key] == nil {
				c, err := limit.NewCounter(u.Limit)
				if err != nil {
					t.Fatal(err)
				}
				counters[u.Key] = c
			}
			return counters[u.Key]
		}
		for n := range 150 {
			now = now.Add(time.Duration(rng.Int64N(int64(window) / 25))).Truncate(time.Microsecond)
			u := shared(t, a, fmt.Sprintf("parts-%d", seed), fmt.Sprint(rng.IntN(4)), uint32(1+rng.IntN(3)), requests, window)
			hits, op := uint64(rng.IntN(6)), limit.Take
			if rng.IntN(8) == 0 {
				op = []limit.Op{limit.Charge, limit.Refund}[rng.IntN(2)]
			}
			wanted := make([]limit.Outcome, 2)
			for i := range u {
				u[i].Hits, u[i].Op = hits, op
				switch {
				case limit.Part(u, i):
					wanted[i] = counter(&u[i]).CheckPart(&u[i], now, 0, limit.Whole{Use: &u[i-1], Counter: counter(&u[i-1]), Outcome: &wanted[i-1]})
				case op == limit.Take:
					wanted[i] = counter(&u[i]).Check(&u[i], now, 0)
				}
			}
			refused := limit.Refused(u, wanted)
			for i := range u {
				switch c := counter(&u[i]); {
				case op != limit.Take:
					wanted[i].Taken = c.Apply(&u[i], now)
				case refused:
					wanted[i].Taken = 0
				default:
					c.Take(&u[i], now, wanted[i].Taken)
				}
			}
			for i := range u {
				if limit.Part(u, i) {
					counter(&u[i]).AfterPart(&u[i], now, &wanted[i], limit.Whole{Use: &u[i-1], Counter: counter(&u[i-1]), Outcome: &wanted[i-1]})
				} else {
					counter(&u[i]).After(&u[i], now, &wanted[i])
				}
			}
			if diff := cmp.Diff(wanted, decide(t, s, now, u...)); diff != "" {
				t.Fatalf("seed %d, %d (-arithmetic +store):\n%s", seed, n, diff)
			}
		}
	}
}

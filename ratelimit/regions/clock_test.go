package regions

import (
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"
)

// TestLoanEnds: by the clock by which more time has passed.
func TestLoanEnds(t *testing.T) {
	const valid, hour = 10 * time.Second, time.Hour
	began := moment{time.Now().Round(0), hour}
	for _, c := range []struct {
		name     string
		wall, up time.Duration
		want     bool
	}{
		{"in time", 9 * time.Second, 9 * time.Second, true},
		{"over", valid, valid, false},
		{"the clock was set forward", hour, time.Second, false},
		{"the clock was set back", -hour, 9 * time.Second, true},
		{"the clock was set back, and it is over", -hour, valid, false},
		{"the machine was paused", valid, 0, false},
		{"the machine was paused and its clock set back", 0, 0, true}, // nothing here can tell
	} {
		l := loan{began: began, valid: valid}
		if got := l.good(moment{began.wall.Add(c.wall), began.up + c.up}); got != c.want {
			t.Errorf("%s: good %v, want %v", c.name, got, c.want)
		}
	}
	if a, b := sinceStart(), sinceStart(); a <= 0 || b < a {
		t.Errorf("since the machine started: %s, then %s", a, b)
	}
}

// TestSleptOver: what was borrowed before machines were suspended is not used after that.
func TestSleptOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, sliding(t, 100, time.Minute), twoShares)
		east := w.start("east", 100, 0)
		w.start("west", 100, 0)
		sleep(2 * time.Second)
		for range 52 {
			w.ask("east")
			sleep(time.Millisecond)
		}
		if !east.lentTo() {
			t.Fatal("nothing is in hand")
		}
		w.slept.Add(int64(2 * time.Minute))
		east.set.Add(int64(-30 * time.Second)) // and the clock was not quite right after it
		for range 60 {
			w.ask("west")
			w.ask("east")
		}
		if most := w.most(); most != 100 || len(w.passed) != 152 {
			t.Errorf("%d passed in a minute, %d in all", most, len(w.passed))
		}
		w.stop()
	})
}

// TestClocksThatJump: a ratelimit's clock that is set costs nothing, in any direction, nor
// does a store's that is set back.
func TestClocksThatJump(t *testing.T) {
	const limited, window = 100, 10 * time.Second
	for _, c := range []struct {
		name string
		jump func(r *region, n int64)
	}{
		{"ratelimit's, forward and back", func(r *region, n int64) { r.set.Store((n%7 - 3) * int64(time.Hour)) }},
		{"ratelimit's, by seconds", func(r *region, n int64) { r.set.Add((n%5 - 2) * int64(time.Second)) }},
		{"a store's, back", func(r *region, _ int64) { r.skew.Add(-int64(window)) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				random := rand.New(rand.NewPCG(2, 3))
				w := newWorld(t, sliding(t, limited, window), twoShares)
				east := w.start("east", 100, 0)
				w.start("west", 100, 0)
				sleep(time.Second)
				for n := range int64(60) {
					c.jump(east, n)
					for range random.IntN(120) {
						w.ask("east")
					}
					for range random.IntN(2) * 60 {
						w.ask("west")
					}
					sleep(time.Duration(random.IntN(2000)) * time.Millisecond)
				}
				if most := w.most(); most > limited || len(w.passed) < 3*limited {
					t.Errorf("%d passed in %s, %d in all", most, window, len(w.passed))
				}
				w.stop()
			})
		})
	}
}

// TestStoreSetForward: a store whose clock is set forward by a window has forgotten what it
// counted, and what it lent: its region's part passes once more, and nothing else.
func TestStoreSetForward(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, sliding(t, 100, time.Minute), twoShares)
		east := w.start("east", 100, 0)
		w.start("west", 100, 0)
		sleep(time.Second)
		for range 2 {
			for range 120 {
				w.ask("west") // half of it by loans
				w.ask("east")
				sleep(time.Millisecond)
			}
			east.skew.Add(int64(time.Hour))
		}
		if n := len(w.passed); n != 150 {
			t.Errorf("%d passed, want the limit of 100 and east's 50", n)
		}
		w.stop()
	})
}

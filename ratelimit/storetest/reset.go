package storetest

import (
	"testing"
	"time"

	"github.com/writ-mesh/writ/ratelimit/limit"
)

// resetThenRefund: what was taken before a counter was reset is not given back after it:
// there would be more to take than the limit has.
func resetThenRefund(t *testing.T, s Store, a limit.Algorithm) {
	if a == limit.Concurrency {
		return // places are given back by name
	}
	u, now := use(t, a, "k", 5, time.Minute), start()
	u.Hits = 4
	before := decide(t, s, now, u)[0]
	now = now.Add(time.Second)
	again := u
	again.Op = limit.Reset
	decide(t, s, now, again)
	now = now.Add(time.Second)
	u.Hits = 3
	after := decide(t, s, now, u)[0]
	back := u
	back.Op, back.Hits, back.At = limit.Refund, 4, before.At
	if out := decide(t, s, now, back)[0]; out.Taken != 0 {
		t.Errorf("4 that were taken before the reset: %+v", out)
	}
	back.Hits, back.At = 3, after.At
	if out := decide(t, s, now, back)[0]; out.Taken != 3 || out.Remaining != 5 {
		t.Errorf("3 that were taken after the reset: %+v", out)
	}
}

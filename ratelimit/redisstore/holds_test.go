package redisstore_test

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/ratelimit/limit"
	"github.com/writ-mesh/writ/ratelimit/redisstore"
	"github.com/writ-mesh/writ/ratelimit/redistest"
	"github.com/writ-mesh/writ/ratelimit/storetest"
)

// TestHoldsThatAreNotDue: a decision reads those holds that are over and its own, not
// all of a counter, and what is over is forgotten.
func TestHoldsThatAreNotDue(t *testing.T) {
	const holds = 300
	server := redistest.Start(t)
	s := run(t, redisstore.Options{Address: server.Address(), CallersClock: true, Timeout: 5 * time.Second})
	u := limit.Use{Key: "k", Limit: storetest.Sliding(t, 1<<20, time.Hour), Hits: 1}
	now := time.Now()
	decide := func(uses ...limit.Use) limit.Outcome {
		t.Helper()
		out := make([]limit.Outcome, len(uses))
		if err := s.Decide(t.Context(), now, uses, out); err != nil {
			t.Fatal(err)
		}
		return out[len(out)-1]
	}
	var uses []limit.Use
	for i := range holds {
		u.Hold, u.HoldFor = fmt.Sprint(i), time.Minute+time.Duration(i)*time.Second
		uses = append(uses, u)
	}
	decide(uses...)
	server.Command(t, "CONFIG", "RESETSTAT")
	u.Hits, u.Hold = 0, ""
	now = now.Add(time.Minute - time.Second)
	for i := range holds { // each second another one ends
		now = now.Add(time.Second)
		if out := decide(u); out.Remaining != 1<<20-holds+uint32(i)+1 {
			t.Fatalf("second %d: %+v", i, out)
		}
	}
	calls := map[string]int{}
	for _, m := range regexp.MustCompile(`cmdstat_(\w+):calls=(\d+)`).FindAllStringSubmatch(server.Command(t, "INFO", "commandstats"), -1) {
		n := 0
		if _, err := fmt.Sscan(m[2], &n); err != nil {
			t.Fatal(err)
		}
		calls[m[1]] = n
	}
	if calls["hgetall"] > 0 || calls["hget"] > 4*holds || calls["zrange"] > 3*holds {
		t.Errorf("commands for %d decisions: %v", holds, calls)
	}
	// What was held may be settled for as long again, and is forgotten then.
	now = now.Add(2 * (time.Minute + holds*time.Second))
	if out := decide(u); out.Remaining != 1<<20 {
		t.Errorf("in the end: %+v", out)
	}
	if left := server.Command(t, "EVAL", "return redis.call('EXISTS', 'k:h', 'k:o')", "2", "k:h", "k:o"); strings.TrimSpace(left) != "0" {
		t.Errorf("%s keys of holds are left", left)
	}
}

// TestHoldsWithoutOrder: the order of holds is made anew if there is none, or another
// one.
func TestHoldsWithoutOrder(t *testing.T) {
	server := redistest.Start(t)
	s := run(t, redisstore.Options{Address: server.Address(), CallersClock: true, Timeout: 5 * time.Second})
	u := limit.Use{Key: "k", Limit: storetest.Sliding(t, 10, time.Hour), Hits: 2, Hold: "a", HoldFor: time.Minute}
	out, now := make([]limit.Outcome, 1), time.Now()
	for _, lost := range [][]string{{"DEL", "k:o"}, {"ZADD", "k:o", "1", "nobody"}} {
		if err := s.Decide(t.Context(), now, []limit.Use{u}, out); err != nil || out[0].Remaining != 8 {
			t.Fatalf("%+v, %v", out[0], err)
		}
		server.Command(t, lost...)
		now = now.Add(time.Minute)
		ask := u
		ask.Hits = 0
		if err := s.Decide(t.Context(), now, []limit.Use{ask}, out); err != nil || out[0].Remaining != 10 {
			t.Errorf("%v: %+v, %v", lost, out[0], err)
		}
		now = now.Add(2 * time.Minute)
	}
}

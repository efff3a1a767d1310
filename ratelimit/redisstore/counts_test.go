package redisstore_test

import (
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/ratelimit/limit"
	"github.com/writ-mesh/writ/ratelimit/redisstore"
	"github.com/writ-mesh/writ/ratelimit/redistest"
	"github.com/writ-mesh/writ/ratelimit/storetest"
)

// What counts refused uses as well needs no script, and is counted by the script in the
// same counter when it is decided together with what does not.
func TestCountsNeedNoScript(t *testing.T) {
	server := redistest.Start(t)
	s := run(t, redisstore.Options{Address: server.Address(), Timeout: 5 * time.Second})
	fixed := storetest.Fixed(t, 3, time.Hour)
	now := time.Now()
	a, b := limit.Use{Key: "a", Limit: fixed, Hits: 2}, limit.Use{Key: "b", Limit: fixed, Hits: 1}
	sliding := limit.Use{Key: "s", Limit: storetest.Sliding(t, 5, time.Hour), Hits: 1}
	for i, c := range []struct {
		uses    []limit.Use
		over    bool // of a
		left    uint32
		scripts bool
	}{
		{[]limit.Use{a, b}, false, 1, false},
		{[]limit.Use{a}, true, 0, false},
		{[]limit.Use{a, sliding}, true, 0, true},
	} {
		out := make([]limit.Outcome, len(c.uses))
		if err := s.Decide(t.Context(), now, c.uses, out); err != nil {
			t.Fatal(err)
		}
		if out[0].Over != c.over || out[0].Remaining != c.left || out[0].Taken != 2 || (out[0].RetryAfter > 0) != c.over {
			t.Errorf("decision %d: %+v", i, out[0])
		}
		if got := strings.Contains(server.Command(t, "INFO", "commandstats"), "cmdstat_evalsha"); got != c.scripts {
			t.Errorf("decision %d: a script ran: %v, want %v", i, got, c.scripts)
		}
	}
	key := fixed.CounterKey("a", now)
	if got := strings.TrimSpace(server.Command(t, "GET", key)); got != "6" {
		t.Errorf("%s uses are counted, want 6", got)
	}
	if got := strings.TrimSpace(server.Command(t, "TTL", key)); len(got) != len("3600") || got > "3600" || got < "3500" {
		t.Errorf("the counter is forgotten after %s s, want the window", got)
	}
}

// A counter that holds something else is an error of that decision alone.
func TestCountsOfWhatIsNoCounter(t *testing.T) {
	server := redistest.Start(t)
	s := run(t, redisstore.Options{Address: server.Address(), Timeout: 5 * time.Second})
	fixed := storetest.Fixed(t, 3, time.Hour)
	server.Command(t, "SET", fixed.CounterKey("text", time.Now()), "x")
	if out, err := one(t, s, limit.Use{Key: "text", Limit: fixed, Hits: 1}); err == nil {
		t.Errorf("decided: %+v", out)
	}
	if out, err := one(t, s, limit.Use{Key: "other", Limit: fixed, Hits: 1}); err != nil || out.Over {
		t.Errorf("another: %+v, %v", out, err)
	}
}

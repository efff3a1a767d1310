package redisstore

import (
	"errors"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/writ-mesh/writ/ratelimit/limit"
	"github.com/writ-mesh/writ/ratelimit/storetest"
)

func ranges(names ...string) (out []redis.ClusterSlot) {
	for i, name := range names {
		out = append(out, redis.ClusterSlot{
			Start: slots * i / len(names), End: slots*(i+1)/len(names) - 1, Nodes: []redis.ClusterNode{{ID: name, Addr: "x:1"}},
		})
	}
	return out
}

// TestOwners: a master keeps its lane, one that takes another's place gets a lane of its
// own, and a probe goes to whom it is meant for.
func TestOwners(t *testing.T) {
	lanes := make(map[string]int)
	newOwners(lanes, ranges("a", "b", "c"))
	if lanes["a"] == lanes["b"] || lanes["b"] == lanes["c"] || lanes["a"] == lanes["c"] {
		t.Fatalf("%v", lanes)
	}
	was := lanes["b"]
	newOwners(lanes, ranges("a", "d", "c"))
	if lanes["d"] == lanes["a"] || lanes["d"] == lanes["c"] || len(lanes) != 3 {
		t.Errorf("after another has taken b's place: %v", lanes)
	}
	o := newOwners(lanes, append(ranges("a", "d", "c", "b"), redis.ClusterSlot{}, redis.ClusterSlot{Start: -5, End: 1 << 20}))
	if lanes["b"] == lanes["d"] {
		t.Errorf("b is back, and was %d: %v", was, lanes)
	}
	for i, want := range []string{"a", "d", "c", "b"} {
		if got := int(o.lane[slots*i/4]); got != lanes[want] {
			t.Errorf("slot %d has lane %d, want that of %s: %v", slots*i/4, got, want, lanes)
		}
	}
	probes := 0
	for lane, key := range o.probe {
		if key != "" && int(o.lane[slot(key)]) == lane {
			probes++
		}
	}
	if probes != 4 {
		t.Errorf("probes: %q", o.probe)
	}
	many := make([]string, 100)
	for i := range many {
		many[i] = string(rune('A' + i))
	}
	if o = newOwners(lanes, ranges(many...)); int(o.lane[slots-1]) >= maxNodes {
		t.Errorf("lane %d", o.lane[slots-1])
	}
}

// TestErrorsSayWhere: of a decision over several masters, which are waited for together.
func TestErrorsSayWhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := New(Options{Cluster: []string{"127.0.0.1:1"}, Timeout: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		s.owners.Store(newOwners(make(map[string]int), ranges("a", "b")))
		var uses []limit.Use
		for _, key := range []string{"{1}", "{2}", "{3}", "{4}"} {
			uses = append(uses, limit.Use{Key: key, Limit: storetest.Sliding(t, 1, time.Minute), Hits: 1})
		}
		var of interface{ Nodes() []int }
		begin := time.Now()
		if err := s.Decide(t.Context(), begin, uses, make([]limit.Outcome, 4)); !errors.Is(err, ErrTimeout) || !errors.As(err, &of) || len(of.Nodes()) != 4 {
			t.Fatalf("nobody carries it: %v", err)
		}
		if took := time.Since(begin); took != time.Second {
			t.Errorf("it was given up after %s, want one timeout", took)
		}
		for i, node := range of.Nodes() {
			if node != s.Node(begin, &uses[i]) {
				t.Errorf("use %d: node %d", i, node)
			}
		}
		if err := s.client.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestOneOfTwoFails: what the master took that is well is given back, for the decision
// failed as a whole and is made anew without it.
func TestOneOfTwoFails(t *testing.T) {
	s, err := New(Options{Cluster: []string{"127.0.0.1:1"}, Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	s.owners.Store(newOwners(make(map[string]int), ranges("a", "b")))
	for _, l := range []limit.Limit{storetest.Sliding(t, 10, time.Hour), storetest.Fixed(t, 10, 24*time.Hour)} {
		now := time.Now()
		uses := []limit.Use{{Key: "{1}", Limit: l, Hits: 3}}
		for i := 2; len(uses) < 2; i++ {
			u := limit.Use{Key: "{" + strconv.Itoa(i) + "}", Limit: l, Hits: 1}
			if s.Node(now, &u) != s.Node(now, &uses[0]) {
				uses = append(uses, u)
			}
		}
		well, away := s.lanes[s.Node(now, &uses[0])], s.lanes[s.Node(now, &uses[1])]
		go func() {
			j := <-well.queue
			j.outcomes[0] = limit.Outcome{Taken: 3, Remaining: 7, At: now}
			j.done <- nil
			j = <-away.queue
			j.done <- errors.New("away")
		}()
		if err := s.Decide(t.Context(), now, uses, make([]limit.Outcome, 2)); err == nil {
			t.Fatal("no error")
		}
		select {
		case j := <-well.queue:
			if u := j.uses[0]; len(j.uses) != 1 || u.Key != "{1}" || u.Op != limit.Refund || u.Hits != 3 {
				t.Errorf("%s: %+v", l.Algorithm(), j.uses)
			}
		default:
			t.Errorf("%s: nothing is given back", l.Algorithm())
		}
	}
}

package redisstore_test

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/ratelimit/limit"
	"github.com/writ-mesh/writ/ratelimit/redisstore"
	"github.com/writ-mesh/writ/ratelimit/redistest"
	"github.com/writ-mesh/writ/ratelimit/storetest"
)

// owed are hits of limits of each kind that are charged, with an id each.
func owed(t *testing.T) (uses []limit.Use, ids []string) {
	t.Helper()
	for _, a := range limit.Algorithms() {
		u := limit.Use{Key: "writ:{default/q}:0:" + a.Code(), Limit: storetest.New(t, a, 100, 100*time.Hour), Op: limit.Charge, Hits: 3}
		uses, ids = append(uses, u), append(ids, "id-"+a.String())
	}
	held := limit.Use{Key: "writ:{default/held}:0:s", Limit: storetest.Sliding(t, 100, time.Hour), Op: limit.Charge, Hits: 3, Hold: "h", HoldFor: time.Hour}
	return append(uses, held), append(ids, "id-held")
}

// left checks what is left of each.
func left(t *testing.T, s *redisstore.Store, uses []limit.Use, want uint32) {
	t.Helper()
	for _, u := range uses {
		u.Op, u.Hits, u.Hold, u.HoldFor = limit.Take, 0, "", time.Second // what is held counts too
		if out, err := one(t, s, u); err != nil || out.Remaining != want {
			t.Errorf("%s: %d of 100 are left, want %d, %v", u.Key, out.Remaining, want, err)
		}
	}
}

// TestToldOnce: what is told by the same ids is done once, what is told by others again.
func TestToldOnce(t *testing.T) {
	server := redistest.Start(t)
	s := run(t, redisstore.Options{Address: server.Address(), Timeout: 5 * time.Second})
	uses, ids := owed(t)
	// Redis remembers what it was told as long as nobody heard that it was done.
	server.Command(t, "SET", "list", "x")
	bad := limit.Use{Key: "list", Limit: storetest.Fixed(t, 100, 24*time.Hour), Op: limit.Charge, Hits: 3}
	now := time.Now()
	server.Command(t, "SET", bad.Limit.CounterKey("list", now), "no number")
	for range 2 {
		if err := s.Tell(t.Context(), now, append(uses[:len(uses):len(uses)], bad), append(ids[:len(ids):len(ids)], "bad")); err == nil {
			t.Fatal("what is no counter was counted")
		}
	}
	left(t, s, uses, 100) // all together or nothing
	tell := func(ids []string) {
		t.Helper()
		if err := s.Tell(t.Context(), time.Now(), uses, ids); err != nil {
			t.Fatal(err)
		}
	}
	tell(ids)
	left(t, s, uses, 97)
	proctest.Until(t, 10*time.Second, "Redis to be told that it need not know the ids for long", func() bool {
		for _, id := range strings.Fields(server.Command(t, "KEYS", "writ:told:*")) {
			if ttl, err := strconv.Atoi(strings.TrimSpace(server.Command(t, "TTL", id))); err != nil || ttl > 120 {
				return false
			}
		}
		return true
	})
	tell(ids) // as what was on its way when nobody waited for it any more
	left(t, s, uses, 97)
	other := make([]string, len(ids))
	for i := range ids {
		other[i] = "other-" + ids[i]
		// As if nobody had heard of it.
		server.Command(t, "SET", "writ:told:{default/"+map[bool]string{true: "held", false: "q"}[i == len(ids)-1]+"}:"+other[i], "")
	}
	tell(other)
	left(t, s, uses, 97)
}

// TestTooLateIsDoneOnce: a Redis that hangs while it is told the same thing several times,
// and then does all that has come to it, has done it once. Nobody waited for any of it.
func TestTooLateIsDoneOnce(t *testing.T) {
	server := redistest.Start(t)
	s := run(t, redisstore.Options{Address: server.Address(), Timeout: 20 * time.Millisecond, Workers: 4})
	uses, ids := owed(t)
	proctest.Eventually(t, 20*time.Second, func() error { return s.Tell(t.Context(), time.Now(), uses[:1], []string{"first"}) })
	before := evaluated(t, server)
	server.Freeze()
	for range 4 {
		if err := s.Tell(t.Context(), time.Now(), uses[1:], ids[1:]); err == nil {
			t.Fatal("told a Redis that hangs")
		}
	}
	server.Thaw()
	proctest.Until(t, 20*time.Second, "Redis to do what nobody waits for", func() bool { return evaluated(t, server) > before })
	proctest.Eventually(t, 20*time.Second, func() error { return s.Tell(t.Context(), time.Now(), uses[1:], ids[1:]) })
	proctest.Until(t, 20*time.Second, "an answer", func() bool { _, err := one(t, s, limit.Use{Key: "x", Limit: uses[0].Limit}); return err == nil })
	patient := run(t, redisstore.Options{Address: server.Address(), Timeout: 5 * time.Second})
	left(t, patient, uses, 97)
}

// evaluated is how many scripts a server has run.
func evaluated(t *testing.T, server *redistest.Server) int {
	t.Helper()
	_, rest, found := strings.Cut(server.Command(t, "INFO", "commandstats"), "cmdstat_evalsha:calls=")
	if !found {
		return 0
	}
	calls, _, _ := strings.Cut(rest, ",")
	n, err := strconv.Atoi(calls)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestHangingMastersAreWaitedForTogether: a decision over limits of several masters that
// hang takes as long as one with one of them; and what is told to a cluster is done once
// in each slot, whatever the keys are like, though it does what came too late.
func TestHangingMastersAreWaitedForTogether(t *testing.T) {
	t.Parallel()
	const timeout = 120 * time.Millisecond
	set := redistest.StartCluster(t, nil, "--cluster-require-full-coverage", "no")
	s := run(t, redisstore.Options{Cluster: set.Addresses(), Timeout: timeout})
	patient := run(t, redisstore.Options{Cluster: set.Addresses(), Timeout: 10 * time.Second})
	var uses []limit.Use
	var ids []string
	for i, key := range []string{set.Key(t, 0), set.Key(t, 1), set.Key(t, 2), "no tag", "}", "", "a}b{", "{}c", "{t}}"} {
		uses = append(uses, limit.Use{Key: key, Limit: storetest.Sliding(t, 100, time.Hour), Op: limit.Charge, Hits: 3})
		ids = append(ids, fmt.Sprint("id-", i))
	}
	proctest.Eventually(t, 30*time.Second, func() error { return s.Tell(t.Context(), time.Now(), uses, ids) })
	proctest.Eventually(t, 30*time.Second, func() error { return patient.Tell(t.Context(), time.Now(), uses[:3], []string{"x", "y", "z"}) })
	for i := range ids {
		ids[i] += "again"
	}
	for _, node := range set.Nodes[:3] {
		node.Freeze()
	}
	asks := make([]limit.Use, 3)
	for i := range asks {
		asks[i] = limit.Use{Key: uses[i].Key, Limit: uses[i].Limit}
	}
	// On a busy machine it may take longer, but not ever.
	proctest.Until(t, 30*time.Second, "an answer that took less than two timeouts", func() bool {
		begin := time.Now()
		err := s.Decide(t.Context(), begin, asks, make([]limit.Outcome, len(asks)))
		if err == nil {
			t.Fatal("three masters hang")
		}
		return errors.Is(err, redisstore.ErrTimeout) && time.Since(begin) < 2*timeout
	})
	for range 3 {
		if err := s.Tell(t.Context(), time.Now(), uses, ids); err == nil {
			t.Fatal("told masters that hang")
		}
	}
	for _, node := range set.Nodes[:3] {
		node.Thaw()
	}
	proctest.Eventually(t, 30*time.Second, func() error { return s.Tell(t.Context(), time.Now(), uses, ids) })
	for i, u := range uses {
		u.Op, u.Hits = limit.Take, 0
		want := uint32(94) // told by two ids
		if i < 3 {
			want = 91
		}
		proctest.Eventually(t, 30*time.Second, func() error {
			out, err := one(t, patient, u)
			if err == nil && out.Remaining != want {
				t.Fatalf("%q: %d of 100 are left, want %d", u.Key, out.Remaining, want)
			}
			return err
		})
	}
}

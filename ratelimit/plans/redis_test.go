package plans

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/ratelimit/redisstore"
	"github.com/writ-mesh/writ/ratelimit/redistest"
)

// inRedis follows the table t of a Redis until the test ends.
func inRedis(t *testing.T, server *redistest.Server, maxCallers int) *Handle {
	t.Helper()
	// With no more rights than docs/security/ratelimit.md gives it.
	server.Command(t, "ACL", "SETUSER", "plans", "on", ">secret", "~writ:plans:*", "+hmget", "+hlen", "+hscan", "+xrange", "+xrevrange", "+get")
	from, err := redisstore.OpenPlans(redisstore.Options{Address: server.Address(), Username: "plans", Password: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	b := New(Options{Redis: from, Tables: []string{"t"}, MaxCallers: maxCallers, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
	b.lookEvery, b.readPause = 10*time.Millisecond, 50*time.Millisecond
	proctest.Background(t, b.Run)
	return b.Handle("t")
}

// becomes waits until a caller has so many requests.
func becomes(t *testing.T, h *Handle, caller string, requests uint32, by int) {
	t.Helper()
	isSoon(t, h, caller, "", Found{Number: Number{Requests: requests}, by: by})
}

// isSoon waits until this is found, whatever the plan and the burst.
func isSoon(t *testing.T, h *Handle, caller, column string, want Found) {
	t.Helper()
	proctest.Eventually(t, 20*time.Second, func() error {
		if f := h.Find(caller, column); f.Number.Requests != want.Number.Requests || f.by != want.by {
			return fmt.Errorf("%s has %+v, want %+v", caller, f, want)
		}
		return nil
	})
}

// TestRedisTable follows a table through all that its writers and its Redis do.
func TestRedisTable(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	key := redisstore.PlansKey("t")
	change := func(caller, value string) {
		t.Helper()
		server.Command(t, "HSET", key, caller, value)
		server.Command(t, "XADD", key+":changes", "MAXLEN", "~", "1000", "*", "caller", caller)
	}
	server.Command(t, "HSET", key, "alice", "gold", "bob", "5")
	server.Command(t, "SET", key+":head", "numbers n\nplan free 60\nplan gold 600\ndefault free\n")
	h := inRedis(t, server, 100_000)
	becomes(t, h, "alice", 600, byPlan)
	becomes(t, h, "bob", 5, byItself)
	becomes(t, h, "carol", 60, byDefault)

	change("alice", "7:3")
	becomes(t, h, "alice", 7, byItself)
	change("carol", "gold")
	becomes(t, h, "carol", 600, byPlan)
	server.Command(t, "HDEL", key, "carol")
	server.Command(t, "XADD", key+":changes", "*", "caller", "carol")
	becomes(t, h, "carol", 60, byDefault)

	// What a plan comes to needs no entry among the changes, nor does its first caller.
	server.Command(t, "SET", key+":head", "numbers n\nplan silver 100\nplan free 50\nplan gold 600\ndefault free\n")
	becomes(t, h, "carol", 50, byDefault)
	change("alice", "silver")
	becomes(t, h, "alice", 100, byPlan)
	change("dave", "platinum") // before there is such a plan
	failsUntil(t, h)
	becomes(t, h, "alice", 100, byPlan)
	server.Command(t, "SET", key+":head", "numbers n\nplan silver 101\nplan free 50\nplan gold 600\nplan platinum 9000\ndefault free\n")
	becomes(t, h, "dave", 9000, byPlan)

	// A plan that is still had does not go.
	server.Command(t, "SET", key+":head", "numbers n\nplan free 51\ndefault free\n")
	failsUntil(t, h)
	becomes(t, h, "alice", 101, byPlan)
	becomes(t, h, "carol", 50, byDefault)
	server.Command(t, "SET", key+":head", "numbers n\nplan silver 102\nplan free 52\nplan platinum 9000\ndefault refuse\n")
	becomes(t, h, "alice", 102, byPlan)
	becomes(t, h, "carol", 0, byRefusal)

	// A writer that does not say what it changed is found out by the number of callers.
	server.Command(t, "HSET", key, "eve", "silver")
	becomes(t, h, "eve", 102, byPlan)
	// One that says that everything may have changed is believed.
	server.Command(t, "HSET", key, "eve", "3")
	server.Command(t, "XADD", key+":changes", "*", "all", "1")
	becomes(t, h, "eve", 3, byItself)
	// Other columns: everything is read anew.
	server.Command(t, "HSET", key, "alice", "1 2", "bob", "1 2", "dave", "1 2", "eve", "8 9")
	server.Command(t, "SET", key+":head", "numbers a b\n")
	isSoon(t, h, "eve", "b", Found{Number: Number{Requests: 9}, by: byItself})

	// Flushed, away, back empty: the last good table stays.
	server.Command(t, "FLUSHALL")
	failsUntil(t, h)
	server.Kill()
	failsUntil(t, h)
	server.Restart(t)
	server.Command(t, "ACL", "SETUSER", "plans", "on", ">secret", "~writ:plans:*", "+hmget", "+hlen", "+hscan", "+xrange", "+xrevrange", "+get")
	failsUntil(t, h)
	if f := h.Find("eve", "b"); f.Number.Requests != 9 {
		t.Errorf("with nothing in Redis: %+v", f)
	}
	server.Command(t, "HSET", key, "eve", "8 10")
	server.Command(t, "SET", key+":head", "numbers a b\n")
	isSoon(t, h, "eve", "b", Found{Number: Number{Requests: 10}, by: byItself})
}

// TestFirstChanges: nothing tells whether the first changes of a stream that are there
// were the first, so that all callers are read.
func TestFirstChanges(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	from, err := redisstore.OpenPlans(redisstore.Options{Address: server.Address()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = from.Close() }()
	begin, err := from.End(t.Context(), "t")
	if err != nil {
		t.Fatal(err)
	}
	if s, err := from.State(t.Context(), "t", begin); err != nil || s.Gap {
		t.Errorf("before any change: %+v, %v", s, err)
	}
	for _, caller := range []string{"alice", "bob"} {
		server.Command(t, "XADD", redisstore.PlansKey("t")+":changes", "MAXLEN", "1", "*", "caller", caller)
	}
	s, err := from.State(t.Context(), "t", begin)
	if err != nil || !s.Gap {
		t.Fatalf("alice's change is lost: %+v, %v", s, err)
	}
	server.Command(t, "XADD", redisstore.PlansKey("t")+":changes", "*", "caller", "carol")
	if s, err = from.State(t.Context(), "t", s.Last); err != nil || s.Gap || len(s.Changed) != 1 {
		t.Errorf("after that: %+v, %v", s, err)
	}
}

// failsUntil waits for another failure.
func failsUntil(t *testing.T, h *Handle) {
	t.Helper()
	before := h.failures.Load()
	proctest.Eventually(t, 20*time.Second, func() error {
		if h.failures.Load() < before+2 {
			return errors.New("nothing fails")
		}
		return nil
	})
}

// TestStrangeRedis: a Redis with too many callers, or too many that have no plan, gets
// nothing taken, and what is wrong of a few leaves the others alone.
func TestStrangeRedis(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	key := redisstore.PlansKey("t")
	server.Command(t, "SET", key+":head", "numbers n\nplan gold 600\n")
	for part := range 4 { // more than one answer
		args := []string{"HSET", key}
		for i := range 1000 {
			args = append(args, fmt.Sprintf("caller-%04d", part*1000+i), "gold")
		}
		server.Command(t, args...)
	}
	server.Command(t, "HSET", key, "bad\x01name", "gold", "x", "-5", "y", "99999999999", "z", "gold gold", "long"+strings.Repeat("x", 600), "gold")
	h := inRedis(t, server, 4005)
	becomes(t, h, "caller-3999", 600, byPlan)
	failsUntil(t, h)
	if f := h.Find("x", ""); f.by != byNothing {
		t.Errorf("a caller with a number below 0: %+v", f)
	}
	if n := h.table.Load().Callers(); n != 4000 {
		t.Errorf("%d callers", n)
	}
	server.Command(t, "HSET", key, "x", "5")
	becomes(t, h, "x", 5, byItself) // looked at again though nobody says so

	small := inRedis(t, server, 1000)
	failsUntil(t, small)
	if small.table.Load() != nil {
		t.Error("4000 callers were taken where 1000 are too many")
	}
}

package redisstore_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/ratelimit/limit"
	"github.com/writ-mesh/writ/ratelimit/redisstore"
	"github.com/writ-mesh/writ/ratelimit/redistest"
	"github.com/writ-mesh/writ/ratelimit/storetest"
)

func run(t *testing.T, o redisstore.Options) *redisstore.Store {
	t.Helper()
	s, err := redisstore.New(o)
	if err != nil {
		t.Fatal(err)
	}
	proctest.Background(t, s.Run)
	return s
}

func TestConformance(t *testing.T) {
	server := redistest.Start(t)
	fresh := func(t *testing.T) storetest.Store {
		server.Command(t, "FLUSHALL")
		return run(t, redisstore.Options{Address: server.Address(), CallersClock: true, Timeout: 5 * time.Second})
	}
	storetest.Run(t, fresh)
	storetest.Shares(t, fresh)
}

func one(t testing.TB, s *redisstore.Store, u limit.Use) (limit.Outcome, error) {
	t.Helper()
	var out [1]limit.Outcome
	err := s.Decide(t.Context(), time.Now(), []limit.Use{u}, out[:])
	return out[0], err
}

// TestServersClock: the time that a caller passes does not matter.
func TestServersClock(t *testing.T) {
	s := run(t, redisstore.Options{Address: redistest.Start(t).Address(), Timeout: 5 * time.Second})
	uses, out := []limit.Use{{Key: "k", Limit: storetest.Sliding(t, 1, time.Minute), Hits: 1}}, make([]limit.Outcome, 1)
	for i, clock := range []time.Time{time.Now(), time.Now().Add(time.Hour), {}} {
		if err := s.Decide(t.Context(), clock, uses, out); err != nil {
			t.Fatal(err)
		}
		if out[0].Over != (i > 0) {
			t.Errorf("caller's clock %s: %+v", clock, out[0])
		}
	}
}

func TestUnixSocketAndPassword(t *testing.T) {
	server := redistest.Start(t, "--requirepass", "s3cret")
	u := limit.Use{Key: "k", Limit: storetest.Sliding(t, 1, time.Minute), Hits: 1}
	s := run(t, redisstore.Options{Address: server.Socket(), Password: "s3cret", Timeout: 5 * time.Second})
	if _, err := one(t, s, u); err != nil {
		t.Errorf("with the password: %v", err)
	}
	s = run(t, redisstore.Options{Address: server.Socket(), Password: "wrong", Timeout: 5 * time.Second})
	if _, err := one(t, s, u); err == nil {
		t.Error("a wrong password is no error")
	}
}

func TestScriptIsLoadedAgain(t *testing.T) {
	server := redistest.Start(t)
	s := run(t, redisstore.Options{Address: server.Address(), Timeout: 5 * time.Second})
	u := limit.Use{Key: "k", Limit: storetest.Sliding(t, 3, time.Minute), Hits: 1}
	for range 3 {
		if out, err := one(t, s, u); err != nil || out.Over {
			t.Fatalf("%+v, %v", out, err)
		}
		server.Command(t, "SCRIPT", "FLUSH")
	}
	if out, err := one(t, s, u); err != nil || !out.Over {
		t.Errorf("fourth of three: %+v, %v", out, err)
	}
}

func TestEveryKeyExpires(t *testing.T) {
	server := redistest.Start(t)
	s := run(t, redisstore.Options{Address: server.Address(), Timeout: 5 * time.Second})
	for _, u := range []limit.Use{
		{Key: "s", Limit: storetest.Sliding(t, 3, time.Minute), Hits: 1},
		{Key: "f", Limit: storetest.Fixed(t, 3, time.Minute), Hits: 1},
	} {
		if _, err := one(t, s, u); err != nil {
			t.Fatal(err)
		}
	}
	if got := server.Command(t, "EVAL", `
		for _, k in ipairs(redis.call('KEYS', '*')) do
			local ttl = redis.call('TTL', k)
			if ttl < 1 or ttl > 62 then return k .. ' has ' .. ttl end
		end
		return #redis.call('KEYS', '*')`, "0"); got != "2" {
		t.Errorf("keys that expire: %q, want 2", got)
	}
}

// TestKeysOfTheIncumbent: beside envoyproxy/ratelimit both count in the same keys.
func TestKeysOfTheIncumbent(t *testing.T) {
	server := redistest.Start(t)
	s := run(t, redisstore.Options{Address: server.Address(), Timeout: 5 * time.Second})
	now := time.Unix(1785585678, 0)
	out := make([]limit.Outcome, 1)
	if err := s.Decide(t.Context(), now, []limit.Use{{Key: "domain_key_value_", Limit: storetest.Fixed(t, 3, time.Minute), Hits: 2}}, out); err != nil {
		t.Fatal(err)
	}
	if got := server.Command(t, "GET", "domain_key_value__1785585660"); got != "2" {
		t.Errorf("the counter of the minute is %q, want 2", got)
	}
}

func TestForeignValueIsAnError(t *testing.T) {
	server := redistest.Start(t)
	server.Command(t, "LPUSH", "list", "x")
	server.Command(t, "SET", "text", "abc")
	s := run(t, redisstore.Options{Address: server.Address(), Timeout: 5 * time.Second})
	l := storetest.Sliding(t, 1, time.Minute)
	if _, err := one(t, s, limit.Use{Key: "list", Limit: l, Hits: 1}); err == nil {
		t.Error("a list was taken for a counter")
	}
	if out, err := one(t, s, limit.Use{Key: "text", Limit: l, Hits: 1}); err != nil || out.Over {
		t.Errorf("a string that is no counter: %+v, %v; want it replaced", out, err)
	}
}

func TestNobodyWaitsForAFrozenRedis(t *testing.T) {
	server := redistest.Start(t)
	s := run(t, redisstore.Options{Address: server.Address(), Timeout: 4 * time.Millisecond})
	u := limit.Use{Key: "k", Limit: storetest.Sliding(t, 1, time.Minute), Hits: 1}
	server.Freeze()
	begin := time.Now()
	if _, err := one(t, s, u); !errors.Is(err, redisstore.ErrTimeout) {
		t.Errorf("got %v, want the timeout", err)
	}
	if took := time.Since(begin); took > time.Second {
		t.Errorf("waited %s", took)
	}
	busy := false
	for range 10_000 {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := s.Decide(ctx, time.Now(), []limit.Use{u}, make([]limit.Outcome, 1)); errors.Is(err, redisstore.ErrBusy) {
			busy = true
			break
		}
	}
	if !busy {
		t.Error("the queue takes any number of decisions")
	}
	server.Thaw()
	proctest.Eventually(t, 10*time.Second, func() error {
		_, err := one(t, s, u)
		return err
	})
}

// TestPatience: who waits long for Redis has an answer that comes late.
func TestPatience(t *testing.T) {
	slow := redistest.StartSlow(t, redistest.Start(t))
	s := run(t, redisstore.Options{Address: slow.Address(), Timeout: 20 * time.Second})
	u := limit.Use{Key: "k", Limit: storetest.Sliding(t, 9, time.Minute), Hits: 1}
	for _, delay := range []time.Duration{0, 400 * time.Millisecond} {
		slow.Delay(delay)
		if _, err := one(t, s, u); err != nil {
			t.Errorf("answers take %s longer: %v", delay, err)
		}
	}
}

func TestBadAddress(t *testing.T) {
	for _, a := range []string{"", "localhost", "unix://", "a:b:c"} {
		if _, err := redisstore.New(redisstore.Options{Address: a}); err == nil {
			t.Errorf("address %q was taken", a)
		}
	}
}

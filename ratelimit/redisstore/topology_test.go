package redisstore_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/pkitest"
	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/ratelimit/limit"
	"github.com/writ-mesh/writ/ratelimit/redisstore"
	"github.com/writ-mesh/writ/ratelimit/redistest"
	"github.com/writ-mesh/writ/ratelimit/storetest"
)

// failovers is how often the master changes in each topology, few by default, and how
// long nobody may have an answer then. A machine that does other things too is only
// asked whether it comes back by itself; make failovers asks for 20 and two seconds,
// with the time in which the servers themselves miss a master and choose another.
func failovers(t *testing.T, few int) (times int, bound time.Duration) {
	t.Helper()
	text := os.Getenv("WRIT_FAILOVERS")
	if text == "" {
		return few, 20 * time.Second
	}
	times, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return times, 2 * time.Second
}

// underLoad asks all the time while the master changes again and again. Nobody
// starts anything anew, and each time answers come again.
func underLoad(t *testing.T, s *redisstore.Store, key string, few int, failover func()) {
	u := limit.Use{Key: key, Limit: storetest.Sliding(t, 1<<31, time.Hour), Hits: 1}
	ask := func() error {
		return s.Decide(t.Context(), time.Now(), []limit.Use{u}, make([]limit.Outcome, 1))
	}
	proctest.Eventually(t, 10*time.Second, ask)
	var answered, longest atomic.Int64 // when, by begin, and the longest time before
	begin := time.Now()
	proctest.Background(t, func(ctx context.Context) error {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-tick.C:
			}
			if ask() == nil {
				now := int64(time.Since(begin))
				longest.Store(max(longest.Load(), now-answered.Swap(now)))
			}
		}
	})
	times, bound := failovers(t, few)
	for i := range times {
		longest.Store(0)
		failover()
		quiet := time.Now()
		proctest.Until(t, bound+10*time.Second, "answers all the time", func() bool {
			if time.Since(begin)-time.Duration(answered.Load()) > 100*time.Millisecond {
				quiet = time.Now()
			}
			return time.Since(quiet) > 500*time.Millisecond
		})
		without := time.Duration(longest.Load())
		t.Logf("change %d of the master: %s without an answer", i+1, without.Round(time.Millisecond))
		if without > bound {
			t.Errorf("change %d of the master: %s without an answer, want at most %s", i+1, without, bound)
		}
	}
}

func TestSentinel(t *testing.T) {
	t.Parallel()
	args, trust := overTLS(t)
	set := redistest.StartSentinel(t, "s3cret", args...)
	o := redisstore.Options{
		TLS:      trust,
		Sentinel: redisstore.Sentinel{Master: redistest.MasterName, Addresses: []string{set.Address()}, Password: "s3cret"},
		Password: "s3cret", Timeout: time.Second,
	}
	s := run(t, o)
	t.Run("handed over", func(t *testing.T) { underLoad(t, s, "k", 2, func() { set.Failover(t) }) })
	t.Run("killed", func(t *testing.T) { underLoad(t, s, "k", 1, func() { set.Crash(t) }) })
	refused := func(what string, o redisstore.Options) {
		t.Helper()
		if _, err := one(t, run(t, o), limit.Use{Key: "k", Limit: storetest.Sliding(t, 1, time.Minute), Hits: 1}); err == nil {
			t.Errorf("%s is no error", what)
		}
	}
	wrong := o
	wrong.Sentinel.Password = "wrong"
	refused("a wrong password for the sentinel", wrong)
	wrong = o
	wrong.Password = "wrong"
	refused("a wrong password for the master", wrong)
	wrong = o
	_, wrong.TLS = overTLS(t)
	refused("a sentinel with another root", wrong)
}

// TestHangingSentinel: the others are asked, whichever of them hangs.
func TestHangingSentinel(t *testing.T) {
	t.Parallel()
	set := redistest.StartSentinel(t, "s3cret")
	first, second := set.Another(t), set.Another(t)
	s := run(t, redisstore.Options{
		Sentinel: redisstore.Sentinel{Master: redistest.MasterName, Addresses: []string{first.Address(), second.Address()}, Password: "s3cret"},
		Password: "s3cret", Timeout: time.Second,
	})
	u := limit.Use{Key: "k", Limit: storetest.Sliding(t, 1000, time.Hour), Hits: 1}
	asks := func() error {
		_, err := one(t, s, u)
		return err
	}
	proctest.Eventually(t, 20*time.Second, asks)
	for _, hung := range []*redistest.Server{first, second} {
		hung.Freeze()
		set.Sever(t)
		proctest.Eventually(t, 20*time.Second, asks)
		hung.Thaw()
	}
}

// overTLS gives the arguments of servers that speak TLS to everybody, and what trusts
// them.
func overTLS(t *testing.T) (args []string, trust *tls.Config) {
	t.Helper()
	dir, root := t.TempDir(), pkitest.NewRoot(t, "")
	leaf := pkitest.Leaf("", time.Hour)
	leaf.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	cert, key := root.Issue(t, leaf)
	for flag, text := range map[string][]byte{"--tls-cert-file": cert, "--tls-key-file": key, "--tls-ca-cert-file": root.PEM()} {
		file := filepath.Join(dir, flag)
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, flag, file)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(root.PEM())
	return append(args, "--tls-replication", "yes", "--tls-auth-clients", "no"), &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
}

// TestCluster: limits in several slots are decided by one request each, a refusal
// takes from none of them, and the master of a slot can change.
func TestCluster(t *testing.T) {
	t.Parallel()
	auth := []string{"--user", "test", "--pass", "look", "--no-auth-warning"}
	rights := "+evalsha +script|load +time +get +set +del +incrby +expire +hget +hset +hdel +hgetall +hlen +pexpire +zadd +zcard +zrange +zrem +cluster|slots"
	args := append([]string{
		"--user", "test", "on", ">look", "~*", "&*", "+@all", "--user", "limiter", "on", ">s3cret", "~writ:*", "~k",
	}, strings.Fields(rights)...)
	secure, trust := overTLS(t)
	args = append(append(secure, "--tls-cluster", "yes"), args...)
	set := redistest.StartCluster(t, auth, append(args, "--masteruser", "test", "--masterauth", "look")...)
	s := run(t, redisstore.Options{TLS: trust, Cluster: set.Addresses()[1:3], Username: "limiter", Password: "s3cret", Timeout: time.Second})
	ask := func(uses ...limit.Use) []limit.Outcome {
		t.Helper()
		out := make([]limit.Outcome, len(uses))
		if err := s.Decide(t.Context(), time.Now(), uses, out); err != nil {
			t.Fatalf("decide: %v", err)
		}
		return out
	}
	proctest.Eventually(t, 20*time.Second, func() error {
		_, err := one(t, s, limit.Use{Key: "k", Limit: storetest.Sliding(t, 1, time.Minute)})
		return err
	})
	var uses []limit.Use
	for i := range 8 {
		uses = append(uses, limit.Use{Key: fmt.Sprintf("writ:{default/%d}:0:s", i), Limit: storetest.Sliding(t, 10, time.Minute), Hits: 1})
	}
	// One that is held without a name is given back too.
	places := limit.Use{Key: "writ:{default/places}:0:c", Limit: storetest.New(t, limit.Concurrency, 10, time.Minute), Hits: 1}
	bucket := limit.Use{Key: "writ:{default/bucket}:0:g", Limit: storetest.New(t, limit.GCRA, 10, time.Hour), Hits: 1}
	uses = append(uses, places, bucket)
	proctest.Eventually(t, 20*time.Second, func() error { // until there is a connection to each node
		for _, u := range uses {
			u.Hits = 0
			if _, err := one(t, s, u); err != nil {
				return err
			}
		}
		return nil
	})
	for i, out := range ask(uses...) {
		if out.Over || out.Remaining != 9 || out.Taken != 1 {
			t.Errorf("use %d: %+v", i, out)
		}
	}
	told := limit.Use{Key: "writ:{default/told}:0:s", Limit: storetest.Sliding(t, 10, time.Minute), Op: limit.Charge, Hits: 3} // with no other rights
	proctest.Eventually(t, 20*time.Second, func() error {
		return s.Tell(t.Context(), time.Now(), []limit.Use{told}, []string{"a"})
	})
	none := limit.Use{Key: "writ:{default/none}:0:s", Limit: storetest.Sliding(t, 0, time.Minute), Hits: 1}
	for range 3 {
		again := append(uses[:len(uses):len(uses)], none)
		for i, out := range ask(again...) {
			if out.Over != (i == len(uses)) || out.Taken != 0 {
				t.Errorf("use %d of a refused request: %+v", i, out)
			}
		}
	}
	for i, u := range uses {
		u.Hits = 0
		proctest.Until(t, 20*time.Second, fmt.Sprintf("use %d to be given back", i), func() bool { return ask(u)[0].Remaining == 9 })
	}
	key := set.Key(t, 0)
	t.Run("handed over", func(t *testing.T) { underLoad(t, s, key, 2, func() { set.Failover(t) }) })
	t.Run("killed", func(t *testing.T) { underLoad(t, s, key, 1, func() { set.Crash(t) }) })
}

// TestWrongTopology: what cannot be meant is refused before anything is asked.
func TestWrongTopology(t *testing.T) {
	for name, o := range map[string]redisstore.Options{
		"nothing":           {},
		"two of them":       {Address: "a:1", Cluster: []string{"a:1"}},
		"sentinel, no name": {Sentinel: redisstore.Sentinel{Addresses: []string{"a:1"}}},
		"no sentinels":      {Sentinel: redisstore.Sentinel{Master: "m"}},
		"cluster address":   {Cluster: []string{"a"}},
		"cluster database":  {Cluster: []string{"a:1"}, DB: 1},
	} {
		if _, err := redisstore.New(o); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// TestBackAtOnce: however often a server was not reached, who asks it once it is back has
// an answer.
func TestBackAtOnce(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	u := limit.Use{Key: "k", Limit: storetest.Sliding(t, 100, time.Minute), Hits: 1}
	for where, address := range map[string]string{"TCP": server.Address(), "a socket": server.Socket()} {
		s := run(t, redisstore.Options{Address: address, Timeout: 10 * time.Second})
		if _, err := one(t, s, u); err != nil {
			t.Fatalf("%s: %v", where, err)
		}
		server.Kill()
		for range 20 {
			if _, err := one(t, s, u); err == nil {
				t.Fatalf("%s: a dead server decides", where)
			}
		}
		server.Restart(t)
		if _, err := one(t, s, u); err != nil {
			t.Errorf("%s: a server that is back does not decide: %v", where, err)
		}
	}
}

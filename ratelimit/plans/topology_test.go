package plans

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/ratelimit/redisstore"
	"github.com/writ-mesh/writ/ratelimit/redistest"
)

// followedThrough follows a table while the master changes by each of some ways: what was
// changed before and what is changed after holds. write does a command with the master,
// or says why not.
func followedThrough(t *testing.T, table string, o redisstore.Options, write func(args ...string) error, ways ...func(testing.TB)) {
	t.Helper()
	from, err := redisstore.OpenPlans(o)
	if err != nil {
		t.Fatal(err)
	}
	b := New(Options{Redis: from, Tables: []string{table}, MaxCallers: 1000, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
	b.lookEvery, b.readPause = 10*time.Millisecond, 50*time.Millisecond
	proctest.Background(t, b.Run)
	h, key := b.Handle(table), redisstore.PlansKey(table)
	do := func(args ...string) {
		t.Helper()
		proctest.Eventually(t, 30*time.Second, func() error { return write(args...) })
	}
	do("HSET", key, "alice", "gold")
	do("SET", key+":head", "numbers n\nplan free 60\nplan gold 600\ndefault free\n")
	becomes(t, h, "alice", 600, byPlan)
	for n, change := range ways {
		requests := uint32(n + 1) //nolint:gosec // a few
		do("HSET", key, "bob", fmt.Sprint(requests))
		do("XADD", key+":changes", "*", "caller", "bob")
		becomes(t, h, "bob", requests, byItself)
		change(t)
		do("HSET", key, "carol", fmt.Sprint(100+requests))
		do("XADD", key+":changes", "*", "caller", "carol")
		becomes(t, h, "carol", 100+requests, byItself)
		becomes(t, h, "alice", 600, byPlan)
	}
}

// TestTableBehindSentinel: a table is followed to the server that becomes the master, in
// order and after a crash.
func TestTableBehindSentinel(t *testing.T) {
	t.Parallel()
	set := redistest.StartSentinel(t, "s3cret")
	o := redisstore.Options{
		Sentinel: redisstore.Sentinel{Master: redistest.MasterName, Addresses: []string{set.Address()}, Password: "s3cret"},
		Password: "s3cret",
	}
	write := func(args ...string) error {
		_, err := set.Master(t).Try(append([]string{"-e", "-a", "s3cret", "--no-auth-warning"}, args...)...)
		return err
	}
	followedThrough(t, "t", o, write, set.Failover, set.Crash)
}

// TestTableInACluster: the same with a table of the slots whose master is killed.
func TestTableInACluster(t *testing.T) {
	t.Parallel()
	set := redistest.StartCluster(t, nil)
	table := ""
	for i := 0; table == ""; i++ {
		name := fmt.Sprint("t", i)
		var slot int
		if _, err := fmt.Sscan(set.Nodes[0].Command(t, "CLUSTER", "KEYSLOT", redisstore.PlansKey(name)), &slot); err != nil {
			t.Fatal(err)
		}
		if slot < 16384/3 {
			table = name
		}
	}
	write := func(args ...string) error {
		_, err := set.Nodes[1].Try(append([]string{"-e", "-c"}, args...)...)
		return err
	}
	followedThrough(t, table, redisstore.Options{Cluster: set.Addresses()}, write, set.Crash)
}

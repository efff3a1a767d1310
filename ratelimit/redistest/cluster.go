package redistest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/proctest"
)

// ClusterSet is a cluster of three masters; the first has a replica, the last node.
type ClusterSet struct {
	Nodes [4]*Server
	auth  []string
	voted time.Time // when a master was last changed
}

// nodeTimeout is how long a node is waited for: as short as docs/quotas.md recommends for
// what has to be over within two seconds.
const nodeTimeout = 300 * time.Millisecond

// StartCluster starts a cluster; auth are the arguments of redis-cli, args those of
// each server.
func StartCluster(t testing.TB, auth []string, args ...string) *ClusterSet {
	t.Helper()
	c := &ClusterSet{auth: auth}
	for i := range c.Nodes {
		c.Nodes[i] = Start(t, append(args, "--cluster-enabled", "yes", "--cluster-node-timeout", fmt.Sprint(nodeTimeout.Milliseconds()), "--repl-diskless-sync-delay", "0")...)
	}
	const slots, masters = 16384, 3
	for i, node := range c.Nodes {
		if i < masters {
			c.command(t, node, "CLUSTER", "ADDSLOTSRANGE", fmt.Sprint(slots*i/masters), fmt.Sprint(slots*(i+1)/masters-1))
			c.command(t, node, "CLUSTER", "SET-CONFIG-EPOCH", fmt.Sprint(i+1))
		}
		if i > 0 {
			c.command(t, node, "CLUSTER", "MEET", "127.0.0.1", fmt.Sprint(c.Nodes[0].port))
		}
	}
	first := c.command(t, c.Nodes[0], "CLUSTER", "MYID")
	proctest.Eventually(t, 20*time.Second, func() error {
		if said := c.command(t, c.Nodes[masters], "CLUSTER", "REPLICATE", first); said != "OK" {
			return errors.New(said)
		}
		return nil
	})
	proctest.Eventually(t, 20*time.Second, func() error {
		for _, node := range c.Nodes {
			if said := c.command(t, node, "CLUSTER", "INFO"); !strings.Contains(said, "cluster_state:ok") || !strings.Contains(said, "cluster_known_nodes:4") {
				return errors.New(said)
			}
		}
		return nil
	})
	return c
}

// Addresses are host:port of all nodes.
func (c *ClusterSet) Addresses() (all []string) {
	for _, node := range c.Nodes {
		all = append(all, node.Address())
	}
	return all
}

// Failover makes the replica of the first slots their master.
func (c *ClusterSet) Failover(t testing.TB) {
	t.Helper()
	c.vote(t)
	proctest.Eventually(t, 30*time.Second, func() error {
		for _, node := range []*Server{c.Nodes[0], c.Nodes[3]} {
			if !strings.Contains(c.command(t, node, "INFO", "replication"), "role:slave") {
				continue
			}
			if said := c.command(t, node, "CLUSTER", "FAILOVER"); said != "OK" {
				return errors.New(said)
			}
			return nil
		}
		return errors.New("neither is a replica")
	})
}

// Crash kills the master of the first slots, and starts it again once its replica is
// the master; so it is the replica then.
func (c *ClusterSet) Crash(t testing.TB) {
	t.Helper()
	pair := []*Server{c.Nodes[0], c.Nodes[3]}
	role := func(s *Server) string {
		said, err := s.Try(append(slices.Clone(c.auth), "INFO", "replication")...)
		if err != nil { // it ends connections when it is told whom to follow
			return err.Error()
		}
		return said
	}
	proctest.Until(t, 30*time.Second, "a master and a replica that follows it", func() bool {
		if strings.Contains(role(pair[0]), "role:slave") {
			pair[0], pair[1] = pair[1], pair[0]
		}
		return strings.Contains(role(pair[0]), "role:master") && strings.Contains(role(pair[1]), "master_link_status:up")
	})
	c.vote(t)
	pair[0].Kill()
	killed := time.Now()
	proctest.Until(t, 30*time.Second, "the replica to be the master", func() bool { return strings.Contains(role(pair[1]), "role:master") })
	t.Logf("the replica says so %s after the master was killed", time.Since(killed).Round(time.Millisecond))
	pair[0].Restart(t)
}

// Key is a counter that is with one of the first three nodes.
func (c *ClusterSet) Key(t testing.TB, node int) string {
	t.Helper()
	const slots, masters = 16384, 3
	for i := range 100 {
		key := fmt.Sprintf("writ:{%d}", i)
		var slot int
		if _, err := fmt.Sscan(c.command(t, c.Nodes[0], "CLUSTER", "KEYSLOT", key), &slot); err != nil {
			t.Fatal(err)
		}
		if slot >= slots*node/masters && slot < slots*(node+1)/masters {
			return key
		}
	}
	t.Fatalf("no key of 100 is with node %d", node)
	return ""
}

// vote waits until the nodes would choose again: masters vote for another master of the same
// slots once in two timeouts, and a replica stands for election once in four of them and
// four seconds, both of which are replicas by turns. Who orders a change in vain has all
// clients of the master wait for five seconds.
func (c *ClusterSet) vote(t testing.TB) {
	t.Helper()
	proctest.Until(t, 10*time.Second, "votes", func() bool {
		return time.Since(c.voted) > max(2*nodeTimeout, 2*time.Second)+time.Second/4
	})
	c.voted = time.Now()
}

func (c *ClusterSet) command(t testing.TB, to *Server, args ...string) string {
	t.Helper()
	return to.Command(t, append(c.auth[:len(c.auth):len(c.auth)], args...)...)
}

package redistest

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/proctest"
)

// ClusterSet is a cluster of three masters; the first has a replica, the last node.
type ClusterSet struct {
	Nodes [4]*Server
	auth  []string
}

// StartCluster starts a cluster; auth are the arguments of redis-cli, args those of
// each server.
func StartCluster(t testing.TB, auth []string, args ...string) *ClusterSet {
	t.Helper()
	c := &ClusterSet{auth: auth}
	for i := range c.Nodes {
		c.Nodes[i] = Start(t, append(args, "--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--repl-diskless-sync-delay", "0")...)
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

func (c *ClusterSet) command(t testing.TB, to *Server, args ...string) string {
	t.Helper()
	return to.Command(t, append(c.auth[:len(c.auth):len(c.auth)], args...)...)
}

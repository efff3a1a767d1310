package redistest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/proctest"
)

// MasterName is what sentinels call the master.
const MasterName = "limits"

// SentinelSet is a master, a replica and a sentinel that decides which is which.
type SentinelSet struct {
	Servers  [2]*Server
	sentinel *Server
	password string
	own      []string // arguments of each server
	auth     []string
}

// Address is host:port of the sentinel.
func (s *SentinelSet) Address() string { return s.sentinel.Address() }

// StartSentinel starts a set with these arguments for each server. Both the servers
// and the sentinel ask for the password.
func StartSentinel(t testing.TB, password string, args ...string) *SentinelSet {
	t.Helper()
	s := &SentinelSet{password: password, own: args, auth: []string{"-a", password, "--no-auth-warning"}}
	args = append(args, "--requirepass", password, "--masterauth", password)
	s.Servers[0] = Start(t, append(args, "--repl-diskless-sync-delay", "0")...)
	s.Servers[1] = Start(t, append(args, "--repl-diskless-sync-delay", "0", "--replicaof", "127.0.0.1 "+fmt.Sprint(s.Servers[0].port))...)
	s.sentinel = s.Another(t)
	return s
}

// Another starts one more sentinel; the set does not ask it.
func (s *SentinelSet) Another(t testing.TB) *Server {
	t.Helper()
	one := unstarted(t, s.own...)
	port := "port " + fmt.Sprint(one.port)
	if one.roots() != "" {
		port = "port 0\ntls-" + port
	}
	conf := []string{
		port, "bind 127.0.0.1", "dir " + one.dir,
		fmt.Sprintf("sentinel monitor %s 127.0.0.1 %d 1", MasterName, s.Servers[0].port),
		"sentinel down-after-milliseconds " + MasterName + " 700",
		"sentinel failover-timeout " + MasterName + " 3000",
		"requirepass " + s.password, "sentinel auth-pass " + MasterName + " " + s.password,
	}
	for i := 0; i+1 < len(s.own); i += 2 {
		conf = append(conf, strings.TrimPrefix(s.own[i], "--")+" "+s.own[i+1])
	}
	file := filepath.Join(one.dir, "sentinel.conf")
	if err := os.WriteFile(file, []byte(strings.Join(conf, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	one.Process = proctest.Start(t, one.bin, file, "--sentinel")
	one.listens(t, "tcp", one.Address())
	// It asks and tells as often as in a set that is in trouble: this one is a second old.
	// It also connects anew only once in a ping's period, 1 s by default: one that waits for
	// less than that takes for dead whom it just made the master.
	s.command(t, one, "SENTINEL", "DEBUG", "info-period", "100", "ping-period", "250", "publish-period", "100")
	return one
}

// Sever ends all connections of clients to the master.
func (s *SentinelSet) Sever(t testing.TB) {
	t.Helper()
	s.command(t, s.Master(t), "CLIENT", "KILL", "TYPE", "normal")
}

func (s *SentinelSet) command(t testing.TB, to *Server, args ...string) string {
	t.Helper()
	return to.Command(t, append(s.auth[:len(s.auth):len(s.auth)], args...)...)
}

// Master is the server that the sentinel takes for the master.
func (s *SentinelSet) Master(t testing.TB) *Server {
	t.Helper()
	said := strings.Fields(s.command(t, s.sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", MasterName))
	for _, server := range s.Servers {
		if len(said) == 2 && said[1] == fmt.Sprint(server.port) {
			return server
		}
	}
	t.Fatalf("the sentinel says that the master is %q", said)
	return nil
}

// replicated waits until the replica has all that was written before, which a sentinel
// does not wait for, and gives both servers.
func (s *SentinelSet) replicated(t testing.TB) (master, replica *Server) {
	t.Helper()
	master, replica = s.Master(t), s.Servers[0]
	if replica == master {
		replica = s.Servers[1]
	}
	offset := func(of *Server, name string) (n int64) {
		// It ends connections when it is told whom to follow.
		said, _ := of.Try(append(slices.Clone(s.auth), "INFO", "replication")...)
		for line := range strings.Lines(said) {
			if value, ok := strings.CutPrefix(strings.TrimSpace(line), name+":"); ok {
				_, _ = fmt.Sscan(value, &n)
			}
		}
		return n
	}
	proctest.Until(t, 30*time.Second, "a replica that has everything", func() bool {
		written := offset(master, "master_repl_offset") // 0 before the first replica
		return written > 0 && offset(replica, "slave_read_repl_offset") >= written && offset(replica, "master_sync_in_progress") == 0
	})
	return master, replica
}

// Failover makes the replica the master, as soon as it has everything and the sentinel is
// ready for that, and returns when it says so. A sentinel that says yes may think better
// of it: it is asked until it is done.
func (s *SentinelSet) Failover(t testing.TB) {
	t.Helper()
	before, _ := s.replicated(t)
	proctest.Eventually(t, 30*time.Second, func() error {
		if s.Master(t) != before {
			return nil
		}
		return fmt.Errorf("sentinel: %s", s.command(t, s.sentinel, "SENTINEL", "FAILOVER", MasterName))
	})
}

// Crash kills the master, and starts it again as the replica of the one that the
// sentinel makes the master in its place.
func (s *SentinelSet) Crash(t testing.TB) {
	t.Helper()
	before, next := s.replicated(t)
	proctest.Until(t, 30*time.Second, "a sentinel that knows the replica and finds it well", func() bool {
		said := s.command(t, s.sentinel, "SENTINEL", "REPLICAS", MasterName)
		return strings.Contains(said, fmt.Sprint(next.port)) && !strings.Contains(said, "s_down") && !strings.Contains(said, "disconnected")
	})
	before.Kill()
	killed := time.Now()
	proctest.Until(t, 30*time.Second, "the replica to be the master", func() bool { return s.Master(t) == next })
	t.Logf("the sentinel says so %s after the master was killed", time.Since(killed).Round(time.Millisecond))
	before.args = append(without(before.args, "--replicaof"), "--replicaof", "127.0.0.1 "+fmt.Sprint(next.port))
	before.Restart(t)
}

// without takes a flag with its value out of arguments.
func without(args []string, flag string) []string {
	if i := slices.Index(args, flag); i >= 0 {
		return slices.Delete(slices.Clone(args), i, i+2)
	}
	return slices.Clone(args)
}

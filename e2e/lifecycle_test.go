package e2e

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/ratelimit/redistest"
)

// gone fails unless every one of the processes ends.
func gone(t *testing.T, processes []child) {
	t.Helper()
	proctest.Eventually(t, 15*time.Second, func() error {
		for _, c := range processes {
			if err := syscall.Kill(c.pid, 0); err == nil && !zombie(c.pid) {
				return fmt.Errorf("%s (%d) still runs", c.name, c.pid)
			}
		}
		return nil
	})
}

func zombie(pid int) bool {
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	return err != nil || strings.Contains(string(data), ") Z ")
}

func TestInterruptEndsEverything(t *testing.T) {
	t.Parallel()
	dir := writeFiles(t, map[string]string{"workloads.yaml": workload("a", "a", newEcho(t, "a"))})
	t.Run("when it runs", func(t *testing.T) {
		m := up(t, dir)
		processes := m.children()
		if len(processes) < 6 {
			t.Fatalf("only %v run", processes)
		}
		if err := m.cmd.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		<-m.done
		if code := m.cmd.ProcessState.ExitCode(); code != 0 {
			t.Errorf("exit code %d:\n%s", code, m.err)
		}
		gone(t, processes)
	})
	t.Run("in the middle of the start", func(t *testing.T) {
		m := start(t, dir)
		var processes []child
		proctest.Eventually(t, 10*time.Second, func() error {
			if processes = m.children(); len(processes) < 3 {
				return fmt.Errorf("only %v run", processes)
			}
			return nil
		})
		if err := m.cmd.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		<-m.done
		gone(t, processes)
		// Nothing is left that keeps a new start from working.
		up(t, dir)
	})
	t.Run("when the supervisor itself is killed", func(t *testing.T) {
		m := up(t, copyDir(t, dir))
		processes := m.children()
		if err := m.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		<-m.done
		gone(t, processes)
		up(t, m.dir)
	})
}

func TestWorkloadsChangeWhileTheMeshRuns(t *testing.T) {
	t.Parallel()
	a, b := newEcho(t, "a"), newEcho(t, "b")
	m := up(t, writeFiles(t, map[string]string{"workloads.yaml": workload("a", "a", a)}))
	if got := m.get("a-1", "http://b:8000/"); got.status == 200 {
		t.Fatalf("before: %s", got)
	}
	write(t, m.dir, "more.yaml", workload("b", "b", b))
	proctest.Eventually(t, 10*time.Second, func() error {
		if got := m.get("a-1", "http://b:8000/"); got.status != 200 {
			return fmt.Errorf("a service that was added: %s", got)
		}
		return nil
	})
	if err := os.Remove(filepath.Join(m.dir, "more.yaml")); err != nil {
		t.Fatal(err)
	}
	proctest.Eventually(t, 10*time.Second, func() error {
		envoys := 0
		for _, c := range m.children() {
			if c.name == "envoy" {
				envoys++
			}
		}
		if got := m.get("a-1", "http://b:8000/"); envoys != 1 || got.status == 200 {
			return fmt.Errorf("a service that was taken away: %d Envoys, %s", envoys, got)
		}
		return nil
	})
}

// TestQuotaInRedis: counters in a real Redis outlive ratelimit; without Redis the
// limit is still enforced.
func TestQuotaInRedis(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t)
	a, b := newEcho(t, "a"), newEcho(t, "b")
	m := up(t, writeFiles(t, map[string]string{"workloads.yaml": workload("a", "a", a) + workload("b", "b", b), "quota.yaml": `
apiVersion: policy.writ.mesh/v1alpha1
kind: QuotaPolicy
metadata: {name: b}
spec:
  selector: {matchLabels: {app: b}}
  whenUnavailable: Deny
  limits: [{per: [request.path], requests: 10, every: 1h}]
`}), "--redis", redis.Address())
	// A request that ratelimit answers too late for Envoy is refused and asked again,
	// and is counted all the same: lost.
	lost := 0
	spend := func(path string, n int) (passed int) {
		for range n {
			got := decided(t, func() answer {
				got := m.get("a-1", "http://b:8000"+path)
				if got.status == 503 {
					lost++
				}
				return got
			})
			if got.status == 200 {
				passed++
			} else if got.status != 429 {
				t.Fatalf("%s", got)
			}
		}
		return passed
	}
	if n := spend("/one", 6); n != 6 {
		t.Fatalf("%d of 6 passed", n)
	}
	m.kill("writ-ratelimit")
	proctest.Eventually(t, 10*time.Second, func() error { return m.readyz("ratelimit") })
	// On a machine that is starved of processor time Redis may seem to be away; then,
	// and only then, the local limit of ten counts anew, and what Redis counted and
	// answered too late is told to it again.
	n, least, most := spend("/one", 20), 4, 4
	if local := m.metric("ratelimit", "writ_ratelimit_local_decisions_total"); local > 0 {
		t.Logf("%.0f decisions without Redis", local)
		least, most = max(0, 4-int(local)), 4+10
	}
	if n+lost < least || n > most {
		t.Errorf("after a restart of ratelimit %d more passed, want 4; %d were lost", n, lost)
	}
	redis.Kill()
	lost = 0
	if n := spend("/two", 30); n+lost < 10 || n > 10 {
		t.Errorf("without Redis %d passed, want 10; %d were lost", n, lost)
	}
	var ue *net.OpError
	if _, err := net.DialTimeout("tcp", redis.Address(), time.Second); !errors.As(err, &ue) {
		t.Errorf("Redis is still there: %v", err)
	}
}

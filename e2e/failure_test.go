package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/proctest"
)

// child is a process that `writ up` started.
type child struct {
	pid  int
	name string
}

// children lists the processes whose parent is `writ up`, from /proc.
func (m *mesh) children() []child {
	m.t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		m.t.Fatal(err)
	}
	var out []child
	for _, path := range stats {
		data, err := os.ReadFile(path)
		if err != nil {
			continue // it ended meanwhile
		}
		text := string(data)
		open, closing := strings.IndexByte(text, '('), strings.LastIndexByte(text, ')')
		fields := strings.Fields(text[closing+1:])
		if len(fields) < 2 || fields[1] != strconv.Itoa(m.cmd.Process.Pid) || fields[0] == "Z" {
			continue
		}
		pid, err := strconv.Atoi(strings.TrimSpace(text[:open]))
		if err != nil {
			continue
		}
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		if err != nil {
			continue
		}
		out = append(out, child{pid, filepath.Base(exe)})
	}
	return out
}

func (m *mesh) pidOf(name string) int {
	m.t.Helper()
	var pid int
	proctest.Eventually(m.t, 10*time.Second, func() error {
		for _, c := range m.children() {
			if c.name == name {
				pid = c.pid
				return nil
			}
		}
		return fmt.Errorf("%s does not run: %v", name, m.children())
	})
	return pid
}

func (m *mesh) kill(name string) {
	m.t.Helper()
	if err := syscall.Kill(m.pidOf(name), syscall.SIGKILL); err != nil {
		m.t.Fatal(err)
	}
}

// monitoring asks a service on its monitoring port.
func (m *mesh) monitoring(service, path string) (string, error) {
	data, err := os.ReadFile(filepath.Join(m.dir, ".writ", service, "config.yaml"))
	if err != nil {
		return "", err
	}
	for line := range strings.SplitSeq(string(data), "\n") {
		addr, ok := strings.CutPrefix(line, "monitoring: ")
		if !ok {
			continue
		}
		a := do(client(""), request{url: "http://" + strings.Trim(addr, `"`) + path})
		if a.err != nil || a.status != http.StatusOK {
			return "", fmt.Errorf("%s: %s", service, a)
		}
		return a.body, nil
	}
	return "", fmt.Errorf("%s has no monitoring address", service)
}

// readyz says whether a service is ready.
func (m *mesh) readyz(service string) error {
	_, err := m.monitoring(service, "/readyz")
	return err
}

// metric sums a service's samples of a metric.
func (m *mesh) metric(service, name string) (sum float64) {
	m.t.Helper()
	text, err := m.monitoring(service, "/metrics")
	if err != nil {
		m.t.Fatal(err)
	}
	for line := range strings.SplitSeq(text, "\n") {
		rest, ok := strings.CutPrefix(line, name)
		if !ok || rest == "" || rest[0] != ' ' && rest[0] != '{' {
			continue
		}
		v, err := strconv.ParseFloat(line[strings.LastIndexByte(line, ' ')+1:], 64)
		if err != nil {
			m.t.Fatal(err)
		}
		sum += v
	}
	return sum
}

func TestKillEachServiceUnderLoad(t *testing.T) {
	a, b := newEcho(t, "a"), newEcho(t, "b")
	m := up(t, writeFiles(t, map[string]string{"workloads.yaml": workload("a", "a", a) + workload("b", "b", b), "mtls.yaml": strict, "policy.yaml": denyPath("/0")}))
	l := startLoad(t, m.proxyOf("a-1"), "http://b:8000/", 500)
	services := []string{"pilot", "ca", "authz", "ratelimit", "nodeagent"}
	edit := 0
	recovered := func() {
		t.Helper()
		for _, s := range services {
			proctest.Eventually(t, 20*time.Second, func() error { return m.readyz(s) })
		}
		// It has caught up when an edit arrives again.
		edit++
		write(t, m.dir, "policy.yaml", denyPath(fmt.Sprintf("/%d", edit)))
		proctest.Eventually(t, 10*time.Second, func() error {
			if got := m.get("a-1", fmt.Sprintf("http://b:8000/%d", edit)); got.status != http.StatusForbidden {
				return fmt.Errorf("edit %d is not live: %s", edit, got)
			}
			return nil
		})
	}
	for _, s := range services {
		m.kill("writ-" + s)
		recovered()
	}
	for _, s := range services {
		m.kill("writ-" + s)
	}
	recovered()
	// Long enough for what fails late, such as a stream that was to be kept.
	proctest.Eventually(t, 20*time.Second, func() error {
		if n := l.sent.Load(); n < 4000 {
			return fmt.Errorf("%d requests so far", n)
		}
		return nil
	})
	sent, failed, failures := l.stop()
	if failed > 0 || sent < 4000 {
		t.Errorf("%d of %d requests failed:\n%s", failed, sent, failures)
	}
}

// TestEnvoyStartsWhilePilotIsAway: the node agent has the last good
// configuration on disk, and with it the keys of a token issuer that is away as well.
func TestEnvoyStartsWhilePilotIsAway(t *testing.T) {
	t.Parallel()
	a, b, s := newEcho(t, "a"), newEcho(t, "b"), newSigner(t, "k")
	var keys atomic.Pointer[string]
	good, nonsense := s.jwks(), "away"
	keys.Store(&good)
	m := up(t, writeFiles(t, map[string]string{
		"workloads.yaml": workload("a", "a", a) + workload("b", "b", b), "mtls.yaml": strict,
		"jwt.yaml": "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: jwt, annotations: {policy.writ.mesh/require: any}}\n" +
			"spec: {selector: {matchLabels: {app: b}}, jwtRules: [{issuer: i, jwksUri: \"http://" + keyServer(t, "", &keys) + "/jwks\"}]}\n",
	}))
	token := bearer(s.token("i", nil))
	answers := func() error {
		if got := m.get("a-1", "http://b:8000/", token); got.status != http.StatusOK {
			return fmt.Errorf("%s", got)
		}
		return nil
	}
	proctest.Eventually(t, 20*time.Second, answers)
	keys.Store(&nonsense)
	// A pilot that is stopped (and not dead) is not started again.
	pilot := m.pidOf("writ-pilot")
	if err := syscall.Kill(pilot, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(pilot, syscall.SIGCONT) })
	for _, c := range m.children() {
		if c.name == "envoy" {
			if err := syscall.Kill(c.pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
	}
	proctest.Eventually(t, 15*time.Second, answers)
	if got := m.get("a-1", "http://b:8000/"); got.status != http.StatusUnauthorized {
		t.Errorf("without a token: %s", got)
	}
}

// TestRotation has certificates of ten seconds for three minutes under load.
func TestRotation(t *testing.T) {
	if testing.Short() {
		t.Skip("takes three minutes")
	}
	t.Parallel()
	a, b := newEcho(t, "a"), newEcho(t, "b")
	m := up(t, writeFiles(t, map[string]string{"workloads.yaml": workload("a", "a", a) + workload("b", "b", b), "mtls.yaml": strict}), "--certificate-life", "10s")
	l := startLoad(t, m.proxyOf("a-1"), "http://b:8000/", 500)
	const duration = 3 * time.Minute
	select {
	case <-time.After(duration):
	case <-m.done:
		t.Fatalf("writ up ended: %s", m.err)
	}
	sent, failed, failures := l.stop()
	t.Logf("%d requests, %.0f a second", sent, float64(sent)/duration.Seconds())
	// A busy machine may not send all 500 a second; few would prove nothing.
	if failed > 0 || sent < int64(duration.Seconds())*150 {
		t.Errorf("%d of %d requests failed:\n%s", failed, sent, failures)
	}
	for _, account := range []string{"a", "b"} {
		out, code := m.writ("certs", "ls", m.dir, "--all", "-o", "json", "--id", "spiffe://cluster.local/ns/default/sa/"+account)
		var rows []struct {
			NotBefore, NotAfter time.Time
		}
		if err := json.Unmarshal([]byte(out), &rows); code != 0 || err != nil {
			t.Fatalf("certs ls: exit code %d, %v\n%s", code, err, out)
		}
		t.Logf("%s had %d certificates, %d requests", account, len(rows), sent)
		if len(rows) < 16 { // the first and 15 rotations
			t.Errorf("%s had %d certificates", account, len(rows))
		}
	}
}

// residentMiB is the resident memory of a process.
func residentMiB(t *testing.T, pid int) float64 {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.SplitSeq(string(data), "\n") {
		var kib float64
		if _, err := fmt.Sscanf(line, "VmRSS: %f kB", &kib); err == nil {
			return kib / 1024
		}
	}
	t.Fatalf("no VmRSS for %d", pid)
	return 0
}

func TestBookinfo(t *testing.T) {
	dir := copyDir(t, filepath.Join("..", "examples", "bookinfo"))
	began := time.Now()
	m := up(t, dir)
	took := time.Since(began)
	t.Logf("ready after %.1f s", took.Seconds())
	if took > 10*time.Second {
		t.Errorf("ready after %s, want 10 s", took)
	}
	t.Run("checks", func(t *testing.T) {
		out, code := m.writ("check", dir)
		if code != 0 {
			t.Errorf("exit code %d", code)
		}
		t.Log("\n" + out)
	})
	t.Run("memory", func(t *testing.T) {
		empty := emptyEnvoyMiB(t)
		var control float64
		for _, c := range m.children() {
			rss := residentMiB(t, c.pid)
			switch {
			case strings.HasPrefix(c.name, "writ-"):
				control += rss
				t.Logf("%s: %.0f MiB", c.name, rss)
			case c.name == "envoy":
				t.Logf("envoy: %.0f MiB, empty %.0f", rss, empty)
				if rss > empty+15 {
					t.Errorf("an Envoy holds %.0f MiB, %.0f more than an empty one", rss, rss-empty)
				}
			}
		}
		t.Logf("control plane: %.0f MiB", control)
		if control > 300 {
			t.Errorf("the control plane holds %.0f MiB, want at most 300", control)
		}
	})
	t.Run("a second run has the same root", func(t *testing.T) {
		root, err := os.ReadFile(filepath.Join(dir, ".writ", "ca", "bundle.pem"))
		if err != nil {
			t.Fatal(err)
		}
		address := m.addressOf("ratings-1")
		m.stop()
		again := up(t, dir)
		second, err := os.ReadFile(filepath.Join(dir, ".writ", "ca", "bundle.pem"))
		if err != nil || string(second) != string(root) {
			t.Errorf("the root has changed (%v)", err)
		}
		if again.addressOf("ratings-1") != address {
			t.Errorf("ratings-1 moved from %s to %s", address, again.addressOf("ratings-1"))
		}
		again.stop()
		if left := again.children(); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
}

// TestFrozenPastEveryLife stops every process of Writ for longer than any
// certificate lives, as a laptop's sleep does: all must come back by itself.
func TestFrozenPastEveryLife(t *testing.T) {
	t.Parallel()
	a, b := newEcho(t, "a"), newEcho(t, "b")
	m := up(t, writeFiles(t, map[string]string{"workloads.yaml": workload("a", "a", a) + workload("b", "b", b), "mtls.yaml": strict}),
		"--certificate-life", "10s", "--service-certificate-life", "10s")
	processes := m.children()
	for _, c := range processes {
		if err := syscall.Kill(c.pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	select { // nothing happens while everything stands still
	case <-time.After(15 * time.Second):
	case <-m.done:
	}
	for _, c := range processes {
		if err := syscall.Kill(c.pid, syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
	}
	proctest.Eventually(t, 60*time.Second, func() error {
		if got := m.get("a-1", "http://b:8000/"); got.status != http.StatusOK {
			return fmt.Errorf("%s", got)
		}
		if out, code := m.writ("status", m.dir); code != 0 {
			return errors.New(out)
		}
		return nil
	})
}

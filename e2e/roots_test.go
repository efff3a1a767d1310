package e2e

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/proctest"
)

// rootsJSON is what `writ roots -o json` prints.
type rootsJSON struct {
	Roots []struct {
		KeyID  string `json:"keyId"`
		Active bool   `json:"active"`
	} `json:"roots"`
	Rotation *struct {
		Step string `json:"step"`
		Gate []struct {
			Holder  string   `json:"holder"`
			Proxies []string `json:"proxies"`
		} `json:"gate"`
	} `json:"rotation"`
	Last *struct {
		Step string `json:"step"`
	} `json:"last"`
}

func (m *mesh) roots() (r rootsJSON) {
	m.t.Helper()
	proctest.Eventually(m.t, 20*time.Second, func() error { // also while the authority is started again
		out, code := m.writ("roots", "-o", "json", m.dir)
		r = rootsJSON{}
		if err := json.Unmarshal([]byte(out), &r); code != 0 || err != nil {
			return fmt.Errorf("writ roots: exit code %d, %w\n%s", code, err, out)
		}
		return nil
	})
	return r
}

// bigMesh has nine workloads w1 to w9 and their caller a; each connection between
// Envoys is good for a few requests, so that handshakes go on all the time.
func bigMesh(t *testing.T) map[string]string {
	t.Helper()
	var files strings.Builder
	files.WriteString(workload("a", "a", newEcho(t, "a")))
	for i := range 9 {
		name := fmt.Sprint("w", i+1)
		e := newEcho(t, name)
		e.answerWith(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, name) }) // cheaply
		files.WriteString(workload(name, name, e))
		fmt.Fprintf(&files, `---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: %[1]s}
spec:
  host: %[1]s.default.svc.cluster.local
  trafficPolicy: {connectionPool: {http: {maxRequestsPerConnection: 10}}}
`, name)
	}
	return map[string]string{"workloads.yaml": files.String(), "mtls.yaml": strict}
}

// envoys gives the process ids of all Envoys.
func (m *mesh) envoys() []int {
	m.t.Helper()
	var pids []int
	for _, c := range m.children() {
		if strings.HasPrefix(c.name, "envoy") {
			pids = append(pids, c.pid)
		}
	}
	slices.Sort(pids)
	return pids
}

// envoyOf is the process id of a replica's Envoy.
func (m *mesh) envoyOf(replica string) int {
	m.t.Helper()
	for _, pid := range m.envoys() {
		out, err := exec.Command("cat", fmt.Sprintf("/proc/%d/cmdline", pid)).Output()
		if err == nil && bytes.Contains(out, []byte(replica)) {
			return pid
		}
	}
	m.t.Fatalf("no Envoy of %s", replica)
	return 0
}

// secrets gives the serial numbers of the roots that an Envoy trusts, and that of
// its own certificate, from its administration interface.
func secrets(t *testing.T, admin string) (trusted []string, own string) {
	t.Helper()
	a := do(client(""), request{url: admin + "/certs"})
	type certificate struct {
		Serial string `json:"serial_number"`
	}
	var got struct {
		Certificates []struct {
			CA    []certificate `json:"ca_cert"`
			Chain []certificate `json:"cert_chain"`
		} `json:"certificates"`
	}
	if err := json.Unmarshal([]byte(a.body), &got); err != nil {
		t.Fatalf("%s/certs: %s", admin, a)
	}
	for _, c := range got.Certificates {
		for _, root := range c.CA {
			if !slices.Contains(trusted, root.Serial) {
				trusted = append(trusted, root.Serial)
			}
		}
		for _, leaf := range c.Chain {
			own = leaf.Serial
		}
	}
	return trusted, own
}

// TestRootRotation replaces the root under load, with an Envoy that stands still for
// a while and an authority that dies meanwhile: no request fails, no Envoy restarts,
// and in the end nobody trusts or uses the old root.
func TestRootRotation(t *testing.T) {
	t.Parallel()
	m := up(t, writeFiles(t, bigMesh(t)))
	before := m.envoys()
	oldRoots, oldLeaf := secrets(t, m.adminOf("w1-1"))
	if len(before) != 10 || len(oldRoots) != 1 {
		t.Fatalf("%d Envoys, of which one trusts %v", len(before), oldRoots)
	}
	old := m.roots().Roots[0].KeyID
	began := time.Now()
	targets := make([]string, 0, 8)
	for i := range 8 { // w9 gets none
		targets = append(targets, fmt.Sprintf("http://w%d:8000/", i+1))
	}
	requests := startPacedLoad(t, m.proxyOf("a-1"), targets, 1000)
	held := m.envoyOf("w9-1")
	if err := syscall.Kill(held, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(held, syscall.SIGCONT) })
	if out, code := m.writ("roots", "rotate", m.dir); code != 0 {
		t.Fatalf("exit code %d: %s", code, out)
	}
	proctest.Eventually(t, 20*time.Second, func() error {
		r := m.roots().Rotation
		if r == nil || r.Step != "distributing" || len(r.Gate) != 1 || !strings.HasSuffix(r.Gate[0].Holder, "/writ/node/local") ||
			len(r.Gate[0].Proxies) != 1 || !strings.Contains(r.Gate[0].Proxies[0], "w9-1.default") {
			return fmt.Errorf("the Envoy that stands still is not named alone: %+v", r)
		}
		return nil
	})
	m.kill("writ-ca")
	if r := m.roots(); r.Rotation == nil || r.Rotation.Step != "distributing" || len(r.Roots) != 2 {
		t.Errorf("after a restart of the authority: %+v", r)
	}
	if err := syscall.Kill(held, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if out, code := m.writ("roots", "rotate", "--watch", "--timeout", "3m", m.dir); code != 0 {
		t.Fatalf("exit code %d: %s", code, out)
	}
	sent, failed, failures := requests.stop()
	if failed > 0 || sent < 1000 {
		t.Errorf("%d of %d requests failed:\n%s", failed, sent, failures)
	}
	t.Logf("%d requests, %.0f a second", sent, float64(sent)/time.Since(began).Seconds())
	if after := m.envoys(); !slices.Equal(after, before) {
		t.Errorf("Envoys were started anew: %v, before %v", after, before)
	}
	if r := m.roots(); len(r.Roots) != 1 || r.Roots[0].KeyID == old || r.Last == nil || r.Last.Step != "done" {
		t.Errorf("in the end: %+v", r)
	}
	for _, w := range m.ready.Workloads {
		proctest.Eventually(t, 10*time.Second, func() error {
			trusted, own := secrets(t, w.Admin)
			if len(trusted) != 1 || trusted[0] == oldRoots[0] || own == "" || own == oldLeaf {
				return fmt.Errorf("%s trusts %v and has %s", w.Name, trusted, own)
			}
			return nil
		})
		if a := m.get("a-1", "http://"+strings.TrimSuffix(w.Name, "-1")+":8000/"); a.status != http.StatusOK {
			t.Errorf("%s in the end: %s", w.Name, a)
		}
	}
}

func (m *mesh) adminOf(replica string) string {
	m.t.Helper()
	for _, w := range m.ready.Workloads {
		if w.Name == replica {
			return w.Admin
		}
	}
	m.t.Fatalf("no workload %s in the ready file", replica)
	return ""
}

// TestCompromisedRoot: from the command on a certificate of the old root opens
// nothing in any Envoy, also not by a session that began before; the mesh finds its
// feet by itself.
func TestCompromisedRoot(t *testing.T) {
	t.Parallel()
	a, b := newEcho(t, "a"), newEcho(t, "b")
	m := up(t, writeFiles(t, map[string]string{"workloads.yaml": workload("a", "a", a) + workload("b", "b", b), "mtls.yaml": strict}))
	stolen := m.mint(accountOf + "a")
	sessions := tls.NewLRUClientSessionCache(4)
	call := func() (resumed bool, err error) {
		conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", net.JoinHostPort(m.addressOf("b-1"), "8000"), &tls.Config{
			MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{stolen}, ServerName: "b", NextProtos: []string{"writ", "http/1.1"}, ClientSessionCache: sessions,
			InsecureSkipVerify: true, //nolint:gosec // what the server thinks of the client is the question
		})
		if err != nil {
			return false, err
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
			return false, err
		}
		if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n"); err != nil {
			return false, err
		}
		answer, err := io.ReadAll(conn)
		if len(answer) > 0 && !bytes.HasPrefix(answer, []byte("HTTP/1.1 200")) {
			return false, fmt.Errorf("answer %q", answer[:min(len(answer), 60)])
		}
		if len(answer) > 0 {
			err = nil
		}
		return conn.ConnectionState().DidResume, err
	}
	if _, err := call(); err != nil {
		t.Fatalf("before: %v", err)
	}
	resumed, err := call()
	if err != nil {
		t.Fatalf("before, for the second time: %v", err)
	}
	t.Logf("sessions are resumed: %v", resumed)
	live := &caller{t: t, m: m, cert: stolen}
	live.http = &http.Client{Transport: &http.Transport{TLSClientConfig: live.config("http/1.1"), MaxConnsPerHost: 1}, Timeout: 5 * time.Second}
	defer live.http.CloseIdleConnections()
	if got, _ := live.get(); got.status != http.StatusOK {
		t.Fatalf("before: %s", got)
	}
	old := m.roots().Roots[0].KeyID
	began := time.Now()
	if out, code := m.writ("roots", "revoke", old[:12], m.dir); code != 0 || !strings.Contains(out, "the authority "+old+" is revoked (ca-compromise)") {
		t.Fatalf("exit code %d: %s", code, out)
	}
	t.Logf("the command took %s", time.Since(began).Round(time.Millisecond))
	proctest.Eventually(t, 20*time.Second, func() error {
		if got, reused := live.get(); got.err == nil {
			return fmt.Errorf("a connection of the old root goes on: %s, the same: %v", got, reused)
		}
		return nil
	})
	t.Logf("its live connection has ended after %s", time.Since(began).Round(time.Millisecond))
	if r := m.roots(); len(r.Roots) != 1 || r.Roots[0].KeyID == old {
		t.Errorf("the roots are %+v", r.Roots)
	}
	proctest.Eventually(t, 20*time.Second, func() error {
		if resumed, err := call(); err == nil {
			return fmt.Errorf("a certificate of the old root still opens b, resumed: %v", resumed)
		}
		return nil
	})
	proctest.Eventually(t, 30*time.Second, func() error {
		if got := m.get("a-1", "http://b:8000/"); got.status != http.StatusOK {
			return fmt.Errorf("the mesh has not recovered: %s", got)
		}
		return nil
	})
	for range 20 {
		if _, err := call(); err == nil {
			t.Fatal("a certificate of the old root opens b again")
		}
	}
	for _, service := range []string{"ca", "pilot", "authz", "ratelimit", "nodeagent"} {
		proctest.Eventually(t, 40*time.Second, func() error { return m.readyz(service) })
	}
}

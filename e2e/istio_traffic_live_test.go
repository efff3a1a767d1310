package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/proctest"
)

func (l *load) wait(t *testing.T, n int64) {
	t.Helper()
	from := l.sent.Load()
	proctest.Eventually(t, 20*time.Second, func() error {
		if l.sent.Load() < from+n {
			return fmt.Errorf("the load stands still at %d", l.sent.Load())
		}
		return nil
	})
}

// TestIstioLiveEdits adds and removes objects under load: no request may be lost,
// and what is removed leaves the default behind.
func TestIstioLiveEdits(t *testing.T) {
	t.Parallel()
	v1, v2 := newApp(t, "v1"), newApp(t, "v2")
	m := up(t, writeFiles(t, map[string]string{
		"workloads.yaml": play("default", "client", map[string]string{"app": "client"}, v1.port) +
			play("default", "b-v1", map[string]string{"app": "b", "version": "v1"}, v1.port) +
			play("default", "b-v2", map[string]string{"app": "b", "version": "v2"}, v2.port),
	}))
	l := startLoad(t, m.proxyOf("client-1"), "http://b:8000/", 200)
	become := func(what string, f func() error) {
		t.Helper()
		began := time.Now()
		proctest.Eventually(t, 20*time.Second, f)
		t.Logf("%s took %s", what, time.Since(began)) // how fast it must be, make bench says
	}
	outcomes := func() map[string]int {
		return spread(24, func(int) answer { return m.get("client-1", "http://b:8000/") })
	}
	only := func(v string) func() error {
		return func() error {
			if got := outcomes(); got[v] != 24 {
				return fmt.Errorf("%v, want only %s", got, v)
			}
			return nil
		}
	}
	both := func() error {
		if got := outcomes(); got["v1"] == 0 || got["v2"] == 0 {
			return fmt.Errorf("%v, want both", got)
		}
		return nil
	}
	rule := object("DestinationRule", "default", "b", "host: b\nsubsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]")
	to := func(subset string) string {
		return object("VirtualService", "default", "b", "hosts: [b]\nhttp: [{route: [{destination: {host: b, subset: "+subset+"}}]}]")
	}
	for range 3 {
		write(t, m.dir, "b.yaml", rule+to("v1"))
		become("rule and route", only("v1"))
		write(t, m.dir, "b.yaml", to("v2")+rule)
		become("another route", only("v2"))
		if err := os.Remove(filepath.Join(m.dir, "b.yaml")); err != nil {
			t.Fatal(err)
		}
		become("the default", both)
		write(t, m.dir, "b-rule.yaml", rule)
		write(t, m.dir, "b-route.yaml", to("v1"))
		become("rule and route in two files", only("v1"))
		write(t, m.dir, "b-route.yaml", "")
		become("the default", both)
		_ = os.Remove(filepath.Join(m.dir, "b-rule.yaml"))
	}
	// A Service with another port and its removal.
	write(t, m.dir, "service.yaml", service("c", "app: b", "{name: http, port: 80, targetPort: 8000}"))
	become("a new service", func() error {
		if got := m.get("client-1", "http://c/"); got.status != 200 {
			return fmt.Errorf("%s", got)
		}
		return nil
	})
	_ = os.Remove(filepath.Join(m.dir, "service.yaml"))
	become("no service", func() error {
		if got := m.get("client-1", "http://c/"); got.status != 503 {
			return fmt.Errorf("%s", got)
		}
		return nil
	})
	if sent, failed, failures := l.stop(); failed > 0 || sent < 200 {
		t.Errorf("%d of %d requests failed:\n%s", failed, sent, failures)
	}
}

// TestIstioScaling edits replicas from 1 to 3 and back under load.
func TestIstioScaling(t *testing.T) {
	t.Parallel()
	b, c := newApp(t, "b"), newApp(t, "c")
	workloads := func(replicas int) string {
		return play("default", "client", map[string]string{"app": "client"}, c.port) +
			strings.Replace(play("default", "b", map[string]string{"app": "b"}, b.port), "spec:", fmt.Sprintf("spec:\n  replicas: %d", replicas), 1)
	}
	m := up(t, writeFiles(t, map[string]string{"workloads.yaml": workloads(1), "strict.yaml": strict}))
	l := startLoad(t, m.proxyOf("client-1"), "http://b:8000/", 200)
	running := func(n int) {
		t.Helper()
		proctest.Eventually(t, 20*time.Second, func() error {
			out, _ := m.writ("status", m.dir)
			if got := strings.Count(out, "~b-"); got != n {
				return fmt.Errorf("%d replicas, want %d:\n%s", got, n, out)
			}
			return nil
		})
	}
	const cluster = "cluster.outbound|8000||b.default.svc.cluster.local."
	added, modified := m.stat("client-1", "cluster_manager.cluster_added"), m.stat("client-1", "cluster_manager.cluster_modified")
	// members waits until the client's cluster has n endpoints by an update of EDS.
	updates := 0
	members := func(n int) {
		t.Helper()
		proctest.Eventually(t, 20*time.Second, func() error {
			now := m.stat("client-1", cluster+"update_success")
			if got := m.stat("client-1", cluster+"membership_total"); got != n || now <= updates {
				return fmt.Errorf("%d endpoints after %d updates, want %d", got, now, n)
			}
			updates = now
			return nil
		})
	}
	members(1)
	for range 2 {
		write(t, m.dir, "workloads.yaml", workloads(3))
		running(3)
		m.waitReady()
		proctest.Eventually(t, 20*time.Second, func() error {
			if m.waitReady(); len(m.ready.Workloads) != 4 {
				return fmt.Errorf("%d workloads in the ready file", len(m.ready.Workloads))
			}
			for _, r := range []string{"b-1", "b-2", "b-3"} {
				if n := m.stat(r, "http.inbound_0.0.0.0_8000.downstream_rq_2xx"); n < 20 {
					return fmt.Errorf("%s served %d requests", r, n)
				}
			}
			return nil
		})
		members(3)
		write(t, m.dir, "workloads.yaml", workloads(1))
		proctest.Eventually(t, 20*time.Second, func() error {
			if m.waitReady(); len(m.ready.Workloads) != 2 {
				return fmt.Errorf("%d workloads in the ready file", len(m.ready.Workloads))
			}
			return nil
		})
		members(1)
		l.wait(t, 100)
	}
	if a, c := m.stat("client-1", "cluster_manager.cluster_added"), m.stat("client-1", "cluster_manager.cluster_modified"); a != added || c != modified {
		t.Errorf("clusters were rebuilt: %d added and %d modified, %d and %d before", a, c, added, modified)
	}
	if sent, failed, failures := l.stop(); failed > 0 {
		t.Errorf("%d of %d requests failed:\n%s", failed, sent, failures)
	}
}

// TestIstioDeadProgram has one of three programs die: requests that cannot reach
// it go to another, as after any failed connection, unless a rule says not to.
func TestIstioDeadProgram(t *testing.T) {
	t.Parallel()
	a, b := newApp(t, "v1"), newApp(t, "v2")
	dying := newApp(t, "v3")
	srv := httptest.NewServer(dying)
	port := 0
	_, _ = fmt.Sscanf(srv.URL[strings.LastIndex(srv.URL, ":")+1:], "%d", &port)
	of := func(v string, port int) string {
		return play("default", "b-"+v, map[string]string{"app": "b", "version": v}, port)
	}
	ports := "{name: http, port: 80, targetPort: 8000}"
	m := up(t, writeFiles(t, map[string]string{
		"workloads.yaml": of("v1", a.port) + of("v2", b.port) + of("v3", port) + play("default", "client", map[string]string{"app": "client"}, a.port),
		"b.yaml": service("never", "app: b", ports) +
			object("VirtualService", "default", "never", "hosts: [never]\nhttp: [{retries: {attempts: 0}, route: [{destination: {host: never}}]}]") +
			service("retried", "app: b", ports) +
			object("VirtualService", "default", "retried", "hosts: [retried]\nhttp: [{retries: {attempts: 3, retryOn: \"5xx\"}, route: [{destination: {host: retried}}]}]") +
			service("dead", "version: v3", ports) +
			object("VirtualService", "default", "dead", "hosts: [dead]\nhttp: [{retries: {attempts: 5, perTryTimeout: 2s}, route: [{destination: {host: dead}}]}]"),
	}))
	send := func(target string) map[string]int {
		return spread(90, func(int) answer { return m.get("client-1", target) })
	}
	if got := send("http://never/"); got["503"] != 0 || got["v3"] == 0 {
		t.Errorf("before: %v", got)
	}
	srv.Close()
	if got := send("http://never/"); got["503"] == 0 || got["v3"] != 0 || got["v1"] == 0 || got["v2"] == 0 {
		t.Errorf("without retries: %v", got)
	}
	for _, target := range []string{"http://b:8000/", "http://retried/"} {
		if got := send(target); got["v1"]+got["v2"] != 90 {
			t.Errorf("%s: %v", target, got)
		}
	}
	before := m.stat("client-1", "outbound|80||dead.default.svc.cluster.local.upstream_rq_retry")
	got := m.get("client-1", "http://dead/")
	retries := m.stat("client-1", "outbound|80||dead.default.svc.cluster.local.upstream_rq_retry") - before
	if got.status != 503 || retries != 5 || got.header.Get("x-writ-unreached") != "" {
		t.Errorf("no program at all: %s %v after %d retries", got, got.header, retries)
	}
	proctest.Eventually(t, 20*time.Second, func() error {
		if !strings.Contains(m.accessLog("client-1"), "URX") {
			return errors.New("the access log has no flag URX")
		}
		return nil
	})
	// A program that answers 503 itself was reached: that is its word.
	refuse := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("x-writ-unreached", "true")
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	a.answerWith(refuse)
	b.answerWith(refuse)
	a.count.Store(0)
	b.count.Store(0)
	if got := send("http://b:8000/"); got["503"] != 90 {
		t.Errorf("programs that refuse: %v", got)
	}
	if n := a.count.Load() + b.count.Load(); n > 90 {
		t.Errorf("%d calls of programs that refuse", n)
	}
}

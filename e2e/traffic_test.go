package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/proctest"
)

func (m *mesh) accessLog(replica string) string {
	m.t.Helper()
	data, err := os.ReadFile(filepath.Join(m.dir, ".writ", "logs", "envoy-default-"+replica+".log"))
	if err != nil {
		m.t.Fatal(err)
	}
	return string(data)
}

const reviewSubsets = `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: b}
spec:
  host: b
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
  - {name: v3, labels: {version: v3}}
`

func threeVersions(t *testing.T) string {
	t.Helper()
	return workload("a", "a", newEcho(t, "a")) + workload("b-v1", "b", newEcho(t, "v1"), "version: v1") +
		workload("b-v2", "b", newEcho(t, "v2"), "version: v2") + workload("b-v3", "b", newEcho(t, "v3"), "version: v3")
}

// TestCanary rolls out in steps of percentages.
func TestCanary(t *testing.T) {
	t.Parallel()
	step := func(percent int) string {
		return fmt.Sprintf(`---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: b}
spec:
  hosts: [b]
  http:
  - headers: {response: {set: {x-step: "%[1]d"}}}
    route:
    - {destination: {host: b, subset: v1}, weight: %[2]d}
    - {destination: {host: b, subset: v2}, weight: %[1]d}
`, percent, 100-percent)
	}
	m := up(t, writeFiles(t, map[string]string{"workloads.yaml": threeVersions(t), "subsets.yaml": reviewSubsets, "routes.yaml": step(1)}))
	c := client(m.proxyOf("a-1"))
	defer c.CloseIdleConnections()
	for i, s := range []struct{ percent, requests, least, most int }{
		// Five standard deviations and more: wrong once in a million runs.
		{1, 500, 0, 20}, {10, 1000, 50, 150}, {50, 300, 105, 195}, {100, 50, 50, 50},
	} {
		if i > 0 {
			write(t, m.dir, "routes.yaml", step(s.percent))
		}
		proctest.Eventually(t, 20*time.Second, func() error {
			if got := do(c, request{url: "http://b:8000/"}); got.header.Get("x-step") != fmt.Sprint(s.percent) {
				return fmt.Errorf("%d percent are not live: %s", s.percent, got)
			}
			return nil
		})
		count := spread(s.requests, func(int) answer { return do(c, request{url: "http://b:8000/"}) })
		if v2 := count["v2"]; v2 < s.least || v2 > s.most || count["v1"]+v2 != s.requests {
			t.Errorf("%d percent of %d requests: %v", s.percent, s.requests, count)
		}
	}
}

func TestRouteByUser(t *testing.T) {
	t.Parallel()
	m := up(t, writeFiles(t, map[string]string{
		"workloads.yaml": threeVersions(t),
		"routes.yaml": reviewSubsets + `---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: b}
spec:
  hosts: [b]
  http:
  - {match: [{headers: {end-user: {exact: john}}}], route: [{destination: {host: b, subset: v2}}]}
  - {match: [{headers: {end-user: {prefix: jo}}}], route: [{destination: {host: b, subset: v1}}]}
  - {match: [{headers: {end-user: {exact: mary}}}], route: [{destination: {host: b, subset: v3}}]}
  - {match: [{headers: {end-user: {exact: john}}}], route: [{destination: {host: b, subset: v3}}]}
  - route: [{destination: {host: b, subset: v1}}]
`,
	}))
	for user, want := range map[string]string{"john": "v2", "mary": "v3", "John": "v1", "johnny": "v1", "somebody": "v1", "": "v1"} {
		var headers []string
		if user != "" {
			headers = []string{"end-user: " + user}
		}
		for range 5 {
			if got := m.get("a-1", "http://b:8000/", headers...).saw(t).Name; got != want {
				t.Errorf("user %q was answered by %s, want %s", user, got, want)
			}
		}
	}
}

// TestEditIsLiveWithinASecond edits a policy again and again under load.
func TestEditIsLiveWithinASecond(t *testing.T) {
	a, b := newEcho(t, "a"), newEcho(t, "b")
	route := func(timeout string) string {
		return fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: b}
spec:
  hosts: [b]
  http: [{route: [{destination: {host: b}}], timeout: %s, headers: {response: {set: {x-timeout: %q}}}}]
`, timeout, timeout)
	}
	m := up(t, writeFiles(t, map[string]string{"workloads.yaml": workload("a", "a", a) + workload("b", "b", b), "policy.yaml": denyPath("/0"), "route.yaml": route("10s")}))
	l := startLoad(t, m.proxyOf("a-1"), "http://b:8000/free", 500)
	for i := range 10 {
		write(t, m.dir, "policy.yaml", denyPath(fmt.Sprintf("/%d", i+1)))
		proctest.Eventually(t, 20*time.Second, func() error {
			if got := m.get("a-1", fmt.Sprintf("http://b:8000/%d", i+1)); got.status != http.StatusForbidden {
				return fmt.Errorf("edit %d of the policy: %s", i, got)
			}
			return nil
		})
		timeout := fmt.Sprintf("%ds", 11+i)
		write(t, m.dir, "route.yaml", route(timeout))
		proctest.Eventually(t, 20*time.Second, func() error {
			if got := m.get("a-1", "http://b:8000/free"); got.header.Get("x-timeout") != timeout {
				return fmt.Errorf("edit %d of the route: %s %v", i, got, got.header)
			}
			return nil
		})
	}
	proctest.Eventually(t, 20*time.Second, func() error {
		if n := l.sent.Load(); n < 2000 {
			return fmt.Errorf("%d requests so far", n)
		}
		return nil
	})
	sent, failed, failures := l.stop()
	if failed > 0 {
		t.Errorf("%d of %d requests failed:\n%s", failed, sent, failures)
	}

	before, _ := m.writ("status", m.dir)
	write(t, m.dir, "policy.yaml", strings.Replace(denyPath("/x"), "operation", "operatoin", 1))
	proctest.Eventually(t, 20*time.Second, func() error {
		out, code := m.writ("status", m.dir)
		if code != 1 || !strings.Contains(out, "policy.yaml:8") || !strings.Contains(out, "operatoin") {
			return fmt.Errorf("status (exit code %d) does not show the broken edit:\n%s", code, out)
		}
		return nil
	})
	if got := m.get("a-1", "http://b:8000/10"); got.status != http.StatusForbidden {
		t.Errorf("after a broken edit the last good policy should hold: %s\nbefore:\n%s", got, before)
	}
	// Not even a restart of pilot loses it.
	m.kill("writ-pilot")
	proctest.Eventually(t, 10*time.Second, func() error { return m.readyz("pilot") })
	if got := m.get("a-1", "http://b:8000/10"); got.status != http.StatusForbidden {
		t.Errorf("after a broken edit and a restart the last good policy should hold: %s", got)
	}
	// A change in another file goes through all the same.
	write(t, m.dir, "route.yaml", route("55s"))
	proctest.Eventually(t, 20*time.Second, func() error {
		if got := m.get("a-1", "http://b:8000/free"); got.header.Get("x-timeout") != "55s" {
			return fmt.Errorf("a good edit beside a broken one: %s %v", got, got.header)
		}
		return nil
	})
}

// TestRejectedByEnvoy: what no validation can know, Envoy does; then the
// revision is taken back everywhere and the object is named.
func TestRejectedByEnvoy(t *testing.T) {
	t.Parallel()
	a, b := newEcho(t, "a"), newEcho(t, "b")
	route := func(value string) string {
		return fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: greeting}
spec:
  hosts: [b]
  http: [{route: [{destination: {host: b}}], headers: {response: {set: {x-value: %q}}}}]
`, value)
	}
	m := up(t, writeFiles(t, map[string]string{"workloads.yaml": workload("a", "a", a) + workload("b", "b", b), "route.yaml": route("one")}))
	if got := m.get("a-1", "http://b:8000/"); got.header.Get("x-value") != "one" {
		t.Fatalf("got %v", got.header)
	}
	write(t, m.dir, "route.yaml", route("%NO_SUCH_OPERATOR(x)%"))
	proctest.Eventually(t, 20*time.Second, func() error {
		out, code := m.writ("status", m.dir)
		if code != 1 || !strings.Contains(out, "rejected") || !strings.Contains(out, "VirtualService default/greeting (route.yaml:2)") {
			return fmt.Errorf("status (exit code %d) does not name the object:\n%s", code, out)
		}
		return nil
	})
	if got := m.get("a-1", "http://b:8000/"); got.status != 200 || got.header.Get("x-value") != "one" {
		t.Errorf("after the rejection: %s %v", got, got.header)
	}
	// What one author got refused keeps nobody else's edit away.
	write(t, m.dir, "deny.yaml", denyPath("/emergency"))
	waitStatus(t, 403, func() answer { return m.get("a-1", "http://b:8000/emergency") })
	if out, code := m.writ("status", m.dir); code != 1 || !strings.Contains(out, "route.yaml:2: VirtualService default/greeting") {
		t.Errorf("status (exit code %d) has forgotten the rejection:\n%s", code, out)
	}
	write(t, m.dir, "route.yaml", route("two"))
	proctest.Eventually(t, 20*time.Second, func() error {
		if got := m.get("a-1", "http://b:8000/"); got.header.Get("x-value") != "two" {
			return fmt.Errorf("after mending: %s %v", got, got.header)
		}
		return nil
	})
}

package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/proctest"
)

// TestOneRuleForGatewayAndMesh: /feedback goes to service 1, from outside as from
// service 2, by the same VirtualService.
func TestOneRuleForGatewayAndMesh(t *testing.T) {
	t.Parallel()
	one, two, rest := newEcho(t, "one"), newEcho(t, "two"), newEcho(t, "rest")
	m := up(t, writeFiles(t, map[string]string{
		"workloads.yaml": workload("one", "one", one) + workload("two", "two", two) + workload("rest", "rest", rest),
		"routes.yaml": gatewayObject("istio-system", "both", fmt.Sprintf(`
		- {port: {number: %d, name: http, protocol: HTTP}, hosts: [foo.bar.com]}`, proctest.Port(t))) + `---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: foo}
spec:
  hosts: [foo.bar.com]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: foo}
spec:
  hosts: [foo.bar.com]
  gateways: [istio-system/both, mesh]
  http:
  - {match: [{uri: {prefix: /feedback}}], route: [{destination: {host: one, port: {number: 8000}}}]}
  - {route: [{destination: {host: rest, port: {number: 8000}}}]}
`,
	}))
	for path, want := range map[string]string{"/feedback/1": "one", "/other": "rest"} {
		if got := do(client(""), request{url: m.gateway("both") + path, headers: []string{"Host: foo.bar.com"}}).saw(t).Name; got != want {
			t.Errorf("from outside %s was answered by %s", path, got)
		}
		if got := m.get("two-1", "http://foo.bar.com"+path).saw(t).Name; got != want {
			t.Errorf("from service 2 %s was answered by %s", path, got)
		}
	}
	if got := do(client(""), request{url: m.gateway("both") + "/feedback"}); got.status != http.StatusNotFound {
		t.Errorf("another host at the gateway: %s", got)
	}
}

// TestARefusalNeverReachesTheProgram counts at the program itself.
func TestARefusalNeverReachesTheProgram(t *testing.T) {
	t.Parallel()
	a, b := newEcho(t, "a"), newEcho(t, "b")
	m := up(t, writeFiles(t, map[string]string{"workloads.yaml": workload("a", "a", a) + workload("b", "b", b), "deny.yaml": `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: b}
spec: {action: DENY, selector: {matchLabels: {app: b}}, rules: [{to: [{operation: {methods: [POST]}}]}]}
`}))
	for range 10 {
		if got := m.from("a-1", request{method: "POST", url: "http://b:8000/", body: "x"}); got.status != http.StatusForbidden {
			t.Fatalf("%s", got)
		}
	}
	if n := b.count.Load(); n != 0 {
		t.Errorf("%d refused requests reached the program", n)
	}
	if got := m.get("a-1", "http://b:8000/"); got.status != http.StatusOK || b.count.Load() != 1 {
		t.Errorf("a request that is allowed: %s, %d at the program", got, b.count.Load())
	}
}

// TestUDPPortsAreLeftAlone: a UDP port of a service is neither proxied nor an error.
func TestUDPPortsAreLeftAlone(t *testing.T) {
	t.Parallel()
	a, b := newEcho(t, "a"), newEcho(t, "b")
	dir := writeFiles(t, map[string]string{"workloads.yaml": workload("a", "a", a) + workload("b", "b", b), "service.yaml": `
apiVersion: v1
kind: Service
metadata: {name: b}
spec:
  selector: {app: b}
  ports: [{name: http, port: 8000}, {name: dns, port: 53, protocol: UDP}]
`})
	if out, code := writ(t, "validate", dir); code != 0 {
		t.Errorf("validate: %s", out)
	}
	m := up(t, dir)
	if got := m.get("a-1", "http://b:8000/"); got.status != http.StatusOK {
		t.Errorf("the HTTP port beside it: %s", got)
	}
	if dump := do(client(""), request{url: "http://" + m.addressOf("a-1") + ":15000/clusters"}); strings.Contains(dump.body, "outbound|53|") {
		t.Error("there is a cluster for the UDP port")
	}
}

var servedBy = regexp.MustCompile(`served by: reviews (v\d)`)

// bookinfoVersions counts which versions of reviews answer twenty reloads.
func bookinfoVersions(t *testing.T, m *mesh, headers ...string) map[string]int {
	t.Helper()
	count := map[string]int{}
	for range 20 {
		page := do(client(""), request{url: m.gateway("bookinfo-gateway") + "/productpage", headers: headers})
		found := servedBy.FindStringSubmatch(page.body)
		if page.status != http.StatusOK || found == nil {
			t.Fatalf("%v %d %s", count, page.status, page.body)
		}
		count[found[1]]++
	}
	return count
}

// TestBookinfoRouting goes the way of the well-known tutorial: without rules the
// versions of reviews take turns, with all on v1 there are never stars, with the second
// manifest on top users see theirs, and without the rules again it is as before.
func TestBookinfoRouting(t *testing.T) {
	dir := copyDir(t, filepath.Join("..", "examples", "bookinfo"))
	networking, err := os.ReadFile(filepath.Join(dir, "networking.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	open := strings.ReplaceAll(string(networking), "# The door", "# the door")
	// All but the last document, the VirtualService of reviews.
	open = open[:strings.LastIndex(open, "---")]
	write(t, dir, "networking.yaml", open)
	m := up(t, dir)
	// Each page that v2 or v3 made asked ratings once, one that v1 made did not.
	asked := func() int { return m.stat("ratings-1", "http.inbound_0.0.0.0_9080.downstream_rq_total") }
	askedBy := func() map[string]int {
		before := asked()
		got := bookinfoVersions(t, m)
		if n := asked() - before; n != got["v2"]+got["v3"] {
			t.Errorf("%v, and ratings was asked %d times", got, n)
		}
		return got
	}
	if got := askedBy(); len(got) != 3 {
		t.Errorf("without rules: %v", got)
	}
	processes := fmt.Sprint(m.children())
	var rules strings.Builder
	for _, s := range []string{"productpage", "details", "ratings", "reviews"} {
		fmt.Fprintf(&rules, `---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: %[1]s}
spec: {hosts: [%[1]s], http: [{route: [{destination: {host: %[1]s, subset: v1}}]}]}
`, s)
		if s != "reviews" {
			fmt.Fprintf(&rules, `---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: %[1]s}
spec: {host: %[1]s, subsets: [{name: v1, labels: {version: v1}}]}
`, s)
		}
	}
	t.Log("all on v1")
	write(t, dir, "all-v1.yaml", rules.String())
	proctest.Eventually(t, 20*time.Second, func() error {
		if got := bookinfoVersions(t, m); got["v1"] != 20 {
			return fmt.Errorf("all on v1: %v", got)
		}
		return nil
	})
	askedBy()
	t.Log("the second manifest, by user, applied to the first")
	all, byUser := rules.String(), string(networking)[strings.LastIndex(string(networking), "---"):]
	write(t, dir, "all-v1.yaml", all[:strings.LastIndex(all, "---")]+byUser)
	for user, want := range map[string]string{"john": "v2", "mary": "v3", "somebody": "v1"} {
		proctest.Eventually(t, 20*time.Second, func() error {
			if got := bookinfoVersions(t, m, "cookie: bookinfo-user="+user); got[want] != 20 {
				return fmt.Errorf("%s sees %v, want %s", user, got, want)
			}
			return nil
		})
	}
	const detailsV1 = "cluster.outbound|9080|v1|details.default.svc.cluster.local.upstream_rq_2xx"
	before := m.stat("productpage-1", detailsV1)
	bookinfoVersions(t, m)
	if n := m.stat("productpage-1", detailsV1) - before; n != 20 {
		t.Errorf("the rule of details sent %d of 20 requests to v1 after the second manifest", n)
	}
	t.Log("rules taken away")
	if err := os.Remove(filepath.Join(dir, "all-v1.yaml")); err != nil {
		t.Fatal(err)
	}
	proctest.Eventually(t, 20*time.Second, func() error {
		if got := bookinfoVersions(t, m); len(got) != 3 {
			return fmt.Errorf("rules taken away: %v", got)
		}
		return nil
	})
	if now := fmt.Sprint(m.children()); now != processes {
		t.Errorf("edits of rules have changed what runs from %s to %s", processes, now)
	}
	var st struct{ Serving string }
	out, _ := m.writ("status", dir, "-o", "json")
	if err := json.Unmarshal([]byte(out), &st); err != nil || st.Serving != "4" || m.ready.Revision != "1" {
		t.Errorf("revision %s when ready, %s after three edits, %v", m.ready.Revision, st.Serving, err)
	}
}

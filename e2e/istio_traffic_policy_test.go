package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/proctest"
)

// policyObjects are services in front of the same three apps, each with a
// DestinationRule of its own.
func policyObjects() string {
	ports := "{name: http, port: 80, targetPort: 8000}, {name: http-alt, port: 8080, targetPort: 8000}"
	rule := func(name, policy string) string {
		return service(name, "app: b", ports) + object("DestinationRule", "default", name, fmt.Sprintf(`
		host: %s
		%s
		subsets:
		- {name: v1, labels: {version: v1}}
		- {name: v2, labels: {version: v2}}
		- {name: v3, labels: {version: v3}}`, name, policy))
	}
	routes := func(name, http string) string {
		return object("VirtualService", "default", name, fmt.Sprintf(`
		hosts: [%s]
		http:
		%s`, name, http))
	}
	return service("plain", "app: b", ports) +
		rule("rr", "trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}") +
		rule("random", "trafficPolicy: {loadBalancer: {simple: RANDOM}}") +
		rule("hashheader", "trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x-user}}}") +
		rule("maglev", "trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x-user, maglev: {}}}}") +
		rule("hashcookie", "trafficPolicy: {loadBalancer: {consistentHash: {httpCookie: {name: user, ttl: 60s}}}}") +
		rule("hashquery", "trafficPolicy: {loadBalancer: {consistentHash: {httpQueryParameterName: user}}}") +
		rule("haship", "trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true}}}") +
		rule("portlevel", `trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}, portLevelSettings: [{port: {number: 8080}, loadBalancer: {consistentHash: {httpHeaderName: x-user}}}]}`) +
		rule("pending", "trafficPolicy: {connectionPool: {tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1, maxRequestsPerConnection: 1}}}") +
		rule("maxrequests", "trafficPolicy: {connectionPool: {http: {http2MaxRequests: 2}}}") +
		rule("outlier", "trafficPolicy: {outlierDetection: {consecutive5xxErrors: 2, interval: 0.5s, baseEjectionTime: 180s, maxEjectionPercent: 100}}") +
		rule("gatewayerrors", "trafficPolicy: {outlierDetection: {consecutiveGatewayErrors: 2, consecutive5xxErrors: 0, interval: 0.5s, baseEjectionTime: 180s, maxEjectionPercent: 100}}") +
		rule("cascade", "trafficPolicy: {connectionPool: {http: {http2MaxRequests: 16, maxRetries: 1}}}") +
		routes("cascade", `- {retries: {attempts: 3, retryOn: "5xx"}, route: [{destination: {host: cascade}}]}`) +
		rule("subsetpolicy", "trafficPolicy: {connectionPool: {http: {http2MaxRequests: 1}}}") +
		rule("weights", "") + routes("weights", `- route: [{destination: {host: weights, subset: v1}, weight: 1}, {destination: {host: weights, subset: v2}, weight: 3}]`) +
		rule("mirror", "") + routes("mirror", `- match: [{uri: {exact: /all}}]
		  route: [{destination: {host: mirror, subset: v1}}]
		  mirror: {host: mirror, subset: v2}
		- match: [{uri: {exact: /none}}]
		  route: [{destination: {host: mirror, subset: v1}}]
		  mirror: {host: mirror, subset: v2}
		  mirrorPercentage: {value: 0}
		- match: [{uri: {exact: /half}}]
		  route: [{destination: {host: mirror, subset: v1}}]
		  mirror: {host: mirror, subset: v2}
		  mirrorPercentage: {value: 50}
		- match: [{uri: {exact: /two}}]
		  route: [{destination: {host: mirror, subset: v1}}]
		  mirrors: [{destination: {host: mirror, subset: v2}}, {destination: {host: mirror, subset: v3}, percentage: {value: 100}}]`) +
		service("empty", "app: nobody", ports) +
		service("emptysubset", "app: b", ports) + object("DestinationRule", "default", "emptysubset", `
		host: emptysubset
		subsets: [{name: v9, labels: {version: v9}}]`) + routes("emptysubset", `- route: [{destination: {host: emptysubset, subset: v9}}]`) +
		// Two rules for one host count as one.
		service("merged", "app: b", ports) +
		object("DestinationRule", "default", "merged-1", "host: merged\nsubsets: [{name: v1, labels: {version: v1}}]") +
		object("DestinationRule", "default", "merged-2", "host: merged.default.svc.cluster.local\nsubsets: [{name: v2, labels: {version: v2}}]") +
		routes("merged", `- match: [{uri: {exact: /1}}]
		  route: [{destination: {host: merged, subset: v1}}]
		- route: [{destination: {host: merged, subset: v2}}]`) +
		// Of two VirtualServices of the mesh for one host the older counts alone.
		service("twice", "app: b", ports) +
		strings.Replace(routes("twice", `- directResponse: {status: 418}`), "name: twice,", "name: twice-young, creationTimestamp: \"2024-01-02T00:00:00Z\",", 1) +
		strings.Replace(routes("twice", `- match: [{uri: {prefix: /a}}]
		  directResponse: {status: 419}`), "name: twice,", "name: twice-old, creationTimestamp: \"2024-01-01T00:00:00Z\",", 1)
}

func namespaceObjects() string {
	return `---
apiVersion: v1
kind: Service
metadata: {name: private, namespace: other, annotations: {networking.istio.io/exportTo: "."}}
spec: {selector: {app: o}, ports: [{name: http, port: 80, targetPort: 8000}]}
---
apiVersion: v1
kind: Service
metadata: {name: same, namespace: other}
spec: {selector: {app: o}, ports: [{name: http, port: 80, targetPort: 8000}]}
` + service("same", "app: b", "{name: http, port: 80, targetPort: 8000}") +
		// The short name belongs to the namespace of the rule.
		object("VirtualService", "other", "same", `
		hosts: [same]
		http: [{route: [{destination: {host: same}}], headers: {response: {set: {x-rule: other}}}}]`) +
		// A rule for a service of another namespace, kept to its own namespace.
		object("VirtualService", "other", "kept", `
		hosts: [plain.default.svc.cluster.local]
		exportTo: ["."]
		http: [{directResponse: {status: 420}}]`) +
		object("VirtualService", "default", "scoped", `
		hosts: [scoped.example]
		exportTo: [other]
		http: [{directResponse: {status: 421}}]`) +
		object("VirtualService", "default", "wild", `
		hosts: ["*.wild.example"]
		http: [{directResponse: {status: 222}}]`) +
		object("VirtualService", "default", "lesswild", `
		hosts: ["*.b.wild.example", exact.wild.example]
		http: [{directResponse: {status: 223}}]`) +
		object("ServiceEntry", "default", "wild", `
		hosts: ["*.wild.example"]
		ports: [{number: 80, name: http, protocol: HTTP}]
		resolution: NONE`) +
		object("Sidecar", "limited", "default", `
		egress: [{hosts: ["./*", "default/rr.default.svc.cluster.local", "*/scoped.example"]}]
		outboundTrafficPolicy: {mode: REGISTRY_ONLY}`) +
		object("PeerAuthentication", "default", "strict", `
		selector: {matchLabels: {app: strict}}
		mtls: {mode: STRICT}`) +
		service("tlsdisable", "app: strict", "{name: http, port: 80, targetPort: 8000}") +
		object("DestinationRule", "default", "tlsdisable", "host: tlsdisable\ntrafficPolicy: {tls: {mode: DISABLE}}") +
		service("tlsmutual", "app: strict", "{name: http, port: 80, targetPort: 8000}") +
		object("DestinationRule", "default", "tlsmutual", "host: tlsmutual\ntrafficPolicy: {tls: {mode: ISTIO_MUTUAL}}") +
		service("tlsport", "app: strict", "{name: http, port: 80, targetPort: 8000}, {name: http-alt, port: 8080, targetPort: 8000}") +
		object("DestinationRule", "default", "tlsport", "host: tlsport\ntrafficPolicy: {portLevelSettings: [{port: {number: 80}, tls: {mode: DISABLE}}]}") +
		service("tlsplain", "app: b", "{name: http, port: 80, targetPort: 8000}") +
		object("DestinationRule", "default", "tlsplain", "host: tlsplain\ntrafficPolicy: {tls: {mode: DISABLE}}")
}

// TestIstioTrafficPolicy goes through DestinationRule, visibility and Sidecar.
func TestIstioTrafficPolicy(t *testing.T) {
	t.Parallel()
	apps := map[string]*app{}
	var workloads strings.Builder
	for _, v := range []string{"v1", "v2", "v3"} {
		apps[v] = newApp(t, v)
		workloads.WriteString(play("default", "b-"+v, map[string]string{"app": "b", "version": v}, apps[v].port))
	}
	o, s := newApp(t, "o"), newApp(t, "s")
	workloads.WriteString(play("default", "client", map[string]string{"app": "client"}, o.port) + play("other", "o", map[string]string{"app": "o"}, o.port) +
		play("default", "strict", map[string]string{"app": "strict"}, s.port) + play("limited", "l", map[string]string{"app": "l"}, o.port))
	m := up(t, writeFiles(t, map[string]string{"workloads.yaml": workloads.String(), "policies.yaml": policyObjects(), "namespaces.yaml": namespaceObjects()}))
	if out, _ := m.writ("status", m.dir); strings.Contains(out, "error:") {
		t.Errorf("status: %s", out)
	}
	c := client(m.proxyOf("client-1"))
	t.Cleanup(c.CloseIdleConnections)
	get := func(target string, headers ...string) answer { return do(c, request{url: target, headers: headers}) }
	each := func(n int, target func(i int) string, headers func(i int) []string) map[string]int {
		return spread(n, func(i int) answer {
			var h []string
			if headers != nil {
				h = headers(i)
			}
			return get(target(i), h...)
		})
	}
	fixed := func(u string) func(int) string { return func(int) string { return u } }

	t.Run("load balancing", func(t *testing.T) {
		for host, slack := range map[string]int{"rr": 8, "random": 45, "plain": 60} {
			count := each(300, fixed("http://"+host+"/"), nil)
			for _, v := range []string{"v1", "v2", "v3"} {
				if n := count[v]; n < 100-slack || n > 100+slack {
					t.Errorf("%s: %v", host, count)
					break
				}
			}
		}
	})
	t.Run("weights in proportion", func(t *testing.T) {
		count := each(400, fixed("http://weights/"), nil)
		if n := count["v1"]; n < 65 || n > 135 || count["v1"]+count["v2"] != 400 {
			t.Errorf("%v", count)
		}
	})
	sticky := func(t *testing.T, name string, send func(user int) answer) {
		t.Helper()
		used := map[string]bool{}
		for user := range 24 {
			first := send(user).outcome()
			used[first] = true
			for range 4 {
				if again := send(user).outcome(); again != first {
					t.Errorf("%s: user %d went to %s and %s", name, user, first, again)
				}
			}
		}
		if len(used) < 2 || used["503"] {
			t.Errorf("%s: users went to %v", name, used)
		}
	}
	t.Run("consistent hash", func(t *testing.T) {
		for _, host := range []string{"hashheader", "maglev", "portlevel:8080"} {
			sticky(t, host, func(user int) answer { return get("http://"+host+"/", fmt.Sprintf("x-user: user-%d", user)) })
		}
		sticky(t, "hashquery", func(user int) answer { return get(fmt.Sprintf("http://hashquery/?user=u%d", user)) })
		sticky(t, "hashcookie", func(user int) answer { return get("http://hashcookie/", fmt.Sprintf("cookie: user=u%d", user)) })
		first := get("http://hashcookie/")
		set := first.header.Get("set-cookie")
		if !strings.HasPrefix(set, "user=") || !strings.Contains(set, "Max-Age=60") {
			t.Errorf("set-cookie: %q", set)
		}
		cookie, _, _ := strings.Cut(set, ";")
		for range 6 {
			if again := get("http://hashcookie/", "cookie: "+cookie).outcome(); again != first.outcome() {
				t.Errorf("the cookie leads to %s and %s", first.outcome(), again)
			}
		}
		if count := each(30, fixed("http://haship/"), nil); len(count) != 1 {
			t.Errorf("one source address: %v", count)
		}
		if count := each(60, fixed("http://portlevel/"), func(int) []string { return []string{"x-user: one"} }); len(count) != 3 {
			t.Errorf("port 80 has no hash: %v", count)
		}
	})
	t.Run("circuit breaking", func(t *testing.T) {
		// Until the only connection to "pending" is there one request waits for it and the
		// others are over.
		for host, least := range map[string]int{"pending": 1, "maxrequests": 2} {
			count := each(24, fixed("http://"+host+"/"), func(int) []string { return []string{"x-do: sleep=100ms"} })
			if count["503"] < 4 || 24-count["503"] < least {
				t.Errorf("%s: %v", host, count)
			}
			if got := get("http://" + host + "/"); got.status != 200 {
				t.Errorf("%s: one request alone: %s", host, got)
			}
		}
		if log := m.accessLog("client-1"); !strings.Contains(log, "UO") {
			t.Error("the access log has no flag UO")
		}
	})
	t.Run("outlier detection", func(t *testing.T) {
		for host, status := range map[string]int{"outlier": 500, "gatewayerrors": 503} {
			bad := func(int) []string { return []string{fmt.Sprintf("x-do: status@v3=%d", status)} }
			deadline := time.Now().Add(20 * time.Second)
			for each(12, fixed("http://"+host+"/"), bad)[fmt.Sprint(status)] > 0 && time.Now().Before(deadline) {
			}
			if count := each(60, fixed("http://"+host+"/"), bad); count["v1"]+count["v2"] != 60 {
				t.Errorf("%s: after the ejection: %v", host, count)
			}
		}
		// What is no gateway error does not eject.
		for range 10 {
			get("http://plain/", "x-do: status@v1=500")
		}
	})
	t.Run("no cascade", func(t *testing.T) { m.noCascade(t, apps) })
	t.Run("mirror", func(t *testing.T) {
		send := func(path string, n int) {
			for i := range n {
				if got := get("http://mirror"+path, fmt.Sprintf("x-id: mirror%s-%d", path, i)); got.outcome() != "v1" {
					t.Errorf("%s: %s", path, got)
				}
			}
		}
		copies := func(a *app, path string, n int) int {
			sum := 0
			for i := range n {
				sum += len(a.requestsWith(fmt.Sprintf("mirror%s-%d", path, i)))
			}
			return sum
		}
		for _, path := range []string{"/all", "/two", "/none"} {
			send(path, 5)
		}
		send("/half", 100)
		proctest.Eventually(t, 20*time.Second, func() error {
			if a, b, c := copies(apps["v2"], "/all", 5), copies(apps["v2"], "/two", 5), copies(apps["v3"], "/two", 5); a != 5 || b != 5 || c != 5 {
				return fmt.Errorf("copies: %d %d %d, want 5 each", a, b, c)
			}
			return nil
		})
		if n := copies(apps["v2"], "/none", 5); n != 0 {
			t.Errorf("%d copies with 0 percent", n)
		}
		if n := copies(apps["v2"], "/half", 100); n < 25 || n > 75 {
			t.Errorf("%d copies of 100 with 50 percent", n)
		}
		if got := apps["v2"].requestsWith("mirror/all-0"); len(got) != 1 || got[0].Host != "mirror-shadow" {
			t.Errorf("the copy: %v", got)
		}
	})
	for _, c := range []struct {
		name, from, target, want string
		check                    func(*testing.T, answer)
	}{
		{name: "a service without endpoints", target: "http://empty/", want: "503"},
		{name: "a subset without endpoints", target: "http://emptysubset/", want: "503"},
		{name: "merged rules, first subset", target: "http://merged/1", want: "v1"},
		{name: "merged rules, second subset", target: "http://merged/2", want: "v2"},
		{name: "the older of two", target: "http://twice/a", want: "419"},
		{name: "the younger of two is void", target: "http://twice/b", want: "404"},
		{name: "short name of the own namespace", target: "http://same/", check: header("x-rule", "")},
		{name: "short name of another namespace", from: "o-1", target: "http://same/", want: "o", check: header("x-rule", "other")},
		{name: "a rule goes with the service", target: "http://same.other/", want: "o", check: header("x-rule", "other")},
		{name: "a service that is not exported", target: "http://private.other/", want: "503"},
		{name: "a service that is not exported, at home", from: "o-1", target: "http://private/", want: "o"},
		{name: "a rule kept to its namespace, there", from: "o-1", target: "http://plain.default/", want: "420"},
		{name: "a rule kept to its namespace, elsewhere", target: "http://plain/", check: func(t *testing.T, a answer) {
			if a.status != 200 {
				t.Error(a)
			}
		}},
		{name: "a rule exported to one namespace, there", from: "o-1", target: "http://scoped.example/", want: "421"},
		{name: "a rule exported to one namespace, elsewhere", target: "http://scoped.example/", want: "503"},
		{name: "a wildcard", target: "http://a.wild.example/", want: "222"},
		{name: "a longer wildcard", target: "http://a.b.wild.example/", want: "223"},
		{name: "no wildcard before a name", target: "http://exact.wild.example/", want: "223"},
		{name: "Sidecar: an imported service", from: "l-1", target: "http://rr.default/", check: func(t *testing.T, a answer) {
			if a.status != 200 {
				t.Error(a)
			}
		}},
		{name: "Sidecar: the own namespace", from: "l-1", target: "http://l:8000/", want: "o"},
		{name: "Sidecar: a service that is not imported", from: "l-1", target: "http://plain.default/", want: "502"},
		{name: "Sidecar: an unknown host", from: "l-1", target: "http://nowhere.example/", want: "502"},
		{name: "TLS DISABLE to a STRICT server", target: "http://tlsdisable/", want: "503"},
		{name: "TLS ISTIO_MUTUAL to a STRICT server", target: "http://tlsmutual/", want: "s"},
		{name: "TLS DISABLE for one port", target: "http://tlsport/", want: "503"},
		{name: "TLS DISABLE for another port", target: "http://tlsport:8080/", want: "s"},
		{name: "TLS DISABLE to a PERMISSIVE server", target: "http://tlsplain/", check: sawHeader("x-forwarded-client-cert", "")},
	} {
		t.Run(c.name, func(t *testing.T) {
			from := c.from
			if from == "" {
				from = "client-1"
			}
			got := m.get(from, c.target)
			if c.want != "" && got.outcome() != c.want {
				t.Errorf("%s, want %s", got, c.want)
				return
			}
			if c.check != nil {
				c.check(t, got)
			}
		})
	}
}

// noCascade has a service that hangs and then fails: whoever is over its limit hears so at
// once, others are served meanwhile, and retries do not multiply what it gets.
func (m *mesh) noCascade(t *testing.T, apps map[string]*app) {
	t.Helper()
	c := client(m.proxyOf("client-1"))
	defer c.CloseIdleConnections()
	send := func(headers ...string) answer { return do(c, request{url: "http://cascade/", headers: headers}) }
	var hanging sync.WaitGroup
	var answered, refused atomic.Int32
	for range 40 {
		hanging.Go(func() {
			switch got := send("x-do: sleep=4s"); got.status {
			case http.StatusOK:
				answered.Add(1)
			case http.StatusServiceUnavailable:
				refused.Add(1)
			default:
				t.Errorf("%s", got)
			}
		})
	}
	proctest.Eventually(t, 10*time.Second, func() error {
		if n := refused.Load(); n < 16 {
			return fmt.Errorf("%d of 40 requests were refused", n)
		}
		return nil
	})
	if got := spread(60, func(int) answer { return do(c, request{url: "http://plain/"}) }); got["v1"]+got["v2"]+got["v3"] != 60 {
		t.Errorf("another service meanwhile: %v", got)
	}
	if n := answered.Load(); n > 0 {
		t.Errorf("%d requests that hang were answered before those of another service", n)
	}
	hanging.Wait()
	if n := answered.Load(); n < 16 {
		t.Errorf("%d requests were served, want the 16 that it may have at once", n)
	}
	overflow := m.stat("client-1", "cluster.outbound|80||cascade.default.svc.cluster.local.upstream_rq_retry_overflow")
	for range 12 {
		hanging.Go(func() { send("x-do: sleep=200ms status=503", "x-id: cascade") })
	}
	hanging.Wait()
	attempts := 0
	for _, a := range apps {
		attempts += len(a.requestsWith("cascade"))
	}
	if attempts < 12 || attempts > 36 {
		t.Errorf("12 requests came as %d, and 48 would without a limit of retries", attempts)
	}
	if n := m.stat("client-1", "cluster.outbound|80||cascade.default.svc.cluster.local.upstream_rq_retry_overflow"); n <= overflow {
		t.Error("no retry was refused for want of room")
	}
}

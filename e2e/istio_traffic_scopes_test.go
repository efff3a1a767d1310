package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/proctest"
)

func serviceIn(namespace, name, selector, ports string) string {
	return strings.Replace(service(name, selector, ports), "namespace: default", "namespace: "+namespace, 1)
}

func destinationRule(namespace, name, spec string) string {
	return object("DestinationRule", namespace, name, spec)
}

// scopeObjects are rules for the services p1.. of namespace nsb, some with plain
// text and some with mutual TLS: which one holds is seen by the callee.
func scopeObjects() string {
	const plain, mutual = "trafficPolicy: {tls: {mode: DISABLE}}", "trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}"
	var b strings.Builder
	for i := range 9 {
		b.WriteString(serviceIn("nsb", fmt.Sprintf("p%d", i), "app: b", "{name: http, port: 80, targetPort: http-web}, {name: http-alt, port: 8080, targetPort: 8000}"))
	}
	host := func(i int) string { return fmt.Sprintf("host: p%d.nsb.svc.cluster.local\n", i) }
	b.WriteString(destinationRule("nsb", "p1", "host: p1\n"+plain) +
		destinationRule("nsb", "p2", "host: p2\n"+plain) + destinationRule("default", "p2", host(2)+mutual) +
		destinationRule("nsb", "p3", "host: p3\nexportTo: [\".\"]\n"+plain) +
		destinationRule("istio-system", "p4", host(4)+plain) +
		destinationRule("default", "p5", host(5)+"workloadSelector: {matchLabels: {tier: web}}\n"+plain) +
		destinationRule("other", "wild", "host: \"*.nsb.svc.cluster.local\"\n"+plain) + destinationRule("other", "p2", host(2)+mutual) +
		object("VirtualService", "nsb", "p7", "hosts: [p7]\nhttp: [{directResponse: {status: 218}}]") +
		object("VirtualService", "other", "p7", "hosts: [p7.nsb.svc.cluster.local]\nexportTo: [\".\"]\nhttp: [{directResponse: {status: 219}}]") +
		object("Sidecar", "other", "picky", `
		workloadSelector: {labels: {app: picky}}
		outboundTrafficPolicy: {mode: REGISTRY_ONLY}
		egress:
		- {port: {number: 80, name: http, protocol: HTTP}, hosts: ["nsb/p0.nsb.svc.cluster.local"]}
		- {hosts: ["./*"]}`))
	return b.String()
}

// TestIstioScopes asks who sees what: rules of several namespaces for one
// service, selectors of clients, and Sidecars.
func TestIstioScopes(t *testing.T) {
	t.Parallel()
	b := newApp(t, "b")
	m := up(t, writeFiles(t, map[string]string{
		"workloads.yaml": play("nsb", "b", map[string]string{"app": "b"}, b.port, "http-web 8000") + play("nsb", "near", map[string]string{"app": "near"}, b.port) +
			play("default", "web", map[string]string{"app": "c", "tier": "web"}, b.port) + play("default", "batch", map[string]string{"app": "c"}, b.port) +
			play("other", "any", map[string]string{"app": "any"}, b.port) + play("other", "picky", map[string]string{"app": "picky"}, b.port),
		"mesh.yaml": "defaultHttpRetryPolicy: {attempts: 3, retryOn: \"503\"}\n",
		"rules.yaml": scopeObjects() + object("VirtualService", "nsb", "p6", "hosts: [p6]\nhttp: [{retries: {attempts: 0}, route: [{destination: {host: p6, port: {number: 80}}}]}]") +
			object("VirtualService", "nsb", "p8", "hosts: [p8]\nhttp: [{headers: {response: {set: {x-rule: p8}}}, route: [{destination: {host: p8, port: {number: 80}}}]}]") +
			serviceEntry("blackhole", `
			hosts: [blackhole.example.com]
			ports: [{number: 80, name: http, protocol: HTTP}]
			resolution: STATIC
			endpoints: [{address: 192.0.2.1}]`) +
			destinationRule("default", "blackhole", "host: blackhole.example.com\ntrafficPolicy: {connectionPool: {tcp: {connectTimeout: 0.3s}}}"),
	}))
	if out, _ := m.writ("status", m.dir); strings.Contains(out, "error:") {
		t.Errorf("status: %s", out)
	}
	for _, c := range []struct{ name, from, target, want string }{
		{"no rule", "web-1", "p0", "mutual"},
		{"a rule of the service's namespace", "web-1", "p1", "plain"},
		{"a rule of the client's namespace comes first", "web-1", "p2", "mutual"},
		{"but not for clients elsewhere", "near-1", "p2", "plain"},
		{"a rule that is not exported", "web-1", "p3", "mutual"},
		{"a rule that is not exported, at home", "near-1", "p3", "plain"},
		{"a rule of the root namespace", "web-1", "p4", "plain"},
		{"a rule that selects this client", "web-1", "p5", "plain"},
		{"a rule that selects another client", "batch-1", "p5", "mutual"},
		{"a wildcard", "any-1", "p0", "plain"},
		{"a name before a wildcard", "any-1", "p2", "mutual"},
		{"a port by number", "web-1", "p0:8080", "mutual"},
		{"a private rule before a public one", "any-1", "p7", "219"},
		{"the public one for others", "web-1", "p7", "218"},
		{"a Sidecar that selects the client imports a port", "picky-1", "p0", "plain"},
		{"and not the other port", "picky-1", "p0:8080", "502"},
		{"and not another service", "picky-1", "p1", "502"},
	} {
		t.Run(c.name, func(t *testing.T) {
			host, port, _ := strings.Cut(c.target, ":")
			got := m.get(c.from, strings.TrimSuffix("http://"+host+".nsb:"+port, ":")+"/")
			result := got.outcome()
			if result == "b" {
				result = "plain"
				if got.saw(t).Headers.Get("x-forwarded-client-cert") != "" {
					result = "mutual"
				}
			}
			if result != c.want {
				t.Errorf("%s: %s, want %s", got, result, c.want)
			}
		})
	}
	t.Run("defaults of the mesh", func(t *testing.T) { checkDefaults(t, m) })
}

// checkDefaults looks at retries of the whole mesh and at connections that never
// come about.
func checkDefaults(t *testing.T, m *mesh) {
	t.Helper()
	if got := m.get("web-1", "http://p0.nsb/", "x-do: fail=3", "x-id: mesh-wide"); got.outcome() != "b" {
		t.Errorf("the mesh's default retries: %s", got)
	}
	if got := m.get("web-1", "http://p8.nsb/", "x-do: fail=3", "x-id: silent"); got.outcome() != "b" || got.header.Get("x-rule") != "p8" {
		t.Errorf("a rule that says nothing of retries: %s %v", got, got.header)
	}
	if got := m.get("web-1", "http://p0.nsb/", "x-do: fail=4", "x-id: once-more"); got.outcome() != "503" {
		t.Errorf("more failures than the mesh's default has attempts: %s", got)
	}
	if got := m.get("web-1", "http://p6.nsb/", "x-do: fail=1", "x-id: overridden"); got.outcome() != "503" {
		t.Errorf("a rule without retries: %s", got)
	}
	began := time.Now()
	if got := m.get("web-1", "http://blackhole.example.com/"); got.status != 503 || time.Since(began) > 5*time.Second {
		t.Errorf("an address where nobody answers: %s after %s", got, time.Since(began))
	}
}

// TestIstioLocality has programs in three places.
func TestIstioLocality(t *testing.T) {
	t.Parallel()
	apps := map[string]*app{}
	var workloads strings.Builder
	at := func(name, appLabel, version, region, zone string, port int) {
		workloads.WriteString(play("default", name, map[string]string{
			"app": appLabel, "version": version, "topology.kubernetes.io/region": region, "topology.kubernetes.io/zone": zone,
		}, port))
	}
	for v, place := range map[string]string{"v1": "us/a", "v2": "us/b", "v3": "eu/a"} {
		apps[v] = newApp(t, v)
		region, zone, _ := strings.Cut(place, "/")
		at("b-"+v, "b", v, region, zone, apps[v].port)
	}
	at("client", "client", "v1", "us", "a", apps["v1"].port)
	ports := "{name: http, port: 80, targetPort: 8000}"
	outlier := "outlierDetection: {consecutive5xxErrors: 1, interval: 0.5s, baseEjectionTime: 180s, maxEjectionPercent: 100}"
	m := up(t, writeFiles(t, map[string]string{
		"workloads.yaml": workloads.String(),
		"rules.yaml": service("near", "app: b", ports) + destinationRule("default", "near", "host: near\ntrafficPolicy: {"+outlier+"}") +
			service("spread", "app: b", ports) + destinationRule("default", "spread", `host: spread
trafficPolicy: {`+outlier+`, loadBalancer: {localityLbSetting: {enabled: true, distribute: [{from: us/a/*, to: {"us/a/*": 70, "us/b/*": 30}}]}}}`) +
			service("off", "app: b", ports) + destinationRule("default", "off", "host: off\ntrafficPolicy: {"+outlier+", loadBalancer: {localityLbSetting: {enabled: false}}}") +
			service("unruled", "app: b", ports) +
			service("back", "app: b", ports) + destinationRule("default", "back", "host: back\ntrafficPolicy: {"+strings.Replace(outlier, "180s", "1s", 1)+"}") +
			service("nobody", "app: b", ports) + destinationRule("default", "nobody", "host: nobody\ntrafficPolicy: {"+outlier+"}"),
	}))
	send := func(host string, headers ...string) map[string]int {
		return spread(100, func(int) answer { return m.get("client-1", "http://"+host+"/", headers...) })
	}
	if got := send("near"); got["v1"] != 100 {
		t.Errorf("the own zone first: %v", got)
	}
	if got := send("spread"); got["v1"] < 50 || got["v2"] < 12 || got["v3"] != 0 {
		t.Errorf("70 to 30: %v", got)
	}
	for _, host := range []string{"off", "unruled"} {
		if got := send(host); got["v1"] == 0 || got["v2"] == 0 || got["v3"] == 0 {
			t.Errorf("%s: %v", host, got)
		}
	}
	for _, step := range []struct{ broken, next string }{{"status@v1=503", "v2"}, {"status@v1=503 status@v2=503", "v3"}} {
		proctest.Eventually(t, 10*time.Second, func() error {
			if got := spread(8, func(int) answer { return m.get("client-1", "http://near/", "x-do: "+step.broken) }); got[step.next] != 8 {
				return fmt.Errorf("with %s: %v, want %s", step.broken, got, step.next)
			}
			return nil
		})
	}
	// Whoever is back is preferred again. Where all are broken nobody is asked any more: as
	// in Istio, Envoy does not panic.
	for _, step := range []struct{ host, broken, want, body string }{
		{"back", "status@v1=503", "v2", ""},
		{"back", "status=200", "v1", ""},
		{"nobody", "status=503", "503", "no healthy upstream"},
	} {
		proctest.Eventually(t, 20*time.Second, func() error {
			for range 8 {
				if got := m.get("client-1", "http://"+step.host+"/", "x-do: "+step.broken); got.outcome() != step.want || !strings.Contains(got.body, step.body) {
					return fmt.Errorf("%s with %s: %s, want %s %s", step.host, step.broken, got, step.want, step.body)
				}
			}
			return nil
		})
	}
}

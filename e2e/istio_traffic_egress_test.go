package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/proctest"
)

// egressMesh has programs outside of the mesh: ext (plain) and sec (TLS), both
// of which the test plays on 127.0.0.1.
type egressMesh struct {
	*mesh
	ext, sec, mut    *app
	secPort, mutPort int
	ca               *publicCA
	egress           int
	asked            atomic.Pointer[string] // what the proxy outside was asked for at last
}

func serviceEntry(name, spec string) string { return object("ServiceEntry", "default", name, spec) }

// externalName writes a Service that is another name of a host.
func externalName(name, host, more string) string {
	return fmt.Sprintf("---\napiVersion: v1\nkind: Service\nmetadata: {name: %s, namespace: default}\nspec: {type: ExternalName, externalName: %s%s}\n", name, host, more)
}

// endpointSlice writes what is behind the Service sliced: one address.
func endpointSlice(address string, port int) string {
	return fmt.Sprintf("apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: sliced-1, labels: {kubernetes.io/service-name: sliced}}\naddressType: IPv4\nports: [{name: http, port: %d}]\nendpoints: [{addresses: [%s]}]\n", port, address)
}

func newEgressMesh(t *testing.T, mode string) *egressMesh {
	t.Helper()
	e := &egressMesh{ext: newApp(t, "ext"), sec: newApp(t, "sec"), mut: newApp(t, "mut"), ca: newPublicCA(t, "public"), egress: proctest.Port(t)}
	server := e.ca.issue("sec.example.com", "sec.example.com", "localhost")
	e.secPort = tlsApp(t, e.sec, &tls.Config{Certificates: []tls.Certificate{server.tls}})
	pool := x509.NewCertPool()
	pool.AddCert(e.ca.cert)
	e.mutPort = tlsApp(t, e.mut, &tls.Config{Certificates: []tls.Certificate{e.ca.issue("mut", "mut.example.com").tls}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool})
	client := e.ca.issue("client", "client.example.com")
	in := newApp(t, "in")
	dr := func(name, host, policy string) string {
		return object("DestinationRule", "default", name, "host: "+host+"\ntrafficPolicy: "+policy)
	}
	entry := func(name, host, port string, app int) string {
		return serviceEntry(name, fmt.Sprintf(`
			hosts: [%s]
			ports: [%s]
			location: MESH_EXTERNAL
			resolution: STATIC
			endpoints: [{address: 127.0.0.1, ports: {p: %d}}]`, host, port, app))
	}
	http80, https443 := "{number: 80, name: p, protocol: HTTP}", "{number: 443, name: p, protocol: TLS}"
	e.mesh = up(t, writeFiles(t, map[string]string{
		"mesh.yaml":      "outboundTrafficPolicy: {mode: " + mode + "}\n",
		"workloads.yaml": play("default", "client", map[string]string{"app": "client"}, in.port) + play("default", "in", map[string]string{"app": "in"}, in.port),
		"ca.pem":         string(e.ca.pem), "client.pem": string(client.cert), "client.key": string(client.key),
		"secret.yaml": secret("default", "client-credential", "Opaque", map[string][]byte{"tls.crt": client.cert, "tls.key": client.key, "ca.crt": e.ca.pem}) +
			secret("default", "client-only", "Opaque", map[string][]byte{"cert": client.cert, "key": client.key}) + secret("default", "client-only-cacert", "Opaque", map[string][]byte{"cacert": e.ca.pem}) +
			secret("default", "revoked", "Opaque", map[string][]byte{"cacert": e.ca.pem, "crl": e.ca.revoke(server)}),
		"slice.yaml": endpointSlice("127.0.0.1", e.ext.port),
		"egress.yaml": "apiVersion: v1\nkind: Service\nmetadata: {name: sliced}\nspec: {ports: [{name: http, port: 80}]}\n---\n" + entry("static", "static.example.com", http80, e.ext.port) +
			serviceEntry("dns", fmt.Sprintf(`
			hosts: [dns.example.com]
			ports: [{number: 80, name: p, protocol: HTTP}]
			resolution: DNS
			endpoints: [{address: localhost, ports: {p: %d}}]`, e.ext.port)) +
			serviceEntry("target", fmt.Sprintf(`
			hosts: [target.example.com]
			ports: [{number: 80, name: p, protocol: HTTP, targetPort: %d}]
			resolution: STATIC
			endpoints: [{address: 127.0.0.1}]`, e.ext.port)) +
			serviceEntry("ip", fmt.Sprintf(`
			hosts: [localhost]
			ports: [{number: %d, name: p, protocol: HTTP}]
			resolution: DNS`, e.ext.port)) +
			serviceEntry("none", fmt.Sprintf(`
			hosts: ["*.localhost"]
			ports: [{number: %d, name: p, protocol: HTTP}]
			resolution: NONE`, e.ext.port)) +
			entry("timeout", "timeout.example.com", http80, e.ext.port) +
			object("VirtualService", "default", "timeout", `
			hosts: [timeout.example.com]
			http: [{timeout: 0.3s, route: [{destination: {host: timeout.example.com}}]}]`) +
			entry("tls", "sec.example.com", https443, e.secPort) +
			object("VirtualService", "default", "tls", `
			hosts: [sec.example.com]
			tls: [{match: [{port: 443, sniHosts: [sec.example.com]}], route: [{destination: {host: sec.example.com, port: {number: 443}}}]}]`) +
			// TLS origination as in the task: port 80 goes to 443, where a rule adds TLS.
			serviceEntry("origin", fmt.Sprintf(`
			hosts: [origin.example.com]
			ports: [{number: 80, name: http, protocol: HTTP, targetPort: %[1]d}, {number: 443, name: p, protocol: HTTPS, targetPort: %[1]d}]
			resolution: STATIC
			endpoints: [{address: 127.0.0.1}]`, e.secPort)) +
			dr("origin", "origin.example.com", `{portLevelSettings: [{port: {number: 80}, tls: {mode: SIMPLE, sni: sec.example.com, caCertificates: ca.pem, subjectAltNames: [sec.example.com]}}]}`) +
			entry("hostsni", "sec2.example.com", http80, e.secPort) + dr("hostsni", "sec2.example.com", "{tls: {mode: SIMPLE, caCertificates: ca.pem}}") +
			entry("wrongsan", "wrongsan.example.com", http80, e.secPort) + dr("wrongsan", "wrongsan.example.com", "{tls: {mode: SIMPLE, caCertificates: ca.pem, subjectAltNames: [other.example.com]}}") +
			entry("noca", "noca.example.com", http80, e.secPort) + dr("noca", "noca.example.com", "{tls: {mode: SIMPLE, sni: sec.example.com}}") +
			entry("skip", "skip.example.com", http80, e.secPort) + dr("skip", "skip.example.com", "{tls: {mode: SIMPLE, insecureSkipVerify: true}}") +
			entry("mutual", "mut.example.com", http80, e.mutPort) + dr("mutual", "mut.example.com", "{tls: {mode: MUTUAL, caCertificates: ca.pem, clientCertificate: client.pem, privateKey: client.key}}") +
			entry("mutualcred", "mutcred.example.com", http80, e.mutPort) + dr("mutualcred", "mutcred.example.com", "{tls: {mode: MUTUAL, credentialName: client-credential, sni: mut.example.com, subjectAltNames: [mut.example.com]}}") +
			entry("mutualbeside", "mutbeside.example.com", http80, e.mutPort) + dr("mutualbeside", "mutbeside.example.com", "{tls: {mode: MUTUAL, credentialName: client-only, sni: mut.example.com, subjectAltNames: [mut.example.com]}}") +
			entry("revoked", "revoked.example.com", http80, e.secPort) + dr("revoked", "revoked.example.com", "{tls: {mode: SIMPLE, credentialName: revoked, sni: sec.example.com, subjectAltNames: [sec.example.com]}}") +
			entry("nomutual", "nomut.example.com", http80, e.mutPort) + dr("nomutual", "nomut.example.com", "{tls: {mode: SIMPLE, caCertificates: ca.pem, sni: mut.example.com, subjectAltNames: [mut.example.com]}}") +
			entry("tcp", "tcp.example.com", "{number: 9000, name: p, protocol: TCP}", tcpApp(t, "outside")) +
			object("WorkloadEntry", "default", "vm", fmt.Sprintf("{address: 127.0.0.1, labels: {app: vm}, ports: {p: %d}}", e.ext.port)) +
			serviceEntry("vm", `
			hosts: [vm.example.com]
			ports: [{number: 80, name: p, protocol: HTTP}]
			location: MESH_INTERNAL
			resolution: STATIC
			workloadSelector: {labels: {app: vm}}`) +
			externalName("out", "localhost", fmt.Sprintf(", ports: [{name: http, port: %d}]", e.ext.port)) +
			externalName("alias", "in.default.svc.cluster.local", "") + externalName("second", "alias.default.svc.cluster.local", "") +
			object("VirtualService", "default", "in", `
			hosts: [in]
			http: [{headers: {request: {set: {x-rule: in}}}, route: [{destination: {host: second, port: {number: 8000}}}]}]`) +
			e.egressGateway(entry, http80) + dr("mutgw", "mutgw.example.com", "{tls: {mode: MUTUAL, credentialName: gateway-credential, sni: mut.example.com, subjectAltNames: [mut.example.com]}}") +
			secret("istio-system", "gateway-credential", "Opaque", map[string][]byte{"tls.crt": client.cert, "tls.key": client.key, "ca.crt": e.ca.pem}) +
			serviceEntry("range", fmt.Sprintf(`
			hosts: [range.example.com]
			addresses: [127.93.0.0/16]
			ports: [{number: 80, name: p, protocol: HTTP}]
			resolution: STATIC
			endpoints: [{address: 127.0.0.1, ports: {p: %d}}]`, e.ext.port)) +
			// A tunnel through a proxy outside, which is asked for another name.
			entry("proxy", "proxy.example.com", "{number: 3128, name: p, protocol: TCP}", e.forwardProxy(t)) +
			dr("proxy", "proxy.example.com", "{tunnel: {targetHost: target.example.com, targetPort: 8443}}") +
			entry("far", "far.example.com", https443, 1) +
			object("VirtualService", "default", "far", `
			hosts: [far.example.com]
			tls: [{match: [{sniHosts: [far.example.com]}], route: [{destination: {host: proxy.example.com, port: {number: 3128}}}]}]`),
	}))
	if out, _ := e.writ("status", e.dir); strings.Contains(out, "error:") {
		t.Errorf("status: %s", out)
	}
	return e
}

// egressGateway is the task's: requests go through a gateway on their way out.
func (e *egressMesh) egressGateway(entry func(name, host, port string, app int) string, port string) string {
	return entry("cnn", "edition.cnn.com", port, e.ext.port) +
		object("Gateway", "istio-system", "istio-egressgateway", fmt.Sprintf(`{selector: {istio: egressgateway}, servers: [{port: {number: %d, name: http, protocol: HTTP}, hosts: [edition.cnn.com, mutgw.example.com]}]}`, e.egress)) +
		entry("mutgw", "mutgw.example.com", port, e.mutPort) +
		object("VirtualService", "default", "mutgw", fmt.Sprintf(`
		hosts: [mutgw.example.com]
		gateways: [istio-system/istio-egressgateway, mesh]
		http:
		- match: [{gateways: [mesh]}]
		  route: [{destination: {host: istio-egressgateway.istio-system.svc.cluster.local, port: {number: %d}}}]
		- match: [{gateways: [istio-system/istio-egressgateway]}]
		  route: [{destination: {host: mutgw.example.com, port: {number: 80}}}]`, e.egress)) +
		object("DestinationRule", "default", "egressgateway-for-cnn", "host: istio-egressgateway.istio-system.svc.cluster.local\nsubsets: [{name: cnn}]") +
		object("VirtualService", "default", "direct-cnn-through-egress-gateway", fmt.Sprintf(`
		hosts: [edition.cnn.com]
		gateways: [istio-system/istio-egressgateway, mesh]
		http:
		- match: [{gateways: [mesh], port: 80}]
		  route: [{destination: {host: istio-egressgateway.istio-system.svc.cluster.local, subset: cnn, port: {number: %[1]d}}, weight: 100}]
		- match: [{gateways: [istio-system/istio-egressgateway], port: %[1]d}]
		  headers: {request: {set: {x-egress: gateway}}}
		  route: [{destination: {host: edition.cnn.com, port: {number: 80}}, weight: 100}]`, e.egress))
}

// forwardProxy is an HTTP proxy outside of the mesh, all of whose tunnels lead to sec.
func (e *egressMesh) forwardProxy(t *testing.T) int {
	t.Helper()
	proxy := newEcho(t, "proxy")
	proxy.answerWith(func(w http.ResponseWriter, r *http.Request) {
		what := r.Method + " " + r.Host
		e.asked.Store(&what)
		to, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", e.secPort))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer to.Close()
		c, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		defer c.Close()
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
		go func() { _, _ = io.Copy(to, buffered) }()
		_, _ = io.Copy(c, to)
	})
	return proxy.port
}

// overTLS sends a request over TLS through a tunnel.
func (e *egressMesh) overTLS(target, name string) answer {
	c, code, err := tunnel(e.proxyOf("client-1"), target)
	if err != nil {
		return answer{err: err}
	}
	if c == nil {
		return answer{status: code}
	}
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: e.ca.pool(), ServerName: name}, DialContext: func(context.Context, string, string) (net.Conn, error) { return c, nil }}
	defer tr.CloseIdleConnections()
	return do(&http.Client{Transport: tr, Timeout: 5 * time.Second}, request{url: "https://" + name + "/"})
}

func (e *egressMesh) registered(t *testing.T) {
	for _, c := range []struct {
		target, want string
		headers      []string
		check        func(*testing.T, answer)
	}{
		{target: "http://static.example.com/", want: "ext", check: all(sawHost("static.example.com"), sawHeader("x-forwarded-client-cert", ""))},
		{target: "http://dns.example.com/", want: "ext"},
		{target: "http://target.example.com/", want: "ext"},
		{target: fmt.Sprintf("http://localhost:%d/", e.ext.port), want: "ext"},
		{target: "http://vm.example.com/", want: "ext"},
		{target: "http://timeout.example.com/", want: "ext"},
		{target: "http://timeout.example.com/", headers: []string{"x-do: sleep=1s"}, want: "504"},
		{target: "http://origin.example.com/", want: "sec"},
		{target: "http://sec2.example.com/", want: "503"}, // the server has no certificate for this name
		{target: "http://wrongsan.example.com/", want: "503"},
		{target: "http://noca.example.com/", want: "503"},
		{target: "http://skip.example.com/", want: "sec"},
		{target: "http://mut.example.com/", want: "mut"},
		{target: "http://mutcred.example.com/", want: "mut"},
		{target: "http://mutbeside.example.com/", want: "mut"},
		{target: "http://revoked.example.com/", want: "503"},
		{target: "http://mutgw.example.com/", want: "mut"}, // by a secret of the gateway
		{target: "http://127.93.4.5/", want: "ext", check: sawHost("127.93.4.5")},
		{target: "http://range.example.com/", want: "ext"},
		{target: fmt.Sprintf("http://out:%d/", e.ext.port), want: "ext"},
		{target: fmt.Sprintf("http://out.default.svc.cluster.local:%d/", e.ext.port), want: "ext"},
		{target: "http://sliced/", want: "ext", check: sawHeader("x-forwarded-client-cert", "")}, // behind no sidecar
		{target: "http://alias:8000/", want: "in", check: sawHeader("x-rule", "in")},             // the rules are those of what it stands for
		{target: "http://second.default:8000/", want: "in", check: sawHeader("x-rule", "in")},
		{target: "http://nomut.example.com/", want: "503"},
		{target: "http://edition.cnn.com/politics", want: "ext", check: all(sawHeader("x-egress", "gateway"), sawHost("edition.cnn.com"), sawPath("/politics"))},
	} {
		t.Run(c.target, func(t *testing.T) {
			got := e.get("client-1", c.target, c.headers...)
			if got.outcome() != c.want {
				t.Errorf("%s, want %s", got, c.want)
			} else if c.check != nil {
				c.check(t, got)
			}
		})
	}
	t.Run("TLS through a tunnel", func(t *testing.T) {
		if got := e.overTLS("sec.example.com:443", "sec.example.com"); got.outcome() != "sec" {
			t.Errorf("%s", got)
		}
	})
	t.Run("a tunnel through a proxy outside", func(t *testing.T) {
		if got := e.overTLS("far.example.com:443", "sec.example.com"); got.outcome() != "sec" {
			t.Errorf("%s", got)
		}
		if asked := e.asked.Load(); asked == nil || *asked != "CONNECT target.example.com:8443" {
			t.Errorf("the proxy was asked for %v", asked)
		}
	})
	t.Run("TCP through a tunnel", func(t *testing.T) {
		if got := via(e.proxyOf("client-1"), "tcp.example.com:9000", "x"); got != "outside" {
			t.Errorf("%s", got)
		}
	})
}

// slicedWorkload puts a workload behind a Service without selector, in place of what is
// no workload: it is called by mutual TLS from then on.
func (e *egressMesh) slicedWorkload(t *testing.T) {
	write(t, e.dir, "slice.yaml", endpointSlice(e.addressOf("in-1"), 8000))
	proctest.Eventually(t, 20*time.Second, func() error {
		got := e.get("client-1", "http://sliced.default/")
		if got.outcome() != "in" {
			return fmt.Errorf("after the edit: %s", got)
		}
		if who := got.saw(t).Headers.Get("x-forwarded-client-cert"); !strings.Contains(who, "URI=spiffe://cluster.local/ns/default/sa/client") {
			t.Errorf("the workload was called by %q", who)
		}
		return nil
	})
}

// TestIstioEgress goes through the egress tasks with ALLOW_ANY.
func TestIstioEgress(t *testing.T) {
	t.Parallel()
	e := newEgressMesh(t, "ALLOW_ANY")
	e.registered(t)
	e.slicedWorkload(t)
	for _, target := range []string{fmt.Sprintf("http://127.0.0.1:%d/", e.ext.port)} {
		if got := e.get("client-1", target); got.outcome() != "ext" {
			t.Errorf("unknown host %s: %s", target, got)
		}
	}
	if got := e.overTLS(fmt.Sprintf("localhost:%d", e.secPort), "localhost"); got.outcome() != "sec" {
		t.Errorf("unknown host through a tunnel: %s", got)
	}
}

// limited looks at the egress gateway itself: hosts it was not told of it does not reach,
// registered or not, and each that it was told of has counters and lines of the log.
func (e *egressMesh) limited(t *testing.T) {
	t.Helper()
	c := client("")
	defer c.CloseIdleConnections()
	before := e.ext.count.Load()
	for _, host := range []string{"static.example.com", "elsewhere.example.com"} {
		if got := do(c, request{url: fmt.Sprintf("http://127.0.0.1:%d/", e.egress), headers: []string{"Host: " + host}}); got.status != http.StatusNotFound {
			t.Errorf("%s at the egress gateway: %s", host, got)
		}
	}
	if n := e.ext.count.Load() - before; n != 0 {
		t.Errorf("%d requests have left by the egress gateway", n)
	}
	logs, err := filepath.Glob(filepath.Join(e.dir, ".writ", "logs", "envoy-istio-system-*.log"))
	if err != nil || len(logs) != 1 {
		t.Fatalf("logs of gateways: %v %v", logs, err)
	}
	admin := ""
	for _, g := range e.ready.Gateways {
		if g.Name == "istio-egressgateway" {
			admin = g.Admin
		}
	}
	proctest.Eventually(t, 20*time.Second, func() error {
		log, err := os.ReadFile(logs[0])
		if err != nil {
			return err
		}
		for _, host := range []string{"edition.cnn.com", "mutgw.example.com", "static.example.com", "elsewhere.example.com"} {
			if !strings.Contains(string(log), fmt.Sprintf(`"authority":%q`, host)) {
				return fmt.Errorf("no line of %s in\n%s", host, log)
			}
		}
		return nil
	})
	stats := do(c, request{url: admin + "/stats?usedonly"})
	for _, host := range []string{"edition.cnn.com", "mutgw.example.com"} {
		if !strings.Contains(stats.body, "cluster.outbound|80||"+host+".upstream_rq_2xx: 1\n") {
			t.Errorf("%s: not one request counted:\n%s", host, stats)
		}
	}
}

// TestIstioEgressRegistryOnly is the same with REGISTRY_ONLY, then with ALLOW_ANY
// by an edit of mesh.yaml.
func TestIstioEgressRegistryOnly(t *testing.T) {
	t.Parallel()
	e := newEgressMesh(t, "REGISTRY_ONLY")
	e.registered(t)
	unknown := fmt.Sprintf("http://127.0.0.1:%d/", e.ext.port)
	if got := e.get("client-1", unknown); got.status != http.StatusBadGateway {
		t.Errorf("unknown host: %s", got)
	}
	if got := e.overTLS(fmt.Sprintf("localhost:%d", e.secPort), "localhost"); got.err == nil && got.status == http.StatusOK {
		t.Errorf("unknown host through a tunnel: %s", got)
	}
	e.limited(t)
	write(t, e.dir, "mesh.yaml", "outboundTrafficPolicy: {mode: ALLOW_ANY}\n")
	proctest.Eventually(t, 20*time.Second, func() error {
		if got := e.get("client-1", unknown); got.outcome() != "ext" {
			return fmt.Errorf("after the edit: %s", got)
		}
		return nil
	})
}

package translate

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/pilot/model"
)

const gatewayRules = `
kind: Gateway
metadata: {name: ingress, namespace: istio-system}
spec:
  selector: {istio: ingress}
  servers:
  - {port: {number: 80, name: http, protocol: HTTP}, hosts: ["shop.example", "default/*.shop.example", "secure.example"]}
  - {port: {number: 443, name: https, protocol: HTTPS}, hosts: ["secure.example"], tls: {mode: SIMPLE, credentialName: secure}}
  - {port: {number: 443, name: mutual, protocol: HTTPS}, hosts: ["mutual.example"], tls: {mode: MUTUAL, serverCertificate: s.crt, privateKey: s.key, caCertificates: ca.crt}}
  - {port: {number: 443, name: through, protocol: TLS}, hosts: ["through.example"], tls: {mode: PASSTHROUGH}}
  - {port: {number: 443, name: missing, protocol: HTTPS}, hosts: ["missing.example"], tls: {mode: SIMPLE, credentialName: nothere}}
  - {port: {number: 3306, name: tcp, protocol: TCP}, hosts: ["*"]}
  - {port: {number: 81, name: http-redirect, protocol: HTTP}, hosts: ["secure.example"], tls: {httpsRedirect: true}}
---
kind: Gateway
metadata: {name: other, namespace: istio-system}
spec:
  selector: {istio: ingress}
  servers:
  - {port: {number: 82, name: http, protocol: HTTP}, hosts: ["*"]}
---
kind: VirtualService
metadata: {name: shop}
spec:
  hosts: [shop.example, a.shop.example, secure.example, mutual.example]
  gateways: [istio-system/ingress]
  http:
  - match: [{uri: {prefix: /v2}}]
    route: [{destination: {host: reviews, subset: v2, port: {number: 9080}}}]
  - match: [{uri: {exact: /reviews}}]
    route: [{destination: {host: reviews, subset: v1, port: {number: 9080}}}]
---
kind: VirtualService
metadata: {name: db}
spec:
  hosts: ["*"]
  gateways: [istio-system/ingress]
  tcp:
  - match: [{port: 3306}]
    route: [{destination: {host: reviews, subset: v2, port: {number: 9090}}}]
---
kind: VirtualService
metadata: {name: through}
spec:
  hosts: [through.example]
  gateways: [istio-system/ingress]
  tls:
  - match: [{sniHosts: [through.example]}]
    route: [{destination: {host: backend.example, port: {number: 9443}}}]
---
kind: AuthorizationPolicy
metadata: {name: no-secrets, namespace: istio-system}
spec:
  selector: {matchLabels: {istio: ingress}}
  action: DENY
  rules: [{to: [{operation: {paths: ["/secret*"], ports: ["8080"]}}]}]
---
kind: AuthorizationPolicy
metadata: {name: no-v2-secrets}
spec:
  selector: {matchLabels: {app: reviews}}
  action: DENY
  rules: [{to: [{operation: {paths: ["/v2/secret"], ports: ["9080"]}}]}]
`

// gatewayMesh is a mesh with an ingress gateway on its own address.
type gatewayMesh struct {
	*bookstore
	ingress *model.Proxy
}

func newGatewayMesh(t *testing.T, network byte) *gatewayMesh {
	m := &gatewayMesh{bookstore: &bookstore{liveMesh: newLive(t, network)}}
	m.v1 = m.workload("reviews-v1-1", "default", "reviews", map[string]string{"app": "reviews", "version": "v1"}, port(t, "http", 9080), port(t, "tcp-db", 9090))
	m.v2 = m.workload("reviews-v2-1", "default", "reviews", map[string]string{"app": "reviews", "version": "v2"}, port(t, "http", 9080), port(t, "tcp-db", 9090))
	m.service("reviews", "default", m.v1, m.v2)
	m.ingress = m.gateway("ingress", map[string]string{"istio": "ingress"})
	m.files(t)
	m.apply(rules + "---" + gatewayRules + fmt.Sprintf(`
---
kind: ServiceEntry
metadata: {name: backend}
spec:
  hosts: [backend.example]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{number: 9443, name: tls, protocol: TLS}]
  endpoints: [{address: 127.0.0.1, ports: {tls: %s}}]
`, m.outsideTLS("through.example", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "backend") })))
	for _, p := range []*model.Proxy{m.v1, m.v2} {
		m.echo(p, m.handler(p))
		m.tcpEcho(p, p.Ports[1])
	}
	m.apart = []string{"ingress"}
	m.start()
	return m
}

func (m *gatewayMesh) files(t *testing.T) {
	m.mesh.Dir = t.TempDir()
	cert, key := m.ca.Issue(t, server("secure.example"))
	m.mesh.Secrets["istio-system/secure"] = &model.Secret{Cert: cert, Key: key}
	cert, key = m.ca.Issue(t, server("mutual.example"))
	for name, data := range map[string][]byte{"s.crt": cert, "s.key": key, "ca.crt": m.ca.PEM()} {
		if err := os.WriteFile(filepath.Join(m.mesh.Dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// tlsGet requests https://host/path at the gateway's TLS port.
func (m *gatewayMesh) tlsGet(t *testing.T, host, path string, certs ...tls.Certificate) (response, error) {
	tr := &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: m.ca.Pool(), Certificates: certs, ServerName: host},
		DisableKeepAlives: true,
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("https://%s:8443%s", m.ingress.Address, path), nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = host
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return response{}, err
	}
	defer resp.Body.Close()
	var body strings.Builder
	_, err = bufio.NewReader(resp.Body).WriteTo(&body)
	return response{Response: resp, body: body.String()}, err
}

func TestLiveGateway(t *testing.T) {
	t.Parallel()
	m := newGatewayMesh(t, 12)
	get := func(port int, host, path string) response {
		t.Helper()
		return m.request(&http.Transport{DisableKeepAlives: true}, http.MethodGet, fmt.Sprintf("http://%s:%d%s", m.ingress.Address, port, path), "host", host)
	}
	t.Run("hosts and paths", func(t *testing.T) {
		for _, c := range []struct {
			host, path string
			status     int
			app        string
		}{
			{"shop.example", "/reviews", 200, "reviews-v1-1"},
			{"shop.example:8080", "/v2/x", 200, "reviews-v2-1"},
			{"a.shop.example", "/reviews", 200, "reviews-v1-1"},
			{"b.shop.example", "/reviews", 404, ""},
			{"shop.example", "/nothing", 404, ""},
			{"elsewhere.example", "/reviews", 404, ""},
			{"shop.example", "/secret", 403, ""},
			{"elsewhere.example", "/secret", 403, ""},
		} {
			r := get(8080, c.host, c.path)
			if r.StatusCode != c.status || r.Header.Get("x-app") != c.app {
				t.Errorf("%s%s: %s from %q, want %d from %q", c.host, c.path, r.Status, r.Header.Get("x-app"), c.status, c.app)
			}
			if r.Header.Get("server") != "writ" {
				t.Errorf("%s%s: server %q", c.host, c.path, r.Header.Get("server"))
			}
		}
	})
	t.Run("the sidecar sees the gateway", func(t *testing.T) {
		if r := get(8080, "shop.example", "/reviews"); !strings.Contains(r.body, "URI=spiffe://cluster.local/ns/istio-system/sa/gateway") {
			t.Errorf("%s", r.body)
		}
	})
	t.Run("refusals keep their reason inside", func(t *testing.T) {
		for _, path := range []string{"/secret", "/v2/secret"} {
			if r := get(8080, "shop.example", path); r.StatusCode != 403 || r.Header.Get("x-writ-denied-by") != "" {
				t.Errorf("%s: %s, denied by %q", path, r.Status, r.Header.Get("x-writ-denied-by"))
			}
		}
		for _, rule := range []string{"AuthorizationPolicy istio-system/no-secrets", "AuthorizationPolicy default/no-v2-secrets"} {
			proctest.Until(t, bound, "the gateway's log names "+rule, func() bool { return strings.Contains(m.logs["ingress"].String(), rule) })
		}
	})
	t.Run("https redirect", func(t *testing.T) {
		if r := get(81, "secure.example", "/reviews"); r.StatusCode != 301 || !strings.HasPrefix(r.Header.Get("Location"), "https://secure.example") {
			t.Errorf("%s %q", r.Status, r.Header.Get("Location"))
		}
	})
	t.Run("another Gateway's server is not here", func(t *testing.T) {
		if c, err := net.Dial("tcp", hostPort(m.ingress.Address, 82)); err == nil {
			c.Close()
			t.Error("port 82 is open")
		}
	})
	t.Run("tcp", func(t *testing.T) {
		c, err := net.Dial("tcp", hostPort(m.ingress.Address, 3306))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprintln(c, "hi")
		if line, err := bufio.NewReader(c).ReadString('\n'); line != "reviews-v2-1 hi\n" {
			t.Errorf("%q %v", line, err)
		}
	})
	t.Run("tls", m.testTLS)
}

func (m *gatewayMesh) testTLS(t *testing.T) {
	if r, err := m.tlsGet(t, "secure.example", "/reviews"); err != nil || r.Header.Get("x-app") != "reviews-v1-1" {
		t.Errorf("SIMPLE: %v %v", r, err)
	}
	if _, err := m.tlsGet(t, "mutual.example", "/reviews"); err == nil {
		t.Error("MUTUAL let a client without a certificate in")
	}
	if r, err := m.tlsGet(t, "mutual.example", "/reviews", m.ca.Pair(t, server("client.example"))); err != nil || r.StatusCode != 200 {
		t.Errorf("MUTUAL: %v %v", r, err)
	}
	if r, err := m.tlsGet(t, "through.example", "/"); err != nil || r.body != "backend" {
		t.Errorf("PASSTHROUGH: %v %v", r.body, err)
	}
	if _, err := m.tlsGet(t, "missing.example", "/"); err == nil {
		t.Error("a server without its secret answers")
	}
}

package e2e

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/proctest"
)

// tcpApp answers a line with its name and the line.
func tcpApp(t *testing.T, name string) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				for s := bufio.NewScanner(c); s.Scan(); {
					if _, err := fmt.Fprintf(c, "%s %s\n", name, s.Text()); err != nil {
						return
					}
				}
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

// say sends a line and gives the first word of the answer.
func say(c net.Conn, line string) string {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := fmt.Fprintln(c, line); err != nil {
		return err.Error()
	}
	answer, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return "error: " + err.Error()
	}
	word, _, _ := strings.Cut(answer, " ")
	return word
}

type gatewayMesh struct {
	*mesh
	ca       *publicCA
	ports    map[string]int
	v1, v2   *app
	pass     *app
	client   pair
	stranger pair
	revoked  pair // by the list in the secret of r.example.com
	secrets  map[string]pair
}

func gatewayObject(namespace, name, servers string) string {
	return object("Gateway", namespace, name, "selector: {istio: ingressgateway}\nservers:\n"+strings.TrimLeft(strings.ReplaceAll(servers, "\n\t\t", "\n"), "\n"))
}

func newGatewayMesh(t *testing.T) *gatewayMesh {
	t.Helper()
	g := &gatewayMesh{ca: newPublicCA(t, "public"), ports: map[string]int{}, v1: newApp(t, "v1"), v2: newApp(t, "v2"), pass: newApp(t, "pass"), secrets: map[string]pair{}}
	names := []string{"web", "redir", "redirtls", "secure", "pass", "tcp", "tlstcp", "second"}
	for _, n := range names {
		g.ports[n] = proctest.Port(t)
	}
	g.client = g.ca.issue("client.example.com", "client.example.com")
	g.stranger = newPublicCA(t, "stranger").issue("client.example.com", "client.example.com")
	g.revoked = g.ca.issue("client.example.com", "client.example.com")
	for _, n := range []string{"a", "b", "m", "o", "r", "wild"} {
		g.secrets[n] = g.ca.issue(n+".example.com", n+".example.com", "*."+n+".example.com")
	}
	passCert := g.ca.issue("pass.example.com", "pass.example.com", "*.pass.example.com")
	passPort := tlsApp(t, g.pass, &tls.Config{Certificates: []tls.Certificate{passCert.tls}})
	files := map[string]string{
		"workloads.yaml": play("default", "b-v1", map[string]string{"app": "b", "version": "v1"}, g.v1.port, "http 8000", fmt.Sprintf("tcp-echo 9000 %d", tcpApp(t, "t1"))) +
			play("default", "b-v2", map[string]string{"app": "b", "version": "v2"}, g.v2.port, "http 8000", fmt.Sprintf("tcp-echo 9000 %d", tcpApp(t, "t2"))) +
			play("default", "client", map[string]string{"app": "client"}, g.v1.port) +
			play("default", "passing", map[string]string{"app": "passing"}, passPort, "tls-web 8443") +
			play("nsa", "n", map[string]string{"app": "n"}, g.v2.port),
		"gateways.yaml": g.gateways(), "routes.yaml": g.routes(),
		"secrets.yaml": g.credentials(),
		"file.crt":     string(g.secrets["a"].cert), "file.key": string(g.secrets["a"].key),
	}
	g.mesh = up(t, writeFiles(t, files))
	if out, _ := g.writ("status", g.dir); strings.Contains(out, "error:") {
		t.Errorf("status: %s", out)
	}
	return g
}

func (g *gatewayMesh) credentials() string {
	root := func(name string, data map[string][]byte) string { return secret("istio-system", name, "Opaque", data) }
	return tlsSecret("a-cert", g.secrets["a"]) + tlsSecret("b-cert", g.secrets["b"]) +
		root("m-cert", map[string][]byte{"tls.crt": g.secrets["m"].cert, "tls.key": g.secrets["m"].key, "ca.crt": g.ca.pem}) +
		tlsSecret("o-cert", g.secrets["o"]) + root("o-cert-cacert", map[string][]byte{"ca.crt": g.ca.pem}) +
		tlsSecret("r-cert", g.secrets["r"]) + root("clients", map[string][]byte{"ca.crt": g.ca.pem, "ca.crl": g.ca.revoke(g.revoked)}) +
		root("old-style", map[string][]byte{"cert": g.secrets["wild"].cert, "key": g.secrets["wild"].key})
}

func (g *gatewayMesh) gateways() string {
	return gatewayObject("default", "web", fmt.Sprintf(`
		- port: {number: %d, name: http, protocol: HTTP}
		  hosts: ["*"]`, g.ports["web"])) +
		gatewayObject("default", "second", fmt.Sprintf(`
		- port: {number: %d, name: http, protocol: HTTP}
		  hosts: ["only.example.com", "*.wild.example.com", "nsa/ns.example.com", "./dot.example.com"]`, g.ports["second"])) +
		gatewayObject("default", "redir", fmt.Sprintf(`
		- port: {number: %d, name: http, protocol: HTTP}
		  hosts: ["a.example.com"]
		  tls: {httpsRedirect: true}
		- port: {number: %d, name: https, protocol: HTTPS}
		  hosts: ["a.example.com"]
		  tls: {mode: SIMPLE, credentialName: a-cert}`, g.ports["redir"], g.ports["redirtls"])) +
		gatewayObject("default", "secure", fmt.Sprintf(`
		- port: {number: %[1]d, name: https-a, protocol: HTTPS}
		  hosts: ["a.example.com", "a2.example.com"]
		  tls: {mode: SIMPLE, credentialName: a-cert}
		- port: {number: %[1]d, name: https-b, protocol: HTTPS}
		  hosts: ["b.example.com"]
		  tls: {mode: SIMPLE, credentialName: b-cert, minProtocolVersion: TLSV1_3}
		- port: {number: %[1]d, name: https-m, protocol: HTTPS}
		  hosts: ["m.example.com"]
		  tls: {mode: MUTUAL, credentialName: m-cert}
		- port: {number: %[1]d, name: https-o, protocol: HTTPS}
		  hosts: ["o.example.com"]
		  tls: {mode: OPTIONAL_MUTUAL, credentialName: o-cert}
		- port: {number: %[1]d, name: https-r, protocol: HTTPS}
		  hosts: ["r.example.com"]
		  tls: {mode: MUTUAL, credentialName: "kubernetes://r-cert", caCertCredentialName: clients}
		- port: {number: %[1]d, name: https-w, protocol: HTTPS}
		  hosts: ["*.wild.example.com"]
		  tls: {mode: SIMPLE, credentialName: old-style, maxProtocolVersion: TLSV1_2}
		- port: {number: %[1]d, name: https-f, protocol: HTTPS}
		  hosts: ["f.example.com"]
		  tls: {mode: SIMPLE, serverCertificate: file.crt, privateKey: file.key}`, g.ports["secure"])) +
		gatewayObject("default", "pass", fmt.Sprintf(`
		- port: {number: %d, name: tls, protocol: TLS}
		  hosts: ["pass.example.com", "*.pass.example.com"]
		  tls: {mode: PASSTHROUGH}`, g.ports["pass"])) +
		gatewayObject("default", "tcp", fmt.Sprintf(`
		- port: {number: %d, name: tcp, protocol: TCP}
		  hosts: ["*"]`, g.ports["tcp"])) +
		gatewayObject("default", "tlstcp", fmt.Sprintf(`
		- port: {number: %d, name: tls, protocol: TLS}
		  hosts: ["b.example.com"]
		  tls: {mode: SIMPLE, credentialName: b-cert}`, g.ports["tlstcp"]))
}

func (g *gatewayMesh) routes() string {
	vs := func(namespace, name, spec string) string { return object("VirtualService", namespace, name, spec) }
	return service("b", "app: b", "{name: http, port: 8000}, {name: tcp-echo, port: 9000}") +
		object("DestinationRule", "default", "b", "host: b\nsubsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]") +
		vs("default", "httpbin", `
		hosts: ["httpbin.example.com"]
		gateways: [web]
		http:
		- match: [{uri: {prefix: /status}}, {uri: {prefix: /delay}}]
		  route: [{destination: {host: b, subset: v1, port: {number: 8000}}}]`) +
		// Rules of two objects for one host of one gateway are merged; what takes everything comes last.
		vs("default", "merge-1", `
		hosts: ["merge.example.com"]
		gateways: [web]
		http:
		- match: [{uri: {prefix: /one}}]
		  route: [{destination: {host: b, subset: v1, port: {number: 8000}}}]
		- directResponse: {status: 299}`) +
		vs("default", "merge-2", `
		hosts: ["merge.example.com"]
		gateways: [default/web]
		http:
		- match: [{uri: {prefix: /two}}]
		  route: [{destination: {host: b, subset: v2, port: {number: 8000}}}]`) +
		vs("default", "both", `
		hosts: [b, both.example.com]
		gateways: [web, mesh]
		http:
		- match: [{gateways: [web], uri: {prefix: /x}}]
		  directResponse: {status: 230}
		- match: [{gateways: [mesh], uri: {prefix: /x}}]
		  directResponse: {status: 231}
		- route: [{destination: {host: b, subset: v2, port: {number: 8000}}}]`) +
		vs("default", "everything", `
		hosts: ["*"]
		gateways: [second]
		http: [{directResponse: {status: 240}}]`) +
		vs("nsa", "fromnsa", `
		hosts: ["ns.example.com", "*.wild.example.com", "dot.example.com"]
		gateways: [default/second]
		http: [{route: [{destination: {host: n, port: {number: 8000}}}]}]`) +
		vs("default", "tlshosts", `
		hosts: ["a.example.com", "a2.example.com", "b.example.com", "m.example.com", "o.example.com", "r.example.com", "*.wild.example.com", "f.example.com"]
		gateways: [secure, redir]
		http: [{route: [{destination: {host: b, subset: v1, port: {number: 8000}}}]}]`) +
		vs("default", "passthrough", `
		hosts: ["pass.example.com", "*.pass.example.com"]
		gateways: [pass]
		tls:
		- match: [{sniHosts: ["pass.example.com", "a.pass.example.com"]}]
		  route: [{destination: {host: passing, port: {number: 8443}}}]`) +
		vs("default", "tcpecho", `
		hosts: ["*"]
		gateways: [tcp, tlstcp]
		tcp:
		- match: [{port: 1}]
		  route: [{destination: {host: b, subset: v1, port: {number: 9000}}}]
		- route:
		  - {destination: {host: b, subset: v1, port: {number: 9000}}, weight: 80}
		  - {destination: {host: b, subset: v2, port: {number: 9000}}, weight: 20}`)
}

func (g *gatewayMesh) address(name string) string { return fmt.Sprintf("127.0.0.1:%d", g.ports[name]) }

// TestIstioGateways goes through the ingress tasks and the fields of Gateway.
func TestIstioGateways(t *testing.T) {
	t.Parallel()
	g := newGatewayMesh(t)
	t.Run("URLs", func(t *testing.T) {
		for name, want := range map[string]string{"web": "http://127.0.0.1:%d", "secure": "https://127.0.0.1:%d", "pass": "https://127.0.0.1:%d", "redir": "http://127.0.0.1:%d", "tcp": "tcp://127.0.0.1:%d"} {
			if got := g.gateway(name); got != fmt.Sprintf(want, g.ports[name]) {
				t.Errorf("%s: %s", name, got)
			}
		}
	})
	for _, c := range []struct {
		gw, host, path, want string
		check                func(*testing.T, answer)
	}{
		{"web", "httpbin.example.com", "/status/200", "v1", nil},
		{"web", "HTTPBIN.example.com", "/status/200", "v1", nil},
		{"web", "httpbin.example.com:1234", "/delay/1", "v1", nil},
		{"web", "httpbin.example.com", "/headers", "404", nil},
		{"web", "other.example.com", "/status/200", "404", nil},
		{"web", "merge.example.com", "/one", "v1", nil},
		{"web", "merge.example.com", "/two", "v2", nil},
		{"web", "merge.example.com", "/three", "299", nil},
		{"web", "both.example.com", "/x", "230", nil},
		{"web", "b.default.svc.cluster.local", "/x", "230", nil},
		{"web", "both.example.com", "/y", "v2", sawHeader("x-envoy-attempt-count", "1")},
		{"second", "only.example.com", "/", "240", nil},
		{"second", "other.example.com", "/", "404", nil},
		{"second", "ns.example.com", "/", "v2", nil},
		{"second", "x.wild.example.com", "/", "240", nil}, // of two catch-all rules the first
		{"second", "dot.example.com", "/", "240", nil},
		{"redir", "a.example.com", "/some?q=1", "301", header("location", "https://a.example.com/some?q=1")},
		{"redir", "other.example.com", "/", "404", nil},
	} {
		t.Run(c.gw+" "+c.host+c.path, func(t *testing.T) {
			got := do(dialing(g.address(c.gw), nil), request{url: "http://" + c.host + c.path})
			if got.outcome() != c.want {
				t.Errorf("%s, want %s", got, c.want)
			} else if c.check != nil {
				c.check(t, got)
			}
		})
	}
	t.Run("mesh side of a rule for both", func(t *testing.T) {
		if got := g.get("client-1", "http://b:8000/x"); got.outcome() != "231" {
			t.Errorf("%s", got)
		}
	})
	g.secured(t)
	g.connections(t)
}

func (g *gatewayMesh) secured(t *testing.T) {
	const refused = "refused"
	with := func(p pair) []tls.Certificate { return []tls.Certificate{p.tls} }
	for _, c := range []struct {
		name, gw, host string
		cert           []tls.Certificate
		min, max       uint16
		want           string
		server         string // name in the server's certificate
		check          func(*testing.T, answer)
	}{
		{name: "SIMPLE", gw: "secure", host: "a.example.com", want: "v1", server: "a.example.com", check: sawHeader("x-forwarded-proto", "https")},
		{name: "SIMPLE, other host", gw: "secure", host: "b.example.com", want: "v1", server: "b.example.com"},
		{name: "SIMPLE, TLS 1.2", gw: "secure", host: "a.example.com", max: tls.VersionTLS12, want: "v1", server: "a.example.com"},
		{name: "minProtocolVersion", gw: "secure", host: "b.example.com", max: tls.VersionTLS12, want: refused},
		{name: "maxProtocolVersion", gw: "secure", host: "x.wild.example.com", min: tls.VersionTLS13, want: refused},
		{name: "secret with cert and key", gw: "secure", host: "x.wild.example.com", want: "v1", server: "*.wild.example.com"},
		{name: "files", gw: "secure", host: "f.example.com", want: "v1", server: "a.example.com"},
		{name: "unknown server name", gw: "secure", host: "z.example.com", want: refused},
		{name: "MUTUAL without a certificate", gw: "secure", host: "m.example.com", want: refused},
		{name: "MUTUAL with a stranger's", gw: "secure", host: "m.example.com", cert: with(g.stranger), want: refused},
		{name: "MUTUAL", gw: "secure", host: "m.example.com", cert: with(g.client), want: "v1", server: "m.example.com"},
		{name: "OPTIONAL_MUTUAL without", gw: "secure", host: "o.example.com", want: "v1", server: "o.example.com"},
		{name: "OPTIONAL_MUTUAL with", gw: "secure", host: "o.example.com", cert: with(g.client), want: "v1", server: "o.example.com"},
		{name: "OPTIONAL_MUTUAL with a stranger's", gw: "secure", host: "o.example.com", cert: with(g.stranger), want: refused},
		{name: "MUTUAL with a secret for the authority", gw: "secure", host: "r.example.com", cert: with(g.client), want: "v1", server: "r.example.com"},
		{name: "MUTUAL with a secret for the authority, revoked", gw: "secure", host: "r.example.com", cert: with(g.revoked), want: refused},
		{name: "HTTPS beside the redirect", gw: "redirtls", host: "a.example.com", want: "v1", server: "a.example.com"},
		{name: "PASSTHROUGH", gw: "pass", host: "pass.example.com", want: "pass", server: "pass.example.com"},
		{name: "PASSTHROUGH, second name", gw: "pass", host: "a.pass.example.com", want: "pass", server: "pass.example.com"},
		{name: "PASSTHROUGH, no rule", gw: "pass", host: "z.pass.example.com", want: refused},
	} {
		t.Run(c.name, func(t *testing.T) {
			var peer string
			cfg := &tls.Config{ServerName: c.host, RootCAs: g.ca.pool(), MinVersion: c.min, MaxVersion: c.max, InsecureSkipVerify: true} //nolint:gosec // the name is compared below
			if c.cert != nil {                                                                                                           // sent even if the server does not ask for one of its authority
				cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &c.cert[0], nil }
			}
			cfg.VerifyConnection = func(s tls.ConnectionState) error {
				peer = strings.Join(s.PeerCertificates[0].DNSNames, " ")
				return nil
			}
			got := do(dialing(g.address(c.gw), cfg), request{url: "https://" + c.host + "/"})
			if c.want == refused {
				if got.err == nil {
					t.Errorf("%s, want a refused connection", got)
				}
				return
			}
			if got.outcome() != c.want || !strings.Contains(" "+peer+" ", " "+c.server+" ") {
				t.Errorf("%s from %q, want %s from %s", got, peer, c.want, c.server)
			} else if c.check != nil {
				c.check(t, got)
			}
		})
	}
	t.Run("plain text to a TLS port", func(t *testing.T) {
		if got := do(dialing(g.address("secure"), nil), request{url: "http://a.example.com/"}); got.err == nil && got.status == 200 {
			t.Errorf("%s", got)
		}
	})
	t.Run("a host of another server on the same connection", func(t *testing.T) {
		cfg := &tls.Config{ServerName: "a.example.com", InsecureSkipVerify: true} //nolint:gosec // not about the server's identity
		c := dialing(g.address("secure"), cfg)
		if got := do(c, request{url: "https://a.example.com/", headers: []string{"host: m.example.com"}}); got.outcome() == "v1" {
			t.Errorf("a host that asks for a client certificate is served without: %s", got)
		}
	})
	t.Run("a new certificate", func(t *testing.T) {
		g.secrets["a"] = g.ca.issue("renewed", "a.example.com", "renewed.example.com")
		write(t, g.dir, "secrets.yaml", g.credentials())
		proctest.Eventually(t, 20*time.Second, func() error {
			d, err := tls.Dial("tcp", g.address("secure"), &tls.Config{ServerName: "a.example.com", RootCAs: g.ca.pool()})
			if err != nil {
				return err
			}
			defer d.Close()
			if names := d.ConnectionState().PeerCertificates[0].DNSNames; names[len(names)-1] != "renewed.example.com" {
				return fmt.Errorf("still %v", names)
			}
			return nil
		})
	})
}

func (g *gatewayMesh) connections(t *testing.T) {
	t.Run("TCP traffic shifting", func(t *testing.T) {
		count := map[string]int{}
		for i := range 200 {
			c, err := net.Dial("tcp", g.address("tcp"))
			if err != nil {
				t.Fatal(err)
			}
			count[say(c, fmt.Sprint(i))]++
		}
		if n := count["t2"]; n < 15 || n > 70 || count["t1"]+n != 200 {
			t.Errorf("%v", count)
		}
	})
	t.Run("TLS to TCP", func(t *testing.T) {
		c, err := tls.Dial("tcp", g.address("tlstcp"), &tls.Config{ServerName: "b.example.com", RootCAs: g.ca.pool()})
		if err != nil {
			t.Fatal(err)
		}
		if got := say(c, "hello"); got != "t1" && got != "t2" {
			t.Errorf("%s", got)
		}
	})
	t.Run("HTTP/2 in plain text", func(t *testing.T) {
		tr := &http.Transport{Protocols: new(http.Protocols)}
		tr.Protocols.SetUnencryptedHTTP2(true)
		defer tr.CloseIdleConnections()
		req, _ := http.NewRequest(http.MethodGet, "http://"+g.address("web")+"/status/200", nil)
		req.Host = "httpbin.example.com"
		resp, err := (&http.Client{Transport: tr, Timeout: 5 * time.Second}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		_, _ = io.Copy(io.Discard, resp.Body)
		if resp.StatusCode != 200 || resp.ProtoMajor != 2 {
			t.Errorf("%s %s", resp.Proto, resp.Status)
		}
	})
}

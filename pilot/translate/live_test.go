package translate

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/envoytest"
	"github.com/writ-mesh/writ/internal/pkitest"
	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/pilot/model"
)

// authority makes certificates for the sidecars of a test.
type authority struct{ *pkitest.Root }

func newAuthority(t *testing.T) *authority {
	t.Helper()
	return &authority{pkitest.NewRoot(t, "")}
}

// server is a certificate for a DNS name.
func server(name string) *x509.Certificate {
	leaf := pkitest.Leaf("", time.Hour)
	leaf.DNSNames = []string{name}
	return leaf
}

func (a *authority) secrets(t *testing.T, p *model.Proxy) []any {
	cert, key := a.Issue(t, pkitest.Leaf("spiffe://cluster.local/ns/"+p.Namespace+"/sa/"+p.ServiceAccount, time.Hour))
	inlined := func(b []byte) map[string]any { return map[string]any{"inlineString": string(b)} }
	return []any{
		map[string]any{"name": staticSecret("default"), "tlsCertificate": map[string]any{"certificateChain": inlined(cert), "privateKey": inlined(key)}},
		map[string]any{"name": staticSecret("ROOTCA"), "validationContext": map[string]any{"trustedCa": inlined(a.PEM())}},
	}
}

// bound is for everything that is waited for.
const bound = 15 * time.Second

// liveMesh runs the proxies of a mesh in one real Envoy, which takes less than many do:
// each has listeners at its own address, and clusters and secrets of its own.
type liveMesh struct {
	*meshBuilder
	t  *testing.T
	ca *authority
	// logs are what those print that are an Envoy of their own.
	logs map[string]*proctest.Output
	// apart names proxies that are an Envoy of their own.
	apart []string
	// bin is the Envoy to run, Find's if it is empty.
	bin string
}

// start runs the proxies and waits until they are live.
func (m *liveMesh) start() {
	m.t.Helper()
	bin := m.bin
	if bin == "" {
		bin = envoytest.Find(m.t)
	}
	tr, dir := m.translator(), m.t.TempDir()
	m.logs = map[string]*proctest.Output{}
	var envoys [][]*model.Proxy
	var together []*model.Proxy
	for _, p := range m.mesh.Proxies {
		if slices.Contains(m.apart, p.Name) {
			envoys = append(envoys, []*model.Proxy{p})
		} else {
			together = append(together, p)
		}
	}
	if len(together) > 0 {
		envoys = append(envoys, together)
	}
	for _, proxies := range envoys {
		var all []map[string]any
		for _, p := range proxies {
			s, err := tr.Proxy(p)
			if err != nil {
				m.t.Fatal(err)
			}
			one := staticBootstrap(m.t, bin, s, hostPort(proxies[0].Address, model.AdminPort), m.ca.secrets(m.t, p))
			all = append(all, one)
		}
		path := filepath.Join(dir, proxies[0].Name+".json")
		writeJSON(m.t, path, joinedBootstraps(all))
		e := envoytest.Run(m.t, bin, path, "--file-flush-interval-msec", "100")
		if len(proxies) == 1 {
			m.logs[proxies[0].Name] = e.Output
		}
	}
	for _, proxies := range envoys {
		m.waitReady(proxies[0])
	}
}

func (m *liveMesh) waitReady(p *model.Proxy) {
	m.t.Helper()
	proctest.Until(m.t, bound, p.Name+" is ready", func() bool {
		resp, err := http.Get(fmt.Sprintf("http://%s:%d/ready", p.Address, model.AdminPort))
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

// echo is the program behind a sidecar: it says who it is and what it saw.
func (m *liveMesh) echo(p *model.Proxy, h http.HandlerFunc) {
	m.t.Helper()
	if h == nil {
		h = func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("x-app", p.Name)
			fmt.Fprintf(w, "%s %s %s host=%s\n", p.Name, r.Method, r.URL.RequestURI(), r.Host)
			_ = r.Header.Write(w)
		}
	}
	for _, wp := range p.Ports {
		if wp.Protocol.IsHTTP() {
			l := m.listen(wp)
			srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: h}}
			srv.Start()
			m.t.Cleanup(srv.Close)
		}
	}
}

func (m *liveMesh) listen(wp model.WorkloadPort) net.Listener {
	m.t.Helper()
	l, err := net.Listen("tcp", fmt.Sprintf("%s:%d", wp.AppAddress, wp.App))
	if err != nil {
		m.t.Fatal(err)
	}
	return l
}

// tcpEcho answers each line with the name of the proxy before it.
func (m *liveMesh) tcpEcho(p *model.Proxy, wp model.WorkloadPort) {
	l := m.listen(wp)
	m.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				lines := bufio.NewScanner(c)
				for lines.Scan() {
					fmt.Fprintf(c, "%s %s\n", p.Name, lines.Text())
				}
			}()
		}
	}()
}

// outsideTLS runs a TLS server outside of the mesh and gives its port.
func (m *liveMesh) outsideTLS(name string, h http.HandlerFunc) string {
	m.t.Helper()
	srv := httptest.NewUnstartedServer(h)
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{m.ca.Pair(m.t, server(name))}}
	srv.StartTLS()
	m.t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "https://127.0.0.1:")
}

// response is what came back, with the body read.
type response struct {
	*http.Response
	body string
	took time.Duration
}

// via sends a request through the explicit proxy of p. headers are pairs.
func (m *liveMesh) via(p *model.Proxy, method, target string, headers ...string) response {
	m.t.Helper()
	proxy, _ := url.Parse(fmt.Sprintf("http://%s:%d", p.Address, model.ExplicitProxyPort))
	return m.request(&http.Transport{Proxy: http.ProxyURL(proxy), DisableKeepAlives: true}, method, target, headers...)
}

func (m *liveMesh) request(tr *http.Transport, method, target string, headers ...string) response {
	m.t.Helper()
	req, err := http.NewRequestWithContext(m.t.Context(), method, target, nil)
	if err != nil {
		m.t.Fatal(err)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		if strings.EqualFold(headers[i], "host") {
			req.Host = headers[i+1]
		}
		req.Header.Set(headers[i], headers[i+1])
	}
	began := time.Now()
	resp, err := tr.RoundTrip(req)
	if err != nil {
		m.t.Fatalf("%s %s: %v", method, target, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		m.t.Fatal(err)
	}
	return response{Response: resp, body: string(body), took: time.Since(began)}
}

func newLive(t *testing.T, net byte) *liveMesh {
	t.Helper()
	b := newMesh(t)
	b.net = net
	return &liveMesh{meshBuilder: b, t: t, ca: newAuthority(t)}
}

// port writes a workload port with a free private port behind it.
func port(t *testing.T, name string, number int) string {
	return fmt.Sprintf("%s:%d:%d", name, number, proctest.Port(t))
}

func hostPort(addr netip.Addr, port int) string {
	return netip.AddrPortFrom(addr, uint16(port)).String()
}

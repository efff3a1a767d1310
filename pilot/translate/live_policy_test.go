package translate

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/pkitest"
	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/pilot/model"
)

// TestLiveModes has a server in each mode, and a service whose endpoints differ.
func TestLiveModes(t *testing.T) {
	t.Parallel()
	m := newLive(t, 13)
	client := m.workload("client-1", "default", "client", map[string]string{"app": "client"}, port(t, "http", 9000))
	strict := m.workload("strict-1", "default", "strict", map[string]string{"app": "strict"}, port(t, "http", 9080), port(t, "tcp", 9090))
	disable := m.workload("disable-1", "default", "disable", map[string]string{"app": "disable"}, port(t, "http", 9080), port(t, "tcp", 9090))
	impostor := m.workload("impostor-1", "default", "impostor", map[string]string{"app": "impostor"}, port(t, "http", 9080))
	m.service("strict", "default", strict)
	m.service("disable", "default", disable)
	m.service("mixed", "default", strict, disable)
	// The registry says that bank's endpoint runs as another account than it does.
	m.service("bank", "default", impostor).Endpoints[0].ServiceAccount = "bank"
	m.apply(`
kind: PeerAuthentication
metadata: {name: strict}
spec: {selector: {matchLabels: {app: strict}}, mtls: {mode: STRICT}}
---
kind: PeerAuthentication
metadata: {name: disable}
spec: {selector: {matchLabels: {app: disable}}, mtls: {mode: DISABLE}}
`)
	for _, p := range []*model.Proxy{client, strict, disable, impostor} {
		m.echo(p, nil)
	}
	for _, p := range []*model.Proxy{strict, disable} {
		m.tcpEcho(p, p.Ports[1])
	}
	m.start()

	t.Run("strict by mTLS, disable in plain text", func(t *testing.T) {
		if r := m.via(client, http.MethodGet, "http://strict:9080/"); r.StatusCode != 200 || !strings.Contains(r.body, "sa/client") {
			t.Errorf("strict: %s %s", r.Status, r.body)
		}
		if r := m.via(client, http.MethodGet, "http://disable:9080/"); r.StatusCode != 200 || strings.Contains(r.body, "spiffe://") {
			t.Errorf("disable: %s %s", r.Status, r.body)
		}
	})
	t.Run("endpoints of both kinds in one cluster", func(t *testing.T) {
		seen := map[string]bool{}
		for range 40 {
			r := m.via(client, http.MethodGet, "http://mixed:9080/")
			if r.StatusCode != 200 {
				t.Fatalf("%s %s", r.Status, r.body)
			}
			seen[r.Header.Get("x-app")] = true
		}
		if len(seen) != 2 {
			t.Errorf("reached %v", seen)
		}
	})
	t.Run("strict refuses plain text", func(t *testing.T) {
		for _, port := range []int{9080, 9090} {
			c, err := net.Dial("tcp", hostPort(strict.Address, port))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: strict\r\n\r\n")
			_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
			if line, err := bufio.NewReader(c).ReadString('\n'); err == nil {
				t.Errorf("port %d answers %q", port, line)
			}
		}
	})
	t.Run("strict refuses TLS without a certificate of the mesh", func(t *testing.T) {
		stranger := newAuthority(t).Pair(t, pkitest.Leaf("spiffe://cluster.local/ns/default/sa/client", time.Hour))
		for _, certs := range [][]tls.Certificate{nil, {stranger}} {
			tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, Certificates: certs}} //nolint:gosec // the server is not what is tested
			if resp, err := tr.RoundTrip(mustRequest(t, fmt.Sprintf("https://%s:9080/", strict.Address))); err == nil {
				resp.Body.Close()
				t.Errorf("answered %s", resp.Status)
			}
		}
	})
	t.Run("a server with another identity is refused", func(t *testing.T) {
		if r := m.via(client, http.MethodGet, "http://bank:9080/"); r.StatusCode != 503 {
			t.Errorf("%s %s", r.Status, r.body)
		}
	})
}

func mustRequest(t *testing.T, target string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, target, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestLiveDestinationRules is about limits, hashes and TLS origination.
func TestLiveDestinationRules(t *testing.T) {
	t.Parallel()
	m := newLive(t, 14)
	client := m.workload("client-1", "default", "client", map[string]string{"app": "client"}, port(t, "http", 9000))
	slow := m.workload("slow-1", "default", "slow", map[string]string{"app": "slow"}, port(t, "http", 9080))
	var stores []*model.Proxy
	for i := range 3 {
		stores = append(stores, m.workload(fmt.Sprintf("store-%d", i+1), "default", "store", map[string]string{"app": "store"}, port(t, "http", 9080)))
	}
	m.service("slow", "default", slow)
	m.service("store", "default", stores...)
	apiPort := m.outsideTLS("api.example", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "api sni=%s", r.TLS.ServerName) })
	dir := t.TempDir()
	m.mesh.Dir = dir
	writeFile(t, dir+"/ca.pem", m.ca.PEM())
	m.apply(fmt.Sprintf(`
kind: DestinationRule
metadata: {name: slow}
spec:
  host: slow
  trafficPolicy:
    connectionPool: {tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1}}
---
kind: DestinationRule
metadata: {name: store}
spec:
  host: store
  trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x-user}}}
---
kind: ServiceEntry
metadata: {name: api}
spec:
  hosts: [api.example, wrong.example]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
  endpoints: [{address: 127.0.0.1, ports: {http: %s}}]
---
kind: DestinationRule
metadata: {name: api}
spec:
  host: "*.example"
  trafficPolicy: {tls: {mode: SIMPLE, caCertificates: ca.pem}}
---
kind: MeshConfig
metadata: {name: mesh}
spec: {outboundTrafficPolicy: {mode: REGISTRY_ONLY}}
`, apiPort))
	m.echo(client, nil)
	begun, hold := make(chan struct{}, 5), make(chan struct{})
	m.echo(slow, func(_ http.ResponseWriter, r *http.Request) {
		begun <- struct{}{}
		select {
		case <-hold:
		case <-r.Context().Done():
		}
	})
	for _, p := range stores {
		m.echo(p, nil)
	}
	m.start()

	t.Run("connection limits", func(t *testing.T) { m.limits(t, client, begun, hold) })
	t.Run("consistent hash", func(t *testing.T) {
		owners := map[string]string{}
		for i := range 60 {
			user := fmt.Sprintf("user-%d", i%20)
			r := m.via(client, http.MethodGet, "http://store:9080/", "x-user", user)
			if owner := owners[user]; owner != "" && owner != r.Header.Get("x-app") {
				t.Errorf("%s went to %s and to %s", user, owner, r.Header.Get("x-app"))
			}
			owners[user] = r.Header.Get("x-app")
		}
		distinct := map[string]bool{}
		for _, o := range owners {
			distinct[o] = true
		}
		if len(distinct) < 2 {
			t.Errorf("20 users all went to %v", distinct)
		}
	})
	t.Run("TLS origination checks the name", func(t *testing.T) {
		if r := m.via(client, http.MethodGet, "http://api.example/"); r.body != "api sni=api.example" {
			t.Errorf("%s %s", r.Status, r.body)
		}
		if r := m.via(client, http.MethodGet, "http://wrong.example/"); r.StatusCode != 503 {
			t.Errorf("a certificate for another name: %s %s", r.Status, r.body)
		}
	})
	t.Run("registry only", func(t *testing.T) {
		if r := m.via(client, http.MethodGet, "http://127.0.0.1:1/"); r.StatusCode != 502 {
			t.Errorf("%s", r.Status)
		}
		c, err := net.Dial("tcp", hostPort(client.Address, model.ExplicitProxyPort))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprint(c, "CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: 127.0.0.1:1\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: http.MethodConnect})
		if err != nil || resp.StatusCode != 502 {
			t.Errorf("CONNECT: %v %v", resp, err)
		}
	})
}

// limits sends five requests at once to a server that holds them: one is on the
// only connection, one waits, three are refused.
func (m *liveMesh) limits(t *testing.T, client *model.Proxy, begun <-chan struct{}, hold chan<- struct{}) {
	var mu sync.Mutex
	status := map[int]int{}
	var wg sync.WaitGroup
	for i := range 5 {
		if i == 1 {
			select { // the connection is up, so the next one waits and the rest is too much
			case <-begun:
			case <-time.After(bound):
				t.Fatal("the first request did not arrive")
			}
		}
		wg.Go(func() {
			r := m.via(client, http.MethodGet, "http://slow:9080/")
			mu.Lock()
			defer mu.Unlock()
			status[r.StatusCode]++
		})
	}
	proctest.Until(t, bound, "three are refused", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return status[503] == 3
	})
	close(hold)
	wg.Wait()
	if status[200] != 2 || status[503] != 3 {
		t.Errorf("status codes %v, want two 200 and three 503", status)
	}
}

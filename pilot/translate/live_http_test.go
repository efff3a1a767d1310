package translate

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/envoytest"
	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/pilot/model"
)

const rules = `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  trafficPolicy: {connectionPool: {http: {http2MaxRequests: 4}}}
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
  - {name: gone, labels: {version: v9}}
---
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - match: [{headers: {end-user: {exact: john}}}]
    route: [{destination: {host: reviews, subset: v2}, headers: {response: {add: {x-subset: v2}}}}]
  - match: [{uri: {prefix: /canary}}]
    route:
    - {destination: {host: reviews, subset: v1}, weight: 90}
    - {destination: {host: reviews, subset: v2}, weight: 10}
  - match: [{uri: {exact: /old}}]
    redirect: {uri: /new, authority: elsewhere.example, redirectCode: 302}
  - match: [{uri: {prefix: /api/}}]
    rewrite: {uri: /v2/, authority: inner.example}
    headers: {request: {set: {x-set: "yes"}, remove: [x-secret]}}
    route: [{destination: {host: reviews, subset: v1}}]
  - match: [{uri: {prefix: /abort}}]
    fault: {abort: {httpStatus: 555, percentage: {value: 100}}}
    route: [{destination: {host: reviews, subset: v1}}]
  - match: [{uri: {prefix: /delay}}]
    fault: {delay: {fixedDelay: 0.4s, percentage: {value: 100}}}
    route: [{destination: {host: reviews, subset: v1}}]
  - match: [{uri: {prefix: /slow}}]
    timeout: 0.3s
    route: [{destination: {host: reviews, subset: v1}}]
  - match: [{uri: {prefix: /flaky}}]
    retries: {attempts: 2, retryOn: "503"}
    route: [{destination: {host: reviews, subset: v1}}]
  - match: [{uri: {prefix: /mirrored}}]
    mirror: {host: reviews, subset: v2}
    route: [{destination: {host: reviews, subset: v1}}]
  - match: [{uri: {prefix: /gone}}]
    route: [{destination: {host: reviews, subset: gone}}]
  - match: [{uri: {prefix: /teapot}}]
    directResponse: {status: 418, body: {string: short and stout}}
  - match: [{queryParams: {v: {exact: "2"}}, method: {exact: POST}}]
    route: [{destination: {host: reviews, subset: v2}}]
  - match: [{sourceLabels: {app: nobody}}]
    route: [{destination: {host: reviews, subset: v2}}]
  - route: [{destination: {host: reviews, subset: v1}}]
`

// bookstore is one mesh with everything that the live tests need.
type bookstore struct {
	*liveMesh
	client, v1, v2 *model.Proxy
	flaky          atomic.Int32
	mirrored       atomic.Int32
	mirrorHost     atomic.Value
}

func newBookstore(t *testing.T, network byte, more string) *bookstore {
	m := &bookstore{liveMesh: newLive(t, network)}
	m.client = m.workload("client-1", "default", "client", map[string]string{"app": "client"}, port(t, "http", 9000))
	m.v1 = m.workload("reviews-v1-1", "default", "reviews", map[string]string{"app": "reviews", "version": "v1"}, port(t, "http", 9080), port(t, "tcp-db", 9090))
	m.v2 = m.workload("reviews-v2-1", "default", "reviews", map[string]string{"app": "reviews", "version": "v2"}, port(t, "http", 9080), port(t, "tcp-db", 9090))
	m.service("client", "default", m.client)
	m.service("reviews", "default", m.v1, m.v2)
	m.apply(rules)
	m.apply(more)
	m.echo(m.client, nil)
	m.echo(m.v1, m.handler(m.v1))
	m.echo(m.v2, m.handler(m.v2))
	m.tcpEcho(m.v1, m.v1.Ports[1])
	m.tcpEcho(m.v2, m.v2.Ports[1])
	m.apart = []string{"reviews-v1-1"}
	m.start()
	return m
}

func (m *bookstore) handler(p *model.Proxy) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("x-app", p.Name)
		w.Header().Set("x-writ-denied-by", "a lie of the application")
		switch {
		case strings.HasPrefix(r.URL.Path, "/slow"):
			select {
			case <-r.Context().Done():
			case <-time.After(3 * time.Second):
			}
		case strings.HasPrefix(r.URL.Path, "/flaky"):
			if m.flaky.Add(1) < 3 {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
		case strings.HasPrefix(r.URL.Path, "/mirrored") && p == m.v2:
			m.mirrored.Add(1)
			m.mirrorHost.Store(r.Host)
		case r.Header.Get("Upgrade") == "websocket":
			echoUpgraded(w)
			return
		}
		fmt.Fprintf(w, "%s %s %s host=%s\n", p.Name, r.Method, r.URL.RequestURI(), r.Host)
		_ = r.Header.Write(w)
	}
}

// echoUpgraded takes the connection over and sends back what comes.
func echoUpgraded(w http.ResponseWriter) {
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer c.Close()
	fmt.Fprint(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
	line, err := rw.ReadString('\n')
	if err == nil {
		fmt.Fprint(c, "echo "+line)
	}
}

func TestLiveHTTP(t *testing.T) {
	t.Parallel()
	m := newBookstore(t, 10, "")
	const base = "http://reviews:9080"
	get := func(path string, headers ...string) response {
		t.Helper()
		return m.via(m.client, http.MethodGet, base+path, headers...)
	}

	t.Run("mesh mTLS, HTTP/2, caller's identity", func(t *testing.T) {
		r := get("/")
		if r.Header.Get("x-app") != "reviews-v1-1" || !strings.Contains(r.body, "URI=spiffe://cluster.local/ns/default/sa/client") {
			t.Errorf("got %v %s", r.Status, r.body)
		}
		if d := r.Header.Get("x-writ-denied-by"); d != "" {
			t.Errorf("an application's x-writ-denied-by came through: %q", d)
		}
		proctest.Until(t, bound, "the inbound log has a line", func() bool { return strings.Contains(m.logs["reviews-v1-1"].String(), `"protocol":"HTTP/2"`) })
		if log := m.logs["reviews-v1-1"].String(); !strings.Contains(envoytest.Find(t), envoytest.Oldest) && !strings.Contains(log, `"downstream_tls_group":"X25519MLKEM768"`) {
			t.Errorf("the inbound log does not say by which group the keys were agreed on:\n%s", log)
		}
		// As in Istio's task of authentication policies.
		if form := regexp.MustCompile(`By=spiffe://\S+;Hash=[0-9a-f]{64};Subject="[^"]*";URI=spiffe://`); !form.MatchString(r.body) {
			t.Errorf("%s", r.body)
		}
	})
	t.Run("every form of the name", func(t *testing.T) {
		for _, host := range []string{"reviews.default", "reviews.default.svc", "reviews.default.svc.cluster.local"} {
			if r := m.via(m.client, http.MethodGet, "http://"+host+":9080/"); r.Header.Get("x-app") != "reviews-v1-1" {
				t.Errorf("%s: %s %s", host, r.Status, r.body)
			}
		}
	})
	t.Run("header match is exact and comes first", func(t *testing.T) {
		if r := get("/", "end-user", "john"); r.Header.Get("x-app") != "reviews-v2-1" || r.Header.Get("x-subset") != "v2" {
			t.Errorf("john: %s", r.body)
		}
		for _, other := range []string{"John", "johnny", "mary"} {
			if r := get("/", "end-user", other); r.Header.Get("x-app") != "reviews-v1-1" {
				t.Errorf("%s: %s", other, r.body)
			}
		}
	})
	t.Run("method and query", func(t *testing.T) {
		if r := m.via(m.client, http.MethodPost, base+"/?v=2"); r.Header.Get("x-app") != "reviews-v2-1" {
			t.Errorf("POST v=2: %s", r.body)
		}
		if r := get("/?v=2"); r.Header.Get("x-app") != "reviews-v1-1" {
			t.Errorf("GET v=2: %s", r.body)
		}
	})
	t.Run("weights", func(t *testing.T) {
		n, v2 := 500, 0
		for range n {
			if get("/canary").Header.Get("x-app") == "reviews-v2-1" {
				v2++
			}
		}
		// Five standard deviations of 500 draws at 10 %: wrong once in millions of runs.
		if v2 < 17 || v2 > 84 {
			t.Errorf("%d of %d requests at v2, want about 50", v2, n)
		}
	})
	t.Run("redirect", func(t *testing.T) {
		r := get("/old")
		if r.StatusCode != 302 || r.Header.Get("Location") != "http://elsewhere.example/new" {
			t.Errorf("%s Location %q", r.Status, r.Header.Get("Location"))
		}
	})
	t.Run("rewrite and headers", func(t *testing.T) {
		r := get("/api/items?x=1", "x-secret", "s")
		if !strings.Contains(r.body, "GET /v2/items?x=1 host=inner.example") || !strings.Contains(r.body, "X-Set: yes") || strings.Contains(r.body, "X-Secret") {
			t.Errorf("%s", r.body)
		}
	})
	t.Run("faults", func(t *testing.T) {
		if r := get("/abort"); r.StatusCode != 555 || r.body != "fault filter abort" {
			t.Errorf("abort: %s %s", r.Status, r.body)
		}
		if r := get("/delay"); r.StatusCode != 200 || r.took < 390*time.Millisecond {
			t.Errorf("delay: %s after %v", r.Status, r.took)
		}
	})
	t.Run("timeout", func(t *testing.T) {
		if r := get("/slow"); r.StatusCode != 504 || r.took > 2*time.Second {
			t.Errorf("%s after %v", r.Status, r.took)
		}
	})
	t.Run("circuit breaker", func(t *testing.T) {
		var wg sync.WaitGroup
		var admitted, refused atomic.Int32
		for range 16 {
			wg.Go(func() {
				switch r := get("/slow"); r.StatusCode {
				case 504: // held until the timeout of the route
					admitted.Add(1)
				case 503:
					refused.Add(1)
				default:
					t.Errorf("%s %s", r.Status, r.body)
				}
			})
		}
		wg.Wait()
		// Workers count for themselves for a moment, so that a few more may pass.
		if admitted.Load() < 4 || refused.Load() < 4 {
			t.Errorf("%d of 16 at once were let through and %d refused, want about 4 and 12", admitted.Load(), refused.Load())
		}
	})
	t.Run("retries", func(t *testing.T) {
		if r := get("/flaky"); r.StatusCode != 200 || m.flaky.Load() != 3 {
			t.Errorf("%s after %d tries, want 200 after 3", r.Status, m.flaky.Load())
		}
	})
	t.Run("mirror", func(t *testing.T) {
		if r := get("/mirrored"); r.Header.Get("x-app") != "reviews-v1-1" {
			t.Errorf("%s", r.body)
		}
		proctest.Until(t, bound, "the copy arrives", func() bool { return m.mirrored.Load() == 1 })
		if h := m.mirrorHost.Load(); h != "reviews-shadow:9080" {
			t.Errorf("the copy's host is %v", h)
		}
	})
	t.Run("nothing behind a subset", func(t *testing.T) {
		if r := get("/gone"); r.StatusCode != 503 {
			t.Errorf("%s %s", r.Status, r.body)
		}
	})
	t.Run("direct response", func(t *testing.T) {
		if r := get("/teapot"); r.StatusCode != 418 || r.body != "short and stout" {
			t.Errorf("%s %s", r.Status, r.body)
		}
	})
	t.Run("websocket through both sidecars", m.websocket)
	t.Run("plain clients are served in permissive mode", func(t *testing.T) {
		r := m.request(&http.Transport{}, http.MethodGet, fmt.Sprintf("http://%s:9080/", m.v1.Address), "x-forwarded-client-cert", "URI=spiffe://cluster.local/ns/default/sa/admin")
		if r.StatusCode != 200 || strings.Contains(r.body, "spiffe://") {
			t.Errorf("%s %s", r.Status, r.body)
		}
	})
	t.Run("hosts that the mesh does not know", m.unknownHosts)
}

func (m *bookstore) websocket(t *testing.T) {
	c := m.dial(t)
	fmt.Fprint(c, "GET http://reviews:9080/ws HTTP/1.1\r\nHost: reviews:9080\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\nhello\n")
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	line, err := r.ReadString('\n')
	if resp.StatusCode != 101 || line != "echo hello\n" {
		t.Errorf("%s %q %v", resp.Status, line, err)
	}
}

func (m *bookstore) unknownHosts(t *testing.T) {
	outside := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "outside") }))
	t.Cleanup(outside.Close)
	srv := outside.Listener.Addr().String()
	r := m.via(m.client, http.MethodGet, "http://"+srv+"/x")
	if r.StatusCode != 200 || !strings.Contains(r.body, "outside") {
		t.Errorf("absolute form: %s %s", r.Status, r.body)
	}
	c := m.tunnel(t, srv)
	fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("tunnel: %v %v", resp, err)
	}
	resp.Body.Close()
}

func (m *bookstore) dial(t *testing.T) net.Conn {
	t.Helper()
	c, err := net.DialTimeout("tcp", fmt.Sprintf("%s:%d", m.client.Address, model.ExplicitProxyPort), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c
}

// tunnel opens a CONNECT tunnel to target.
func (m *bookstore) tunnel(t *testing.T, target string) net.Conn {
	t.Helper()
	c := m.dial(t)
	fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", target, target)
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, &http.Request{Method: http.MethodConnect})
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("CONNECT %s: %v %v", target, resp, err)
	}
	return c
}

func TestLiveTunnels(t *testing.T) {
	t.Parallel()
	m := newBookstore(t, 11, `
kind: VirtualService
metadata: {name: reviews-tcp}
spec:
  hosts: [reviews.default.svc.cluster.local]
  tcp:
  - match: [{port: 9090}]
    route: [{destination: {host: reviews, subset: v2, port: {number: 9090}}}]
`)
	c := m.tunnel(t, "reviews:9090")
	fmt.Fprintln(c, "hello")
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	t.Log(line)
	if !strings.HasSuffix(line, " hello\n") {
		t.Errorf("got %q", line)
	}
	t.Run("plain HTTP inside a tunnel to an HTTP port", func(t *testing.T) {
		c := m.tunnel(t, "reviews:9080")
		fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: reviews\r\nConnection: close\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 200 || resp.Header.Get("x-app") == "" {
			t.Errorf("%s %v", resp.Status, resp.Header)
		}
	})
}

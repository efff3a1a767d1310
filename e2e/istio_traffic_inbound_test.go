package e2e

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/proctest"
)

// proxiedApp answers a connection with what the line of the PROXY protocol says that it
// begins with.
func proxiedApp(t *testing.T) int {
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
				line, _ := bufio.NewReader(c).ReadString('\n')
				words := append(strings.Fields(line), "", "", "")
				_, _ = fmt.Fprintf(c, "%s,%s,%s .\n", words[0], words[1], words[2])
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

// socketApp serves an app at a unix socket.
func socketApp(t *testing.T, a *app) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(a.serve), ReadHeaderTimeout: time.Minute}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
	return path
}

// TestIstioInbound is about what a Sidecar, or the DestinationRule of a service, says of
// the ports of its workload, and about the PROXY protocol on both sides.
func TestIstioInbound(t *testing.T) {
	t.Parallel()
	named, socket, front := newApp(t, "named"), newApp(t, "socket"), proctest.Port(t)
	m := up(t, writeFiles(t, map[string]string{
		"mesh.yaml": "outboundTrafficPolicy: {mode: ALLOW_ANY_DYNAMIC_DNS}\ndefaultConfig: {gatewayTopology: {proxyProtocol: {}}}\n",
		"workloads.yaml": play("default", "client", map[string]string{"app": "client"}, named.port) +
			play("default", "limited", map[string]string{"app": "limited"}, named.port) + play("other", "far", map[string]string{"app": "far"}, named.port) +
			play("default", "server", map[string]string{"app": "server"}, 1, "http 8000", "http-socket 8001", "http-few 8002", "http-more 8003"),
		"rules.yaml": object("Sidecar", "default", "server", fmt.Sprintf(`
			workloadSelector: {labels: {app: server}}
			inboundConnectionPool: {tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1}}
			ingress:
			- {port: {number: 8000, name: http, protocol: HTTP}, defaultEndpoint: ":%[1]d", connectionPool: {tcp: {maxConnections: 100}}}
			- {port: {number: 8001, name: http-socket, protocol: HTTP}, defaultEndpoint: "unix://%[2]s"}
			- {port: {number: 8002, name: http-few, protocol: HTTP}, defaultEndpoint: "127.0.0.1:%[1]d"}
			- {port: {number: 8003, name: http-more, protocol: HTTP}, defaultEndpoint: "127.0.0.1:%[1]d", connectionPool: {tcp: {maxConnections: 100}}}
			- {port: {number: 8004, name: http-opened, protocol: HTTP}, defaultEndpoint: "127.0.0.1:%[1]d"}`, named.port, socketApp(t, socket))) +
			service("opened", "app: server", "{name: http, port: 80, targetPort: 8004}, {name: http-named, port: 81, targetPort: http-opened}") + // a port that the Sidecar alone has
			object("VirtualService", "default", "server", "hosts: [server]\nhttp: [{retries: {attempts: 0}, route: [{destination: {host: server}}]}]") +
			// Clients of other namespaces do not see the rule: the server's limits are left.
			destinationRule("default", "limited", "host: limited\nexportTo: [.]\ntrafficPolicy: {connectionPool: {tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1}}}") +
			object("VirtualService", "default", "limited", "hosts: [limited]\nhttp: [{retries: {attempts: 0}, route: [{destination: {host: limited}}]}]") +
			gatewayObject("istio-system", "front", fmt.Sprintf(`
			- port: {number: %d, name: http, protocol: HTTP}
			  hosts: ["*"]`, front)) +
			object("VirtualService", "default", "front", "hosts: [\"*\"]\ngateways: [istio-system/front]\nhttp: [{route: [{destination: {host: server, port: {number: 8000}}}]}]") +
			serviceEntry("proxied", fmt.Sprintf(`
			hosts: [proxied.example.com]
			ports: [{number: 9000, name: p, protocol: TCP}]
			resolution: STATIC
			endpoints: [{address: 127.0.0.1, ports: {p: %d}}]`, proxiedApp(t))) +
			destinationRule("default", "proxied", "host: proxied.example.com\ntrafficPolicy: {proxyProtocol: {version: V1}}"),
	}))
	for target, want := range map[string]string{
		"http://server:8000/": "named", "http://server:8001/": "socket", "http://opened/": "named", "http://opened:81/": "named",
		fmt.Sprintf("http://localhost:%d/", named.port): "named",
	} {
		if got := m.get("client-1", target); got.outcome() != want {
			t.Errorf("%s: %s, want %s", target, got, want)
		}
	}
	at := func(port int) map[string]int {
		return spread(16, func(int) answer {
			return m.get("client-1", fmt.Sprintf("http://server:%d/", port), "x-do: sleep=500ms")
		})
	}
	if got := spread(16, func(int) answer { return m.get("far-1", "http://limited.default:8000/", "x-do: sleep=500ms") }); got["503"] == 0 || got["named"] == 0 {
		t.Errorf("more than a DestinationRule lets in at once: %v", got)
	}
	if got := at(8002); got["503"] == 0 || got["named"] == 0 {
		t.Errorf("more than the Sidecar lets in at once: %v", got)
	}
	if got := at(8003); got["named"] != 16 {
		t.Errorf("a port with limits of its own: %v", got)
	}
	if got := via(m.proxyOf("client-1"), "proxied.example.com:9000", "x"); !strings.HasPrefix(got, "PROXY,TCP4,127.") {
		t.Errorf("a DestinationRule with proxyProtocol: %s", got)
	}
	t.Run("gateway", func(t *testing.T) {
		ask := func(first string) string {
			c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", front))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(5 * time.Second))
			_, _ = fmt.Fprintf(c, "%sGET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n", first)
			var b strings.Builder
			_, _ = bufio.NewReader(c).WriteTo(&b)
			return b.String()
		}
		if got := ask("PROXY TCP4 203.0.113.7 127.0.0.1 4000 80\r\n"); !strings.Contains(got, `"X-Forwarded-For":["203.0.113.7"]`) {
			t.Errorf("with the line: %s", got)
		}
		if got := ask(""); strings.Contains(got, "200 OK") {
			t.Errorf("without the line: %s", got)
		}
	})
}

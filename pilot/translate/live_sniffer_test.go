package translate

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/pilot/model"
)

// sniffer is on the wire to an address: it has every byte in both directions.
type sniffer struct {
	mu   sync.Mutex
	seen bytes.Buffer
}

func (s *sniffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen.Write(p)
}

func (s *sniffer) has(text string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return bytes.Contains(s.seen.Bytes(), []byte(text))
}

func (s *sniffer) bytes() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen.Len()
}

// before puts the sniffer before a service's only endpoint.
func (s *sniffer) before(t *testing.T, service *model.Service) {
	t.Helper()
	e := service.Endpoints[0]
	to := net.JoinHostPort(e.Address, "9080")
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", proctest.Port(t)))
	if err != nil {
		t.Fatal(err)
	}
	e.Address, e.Ports[9080] = "127.0.0.1", uint32(l.Addr().(*net.TCPAddr).Port) //nolint:gosec // a port
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				in.Close()
				continue
			}
			pipe := func(to, from net.Conn) {
				_, _ = io.Copy(io.MultiWriter(s, to), from)
				to.Close()
			}
			go pipe(out, in)
			go pipe(in, out)
		}
	}()
}

// TestLiveSniffer: whoever has every byte between two sidecars sees nothing of what the
// programs say, and the same bytes without mutual TLS show that he would. The access
// log of the callee names the caller by his SPIFFE ID.
func TestLiveSniffer(t *testing.T) {
	t.Parallel()
	m := newLive(t, 24)
	client := m.workload("client-1", "default", "client", map[string]string{"app": "client"}, port(t, "http", 9000))
	strict := m.workload("strict-1", "default", "strict", map[string]string{"app": "strict"}, port(t, "http", 9080))
	plain := m.workload("plain-1", "default", "plain", map[string]string{"app": "plain"}, port(t, "http", 9080))
	var strictly, plainly sniffer
	strictly.before(t, m.service("strict", "default", strict))
	plainly.before(t, m.service("plain", "default", plain))
	m.apply(`
kind: PeerAuthentication
metadata: {name: strict}
spec: {selector: {matchLabels: {app: strict}}, mtls: {mode: STRICT}}
---
kind: PeerAuthentication
metadata: {name: plain}
spec: {selector: {matchLabels: {app: plain}}, mtls: {mode: DISABLE}}
`)
	for _, p := range []*model.Proxy{client, strict, plain} {
		m.echo(p, nil)
	}
	m.apart = []string{"strict-1", "plain-1"}
	m.start()
	words := []string{"secret-path", "secret-header", "host=", "GET ", "HTTP/1.1"}
	for to, seen := range map[string]*sniffer{"strict": &strictly, "plain": &plainly} {
		r := m.via(client, http.MethodGet, "http://"+to+":9080/secret-path", "x-secret", "secret-header")
		if r.StatusCode != http.StatusOK || !strings.Contains(r.body, "secret-path") || !strings.Contains(strings.ToLower(r.body), "secret-header") {
			t.Fatalf("%s: %s %s", to, r.Status, r.body)
		}
		if seen.bytes() < 500 {
			t.Fatalf("%s: the sniffer saw %d bytes", to, seen.bytes())
		}
		for _, word := range words {
			if got, want := seen.has(word), to == "plain"; got != want {
				t.Errorf("%s: the sniffer saw %q: %v", to, word, got)
			}
		}
	}
	proctest.Until(t, bound, "the access log names the caller", func() bool {
		return strings.Contains(m.logs["strict-1"].String(), `"source_principal":"spiffe://cluster.local/ns/default/sa/client"`)
	})
	if strings.Contains(m.logs["plain-1"].String(), `"source_principal":"spiffe://`) {
		t.Error("a caller without a certificate has a principal in the access log")
	}
}

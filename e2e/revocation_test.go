package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/proctest"
)

// revocationMesh has a workload b with an HTTP and a TCP port, and callers a and c.
func revocationMesh(t *testing.T) *mesh {
	t.Helper()
	a, b, c := newEcho(t, "a"), newEcho(t, "b"), newEcho(t, "c")
	two := strings.Replace(workload("b", "b", b), fmt.Sprintf("app: %d}]", b.port), fmt.Sprintf("app: %d}, {name: tcp, port: 9000, app: %d}]", b.port, tcpApp(t, "b")), 1)
	return up(t, writeFiles(t, map[string]string{"workloads.yaml": workload("a", "a", a) + two + workload("c", "c", c), "mtls.yaml": strict}))
}

const accountOf = "spiffe://cluster.local/ns/default/sa/"

// caller holds an HTTP connection and a TCP connection to b with one certificate.
type caller struct {
	t    *testing.T
	m    *mesh
	cert tls.Certificate
	// target is the address that is called, of b-1 if it is empty.
	target string
	http   *http.Client
	tcp    *tls.Conn
	read   *bufio.Reader
}

func newRevocationCaller(t *testing.T, m *mesh, id string) *caller {
	t.Helper()
	c := &caller{t: t, m: m, cert: m.mint(id)}
	transport := &http.Transport{TLSClientConfig: c.config("http/1.1"), MaxConnsPerHost: 1}
	c.http = &http.Client{Transport: transport, Timeout: 5 * time.Second}
	t.Cleanup(c.http.CloseIdleConnections)
	conn, err := c.dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	c.tcp, c.read = conn, bufio.NewReader(conn)
	if err := c.speak(); err != nil {
		t.Fatal(err)
	}
	if got, _ := c.get(); got.status != http.StatusOK {
		t.Fatalf("before anything is revoked: %s", got)
	}
	return c
}

func (c *caller) config(protocol string) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{c.cert}, InsecureSkipVerify: true, NextProtos: []string{protocol}} //nolint:gosec // the server's identity is not what these tests are about
}

func (c *caller) dial() (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(c.t.Context(), 5*time.Second)
	defer cancel()
	conn, err := (&tls.Dialer{Config: c.config("writ")}).DialContext(ctx, "tcp", c.m.addressOf("b-1")+":9000")
	if err != nil {
		return nil, err
	}
	return conn.(*tls.Conn), nil
}

// speak sends a line over the TCP connection and waits for the answer.
func (c *caller) speak() error {
	_ = c.tcp.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c.tcp, "hello\n"); err != nil {
		return err
	}
	line, err := c.read.ReadString('\n')
	if err == nil && line != "b hello\n" {
		err = fmt.Errorf("answer %q", line)
	}
	return err
}

// get sends a request and tells whether it went over a connection that was open.
func (c *caller) get() (got answer, reused bool) {
	ctx := httptrace.WithClientTrace(c.t.Context(), &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { reused = i.Reused }})
	if c.target == "" {
		c.target = c.m.addressOf("b-1")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+c.target+":8000/", http.NoBody)
	if err != nil {
		c.t.Fatal(err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return answer{err: err}, reused
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	return answer{status: resp.StatusCode, header: resp.Header, body: string(body), err: err}, reused
}

// refused waits until the live HTTP connection, then a new one, then the open TCP
// connection is refused, and tells how long each took.
func (c *caller) refused(since time.Time, by string) {
	c.t.Helper()
	proctest.Eventually(c.t, 20*time.Second, func() error {
		got, reused := c.get()
		if !reused {
			c.t.Fatalf("the live connection is gone: %s", got)
		}
		if got.status != http.StatusForbidden || got.header.Get("x-writ-denied-by") != "Revocation "+by {
			return fmt.Errorf("on the live connection: %s", got)
		}
		return nil
	})
	c.t.Logf("refused on the live HTTP connection after %s", time.Since(since).Round(time.Millisecond))
	proctest.Eventually(c.t, 20*time.Second, func() error {
		if err := c.handshake(); err == nil {
			return errors.New("a new connection is taken")
		}
		return nil
	})
	c.t.Logf("refused in a new handshake after %s", time.Since(since).Round(time.Millisecond))
	proctest.Eventually(c.t, 20*time.Second, func() error {
		if err := c.speak(); err == nil {
			return errors.New("the TCP connection is open")
		}
		return nil
	})
	c.t.Logf("TCP connection closed after %s", time.Since(since).Round(time.Millisecond))
}

// handshake makes a new TCP connection and says something: with TLS 1.3 the client
// learns of a refusal after its side of the handshake.
func (c *caller) handshake() error {
	conn, err := c.dial()
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	fresh := &caller{t: c.t, m: c.m, tcp: conn, read: bufio.NewReader(conn)}
	return fresh.speak()
}

func TestRevokedIdentity(t *testing.T) {
	t.Parallel()
	m := revocationMesh(t)
	id := accountOf + "a"
	old, other := newRevocationCaller(t, m, id), newRevocationCaller(t, m, accountOf+"c")
	if got := m.get("a-1", "http://b:8000/"); got.status != http.StatusOK {
		t.Fatalf("from a: %s", got)
	}
	began := time.Now()
	if out, code := m.writ("certs", "revoke", id, m.dir, "--reason", "key-compromise"); code != 0 {
		t.Fatalf("exit code %d: %s", code, out)
	}
	t.Logf("the command took %s", time.Since(began).Round(time.Millisecond))
	old.refused(began, id)
	proctest.Eventually(t, 10*time.Second, func() error {
		got := m.get("a-1", "http://b:8000/")
		if got.status == http.StatusOK {
			return fmt.Errorf("from the workload's own Envoy: %s", got)
		}
		return nil
	})
	if got, reused := other.get(); got.status != http.StatusOK || !reused {
		t.Errorf("somebody else's live connection: %s, the same: %t", got, reused)
	}
	if err := other.handshake(); err != nil {
		t.Errorf("somebody else's new connection: %v", err)
	}
	if out, _ := m.writ("certs", "revocations", m.dir); !strings.Contains(out, id) || !strings.Contains(out, "key-compromise") {
		t.Errorf("the list is\n%s", out)
	}
	if out, code := m.writ("certs", "unrevoke", id, m.dir); code != 0 {
		t.Fatalf("exit code %d: %s", code, out)
	}
	proctest.Eventually(t, 10*time.Second, func() error {
		if got := m.get("a-1", "http://b:8000/"); got.status != http.StatusOK {
			return fmt.Errorf("from the workload's own Envoy: %s", got)
		}
		if got, _ := old.get(); got.status != http.StatusOK {
			return fmt.Errorf("on the live connection: %s", got)
		}
		return old.handshake()
	})
	if out, _ := m.writ("certs", "revocations", m.dir); !strings.Contains(out, "nothing is revoked") {
		t.Errorf("the list is\n%s", out)
	}
	m.revokedServer()
}

// revokedServer revokes the identity of b: nobody sends it anything, over connections
// that are open either.
func (m *mesh) revokedServer() {
	m.t.Helper()
	c := client(m.proxyOf("c-1"))
	defer c.CloseIdleConnections()
	ask := func(want int) error {
		if got := do(c, request{url: "http://b:8000/"}); got.status != want {
			return fmt.Errorf("got %s, want %d", got, want)
		}
		return nil
	}
	if err := ask(http.StatusOK); err != nil {
		m.t.Error(err)
	}
	began := time.Now()
	if out, code := m.writ("certs", "revoke", accountOf+"b", m.dir); code != 0 {
		m.t.Fatalf("exit code %d: %s", code, out)
	}
	proctest.Eventually(m.t, 10*time.Second, func() error { return ask(http.StatusServiceUnavailable) })
	m.t.Logf("nothing is sent to a revoked server after %s", time.Since(began).Round(time.Millisecond))
	if out, code := m.writ("explain", "--live", "--from", "c", "--to", "b:8000", m.dir); code != 1 || !strings.Contains(out, "the caller gets 503") {
		m.t.Errorf("explain: %d %s", code, out)
	}
	if out, code := m.writ("certs", "unrevoke", accountOf+"b", m.dir); code != 0 {
		m.t.Fatalf("exit code %d: %s", code, out)
	}
	proctest.Eventually(m.t, 10*time.Second, func() error { return ask(http.StatusOK) })
}

// TestRevokedCertificate revokes one certificate of an identity: others of it are good,
// and a workload recovers by itself.
func TestRevokedCertificate(t *testing.T) {
	t.Parallel()
	m := revocationMesh(t)
	old, other := newRevocationCaller(t, m, accountOf+"a"), newRevocationCaller(t, m, accountOf+"a")
	leaf, err := x509.ParseCertificate(old.cert.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	serial := hex.EncodeToString(leaf.SerialNumber.Bytes())
	began := time.Now()
	if out, code := m.writ("certs", "revoke", serial, m.dir); code != 0 {
		t.Fatalf("exit code %d: %s", code, out)
	}
	old.refused(began, serial)
	if got, reused := other.get(); got.status != http.StatusOK || !reused {
		t.Errorf("another certificate's live connection: %s, the same: %t", got, reused)
	}
	if err := other.handshake(); err != nil {
		t.Errorf("another certificate's new connection: %v", err)
	}

	for _, who := range []string{"a", "b"} { // a client's own and a server's
		was := m.serialOf(who)
		if was == "" {
			t.Fatalf("nobody has a certificate of %s", who)
		}
		began = time.Now()
		if out, code := m.writ("certs", "revoke", was, m.dir); code != 0 {
			t.Fatalf("exit code %d: %s", code, out)
		}
		proctest.Eventually(t, 10*time.Second, func() error {
			if is := m.serialOf(who); is == was || is == "" {
				return fmt.Errorf("%s has no other certificate: %q", who, is)
			}
			if got := m.get("a-1", "http://b:8000/"); got.status != http.StatusOK {
				return fmt.Errorf("%s's certificate is revoked: %s", who, got)
			}
			return nil
		})
		t.Logf("%s has recovered after %s", who, time.Since(began).Round(time.Millisecond))
	}
}

// serialOf is the serial number of the live certificate that a workload has, empty if
// it has none.
func (m *mesh) serialOf(account string) string {
	m.t.Helper()
	out, code := m.writ("certs", "ls", m.dir, "-o", "json", "--id", accountOf+account)
	var rows []struct {
		Serial    string
		Workloads []string
	}
	if err := json.Unmarshal([]byte(out), &rows); code != 0 || err != nil {
		m.t.Fatalf("certs ls: exit code %d, %v\n%s", code, err, out)
	}
	for _, r := range rows {
		if len(r.Workloads) > 0 {
			return r.Serial
		}
	}
	return ""
}

// TestRevocationInTwentyEnvoys: one certificate has a live connection to each of twenty
// Envoys. How long it takes until all of them refuse it is told, not judged.
func TestRevocationInTwentyEnvoys(t *testing.T) {
	t.Parallel()
	const envoys = 20
	e := newEcho(t, "b")
	var workloads strings.Builder
	for i := range envoys {
		workloads.WriteString(workload(fmt.Sprintf("b%d", i), "b", e))
	}
	m := up(t, writeFiles(t, map[string]string{"workloads.yaml": workloads.String(), "mtls.yaml": strict}))
	id := accountOf + "nobody"
	cert := m.mint(id)
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	callers := make([]*caller, envoys)
	for i := range callers {
		c := &caller{t: t, m: m, cert: cert, target: m.addressOf(fmt.Sprintf("b%d-1", i))}
		c.http = &http.Client{Transport: &http.Transport{TLSClientConfig: c.config("http/1.1"), MaxConnsPerHost: 1}, Timeout: 10 * time.Second}
		t.Cleanup(c.http.CloseIdleConnections)
		if got, _ := c.get(); got.status != http.StatusOK {
			t.Fatalf("before: %s", got)
		}
		callers[i] = c
	}
	began := time.Now()
	if out, code := m.writ("certs", "revoke", hex.EncodeToString(leaf.SerialNumber.Bytes()), m.dir); code != 0 {
		t.Fatalf("exit code %d: %s", code, out)
	}
	took := make([]time.Duration, 0, envoys)
	for _, c := range callers {
		proctest.Eventually(t, 20*time.Second, func() error {
			got, reused := c.get()
			if got.status != http.StatusForbidden || !reused {
				return fmt.Errorf("%s on the live connection: %s, the same: %t", c.target, got, reused)
			}
			return nil
		})
		proctest.Eventually(t, 20*time.Second, func() error {
			fresh := &http.Client{Transport: &http.Transport{TLSClientConfig: c.config("http/1.1"), DisableKeepAlives: true}, Timeout: 10 * time.Second}
			if got, _ := (&caller{t: t, m: m, target: c.target, http: fresh}).get(); got.err == nil {
				return fmt.Errorf("%s takes a new connection: %s", c.target, got)
			}
			return nil
		})
		took = append(took, time.Since(began))
	}
	t.Logf("refused by all %d Envoys, on live connections and new ones, %s after the command began", envoys, took[envoys-1].Round(time.Millisecond))
}

// TestRevocationSourceAway: what is revoked stays so while the authority is away and
// pilot starts anew.
func TestRevocationSourceAway(t *testing.T) {
	t.Parallel()
	m := revocationMesh(t)
	old := newRevocationCaller(t, m, accountOf+"a")
	began := time.Now()
	if out, code := m.writ("certs", "revoke", accountOf+"a", m.dir); code != 0 {
		t.Fatalf("exit code %d: %s", code, out)
	}
	old.refused(began, accountOf+"a")
	defer m.pause("writ-ca")()
	before := m.pidOf("writ-pilot")
	m.kill("writ-pilot")
	proctest.Eventually(t, 20*time.Second, func() error {
		if m.pidOf("writ-pilot") == before {
			return errors.New("pilot has not started anew")
		}
		text, err := m.monitoring("pilot", "/metrics")
		if err == nil && (!strings.Contains(text, "\nwrit_pilot_revision_live ") || strings.Contains(text, "\nwrit_pilot_revision_live 0\n")) {
			err = errors.New("pilot has no live revision")
		}
		return err
	})
	if got, _ := old.get(); got.status != http.StatusForbidden {
		t.Errorf("while the authority is away: %s", got)
	}
	if err := old.handshake(); err == nil {
		t.Error("while the authority is away a new connection is taken")
	}
}

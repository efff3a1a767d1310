package e2e

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/writ-mesh/writ/internal/proctest"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// strict is mTLS everywhere.
const strict = `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
`

// mint gets a certificate for any identity from the authority's admin socket.
func (m *mesh) mint(id string) tls.Certificate {
	m.t.Helper()
	data, err := os.ReadFile(filepath.Join(m.dir, ".writ", "run.json"))
	if err != nil {
		m.t.Fatal(err)
	}
	var run struct{ Admin map[string]string }
	if err := json.Unmarshal(data, &run); err != nil {
		m.t.Fatal(err)
	}
	conn, err := grpc.NewClient(run.Admin["ca"], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		m.t.Fatal(err)
	}
	defer conn.Close()
	key, csr := newKey(m.t)
	resp, err := capb.NewAdminClient(conn).Mint(m.t.Context(), &capb.MintRequest{SpiffeId: id, Csr: csr})
	if err != nil {
		m.t.Fatal(err)
	}
	return tls.Certificate{Certificate: resp.GetChain(), PrivateKey: key}
}

func newKey(t *testing.T) (*ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return key, csr
}

// foreign makes a certificate for id under a root of its own.
func foreign(t *testing.T, id string) tls.Certificate {
	t.Helper()
	key, _ := newKey(t)
	u, err := url.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "foreign"}, URIs: []*url.URL{u},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// https calls a workload's port directly over TLS.
func https(cfg *tls.Config, target string) (answer, *tls.ConnectionState) {
	cfg.InsecureSkipVerify = true //nolint:gosec // the server's identity is not what these tests are about
	tr := &http.Transport{TLSClientConfig: cfg}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr, Timeout: 5 * time.Second}).Get(target)
	if err != nil {
		return answer{err: err}, nil
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return answer{status: resp.StatusCode, header: resp.Header, body: string(body), err: err}, resp.TLS
}

func TestMutualTLS(t *testing.T) {
	t.Parallel()
	a, b := newEcho(t, "a"), newEcho(t, "b")
	m := up(t, writeFiles(t, map[string]string{"workloads.yaml": workload("a", "a", a) + workload("b", "b", b), "mtls.yaml": strict}))
	direct := m.addressOf("b-1") + ":8000"

	t.Run("through both sidecars", func(t *testing.T) {
		got := m.get("a-1", "http://b:8000/x").saw(t)
		if xfcc := got.Headers.Get("x-forwarded-client-cert"); !strings.Contains(xfcc, "URI=spiffe://cluster.local/ns/default/sa/a") {
			t.Errorf("the callee sees x-forwarded-client-cert %q", xfcc)
		}
		if n := m.stat("b-1", "ssl.versions.TLSv1.3"); n == 0 {
			t.Error("no TLS 1.3 connection was counted at the callee")
		}
		if n := m.stat("b-1", "ssl.versions.TLSv1.2"); n != 0 {
			t.Errorf("%d TLS 1.2 connections at the callee", n)
		}
	})
	t.Run("forged x-forwarded-client-cert is not passed on", func(t *testing.T) {
		got := m.get("a-1", "http://b:8000/x", "x-forwarded-client-cert: URI=spiffe://cluster.local/ns/default/sa/admin").saw(t)
		if xfcc := strings.Join(got.Headers.Values("x-forwarded-client-cert"), ","); strings.Contains(xfcc, "admin") {
			t.Errorf("the callee sees %q", xfcc)
		}
	})
	t.Run("plain text is refused", func(t *testing.T) {
		if got := do(client(""), request{url: "http://" + direct + "/"}); got.err == nil {
			t.Errorf("got %s", got)
		}
	})
	t.Run("no client certificate is refused", func(t *testing.T) {
		if got, _ := https(&tls.Config{}, "https://"+direct+"/"); got.err == nil {
			t.Errorf("got %s", got)
		}
	})
	t.Run("a certificate of another root is refused", func(t *testing.T) {
		cert := foreign(t, "spiffe://cluster.local/ns/default/sa/a")
		if got, _ := https(&tls.Config{Certificates: []tls.Certificate{cert}}, "https://"+direct+"/"); got.err == nil {
			t.Errorf("got %s", got)
		}
	})
	t.Run("a certificate of another trust domain is refused", func(t *testing.T) {
		cert := foreign(t, "spiffe://elsewhere.example/ns/default/sa/a")
		if got, _ := https(&tls.Config{Certificates: []tls.Certificate{cert}}, "https://"+direct+"/"); got.err == nil {
			t.Errorf("got %s", got)
		}
	})
	t.Run("a service of Writ is no workload", func(t *testing.T) {
		cert := m.mint("spiffe://cluster.local/writ/authz")
		if got, _ := https(&tls.Config{Certificates: []tls.Certificate{cert}}, "https://"+direct+"/"); got.err == nil {
			t.Errorf("got %s", got)
		}
	})
	t.Run("a workload's certificate is accepted, over TLS 1.3 with one SPIFFE ID", func(t *testing.T) {
		cert := m.mint("spiffe://cluster.local/ns/default/sa/a")
		got, state := https(&tls.Config{Certificates: []tls.Certificate{cert}}, "https://"+direct+"/")
		if got.err != nil || got.status != http.StatusOK {
			t.Fatalf("got %s", got)
		}
		leaf := state.PeerCertificates[0]
		if state.Version != tls.VersionTLS13 || len(leaf.URIs) != 1 || leaf.URIs[0].String() != "spiffe://cluster.local/ns/default/sa/b" {
			t.Errorf("version %x, URIs %v", state.Version, leaf.URIs)
		}
		if got, _ := https(&tls.Config{Certificates: []tls.Certificate{cert}, MaxVersion: tls.VersionTLS12}, "https://"+direct+"/"); got.err == nil {
			t.Errorf("TLS 1.2: got %s", got)
		}
	})
}

// TestSecureNaming has a server with a certificate of the mesh that is not the
// one its service may be run by.
func TestSecureNaming(t *testing.T) {
	t.Parallel()
	a := newEcho(t, "a")
	m := up(t, writeFiles(t, map[string]string{"workloads.yaml": workload("a", "a", a)}))
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "served") }))
	cert := m.mint("spiffe://cluster.local/ns/default/sa/payments")
	server.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAnyClientCert, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13}
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	entry := func(account string) string {
		return fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: payments}
spec:
  hosts: [payments.example]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
  endpoints: [{address: 127.0.0.1, ports: {http: %s}, serviceAccount: %s}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: payments}
spec:
  host: payments.example
  trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}
`, u.Port(), account)
	}
	write(t, m.dir, "payments.yaml", entry("payments"))
	proctest.Eventually(t, 20*time.Second, func() error {
		if got := m.get("a-1", "http://payments.example/"); got.status != http.StatusOK || got.body != "served" {
			return fmt.Errorf("right identity: %s", got)
		}
		return nil
	})
	write(t, m.dir, "payments.yaml", entry("somebody-else"))
	proctest.Eventually(t, 20*time.Second, func() error {
		if got := m.get("a-1", "http://payments.example/"); got.status != http.StatusServiceUnavailable {
			return fmt.Errorf("wrong identity: %s", got)
		}
		return nil
	})
	if n := m.stat("a-1", "ssl.fail_verify_san"); n == 0 {
		t.Error("no refusal for the server's name was counted at the client")
	}
}

// stat sums the counters of a sidecar whose name ends with suffix.
func (m *mesh) stat(replica, suffix string) int {
	m.t.Helper()
	resp, err := http.Get("http://" + m.addressOf(replica) + ":15000/stats") //nolint:noctx // loopback
	if err != nil {
		m.t.Fatal(err)
	}
	defer resp.Body.Close()
	sum := 0
	for scanner := bufio.NewScanner(resp.Body); scanner.Scan(); {
		name, value, ok := strings.Cut(scanner.Text(), ": ")
		var n int
		if ok && strings.HasSuffix(name, suffix) {
			if _, err := fmt.Sscan(value, &n); err == nil {
				sum += n
			}
		}
	}
	return sum
}

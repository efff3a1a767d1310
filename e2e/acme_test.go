package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/acme"

	"github.com/writ-mesh/writ/internal/proctest"
)

// website asks for a certificate for localhost by ACME.
type website struct {
	*httptest.Server

	key     []byte // of its external account
	answers map[string]string
}

// acmeFor gives the file with what an authority needs to know of the website.
func (s *website) acmeFor(t *testing.T) (file, address string) {
	t.Helper()
	s.answers, s.key = map[string]string{}, make([]byte, 32)
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, s.answers[r.URL.Path]) }))
	t.Cleanup(s.Close)
	_, _ = rand.Read(s.key)
	dir := t.TempDir()
	key, file := filepath.Join(dir, "key"), filepath.Join(dir, "ca.yaml")
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	port := proctest.Port(t)
	config := fmt.Sprintf("acme: {listen: '127.0.0.1:%d', url: 'https://localhost:%d', names: [localhost], networks: [127.0.0.0/8], http_port: %s, external_accounts: [{id: web, key_file: %s}]}\n",
		port, port, u.Port(), key)
	for name, text := range map[string]string{key: base64.RawURLEncoding.EncodeToString(s.key), file: config} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return file, fmt.Sprintf("https://localhost:%d/acme/directory", port)
}

// obtain gets a certificate.
func (s *website) obtain(t *testing.T, directory string) tls.Certificate {
	t.Helper()
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	c := &acme.Client{Key: key, DirectoryURL: directory, HTTPClient: &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // the ACME server's identity is not what this is about
	}}}
	defer c.HTTPClient.CloseIdleConnections()
	_, err = c.Register(ctx, &acme.Account{ExternalAccountBinding: &acme.ExternalAccountBinding{KID: "web", Key: s.key}}, acme.AcceptTOS)
	must(err)
	o, err := c.AuthorizeOrder(ctx, acme.DomainIDs("localhost"))
	must(err)
	az, err := c.GetAuthorization(ctx, o.AuthzURLs[0])
	must(err)
	for _, ch := range az.Challenges {
		if ch.Type == "http-01" {
			s.answers[c.HTTP01ChallengePath(ch.Token)], err = c.HTTP01ChallengeResponse(ch.Token)
			must(err)
			_, err = c.Accept(ctx, ch)
			must(err)
		}
	}
	leafKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{"localhost"}}, leafKey)
	must(err)
	chain, _, err := c.CreateOrderCert(ctx, o.FinalizeURL, csr, true)
	must(err)
	return tls.Certificate{Certificate: chain, PrivateKey: leafKey}
}

// TestACMECertificateIsNoPeer: a web server's certificate is of the mesh's root, and no
// Envoy takes it, neither from a client nor from a server.
func TestACMECertificateIsNoPeer(t *testing.T) {
	t.Parallel()
	site := new(website)
	authority, directory := site.acmeFor(t)
	a, b := newEcho(t, "a"), newEcho(t, "b")
	m := up(t, writeFiles(t, map[string]string{"workloads.yaml": workload("a", "a", a) + workload("b", "b", b), "mtls.yaml": strict}), "--authority", authority)
	outsider := site.obtain(t, directory)
	if out, code := m.writ("certs", "ls", m.dir); code != 0 || !strings.Contains(out, "dns:localhost") {
		t.Errorf("writ certs ls: %s", out)
	}

	target := "https://" + m.addressOf("b-1") + ":8000/"
	if got, _ := https(&tls.Config{Certificates: []tls.Certificate{m.mint("spiffe://cluster.local/ns/default/sa/a")}}, target); got.status != http.StatusOK {
		t.Fatalf("a workload: %s", got)
	}
	if got, _ := https(&tls.Config{Certificates: []tls.Certificate{outsider}}, target); got.err == nil {
		t.Errorf("as a client: %s", got)
	}

	certificate := m.mint("spiffe://cluster.local/ns/default/sa/payments")
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "served") }))
	presented := make(chan tls.Certificate, 1)
	presented <- certificate
	server.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		c := <-presented
		presented <- c
		return &c, nil
	}}
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	write(t, m.dir, "payments.yaml", fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: payments}
spec:
  hosts: [payments.example]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
  endpoints: [{address: 127.0.0.1, ports: {http: %s}, serviceAccount: payments}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: payments}
spec:
  host: payments.example
  trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}
`, u.Port()))
	proctest.Eventually(t, 20*time.Second, func() error {
		if got := m.get("a-1", "http://payments.example/"); got.status != http.StatusOK || got.body != "served" {
			return fmt.Errorf("a server of the mesh: %s", got)
		}
		return nil
	})
	<-presented
	presented <- outsider
	server.CloseClientConnections()
	proctest.Eventually(t, 20*time.Second, func() error {
		if got := m.get("a-1", "http://payments.example/"); got.status != http.StatusServiceUnavailable {
			return fmt.Errorf("as a server: %s", got)
		}
		return nil
	})
	if n := m.stat("a-1", "ssl.fail_verify_san"); n == 0 {
		t.Error("no refusal for the server's name was counted at the client")
	}
}

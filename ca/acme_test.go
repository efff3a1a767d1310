package ca

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	xacme "golang.org/x/crypto/acme"

	"github.com/writ-mesh/writ/ca/acme"
	"github.com/writ-mesh/writ/ca/ledger/pgtest"
	"github.com/writ-mesh/writ/internal/proctest"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// website is a web server of this machine that wants certificates for localhost, a
// name that leads here without any DNS.
type website struct {
	t    testing.TB
	http *httptest.Server
	key  []byte // of its external account
	file string

	mu    sync.Mutex
	paths map[string]string
}

const siteName = "localhost"

func newWebsite(t testing.TB) *website {
	t.Helper()
	s := &website{t: t, paths: map[string]string{}, key: make([]byte, 32), file: filepath.Join(t.TempDir(), "key")}
	_, _ = rand.Read(s.key)
	if err := os.WriteFile(s.file, []byte(base64.RawURLEncoding.EncodeToString(s.key)), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.http = &httptest.Server{Listener: l, Config: &http.Server{Handler: s}} //nolint:gosec // a test's
	s.http.Start()
	t.Cleanup(s.http.Close)
	return s
}

func (s *website) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, _ = w.Write([]byte(s.paths[r.URL.Path]))
}

// configure lets the authority give certificates to the site.
func (s *website) configure(c *Config) {
	u, err := url.Parse(s.http.URL)
	if err != nil {
		s.t.Fatal(err)
	}
	port, err := strconv.Atoi(u.Port())
	if err != nil {
		s.t.Fatal(err)
	}
	own := strconv.Itoa(proctest.Port(s.t))
	c.ACME.Listen, c.ACME.URL, c.ACME.Names = "127.0.0.1:"+own, "https://"+siteName+":"+own, []string{siteName}
	c.ACME.Networks, c.ACME.HTTPPort = []string{"127.0.0.0/8", "::1/128"}, port
	c.ACME.ExternalAccounts = []acme.ExternalAccount{{ID: "web", KeyFile: s.file}}
}

// client has an account at an authority, whose certificate it verifies by its roots.
func (s *website) client(h *harness) *xacme.Client {
	h.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		h.t.Fatal(err)
	}
	c := &xacme.Client{Key: key, DirectoryURL: h.config.ACME.URL + "/acme/directory", HTTPClient: s.trusting(h)}
	account := &xacme.Account{ExternalAccountBinding: &xacme.ExternalAccountBinding{KID: "web", Key: s.key}}
	if _, err := c.Register(h.t.Context(), account, xacme.AcceptTOS); err != nil {
		h.t.Fatal(err)
	}
	return c
}

// trusting is a client with the authority's roots alone.
func (s *website) trusting(h *harness) *http.Client {
	pool := x509.NewCertPool()
	for _, root := range h.bundle().X509Authorities() {
		pool.AddCert(root)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}}
	s.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: testBudget}
}

// ready makes an order and fulfils its challenge.
func (s *website) ready(c *xacme.Client) (*xacme.Order, error) {
	ctx := s.t.Context()
	o, err := c.AuthorizeOrder(ctx, xacme.DomainIDs(siteName))
	if err != nil {
		return nil, err
	}
	az, err := c.GetAuthorization(ctx, o.AuthzURLs[0])
	if err != nil {
		return nil, err
	}
	for _, ch := range az.Challenges {
		if ch.Type != "http-01" {
			continue
		}
		text, err := c.HTTP01ChallengeResponse(ch.Token)
		if err != nil {
			return nil, err
		}
		s.mu.Lock()
		s.paths[c.HTTP01ChallengePath(ch.Token)] = text
		s.mu.Unlock()
		if _, err := c.Accept(ctx, ch); err != nil {
			return nil, err
		}
	}
	return c.WaitOrder(ctx, o.URI)
}

// finalize gets the certificate of an order.
func (s *website) finalize(c *xacme.Client, o *xacme.Order) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{siteName}}, key)
	if err != nil {
		return tls.Certificate{}, err
	}
	chain, _, err := c.CreateOrderCert(s.t.Context(), o.FinalizeURL, der, true)
	if err != nil {
		return tls.Certificate{}, err
	}
	leaf, err := x509.ParseCertificate(chain[0])
	return tls.Certificate{Certificate: chain, PrivateKey: key, Leaf: leaf}, err
}

func (s *website) obtain(c *xacme.Client) tls.Certificate {
	s.t.Helper()
	o, err := s.ready(c)
	if err != nil {
		s.t.Fatal(err)
	}
	cert, err := s.finalize(c, o)
	if err != nil {
		s.t.Fatal(err)
	}
	return cert
}

func serialText(c tls.Certificate) string { return hex.EncodeToString(c.Leaf.SerialNumber.Bytes()) }

// A web server gets a certificate by ACME that its clients verify by the mesh's root.
// It is in the ledger, is listed, and revoked by its owner is in the list that is
// served, also after a restart.
func TestACME(t *testing.T) {
	s := newWebsite(t)
	h := start(t, func(c *Config) {
		s.configure(c)
		c.CRL.Listen = proctest.Address(t)
	})
	c := s.client(h)
	cert := s.obtain(c)
	web := httptest.NewUnstartedServer(http.NotFoundHandler())
	web.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13}
	web.StartTLS()
	defer web.Close()
	resp, err := s.trusting(h).Get("https://" + siteName + ":" + strings.TrimPrefix(web.URL, "https://127.0.0.1:"))
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	rows := h.ledger(&capb.ListCertificatesRequest{SpiffeId: "dns:" + siteName})
	row := rows[len(rows)-1]
	if row.GetSerial() != serialText(cert) || !strings.HasPrefix(row.GetRequester(), "acme ") || len(row.GetFacts()) != 1 {
		t.Errorf("listed as %v", row)
	}
	if life := cert.Leaf.NotAfter.Sub(cert.Leaf.NotBefore); life > 24*time.Hour+time.Minute {
		t.Errorf("it lives for %s", life)
	}

	h.restart()
	c.HTTPClient = s.trusting(h)
	if err := c.RevokeCert(t.Context(), nil, cert.Certificate[0], xacme.CRLReasonKeyCompromise); err != nil {
		t.Fatal(err)
	}
	list, err := capb.NewRevocationsClient(h.adminConn()).ListRevocations(t.Context(), &capb.ListRevocationsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(list.GetRevocations()); n != 1 || list.GetRevocations()[0].GetSerial() != serialText(cert) ||
		list.GetRevocations()[0].GetReason() != capb.RevocationReason_REVOCATION_REASON_KEY_COMPROMISE {
		t.Errorf("revoked: %v", list.GetRevocations())
	}
	h.eventually("the list that is served has it", func() bool {
		crl, err := x509.ParseRevocationList(list.GetCrls()[0])
		return err == nil && len(crl.RevokedCertificateEntries) == 1 && crl.RevokedCertificateEntries[0].SerialNumber.Cmp(cert.Leaf.SerialNumber) == 0
	})
}

// An ACME certificate gets nobody in: neither as a client of the authority nor as its
// server, and no verifier of X.509-SVIDs takes it.
func TestACMECertificateIsNoIdentity(t *testing.T) {
	s := newWebsite(t)
	h := start(t, func(c *Config) {
		s.configure(c)
		c.Listen = proctest.Address(t)
	})
	cert := s.obtain(s.client(h))
	if id, _, err := x509svid.Verify([]*x509.Certificate{cert.Leaf}, h.bundle()); err == nil {
		t.Errorf("it is taken for %s", id)
	}
	conf := tlsconfig.TLSClientConfig(h.bundle(), tlsconfig.AuthorizeAny())
	conf.Certificates = []tls.Certificate{cert}
	d := &tls.Dialer{Config: conf}
	conn, err := d.DialContext(t.Context(), "tcp", h.config.Listen)
	if err == nil {
		defer conn.Close()
		if _, err = conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the authority takes it: %v", err)
		}
	}
	if err == nil || !strings.Contains(err.Error(), "bad certificate") {
		t.Errorf("refused with %v", err)
	}
	// As a server in place of the authority.
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		if conn, err := l.Accept(); err == nil {
			_, _ = conn.Read(make([]byte, 1))
			_ = conn.Close()
		}
	}()
	client := &tls.Dialer{Config: tlsconfig.TLSClientConfig(h.bundle(), tlsconfig.AuthorizeAny())}
	if conn, err := client.DialContext(t.Context(), "tcp", l.Addr().String()); err == nil {
		_ = conn.Close()
		t.Error("it is taken for a server of the mesh")
	}
}

// Two authorities over one database serve one client: an order that one takes is
// fulfilled by the other, once, also if both are asked at the same time.
func TestACMEReplicas(t *testing.T) {
	t.Parallel()
	s := newWebsite(t)
	schema := pgtest.Shared(t)
	a := start(t, func(c *Config) {
		s.configure(c)
		c.Ledger.Postgres = schema
	})
	b := replica(t, a, func(c *Config) {
		c.ACME = a.config.ACME
		c.ACME.Listen = proctest.Address(t)
	})
	c := s.client(a)
	toB := &http.Client{Timeout: testBudget, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // under another port than the URL's
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, b.config.ACME.Listen)
		},
	}}
	t.Cleanup(toB.CloseIdleConnections)
	toA := c.HTTPClient
	for round := range 2 {
		c.HTTPClient = toA
		o, err := s.ready(c)
		if err != nil {
			t.Fatal(err)
		}
		errs := make(chan error, 2)
		for _, via := range []*http.Client{toA, toB} {
			one := &xacme.Client{Key: c.Key, KID: c.KID, DirectoryURL: c.DirectoryURL, HTTPClient: via, RetryBackoff: func(int, *http.Request, *http.Response) time.Duration { return 20 * time.Millisecond }}
			go func() {
				_, err := s.finalize(one, o)
				errs <- err
			}()
		}
		// Whoever is overtaken finds the order fulfilled when he asks again.
		for range 2 {
			if err := <-errs; err != nil {
				t.Errorf("round %d: %v", round, err)
			}
		}
	}
	issued := 0
	for _, row := range a.ledger(&capb.ListCertificatesRequest{SpiffeId: "dns:" + siteName}) {
		if row.GetRequester() != "acme server" {
			issued++
		}
	}
	if issued != 2 {
		t.Errorf("%d certificates for 2 orders", issued)
	}
}

// Strangers over HTTP are held back, and keep no node from joining.
func TestACMEFloodIsHeldBack(t *testing.T) {
	s := newWebsite(t)
	h := start(t, func(c *Config) {
		s.configure(c)
		c.Limits.JoinRate, c.Limits.JoinBurst = 1, 5
	})
	client := s.trusting(h)
	var last *http.Response
	for range 20 {
		resp, err := client.Get(h.config.ACME.URL + "/acme/new-nonce")
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if last = resp; last.StatusCode != http.StatusNoContent {
			break // slower ones let one in now and then
		}
	}
	if last.StatusCode != http.StatusTooManyRequests || last.Header.Get("Retry-After") == "" {
		t.Errorf("%d, %v", last.StatusCode, last.Header)
	}
	_, der := request(t, "")
	if _, err := h.as(nil).Join(t.Context(), &capb.JoinRequest{Proof: &capb.JoinRequest_Token{Token: h.token(nodeID)}, Csr: der}); err != nil {
		t.Errorf("a node cannot join: %v", err)
	}
}

// The section is off unless it has an address, and says what is missing.
func TestACMEConfig(t *testing.T) {
	if DefaultConfig().ACME.Listen != "" {
		t.Error("it is on")
	}
	good := func() acme.Config {
		c := acme.Default()
		c.Listen, c.URL, c.Names = "127.0.0.1:8446", "https://acme.example.org:8446", []string{".example.org"}
		c.ExternalAccounts = []acme.ExternalAccount{{ID: "web", KeyFile: "key"}}
		return c
	}
	for name, tc := range map[string]struct {
		change func(*acme.Config)
		want   string
	}{
		"good":                       {func(*acme.Config) {}, ""},
		"open":                       {func(c *acme.Config) { c.RequireExternalAccount, c.ExternalAccounts = false, nil }, ""},
		"off and configured":         {func(c *acme.Config) { c.Listen = "" }, "no listen"},
		"no URL":                     {func(c *acme.Config) { c.URL = "" }, "acme.url"},
		"http":                       {func(c *acme.Config) { c.URL = "http://acme.example.org" }, "acme.url"},
		"a path":                     {func(c *acme.Config) { c.URL += "/acme" }, "acme.url"},
		"an address without a file":  {func(c *acme.Config) { c.URL = "https://127.0.0.1:8446" }, "cert_file"},
		"half a pair":                {func(c *acme.Config) { c.CertFile = "cert" }, "go together"},
		"no names":                   {func(c *acme.Config) { c.Names = nil }, "acme.names"},
		"all names":                  {func(c *acme.Config) { c.Names = []string{"."} }, "acme.names"},
		"another challenge":          {func(c *acme.Config) { c.Challenges = []string{"device-attest-01"} }, "acme.challenges"},
		"nobody may":                 {func(c *acme.Config) { c.ExternalAccounts = nil }, "acme.external_accounts"},
		"keys that nobody needs":     {func(c *acme.Config) { c.RequireExternalAccount = false }, "acme.external_accounts"},
		"no key":                     {func(c *acme.Config) { c.ExternalAccounts[0].KeyFile = "" }, "key_file"},
		"a strange ID":               {func(c *acme.Config) { c.ExternalAccounts[0].ID = "a b" }, ".id"},
		"twice":                      {func(c *acme.Config) { c.ExternalAccounts = append(c.ExternalAccounts, c.ExternalAccounts[0]) }, "twice"},
		"names beyond":               {func(c *acme.Config) { c.ExternalAccounts[0].Names = []string{".example.com"} }, "not within"},
		"too long a life":            {func(c *acme.Config) { c.TTL *= 2 }, "acme.ttl"},
		"a network with bits of one": {func(c *acme.Config) { c.Networks = []string{"10.0.0.1/8"} }, "acme.networks"},
		"a resolver by name":         {func(c *acme.Config) { c.Resolver = "dns" }, "acme.resolver"},
		"no port":                    {func(c *acme.Config) { c.HTTPPort = 0 }, "acme.http_port"},
	} {
		c := good()
		tc.change(&c)
		if err := c.Validate(24 * time.Hour); tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}

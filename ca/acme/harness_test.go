package acme

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	xacme "golang.org/x/crypto/acme"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/ledger/ledgertest"
	"github.com/writ-mesh/writ/ca/profile"
	"github.com/writ-mesh/writ/internal/pkitest"
)

const (
	externalID = "web"
	serverHost = "acme.example.test"
)

// world is a server, and servers and a DNS around it that ask it for certificates.
type world struct {
	*server

	t      testing.TB
	config Config
	auth   *fakeAuthority
	https  *httptest.Server
	site   *site
	key    []byte // of the external account
	wait   time.Duration
}

// newWorld starts all that over a store; change may alter the configuration.
func newWorld(t testing.TB, store ledger.Store, change func(*Config)) *world {
	t.Helper()
	w := &world{t: t, site: newSite(t), key: make([]byte, 32), config: Default()}
	_, _ = rand.Read(w.key)
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte(base64.RawURLEncoding.EncodeToString(w.key)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.config.Listen, w.config.URL, w.config.Names = "127.0.0.1:0", "https://"+serverHost, []string{".example.test"}
	w.config.ExternalAccounts = []ExternalAccount{{ID: externalID, KeyFile: file}}
	w.config.Networks, w.config.Resolver = []string{"127.0.0.0/8"}, w.site.resolver
	w.config.HTTPPort, w.config.TLSPort = w.site.port(w.site.http.URL), w.site.tlsPort
	if change != nil {
		change(&w.config)
	}
	if err := w.config.Validate(24 * time.Hour); err != nil {
		t.Fatal(err)
	}
	w.auth = &fakeAuthority{root: pkitest.NewRoot(t, "example.test"), store: store, revoked: map[string]int{}}
	w.start(w.auth)
	return w
}

// start serves with the configuration.
func (w *world) start(auth *fakeAuthority) {
	w.t.Helper()
	s, err := newServer(w.t.Context(), w.config, Options{
		Authority: auth, Store: auth.store, Root: auth.root.Cert, Now: time.Now, Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
		Wait: func(context.Context, string, net.Addr) time.Duration { return w.wait },
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.server = s
	w.https = httptest.NewTLSServer(s)
	w.t.Cleanup(w.https.Close)
}

// follow makes the index follow the ledger, as Open does.
func (w *world) follow() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		first := true
		_ = w.auth.store.Watch(ctx, Prefix, func(u ledger.Update) error {
			w.d.take(ctx, u, first)
			first = false
			return nil
		})
	}()
	w.t.Cleanup(func() { cancel(); <-done })
}

// second is another authority over the same ledger.
func (w *world) second() *world {
	other := *w
	other.start(w.auth)
	return &other
}

// client is an ACME client of golang.org/x/crypto without an account.
func (w *world) client() *xacme.Client {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	return &xacme.Client{
		Key: key, DirectoryURL: "https://" + serverHost + "/acme/directory", HTTPClient: w.http(),
		RetryBackoff: func(int, *http.Request, *http.Response) time.Duration { return -1 },
	}
}

// http reaches the server by its name.
func (w *world) http() *http.Client {
	transport := w.https.Client().Transport.(*http.Transport).Clone()
	transport.TLSClientConfig.ServerName = "example.com" // of httptest's certificate
	transport.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, w.https.Listener.Addr().String())
	}
	w.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// member is a client with an account.
func (w *world) member() *xacme.Client {
	w.t.Helper()
	c := w.client()
	if _, err := c.Register(w.t.Context(), w.account(), xacme.AcceptTOS); err != nil {
		w.t.Fatal(err)
	}
	return c
}

func (w *world) account() *xacme.Account {
	return &xacme.Account{ExternalAccountBinding: &xacme.ExternalAccountBinding{KID: externalID, Key: w.key}}
}

// ready makes an order and fulfils its challenges.
func (w *world) ready(c *xacme.Client, kind string, names ...string) (*xacme.Order, error) {
	w.t.Helper()
	ctx := w.t.Context()
	o, err := c.AuthorizeOrder(ctx, xacme.DomainIDs(names...))
	if err != nil {
		return nil, err
	}
	for _, u := range o.AuthzURLs {
		az, err := c.GetAuthorization(ctx, u)
		if err != nil {
			return nil, err
		}
		if err := w.accept(c, az, kind); err != nil {
			return nil, err
		}
		if _, err := c.WaitAuthorization(ctx, u); err != nil {
			return nil, err
		}
	}
	return c.WaitOrder(ctx, o.URI)
}

// accept fulfils a challenge of an authorization.
func (w *world) accept(c *xacme.Client, az *xacme.Authorization, kind string) error {
	w.t.Helper()
	for _, ch := range az.Challenges {
		if ch.Type != kind {
			continue
		}
		w.site.fulfil(w.t, c, az.Identifier.Value, ch)
		_, err := c.Accept(w.t.Context(), ch)
		return err
	}
	return fmt.Errorf("no challenge %s for %s", kind, az.Identifier.Value)
}

// obtain gets a certificate.
func (w *world) obtain(c *xacme.Client, kind string, names ...string) ([]*x509.Certificate, *ecdsa.PrivateKey, error) {
	w.t.Helper()
	o, err := w.ready(c, kind, names...)
	if err != nil {
		return nil, nil, err
	}
	key, der := certificateRequest(w.t, &x509.CertificateRequest{DNSNames: names})
	chain, _, err := c.CreateOrderCert(w.t.Context(), o.FinalizeURL, der, true)
	if err != nil {
		return nil, nil, err
	}
	var out []*x509.Certificate
	for _, der := range chain {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			w.t.Fatal(err)
		}
		out = append(out, cert)
	}
	return out, key, nil
}

func certificateRequest(t testing.TB, template *x509.CertificateRequest) (*ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	return key, der
}

// wantProblem checks an ACME problem by its type and HTTP status.
func wantProblem(t testing.TB, err error, kind string, status int) {
	t.Helper()
	var e *xacme.Error
	if !errors.As(err, &e) || e.ProblemType != "urn:ietf:params:acme:error:"+kind || e.StatusCode != status {
		t.Errorf("got %v, want %s with %d", err, kind, status)
	}
}

// fakeAuthority signs with a root of its own and records in the store.
type fakeAuthority struct {
	root  *pkitest.Root
	store ledger.Store
	// err is what Issue answers, if it is not nil.
	err error

	mu      sync.Mutex
	issued  []*x509.Certificate
	revoked map[string]int
	revokes int
	refused []string
}

func (f *fakeAuthority) Issue(ctx context.Context, o Order) ([]*x509.Certificate, error) {
	if f.err != nil {
		return nil, f.err
	}
	now := time.Now()
	template, err := profile.Server(o.Names, o.PublicKey, now.Add(-time.Second), now.Add(o.TTL))
	if err != nil {
		return nil, err
	}
	der, err := f.root.Sign(template, o.PublicKey)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	c := ledger.Change{Entry: ledger.Entry{Kind: ledger.Issued, Time: now, Actor: o.Actor, Subject: Subject(o.Names), Serial: serialOf(cert)}, If: map[string]uint64{}}
	if o.Also != nil {
		more, err := o.Also([]*x509.Certificate{cert, f.root.Cert})
		if err != nil {
			return nil, err
		}
		maps.Copy(c.If, more.If)
		c.Put = more.Put
	}
	if _, err := f.store.Commit(ctx, c); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.issued = append(f.issued, cert)
	return []*x509.Certificate{cert, f.root.Cert}, nil
}

func (f *fakeAuthority) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.issued)
}

func (f *fakeAuthority) Revoke(_ context.Context, cert *x509.Certificate, _ []string, reason int, _ string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.revoked[serialOf(cert)] = reason
	f.revokes++
	return nil
}

func (f *fakeAuthority) Revoked(serial string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, ok := f.revoked[serial]
	return ok
}

func (f *fakeAuthority) Signs(*x509.Certificate) bool { return true }

func (f *fakeAuthority) Refused(_ context.Context, _ string, names []string, _ string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refused = append(f.refused, names...)
}

// awayStore is a store that can be away.
type awayStore struct {
	*ledgertest.Memory

	mu   sync.Mutex
	away bool
}

func (s *awayStore) set(away bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away = away
}

func (s *awayStore) Commit(ctx context.Context, c ledger.Change) (uint64, error) {
	s.mu.Lock()
	away := s.away
	s.mu.Unlock()
	if away {
		return 0, fmt.Errorf("full: %w", ledger.ErrUnavailable)
	}
	return s.Memory.Commit(ctx, c)
}

// site is web servers at 127.0.0.1 and a DNS server that knows of them.
type site struct {
	http     *httptest.Server
	tlsPort  int
	resolver string

	mu sync.Mutex
	// paths are answers of the web server, addresses and texts those of the DNS;
	// a name without an address is at 127.0.0.1.
	paths     map[string]http.HandlerFunc
	addresses map[string]string
	texts     map[string]string
	certs     map[string]*tls.Certificate
	hits      int
}

func newSite(t testing.TB) *site {
	t.Helper()
	s := &site{paths: map[string]http.HandlerFunc{}, addresses: map[string]string{}, texts: map[string]string{}, certs: map[string]*tls.Certificate{}}
	s.http = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.hits++
		h := s.paths[r.URL.Path]
		s.mu.Unlock()
		if h == nil {
			http.NotFound(w, r)
			return
		}
		h(w, r)
	}))
	t.Cleanup(s.http.Close)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{NextProtos: []string{"acme-tls/1"}, GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if c := s.certs[h.ServerName]; c != nil {
			return c, nil
		}
		return nil, errors.New("nobody of that name")
	}})
	if err != nil {
		t.Fatal(err)
	}
	s.tlsPort = l.Addr().(*net.TCPAddr).Port
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_ = c.(*tls.Conn).HandshakeContext(context.Background())
				_ = c.Close()
			}()
		}
	}()
	t.Cleanup(func() { _ = l.Close() })
	u, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = u.Close() })
	s.resolver = u.LocalAddr().String()
	go s.serveDNS(u)
	return s
}

func (s *site) port(address string) int {
	u, err := url.Parse(address)
	if err != nil {
		return 0
	}
	port, err := net.LookupPort("tcp", u.Port())
	if err != nil {
		return 0
	}
	return port
}

func (s *site) set(path string, h http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.paths[path] = h
}

// at lets the DNS say where a name is.
func (s *site) at(name, address string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.addresses[name] = address
}

func (s *site) seen() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hits
}

// fulfil puts up what a challenge asks for.
func (s *site) fulfil(t testing.TB, c *xacme.Client, name string, ch *xacme.Challenge) {
	t.Helper()
	switch ch.Type {
	case "http-01":
		text, err := c.HTTP01ChallengeResponse(ch.Token)
		if err != nil {
			t.Fatal(err)
		}
		s.set(c.HTTP01ChallengePath(ch.Token), func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(text)) })
	case "dns-01":
		text, err := c.DNS01ChallengeRecord(ch.Token)
		if err != nil {
			t.Fatal(err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.texts["_acme-challenge."+name+"."] = text
	case "tls-alpn-01":
		cert, err := c.TLSALPN01ChallengeCert(ch.Token, name)
		if err != nil {
			t.Fatal(err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.certs[name] = &cert
	}
}

func (s *site) serveDNS(c net.PacketConn) {
	buf := make([]byte, 1500)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		if answer, err := s.answer(buf[:n]); err == nil {
			_, _ = c.WriteTo(answer, from)
		}
	}
}

func (s *site) answer(query []byte) ([]byte, error) {
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil || len(m.Questions) != 1 {
		return nil, errors.New("no question")
	}
	q := m.Questions[0]
	name := q.Name.String()
	s.mu.Lock()
	defer s.mu.Unlock()
	out := dnsmessage.Message{Header: dnsmessage.Header{ID: m.ID, Response: true, Authoritative: true, RecursionAvailable: true}, Questions: m.Questions}
	head := dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 1}
	address, known := s.addresses[name]
	if !known && strings.HasSuffix(name, ".example.test.") {
		address = "127.0.0.1"
	}
	ip := net.ParseIP(address)
	switch {
	case q.Type == dnsmessage.TypeTXT && s.texts[name] != "":
		out.Answers = append(out.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.TXTResource{TXT: []string{s.texts[name]}}})
	case q.Type == dnsmessage.TypeA && ip.To4() != nil:
		out.Answers = append(out.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.AResource{A: [4]byte(ip.To4())}})
	case q.Type == dnsmessage.TypeAAAA && ip != nil && ip.To4() == nil:
		out.Answers = append(out.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.AAAAResource{AAAA: [16]byte(ip.To16())}})
	case ip == nil:
		out.RCode = dnsmessage.RCodeNameError
	}
	return out.Pack()
}

package credential

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/writ-mesh/writ/internal/proctest"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

var (
	pilotID = spiffeid.RequireFromString("spiffe://cluster.local/writ/pilot")
	caID    = spiffeid.RequireFromString("spiffe://cluster.local/writ/ca")
)

// root is a root certificate with its key.
type root struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newRoot(t *testing.T) root {
	t.Helper()
	key := newKey(t)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return root{cert, key}
}

func (r root) sign(id spiffeid.ID, public any, from, until time.Time) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	return x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial, URIs: []*url.URL{id.URL()}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, NotBefore: from, NotAfter: until,
	}, r.cert, public, r.key)
}

func (r root) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.cert.Raw})
}

// authority is a certificate authority of a few lines, over TLS. Its fields
// under mu may be changed while it runs.
type authority struct {
	capb.UnimplementedCertificateAuthorityServer
	root root
	addr string

	mu             sync.Mutex
	tokens         map[string]bool // good once
	life           time.Duration
	refuseRenewals bool
	answerAs       spiffeid.ID // the identity in the certificates; zero: the right one
	joined         int
	renewed        int
	bundles        [][]byte
	changed        chan struct{}
}

func newAuthority(t *testing.T, r root) *authority {
	t.Helper()
	a := &authority{root: r, tokens: map[string]bool{}, life: time.Hour, bundles: [][]byte{r.cert.Raw}, changed: make(chan struct{})}
	key := newKey(t)
	der, err := r.sign(caID, key.Public(), time.Now().Add(-time.Minute), time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(r.cert)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a.addr = l.Addr().String()
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: pool,
	})))
	capb.RegisterCertificateAuthorityServer(s, a)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	t.Cleanup(func() { s.Stop(); <-done })
	return a
}

func (a *authority) set(f func()) { a.mu.Lock(); defer a.mu.Unlock(); f() }

func (a *authority) counts() (joined, renewed int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.joined, a.renewed
}

// issue is called with mu held.
func (a *authority) issue(der []byte) (*capb.CertificateResponse, error) {
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil || csr.CheckSignature() != nil {
		return nil, status.Error(codes.InvalidArgument, "bad request")
	}
	id := pilotID
	if !a.answerAs.IsZero() {
		id = a.answerAs
	}
	cert, err := a.root.sign(id, csr.PublicKey, time.Now().Add(-time.Second), time.Now().Add(a.life))
	if err != nil {
		return nil, err
	}
	return &capb.CertificateResponse{Chain: [][]byte{cert}, Bundle: &capb.Bundle{TrustDomain: "cluster.local", Roots: a.bundles}}, nil
}

func (a *authority) Join(_ context.Context, req *capb.JoinRequest) (*capb.CertificateResponse, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.tokens[req.GetToken()] {
		return nil, status.Error(codes.PermissionDenied, "no such token")
	}
	delete(a.tokens, req.GetToken())
	a.joined++
	return a.issue(req.GetCsr())
}

func (a *authority) Renew(ctx context.Context, req *capb.RenewRequest) (*capb.CertificateResponse, error) {
	p, _ := peer.FromContext(ctx)
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 || info.State.PeerCertificates[0].URIs[0].String() != pilotID.String() {
		return nil, status.Error(codes.PermissionDenied, "who are you")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.refuseRenewals {
		return nil, status.Error(codes.Unavailable, "not now")
	}
	a.renewed++
	return a.issue(req.GetCsr())
}

func (a *authority) WatchBundle(_ *capb.WatchBundleRequest, s grpc.ServerStreamingServer[capb.Bundle]) error {
	for {
		a.mu.Lock()
		b, changed := &capb.Bundle{TrustDomain: "cluster.local", Roots: a.bundles}, a.changed
		a.mu.Unlock()
		if err := s.Send(b); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-s.Context().Done():
			return nil
		}
	}
}

func (a *authority) setBundle(roots ...root) {
	a.set(func() {
		a.bundles = nil
		for _, r := range roots {
			a.bundles = append(a.bundles, r.cert.Raw)
		}
		close(a.changed)
		a.changed = make(chan struct{})
	})
}

// setup gives a configuration that joins a with the token "t1".
func setup(t *testing.T, a *authority) Config {
	t.Helper()
	dir := t.TempDir()
	cfg := Config{
		CA: a.addr, TrustBundle: filepath.Join(dir, "trust.pem"), TokenFile: filepath.Join(dir, "token"),
		Dir: filepath.Join(dir, "identity"), TrustDomain: "cluster.local",
	}
	put(t, cfg.TrustBundle, a.root.pem())
	offer(t, a, cfg, "t1")
	return cfg
}

func offer(t *testing.T, a *authority, cfg Config, token string) {
	t.Helper()
	a.set(func() { a.tokens[token] = true })
	put(t, cfg.TokenFile, []byte(token+"\n"))
}

func put(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func newSource(t *testing.T, cfg Config) *Source {
	t.Helper()
	s, err := New(within(t, 10*time.Second), cfg, pilotID, quiet())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// running runs s until the test ends.
func running(t *testing.T, s *Source) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	})
}

func TestJoinThenRestartFromDisk(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, newRoot(t))
	cfg := setup(t, a)
	first := newSource(t, cfg)
	if first.ID() != pilotID || first.current().ID != pilotID {
		t.Errorf("identity %s", first.current().ID)
	}
	info, err := os.Stat(filepath.Join(cfg.Dir, identityFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key and certificate: %v, %v", info, err)
	}
	if info, err := os.Stat(cfg.Dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("their folder: %v, %v", info, err)
	}
	again := newSource(t, cfg)
	if !bytes.Equal(again.current().Certificates[0].Raw, first.current().Certificates[0].Raw) {
		t.Error("the restart took another certificate than the one on disk")
	}
	if joined, _ := a.counts(); joined != 1 {
		t.Errorf("%d joins, want 1: a restart needs no token", joined)
	}
}

// TestNotUsableOnDisk: whatever is wrong with the files, the answer is to join
// again, never to use them.
func TestNotUsableOnDisk(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(t *testing.T, a *authority, cfg Config){
		"corrupt": func(t *testing.T, _ *authority, cfg Config) {
			put(t, filepath.Join(cfg.Dir, identityFile), []byte("nonsense"))
		},
		"readable by others": func(t *testing.T, _ *authority, cfg Config) {
			if err := os.Chmod(filepath.Join(cfg.Dir, identityFile), 0o640); err != nil {
				t.Fatal(err)
			}
		},
		"another identity": func(t *testing.T, a *authority, cfg Config) {
			write(t, a.root, cfg, caID, time.Hour)
		},
		"expired": func(t *testing.T, a *authority, cfg Config) {
			write(t, a.root, cfg, pilotID, -time.Second)
		},
		"of another root": func(t *testing.T, _ *authority, cfg Config) {
			write(t, newRoot(t), cfg, pilotID, time.Hour)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAuthority(t, newRoot(t))
			cfg := setup(t, a)
			newSource(t, cfg)
			spoil(t, a, cfg)
			offer(t, a, cfg, "t2")
			s := newSource(t, cfg)
			if joined, _ := a.counts(); joined != 2 {
				t.Errorf("%d joins, want 2", joined)
			}
			if info, err := os.Stat(filepath.Join(cfg.Dir, identityFile)); err != nil || info.Mode().Perm() != 0o600 || s.current().ID != pilotID {
				t.Errorf("after joining again: %v, %v, %s", info, err, s.current().ID)
			}
		})
	}
}

// write puts a key and a certificate where a source looks for them.
func write(t *testing.T, r root, cfg Config, id spiffeid.ID, life time.Duration) {
	t.Helper()
	key := newKey(t)
	der, err := r.sign(id, key.Public(), time.Now().Add(-time.Hour), time.Now().Add(life))
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(cfg.Dir, identityFile), append(
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})...))
}

func TestWaitsForBundleAndToken(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, newRoot(t))
	cfg := setup(t, a)
	for _, path := range []string{cfg.TrustBundle, cfg.TokenFile} {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan error, 1)
	go func() {
		_, err := New(within(t, 20*time.Second), cfg, pilotID, quiet())
		done <- err
	}()
	put(t, cfg.TrustBundle, a.root.pem())
	offer(t, a, cfg, "late")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestGivesUpWithTheReason(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, newRoot(t))
	for name, tc := range map[string]struct {
		spoil func(cfg *Config)
		want  string
	}{
		"used token":     {func(cfg *Config) { put(t, cfg.TokenFile, []byte("used")) }, "no such token"},
		"no token":       {func(cfg *Config) { cfg.TokenFile += ".missing" }, "join token"},
		"no bundle":      {func(cfg *Config) { cfg.TrustBundle += ".missing" }, "does not exist yet"},
		"corrupt bundle": {func(cfg *Config) { put(t, cfg.TrustBundle, []byte("-----BEGIN")) }, "trust bundle"},
		"another root":   {func(cfg *Config) { put(t, cfg.TrustBundle, newRoot(t).pem()) }, "certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := setup(t, a)
			tc.spoil(&cfg)
			ctx, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond)
			defer cancel()
			_, err := New(ctx, cfg, pilotID, quiet())
			if err == nil || !strings.Contains(err.Error(), tc.want) || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

func TestCertificateForSomebodyElseIsRefused(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, newRoot(t))
	cfg := setup(t, a)
	a.answerAs = caID
	ctx, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond)
	defer cancel()
	if _, err := New(ctx, cfg, pilotID, quiet()); err == nil {
		t.Error("it took a certificate of another identity")
	}
	if _, err := os.Stat(filepath.Join(cfg.Dir, identityFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it kept it: %v", err)
	}
}

func TestRenewIn(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	for name, tc := range map[string]struct {
		from, until time.Duration // relative to now
		low, high   time.Duration
	}{
		"an hour":                    {0, time.Hour, 24 * time.Minute, 36 * time.Minute},
		"ten seconds":                {-time.Second, 9 * time.Second, 3600 * time.Millisecond, 5400 * time.Millisecond},
		"loaded late in its life":    {-50 * time.Minute, 10 * time.Minute, 4 * time.Minute, 6 * time.Minute},
		"clock behind the authority": {30 * time.Minute, 90 * time.Minute, 24 * time.Minute, 36 * time.Minute},
		// Half of the life has passed on arrival, each time anew: no tight loop.
		"clock ahead of the authority": {-40 * time.Minute, 20 * time.Minute, 8 * time.Minute, 12 * time.Minute},
		"far ahead":                    {-time.Hour, time.Second, time.Second, time.Second},
		"expired":                      {-2 * time.Hour, -time.Hour, time.Second, time.Second},
	} {
		for _, jitter := range []float64{0, 0.5, 0.999} {
			if got := renewIn(now.Add(tc.from), now.Add(tc.until), now, jitter); got < tc.low || got > tc.high {
				t.Errorf("%s: %s, want %s to %s", name, got, tc.low, tc.high)
			}
		}
	}
}

func TestRenewsBeforeItExpires(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, newRoot(t))
	a.life = 3 * time.Second // x.509 counts whole seconds
	cfg := setup(t, a)
	s := newSource(t, cfg)
	first := s.current()
	running(t, s)
	proctest.Until(t, 10*time.Second, "two renewals", func() bool { _, renewed := a.counts(); return renewed >= 2 })
	proctest.Until(t, time.Second, "the newest certificate is in use", func() bool { return s.current() != first })
	if joined, _ := a.counts(); joined != 1 {
		t.Errorf("%d joins, want 1", joined)
	}
	if bytes.Equal(first.Certificates[0].RawSubjectPublicKeyInfo, s.current().Certificates[0].RawSubjectPublicKeyInfo) {
		t.Error("the key was used again")
	}
	if !s.current().Certificates[0].NotAfter.After(first.Certificates[0].NotAfter) {
		t.Error("it does not live longer")
	}
}

func TestExpiredJoinsAgain(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, newRoot(t))
	a.life, a.refuseRenewals = time.Second, true
	cfg := setup(t, a)
	s := newSource(t, cfg)
	a.set(func() { a.life = time.Hour })
	offer(t, a, cfg, "t2")
	running(t, s)
	proctest.Until(t, 15*time.Second, "a second join", func() bool { joined, _ := a.counts(); return joined == 2 })
	proctest.Until(t, time.Second, "the new certificate is in use", func() bool { return time.Until(s.current().Certificates[0].NotAfter) > 30*time.Minute })
}

// TestRejoinsUnderANewRoot: the operator replaced the authority, its root and
// the trust bundle file; what this service remembers of the old one must not
// keep it out.
func TestRejoinsUnderANewRoot(t *testing.T) {
	t.Parallel()
	old := newAuthority(t, newRoot(t))
	old.setBundle(old.root, newRoot(t)) // so that the service keeps a bundle of its own
	cfg := setup(t, old)
	newSource(t, cfg)
	write(t, old.root, cfg, pilotID, -time.Second) // it slept for a while
	replaced := newAuthority(t, newRoot(t))
	cfg.CA = replaced.addr
	put(t, cfg.TrustBundle, replaced.root.pem())
	offer(t, replaced, cfg, "t2")
	s := newSource(t, cfg)
	if roots := s.currentBundle().X509Authorities(); len(roots) != 1 || !roots[0].Equal(replaced.root.cert) {
		t.Errorf("it trusts %d roots, the first %s", len(roots), roots[0].Subject)
	}
}

func TestFollowsBundle(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, newRoot(t))
	cfg := setup(t, a)
	s := newSource(t, cfg)
	running(t, s)
	next := newRoot(t)
	a.setBundle(a.root, next)
	proctest.Until(t, 10*time.Second, "both roots are trusted", func() bool { return len(s.currentBundle().X509Authorities()) == 2 })
	// A restart knows both although the trust bundle file has the first only.
	proctest.Until(t, time.Second, "both are on disk", func() bool {
		data, err := os.ReadFile(filepath.Join(cfg.Dir, bundleFile))
		return err == nil && bytes.Count(data, []byte("BEGIN CERTIFICATE")) == 2
	})
	if again := newSource(t, cfg); len(again.currentBundle().X509Authorities()) != 2 {
		t.Errorf("after a restart %d roots", len(again.currentBundle().X509Authorities()))
	}
	// An empty bundle would lock everybody out; it is not taken.
	a.setBundle()
	a.setBundle(next)
	proctest.Until(t, 10*time.Second, "the first root is gone", func() bool {
		roots := s.currentBundle().X509Authorities()
		if len(roots) == 0 {
			t.Fatal("an empty bundle was taken")
		}
		return len(roots) == 1 && roots[0].Equal(next.cert)
	})
}

// TestTLS: who has the credential meets who has one of the same domain, by the
// exact identity, over TLS 1.3, and nobody else.
func TestTLS(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, newRoot(t))
	s := newSource(t, setup(t, a))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	handshake := func(server, client *tls.Config) error {
		done := make(chan error, 1)
		go func() {
			x, err := l.Accept()
			if err != nil {
				done <- err
				return
			}
			conn := tls.Server(x, server)
			defer conn.Close()
			_, err = conn.Write([]byte{1})
			done <- err
		}()
		y, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			return err
		}
		conn := tls.Client(y, client)
		defer conn.Close()
		_, err = conn.Read(make([]byte, 1)) // TLS 1.3: the server's verdict comes after the handshake
		if err != nil {
			_ = conn.Close()
		}
		if client.ClientSessionCache != nil && conn.ConnectionState().DidResume {
			err = errors.New("resumed")
		}
		return errors.Join(err, <-done)
	}
	if err := handshake(s.ServerTLS(), s.clientTLS(pilotID)); err != nil {
		t.Errorf("pilot to pilot: %v", err)
	}
	if err := handshake(s.ServerTLS(), s.clientTLS(caID)); err == nil {
		t.Error("the client took pilot for the authority")
	}
	anonymous := s.clientTLS(pilotID)
	anonymous.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return new(tls.Certificate), nil }
	if err := handshake(s.ServerTLS(), anonymous); err == nil {
		t.Error("the server took a client without a certificate")
	}
	foreign := newSource(t, setup(t, newAuthority(t, newRoot(t))))
	if err := handshake(s.ServerTLS(), foreign.clientTLS(pilotID)); err == nil {
		t.Error("a client of another root got in")
	}
	// A resumed session would not be verified against the bundle of today.
	again := s.clientTLS(pilotID)
	again.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	server := s.ServerTLS()
	for range 2 {
		if err := handshake(server, again); err != nil {
			t.Errorf("with a session cache: %v", err)
		}
	}
	old := s.clientTLS(pilotID)
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if err := handshake(s.ServerTLS(), old); err == nil {
		t.Error("TLS 1.2 was taken")
	}
}

func TestValidate(t *testing.T) {
	good := Config{CA: "127.0.0.1:8443", TrustBundle: "b", Dir: "d", TrustDomain: "cluster.local"}
	for name, tc := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"good":             {func(*Config) {}, ""},
		"no authority":     {func(c *Config) { c.CA = "" }, "missing ca"},
		"no bundle":        {func(c *Config) { c.TrustBundle = "" }, "missing trust_bundle"},
		"nothing":          {func(c *Config) { *c = Config{} }, "missing ca, dir, trust_bundle, trust_domain"},
		"not a domain":     {func(c *Config) { c.TrustDomain = "Cluster Local" }, `trust_domain "Cluster Local"`},
		"no folder to use": {func(c *Config) { c.Dir = "" }, "missing dir"},
	} {
		t.Run(name, func(t *testing.T) {
			c := good
			tc.change(&c)
			err := c.Validate()
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

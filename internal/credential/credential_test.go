package credential

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/writ-mesh/writ/internal/pkitest"
	"github.com/writ-mesh/writ/internal/proctest"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

var (
	pilotID = spiffeid.RequireFromString("spiffe://cluster.local/writ/pilot")
	caID    = spiffeid.RequireFromString("spiffe://cluster.local/writ/ca")
)

// newRoot makes a root that names no trust domain.
func newRoot(t *testing.T) *pkitest.Root { return pkitest.NewRoot(t, "") }

// leaf is valid since some time for some time.
func leaf(id spiffeid.ID, since, life time.Duration) *x509.Certificate {
	l := pkitest.Leaf(id.String(), life)
	l.NotBefore = time.Now().Add(-since)
	return l
}

// authority is a certificate authority of a few lines, over TLS. Its fields
// under mu may be changed while it runs.
type authority struct {
	capb.UnimplementedCertificateAuthorityServer
	capb.UnimplementedRevocationFeedServer
	root *pkitest.Root
	addr string

	mu             sync.Mutex
	tokens         map[string]bool // good once
	life           time.Duration
	refuseRenewals bool
	answerAs       spiffeid.ID // the identity in the certificates; zero: the right one
	joined         int
	refused        int // joins
	renewed        int
	bundles        [][]byte
	sequence       uint64
	active         string // key id of the authority that signs
	said           []*capb.WatchBundleRequest
	revoked        *capb.RevocationList // nil: none is sent
	returned       returnedLists
	changed        chan struct{}
}

func newAuthority(t *testing.T, r *pkitest.Root) *authority {
	t.Helper()
	a := &authority{root: r, tokens: map[string]bool{}, life: time.Hour, bundles: [][]byte{r.Cert.Raw}, changed: make(chan struct{})}
	key := pkitest.NewKey(t)
	der, err := r.Sign(pkitest.Leaf(caID.String(), time.Hour), key.Public())
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a.addr = l.Addr().String()
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: r.Pool(),
	})))
	capb.RegisterCertificateAuthorityServer(s, a)
	capb.RegisterRevocationFeedServer(s, a)
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
	cert, err := a.root.Sign(leaf(id, time.Second, a.life), csr.PublicKey)
	if err != nil {
		return nil, err
	}
	return &capb.CertificateResponse{Chain: [][]byte{cert}, Bundle: &capb.Bundle{TrustDomain: "cluster.local", Roots: a.bundles}}, nil
}

func (a *authority) Join(_ context.Context, req *capb.JoinRequest) (*capb.CertificateResponse, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.tokens[req.GetToken()] {
		a.refused++
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

func (a *authority) WatchBundle(s grpc.BidiStreamingServer[capb.WatchBundleRequest, capb.Bundle]) error {
	go func() {
		for {
			req, err := s.Recv()
			if err != nil {
				return
			}
			a.set(func() { a.said = append(a.said, req) })
		}
	}()
	for {
		a.mu.Lock()
		b, changed := &capb.Bundle{TrustDomain: "cluster.local", Roots: a.bundles, Sequence: a.sequence, ActiveAuthority: a.active}, a.changed
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

func (a *authority) setBundle(roots ...*pkitest.Root) {
	a.set(func() {
		a.bundles = nil
		for _, r := range roots {
			a.bundles = append(a.bundles, r.Cert.Raw)
		}
		a.sequence++
		close(a.changed)
		a.changed = make(chan struct{})
	})
}

// hears waits until the newest that a watcher said is as wanted.
func (a *authority) hears(t *testing.T, what string, ok func(*capb.WatchBundleRequest) bool) {
	t.Helper()
	proctest.Until(t, 10*time.Second, what, func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return len(a.said) > 0 && ok(a.said[len(a.said)-1])
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
	put(t, cfg.TrustBundle, a.root.PEM())
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
func write(t *testing.T, r *pkitest.Root, cfg Config, id spiffeid.ID, life time.Duration) {
	t.Helper()
	certPEM, keyPEM := r.Issue(t, leaf(id, time.Hour, life))
	put(t, filepath.Join(cfg.Dir, identityFile), append(certPEM, keyPEM...))
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
	put(t, cfg.TrustBundle, a.root.PEM())
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
		"no token":       {func(cfg *Config) { cfg.TokenFile += ".missing" }, ".missing does not exist; where the authority runs, make one: writ certs join-token --admin unix:///SOCKET writ/pilot="},
		"no bundle":      {func(cfg *Config) { cfg.TrustBundle += ".missing" }, "does not exist yet"},
		"corrupt bundle": {func(cfg *Config) { put(t, cfg.TrustBundle, []byte("-----BEGIN")) }, "trust bundle"},
		"another root":   {func(cfg *Config) { put(t, cfg.TrustBundle, newRoot(t).PEM()) }, "certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := setup(t, a)
			tc.spoil(&cfg)
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			_, err := New(ctx, cfg, pilotID, quiet())
			if err == nil || !strings.Contains(err.Error(), tc.want) || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

// A reason is a warning once, after a while; the end of it is told.
func TestRetryWarnsOnceForEachReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		s := &Source{log: slog.New(slog.NewTextHandler(&out, nil))}
		tries := 0
		err := s.retry(t.Context(), "join", func(context.Context) error {
			tries++
			switch {
			case tries <= 20:
				return errors.New("no token")
			case tries <= 40:
				return errors.New("used token")
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if got := out.String(); strings.Count(got, "level=WARN") != 2 || strings.Count(got, `"no token"`) != 1 || strings.Count(got, `"used token"`) != 1 || strings.Count(got, "it works now") != 1 {
			t.Errorf("logged:\n%s", got)
		}
		out.Reset()
		tries = 37 // over before it is worth a warning
		if err := s.retry(t.Context(), "join", func(context.Context) error {
			if tries++; tries <= 40 {
				return errors.New("not yet")
			}
			return nil
		}); err != nil || out.Len() > 0 {
			t.Errorf("%v, logged:\n%s", err, out.String())
		}
	})
}

// What the last whole try found is the reason, not that the time was up during another.
func TestRetryGivesUpWithTheLastWholeReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		tries := 0
		err := (&Source{log: quiet()}).retry(ctx, "join", func(ctx context.Context) error {
			if tries++; tries < 3 {
				return fmt.Errorf("reason %d", tries)
			}
			<-ctx.Done()
			return ctx.Err()
		})
		if err == nil || !strings.Contains(err.Error(), "reason 2") || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
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
	put(t, cfg.TrustBundle, replaced.root.PEM())
	offer(t, replaced, cfg, "t2")
	s := newSource(t, cfg)
	if roots := s.currentBundle().X509Authorities(); len(roots) != 1 || !roots[0].Equal(replaced.root.Cert) {
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
		return len(roots) == 1 && roots[0].Equal(next.Cert)
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
	if err := handshake(s.serverTLS(), s.clientTLS(pilotID)); err != nil {
		t.Errorf("pilot to pilot: %v", err)
	}
	if err := handshake(s.serverTLS(), s.clientTLS(caID)); err == nil {
		t.Error("the client took pilot for the authority")
	}
	anonymous := s.clientTLS(pilotID)
	anonymous.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return new(tls.Certificate), nil }
	if err := handshake(s.serverTLS(), anonymous); err == nil {
		t.Error("the server took a client without a certificate")
	}
	foreign := newSource(t, setup(t, newAuthority(t, newRoot(t))))
	if err := handshake(s.serverTLS(), foreign.clientTLS(pilotID)); err == nil {
		t.Error("a client of another root got in")
	}
	// A resumed session would not be verified against the bundle of today.
	again := s.clientTLS(pilotID)
	again.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	server := s.serverTLS()
	for range 2 {
		if err := handshake(server, again); err != nil {
			t.Errorf("with a session cache: %v", err)
		}
	}
	// A group of before is taken, unless the policy says otherwise.
	classical := s.clientTLS(pilotID)
	classical.CurvePreferences = []tls.CurveID{tls.X25519, tls.CurveP256}
	if err := handshake(s.serverTLS(), classical); err != nil {
		t.Errorf("a client without post-quantum groups: %v", err)
	}
	cfg := setup(t, a)
	cfg.CompliancePolicy = "pqc"
	strict := newSource(t, cfg)
	if err := handshake(strict.serverTLS(), strict.clientTLS(pilotID)); err != nil {
		t.Errorf("with the policy pqc: %v", err)
	}
	if err := handshake(strict.serverTLS(), classical); err == nil {
		t.Error("with the policy pqc the server takes another group")
	}
	plain := s.serverTLS()
	plain.CurvePreferences = classical.CurvePreferences
	if err := handshake(plain, strict.clientTLS(pilotID)); err == nil {
		t.Error("with the policy pqc the client takes another group")
	}
	old := s.clientTLS(pilotID)
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if err := handshake(s.serverTLS(), old); err == nil {
		t.Error("TLS 1.2 was taken")
	}
}

func TestValidate(t *testing.T) {
	good := Config{CA: "127.0.0.1:8443", TrustBundle: "b", TokenFile: "t", Dir: "d", TrustDomain: "cluster.local"}
	for name, tc := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"good":             {func(*Config) {}, ""},
		"no authority":     {func(c *Config) { c.CA = "" }, "missing ca"},
		"no bundle":        {func(c *Config) { c.TrustBundle = "" }, "missing trust_bundle"},
		"no token":         {func(c *Config) { c.TokenFile = "" }, "missing token_file"},
		"nothing":          {func(c *Config) { *c = Config{} }, "missing ca, dir, token_file, trust_bundle, trust_domain"},
		"not a domain":     {func(c *Config) { c.TrustDomain = "Cluster Local" }, `trust_domain "Cluster Local"`},
		"no folder to use": {func(c *Config) { c.Dir = "" }, "missing dir"},
		"a policy":         {func(c *Config) { c.CompliancePolicy = "pqc" }, ""},
		"another policy":   {func(c *Config) { c.CompliancePolicy = "fips" }, `compliance_policy "fips"`},
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

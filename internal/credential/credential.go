// Package credential keeps the X.509 credential of a service or node agent of
// Writ itself: it joins the certificate authority with a one-time token, keeps
// key and certificate on disk (mode 0600) so that a restart needs no new token,
// renews at half life with its own certificate, follows the trust bundle, and
// makes TLS configurations of both.
//
// Workloads' keys are not here: they are made in the node agent's memory and
// never touch a disk.
package credential

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/writ-mesh/writ/internal/atomicfile"
	"github.com/writ-mesh/writ/internal/identity"
	"github.com/writ-mesh/writ/internal/rpc"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// Config says where a credential comes from.
type Config struct {
	// CA is the certificate authority's address, host:port.
	CA string `yaml:"ca"`
	// TrustBundle is a PEM file with the roots, by which the authority is known
	// when joining.
	TrustBundle string `yaml:"trust_bundle"`
	// TokenFile holds the one-time join token. It is read, anew at each try, when
	// Dir has no certificate that is still valid; else it need not be there.
	TokenFile string `yaml:"token_file"`
	// Join has other proofs than the token, which then need not be there at all.
	Join join `yaml:"join"`
	// Dir is where key and certificate are kept, a folder of mode 0700.
	Dir string `yaml:"dir"`
	// TrustDomain is without scheme.
	TrustDomain string `yaml:"trust_domain"`
	// CompliancePolicy pqc takes connections with a post-quantum key exchange only, from
	// and to other services of Writ. Empty prefers that.
	CompliancePolicy rpc.CompliancePolicy `yaml:"compliance_policy"`
}

// Validate checks that the fields that New needs are there.
func (c Config) Validate() error {
	var missing []string
	for _, f := range []struct{ name, value string }{
		{"ca", c.CA}, {"dir", c.Dir}, {"token_file", c.TokenFile}, {"trust_bundle", c.TrustBundle}, {"trust_domain", c.TrustDomain},
	} {
		if f.value == "" && (f.name != "token_file" || !c.Join.some()) {
			missing = append(missing, f.name)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("credential: missing %s", strings.Join(missing, ", "))
	}
	if _, err := spiffeid.TrustDomainFromString(c.TrustDomain); err != nil {
		return fmt.Errorf("credential: trust_domain %q: %w", c.TrustDomain, err)
	}
	if err := c.CompliancePolicy.Validate(); err != nil {
		return fmt.Errorf("credential: %w", err)
	}
	return c.Join.validate()
}

// Source is a credential that renews itself. It is safe for concurrent use.
type Source struct {
	cfg Config
	id  spiffeid.ID
	td  spiffeid.TrustDomain
	log *slog.Logger
	now func() time.Time

	consumer Consumer // nil for none
	taking   sync.Mutex

	mu    sync.RWMutex
	svid  *x509svid.SVID
	since time.Time // when svid came, by the wall clock
	trust trust
	conn  *grpc.ClientConn
	// changed is closed when svid or trust is replaced.
	changed chan struct{}
	// revoked is never nil.
	revoked     *revoked
	revocations revocationsTo

	// dialed are the connections of Dial's clients, served those of servers.
	dialed, served rpc.Peers
	cutMu          sync.Mutex
	cut            time.Time // when reconnect closed those dialed last
}

// dialBackoff is short: services restart within a second, and what waits for
// them is configuration and identity.
var dialBackoff = backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second}

const (
	// identityFile has the key and the chain together, so that they are replaced
	// in one step and never belong to different certificates.
	identityFile = "identity.pem"
	bundleFile   = "bundle.pem"
	// retryMin and retryMax bound the back-off towards the authority.
	retryMin = 100 * time.Millisecond
	retryMax = 5 * time.Second
	// loudFrom is the wait from which on a failure is worth a warning: what starts
	// beside this service is there by then.
	loudFrom = time.Second
	// renewMin keeps an authority that hands out nearly expired certificates, or
	// one whose clock is far behind, from being asked in a tight loop.
	renewMin = time.Second
	// lookAtClock is how often the wall clock is looked at: it may jump while timers
	// do not (suspend, adjusted clock).
	lookAtClock = time.Second
)

// New returns a source for id once a certificate is there: from disk if it has
// not expired, else by joining, which is tried until ctx ends. The caller runs
// Run to keep it fresh.
func New(ctx context.Context, cfg Config, id spiffeid.ID, log *slog.Logger) (*Source, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("credential: %w", err)
	}
	if err := atomicfile.Sweep(cfg.Dir); err != nil { // a key, if this service died when it wrote one
		return nil, fmt.Errorf("credential: %w", err)
	}
	s := &Source{cfg: cfg, id: id, td: id.TrustDomain(), log: log, now: time.Now, changed: make(chan struct{})}
	s.loadRevocations(ctx)
	if err := s.loadBundle(ctx); err != nil {
		return nil, err
	}
	if err := s.load(); err != nil {
		log.InfoContext(ctx, "no usable certificate on disk, joining", slog.Any("reason", err))
		if err := s.retry(ctx, "join", s.join); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// loadBundle waits for the trust bundle, which the authority may still be about
// to write.
func (s *Source) loadBundle(ctx context.Context) error {
	return s.retry(ctx, "read the trust bundle", func(context.Context) error {
		for _, path := range []string{filepath.Join(s.cfg.Dir, bundleFile), s.cfg.TrustBundle} {
			b, err := x509bundle.Load(s.td, path)
			if err == nil && !b.Empty() {
				s.setTrust(trust{bundle: b})
				return nil
			}
			if !errors.Is(err, fs.ErrNotExist) && path == s.cfg.TrustBundle {
				return fmt.Errorf("trust bundle %s: %w", path, err)
			}
		}
		return fmt.Errorf("trust bundle %s does not exist yet", s.cfg.TrustBundle)
	})
}

func (s *Source) load() error {
	path := filepath.Join(s.cfg.Dir, identityFile)
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%s can be read by others (mode %04o): it is not used any more", path, info.Mode().Perm())
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	svid, err := x509svid.Parse(data, data)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if svid.ID != s.id {
		return fmt.Errorf("the certificate in %s is for %s", s.cfg.Dir, svid.ID)
	}
	if !s.wall().Before(svid.Certificates[0].NotAfter) {
		return fmt.Errorf("the certificate in %s has expired", s.cfg.Dir)
	}
	if _, _, err := x509svid.Verify(svid.Certificates, s, x509svid.WithTime(s.now())); err != nil {
		return err
	}
	s.setSVID(svid)
	return nil
}

// retry calls f until it works or ctx ends. No answer is final: the next token or
// the next bundle may be the right one. Each reason is a warning once, when it
// does not go away soon; the other tries are for debugging.
func (s *Source) retry(ctx context.Context, what string, f func(context.Context) error) error {
	told := ""       // the reason of the last warning
	var reason error // of the last try that was not cut short
	for wait := retryMin; ; wait = min(2*wait, retryMax) {
		err := f(ctx)
		if err == nil {
			if told != "" {
				s.log.InfoContext(ctx, "it works now", slog.String("what", what))
			}
			return nil
		}
		if reason == nil || ctx.Err() == nil {
			reason = err
		}
		level := slog.LevelDebug
		if wait >= loudFrom && err.Error() != told {
			level, told = slog.LevelWarn, err.Error()
		}
		s.log.LogAttrs(ctx, level, "it does not work yet, will try again", slog.String("what", what), slog.Any("error", err))
		select {
		case <-ctx.Done():
			return fmt.Errorf("credential: %s: %w (gave up: %w)", what, reason, ctx.Err())
		case <-time.After(pause(wait, rpc.RetryAfter(err), mathrand.Float64())):
		}
	}
}

// pause says how long to wait after a failure: about wait, and not less than the
// authority asked for, after, and up to half of that more. jitter is in [0, 1).
func pause(wait, after time.Duration, jitter float64) time.Duration {
	return max(time.Duration(float64(wait)*(0.5+jitter)), time.Duration(float64(after)*(1+jitter/2)))
}

// joinBundle has the roots by which the authority is known when joining: those
// that were learnt and those of the configured file, read anew, because the root
// may have been replaced while this service had no valid certificate.
func (s *Source) joinBundle() *x509bundle.Bundle {
	both := s.currentBundle().Clone()
	if configured, err := x509bundle.Load(s.td, s.cfg.TrustBundle); err == nil {
		for _, c := range configured.X509Authorities() {
			both.AddX509Authority(c)
		}
	}
	return both
}

func (s *Source) renew(ctx context.Context) error {
	conn, err := s.caConn()
	if err != nil {
		return err
	}
	return s.obtain(ctx, false, func(ctx context.Context, csr []byte) (*capb.CertificateResponse, error) {
		return capb.NewCertificateAuthorityClient(conn).Renew(ctx, &capb.RenewRequest{Csr: csr})
	})
}

func (s *Source) caConn() (*grpc.ClientConn, error) {
	ca, err := identity.Service(s.td, identity.CA)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == nil {
		s.conn, err = s.Dial(s.cfg.CA, ca)
	}
	return s.conn, err
}

func (s *Source) closeConn() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		_ = s.conn.Close()
		s.conn = nil
	}
}

// obtain makes a new key, asks for its certificate, checks it and keeps both. anew
// says that what is known of the authority so far does not count: another may have
// taken its place.
func (s *Source) obtain(ctx context.Context, anew bool, ask func(context.Context, []byte) (*capb.CertificateResponse, error)) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return err
	}
	resp, err := ask(ctx, csr)
	if err != nil {
		return err
	}
	if err := s.takeBundle(resp.GetBundle(), !anew); err != nil {
		return err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	var der []byte
	for _, c := range resp.GetChain() {
		der = append(der, c...)
	}
	svid, err := x509svid.ParseRaw(der, keyDER)
	if err != nil {
		return err
	}
	if svid.ID != s.id {
		return fmt.Errorf("the authority answered with a certificate for %s instead of %s", svid.ID, s.id)
	}
	certPEM, keyPEM, err := svid.Marshal()
	if err != nil {
		return err
	}
	if err := atomicfile.Write(filepath.Join(s.cfg.Dir, identityFile), append(certPEM, keyPEM...), 0o600); err != nil {
		return err
	}
	s.setSVID(svid)
	return nil
}

// renewIn says how long to use a certificate from now on: half of the life that
// is left, give or take a tenth of it, at least renewMin. jitter is in [0, 1).
func renewIn(notBefore, notAfter, now time.Time, jitter float64) time.Duration {
	// With a clock behind the authority's, more seems to be left than there is.
	life := min(notAfter.Sub(now), notAfter.Sub(notBefore))
	return max(time.Duration(float64(life)*(0.4+0.2*jitter)), renewMin)
}

// Run renews the certificate at half of the life that is left, give or take a
// tenth, or soon when another authority signs or it is revoked, and follows the trust
// bundle and what is revoked, until ctx ends.
func (s *Source) Run(ctx context.Context) error {
	defer s.closeConn()
	var wg sync.WaitGroup
	wg.Go(func() { s.followBundle(ctx) })
	wg.Go(func() { s.followRevocations(ctx) })
	defer wg.Wait()
	for {
		if err := s.untilRenewal(ctx); err != nil {
			return err
		}
		if err := s.retry(ctx, "renew the certificate", s.renewOrJoin); err != nil {
			return err
		}
	}
}

// renewOrJoin renews with the certificate, and falls back to a proof as at the
// first time when that has expired meanwhile, is not valid yet because the clock went
// back, or cannot be renewed because its root was replaced in a hurry or it is revoked.
func (s *Source) renewOrJoin(ctx context.Context) error {
	leaf, now := s.current().Certificates[0], s.wall()
	var err error
	if now.Before(leaf.NotAfter) {
		err = s.renew(ctx)
		if err == nil {
			return nil
		}
		if !now.Before(leaf.NotBefore) && !s.disowned() && !s.condemned(s.current()) {
			return err
		}
	}
	if jerr := s.join(ctx); jerr != nil {
		return errors.Join(err, jerr)
	}
	s.reconnect() // with the new certificate
	return nil
}

// ServerCredentials are for servers: a client certificate of the trust domain is
// required, which is not revoked; which identity may do what is for rpc.Methods to
// say. Connections end when their client's certificate is revoked, or its root is no
// longer trusted.
func (s *Source) ServerCredentials() credentials.TransportCredentials {
	return s.served.Track(credentials.NewTLS(s.serverTLS()), s.admit)
}

func (s *Source) serverTLS() *tls.Config {
	c := s.tls13(tlsconfig.MTLSServerConfig(s, s, tlsconfig.AuthorizeMemberOf(s.td)))
	// A resumed session would not be verified again: a client of a root that is
	// no longer trusted would get in until its certificate expires.
	c.SessionTicketsDisabled = true
	return c
}

// clientTLS is for clients of the server with exactly that identity.
func (s *Source) clientTLS(server spiffeid.ID) *tls.Config {
	return s.tls13(tlsconfig.MTLSClientConfig(s, s, tlsconfig.AuthorizeID(server)))
}

// Dial connects to a service of Writ. addr is host:port.
func (s *Source) Dial(addr string, server spiffeid.ID) (*grpc.ClientConn, error) {
	return s.dial(addr, s.clientTLS(server))
}

func (s *Source) dial(addr string, config *tls.Config) (*grpc.ClientConn, error) {
	return grpc.NewClient(addr,
		// Else each connection waits for a TXT record that nobody has, which takes
		// seconds where names of the outside cannot be resolved.
		grpc.WithDisableServiceConfig(),
		grpc.WithTransportCredentials(s.dialed.Track(credentials.NewTLS(config), s.admit)),
		grpc.WithChainUnaryInterceptor(s.unary),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second, PermitWithoutStream: true}),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: dialBackoff, MinConnectTimeout: 2 * time.Second}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)),
	)
}

// GetX509SVID implements x509svid.Source.
func (s *Source) GetX509SVID() (*x509svid.SVID, error) {
	if svid := s.current(); svid != nil {
		return svid, nil
	}
	return nil, errors.New("credential: no certificate yet")
}

// GetX509BundleForTrustDomain implements x509bundle.Source.
func (s *Source) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	return s.currentBundle().GetX509BundleForTrustDomain(td)
}

// ID is the identity that the source is for.
func (s *Source) ID() spiffeid.ID { return s.id }

// wall is the time of the wall clock, which goes on while the machine sleeps.
func (s *Source) wall() time.Time { return s.now().Round(0) }

func (s *Source) current() *x509svid.SVID {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.svid
}

func (s *Source) setSVID(svid *x509svid.SVID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.svid, s.since = svid, s.wall()
	s.tell()
}

func (s *Source) trusted() trust {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.trust
}

func (s *Source) currentBundle() *x509bundle.Bundle { return s.trusted().bundle }

func (s *Source) setTrust(t trust) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trust = t
	s.tell()
}

// tell wakes who waits for changes; mu is held.
func (s *Source) tell() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// tls13 completes the configuration of either side: who is revoked is refused in the
// handshake already, so that he is told.
func (s *Source) tls13(c *tls.Config) *tls.Config {
	s.cfg.CompliancePolicy.Apply(c)
	c.VerifyConnection = func(state tls.ConnectionState) error { return s.admit(state.PeerCertificates) }
	return c
}

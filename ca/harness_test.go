package ca

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net/url"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/internal/service"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

const (
	nodeID     = "spiffe://example.org/writ/node/n1"
	pilotID    = "spiffe://example.org/writ/pilot"
	reviewsID  = "spiffe://example.org/ns/default/sa/reviews"
	ratingsID  = "spiffe://example.org/ns/default/sa/ratings"
	foreignTD  = "example.com"
	testBudget = 20 * time.Second
)

var td = spiffeid.RequireTrustDomainFromString("example.org")

// harness is a whole authority, reached over its sockets.
type harness struct {
	t       testing.TB
	config  Config
	metrics *prometheus.Registry
	health  *service.Health
	stop    func() error

	mu     sync.Mutex
	socket *grpc.ClientConn // to the admin socket of the run of now
}

// start runs an authority in a directory of its own; change may alter its
// configuration.
func start(t testing.TB, change func(*Config)) *harness {
	t.Helper()
	dir := t.TempDir()
	h := &harness{t: t, config: DefaultConfig()}
	h.config.TrustDomain = td.Name()
	h.config.State = filepath.Join(dir, "state")
	h.config.Listen = "unix://" + filepath.Join(dir, "tls.sock")
	h.config.Admin = "unix://" + filepath.Join(dir, "admin.sock")
	if change != nil {
		change(&h.config)
	}
	h.run()
	t.Cleanup(func() {
		if err := h.stop(); err != nil {
			t.Errorf("the authority ended with %v", err)
		}
	})
	return h
}

func (h *harness) run() {
	h.t.Helper()
	if err := h.config.Validate(); err != nil {
		h.t.Fatal(err)
	}
	h.metrics, h.health = prometheus.NewRegistry(), new(service.Health)
	rt := newRuntime()
	rt.Metrics, rt.Health = h.metrics, h.health
	ctx, cancel := context.WithCancel(context.WithoutCancel(h.t.Context()))
	done := make(chan error, 1)
	go func() { done <- Run(ctx, h.config, rt) }()
	h.stop = func() error {
		cancel()
		err := <-done
		done <- err
		h.hangUp()
		return err
	}
	h.eventually("the authority answers", func() bool {
		select {
		case err := <-done:
			done <- err
			h.t.Fatalf("the authority did not start: %v", err)
		default:
		}
		_, err := h.admin().GetBundle(h.t.Context(), &capb.GetBundleRequest{})
		return err == nil
	})
}

// restart stops the authority and starts it again on the same state.
func (h *harness) restart() {
	h.t.Helper()
	if err := h.stop(); err != nil {
		h.t.Fatal(err)
	}
	h.run()
}

func (h *harness) eventually(what string, f func() bool) {
	h.t.Helper()
	proctest.Until(h.t, testBudget, what, f)
}

func (h *harness) dial(addr string, creds credentials.TransportCredentials, options ...grpc.DialOption) *grpc.ClientConn {
	h.t.Helper()
	conn, err := grpc.NewClient(addr, append(options, grpc.WithTransportCredentials(creds))...)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// adminConn is one connection for everything that is asked of a run, since much is
// asked until it is so.
func (h *harness) adminConn() *grpc.ClientConn {
	h.t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.socket == nil {
		// A socket that is not there yet is there soon.
		often := grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 5 * time.Millisecond, Multiplier: 1, MaxDelay: 5 * time.Millisecond},
			MinConnectTimeout: testBudget, // or an attempt would have no longer than the delay
		}
		h.socket = h.dial(h.config.Admin, insecure.NewCredentials(), grpc.WithConnectParams(often))
	}
	return h.socket
}

// hangUp closes the connection to a run that has ended.
func (h *harness) hangUp() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.socket != nil {
		_ = h.socket.Close()
		h.socket = nil
	}
}

func (h *harness) admin() capb.AdminClient { return capb.NewAdminClient(h.adminConn()) }

func (h *harness) trustDomain() spiffeid.TrustDomain {
	return spiffeid.RequireTrustDomainFromString(h.config.TrustDomain)
}

func (h *harness) bundle() *x509bundle.Bundle {
	h.t.Helper()
	b, err := x509bundle.Load(h.trustDomain(), h.config.trustBundle())
	if err != nil {
		h.t.Fatal(err)
	}
	return b
}

// as connects with an identity; nil means without a client certificate.
func (h *harness) as(svid *x509svid.SVID) capb.CertificateAuthorityClient {
	h.t.Helper()
	return capb.NewCertificateAuthorityClient(h.connAs(svid))
}

func (h *harness) connAs(svid *x509svid.SVID) *grpc.ClientConn {
	h.t.Helper()
	authorize := tlsconfig.AuthorizeID(spiffeid.RequireFromPath(h.trustDomain(), "/writ/ca"))
	var c *tls.Config
	if svid == nil {
		c = tlsconfig.TLSClientConfig(h.bundle(), authorize)
	} else {
		c = tlsconfig.MTLSClientConfig(svid, h.bundle(), authorize)
	}
	return h.dial(h.config.Listen, credentials.NewTLS(c))
}

// mint gets an X.509-SVID over the admin socket.
func (h *harness) mint(id string) *x509svid.SVID {
	h.t.Helper()
	key, der := request(h.t, "")
	resp, err := h.admin().Mint(h.t.Context(), &capb.MintRequest{SpiffeId: id, Csr: der})
	if err != nil {
		h.t.Fatal(err)
	}
	return h.svid(resp, key)
}

// svid checks a response as its receiver would.
func (h *harness) svid(resp *capb.CertificateResponse, key *ecdsa.PrivateKey) *x509svid.SVID {
	h.t.Helper()
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		h.t.Fatal(err)
	}
	var chain []byte
	for _, c := range resp.GetChain() {
		chain = append(chain, c...)
	}
	svid, err := x509svid.ParseRaw(chain, keyDER)
	if err != nil {
		h.t.Fatal(err)
	}
	if _, _, err := x509svid.Verify(svid.Certificates, h.bundle()); err != nil {
		h.t.Fatal(err)
	}
	return svid
}

func (h *harness) token(id string) string {
	h.t.Helper()
	resp, err := h.admin().CreateJoinToken(h.t.Context(), &capb.CreateJoinTokenRequest{SpiffeId: id})
	if err != nil {
		h.t.Fatal(err)
	}
	return resp.GetToken()
}

// ledger returns what ListCertificates gives.
func (h *harness) ledger(req *capb.ListCertificatesRequest) []*capb.CertificateRecord {
	h.t.Helper()
	stream, err := h.admin().ListCertificates(h.t.Context(), req)
	if err != nil {
		h.t.Fatal(err)
	}
	var out []*capb.CertificateRecord
	for {
		c, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			h.t.Fatal(err)
		}
		out = append(out, c)
	}
}

// request makes a key and a certificate request that names id, if that is not
// empty.
func request(t testing.TB, id string) (*ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var template x509.CertificateRequest
	if id != "" {
		u, err := url.Parse(id)
		if err != nil {
			t.Fatal(err)
		}
		template.URIs = []*url.URL{u}
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &template, key)
	if err != nil {
		t.Fatal(err)
	}
	return key, der
}

func wantCode(t testing.TB, err error, want codes.Code) {
	t.Helper()
	if status.Code(err) != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func newRuntime() *service.Runtime {
	return &service.Runtime{Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(), Health: new(service.Health)}
}

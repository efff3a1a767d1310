package upstream

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-mesh/writ/internal/config"
)

var td = spiffeid.RequireTrustDomainFromString("example.org")

// pair is a certificate with its key.
type pair struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// authority makes an authority's certificate for a key; by is nil for a root.
func authority(t *testing.T, name string, pub crypto.PublicKey, by *pair, key crypto.Signer) *pair {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true, MaxPathLen: -1,
	}
	parent, signer := template, key
	if by != nil {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &pair{cert, key}
}

func encode(certs ...*x509.Certificate) string {
	var out strings.Builder
	for _, c := range certs {
		out.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	return out.String()
}

// fixture is an upstream over HTTPS that answers what a test says.
type fixture struct {
	t      *testing.T
	root   *pair
	dir    string
	answer http.HandlerFunc
	keeper *Keeper
	token  string // of the last request
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	rootKey := newKey(t)
	f := &fixture{t: t, root: authority(t, "root", rootKey.Public(), nil, rootKey), dir: t.TempDir()}
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Who answers before he has read all resets the connection.
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		f.answer(w, r)
	}))
	t.Cleanup(server.Close)
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	f.put("root.pem", encode(f.root.cert, server.Certificate()))
	der, err := x509.MarshalPKCS8PrivateKey(newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	f.put("provisioner.key", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
	f.keeper = &Keeper{
		Config: Config{URL: server.URL, RootFile: f.path("root.pem"), Provisioner: "writ", KeyFile: f.path("provisioner.key"), TTL: config.Duration(time.Hour)},
		Dir:    f.dir, TrustDomain: td, Log: slog.New(slog.DiscardHandler), Away: func(time.Duration, error) {},
	}
	if err := f.keeper.loadKey(); err != nil {
		t.Fatal(err)
	}
	f.answer = f.sign
	return f
}

func (f *fixture) path(name string) string { return filepath.Join(f.dir, name) }

func (f *fixture) put(name, data string) {
	f.t.Helper()
	if err := os.WriteFile(f.path(name), []byte(data), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

// request reads what was asked.
func (f *fixture) request(r *http.Request) *x509.CertificateRequest {
	var req signRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		f.t.Error(err)
	}
	f.token = req.OTT
	block, _ := pem.Decode([]byte(req.CSR))
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		f.t.Error(err)
	}
	return csr
}

// sign answers as a step-ca does.
func (f *fixture) sign(w http.ResponseWriter, r *http.Request) {
	csr := f.request(r)
	f.chain(w, authority(f.t, "issuing", csr.PublicKey, f.root, f.root.key).cert, f.root.cert)
}

func (f *fixture) chain(w http.ResponseWriter, certs ...*x509.Certificate) {
	var a signAnswer
	for _, c := range certs {
		a.Chain = append(a.Chain, encode(c))
	}
	w.WriteHeader(http.StatusCreated)
	if err := json.NewEncoder(w).Encode(a); err != nil {
		f.t.Error(err)
	}
}

func TestSign(t *testing.T) {
	f := newFixture(t)
	// The test server's certificate signs nothing here, so it is no root of the mesh.
	f.rootsOnly()
	if err := f.keeper.try(t.Context()); err != nil {
		t.Fatal(err)
	}
	token, err := jwt.ParseSigned(f.token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	var c claims
	if err := token.UnsafeClaimsWithoutVerification(&c); err != nil {
		t.Fatal(err)
	}
	if token.Headers[0].KeyID == "" || c.Issuer != "writ" || len(c.SANs) != 1 || c.SANs[0] != td.IDString() || !c.Audience.Contains(f.keeper.Config.URL+"/1.0/sign") {
		t.Errorf("token %+v of key %q", c, token.Headers[0].KeyID)
	}
	// What was signed is kept, with its key.
	kept := &Keeper{Config: f.keeper.Config, Dir: f.dir, TrustDomain: td, Log: f.keeper.Log, By: never{t}}
	set, err := kept.Load(t.Context())
	if err != nil || !set.Equal(f.keeper.set) {
		t.Errorf("another set after a restart: %v", err)
	}
}

// never is an authority that must not be asked.
type never struct{ t *testing.T }

// Sign implements Authority.
func (n never) Sign(context.Context, *x509.CertificateRequest, time.Duration) ([]*x509.Certificate, error) {
	n.t.Error("the authority is asked though a certificate was kept")
	return nil, io.ErrUnexpectedEOF
}

// rootsOnly has the client trust the test server beside the roots of the mesh.
func (f *fixture) rootsOnly() {
	f.keeper.By = &trusting{f}
}

// trusting is a stepCA whose server is verified by another file than the mesh's
// roots, as a test server's certificate is not signed by them.
type trusting struct{ f *fixture }

// Sign implements Authority.
func (s *trusting) Sign(ctx context.Context, csr *x509.CertificateRequest, life time.Duration) ([]*x509.Certificate, error) {
	c := s.f.keeper.Config
	data, err := os.ReadFile(c.RootFile)
	if err != nil {
		return nil, err
	}
	c.RootFile = s.f.path("server.pem")
	s.f.put("server.pem", string(data))
	s.f.put("root.pem", encode(s.f.root.cert))
	return (&stepCA{c}).Sign(ctx, csr, life)
}

// TestBadAnswers change nothing, and are told.
func TestBadAnswers(t *testing.T) {
	for name, tc := range map[string]struct {
		answer func(*fixture, http.ResponseWriter, *http.Request)
		want   string
	}{
		"refusal": {func(_ *fixture, w http.ResponseWriter, _ *http.Request) {
			http.Error(w, `{"message":"the token has expired"}`, http.StatusUnauthorized)
		}, "the token has expired"},
		"no JSON":  {func(_ *fixture, w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") }, "cannot be read"},
		"no chain": {func(_ *fixture, w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "{}") }, "there is no certificate"},
		"redirect": {func(_ *fixture, w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusFound)
		}, "302"},
		"long text": {func(_ *fixture, w http.ResponseWriter, _ *http.Request) {
			http.Error(w, strings.Repeat("x", maxAnswer), http.StatusBadGateway)
		}, "502"},
		"another key": {func(f *fixture, w http.ResponseWriter, r *http.Request) {
			f.request(r)
			f.chain(w, authority(f.t, "issuing", newKey(f.t).Public(), f.root, f.root.key).cert)
		}, "is not the key of"},
		"another root": {func(f *fixture, w http.ResponseWriter, r *http.Request) {
			key := newKey(f.t)
			other := authority(f.t, "other", key.Public(), nil, key)
			f.chain(w, authority(f.t, "issuing", f.request(r).PublicKey, other, key).cert, other.cert)
		}, "the chain ends with"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.rootsOnly()
			f.answer = func(w http.ResponseWriter, r *http.Request) { tc.answer(f, w, r) }
			err := f.keeper.try(t.Context())
			if err == nil || !strings.Contains(err.Error(), tc.want) || len(err.Error()) > 2*maxWords {
				t.Errorf("got %.400v, want %q", err, tc.want)
			}
			if _, err := os.Stat(f.path(chainFile)); err == nil {
				t.Error("something was kept")
			}
		})
	}
}

// TestStrangerAtTheAddress is not told anything.
func TestStrangerAtTheAddress(t *testing.T) {
	f := newFixture(t)
	f.put("root.pem", encode(f.root.cert))
	f.answer = func(http.ResponseWriter, *http.Request) { t.Error("the request was sent") }
	if err := f.keeper.try(t.Context()); err == nil || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("got %v", err)
	}
}

func TestRetry(t *testing.T) {
	for attempt := range 100 {
		for _, jitter := range []float64{0, 0.5, 0.999} {
			if d := retryIn(attempt, jitter); d < retryMin/2 || d > retryMax*3/2 {
				t.Errorf("attempt %d waits %s", attempt, d)
			}
		}
	}
	if a, b := retryIn(0, 0.5), retryIn(3, 0.5); a != retryMin || b != 8*retryMin {
		t.Errorf("got %s and %s", a, b)
	}
}

func TestValidate(t *testing.T) {
	good := Config{URL: "https://ca.example.org:9000", RootFile: "r", Provisioner: "p", KeyFile: "k", TTL: DefaultTTL}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	if err := (Config{TTL: DefaultTTL}).Validate(); err != nil {
		t.Error(err)
	}
	for want, change := range map[string]func(*Config){
		"url":         func(c *Config) { c.URL = "http://ca" },
		"name the":    func(c *Config) { c.URL = "" },
		"root_file":   func(c *Config) { c.RootFile = "" },
		"provisioner": func(c *Config) { c.Provisioner = "" },
		"key_file":    func(c *Config) { c.KeyFile = "" },
		"ttl":         func(c *Config) { c.TTL = config.Duration(time.Second) },
	} {
		c := good
		change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

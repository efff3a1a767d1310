package ca

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-mesh/writ/ca/ledger/ledgertest"
	"github.com/writ-mesh/writ/ca/root"
	"github.com/writ-mesh/writ/ca/upstream"
	"github.com/writ-mesh/writ/internal/config"
	"github.com/writ-mesh/writ/internal/proctest"
)

// fakeUpstream is an upstream authority that can be away.
type fakeUpstream struct {
	root   *foreign
	away   atomic.Bool
	signed atomic.Int64
}

var errAway = errors.New("connection refused")

// Sign implements upstream.Authority.
func (f *fakeUpstream) Sign(_ context.Context, req *x509.CertificateRequest, life time.Duration) ([]*x509.Certificate, error) {
	if f.away.Load() {
		return nil, errAway
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(f.signed.Add(1)), Subject: req.Subject, URIs: req.URIs, NotBefore: time.Now(), NotAfter: time.Now().Add(life),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
	}, f.root.cert, req.PublicKey, f.root.key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return []*x509.Certificate{cert}, err
}

// TestUpstreamAwayForTwoHours: it costs no issuance, and is seen.
func TestUpstreamAwayForTwoHours(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		up := &fakeUpstream{root: newForeign(t, "upstream root", nil, 1000*time.Hour)}
		rootFile := filepath.Join(dir, "root.pem")
		if err := os.WriteFile(rootFile, root.PEM(up.root.cert), 0o600); err != nil {
			t.Fatal(err)
		}
		a := newAuthority(t, ledgertest.NewMemory(), time.Now)
		c := DefaultConfig()
		c.State = dir
		a.keeper = newKeeper(c, a)
		err := a.keeper.openSource(t.Context(), &upstreamSource{upstream.Keeper{
			Config: upstream.Config{RootFile: rootFile, TTL: config.Duration(7 * time.Hour)}, By: up, Dir: dir, TrustDomain: td, Log: a.log, Away: a.keeper.away,
		}})
		if err != nil {
			t.Fatal(err)
		}
		if err := a.keeper.open(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- a.keeper.follow(ctx) }()

		gone := 0.0
		o := order{kind: kindMint, id: spiffeid.RequireFromString(reviewsID), csr: parsed(t)}
		for at := range 12 * 60 {
			time.Sleep(time.Minute)              // fake time
			up.away.Store(at >= 180 && at < 340) // the certificate is due between 189 and 210
			cert, err := a.issue(ctx, o)
			if err != nil {
				t.Fatalf("minute %d: %v", at, err)
			}
			if life := time.Until(cert.NotAfter); life < time.Hour-time.Second {
				t.Fatalf("minute %d: a certificate for %s", at, life)
			}
			gone = max(gone, value(t, a.metrics.upstreamAway))
		}
		if gone < (2*time.Hour).Seconds() || gone > (3*time.Hour).Seconds() {
			t.Errorf("the metric says that it was away for %v seconds, want two to three hours", gone)
		}
		if now := value(t, a.metrics.upstreamAway); now != 0 {
			t.Errorf("the metric says %v when it is back", now)
		}
		if n := up.signed.Load(); n < 3 || n > 5 {
			t.Errorf("%d certificates signed in twelve hours of seven each", n)
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

func value(t *testing.T, g prometheus.Gauge) float64 {
	t.Helper()
	var m dto.Metric
	if err := g.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetGauge().GetValue()
}

// stepCA runs a real step-ca, whose root is top's, with a provisioner that lets
// authorities be signed. It can be killed and run again.
type stepCA struct {
	t      *testing.T
	binary string
	dir    string
	port   int
	top    *foreign
	*proctest.Process
}

func newStepCA(t *testing.T) *stepCA {
	t.Helper()
	binary, err := filepath.Abs("../.tools/bin/step-ca")
	if err == nil {
		_, err = os.Stat(binary)
	}
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("step-ca is missing: hack/build-tool.sh step-ca builds it")
		}
		t.Skip("step-ca is missing: hack/build-tool.sh step-ca builds it")
	}
	s := &stepCA{t: t, binary: binary, dir: t.TempDir(), port: proctest.Port(t), top: newForeign(t, "upstream root", nil, 24*time.Hour)}
	issuing, provisioner := newForeign(t, "upstream issuing", s.top, 24*time.Hour), newForeign(t, "upstream provisioner", nil, time.Hour)
	s.put("root.crt", root.PEM(s.top.cert))
	s.put("ca.crt", root.PEM(issuing.cert))
	s.put("ca.key", keyPEM(t, issuing.key))
	s.put("provisioner.key", keyPEM(t, provisioner.key))
	jwk := jose.JSONWebKey{Key: provisioner.key.Public(), Algorithm: "ES256", Use: "sig"}
	sum, err := jwk.Thumbprint(crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	jwk.KeyID = base64.RawURLEncoding.EncodeToString(sum)
	conf, err := json.Marshal(map[string]any{
		"root": s.path("root.crt"), "crt": s.path("ca.crt"), "key": s.path("ca.key"),
		"address": fmt.Sprintf("127.0.0.1:%d", s.port), "dnsNames": []string{"127.0.0.1"},
		"authority": map[string]any{"provisioners": []any{map[string]any{
			"type": "JWK", "name": "writ", "key": jwk, "claims": map[string]any{"minTLSCertDuration": "5s", "maxTLSCertDuration": "24h"},
			"options": map[string]any{"x509": map[string]any{"template": `{"subject": {{ toJson .Subject }}, "sans": {{ toJson .SANs }},
				"keyUsage": ["certSign", "crlSign"], "basicConstraints": {"isCA": true, "maxPathLen": 0}}`}},
		}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	s.put("ca.json", conf)
	return s
}

func (s *stepCA) run() {
	s.Process = proctest.Start(s.t, "env", "STEPPATH="+s.dir, s.binary, s.path("ca.json"))
}

func (s *stepCA) path(name string) string { return filepath.Join(s.dir, name) }

func (s *stepCA) put(name string, data []byte) {
	s.t.Helper()
	if err := os.WriteFile(s.path(name), data, 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func (s *stepCA) config() upstream.Config {
	return upstream.Config{
		URL: fmt.Sprintf("https://127.0.0.1:%d", s.port), RootFile: s.path("root.crt"),
		Provisioner: "writ", KeyFile: s.path("provisioner.key"), TTL: config.Duration(12 * time.Second),
	}
}

func keyPEM(t testing.TB, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// TestStepCA: a real step-ca signs our intermediate, is killed, and signs it again
// when it is back. The key stays, so that nobody else notices.
func TestStepCA(t *testing.T) {
	t.Parallel()
	up := newStepCA(t)
	up.run()
	h := start(t, func(c *Config) { c.Authority.Upstream = up.config() })
	first := h.mint(reviewsID)
	if got := first.Certificates; len(got) != 3 || got[1].Issuer.CommonName != "upstream issuing" || h.active() != up.top.id() {
		t.Fatalf("a chain of %d certificates under %s", len(got), h.active())
	}
	h.eventually("the intermediate is renewed", func() bool {
		again := h.mint(reviewsID).Certificates[1]
		return !again.Equal(first.Certificates[1]) && again.PublicKey.(*ecdsa.PublicKey).Equal(first.Certificates[1].PublicKey)
	})
	up.Kill()
	h.eventually("the absence is noticed", func() bool { return gauge(t, h, "writ_ca_upstream_unreachable_seconds") > 0 })
	if p := h.rootsNow().GetProblem(); !strings.Contains(p, "upstream authority") {
		t.Errorf("the status says %q", p)
	}
	h.mint(ratingsID)
	h.restart() // with the certificate that was kept
	before := h.mint(ratingsID).Certificates[1]
	up.run()
	h.eventually("the intermediate is renewed", func() bool { return !h.mint(ratingsID).Certificates[1].Equal(before) })
	h.eventually("all is well", func() bool {
		return gauge(t, h, "writ_ca_upstream_unreachable_seconds") == 0 && h.rootsNow().GetProblem() == ""
	})
}

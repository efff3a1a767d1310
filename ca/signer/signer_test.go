package signer_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/writ-mesh/writ/ca/profile"
	"github.com/writ-mesh/writ/ca/root"
	"github.com/writ-mesh/writ/ca/signer"
)

var td = spiffeid.RequireTrustDomainFromString("example.org")

func newSigner(t testing.TB, now time.Time) *signer.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template, err := profile.Root(td, key.Public(), now.Add(-time.Minute), now.Add(24*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	cert, err := signer.SelfSign(t.Context(), template, key)
	if err != nil {
		t.Fatal(err)
	}
	if err := profile.CheckRoot(cert, td, now); err != nil {
		t.Fatal(err)
	}
	s, err := signer.New(t.Context(), []*x509.Certificate{cert}, key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func sign(t testing.TB, s *signer.Signer, id spiffeid.ID, pub crypto.PublicKey, now time.Time) *x509.Certificate {
	t.Helper()
	notBefore, notAfter := profile.Window(now, time.Hour, 10*time.Second, s.Issuer())
	template, err := profile.Leaf(id, pub, notBefore, notAfter)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := s.Sign(template)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// The profile of the standard, seen by two implementations that are not ours.
func TestLeafVerifies(t *testing.T) {
	now := time.Now()
	s := newSigner(t, now)
	ec, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ed, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rs, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	id := spiffeid.RequireFromString("spiffe://example.org/ns/default/sa/reviews")
	for name, pub := range map[string]crypto.PublicKey{"ecdsa": ec.Public(), "ed25519": ed, "rsa": rs.Public()} {
		t.Run(name, func(t *testing.T) {
			cert := sign(t, s, id, pub, now)
			if err := profile.CheckLeaf(cert, id, pub, s.Issuer()); err != nil {
				t.Fatal(err)
			}
			bundle := x509bundle.FromX509Authorities(td, []*x509.Certificate{s.Issuer()})
			got, _, err := x509svid.Verify([]*x509.Certificate{cert}, bundle)
			if err != nil || got != id {
				t.Fatalf("go-spiffe: got %s, %v", got, err)
			}
			opensslSees(t, s.Issuer(), cert, id)
		})
	}
}

func opensslSees(t *testing.T, issuer, cert *x509.Certificate, id spiffeid.ID) {
	t.Helper()
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("openssl is not installed")
	}
	rootFile, leafFile := filepath.Join(t.TempDir(), "root"), filepath.Join(t.TempDir(), "leaf")
	for file, c := range map[string]*x509.Certificate{rootFile: issuer, leafFile: cert} {
		if err := os.WriteFile(file, root.PEM(c), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, purpose := range []string{"sslserver", "sslclient"} {
		out, err := exec.CommandContext(t.Context(), openssl, "verify", "-x509_strict", "-purpose", purpose, "-CAfile", rootFile, leafFile).CombinedOutput()
		if err != nil {
			t.Fatalf("openssl verify: %v\n%s", err, out)
		}
	}
	out, err := exec.CommandContext(t.Context(), openssl, "x509", "-in", leafFile, "-noout", "-text").CombinedOutput()
	if err != nil {
		t.Fatalf("openssl x509: %v\n%s", err, out)
	}
	text := strings.Join(strings.Fields(string(out)), " ")
	for _, want := range []string{
		"Version: 3",
		"Subject: ",
		"X509v3 Key Usage: critical Digital Signature X509v3",
		"X509v3 Extended Key Usage: TLS Web Server Authentication, TLS Web Client Authentication",
		"X509v3 Basic Constraints: critical CA:FALSE",
		"X509v3 Subject Alternative Name: critical URI:" + id.String() + " Signature",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("openssl does not show %q in\n%s", want, out)
		}
	}
}

func TestNewRefusesForeignKey(t *testing.T) {
	s := newSigner(t, time.Now())
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := signer.New(t.Context(), []*x509.Certificate{s.Issuer()}, other); err == nil {
		t.Fatal("a key that is not the certificate's was taken")
	}
	if _, err := signer.New(t.Context(), nil, other); err == nil {
		t.Fatal("no certificate was taken")
	}
}

func TestSerialsDiffer(t *testing.T) {
	now := time.Now()
	s := newSigner(t, now)
	id := spiffeid.RequireFromString("spiffe://example.org/a")
	seen := make(map[string]bool)
	for range 50 {
		c := sign(t, s, id, s.Issuer().PublicKey, now)
		if n := c.SerialNumber; seen[n.String()] || n.Sign() <= 0 || n.BitLen() > 129 {
			t.Fatalf("serial number %s", n)
		}
		seen[c.SerialNumber.String()] = true
	}
}

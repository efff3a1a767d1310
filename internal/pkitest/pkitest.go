// Package pkitest makes roots and certificates for the tests of every service.
package pkitest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/url"
	"testing"
	"time"
)

// Root is a root certificate with its key.
type Root struct {
	Cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewRoot makes a root of a trust domain, or, if that is empty, of none.
func NewRoot(t testing.TB, trustDomain string) *Root {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test root"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour), KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	if trustDomain != "" {
		template.URIs = []*url.URL{{Scheme: "spiffe", Host: trustDomain}}
	}
	key := NewKey(t)
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &Root{Cert: cert, key: key}
}

// NewKey makes a key.
func NewKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// PEM is the root's certificate in PEM.
func (r *Root) PEM() []byte { return encode("CERTIFICATE", r.Cert.Raw) }

// Pool trusts the root alone.
func (r *Root) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(r.Cert)
	return pool
}

// Leaf is a certificate to be signed: of an identity, or, if that is empty, of
// none, valid since a minute.
func Leaf(id string, life time.Duration) *x509.Certificate {
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		panic(err) // the system has no randomness
	}
	now := time.Now()
	leaf := &x509.Certificate{
		SerialNumber: serial, NotBefore: now.Add(-time.Minute), NotAfter: now.Add(life), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	if id != "" {
		uri, err := url.Parse(id)
		if err != nil {
			panic(err) // a test's own
		}
		leaf.URIs = []*url.URL{uri}
	}
	return leaf
}

// Sign signs a leaf for a public key.
func (r *Root) Sign(leaf *x509.Certificate, public any) ([]byte, error) {
	return x509.CreateCertificate(rand.Reader, leaf, r.Cert, public, r.key)
}

// CRL signs a certificate revocation list, in DER.
func (r *Root) CRL(l *x509.RevocationList) ([]byte, error) {
	return x509.CreateRevocationList(rand.Reader, l, r.Cert, r.key)
}

// Issue signs a leaf for a new key, and gives both in PEM.
func (r *Root) Issue(t testing.TB, leaf *x509.Certificate) (certPEM, keyPEM []byte) {
	t.Helper()
	key := NewKey(t)
	der, err := r.Sign(leaf, key.Public())
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return encode("CERTIFICATE", der), encode("PRIVATE KEY", keyDER)
}

// Pair is Issue for Go's own TLS.
func (r *Root) Pair(t testing.TB, leaf *x509.Certificate) tls.Certificate {
	t.Helper()
	pair, err := tls.X509KeyPair(r.Issue(t, leaf))
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// Middle is an authority under the root.
func (r *Root) Middle(t testing.TB) *Root {
	t.Helper()
	return r.Signing(t, Intermediate())
}

// Intermediate is the certificate of an authority, to be signed by another one.
func Intermediate() *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "test intermediate"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
}

// Signing signs a certificate under the root whose key signs others, whether it may or
// not.
func (r *Root) Signing(t testing.TB, template *x509.Certificate) *Root {
	t.Helper()
	key := NewKey(t)
	der, err := r.Sign(template, key.Public())
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &Root{Cert: cert, key: key}
}

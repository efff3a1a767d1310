// Package profile is what the certificates of the authority look like: the
// X.509-SVID profile of the SPIFFE standard, as values in and values out. It
// makes templates and checks what a signer made of them; it signs nothing.
//
// Standard: https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md
package profile

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// serialBits is above the 64 bits of entropy that the CA/Browser Forum wants
// (Baseline Requirements 7.1) and within the 20 octets of RFC 5280 section
// 4.1.2.2.
const serialBits = 128

// Window is when a certificate is valid: from now less the skew, which allows
// for clocks that are behind, until now plus ttl, but not beyond the end of its
// issuer. The skew is at most a tenth of ttl, so that the half life of a short
// certificate is not over when it is born. Both ends are whole seconds, as X.509
// has no finer time.
func Window(now time.Time, ttl, skew time.Duration, issuer *x509.Certificate) (notBefore, notAfter time.Time) {
	notBefore = now.Add(-min(skew, ttl/10)).UTC().Truncate(time.Second)
	notAfter = now.Add(ttl).UTC().Truncate(time.Second)
	if issuer != nil && notAfter.After(issuer.NotAfter) {
		notAfter = issuer.NotAfter
	}
	if issuer != nil && notBefore.Before(issuer.NotBefore) {
		notBefore = issuer.NotBefore
	}
	return notBefore, notAfter
}

// Leaf is the template of an X.509-SVID of a workload or service. The subject is
// empty, as in Istio, so the subjectAltName is critical (RFC 5280 section
// 4.2.1.6).
func Leaf(id spiffeid.ID, pub crypto.PublicKey, notBefore, notAfter time.Time) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	return &x509.Certificate{
		SerialNumber:          serial,
		PublicKey:             pub,
		NotBefore:             notBefore,
		NotAfter:              notAfter,
		URIs:                  []*url.URL{id.URL()},
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		SubjectKeyId:          leafKeyID(pub),
	}, nil
}

// Root is the template of a root certificate of a trust domain. Its serial
// number is part of the subject, so that an old and a new root have different
// names and a verifier finds the right one.
func Root(td spiffeid.TrustDomain, pub crypto.PublicKey, notBefore, notAfter time.Time) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	keyID, err := keyID(pub)
	if err != nil {
		return nil, err
	}
	return &x509.Certificate{
		SerialNumber: serial,
		PublicKey:    pub,
		Subject: pkix.Name{
			Organization: []string{td.Name()},
			CommonName:   "Writ root",
			SerialNumber: fmt.Sprintf("%x", serial),
		},
		NotBefore:             notBefore.UTC().Truncate(time.Second),
		NotAfter:              notAfter.UTC().Truncate(time.Second),
		URIs:                  []*url.URL{td.ID().URL()},
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		SubjectKeyId:          keyID,
	}, nil
}

// CheckLeaf compares a signed certificate with what was ordered. It is the second
// pair of eyes between the signer and the world; the signature itself was
// verified by crypto/x509 when it was made.
func CheckLeaf(c *x509.Certificate, id spiffeid.ID, pub crypto.PublicKey, issuer *x509.Certificate) error {
	switch {
	case len(c.URIs) != 1 || c.URIs[0].String() != id.String():
		return fmt.Errorf("certificate has the URIs %v, want %s alone", c.URIs, id)
	case len(c.DNSNames)+len(c.EmailAddresses)+len(c.IPAddresses) > 0:
		return errors.New("certificate has names besides its SPIFFE ID")
	case !slices.Equal(c.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}) || len(c.UnknownExtKeyUsage) > 0:
		return errors.New("certificate's extended key usage is not server and client")
	}
	return checkEnd(c, pub, issuer)
}

// checkEnd checks what certificates of an SVID and of a server have in common.
func checkEnd(c *x509.Certificate, pub crypto.PublicKey, issuer *x509.Certificate) error {
	type publicKey interface{ Equal(crypto.PublicKey) bool }
	key, ok := pub.(publicKey)
	switch {
	case c.IsCA || !c.BasicConstraintsValid:
		return errors.New("certificate may sign others")
	case c.KeyUsage != x509.KeyUsageDigitalSignature:
		return fmt.Errorf("certificate has key usage %b, want digitalSignature alone", c.KeyUsage)
	case len(c.UnhandledCriticalExtensions) > 0:
		return errors.New("certificate has critical extensions that are unknown")
	case !slices.Equal(c.RawIssuer, issuer.RawSubject):
		return fmt.Errorf("certificate was issued by %s, want %s", c.Issuer, issuer.Subject)
	case c.NotBefore.Before(issuer.NotBefore) || c.NotAfter.After(issuer.NotAfter) || !c.NotBefore.Before(c.NotAfter):
		return fmt.Errorf("certificate is valid from %s to %s, outside its issuer's time", c.NotBefore, c.NotAfter)
	case !ok || !key.Equal(c.PublicKey):
		return errors.New("certificate is for another key than asked for")
	}
	return checkCritical(c)
}

// CheckRoot says whether a certificate can be the root of a trust domain now.
func CheckRoot(c *x509.Certificate, td spiffeid.TrustDomain, now time.Time) error {
	switch {
	case !c.IsCA || !c.BasicConstraintsValid:
		return errors.New("certificate is no authority's (basicConstraints CA is not set)")
	case c.KeyUsage&x509.KeyUsageCertSign == 0:
		return errors.New("certificate may not sign others (keyUsage lacks keyCertSign)")
	case len(c.URIs) != 1 || c.URIs[0].String() != td.IDString():
		return fmt.Errorf("certificate is the root of %v, the configured trust domain is %s", c.URIs, td.IDString())
	}
	return CheckTime(c, now)
}

// CheckTime says whether a root is valid now.
func CheckTime(c *x509.Certificate, now time.Time) error {
	switch {
	case now.Before(c.NotBefore):
		return fmt.Errorf("certificate is valid from %s on, this machine's clock says %s; set the clock", stamp(c.NotBefore), stamp(now))
	case !now.Before(c.NotAfter):
		return fmt.Errorf("certificate expired at %s, this machine's clock says %s; set the clock, or begin with a new root", stamp(c.NotAfter), stamp(now))
	}
	return nil
}

// checkCritical: keyUsage (2.5.29.15) and basicConstraints (.19) must be
// critical, and subjectAltName (.17) too where the subject is empty.
func checkCritical(c *x509.Certificate) error {
	for _, ext := range c.Extensions {
		if len(ext.Id) != 4 || ext.Critical {
			continue
		}
		switch last := ext.Id[3]; {
		case last == 15 || last == 19 || last == 17 && len(c.Subject.Names) == 0:
			return fmt.Errorf("certificate's extension %s is not critical", ext.Id)
		}
	}
	return nil
}

func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), serialBits))
	if err != nil {
		return nil, fmt.Errorf("serial number: %w", err)
	}
	// Zero is no serial number; one chance in 2^128 is not worth a retry.
	return n.Add(n, big.NewInt(1)), nil
}

// keyID names a key; any value that is its alone will do (RFC 5280 section
// 4.2.1.2).
func keyID(pub crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, fmt.Errorf("key identifier: %w", err)
	}
	sum := sha256.Sum256(der)
	return sum[:20], nil
}

// leafKeyID is a key identifier as in RFC 7093, section 2, method 1, for the keys of
// nearly all leaves; nil leaves it to the signer.
func leafKeyID(pub crypto.PublicKey) []byte {
	k, ok := pub.(*ecdsa.PublicKey)
	if !ok {
		return nil
	}
	point, err := k.Bytes()
	if err != nil {
		return nil
	}
	sum := sha256.Sum256(point)
	return sum[:20]
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

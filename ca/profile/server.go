package profile

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Server is the template of a certificate of a server outside the mesh. It has DNS
// names and no SPIFFE ID, and is no client's, so that nobody in the mesh takes it for
// a peer: peers need a URI, and clients the extended key usage too.
func Server(names []string, pub crypto.PublicKey, notBefore, notAfter time.Time) (*x509.Certificate, error) {
	if len(names) == 0 {
		return nil, errors.New("a server's certificate without a name")
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	return &x509.Certificate{
		SerialNumber:          serial,
		PublicKey:             pub,
		NotBefore:             notBefore,
		NotAfter:              notAfter,
		DNSNames:              names,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}, nil
}

// CheckServer compares a signed certificate with what was ordered by Server.
func CheckServer(c *x509.Certificate, names []string, pub crypto.PublicKey, issuer *x509.Certificate) error {
	switch {
	case len(names) == 0 || !slices.Equal(c.DNSNames, names):
		return fmt.Errorf("certificate has the DNS names %v, want %v", c.DNSNames, names)
	case len(c.URIs)+len(c.EmailAddresses)+len(c.IPAddresses) > 0:
		return errors.New("certificate has names that are no DNS names")
	case len(c.Subject.Names) > 0:
		return fmt.Errorf("certificate has the subject %s, want none", c.Subject)
	case !slices.Equal(c.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}) || len(c.UnknownExtKeyUsage) > 0:
		return errors.New("certificate's extended key usage is not server alone")
	}
	return checkEnd(c, pub, issuer)
}

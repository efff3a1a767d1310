// Package signer is the door to the signing of github.com/smallstep/certificates (that
// to its ACME is package acme). It signs
// templates through smallstep's certificate authority service interface, of
// which the software implementation costs 1.05 times the standard library's
// signing (docs/performance.md) and whose other implementations reach authorities
// outside. An implementation of our own beside it makes X.509-SVIDs with a key in
// memory for less. The full smallstep authority is not used here.
package signer

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/smallstep/certificates/cas/apiv1"
	"github.com/smallstep/certificates/cas/softcas"
)

// Signer signs certificates with one issuing key. It is safe for concurrent use.
type Signer struct {
	service apiv1.CertificateAuthorityService
	issuer  *x509.Certificate
	chain   []*x509.Certificate
}

// New returns a signer. chain begins with the certificate of key and may go on
// with those above it; a self-signed certificate at its end is the root.
func New(ctx context.Context, chain []*x509.Certificate, key crypto.Signer) (*Signer, error) {
	if len(chain) == 0 {
		return nil, errors.New("signer: no certificate")
	}
	type publicKey interface{ Equal(crypto.PublicKey) bool }
	if pub, ok := key.Public().(publicKey); !ok || !pub.Equal(chain[0].PublicKey) {
		return nil, errors.New("signer: the key is not the certificate's")
	}
	service, err := softcas.New(ctx, apiv1.Options{CertificateChain: chain, Signer: key})
	if err != nil {
		return nil, fmt.Errorf("signer: %w", err)
	}
	return &Signer{service: newInMemory(service, chain[0], key), issuer: chain[0], chain: withoutRoot(chain)}, nil
}

// Issuer is the certificate that signs.
func (s *Signer) Issuer() *x509.Certificate { return s.issuer }

// Intermediates are the certificates that a peer needs between a signed one and
// the root, lowest first; none if the root signs.
func (s *Signer) Intermediates() []*x509.Certificate { return s.chain }

// Sign returns the certificate that the template describes. The template carries
// serial number, public key and both times, and is the signer's from then on.
func (s *Signer) Sign(template *x509.Certificate) (*x509.Certificate, error) {
	resp, err := s.service.CreateCertificate(&apiv1.CreateCertificateRequest{
		Template: template, Lifetime: template.NotAfter.Sub(template.NotBefore),
	})
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	return resp.Certificate, nil
}

// SelfSign makes a root certificate of the template, whose public key is key's.
func SelfSign(ctx context.Context, template *x509.Certificate, key crypto.Signer) (*x509.Certificate, error) {
	s, err := New(ctx, []*x509.Certificate{template}, key)
	if err != nil {
		return nil, err
	}
	return s.Sign(template)
}

func withoutRoot(chain []*x509.Certificate) []*x509.Certificate {
	last := chain[len(chain)-1]
	if string(last.RawSubject) == string(last.RawIssuer) {
		return chain[:len(chain)-1]
	}
	return chain
}

// Package foreign bounds the roots of another trust domain to that trust domain, for
// verifiers that would take them for more.
//
// Envoy's SPIFFE validator chooses the roots by the first URI of a certificate and
// then takes any of its names for who the peer is: the authority of another trust
// domain could sign a certificate with a name of its own first and one of ours behind.
// Therefore Envoys do not get a foreign root as it is, but its subject and key in a
// certificate under an anchor with name constraints (RFC 5280, section 4.2.1.10), by
// which a chain with any other name is not valid. The key of the anchor is forgotten at
// once.
package foreign

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// maxRoots bounds the roots of one trust domain.
const maxRoots = 64

// oidNameConstraints is id-ce-nameConstraints of RFC 5280.
var oidNameConstraints = asn1.ObjectIdentifier{2, 5, 29, 30}

// Bound gives the roots of a trust domain in PEM so that they vouch for URIs of that
// trust domain, for no DNS name, and not longer than they did. It gives other bytes
// each time. The error says which root cannot be used.
func Bound(td spiffeid.TrustDomain, roots []*x509.Certificate) ([]byte, error) {
	if len(roots) == 0 || len(roots) > maxRoots {
		return nil, fmt.Errorf("trust domain %s has %d roots: want 1 to %d", td, len(roots), maxRoots)
	}
	if strings.Contains(td.Name(), "_") {
		return nil, fmt.Errorf("trust domain %s: Envoy verifies no host name with an underscore against name constraints", td)
	}
	var out []byte
	for i, r := range roots {
		pair, err := bound(td, r)
		if err != nil {
			return nil, fmt.Errorf("trust domain %s: root %d: %w", td, i+1, err)
		}
		for _, der := range pair {
			out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
		}
	}
	return out, nil
}

// bound gives the anchor and, under it, the root.
func bound(td spiffeid.TrustDomain, root *x509.Certificate) ([][]byte, error) {
	if !root.BasicConstraintsValid || !root.IsCA {
		return nil, errors.New("it is no authority's certificate")
	}
	for _, id := range root.UnhandledCriticalExtensions { // it may forbid itself something by it
		if !id.Equal(oidNameConstraints) {
			return nil, fmt.Errorf("it has the critical extension %s", id)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	anchor := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Writ: names of " + td.Name()},
		NotBefore: root.NotBefore, NotAfter: root.NotAfter, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		PermittedURIDomains: []string{td.Name()}, ExcludedDNSDomains: []string{""}, PermittedDNSDomainsCritical: true,
	}
	anchorDER, err := x509.CreateCertificate(rand.Reader, anchor, anchor, key.Public(), key)
	if err != nil {
		return nil, err
	}
	if anchor, err = x509.ParseCertificate(anchorDER); err != nil {
		return nil, err
	}
	under := &x509.Certificate{
		SerialNumber: root.SerialNumber, RawSubject: root.RawSubject, SubjectKeyId: root.SubjectKeyId,
		NotBefore: root.NotBefore, NotAfter: root.NotAfter, KeyUsage: root.KeyUsage,
		IsCA: true, BasicConstraintsValid: true, MaxPathLen: root.MaxPathLen, MaxPathLenZero: root.MaxPathLenZero,
		ExtKeyUsage: root.ExtKeyUsage, UnknownExtKeyUsage: root.UnknownExtKeyUsage,
	}
	for _, e := range root.Extensions { // what the root forbids itself stays so
		if e.Id.Equal(oidNameConstraints) {
			under.ExtraExtensions = append(under.ExtraExtensions, e)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, under, anchor, root.PublicKey, key)
	if err != nil {
		return nil, err
	}
	return [][]byte{anchorDER, der}, nil
}

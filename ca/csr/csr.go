// Package csr reads certificate signing requests from strangers: PKCS #10
// (RFC 2986) in DER. A Request is proof that somebody holds a private key, and
// may say which SPIFFE ID he wants; nothing else of it is used.
package csr

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

const (
	// MaxSize bounds a request, in bytes of DER. One with an RSA key of 8192
	// bits has about 2.2 KiB, and a SPIFFE ID has at most 2 KiB.
	MaxSize = 8 << 10
	// MaxIDSize bounds a SPIFFE ID, in bytes (SPIFFE ID standard, section 2.3).
	MaxIDSize = 2048
	// RSA keys have from 2048 bits (NIST SP 800-57 part 1, table 2) to as many as
	// crypto/tls accepts of a peer.
	minRSABits = 2048
	maxRSABits = 8192
)

// Request is a signing request whose signature was verified.
type Request struct {
	// PublicKey is an *ecdsa.PublicKey on P-256 or P-384, an ed25519.PublicKey or
	// an *rsa.PublicKey.
	PublicKey crypto.PublicKey
	// ID is what the request's only subject alternative name asks for; zero if
	// there is none.
	ID spiffeid.ID
}

// oidSAN is subjectAltName, RFC 5280 section 4.2.1.6.
var oidSAN = asn1.ObjectIdentifier{2, 5, 29, 17}

// uriTag is uniformResourceIdentifier in GeneralName, RFC 5280 section 4.2.1.6.
const uriTag = cbasn1.Tag(6 | 0x80)

// Parse reads a request and verifies that its sender holds the private key. Names
// other than one SPIFFE ID are refused and not ignored, so that nobody believes
// he was given them. The error is safe to show to the sender.
func Parse(der []byte) (Request, error) {
	req, err := parse(der)
	if err != nil {
		return Request{}, err
	}
	id, err := wantedID(req)
	if err != nil {
		return Request{}, err
	}
	return Request{PublicKey: req.PublicKey, ID: id}, nil
}

// ParsePEM is Parse for one PEM block of type CERTIFICATE REQUEST.
func ParsePEM(data []byte) (Request, error) {
	if len(data) > 2*MaxSize {
		return Request{}, fmt.Errorf("certificate request has %d bytes of PEM, at most %d are allowed", len(data), 2*MaxSize)
	}
	block, _ := pem.Decode(data)
	if block == nil || (block.Type != "CERTIFICATE REQUEST" && block.Type != "NEW CERTIFICATE REQUEST") {
		return Request{}, errors.New("certificate request is no PEM block of type CERTIFICATE REQUEST")
	}
	return Parse(block.Bytes)
}

func checkKey(pub crypto.PublicKey) error {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() || k.Curve == elliptic.P384() {
			return nil
		}
		return fmt.Errorf("key on curve %s is not accepted; use P-256, P-384, Ed25519 or RSA from %d bits", k.Curve.Params().Name, minRSABits)
	case ed25519.PublicKey:
		return nil
	case *rsa.PublicKey:
		if bits := k.N.BitLen(); bits < minRSABits || bits > maxRSABits {
			return fmt.Errorf("RSA key of %d bits is not accepted; use %d to %d bits", bits, minRSABits, maxRSABits)
		}
		return nil
	}
	return fmt.Errorf("key type is not accepted; use P-256, P-384, Ed25519 or RSA from %d bits", minRSABits)
}

// checkAlgorithm refuses the hashes that crypto/x509 still accepts in requests.
func checkAlgorithm(a x509.SignatureAlgorithm) error {
	switch a {
	case x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512, x509.PureEd25519,
		x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA,
		x509.SHA256WithRSAPSS, x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS:
		return nil
	}
	return fmt.Errorf("signature algorithm %s is not accepted in a certificate request", a)
}

// wantedID takes the only name of a request. It counts the names itself:
// crypto/x509 passes over the kinds that it does not know.
func wantedID(req *x509.CertificateRequest) (spiffeid.ID, error) {
	var id spiffeid.ID
	seen := false
	for _, ext := range req.Extensions {
		if !ext.Id.Equal(oidSAN) {
			continue
		}
		if seen {
			return spiffeid.ID{}, errors.New("certificate request has two subjectAltName extensions")
		}
		seen = true
		uri, err := onlyURI(ext.Value)
		if err != nil {
			return spiffeid.ID{}, err
		}
		if uri == "" {
			continue
		}
		if id, err = ParseID(uri); err != nil {
			return spiffeid.ID{}, fmt.Errorf("certificate request: subjectAltName: %w", err)
		}
	}
	return id, nil
}

func onlyURI(san []byte) (string, error) {
	in := cryptobyte.String(san)
	var names cryptobyte.String
	if !in.ReadASN1(&names, cbasn1.SEQUENCE) || !in.Empty() {
		return "", errors.New("certificate request has a malformed subjectAltName")
	}
	uri := ""
	for n := 0; !names.Empty(); n++ {
		var name cryptobyte.String
		var tag cbasn1.Tag
		if !names.ReadAnyASN1(&name, &tag) {
			return "", errors.New("certificate request has a malformed subjectAltName")
		}
		if tag != uriTag || n > 0 || len(name) == 0 {
			return "", errors.New("certificate request asks for names besides one SPIFFE ID; leave subjectAltName out or give one URI")
		}
		uri = string(name)
	}
	return uri, nil
}

// ParseID reads a SPIFFE ID and checks its length too, which go-spiffe does not.
// An ID without a path is the trust domain's own and is refused: SPIFFE's X.509-SVID
// standard, section 4.1, keeps it for signing certificates.
func ParseID(s string) (spiffeid.ID, error) {
	if len(s) > MaxIDSize {
		return spiffeid.ID{}, fmt.Errorf("SPIFFE ID has %d bytes, at most %d are allowed", len(s), MaxIDSize)
	}
	id, err := spiffeid.FromString(s)
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("SPIFFE ID %q: %w", s, err)
	}
	if id.Path() == "" {
		return spiffeid.ID{}, fmt.Errorf("SPIFFE ID %q has no path", s)
	}
	return id, nil
}

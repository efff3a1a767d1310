package csr

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// maxNames bounds the names of a request.
const maxNames = 100

// dnsTag is dNSName in GeneralName, RFC 5280 section 4.2.1.6.
const dnsTag = cbasn1.Tag(2 | 0x80)

// ParseNames reads the request of a server that has DNS names and no SPIFFE ID, as
// ACME clients send it (RFC 8555 section 7.4), and verifies that its sender holds
// the private key. The names are in their order and different, and nothing else
// about them was checked; a common name is one of them. Names of other kinds are
// refused and not ignored. The error is safe to show to the sender.
func ParseNames(der []byte) (Request, []string, error) {
	req, err := parse(der)
	if err != nil {
		return Request{}, nil, err
	}
	var names []string
	seen := false
	for _, ext := range req.Extensions {
		if !ext.Id.Equal(oidSAN) {
			continue
		}
		if seen {
			return Request{}, nil, errors.New("certificate request has two subjectAltName extensions")
		}
		seen = true
		if names, err = onlyDNS(ext.Value); err != nil {
			return Request{}, nil, err
		}
	}
	if cn := req.Subject.CommonName; cn != "" && !slices.Contains(names, cn) {
		names = append(names, cn)
	}
	slices.Sort(names)
	names = slices.Compact(names)
	if len(names) == 0 {
		return Request{}, nil, errors.New("certificate request has no DNS name")
	}
	return Request{PublicKey: req.PublicKey}, names, nil
}

func onlyDNS(san []byte) ([]string, error) {
	in := cryptobyte.String(san)
	var names cryptobyte.String
	if !in.ReadASN1(&names, cbasn1.SEQUENCE) || !in.Empty() {
		return nil, errors.New("certificate request has a malformed subjectAltName")
	}
	var out []string
	for !names.Empty() {
		var name cryptobyte.String
		var tag cbasn1.Tag
		if !names.ReadAnyASN1(&name, &tag) {
			return nil, errors.New("certificate request has a malformed subjectAltName")
		}
		if tag != dnsTag || len(name) == 0 {
			return nil, errors.New("certificate request asks for names that are no DNS names")
		}
		if out = append(out, string(name)); len(out) > maxNames {
			return nil, fmt.Errorf("certificate request has more than %d names", maxNames)
		}
	}
	return out, nil
}

// CheckKey says whether a public key is of a kind and size that is accepted. The
// error is safe to show to its sender.
func CheckKey(pub crypto.PublicKey) error { return checkKey(pub) }

// parse reads a request, checks its key and algorithm and verifies its signature.
func parse(der []byte) (*x509.CertificateRequest, error) {
	if len(der) == 0 {
		return nil, errors.New("certificate request is empty; want PKCS #10 in DER")
	}
	if len(der) > MaxSize {
		return nil, fmt.Errorf("certificate request has %d bytes, at most %d are allowed", len(der), MaxSize)
	}
	req, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, errors.New("certificate request is not PKCS #10 in DER")
	}
	// Before the signature: verifying with a key of any size is work for nothing.
	if err := checkKey(req.PublicKey); err != nil {
		return nil, err
	}
	if err := checkAlgorithm(req.SignatureAlgorithm); err != nil {
		return nil, err
	}
	if err := req.CheckSignature(); err != nil {
		return nil, errors.New("certificate request is not signed by the key that it carries")
	}
	return req, nil
}

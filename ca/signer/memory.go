package signer

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/smallstep/certificates/cas/apiv1"
	"github.com/smallstep/certificates/cas/softcas"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// verifyEvery is which part of the signatures that the key in memory made is verified
// here. crypto/x509 verifies each, which costs twice as much as making it and
// was a fifth of an issuance; every node agent verifies what it gets before it uses
// it. Keys outside, which may do anything, have each verified.
const verifyEvery = 16

// inMemory is smallstep's authority in software with a shorter way for the one kind
// of certificate that is made all the time: an X.509-SVID (package profile) for a
// P-256 key, signed by a P-256 key in memory. What it signs is byte for byte what
// crypto/x509 would have signed; everything else goes the usual way.
type inMemory struct {
	*softcas.SoftCAS

	key    *ecdsa.PrivateKey
	issuer *x509.Certificate
	signed atomic.Uint64
}

// newInMemory gives service the shorter way if the key allows it.
func newInMemory(service *softcas.SoftCAS, issuer *x509.Certificate, key any) apiv1.CertificateAuthorityService {
	k, ok := key.(*ecdsa.PrivateKey)
	if !ok || k.Curve != elliptic.P256() || len(issuer.SubjectKeyId) == 0 || len(issuer.RawSubject) <= 2 {
		return service
	}
	return &inMemory{SoftCAS: service, key: k, issuer: issuer}
}

// CreateCertificate implements apiv1.CertificateAuthorityService.
func (m *inMemory) CreateCertificate(req *apiv1.CreateCertificateRequest) (*apiv1.CreateCertificateResponse, error) {
	point, uri, ok := plain(req.Template)
	if !ok {
		return m.SoftCAS.CreateCertificate(req)
	}
	tbs, err := m.encode(req.Template, point, uri)
	if err != nil {
		return nil, err
	}
	der, err := m.sign(tbs)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("the signed certificate cannot be read: %w", err)
	}
	return &apiv1.CreateCertificateResponse{Certificate: cert, CertificateChain: []*x509.Certificate{m.issuer}}, nil
}

// plain tells whether a template is that of an X.509-SVID for a P-256 key and nothing
// else, and gives the key's point (SEC 1, uncompressed) and the name.
func plain(t *x509.Certificate) (point []byte, uri string, ok bool) {
	pub, isEC := t.PublicKey.(*ecdsa.PublicKey)
	if !isEC || pub.Curve != elliptic.P256() || len(t.URIs) != 1 || t.SerialNumber == nil || t.SerialNumber.Sign() <= 0 || len(t.SubjectKeyId) == 0 {
		return nil, "", false
	}
	if t.KeyUsage != x509.KeyUsageDigitalSignature || !slices.Equal(t.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}) ||
		!t.BasicConstraintsValid || t.IsCA || t.MaxPathLen != 0 || t.MaxPathLenZero || t.SignatureAlgorithm != 0 || hasMore(t) {
		return nil, "", false
	}
	point, err := pub.Bytes()
	uri = t.URIs[0].String()
	return point, uri, err == nil && !slices.ContainsFunc([]byte(uri), func(c byte) bool { return c >= 0x80 })
}

// hasMore tells whether anything else of a template is set that is for a certificate.
func hasMore(t *x509.Certificate) bool {
	return len(t.RawSubject) > 0 || len(t.Subject.ToRDNSequence()) > 0 ||
		len(t.DNSNames)+len(t.EmailAddresses)+len(t.IPAddresses) > 0 ||
		len(t.ExtraExtensions)+len(t.UnknownExtKeyUsage)+len(t.Policies)+len(t.PolicyIdentifiers)+len(t.CRLDistributionPoints)+len(t.OCSPServer)+len(t.IssuingCertificateURL) > 0 ||
		len(t.PermittedDNSDomains)+len(t.ExcludedDNSDomains)+len(t.PermittedIPRanges)+len(t.ExcludedIPRanges)+
			len(t.PermittedEmailAddresses)+len(t.ExcludedEmailAddresses)+len(t.PermittedURIDomains)+len(t.ExcludedURIDomains) > 0
}

// The parts of a TBSCertificate (RFC 5280, section 4.1) that are always the same, in
// DER. ecdsaP256 and uncompressed begin a SubjectPublicKeyInfo (RFC 5480).
const (
	ecdsaWithSHA256 = "\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02"
	ecdsaP256       = "\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07"
	// usages are keyUsage digitalSignature, extKeyUsage serverAuth and clientAuth, and
	// basicConstraints without cA.
	usages = "\x30\x0e\x06\x03\x55\x1d\x0f\x01\x01\xff\x04\x04\x03\x02\x07\x80" +
		"\x30\x1d\x06\x03\x55\x1d\x25\x04\x16\x30\x14\x06\x08\x2b\x06\x01\x05\x05\x07\x03\x01\x06\x08\x2b\x06\x01\x05\x05\x07\x03\x02" +
		"\x30\x0c\x06\x03\x55\x1d\x13\x01\x01\xff\x04\x02\x30\x00"
	subjectKeyID   = "\x06\x03\x55\x1d\x0e"
	authorityKeyID = "\x06\x03\x55\x1d\x23"
	// subjectAltName is critical, because the subject is empty.
	subjectAltName = "\x06\x03\x55\x1d\x11\x01\x01\xff"
)

// encode is the TBSCertificate of a plain template.
func (m *inMemory) encode(t *x509.Certificate, point []byte, uri string) ([]byte, error) {
	b := cryptobyte.NewBuilder(make([]byte, 0, 768))
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(asn1.Tag(0).Constructed().ContextSpecific(), func(b *cryptobyte.Builder) { b.AddASN1Int64(2) }) // version 3
		b.AddASN1BigInt(t.SerialNumber)
		b.AddBytes([]byte(ecdsaWithSHA256))
		b.AddBytes(m.issuer.RawSubject)
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) { addTime(b, t.NotBefore); addTime(b, t.NotAfter) })
		b.AddASN1(asn1.SEQUENCE, func(*cryptobyte.Builder) {}) // subject
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddBytes([]byte(ecdsaP256))
			b.AddASN1BitString(point)
		})
		b.AddASN1(asn1.Tag(3).Constructed().ContextSpecific(), func(b *cryptobyte.Builder) {
			b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) { m.extensions(b, t, uri) })
		})
	})
	return b.Bytes()
}

func (m *inMemory) extensions(b *cryptobyte.Builder, t *x509.Certificate, uri string) {
	b.AddBytes([]byte(usages))
	extension(b, subjectKeyID, func(b *cryptobyte.Builder) { b.AddASN1OctetString(t.SubjectKeyId) })
	extension(b, authorityKeyID, func(b *cryptobyte.Builder) {
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1(asn1.Tag(0).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes(m.issuer.SubjectKeyId) })
		})
	})
	extension(b, subjectAltName, func(b *cryptobyte.Builder) {
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1(asn1.Tag(6).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes([]byte(uri)) })
		})
	})
}

// extension adds one whose value is DER; head is its name, and whether it is critical.
func extension(b *cryptobyte.Builder, head string, value cryptobyte.BuilderContinuation) {
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes([]byte(head))
		b.AddASN1(asn1.OCTET_STRING, value)
	})
}

// addTime adds a time in the form that its year asks for (RFC 5280, section 4.1.2.5).
func addTime(b *cryptobyte.Builder, t time.Time) {
	if t = t.UTC(); t.Year() >= 1950 && t.Year() < 2050 {
		b.AddASN1UTCTime(t)
	} else {
		b.AddASN1GeneralizedTime(t)
	}
}

var errBadSignature = errors.New("the authority's key made a signature that does not verify; this machine's memory or processor may be at fault")

// sign makes a Certificate of a TBSCertificate.
func (m *inMemory) sign(tbs []byte) ([]byte, error) {
	digest := sha256.Sum256(tbs)
	signature, err := ecdsa.SignASN1(rand.Reader, m.key, digest[:])
	if err != nil {
		return nil, err
	}
	if m.signed.Add(1)%verifyEvery == 1 && !ecdsa.VerifyASN1(&m.key.PublicKey, digest[:], signature) {
		return nil, errBadSignature
	}
	b := cryptobyte.NewBuilder(make([]byte, 0, len(tbs)+128))
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(tbs)
		b.AddBytes([]byte(ecdsaWithSHA256))
		b.AddASN1BitString(signature)
	})
	return b.Bytes()
}

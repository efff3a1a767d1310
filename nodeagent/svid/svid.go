package svid

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// SVID is a workload's certificate with its key.
type SVID struct {
	id        spiffeid.ID
	serial    string
	authority string
	notBefore time.Time
	notAfter  time.Time
	came      time.Time // by the wall clock
	chainPEM  []byte
	keyPEM    []byte
}

// ID is the identity that the certificate is for.
func (s *SVID) ID() spiffeid.ID { return s.id }

// Serial is the certificate's serial number in lower-case hexadecimal.
func (s *SVID) Serial() string { return s.serial }

// Authority is the key id of the authority that signed the certificate, in
// lower-case hexadecimal.
func (s *SVID) Authority() string { return s.authority }

// NotAfter is when the certificate expires.
func (s *SVID) NotAfter() time.Time { return s.notAfter }

// ChainPEM is the certificate chain, leaf first.
func (s *SVID) ChainPEM() []byte { return s.chainPEM }

// KeyPEM is the private key (PKCS #8). It is for the workload's proxy alone.
func (s *SVID) KeyPEM() []byte { return s.keyPEM }

// String leaves the key out.
func (s *SVID) String() string { return s.id.String() + " serial " + s.serial }

// LogValue leaves the key out.
func (s *SVID) LogValue() slog.Value {
	return slog.GroupValue(slog.String("spiffe_id", s.id.String()), slog.String("serial", s.serial), slog.Time("not_after", s.notAfter))
}

// Issued is an authority's answer, in DER.
type Issued struct {
	// Chain is leaf first, the root left out.
	Chain [][]byte
	// Roots is the trust bundle at the time of issuing.
	Roots [][]byte
}

// request makes a key and a PKCS #10 request for id.
func request(id spiffeid.ID) (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{id.URL()}}, key)
	if err != nil {
		return nil, nil, fmt.Errorf("make a certificate request: %w", err)
	}
	return key, csr, nil
}

// accept checks an authority's answer: the certificate is for this identity and
// key, chains to the authority's own bundle, and has not expired.
func accept(id spiffeid.ID, key *ecdsa.PrivateKey, in Issued, now time.Time) (*SVID, error) {
	bundle := x509bundle.New(id.TrustDomain())
	for _, der := range in.Roots {
		root, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("root in the answer: %w", err)
		}
		bundle.AddX509Authority(root)
	}
	if len(in.Chain) == 0 {
		return nil, errors.New("the answer has no certificate")
	}
	chain := make([]*x509.Certificate, 0, len(in.Chain))
	var chainPEM []byte
	for _, der := range in.Chain {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("certificate in the answer: %w", err)
		}
		chain = append(chain, cert)
		chainPEM = append(chainPEM, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	leaf := chain[0]
	if !leaf.NotAfter.After(now) {
		return nil, fmt.Errorf("the certificate expired at %s, by this machine's clock %s ago; compare the clocks of this machine and of the authority", leaf.NotAfter.Format(time.RFC3339), now.Sub(leaf.NotAfter).Round(time.Second))
	}
	// A clock that runs behind the authority's is no reason to refuse here.
	at := now
	if leaf.NotBefore.After(at) {
		at = leaf.NotBefore
	}
	got, _, err := x509svid.Verify(chain, bundle, x509svid.WithTime(at))
	if err != nil {
		return nil, fmt.Errorf("the certificate does not verify: %w", err)
	}
	if got != id {
		return nil, fmt.Errorf("the certificate is for %s instead of %s", got, id)
	}
	if !key.PublicKey.Equal(leaf.PublicKey) {
		return nil, errors.New("the certificate is for another key")
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("marshal the key: %w", err)
	}
	return &SVID{
		id: id, serial: fmt.Sprintf("%x", leaf.SerialNumber), authority: hex.EncodeToString(leaf.AuthorityKeyId),
		notBefore: leaf.NotBefore, notAfter: leaf.NotAfter, came: now.Round(0),
		chainPEM: chainPEM, keyPEM: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
	}, nil
}

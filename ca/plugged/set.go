// Package plugged takes in an authority that somebody else made: an issuing
// certificate with its key, the certificates above it, and the roots under which it
// is, as files with the names that Istio gave them or from an upstream authority.
// It says what is wrong with a set before anything is signed with it, and which
// file it is in.
package plugged

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-mesh/writ/ca/profile"
)

// Set is an authority with all that it needs.
type Set struct {
	// Chain begins with the certificate that issues, and goes on with those above it,
	// each followed by the one that signed it, up to but without the root. If a root
	// issues itself, it is the only one.
	Chain []*x509.Certificate
	// Key is that of Chain[0].
	Key crypto.Signer
	// Root is the one of Roots that the chain ends at.
	Root *x509.Certificate
	// Roots are all that are trusted.
	Roots []*x509.Certificate
}

// Issuer is the certificate that issues.
func (s Set) Issuer() *x509.Certificate { return s.Chain[0] }

// Equal tells whether two sets have the same certificates.
func (s Set) Equal(o Set) bool {
	same := func(a, b *x509.Certificate) bool { return a.Equal(b) }
	return slices.EqualFunc(s.Chain, o.Chain, same) && slices.EqualFunc(s.Roots, o.Roots, same)
}

// names is where the parts of a set are from, for errors.
type names struct{ cert, key, chain, root string }

// New puts a set together and checks it. chain begins with the certificate of key
// and may end with its root.
func New(chain []*x509.Certificate, key crypto.Signer, roots []*x509.Certificate, td spiffeid.TrustDomain, now time.Time) (Set, error) {
	return assemble(Set{Chain: chain, Key: key, Roots: roots}, names{"the issuing certificate", "the key", "the chain", "the roots"}, td, now)
}

// assemble finds the root and checks everything.
func assemble(s Set, n names, td spiffeid.TrustDomain, now time.Time) (Set, error) {
	if len(s.Chain) == 0 || len(s.Roots) == 0 {
		return Set{}, fmt.Errorf("%s or %s is empty", n.chain, n.root)
	}
	if !matches(s.Key, s.Chain[0]) {
		return Set{}, fmt.Errorf("%s is not the key of %s (%s); put the two that belong together there", n.key, n.cert, s.Chain[0].Subject)
	}
	for i, root := range s.Roots {
		if err := usable(root, now); err != nil {
			return Set{}, fmt.Errorf("%s: root %d (%s) %w", n.root, i+1, root.Subject, err)
		}
		if root.CheckSignatureFrom(root) != nil {
			return Set{}, fmt.Errorf("%s: certificate %d (%s) is not self-signed; only roots belong there, others into the chain", n.root, i+1, root.Subject)
		}
	}
	if len(s.Chain[0].SubjectKeyId) == 0 {
		return Set{}, fmt.Errorf("%s: it (%s) has no subject key identifier, by which the authority of a certificate is told (RFC 5280 section 4.2.1.2)", n.cert, s.Chain[0].Subject)
	}
	if err := s.order(n); err != nil {
		return Set{}, err
	}
	if err := s.top(n); err != nil {
		return Set{}, err
	}
	for i, cert := range s.Chain {
		where := n.chain
		if i == 0 {
			where = n.cert
		}
		if err := usable(cert, now); err != nil {
			return Set{}, fmt.Errorf("%s: certificate %d (%s) %w", where, i+1, cert.Subject, err)
		}
		if err := pathLength(cert, i); err != nil {
			return Set{}, fmt.Errorf("%s: certificate %d (%s) %w", where, i+1, cert.Subject, err)
		}
	}
	if err := pathLength(s.Root, len(s.Chain)); err != nil && !s.Root.Equal(s.Chain[0]) {
		return Set{}, fmt.Errorf("%s: root (%s) %w", n.root, s.Root.Subject, err)
	}
	if err := s.probe(td, now); err != nil {
		return Set{}, fmt.Errorf("%s: %w", n.cert, err)
	}
	return s, nil
}

// order checks that each certificate was signed by the next.
func (s *Set) order(n names) error {
	for i, cert := range s.Chain[:len(s.Chain)-1] {
		above := s.Chain[i+1]
		if err := cert.CheckSignatureFrom(above); err != nil && !unfit(err) {
			return fmt.Errorf("%s: certificate %d (%s) was not signed by certificate %d (%s); put the issuing one first and after each the one that signed it",
				n.chain, i+1, cert.Subject, i+2, above.Subject)
		}
	}
	return nil
}

// unfit tells that an issuer is not allowed to sign, about which usable has better
// words.
func unfit(err error) bool {
	var constraint x509.ConstraintViolationError
	return errors.As(err, &constraint)
}

// top finds the root, and takes it off the end of the chain.
func (s *Set) top(n names) error {
	last := s.Chain[len(s.Chain)-1]
	for _, root := range s.Roots {
		if last.Equal(root) {
			s.Root = root
			if len(s.Chain) > 1 {
				s.Chain = slices.Clip(s.Chain[:len(s.Chain)-1])
			}
			return nil
		}
	}
	for _, root := range s.Roots {
		if bytes.Equal(last.RawIssuer, root.RawSubject) && last.CheckSignatureFrom(root) == nil {
			s.Root = root
			return nil
		}
	}
	return fmt.Errorf("%s: the chain ends with %s, which no certificate of %s signed; its issuer is %s", n.chain, last.Subject, n.root, last.Issuer)
}

// usable says what keeps a certificate from being an authority's now.
func usable(c *x509.Certificate, now time.Time) error {
	switch {
	case !c.BasicConstraintsValid || !c.IsCA:
		return errors.New("is no authority's (basicConstraints CA is not set)")
	case c.KeyUsage&x509.KeyUsageCertSign == 0:
		return errors.New("may not sign others (keyUsage lacks keyCertSign)")
	case now.Before(c.NotBefore):
		return fmt.Errorf("is valid from %s on, this machine's clock says %s", stamp(c.NotBefore), stamp(now))
	case !now.Before(c.NotAfter):
		return fmt.Errorf("expired at %s, this machine's clock says %s", stamp(c.NotAfter), stamp(now))
	}
	return nil
}

// pathLength: a certificate with so many authorities below it (RFC 5280 section
// 4.2.1.9).
func pathLength(c *x509.Certificate, below int) error {
	if limited := c.MaxPathLen > 0 || c.MaxPathLenZero; limited && c.MaxPathLen < below {
		return fmt.Errorf("allows %d authorities below it (pathLenConstraint), there are %d", c.MaxPathLen, below)
	}
	return nil
}

// probe signs a certificate such as will be asked for, for a key that is thrown
// away, and verifies it as a peer would: what the checks before have no words for,
// name constraints above all, shows here.
func (s *Set) probe(td spiffeid.TrustDomain, now time.Time) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	for _, path := range []string{"/ns/default/sa/default", "/writ/ca"} {
		id, err := spiffeid.FromPath(td, path)
		if err != nil {
			return err
		}
		notBefore, notAfter := profile.Window(now, time.Minute, 0, s.Chain[0])
		template, err := profile.Leaf(id, key.Public(), notBefore, notAfter)
		if err != nil {
			return err
		}
		der, err := x509.CreateCertificate(rand.Reader, template, s.Chain[0], key.Public(), s.Key)
		if err != nil {
			return fmt.Errorf("nothing can be signed with it: %w", err)
		}
		leaf, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		if err := s.verify(leaf, now); err != nil {
			return refusal(err, id)
		}
	}
	return nil
}

func (s *Set) verify(leaf *x509.Certificate, now time.Time) error {
	opts := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: now}
	opts.Roots.AddCert(s.Root)
	for _, c := range s.Chain {
		opts.Intermediates.AddCert(c)
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		opts.KeyUsages = []x509.ExtKeyUsage{usage}
		if _, err := leaf.Verify(opts); err != nil {
			return err
		}
	}
	return nil
}

func refusal(err error, id spiffeid.ID) error {
	var invalid x509.CertificateInvalidError
	if errors.As(err, &invalid) {
		switch invalid.Reason {
		case x509.CANotAuthorizedForThisName:
			return fmt.Errorf("name constraints of it, or of one above it, exclude %s; the authority cannot serve this trust domain: %s", id, invalid.Detail)
		case x509.IncompatibleUsage, x509.CANotAuthorizedForExtKeyUsage:
			return errors.New("its extended key usage, or that of one above it, excludes server or client authentication")
		}
	}
	return fmt.Errorf("a certificate for %s that it signs is not valid: %w", id, err)
}

func matches(key crypto.Signer, cert *x509.Certificate) bool {
	type publicKey interface{ Equal(crypto.PublicKey) bool }
	if key == nil {
		return false
	}
	pub, ok := key.Public().(publicKey)
	return ok && pub.Equal(cert.PublicKey)
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

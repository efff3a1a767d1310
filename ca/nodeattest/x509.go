package nodeattest

import (
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/writ-mesh/writ/internal/config"
	"github.com/writ-mesh/writ/internal/identity"
	"github.com/writ-mesh/writ/internal/pemroots"
	"github.com/writ-mesh/writ/internal/x509proof"
)

const (
	// maxChain bounds a chain, maxCertificate a certificate of it in bytes.
	maxChain       = 8
	maxCertificate = 16 << 10
	// proofAge is how old a proof may be if the configuration does not say.
	proofAge = time.Minute
)

// Where the name of a node is in its certificate.
const (
	nameDNS        = "dns"
	nameCommonName = "common_name"
	nameURI        = "uri"
)

// X509 is an authority whose certificates prove who a node is.
type X509 struct {
	// Roots is a PEM file with the authority's roots. It is read at each use.
	Roots string `yaml:"roots"`
	// Name says where the node's name is: dns or uri, which are subjectAltNames of
	// which the certificate has exactly one that fits, or common_name.
	Name string `yaml:"name"`
	// Prefix and Suffix are taken off to get the name; both have to be there.
	Prefix string `yaml:"prefix"`
	Suffix string `yaml:"suffix"`
	// NodePrefix goes before the names of the nodes, to tell authorities apart.
	NodePrefix string `yaml:"node_prefix"`
	// MaxAge is by how much the time of a proof may differ from this machine's; a
	// minute if it is zero.
	MaxAge config.Duration `yaml:"max_age"`
}

func (x X509) validate() error {
	var errs []error
	if x.Roots == "" {
		errs = append(errs, errors.New("roots: name a PEM file"))
	}
	switch x.Name {
	case nameDNS, nameCommonName, nameURI:
	default:
		errs = append(errs, fmt.Errorf("name: %q: want %s, %s or %s", x.Name, nameDNS, nameURI, nameCommonName))
	}
	if d := x.MaxAge.D(); d < 0 || d > time.Hour {
		errs = append(errs, fmt.Errorf("max_age: %s is outside 0 to 1h", d))
	}
	return errors.Join(errs...)
}

// X509Proof is a chain in DER, leaf first, and the signature of the leaf's key over
// a certificate request at a time (package x509proof).
type X509Proof struct {
	Chain     [][]byte
	Time      time.Time
	Signature []byte
}

// X509 checks a proof that is to be bound to csr, in DER.
func (a *Attestor) X509(p X509Proof, csr []byte) (Entrant, error) {
	if len(a.x509) == 0 {
		return Entrant{}, errNotTaken
	}
	chain, err := parseChain(p.Chain)
	if err != nil {
		return Entrant{}, err
	}
	leaf := chain[0]
	if err := x509proof.Verify(leaf.PublicKey, csr, p.Time, p.Signature); err != nil {
		return Entrant{}, err
	}
	var errs []error
	for _, x := range a.x509 {
		node, err := x.check(chain, p.Time, a.now())
		if err != nil {
			errs = append(errs, err)
			continue
		}
		id, err := identity.Node(a.td, x.NodePrefix+node)
		if err != nil {
			return Entrant{}, err
		}
		return Entrant{ID: id, Requester: "x509 serial " + hex.EncodeToString(leaf.SerialNumber.Bytes()), Facts: []string{"x509:issuer:" + leaf.Issuer.String(), "x509:subject:" + leaf.Subject.String()}}, nil
	}
	return Entrant{}, errors.Join(errs...)
}

func parseChain(ders [][]byte) ([]*x509.Certificate, error) {
	if len(ders) == 0 || len(ders) > maxChain {
		return nil, fmt.Errorf("the chain has %d certificates, want 1 to %d", len(ders), maxChain)
	}
	var out []*x509.Certificate
	for i, der := range ders {
		if len(der) > maxCertificate {
			return nil, fmt.Errorf("certificate %d of the chain has %d bytes, at most %d are read", i+1, len(der), maxCertificate)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("certificate %d of the chain: %w", i+1, err)
		}
		out = append(out, c)
	}
	return out, nil
}

// check returns the node that a chain is of.
func (x X509) check(chain []*x509.Certificate, at, now time.Time) (string, error) {
	age := x.MaxAge.D()
	if age == 0 {
		age = proofAge
	}
	if d := now.Sub(at).Abs(); d > age {
		return "", fmt.Errorf("the proof was made %s away from this machine's time, %s is the most", d.Round(time.Second), age)
	}
	roots, err := pemroots.Load(x.Roots)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	if chain[0].IsCA {
		return "", errors.New("the first certificate of the chain is an authority's")
	}
	if _, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return "", fmt.Errorf("the chain: %w", err)
	}
	return x.node(chain[0])
}

// node takes the name of the node from its certificate.
func (x X509) node(leaf *x509.Certificate) (string, error) {
	var names []string
	switch x.Name {
	case nameDNS:
		names = leaf.DNSNames
	case nameURI:
		for _, u := range leaf.URIs {
			names = append(names, u.String())
		}
	default:
		names = []string{leaf.Subject.CommonName}
	}
	var found []string
	for _, n := range names {
		rest, ok := strings.CutPrefix(n, x.Prefix)
		if !ok {
			continue
		}
		if rest, ok = strings.CutSuffix(rest, x.Suffix); ok && rest != "" {
			found = append(found, rest)
		}
	}
	if len(found) != 1 {
		return "", fmt.Errorf("the certificate has %d names (%s) with the prefix %q and the suffix %q, want one", len(found), x.Name, x.Prefix, x.Suffix)
	}
	return found[0], nil
}

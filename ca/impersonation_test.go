package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	istiopb "istio.io/api/security/v1alpha1"

	"github.com/writ-mesh/writ/internal/listen"
	"github.com/writ-mesh/writ/internal/pkitest"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// strangeIDs are names that somebody may take for an identity of the trust domain.
var strangeIDs = []string{
	"spiffe://example.org/ns/default/sa/Reviews ", "spiffe://EXAMPLE.ORG/ns/default/sa/reviews", "SPIFFE://example.org/ns/default/sa/reviews",
	"spiffe://example.org/ns%2Fdefault/sa/reviews", "spiffe://example.org/ns/default%2fsa/reviews", "spiffe://example.org/ns/default/sa/%72eviews",
	"spiffe://user@example.org/ns/default/sa/reviews", "spiffe://example.org@example.com/ns/default/sa/reviews", "spiffe://example.org:443/ns/default/sa/reviews",
	"spiffe://example.org/ns/default/sa/reviews/", "spiffe://example.org//ns/default/sa/reviews", "spiffe://example.org/ns/./default/sa/reviews",
	"spiffe://example.org/ns/default/../other/sa/reviews", "spiffe://example.org/ns/default/sa/reviews?a=b", "spiffe://example.org/ns/default/sa/reviews#a",
	"spiffe://example.org\\ns\\default", "spiffe://example.org/ns/default/sa/r\u0435views", "spiffe://example.org/ns/default/sa/reviews\x00",
	"spiffe:/example.org/ns/default/sa/reviews", "spiffe:example.org", "//example.org/ns/default/sa/reviews", "spiffe://example.org.:/ns", "spiffe://[::1]/ns/default/sa/reviews",
}

// No way leads to an identity that is not written in the one form that there is.
func TestStrangeSPIFFEIDs(t *testing.T) {
	t.Parallel()
	h := start(t, nil)
	_, der := request(t, "")
	node := h.as(h.mint(nodeID))
	admin, istio := h.admin(), istiopb.NewIstioCertificateServiceClient(h.adminConn())
	registrations := capb.NewRegistrationsClient(h.adminConn())
	for _, id := range strangeIDs {
		calls := map[string]func() error{
			"Mint": func() error {
				_, err := admin.Mint(t.Context(), &capb.MintRequest{SpiffeId: id, Csr: der})
				return err
			},
			"Issue": func() error {
				_, err := node.Issue(t.Context(), &capb.IssueRequest{SpiffeId: id, Csr: der})
				return err
			},
			"CreateJoinToken": func() error {
				_, err := admin.CreateJoinToken(t.Context(), &capb.CreateJoinTokenRequest{SpiffeId: id})
				return err
			},
			"PutRegistration": func() error {
				_, err := registrations.PutRegistration(t.Context(), &capb.PutRegistrationRequest{SpiffeId: id, Node: "n1", Facts: []string{"unix:uid:1"}})
				return err
			},
			"CreateCertificate": func() error {
				_, err := istio.CreateCertificate(t.Context(), &istiopb.IstioCertificateRequest{Csr: requestPEM(t, id)})
				return err
			},
		}
		for name, call := range calls {
			// A string that is not UTF-8 or no URI does not even get there.
			if err := call(); err == nil || status.Code(err) == codes.Unavailable {
				t.Errorf("%s for %q: %v", name, id, err)
			}
		}
	}
	for _, c := range h.ledger(&capb.ListCertificatesRequest{}) {
		if id := c.GetSpiffeId(); id != nodeID && !strings.HasSuffix(id, "/writ/ca") {
			t.Errorf("a certificate of %q was issued", id)
		}
	}
}

// requestPEM asks for a URI as it is, whatever its form.
func requestPEM(t *testing.T, uri string) string {
	t.Helper()
	key := pkitest.NewKey(t)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{{Opaque: strings.Map(ascii, uri)}}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

// ascii leaves out what no certificate can have in a URI.
func ascii(r rune) rune {
	if r == 0 || r > 127 {
		return '?'
	}
	return r
}

// rootKey reads the key of an authority, as its thief does.
func (h *harness) rootKey() (*x509.Certificate, crypto.Signer) {
	h.t.Helper()
	pair, err := tls.LoadX509KeyPair(filepath.Join(h.config.State, "root.crt"), filepath.Join(h.config.State, "root.key"))
	if err != nil {
		h.t.Fatal(err)
	}
	return pair.Leaf, pair.PrivateKey.(crypto.Signer)
}

// A certificate that is under the root and not in the form of an identity's is nobody's.
func TestCertificatesThatAreNobodys(t *testing.T) {
	t.Parallel()
	h := start(t, nil)
	root, key := h.rootKey()
	call := func(leaf *x509.Certificate) error {
		t.Helper()
		own := pkitest.NewKey(t)
		der, err := x509.CreateCertificate(rand.Reader, leaf, root, own.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		return h.renewAs(tls.Certificate{Certificate: [][]byte{der}, PrivateKey: own})
	}
	with := func(id string, change func(*x509.Certificate)) *x509.Certificate {
		l := pkitest.Leaf(id, time.Hour)
		if change != nil {
			change(l)
		}
		return l
	}
	if err := call(with(nodeID, nil)); err != nil {
		t.Fatalf("a certificate as it should be: %v", err)
	}
	second, err := url.Parse(pilotID)
	if err != nil {
		t.Fatal(err)
	}
	for what, leaf := range map[string]*x509.Certificate{
		"two identities":                 with(nodeID, func(l *x509.Certificate) { l.URIs = append(l.URIs, second) }),
		"the same identity twice":        with(nodeID, func(l *x509.Certificate) { l.URIs = append(l.URIs, l.URIs[0]) }),
		"a DNS name alone":               with("", func(l *x509.Certificate) { l.DNSNames = []string{"n1.example.org"} }),
		"an identity as DNS name":        with("", func(l *x509.Certificate) { l.DNSNames = []string{nodeID} }),
		"an address":                     with("", func(l *x509.Certificate) { l.IPAddresses = []net.IP{{127, 0, 0, 1}} }),
		"an identity as common name":     with("", func(l *x509.Certificate) { l.Subject.CommonName = nodeID }),
		"an authority":                   with(nodeID, func(l *x509.Certificate) { l.IsCA = true }),
		"who may sign certificates":      with(nodeID, func(l *x509.Certificate) { l.KeyUsage |= x509.KeyUsageCertSign }),
		"who may sign lists":             with(nodeID, func(l *x509.Certificate) { l.KeyUsage |= x509.KeyUsageCRLSign }),
		"expired":                        with(nodeID, func(l *x509.Certificate) { l.NotAfter = time.Now().Add(-time.Second) }),
		"not valid yet":                  with(nodeID, func(l *x509.Certificate) { l.NotBefore = time.Now().Add(time.Minute) }),
		"another trust domain":           with("spiffe://example.com/writ/node/n1", nil),
		"a trust domain in capitals":     with("spiffe://EXAMPLE.org/writ/node/n1", nil),
		"a port":                         with("spiffe://example.org:443/writ/node/n1", nil),
		"a user":                         with("spiffe://example.org@example.com/writ/node/n1", nil),
		"an encoded slash":               with("spiffe://example.org/writ%2Fnode/n1", nil),
		"a node of no name":              with("spiffe://example.org/writ/node/", nil),
		"two names for a node":           with("spiffe://example.org/writ/node/n1/n2", nil),
		"a service that there is not":    with("spiffe://example.org/writ/root", nil),
		"the authority's own identity":   with("spiffe://example.org/writ/ca", nil),
		"a workload with a node's name":  with("spiffe://example.org/ns/writ/sa/node", nil),
		"a query behind":                 with(nodeID+"?writ=ca", nil),
		"an identity of another capital": with("spiffe://example.org/Writ/node/n1", nil),
	} {
		if err := call(leaf); err == nil {
			t.Errorf("%s: renewed", what)
		}
	}
}

// An intermediate of the same root signs what it may and nothing else, a leaf nothing.
func TestIntermediatesOutOfBounds(t *testing.T) {
	t.Parallel()
	h := start(t, nil)
	root, key := h.rootKey()
	// under renews with a chain: each template is signed by the one before.
	under := func(templates ...*x509.Certificate) error {
		t.Helper()
		parent, signer := root, key
		var chain [][]byte
		var own *ecdsa.PrivateKey
		for i, template := range templates {
			own = pkitest.NewKey(t)
			template.SerialNumber = big.NewInt(int64(i + 100))
			der, err := x509.CreateCertificate(rand.Reader, template, parent, own.Public(), signer)
			if err != nil {
				t.Fatal(err)
			}
			if parent, err = x509.ParseCertificate(der); err != nil {
				t.Fatal(err)
			}
			chain, signer = append([][]byte{der}, chain...), own
		}
		return h.renewAs(tls.Certificate{Certificate: chain, PrivateKey: own})
	}
	node := func() *x509.Certificate { return pkitest.Leaf(nodeID, time.Hour) }
	elsewhere := func(domain string) *x509.Certificate {
		c := pkitest.Intermediate()
		c.PermittedURIDomains, c.PermittedDNSDomainsCritical = []string{domain}, true
		return c
	}
	excluded := pkitest.Intermediate()
	excluded.ExcludedURIDomains, excluded.PermittedDNSDomainsCritical = []string{td.Name()}, true
	expired := pkitest.Intermediate()
	expired.NotAfter = time.Now().Add(-time.Minute)
	unable := pkitest.Intermediate()
	unable.KeyUsage = x509.KeyUsageDigitalSignature
	for what, above := range map[string]*x509.Certificate{"without bounds": pkitest.Intermediate(), "for this trust domain": elsewhere(td.Name())} {
		if err := under(above, node()); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	for what, above := range map[string]*x509.Certificate{
		"for another trust domain": elsewhere("example.com"), "for all but this one": excluded, "expired": expired,
		"without the right to sign": unable, "a node agent's certificate": node(),
	} {
		if err := under(above, node()); err == nil {
			t.Errorf("%s: it signs for this trust domain", what)
		}
	}
}

// renewAs renews with any certificate.
func (h *harness) renewAs(pair tls.Certificate) error {
	h.t.Helper()
	conn := h.dial(h.config.Listen, credentials.NewTLS(&tls.Config{
		InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}, //nolint:gosec // the server is not what is tested
	}))
	_, der := request(h.t, "")
	_, err := capb.NewCertificateAuthorityClient(conn).Renew(h.t.Context(), &capb.RenewRequest{Csr: der})
	return err
}

// A session is not resumed, so that each connection shows a certificate that is good
// then.
func TestNoSessionIsResumed(t *testing.T) {
	t.Parallel()
	h := start(t, nil)
	svid := h.mint(nodeID)
	path, ok := listen.Unix(h.config.Listen)
	if !ok {
		t.Fatal(h.config.Listen)
	}
	config := &tls.Config{
		InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, ClientSessionCache: tls.NewLRUClientSessionCache(1), ServerName: "ca", NextProtos: []string{"h2"}, //nolint:gosec // the server is not what is tested
		Certificates: []tls.Certificate{{Certificate: [][]byte{svid.Certificates[0].Raw}, PrivateKey: svid.PrivateKey}},
	}
	for range 2 {
		raw, err := new(net.Dialer).DialContext(t.Context(), "unix", path)
		if err != nil {
			t.Fatal(err)
		}
		conn := tls.Client(raw, config)
		if err := conn.HandshakeContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		// A ticket comes after the handshake: the server's first frame is behind it.
		if _, err := conn.Read(make([]byte, 9)); err != nil {
			t.Fatal(err)
		}
		if conn.ConnectionState().DidResume {
			t.Error("the session was resumed")
		}
		_ = conn.Close()
	}
}

// Whoever may ask for certificates of others on the admin socket may not over the
// network.
func TestCreateCertificateForAnother(t *testing.T) {
	t.Parallel()
	h := start(t, nil)
	for what, conn := range map[string]grpc.ClientConnInterface{
		"a workload": h.connAs(h.mint(reviewsID)), "a node agent": h.connAs(h.mint(nodeID)), "a service": h.connAs(h.mint(pilotID)), "a stranger": h.connAs(nil),
	} {
		_, der := request(t, ratingsID)
		text := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
		if _, err := istiopb.NewIstioCertificateServiceClient(conn).CreateCertificate(t.Context(), &istiopb.IstioCertificateRequest{Csr: text}); err == nil {
			t.Errorf("%s got a certificate of another", what)
		}
		if _, err := capb.NewAdminClient(conn).Mint(t.Context(), &capb.MintRequest{SpiffeId: ratingsID, Csr: der}); err == nil {
			t.Errorf("%s minted", what)
		}
	}
}

package profile_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-mesh/writ/ca/profile"
)

var (
	td  = spiffeid.RequireTrustDomainFromString("example.org")
	id  = spiffeid.RequireFromString("spiffe://example.org/ns/default/sa/reviews")
	now = time.Date(2026, 11, 21, 10, 0, 0, 500, time.UTC)
)

func TestWindow(t *testing.T) {
	issuer := &x509.Certificate{NotBefore: now.Add(-5 * time.Second).Truncate(time.Second), NotAfter: now.Add(48 * time.Hour).Truncate(time.Second)}
	at := func(d time.Duration) time.Time { return now.Add(d).Truncate(time.Second) }
	for _, tc := range []struct {
		name      string
		ttl, skew time.Duration
		issuer    *x509.Certificate
		from, to  time.Time
	}{
		{"hour", time.Hour, 10 * time.Second, nil, at(-10 * time.Second), at(time.Hour)},
		{"short life, little skew", 10 * time.Second, 10 * time.Second, nil, at(-time.Second), at(10 * time.Second)},
		{"no skew", time.Hour, 0, nil, at(0), at(time.Hour)},
		{"not before the issuer", time.Hour, 10 * time.Second, issuer, issuer.NotBefore, at(time.Hour)},
		{"not after the issuer", 72 * time.Hour, 0, issuer, at(0), issuer.NotAfter},
	} {
		t.Run(tc.name, func(t *testing.T) {
			from, to := profile.Window(now, tc.ttl, tc.skew, tc.issuer)
			if !from.Equal(tc.from) || !to.Equal(tc.to) {
				t.Fatalf("got %s to %s, want %s to %s", from, to, tc.from, tc.to)
			}
		})
	}
}

type pair struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newRoot(t *testing.T) pair {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template, err := profile.Root(td, key.Public(), now, now.Add(24*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	return pair{signed(t, template, template, key), key}
}

func signed(t *testing.T, template, parent *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, template.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// Every way in which a signer could err is noticed.
func TestCheckLeaf(t *testing.T) {
	root, other := newRoot(t), newRoot(t)
	pub := other.key.Public()
	for _, tc := range []struct {
		name   string
		spoil  func(*x509.Certificate)
		parent pair
		want   string
	}{
		{"good", func(*x509.Certificate) {}, root, ""},
		{"other id", func(c *x509.Certificate) { c.URIs[0] = &url.URL{Scheme: "spiffe", Host: "example.org", Path: "/x"} }, root, "want spiffe://example.org/ns"},
		{"two ids", func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0]) }, root, "alone"},
		{"dns name", func(c *x509.Certificate) { c.DNSNames = []string{"a"} }, root, "names besides"},
		{"authority", func(c *x509.Certificate) { c.IsCA = true; c.KeyUsage |= x509.KeyUsageCertSign }, root, "may sign others"},
		{"no constraints", func(c *x509.Certificate) { c.BasicConstraintsValid = false }, root, "may sign others"},
		{"key usage", func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }, root, "digitalSignature alone"},
		{"extended key usage", func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] }, root, "not server and client"},
		{"extended key usage any", func(c *x509.Certificate) { c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageAny) }, root, "not server and client"},
		{"other issuer", func(*x509.Certificate) {}, other, "was issued by"},
		{"too long", func(c *x509.Certificate) { c.NotAfter = c.NotAfter.Add(48 * time.Hour) }, root, "outside its issuer's time"},
		{"too early", func(c *x509.Certificate) { c.NotBefore = c.NotBefore.Add(-48 * time.Hour) }, root, "outside its issuer's time"},
		{"other key", func(c *x509.Certificate) { c.PublicKey = root.key.Public() }, root, "another key"},
		{"unknown critical", func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: []int{1, 2, 3}, Critical: true, Value: []byte{5, 0}}}
		}, root, "critical extensions"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			template, err := profile.Leaf(id, pub, now.UTC().Truncate(time.Second), now.Add(time.Hour))
			if err != nil {
				t.Fatal(err)
			}
			tc.spoil(template)
			cert := signed(t, template, tc.parent.cert, tc.parent.key)
			expect(t, profile.CheckLeaf(cert, id, pub, root.cert), tc.want)
		})
	}
}

func TestCheckRoot(t *testing.T) {
	root := newRoot(t)
	leafTemplate, err := profile.Leaf(id, root.key.Public(), now, now.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	leaf := signed(t, leafTemplate, root.cert, root.key)
	for _, tc := range []struct {
		name string
		cert *x509.Certificate
		td   string
		now  time.Time
		want string
	}{
		{"good", root.cert, "example.org", now, ""},
		{"leaf", leaf, "example.org", now, "no authority's"},
		{"other trust domain", root.cert, "example.com", now, "configured trust domain is spiffe://example.com"},
		{"an hour early", root.cert, "example.org", now.Add(-time.Hour), "set the clock"},
		{"expired", root.cert, "example.org", now.Add(25 * time.Hour), "expired at"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			expect(t, profile.CheckRoot(tc.cert, spiffeid.RequireTrustDomainFromString(tc.td), tc.now), tc.want)
		})
	}
}

func expect(t *testing.T, err error, want string) {
	t.Helper()
	if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
		t.Fatalf("got error %v, want %q", err, want)
	}
}

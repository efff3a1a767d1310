package profile_test

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"net"
	"net/url"
	"testing"
	"time"

	"github.com/writ-mesh/writ/ca/profile"
)

func TestCheckServer(t *testing.T) {
	root, other := newRoot(t), newRoot(t)
	pub := other.key.Public()
	names := []string{"a.example.org", "b.example.org"}
	for _, tc := range []struct {
		name  string
		spoil func(*x509.Certificate)
		want  string
	}{
		{"good", func(*x509.Certificate) {}, ""},
		{"another name", func(c *x509.Certificate) { c.DNSNames = []string{"a.example.org", "c.example.org"} }, "want [a.example.org"},
		{"one more", func(c *x509.Certificate) { c.DNSNames = append(c.DNSNames, "c") }, "want [a.example.org"},
		{"a SPIFFE ID", func(c *x509.Certificate) { c.URIs = []*url.URL{id.URL()} }, "no DNS names"},
		{"an address", func(c *x509.Certificate) { c.IPAddresses = []net.IP{{127, 0, 0, 1}} }, "no DNS names"},
		{"a subject", func(c *x509.Certificate) { c.Subject = pkix.Name{CommonName: "a.example.org"} }, "subject"},
		{"a client too", func(c *x509.Certificate) { c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageClientAuth) }, "not server alone"},
		{"any usage", func(c *x509.Certificate) { c.ExtKeyUsage = nil }, "not server alone"},
		{"authority", func(c *x509.Certificate) { c.IsCA = true; c.KeyUsage |= x509.KeyUsageCertSign }, "may sign others"},
		{"too long", func(c *x509.Certificate) { c.NotAfter = c.NotAfter.Add(48 * time.Hour) }, "outside its issuer's time"},
		{"other key", func(c *x509.Certificate) { c.PublicKey = root.key.Public() }, "another key"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			template, err := profile.Server(names, pub, now.UTC().Truncate(time.Second), now.Add(time.Hour))
			if err != nil {
				t.Fatal(err)
			}
			tc.spoil(template)
			cert := signed(t, template, root.cert, root.key)
			expect(t, profile.CheckServer(cert, names, pub, root.cert), tc.want)
			if profile.CheckLeaf(cert, id, pub, root.cert) == nil {
				t.Error("it passes for a workload's")
			}
		})
	}
	if _, err := profile.Server(nil, pub, now, now.Add(time.Hour)); err == nil {
		t.Error("a certificate for nobody")
	}
}

package csr_test

import (
	"crypto/elliptic"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/writ-mesh/writ/ca/csr"
)

// DNS names are taken, and nothing else is or is passed over.
func TestDNSNames(t *testing.T) {
	key := ecKey(t, elliptic.P256())
	san := func(value ...byte) []pkix.Extension {
		return []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: value}}
	}
	for name, tc := range map[string]struct {
		template x509.CertificateRequest
		want     []string
		err      string
	}{
		"names":         {x509.CertificateRequest{DNSNames: []string{"b.example.org", "a.example.org", "b.example.org"}}, []string{"a.example.org", "b.example.org"}, ""},
		"common name":   {x509.CertificateRequest{Subject: pkix.Name{CommonName: "a.example.org"}}, []string{"a.example.org"}, ""},
		"both":          {x509.CertificateRequest{DNSNames: []string{"a.example.org"}, Subject: pkix.Name{CommonName: "c.example.org"}}, []string{"a.example.org", "c.example.org"}, ""},
		"none":          {x509.CertificateRequest{}, nil, "no DNS name"},
		"a SPIFFE ID":   {x509.CertificateRequest{DNSNames: []string{"a"}, URIs: uris(t, "spiffe://example.org/a")}, nil, "no DNS names"},
		"an address":    {x509.CertificateRequest{DNSNames: []string{"a"}, IPAddresses: []net.IP{{127, 0, 0, 1}}}, nil, "no DNS names"},
		"mail":          {x509.CertificateRequest{DNSNames: []string{"a"}, EmailAddresses: []string{"a@b"}}, nil, "no DNS names"},
		"another kind":  {x509.CertificateRequest{ExtraExtensions: san(0x30, 4, 0x88, 2, 0x2a, 3)}, nil, "no DNS names"}, // registeredID
		"an empty name": {x509.CertificateRequest{ExtraExtensions: san(0x30, 2, 0x82, 0)}, nil, "no DNS names"},
		"malformed":     {x509.CertificateRequest{ExtraExtensions: san(0x30, 3, 0x82, 5, 'a')}, nil, ""},
		"many":          {x509.CertificateRequest{DNSNames: slices.Repeat([]string{"a"}, 101)}, nil, "more than 100"},
	} {
		_, got, err := csr.ParseNames(request(t, key, tc.template))
		if !slices.Equal(got, tc.want) || tc.want == nil && err == nil || tc.want != nil && err != nil || tc.err != "" && !strings.Contains(err.Error(), tc.err) {
			t.Errorf("%s: %v, %v; want %v, %q", name, got, err, tc.want, tc.err)
		}
	}
	if _, _, err := csr.ParseNames(request(t, ecKey(t, elliptic.P521()), x509.CertificateRequest{DNSNames: []string{"a"}})); err == nil {
		t.Error("a key of another kind")
	}
	if err := csr.CheckKey(&rsaKey(t, 1024).PublicKey); err == nil {
		t.Error("a small key")
	}
}

func FuzzParseNames(f *testing.F) {
	key := ecKey(f, elliptic.P256())
	for _, template := range []x509.CertificateRequest{
		{DNSNames: []string{"a.example.org", "*.example.org"}}, {Subject: pkix.Name{CommonName: "a"}}, {DNSNames: []string{"a"}, URIs: uris(f, "spiffe://example.org/a")},
	} {
		f.Add(request(f, key, template))
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		_, names, err := csr.ParseNames(der)
		if err != nil {
			return
		}
		std, err := x509.ParseCertificateRequest(der)
		if err != nil || std.CheckSignature() != nil || len(der) > csr.MaxSize {
			t.Fatal("taken, but not well-formed")
		}
		if len(std.URIs)+len(std.IPAddresses)+len(std.EmailAddresses) > 0 {
			t.Fatal("taken with other names")
		}
		for _, n := range std.DNSNames {
			if !slices.Contains(names, n) {
				t.Fatalf("%q was passed over", n)
			}
		}
	})
}

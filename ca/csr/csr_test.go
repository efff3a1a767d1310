package csr_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/writ-mesh/writ/ca/csr"
)

func ecKey(t testing.TB, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func rsaKey(t testing.TB, bits int) *rsa.PrivateKey {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func request(t testing.TB, key crypto.Signer, template x509.CertificateRequest) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &template, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func uris(t testing.TB, list ...string) []*url.URL {
	t.Helper()
	var out []*url.URL
	for _, s := range list {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, u)
	}
	return out
}

func TestKeys(t *testing.T) {
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		key  crypto.Signer
		want string
	}{
		{"P-256", ecKey(t, elliptic.P256()), ""},
		{"P-384", ecKey(t, elliptic.P384()), ""},
		{"Ed25519", ed, ""},
		{"RSA 2048", rsaKey(t, 2048), ""},
		{"RSA 1024", rsaKey(t, 1024), "RSA key of 1024 bits is not accepted"},
		{"P-224", ecKey(t, elliptic.P224()), "curve P-224 is not accepted"},
		{"P-521", ecKey(t, elliptic.P521()), "curve P-521 is not accepted"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			req, err := csr.Parse(request(t, tc.key, x509.CertificateRequest{}))
			expect(t, err, tc.want)
			type publicKey interface{ Equal(crypto.PublicKey) bool }
			if pub, ok := tc.key.Public().(publicKey); err == nil && (!ok || !pub.Equal(req.PublicKey)) {
				t.Fatal("another key came back")
			}
		})
	}
}

func TestNames(t *testing.T) {
	key := ecKey(t, elliptic.P256())
	// otherName, which crypto/x509 passes over in silence.
	otherName, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: []byte{5, 0}}})
	if err != nil {
		t.Fatal(err)
	}
	sanOID := asn1.ObjectIdentifier{2, 5, 29, 17}
	const id = "spiffe://example.org/ns/a/sa/b"
	for _, tc := range []struct {
		name     string
		template x509.CertificateRequest
		id, want string
	}{
		{"none", x509.CertificateRequest{}, "", ""},
		{"an authority it will not be", x509.CertificateRequest{ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 3, 1, 1, 0xff}}}}, "", ""},
		{"subject is ignored", x509.CertificateRequest{Subject: pkix.Name{CommonName: "root"}}, "", ""},
		{"one", x509.CertificateRequest{URIs: uris(t, id)}, id, ""},
		{"two", x509.CertificateRequest{URIs: uris(t, id, id+"2")}, "", "names besides one SPIFFE ID"},
		{"dns", x509.CertificateRequest{DNSNames: []string{"a"}}, "", "names besides"},
		{"uri and dns", x509.CertificateRequest{URIs: uris(t, id), DNSNames: []string{"a"}}, "", "names besides"},
		{"ip", x509.CertificateRequest{IPAddresses: []net.IP{{127, 0, 0, 1}}}, "", "names besides"},
		{"email", x509.CertificateRequest{EmailAddresses: []string{"a@b"}}, "", "names besides"},
		{"other name", x509.CertificateRequest{ExtraExtensions: []pkix.Extension{{Id: sanOID, Value: otherName}}}, "", "names besides"},
		{"not spiffe", x509.CertificateRequest{URIs: uris(t, "https://example.org/a")}, "", "scheme"},
		{"no path", x509.CertificateRequest{URIs: uris(t, "spiffe://example.org")}, "", "has no path"},
		{"dots", x509.CertificateRequest{URIs: uris(t, "spiffe://example.org/a/../b")}, "", "dot segments"},
		{"upper case", x509.CertificateRequest{URIs: uris(t, "spiffe://EXAMPLE.org/a")}, "", "trust domain"},
		{"port", x509.CertificateRequest{URIs: uris(t, "spiffe://example.org:80/a")}, "", "trust domain"},
		{"query", x509.CertificateRequest{URIs: uris(t, id+"?a=b")}, "", "path segment"},
		{"long", x509.CertificateRequest{URIs: uris(t, id+strings.Repeat("x", csr.MaxIDSize))}, "", "at most 2048 are allowed"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			req, err := csr.Parse(request(t, key, tc.template))
			expect(t, err, tc.want)
			if req.ID.String() != tc.id {
				t.Fatalf("got ID %q, want %q", req.ID, tc.id)
			}
		})
	}
}

func TestBytes(t *testing.T) {
	good := request(t, ecKey(t, elliptic.P256()), x509.CertificateRequest{})
	forged := append([]byte(nil), good...)
	forged[len(forged)-5] ^= 1
	many := make([]string, 1000)
	for i := range many {
		many[i] = "spiffe://example.org/a"
	}
	for _, tc := range []struct {
		name string
		der  []byte
		want string
	}{
		{"empty", nil, "is empty"},
		{"garbage", []byte("hello"), "is not PKCS #10"},
		{"cut", good[:len(good)-1], "is not PKCS #10"},
		{"trailing", append(append([]byte(nil), good...), 0), "is not PKCS #10"},
		{"forged", forged, "is not signed by the key"},
		{"1 MB", make([]byte, 1<<20), "at most 8192 are allowed"},
		{"1,000 short names", request(t, ecKey(t, elliptic.P256()), x509.CertificateRequest{DNSNames: slices.Repeat([]string{"a"}, 1000)}), "names besides one SPIFFE ID"},
		{"1,000 names", request(t, ecKey(t, elliptic.P256()), x509.CertificateRequest{URIs: uris(t, many...)}), "at most 8192 are allowed"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := csr.Parse(tc.der)
			expect(t, err, tc.want)
		})
	}
}

func TestPEM(t *testing.T) {
	der := request(t, ecKey(t, elliptic.P256()), x509.CertificateRequest{})
	for _, tc := range []struct{ name, in, want string }{
		{"good", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), ""},
		{"old type", string(pem.EncodeToMemory(&pem.Block{Type: "NEW CERTIFICATE REQUEST", Bytes: der})), ""},
		{"a certificate", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), "no PEM block"},
		{"der", string(der), "no PEM block"},
		{"big", strings.Repeat("x", 1<<20), "at most"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := csr.ParsePEM([]byte(tc.in))
			expect(t, err, tc.want)
		})
	}
}

func FuzzParse(f *testing.F) {
	key := ecKey(f, elliptic.P256())
	f.Add(request(f, key, x509.CertificateRequest{}))
	f.Add(request(f, key, x509.CertificateRequest{URIs: uris(f, "spiffe://example.org/ns/a/sa/b")}))
	f.Add(request(f, key, x509.CertificateRequest{URIs: uris(f, "spiffe://example.org/a", "spiffe://example.org/b"), DNSNames: []string{"a"}}))
	f.Add(request(f, rsaKey(f, 2048), x509.CertificateRequest{}))
	f.Add(request(f, key, x509.CertificateRequest{DNSNames: slices.Repeat([]string{"a"}, 1000)}))
	isCA := pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 3, 1, 1, 0xff}}
	f.Add(request(f, key, x509.CertificateRequest{ExtraExtensions: []pkix.Extension{isCA}}))
	f.Add(request(f, key, x509.CertificateRequest{ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: []byte{0x30, 0}}}}))
	f.Fuzz(func(t *testing.T, der []byte) {
		req, err := csr.Parse(der)
		if err != nil {
			if strings.ContainsAny(err.Error(), "\n") {
				t.Fatalf("error of several lines: %q", err)
			}
			return
		}
		// What is taken is what crypto/x509 takes too, with at most our one name.
		std, err := x509.ParseCertificateRequest(der)
		if err != nil || std.CheckSignature() != nil || len(der) > csr.MaxSize {
			t.Fatal("taken, but not well-formed")
		}
		if n := len(std.DNSNames) + len(std.IPAddresses) + len(std.EmailAddresses); n > 0 || len(std.URIs) > 1 {
			t.Fatal("taken with other names")
		}
		switch req.PublicKey.(type) {
		case *ecdsa.PublicKey, ed25519.PublicKey, *rsa.PublicKey:
		default:
			t.Fatalf("taken with a key of type %T", req.PublicKey)
		}
		if len(std.URIs) == 1 && std.URIs[0].String() != req.ID.String() {
			t.Fatalf("got ID %q of %q", req.ID, std.URIs[0])
		}
	})
}

func expect(t *testing.T, err error, want string) {
	t.Helper()
	if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
		t.Fatalf("got error %v, want %q", err, want)
	}
}

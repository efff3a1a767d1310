package signer

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/smallstep/certificates/cas/apiv1"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-mesh/writ/ca/profile"
)

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// quick returns an authority that has the shorter way.
func quick(t testing.TB) *inMemory {
	t.Helper()
	key := newKey(t)
	template, err := profile.Root(spiffeid.RequireTrustDomainFromString("example.org"), key.Public(), time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := SelfSign(t.Context(), template, key)
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(t.Context(), []*x509.Certificate{issuer}, key)
	if err != nil {
		t.Fatal(err)
	}
	m, ok := s.service.(*inMemory)
	if !ok {
		t.Fatalf("a key in memory is served by %T", s.service)
	}
	return m
}

func leaf(t testing.TB, id string) *x509.Certificate {
	t.Helper()
	uri, err := url.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	template, err := profile.Leaf(spiffeid.RequireFromString("spiffe://example.org/a"), newKey(t).Public(), time.Now(), time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	template.URIs = []*url.URL{uri}
	return template
}

// same signs a template both ways and compares what was signed.
func same(t *testing.T, m *inMemory, template *x509.Certificate) {
	t.Helper()
	var std *x509.Certificate
	want, werr := x509.CreateCertificate(rand.Reader, template, m.issuer, template.PublicKey, m.key)
	if werr == nil {
		std, werr = x509.ParseCertificate(want)
	}
	resp, err := m.CreateCertificate(&apiv1.CreateCertificateRequest{Template: template, Lifetime: time.Hour})
	if err != nil || werr != nil {
		if (err == nil) != (werr == nil) {
			t.Errorf("error %v, want %v", err, werr)
		}
		return
	}
	if !bytes.Equal(resp.Certificate.RawTBSCertificate, std.RawTBSCertificate) {
		t.Errorf("signed\n%x, crypto/x509\n%x", resp.Certificate.RawTBSCertificate, std.RawTBSCertificate)
	}
	if err := resp.Certificate.CheckSignatureFrom(m.issuer); err != nil {
		t.Error(err)
	}
}

// What is signed the shorter way is what crypto/x509 would have signed.
func TestSameAsStandardLibrary(t *testing.T) {
	m := quick(t)
	r := mathrand.New(mathrand.NewPCG(1, 2))
	for i := range 300 {
		template := leaf(t, "spiffe://example.org/"+strings.Repeat("abc/d-", 1+r.IntN(300))+"e")
		template.SerialNumber = new(big.Int).Add(new(big.Int).Rsh(template.SerialNumber, uint(r.IntN(120))), big.NewInt(1))
		template.NotAfter = time.Date(1950+r.IntN(120), time.Month(1+r.IntN(12)), 1+r.IntN(28), r.IntN(24), r.IntN(60), r.IntN(60), r.IntN(1e9), time.FixedZone("", 3600*r.IntN(12)))
		template.NotBefore = template.NotAfter.Add(-time.Duration(1 + r.Int64N(int64(48*time.Hour))))
		if _, _, ok := plain(template); !ok {
			t.Fatalf("%d: it is not taken the shorter way", i)
		}
		same(t, m, template)
	}
}

// Whatever else a template has is in the certificate too, or refused, and never left
// out: each field of x509.Certificate is set in turn.
func TestNothingIsLeftOut(t *testing.T) {
	m := quick(t)
	_, network, err := net.ParseCIDR("10.0.0.0/8")
	if err != nil {
		t.Fatal(err)
	}
	oid, err := x509.OIDFromInts([]uint64{1, 2, 3, 4})
	if err != nil {
		t.Fatal(err)
	}
	special := map[string]any{
		"PublicKey": newKey(t).Public(), "SerialNumber": big.NewInt(-5), "IPAddresses": []net.IP{net.IPv4(1, 2, 3, 4)},
		"PermittedIPRanges": []*net.IPNet{network}, "ExcludedIPRanges": []*net.IPNet{network}, "Policies": []x509.OID{oid},
		"URIs":    []*url.URL{{Scheme: "spiffe", Host: "example.org", Path: "/b"}, {Scheme: "spiffe", Host: "example.org", Path: "/c"}},
		"Subject": pkix.Name{CommonName: "x"}, "ExtraExtensions": []pkix.Extension{{Id: []int{1, 2, 3}, Value: []byte{5, 0}}},
	}
	for i := range reflect.TypeFor[x509.Certificate]().NumField() {
		field := reflect.TypeFor[x509.Certificate]().Field(i)
		t.Run(field.Name, func(t *testing.T) {
			template := leaf(t, "spiffe://example.org/ns/a/sa/b")
			v := reflect.ValueOf(template).Elem().Field(i)
			if s, ok := special[field.Name]; ok {
				v.Set(reflect.ValueOf(s))
			} else {
				fill(v)
			}
			same(t, m, template)
		})
	}
	for name, change := range map[string]func(*x509.Certificate){
		"no usage": func(c *x509.Certificate) { c.KeyUsage = 0 }, "no constraints": func(c *x509.Certificate) { c.BasicConstraintsValid = false },
		"no name": func(c *x509.Certificate) { c.URIs = nil }, "a name that is not ASCII": func(c *x509.Certificate) { c.URIs[0].Opaque = "\u00e9" },
		"one purpose": func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] }, "another order": func(c *x509.Certificate) { c.ExtKeyUsage[0], c.ExtKeyUsage[1] = c.ExtKeyUsage[1], c.ExtKeyUsage[0] },
		"serial zero": func(c *x509.Certificate) { c.SerialNumber = new(big.Int) },
	} {
		t.Run(name, func(t *testing.T) {
			template := leaf(t, "spiffe://example.org/ns/a/sa/b")
			change(template)
			same(t, m, template)
		})
	}
}

// fill gives a field some value other than zero.
func fill(v reflect.Value) {
	switch v.Kind() { //nolint:exhaustive // the rest is in special
	case reflect.Int:
		v.SetInt(1)
	case reflect.Bool:
		v.SetBool(!v.Bool())
	case reflect.String:
		v.SetString("x")
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		if e := v.Index(0); e.Kind() == reflect.Slice { // an object identifier
			e.Set(reflect.ValueOf([]int{1, 2, 3}).Convert(e.Type()))
		} else if e.Kind() != reflect.Struct && e.Kind() != reflect.Pointer {
			fill(e)
		}
	case reflect.Uint8:
		v.SetUint(7)
	}
}

// A key that signs wrongly is found out.
func TestBadSignatureIsFound(t *testing.T) {
	m := quick(t)
	bad := newKey(t)
	bad.PublicKey = m.key.PublicKey // as if the private part had been hurt
	m.key = bad
	failed := 0
	for range verifyEvery {
		if _, err := m.CreateCertificate(&apiv1.CreateCertificateRequest{Template: leaf(t, "spiffe://example.org/a"), Lifetime: time.Hour}); err != nil {
			failed++
		}
	}
	if failed == 0 {
		t.Error("no wrong signature was found")
	}
}

func BenchmarkSign(b *testing.B) {
	m := quick(b)
	for name, service := range map[string]apiv1.CertificateAuthorityService{"softcas": m.SoftCAS, "in memory": m} {
		b.Run(name, func(b *testing.B) {
			template := leaf(b, "spiffe://example.org/ns/default/sa/reviews")
			b.ReportAllocs()
			for b.Loop() {
				if _, err := service.CreateCertificate(&apiv1.CreateCertificateRequest{Template: template, Lifetime: time.Hour}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

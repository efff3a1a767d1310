package crl

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"
)

var now = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

type root struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newRoot(t testing.TB, name string) root { return newRootWith(t, name, []byte(name)) }

func newRootWith(t testing.TB, name string, keyID []byte) root {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(1000 * time.Hour),
		KeyUsage: x509.KeyUsageCRLSign | x509.KeyUsageCertSign, IsCA: true, BasicConstraintsValid: true, SubjectKeyId: keyID,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return root{cert, key}
}

func (r root) list(t testing.TB, number int64, serials ...int64) []byte {
	return r.sign(t, template(number, serials...))
}

func template(number int64, serials ...int64) *x509.RevocationList {
	l := &x509.RevocationList{Number: big.NewInt(number), ThisUpdate: now.Add(-time.Minute), NextUpdate: now.Add(time.Hour)}
	for _, s := range serials {
		l.RevokedCertificateEntries = append(l.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: big.NewInt(s), RevocationTime: now})
	}
	return l
}

func (r root) sign(t testing.TB, l *x509.RevocationList) []byte {
	t.Helper()
	der, err := x509.CreateRevocationList(rand.Reader, l, r.cert, r.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestCheck(t *testing.T) {
	a, b, thief := newRoot(t, "a"), newRoot(t, "b"), newRoot(t, "a")
	namesake := newRootWith(t, "a", []byte("another"))
	with := func(change func(*x509.RevocationList)) []byte {
		l := template(1, 7)
		change(l)
		return a.sign(t, l)
	}
	critical := []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}}}
	whole := a.list(t, 1, 7)
	for _, c := range []struct {
		name         string
		lists        [][]byte
		roots        []*x509.Certificate
		certificates int
		err          string
	}{
		{"one", [][]byte{a.list(t, 1, 7, 8)}, []*x509.Certificate{a.cert}, 2, ""},
		{"two", [][]byte{a.list(t, 1, 7), b.list(t, 1)}, []*x509.Certificate{b.cert, a.cert}, 1, ""},
		{"nothing revoked", [][]byte{a.list(t, 1)}, []*x509.Certificate{a.cert}, 0, ""},
		{"the newer one", [][]byte{a.list(t, 2), a.list(t, 1, 7)}, []*x509.Certificate{a.cert}, 0, ""},
		{"one too many", [][]byte{b.list(t, 1), a.list(t, 1, 7)}, []*x509.Certificate{a.cert}, 1, ""},
		{"one missing", [][]byte{a.list(t, 1, 7)}, []*x509.Certificate{a.cert, b.cert}, 0, "no list of it"},
		{"none", nil, []*x509.Certificate{a.cert}, 0, "no list of it"},
		{"another's signature", [][]byte{thief.list(t, 1, 7)}, []*x509.Certificate{a.cert}, 0, "not signed"},
		{"another's of the same name", [][]byte{namesake.list(t, 1, 7), a.list(t, 1, 7, 8)}, []*x509.Certificate{a.cert}, 2, ""},
		{"two of the same name", [][]byte{namesake.list(t, 1, 7), a.list(t, 1, 7, 8)}, []*x509.Certificate{a.cert, namesake.cert}, 3, ""},
		{"broken", [][]byte{whole[:len(whole)/2]}, []*x509.Certificate{a.cert}, 0, "cannot be read"},
		{"a broken one of nobody", [][]byte{whole, {1, 2}}, []*x509.Certificate{a.cert}, 0, "cannot be read"},
		{"future", [][]byte{with(func(l *x509.RevocationList) { l.ThisUpdate = now.Add(time.Second) })}, []*x509.Certificate{a.cert}, 0, "future"},
		{"past", [][]byte{with(func(l *x509.RevocationList) { l.NextUpdate = now.Add(margin) })}, []*x509.Certificate{a.cert}, 0, "ended"},
		{"critical extension", [][]byte{with(func(l *x509.RevocationList) { l.ExtraExtensions = critical })}, []*x509.Certificate{a.cert}, 0, "critical"},
		{
			"critical extension of an entry",
			[][]byte{with(func(l *x509.RevocationList) { l.RevokedCertificateEntries[0].ExtraExtensions = critical })},
			[]*x509.Certificate{a.cert},
			0, "critical",
		},
		{"many", slicesOf(maxLists+1, whole), []*x509.Certificate{a.cert}, 0, "more than"},
		{"large", [][]byte{make([]byte, maxSize+1)}, []*x509.Certificate{a.cert}, 0, "more than"},
	} {
		u, err := Check(c.lists, c.roots, now)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: %v does not say %q", c.name, err, c.err)
			}
			continue
		}
		if err != nil || u.Certificates != c.certificates {
			t.Errorf("%s: %d certificates, error %v", c.name, u.Certificates, err)
		}
		if blocks := bytes.Count(u.PEM, []byte("BEGIN X509 CRL")); c.certificates > 0 && (blocks != len(c.roots) || !u.Until.Equal(now.Add(time.Hour-margin))) || c.certificates == 0 && u.PEM != nil {
			t.Errorf("%s: %d lists until %s", c.name, blocks, u.Until)
		}
	}
}

func slicesOf(n int, b []byte) [][]byte {
	out := make([][]byte, n)
	for i := range out {
		out[i] = b
	}
	return out
}

// FuzzCheck: of whatever bytes, only lists that the root has signed get through.
func FuzzCheck(f *testing.F) {
	r := newRoot(f, "a")
	f.Add(r.list(f, 1, 7))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, der []byte) {
		u, err := Check([][]byte{der}, []*x509.Certificate{r.cert}, now)
		if err != nil || u.PEM == nil {
			return
		}
		block, _ := pem.Decode(u.PEM)
		l, err := x509.ParseRevocationList(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.CheckSignatureFrom(r.cert); err != nil {
			t.Error(err)
		}
	})
}

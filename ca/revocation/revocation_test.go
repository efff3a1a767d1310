package revocation

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"math/big"
	mathrand "math/rand/v2"
	"strings"
	"testing"
	"time"
)

var now = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

func certificate(serial string, end time.Time) Entry {
	return Entry{Serial: serial, SPIFFEID: "spiffe://td/ns/a/sa/b", SHA256: strings.Repeat("ab", 32), Authority: "cd", Reason: 1, Time: now, NotAfter: end}
}

func TestSerial(t *testing.T) {
	for in, want := range map[string]string{
		"0a1b": "0a1b", "A1:B2": "a1b2", "1": "01", "00:0f": "0f", "00ff": "ff", strings.Repeat("ff", 20): strings.Repeat("ff", 20),
		"": "", "0": "", "xy": "", strings.Repeat("ff", 21): "", "spiffe://a/b": "", " 1": "",
	} {
		got, err := Serial(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: got %q, %v; want %q", in, got, err, want)
		}
	}
}

func TestDocuments(t *testing.T) {
	for _, e := range []Entry{certificate("0a", now), {SPIFFEID: "spiffe://td/ns/a/sa/b", Time: now}, {Authority: "0a1b", Time: now, NotAfter: now}} {
		value, err := e.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		got, err := Unmarshal(e.Key(), 7, value)
		want := e
		want.Sequence = 7
		if err != nil || got != want {
			t.Errorf("got %v, %v; want %v", got, err, want)
		}
		for _, bad := range []string{"", "{", "{}", string(value) + "x", string(value[1:])} {
			if _, err := Unmarshal(e.Key(), 7, []byte(bad)); err == nil {
				t.Errorf("%q was read", bad)
			}
		}
		if _, err := Unmarshal(e.Key()+"0", 7, value); err == nil {
			t.Error("read under another key")
		}
	}
	for _, bad := range []Entry{{}, {SPIFFEID: "x", Reason: 8}, {SPIFFEID: "x", Serial: "0A"}, {SPIFFEID: "x", Serial: "0a"}, {Authority: "0a"}, {Authority: "X", NotAfter: now}, {Serial: "0a", NotAfter: now}} {
		if _, err := bad.Marshal(); err == nil {
			t.Errorf("%v was written", bad)
		}
	}
}

func FuzzUnmarshal(f *testing.F) {
	value, err := certificate("0a", now).Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(value)
	f.Add([]byte(`{"spiffe_id":"spiffe://a/b"}`))
	f.Add([]byte(`{"authority":"0a1b","not_after":"2026-01-02T03:04:05Z"}`))
	f.Fuzz(func(t *testing.T, value []byte) {
		for _, key := range []string{CertificateKey("0a"), IdentityKey("spiffe://a/b"), authorityKey("0a1b")} {
			e, err := Unmarshal(key, 1, value)
			if err != nil {
				continue
			}
			again, err := e.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			if back, err := Unmarshal(key, 1, again); err != nil || !back.NotAfter.Equal(e.NotAfter) || back.Key() != e.Key() {
				t.Errorf("%v became %v, %v", e, back, err)
			}
		}
	})
}

func TestList(t *testing.T) {
	id := Entry{SPIFFEID: "spiffe://td/ns/a/sa/c", Time: now.Add(-time.Hour)}
	l := NewList(3, []Entry{certificate("0a", now.Add(time.Hour)), certificate("0b", now.Add(-time.Second)), id})
	if live, gone := l.Live(now), l.Expired(now); len(live) != 2 || live[0] != id || len(gone) != 1 || gone[0].Serial != "0b" {
		t.Errorf("live %v, expired %v", live, gone)
	}
	for _, c := range []struct {
		serial, id string
		want       bool
	}{
		{"0a", "spiffe://td/ns/a/sa/b", true}, {"0c", "spiffe://td/ns/a/sa/b", false}, {"0c", "spiffe://td/ns/a/sa/c", true}, {"", "", false},
	} {
		if _, got := l.Certificate(c.serial, c.id); got != c.want {
			t.Errorf("%s of %s: %t", c.serial, c.id, got)
		}
	}
	if _, ok := new(List).Identity("spiffe://td/ns/a/sa/c"); ok {
		t.Error("the empty list has something")
	}
}

// TestCRL makes lists of random revocations: each has exactly the unexpired ones, and
// a number higher than the one before.
func TestCRL(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		KeyUsage: x509.KeyUsageCRLSign, IsCA: true, BasicConstraintsValid: true, SubjectKeyId: []byte{1},
	}
	der, err := x509.CreateCertificate(rand.Reader, root, root, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if root, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	random := mathrand.New(mathrand.NewPCG(1, 2))
	last, sequence, at := new(big.Int), uint64(1), now
	for range 50 {
		var revoked []Revoked
		want := map[string]bool{}
		for range random.IntN(20) {
			r := Revoked{Serial: fmt.Sprintf("%04x", 0x100+random.IntN(200)), Reason: 1, Time: now.Add(-time.Minute), NotAfter: at.Add(time.Duration(random.IntN(5)-2) * time.Minute)}
			revoked = append(revoked, r)
			want[r.Serial] = want[r.Serial] || !at.After(r.NotAfter)
		}
		template, err := Template(sequence, revoked, at, at, at.Add(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.CreateRevocationList(rand.Reader, template, root, key)
		if err != nil {
			t.Fatal(err)
		}
		if err := Check(der, template, root); err != nil {
			t.Fatal(err)
		}
		l, err := x509.ParseRevocationList(der)
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]bool{}
		for _, e := range l.RevokedCertificateEntries {
			got[hex.EncodeToString(e.SerialNumber.Bytes())] = true
		}
		for serial, is := range want {
			if got[serial] != is {
				t.Errorf("%s: revoked %t, in the list %t", serial, is, got[serial])
			}
		}
		if l.Number.Cmp(last) <= 0 {
			t.Errorf("number %s follows %s", l.Number, last)
		}
		last = l.Number
		if random.IntN(2) == 0 {
			sequence, at = sequence+1, at.Add(-time.Second) // a clock that goes back
		} else {
			at = at.Add(time.Second)
		}
		other, err := Template(sequence, append(revoked, Revoked{Serial: "7f", NotAfter: at}), at, at, at.Add(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		if Check(der, other, root) == nil {
			t.Error("a list that was not ordered is taken")
		}
	}
}

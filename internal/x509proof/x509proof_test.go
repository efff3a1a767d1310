package x509proof_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/x509proof"
)

func TestSignAndVerify(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rs, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	at, csr := time.Unix(1_700_000_000, 0), []byte("a request")
	other, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]crypto.Signer{"ECDSA": ec, "Ed25519": ed, "RSA": rs} {
		sig, err := x509proof.Sign(key, csr, at)
		if err != nil {
			t.Fatal(err)
		}
		if err := x509proof.Verify(key.Public(), csr, at, sig); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for what, err := range map[string]error{
			"another request": x509proof.Verify(key.Public(), []byte("b request"), at, sig),
			"another time":    x509proof.Verify(key.Public(), csr, at.Add(time.Second), sig),
			"another key":     x509proof.Verify(other.Public(), csr, at, sig),
			"no signature":    x509proof.Verify(key.Public(), csr, at, nil),
		} {
			if err == nil {
				t.Errorf("%s: %s is taken", name, what)
			}
		}
	}
}

// Package x509proof proves with a certificate of another authority who asks for a
// certificate of Writ's: the holder of that certificate's key signs the request,
// with the time. Both sides are here, so that they agree.
package x509proof

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// domain keeps what is signed apart from all else that the key may sign.
const domain = "writ join x509 v1\x00"

// minRSA is the shortest RSA key that counts, in bits.
const minRSA = 2048

var pss = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}

// digest is what is signed: a request (PKCS #10 in DER) at a time, of which whole
// seconds count.
func digest(csr []byte, at time.Time) []byte {
	sum := sha256.Sum256(csr)
	msg := binary.BigEndian.AppendUint64([]byte(domain), uint64(at.Unix()))
	all := sha256.Sum256(append(msg, sum[:]...))
	return all[:]
}

// Sign signs a request with the key of a certificate: ECDSA, RSA or Ed25519.
func Sign(key crypto.Signer, csr []byte, at time.Time) ([]byte, error) {
	var opts crypto.SignerOpts = crypto.SHA256
	switch key.Public().(type) {
	case *ecdsa.PublicKey:
	case *rsa.PublicKey:
		opts = pss
	case ed25519.PublicKey:
		opts = crypto.Hash(0)
	default:
		return nil, fmt.Errorf("a key of type %T cannot be used, want ECDSA, RSA or Ed25519", key.Public())
	}
	return key.Sign(rand.Reader, digest(csr, at), opts)
}

var errSignature = errors.New("the signature is not that of the certificate's key over this request and time")

// Verify checks what Sign made.
func Verify(key crypto.PublicKey, csr []byte, at time.Time, signature []byte) error {
	sum := digest(csr, at)
	var good bool
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		good = ecdsa.VerifyASN1(k, sum, signature)
	case *rsa.PublicKey:
		if k.N.BitLen() < minRSA {
			return fmt.Errorf("an RSA key of %d bits is too short, want %d at least", k.N.BitLen(), minRSA)
		}
		good = rsa.VerifyPSS(k, crypto.SHA256, sum, signature, pss) == nil
	case ed25519.PublicKey:
		good = ed25519.Verify(k, sum, signature)
	default:
		return fmt.Errorf("a key of type %T cannot be used, want ECDSA, RSA or Ed25519", key)
	}
	if !good {
		return errSignature
	}
	return nil
}

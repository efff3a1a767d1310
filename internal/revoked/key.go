package revoked

import (
	"crypto/sha256"
	"encoding/binary"
)

// Key stands for what is revoked: the kind, the issuer and the value.
type Key [16]byte

// The kinds of keys.
const (
	kindID      = 'j'
	kindSubject = 's'
	kindIssuer  = 'i'
)

// IDKey is of the one token of an issuer with that jti.
func IDKey(issuer, jti string) Key { return key(kindID, issuer, jti) }

// SubjectKey is of the tokens of an issuer with that sub.
func SubjectKey(issuer, sub string) Key { return key(kindSubject, issuer, sub) }

// IssuerKey is of all tokens of an issuer.
func IssuerKey(issuer string) Key { return key(kindIssuer, issuer, "") }

// key hashes kind, length of the issuer, issuer and value, so that no two
// different triples give the same text. No key is zero, which marks a free place.
func key(kind byte, issuer, value string) (k Key) {
	var room [256]byte
	text := append(room[:0], kind)
	text = binary.AppendUvarint(text, uint64(len(issuer)))
	text = append(text, issuer...)
	text = append(text, value...)
	sum := sha256.Sum256(text)
	copy(k[:], sum[:])
	if k == (Key{}) {
		k[0] = 1
	}
	return k
}

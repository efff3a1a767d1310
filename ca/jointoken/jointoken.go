// Package jointoken makes and reads join tokens. A token has an ID, which is no secret
// and finds the token's record, and a secret of 256 random bits, of which only
// the SHA-256 is kept: with that much entropy a slow hash would add nothing.
//
// The form is "writ-join.<id>.<secret>", id in hexadecimal and secret in
// unpadded base64url (RFC 4648 section 5).
package jointoken

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

const (
	prefix     = "writ-join"
	idSize     = 8
	secretSize = 32
)

// errMalformed is returned for text that is no token.
var errMalformed = errors.New("malformed join token")

// Token is a join token with its secret. It goes to its holder and is not kept.
type Token struct {
	// ID is in hexadecimal.
	ID     string
	secret [secretSize]byte
}

// New makes a token.
func New() (Token, error) {
	var t Token
	var id [idSize]byte
	if _, err := rand.Read(id[:]); err != nil {
		return Token{}, fmt.Errorf("join token: %w", err)
	}
	if _, err := rand.Read(t.secret[:]); err != nil {
		return Token{}, fmt.Errorf("join token: %w", err)
	}
	t.ID = hex.EncodeToString(id[:])
	return t, nil
}

// Parse reads a token. Every token has exactly one form.
func Parse(s string) (Token, error) {
	// 16 for the ID, 43 for the secret, and the two dots.
	if len(s) != len(prefix)+2*idSize+base64.RawURLEncoding.EncodedLen(secretSize)+2 {
		return Token{}, errMalformed
	}
	parts := strings.Split(s, ".")
	if len(parts) != 3 || parts[0] != prefix || len(parts[1]) != 2*idSize {
		return Token{}, errMalformed
	}
	id, err := hex.DecodeString(parts[1])
	if err != nil || hex.EncodeToString(id) != parts[1] {
		return Token{}, errMalformed
	}
	secret, err := base64.RawURLEncoding.Strict().DecodeString(parts[2])
	if err != nil || len(secret) != secretSize {
		return Token{}, errMalformed
	}
	return Token{ID: parts[1], secret: [secretSize]byte(secret)}, nil
}

// Reveal returns the token as its holder gets it. There is no String method, so
// that no log shows a secret by accident.
func (t Token) Reveal() string {
	return prefix + "." + t.ID + "." + base64.RawURLEncoding.EncodeToString(t.secret[:])
}

// Hash is what is kept of the secret.
func (t Token) Hash() []byte {
	sum := sha256.Sum256(t.secret[:])
	return sum[:]
}

// Matches tells in constant time whether hash is that of t's secret.
func (t Token) Matches(hash []byte) bool {
	return subtle.ConstantTimeCompare(t.Hash(), hash) == 1
}

// Format keeps the secret out of every fmt verb.
func (t Token) Format(f fmt.State, _ rune) { _, _ = fmt.Fprint(f, prefix+"."+t.ID+".***") }

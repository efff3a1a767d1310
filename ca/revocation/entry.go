package revocation

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"strings"
	"time"
)

// Prefix is that of the keys of the ledger's documents of this package.
const Prefix = "revocations/"

// NumberKey is the key of the document that is put with every change of the list, so
// that its version is the number of the list.
const NumberKey = Prefix + "number"

const (
	certificatePrefix = Prefix + "certificates/"
	identityPrefix    = Prefix + "identities/"
	authorityPrefix   = Prefix + "authorities/"
)

// maxSerial bounds a serial number, in bytes (RFC 5280, section 4.1.2.2).
const maxSerial = 20

// maxKeyID bounds the key id of an authority, in digits.
const maxKeyID = 128

// Entry is one revocation: of a certificate if Serial is set, else of an identity, or
// of an authority if neither is named.
type Entry struct {
	// Serial is in lower-case hexadecimal without leading zero bytes.
	Serial string `json:"serial,omitempty"`
	// SPIFFEID is the identity, or that of the certificate.
	SPIFFEID string `json:"spiffe_id,omitempty"`
	// SHA256 is of the certificate in DER, in lower-case hexadecimal.
	SHA256 string `json:"sha256,omitempty"`
	// Authority is the key id of the certificate's issuer, or of the authority.
	Authority string `json:"authority,omitempty"`
	// Reason is a CRLReason of RFC 5280, section 5.3.1.
	Reason int       `json:"reason"`
	Time   time.Time `json:"time"`
	// Actor is who revoked it.
	Actor string `json:"actor,omitempty"`
	// NotAfter is the certificate's, or that of all that an authority issued; zero for an
	// identity.
	NotAfter time.Time `json:"not_after,omitzero"`
	// Sequence is the number of the list that had it first: the version of its
	// document, which is not in the document.
	Sequence uint64 `json:"-"`
}

// Key is the key of the document of e.
func (e Entry) Key() string {
	switch {
	case e.Serial != "":
		return CertificateKey(e.Serial)
	case e.OfAuthority():
		return authorityKey(e.Authority)
	}
	return IdentityKey(e.SPIFFEID)
}

// OfAuthority tells whether e revokes an authority.
func (e Entry) OfAuthority() bool { return e.Serial == "" && e.SPIFFEID == "" }

// authorityKey is the key of the document that revokes an authority.
func authorityKey(keyID string) string { return authorityPrefix + keyID }

// CertificateKey is the key of the document that revokes a certificate.
func CertificateKey(serial string) string { return certificatePrefix + serial }

// IdentityKey is the key of the document that revokes an identity. A SPIFFE ID may
// be longer than a key.
func IdentityKey(id string) string {
	sum := sha256.Sum256([]byte(id))
	return identityPrefix + hex.EncodeToString(sum[:])
}

// Expired tells whether the certificate that e revokes, or all of the authority, is
// past its end, so that nobody takes it anyway. An identity's revocation does not
// expire.
func (e Entry) Expired(now time.Time) bool { return !e.NotAfter.IsZero() && now.After(e.NotAfter) }

// Marshal gives the document of e.
func (e Entry) Marshal() ([]byte, error) {
	if err := e.check(); err != nil {
		return nil, err
	}
	return json.Marshal(e)
}

// Unmarshal reads the document with that key.
func Unmarshal(key string, version uint64, value []byte) (Entry, error) {
	var e Entry
	dec := json.NewDecoder(bytes.NewReader(value))
	if err := dec.Decode(&e); err != nil {
		return Entry{}, fmt.Errorf("revocation %s: %w", key, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return Entry{}, fmt.Errorf("revocation %s: there is more than one value", key)
	}
	if err := e.check(); err != nil {
		return Entry{}, fmt.Errorf("revocation %s: %w", key, err)
	}
	if e.Key() != key {
		return Entry{}, fmt.Errorf("revocation %s is under the key of another", key)
	}
	e.Sequence = version
	return e, nil
}

func (e Entry) check() error {
	if !IsReason(e.Reason) {
		return fmt.Errorf("%d is no reason", e.Reason)
	}
	switch {
	case e.OfAuthority():
		return e.checkAuthority()
	case e.SPIFFEID == "":
		return errors.New("it names no SPIFFE ID")
	case e.Serial == "":
		return nil
	}
	if _, err := number(e.Serial); err != nil {
		return err
	}
	if len(e.SHA256) != hex.EncodedLen(sha256.Size) || !isLowerHex(e.SHA256) {
		return fmt.Errorf("%q is no SHA-256", e.SHA256)
	}
	if e.NotAfter.IsZero() {
		return errors.New("it does not say when the certificate expires")
	}
	return nil
}

func (e Entry) checkAuthority() error {
	switch {
	case e.Authority == "" || len(e.Authority) > maxKeyID || !isLowerHex(e.Authority):
		return errors.New("it names no SPIFFE ID and no authority")
	case e.NotAfter.IsZero():
		return errors.New("it does not say when what the authority issued expires")
	}
	return nil
}

// Serial gives the form of a serial number that the ledger has, from hexadecimal
// with colons and capitals, as other tools print it.
func Serial(text string) (string, error) {
	plain := strings.TrimLeft(strings.ToLower(strings.ReplaceAll(text, ":", "")), "0")
	if len(plain)%2 == 1 {
		plain = "0" + plain
	}
	if _, err := number(plain); err != nil {
		return "", err
	}
	return plain, nil
}

// number reads a serial number of the form that the ledger has.
func number(serial string) (*big.Int, error) {
	raw, err := hex.DecodeString(serial)
	if err != nil || !isLowerHex(serial) || len(raw) == 0 || len(raw) > maxSerial || raw[0] == 0 {
		return nil, fmt.Errorf("%q is not a serial number in hexadecimal of %d bytes at most", serial[:min(len(serial), 3*maxSerial)], maxSerial)
	}
	return new(big.Int).SetBytes(raw), nil
}

func isLowerHex(s string) bool {
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// reasons are those of RFC 5280, section 5.3.1, without 8, which only delta lists
// have.
var reasons = map[int]struct{}{0: {}, 1: {}, 2: {}, 3: {}, 4: {}, 5: {}, 6: {}, 9: {}, 10: {}} //nolint:gochecknoglobals // a set that never changes

// IsReason tells whether a certificate can be revoked for that reason, a CRLReason of
// RFC 5280, section 5.3.1.
func IsReason(reason int) bool {
	_, ok := reasons[reason]
	return ok
}

package tokens

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"time"
	"unicode/utf8"

	"github.com/writ-mesh/writ/internal/revoked"
)

// maxValue bounds issuer, jti and sub in bytes.
const maxValue = 2048

// Revocation is of the token with that ID, of those of the Subject, or with
// neither of all tokens of the issuer.
type Revocation struct {
	Issuer  string `json:"issuer"`
	ID      string `json:"jti,omitempty"`
	Subject string `json:"sub,omitempty"`
	// IssuedBefore bounds it to tokens that were issued before; the zero time is
	// whenever. Not with ID. In whole seconds, as is Until.
	IssuedBefore time.Time `json:"issued_before,omitzero"`
	// Until is when the last of the tokens expires; the zero time is never.
	Until time.Time `json:"until,omitzero"`
	// Time and Actor are when and by whom it was revoked.
	Time  time.Time `json:"time"`
	Actor string    `json:"actor,omitempty"`
}

// Check says what is wrong with a revocation.
func (r Revocation) Check() error {
	if r.Issuer == "" {
		return errors.New("it names no issuer")
	}
	for _, v := range []struct{ name, value string }{{"issuer", r.Issuer}, {"jti", r.ID}, {"sub", r.Subject}} {
		if len(v.value) > maxValue || !utf8.ValidString(v.value) {
			return fmt.Errorf("the %s has more than %d bytes or is not UTF-8", v.name, maxValue)
		}
	}
	switch {
	case r.ID != "" && r.Subject != "":
		return errors.New("it names both jti and sub; write two revocations")
	case r.ID != "" && !r.IssuedBefore.IsZero():
		return errors.New("a single token (jti) is revoked whenever it was issued")
	}
	for _, t := range []time.Time{r.IssuedBefore, r.Until} {
		if !t.IsZero() && !revoked.Time(revoked.Seconds(t)).Equal(t.Truncate(time.Second)) {
			return fmt.Errorf("%s is not between 1970 and 2106", t.Format(time.RFC3339))
		}
	}
	return nil
}

// Key is what the revocation is about.
func (r Revocation) Key() revoked.Key {
	switch {
	case r.ID != "":
		return revoked.IDKey(r.Issuer, r.ID)
	case r.Subject != "":
		return revoked.SubjectKey(r.Issuer, r.Subject)
	}
	return revoked.IssuerKey(r.Issuer)
}

// Entry is the form in which it is enforced.
func (r Revocation) Entry() revoked.Entry {
	return revoked.Entry{Key: r.Key(), Before: revoked.Seconds(r.IssuedBefore), Until: revoked.Seconds(r.Until)}
}

// line is what the file has for each change.
type line struct {
	Revocation
	// Undone takes it back.
	Undone bool `json:"undone,omitempty"`
}

const sumDigits = 2 * crc32.Size

func checksum(b []byte) []byte {
	sum := crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))
	return hex.AppendEncode(nil, []byte{byte(sum >> 24), byte(sum >> 16), byte(sum >> 8), byte(sum)})
}

// appendTo adds a line with its check sum and its end.
func (l line) appendTo(b []byte) ([]byte, error) {
	text, err := json.Marshal(l)
	if err != nil {
		return nil, err
	}
	b = append(append(b, checksum(text)...), ' ')
	return append(append(b, text...), '\n'), nil
}

// parseLine reads a line without its end.
func parseLine(b []byte) (l line, err error) {
	if len(b) < sumDigits+1 || b[sumDigits] != ' ' || !bytes.Equal(checksum(b[sumDigits+1:]), b[:sumDigits]) {
		return l, errors.New("its check sum is wrong")
	}
	if err := json.Unmarshal(b[sumDigits+1:], &l); err != nil {
		return l, err
	}
	return l, l.Check()
}

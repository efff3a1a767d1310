package revocation

import (
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"
)

// Revoked is a certificate in a certificate revocation list.
type Revoked struct {
	// Serial is as in Entry.
	Serial string
	Reason int
	Time   time.Time
	// NotAfter is when it leaves the list.
	NotAfter time.Time
}

// Template is the certificate revocation list of one authority, to be signed by it.
// Of several entries with a serial number the oldest stays; those that have expired
// are left out.
//
// The number is made of the list's, which the ledger keeps, and of the time, so that
// it rises with every list that is made, also over restarts and among replicas.
func Template(sequence uint64, revoked []Revoked, now, thisUpdate, nextUpdate time.Time) (*x509.RevocationList, error) {
	n := new(big.Int).Lsh(new(big.Int).SetUint64(sequence), 64)
	t := &x509.RevocationList{
		Number:     n.Or(n, big.NewInt(max(now.UnixMicro(), 0))),
		ThisUpdate: thisUpdate.UTC(), NextUpdate: nextUpdate.UTC(),
	}
	revoked = slices.Clone(revoked)
	slices.SortStableFunc(revoked, func(a, b Revoked) int { return a.Time.Compare(b.Time) })
	seen := make(map[string]bool, len(revoked))
	for _, r := range revoked {
		if seen[r.Serial] || now.After(r.NotAfter) {
			continue
		}
		seen[r.Serial] = true
		serial, err := number(r.Serial)
		if err != nil {
			return nil, fmt.Errorf("certificate revocation list: %w", err)
		}
		t.RevokedCertificateEntries = append(t.RevokedCertificateEntries, x509.RevocationListEntry{
			SerialNumber: serial, RevocationTime: r.Time.UTC(), ReasonCode: r.Reason,
		})
	}
	return t, nil
}

// Check reads a list that was signed, and finds out whether it is the one of the
// template and the issuer's.
func Check(der []byte, template *x509.RevocationList, issuer *x509.Certificate) error {
	l, err := x509.ParseRevocationList(der)
	if err != nil {
		return fmt.Errorf("certificate revocation list: %w", err)
	}
	if err := l.CheckSignatureFrom(issuer); err != nil {
		return fmt.Errorf("certificate revocation list: %w", err)
	}
	same := func(a, b x509.RevocationListEntry) bool {
		return a.SerialNumber.Cmp(b.SerialNumber) == 0 && a.ReasonCode == b.ReasonCode
	}
	if l.Number.Cmp(template.Number) != 0 || !slices.EqualFunc(l.RevokedCertificateEntries, template.RevokedCertificateEntries, same) {
		return errors.New("certificate revocation list: what was signed is not what was ordered")
	}
	return nil
}

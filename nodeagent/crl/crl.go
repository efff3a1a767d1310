// Package crl decides which certificate revocation lists may go to the Envoys of a
// node. Envoy takes one list of each authority or none: with a list missing, expired
// or not valid yet it refuses every certificate of that authority. So what comes from
// the authority is looked at before it is used, and what is not right as a whole is
// not used at all. The package is pure.
package crl

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"
)

const (
	// maxSize bounds the lists together, in bytes.
	maxSize = 8 << 20
	// maxLists bounds their number.
	maxLists = 64
	// margin is how long before its end a list is no longer used.
	margin = time.Minute
)

// Usable are lists that may be used.
type Usable struct {
	// PEM is nil if the lists revoke nothing, since none is as good then.
	PEM []byte
	// Until is when they may no longer be used; zero if there are none.
	Until time.Time
	// Certificates is how many are revoked.
	Certificates int
}

// Check looks at lists in DER for a trust bundle. Lists of authorities that are not in
// the bundle are passed over. An error says why none may be used.
func Check(lists [][]byte, roots []*x509.Certificate, now time.Time) (Usable, error) {
	total := 0
	for _, der := range lists {
		total += len(der)
	}
	if total > maxSize || len(lists) > maxLists {
		return Usable{}, fmt.Errorf("%d lists of %d bytes are more than the %d lists of %d bytes that are taken", len(lists), total, maxLists, maxSize)
	}
	parsed := make([]*x509.RevocationList, 0, len(lists))
	for i, der := range lists {
		l, err := x509.ParseRevocationList(der)
		if err != nil {
			return Usable{}, fmt.Errorf("list %d cannot be read: %w", i, err)
		}
		parsed = append(parsed, l)
	}
	var u Usable
	for _, root := range roots {
		l, err := listOf(root, parsed, now)
		if err != nil {
			return Usable{}, fmt.Errorf("authority %s: %w", hex.EncodeToString(root.SubjectKeyId), err)
		}
		if end := l.NextUpdate.Add(-margin); u.Until.IsZero() || end.Before(u.Until) {
			u.Until = end
		}
		u.Certificates += len(l.RevokedCertificateEntries)
		u.PEM = append(u.PEM, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: l.Raw})...)
	}
	if u.Certificates == 0 {
		return Usable{}, nil
	}
	return u, nil
}

// listOf finds the newest list of an authority.
func listOf(root *x509.Certificate, lists []*x509.RevocationList, now time.Time) (*x509.RevocationList, error) {
	var best *x509.RevocationList
	for _, l := range lists {
		if !bytes.Equal(l.RawIssuer, root.RawSubject) || len(l.AuthorityKeyId) > 0 && !bytes.Equal(l.AuthorityKeyId, root.SubjectKeyId) {
			continue // another's, perhaps of the same name
		}
		if err := check(l, root, now); err != nil {
			return nil, err
		}
		if best == nil || l.Number.Cmp(best.Number) > 0 {
			best = l
		}
	}
	if best == nil {
		return nil, errors.New("there is no list of it")
	}
	return best, nil
}

func check(l *x509.RevocationList, root *x509.Certificate, now time.Time) error {
	if err := l.CheckSignatureFrom(root); err != nil {
		return fmt.Errorf("its list is not signed by it: %w", err)
	}
	switch {
	case l.Number == nil:
		return errors.New("its list has no number")
	case now.Before(l.ThisUpdate):
		return fmt.Errorf("its list is valid from %s, which by this machine's clock is in the future", l.ThisUpdate.Format(time.RFC3339))
	case !now.Before(l.NextUpdate.Add(-margin)):
		return fmt.Errorf("its list ended at %s", l.NextUpdate.Format(time.RFC3339))
	}
	for _, e := range l.Extensions {
		if e.Critical {
			return fmt.Errorf("its list has the critical extension %s", e.Id)
		}
	}
	for _, r := range l.RevokedCertificateEntries {
		if i := slices.IndexFunc(r.Extensions, func(e pkix.Extension) bool { return e.Critical }); i >= 0 {
			return fmt.Errorf("its list has an entry with the critical extension %s", r.Extensions[i].Id)
		}
	}
	return nil
}

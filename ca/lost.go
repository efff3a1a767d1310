package ca

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/writ-mesh/writ/ca/backup"
	"github.com/writ-mesh/writ/ca/ledger"
)

// unrecorded is who asked for a certificate that was issued in a time of which the
// ledger was lost.
const unrecorded = "unrecorded"

// maxBackdated is how long before it was issued a certificate may begin to be valid:
// the most that clock_skew can be.
const maxBackdated = 10 * time.Minute

// maxLooked bounds how many certificates are remembered as looked for.
const maxLooked = 100_000

// lost knows the times of which the ledger was lost, because it was restored from a
// backup. A certificate of such a time is not in the ledger; when its owner calls, it
// is written down and said, so that it can be found and revoked.
type lost struct {
	windows []lostWindow

	mu     sync.Mutex
	looked map[string]bool // serials that are in the ledger by now
}

// lostWindow is such a time.
type lostWindow struct {
	backup.Window

	// index is of the entry that tells of it.
	index uint64
}

func loadLost(ctx context.Context, store ledger.Documents) (*lost, error) {
	docs, err := store.List(ctx, backup.WindowPrefix)
	if err != nil {
		return nil, err
	}
	l := &lost{looked: make(map[string]bool)}
	for _, d := range docs {
		w := lostWindow{index: d.Version - 1}
		if err := json.Unmarshal(d.Value, &w.Window); err != nil {
			return nil, fmt.Errorf("the ledger's document %s cannot be read: %w", d.Key, err)
		}
		l.windows = append(l.windows, w)
	}
	return l, nil
}

// before is the newest entry before that index that tells of a lost time. l may be nil.
func (l *lost) before(index uint64) (newest uint64, there bool) {
	if l == nil {
		return 0, false
	}
	for _, w := range l.windows {
		if w.index < index && (!there || w.index > newest) {
			newest, there = w.index, true
		}
	}
	return newest, there
}

// last is when the ledger was restored last; zero if it never was. l may be nil.
func (l *lost) last() (t time.Time) {
	if l == nil {
		return t
	}
	for _, w := range l.windows {
		t = later(t, w.To)
	}
	return t
}

// has tells whether what was said at a moment may be lost. Clocks of several
// authorities differ by as much as certificates are backdated at most.
func (l *lost) has(said time.Time) bool {
	if l == nil {
		return false
	}
	return slices.ContainsFunc(l.windows, func(w lostWindow) bool {
		return said.After(w.From.Add(-maxBackdated)) && said.Before(w.To)
	})
}

// suspect tells whether a certificate may have been issued in a lost time, and was not
// looked for yet. l may be nil.
func (l *lost) suspect(cert *x509.Certificate, serial string) bool {
	if l == nil {
		return false
	}
	for _, w := range l.windows {
		if cert.NotBefore.After(w.From.Add(-maxBackdated)) && cert.NotBefore.Before(w.To) {
			l.mu.Lock()
			defer l.mu.Unlock()
			return !l.looked[serial]
		}
	}
	return false
}

func (l *lost) found(serial string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.looked) >= maxLooked {
		clear(l.looked)
	}
	l.looked[serial] = true
}

// flag writes a caller's certificate down if it is of a lost time. That fails no call:
// the certificate is good, only unknown.
func (a *Authority) flag(ctx context.Context, cert *x509.Certificate) {
	serial := hex.EncodeToString(cert.SerialNumber.Bytes())
	if !a.lost.suspect(cert, serial) {
		return
	}
	err := a.store.Each(ctx, 0, func(r ledger.Record) error {
		if bytes.Contains(r.Leaf, []byte(`"serial":"`+serial+`"`)) {
			return errThere
		}
		return nil
	})
	switch {
	case errors.Is(err, errThere):
		a.lost.found(serial)
		return
	case err == nil:
		err = a.adopt(ctx, cert, serial)
	}
	if err != nil {
		a.log.WarnContext(ctx, "a certificate of a time of which the ledger was lost could not be written down; it is tried again at the next call",
			slog.String("serial", serial), slog.Any("error", err))
		return
	}
	a.lost.found(serial)
}

var errThere = errors.New("it is there")

// adopt writes a certificate down that the ledger lost.
func (a *Authority) adopt(ctx context.Context, cert *x509.Certificate, serial string) error {
	id, err := x509svid.IDFromCert(cert)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(cert.Raw)
	_, err = a.store.Commit(ctx, ledger.Change{Entry: ledger.Entry{
		Kind: ledger.Issued, Time: a.now().UTC(), Actor: unrecorded, Subject: id.String(), Serial: serial,
		Authority: hex.EncodeToString(cert.AuthorityKeyId), NotBefore: cert.NotBefore, NotAfter: cert.NotAfter,
		SHA256: hex.EncodeToString(sum[:]),
		Detail: map[string]string{"text": "its record was lost with the ledger before the last restore; its owner showed it"},
	}})
	if err == nil {
		a.log.WarnContext(ctx, "a certificate of a time of which the ledger was lost is in use; it is in the ledger now, as requested by \"unrecorded\"; revoke it if it should not be there",
			slog.String("serial", serial), slog.String("spiffe_id", id.String()), slog.Time("not_after", cert.NotAfter))
	}
	return err
}

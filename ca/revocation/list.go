package revocation

import (
	"cmp"
	"slices"
	"time"
)

// List is what is revoked at a moment. It is never changed; the zero List has
// nothing.
type List struct {
	// Sequence is the number of the list.
	Sequence uint64
	entries  []Entry
	byKey    map[string]Entry
}

// NewList makes a list of entries, of which one with an equal key stays.
func NewList(sequence uint64, entries []Entry) *List {
	l := &List{Sequence: sequence, byKey: make(map[string]Entry, len(entries))}
	for _, e := range entries {
		l.byKey[e.Key()] = e
	}
	for _, e := range l.byKey {
		l.entries = append(l.entries, e)
	}
	slices.SortFunc(l.entries, func(a, b Entry) int { return cmp.Or(a.Time.Compare(b.Time), cmp.Compare(a.Key(), b.Key())) })
	return l
}

// Live are the entries that still say something, oldest first.
func (l *List) Live(now time.Time) []Entry {
	return slices.DeleteFunc(slices.Clone(l.entries), func(e Entry) bool { return e.Expired(now) })
}

// Expired are the entries whose certificates are past their end.
func (l *List) Expired(now time.Time) []Entry {
	return slices.DeleteFunc(slices.Clone(l.entries), func(e Entry) bool { return !e.Expired(now) })
}

// Identity tells whether an identity is revoked.
func (l *List) Identity(id string) (Entry, bool) {
	if len(l.byKey) == 0 {
		return Entry{}, false // most often, and it saves a hash
	}
	e, ok := l.byKey[IdentityKey(id)]
	return e, ok
}

// Certificate tells whether a certificate of that serial number and identity is
// revoked, by one or the other.
func (l *List) Certificate(serial, id string) (Entry, bool) {
	if e, ok := l.byKey[CertificateKey(serial)]; ok {
		return e, true
	}
	return l.Identity(id)
}

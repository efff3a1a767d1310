package acme

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/writ-mesh/writ/ca/ledger"
)

const (
	// unusedAccount is how long an account without an order or a certificate is kept.
	unusedAccount = 7 * 24 * time.Hour
	// oldOrder is how long an order is kept after it expired.
	oldOrder = time.Hour
	// sweepEvery is how often it is looked for what to forget.
	sweepEvery = time.Minute
	// maxForgotten bounds how much is forgotten in one change.
	maxForgotten = 100
)

// index knows how many documents there are, whose they are and when they can be
// forgotten. It follows the ledger and may be a moment behind.
type index struct {
	mu     sync.Mutex
	docs   map[string]entry
	counts map[string]count // by account
	// externals are how many accounts each external account has.
	externals map[string]int
	total     count
}

// movedKind is the kind of what leads from a key to its account, which goes after the
// account.
const movedKind = "moved"

type entry struct {
	kind    string // the prefix, or movedKind
	account string
	// external is that of an account.
	external string
	version  uint64
	open     bool
	// end is when it can be forgotten, of an account if it is unused.
	end time.Time
}

// count is how many documents somebody has.
type count struct{ accounts, orders, open, certificates int }

func newIndex() *index {
	return &index{docs: map[string]entry{}, counts: map[string]count{}, externals: map[string]int{}}
}

// take notes what changed; all says that there are no other documents. What cannot be
// read is left out, and its error returned.
func (x *index) take(u ledger.Update, all bool) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if all {
		clear(x.docs)
		clear(x.counts)
		clear(x.externals)
		x.total = count{}
	}
	var errs []error
	for _, d := range u.Put {
		x.drop(d.Key)
		e, err := newEntry(d)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		x.docs[d.Key] = e
		x.add(e, 1)
	}
	for _, key := range u.Deleted {
		x.drop(key)
	}
	return errors.Join(errs...)
}

func (x *index) drop(key string) {
	if e, ok := x.docs[key]; ok {
		x.add(e, -1)
		delete(x.docs, key)
	}
}

func (x *index) add(e entry, n int) {
	c := x.counts[e.account]
	for _, c := range []*count{&c, &x.total} {
		switch e.kind {
		case accountPrefix:
			c.accounts += n
		case orderPrefix:
			c.orders += n
			if e.open {
				c.open += n
			}
		case certificatePrefix:
			c.certificates += n
		}
	}
	if e.kind == accountPrefix {
		if x.externals[e.external] += n; x.externals[e.external] == 0 {
			delete(x.externals, e.external)
		}
	}
	if c == (count{}) {
		delete(x.counts, e.account)
	} else {
		x.counts[e.account] = c
	}
}

func newEntry(d ledger.Document) (entry, error) {
	e := entry{version: d.Version}
	switch {
	case strings.HasPrefix(d.Key, accountPrefix):
		var a account
		if err := read(d, &a); err != nil {
			return entry{}, err
		}
		if a.Moved != "" {
			e.kind, e.account = movedKind, a.Moved
			break
		}
		e.kind, e.account, e.external, e.end = accountPrefix, strings.TrimPrefix(d.Key, accountPrefix), a.External, a.Created.Add(unusedAccount)
	case strings.HasPrefix(d.Key, orderPrefix):
		var o order
		if err := read(d, &o); err != nil {
			return entry{}, err
		}
		e.kind, e.account, e.open, e.end = orderPrefix, o.Account, o.open(), o.Expires.Add(oldOrder)
	case strings.HasPrefix(d.Key, certificatePrefix):
		var c certificate
		if err := read(d, &c); err != nil {
			return entry{}, err
		}
		e.kind, e.account, e.end = certificatePrefix, c.Account, c.NotAfter
	case strings.HasPrefix(d.Key, noncePrefix):
		at, err := time.Parse(time.RFC3339, string(d.Value))
		if err != nil {
			return entry{}, fmt.Errorf("the ledger's document %s: %w", d.Key, err)
		}
		e.kind, e.end = noncePrefix, at.Add(nonceLife+2*nonceSkew)
	}
	return e, nil
}

// of tells how many documents an account has, and how many all have.
func (x *index) of(account string) (own, total count) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.counts[account], x.total
}

// accounts tells how many accounts there are, and how many of an external account.
func (x *index) accounts(external string) (own, total int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.externals[external], x.total.accounts
}

// orders are the IDs of the orders of an account, sorted.
func (x *index) orders(account string) []string {
	x.mu.Lock()
	defer x.mu.Unlock()
	var out []string
	for key, e := range x.docs {
		if e.kind == orderPrefix && e.account == account {
			out = append(out, strings.TrimPrefix(key, orderPrefix))
		}
	}
	slices.Sort(out)
	return out
}

// due gives documents that can be forgotten, the oldest first, with their versions.
func (x *index) due(now time.Time) map[string]uint64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	var keys []string
	for key, e := range x.docs {
		if e.kind == "" || now.Before(e.end) {
			continue
		}
		if c := x.counts[e.account]; e.kind == accountPrefix && c.orders+c.certificates > 0 {
			continue
		}
		if _, there := x.docs[accountPrefix+e.account]; e.kind == movedKind && there {
			continue
		}
		keys = append(keys, key)
	}
	slices.SortFunc(keys, func(a, b string) int {
		return cmp.Or(x.docs[a].end.Compare(x.docs[b].end), strings.Compare(a, b))
	})
	out := make(map[string]uint64)
	for _, key := range keys[:min(len(keys), maxForgotten)] {
		out[key] = x.docs[key].version
	}
	return out
}

// sweep forgets what is over until ctx ends.
func (d *database) sweep(ctx context.Context) error {
	for {
		wait := sweepEvery + mathrand.N(sweepEvery/2) // of several authorities mostly one does it
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
		if err := d.forget(ctx, d.now()); err != nil && ctx.Err() == nil {
			d.log.WarnContext(ctx, "what ACME clients are done with stays in the ledger for now", slog.Any("error", err))
		}
	}
}

func (d *database) forget(ctx context.Context, now time.Time) error {
	due := d.index.due(now)
	if len(due) == 0 {
		return nil
	}
	c := ledger.Change{If: due, Entry: d.entry("forgotten", "", nil)}
	for key := range due {
		c.Delete = append(c.Delete, key)
	}
	_, err := d.store.Commit(ctx, c)
	if errors.Is(err, ledger.ErrConflict) {
		return nil // another authority did, or it is used again
	}
	return err
}

// sharedNonceKey gives the key that all authorities over this ledger authenticate
// nonces with. It is a secret of little worth, so it may be in the ledger: whoever
// has it can make nonces, of which everybody gets as many as he likes, and still
// cannot use one twice or sign with an account's key.
func sharedNonceKey(ctx context.Context, store ledger.Store, e ledger.Entry) ([]byte, error) {
	for {
		doc, err := store.Get(ctx, nonceKey)
		if err == nil {
			if len(doc.Value) != 32 {
				return nil, fmt.Errorf("the ledger's document %s has %d bytes, want 32", nonceKey, len(doc.Value))
			}
			return doc.Value, nil
		}
		if !errors.Is(err, ledger.ErrNoDocument) {
			return nil, err
		}
		key := make([]byte, 32)
		_, _ = rand.Read(key) // never fails
		_, err = store.Commit(ctx, ledger.Change{If: map[string]uint64{nonceKey: 0}, Put: map[string][]byte{nonceKey: key}, Entry: e})
		if err != nil && !errors.Is(err, ledger.ErrConflict) {
			return nil, err
		}
	}
}

package ca

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"

	"github.com/writ-mesh/writ/ca/jwtsvid"
	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/ledger/ledgertest"
)

// published gives the IDs of the keys in the bundle.
func (a *Authority) published(t *testing.T) (ids map[string]bool, version uint64) {
	t.Helper()
	set, _ := a.keys.current()
	b, err := jwtbundle.Parse(td, set.jwks)
	if err != nil {
		t.Fatal(err)
	}
	ids = map[string]bool{}
	for id := range b.JWTAuthorities() {
		ids[id] = true
	}
	return ids, set.version
}

// TestReplicasShareTheKeys: authorities with one ledger have the keys of all in
// their bundles, with one number, and a private key leaves none of them.
func TestReplicasShareTheKeys(t *testing.T) {
	store := ledgertest.NewMemory()
	now := time.Now()
	clock := func() time.Time { return now }
	all := []*Authority{newAuthority(t, store, clock), newAuthority(t, store, clock), newAuthority(t, store, clock)}
	for _, a := range all {
		a.keys = newJWTBundle(a, true, 24*time.Hour)
		if err := a.keys.publish(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	publish := func() {
		t.Helper()
		for range 2 {
			for _, a := range all {
				if err := a.keys.publish(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	publish()
	var last uint64
	for i, a := range all {
		ids, version := a.published(t)
		if i > 0 && version != last {
			t.Errorf("the number is %d and %d", last, version)
		}
		last = version
		for _, b := range all {
			if own, _ := b.jwt.Current(); len(ids) != 3 || !ids[own.Active] {
				t.Errorf("authority %d has the keys %v", i, ids)
			}
		}
	}
	doc, err := store.Get(t.Context(), jwtKeysDocument)
	if err != nil {
		t.Fatal(err)
	}
	if s := string(doc.Value); len(s) == 0 || containsPrivate(s) {
		t.Errorf("the document is %s", s)
	}
	// Nothing is written while nothing changes.
	before, _ := store.Head(t.Context())
	publish()
	if after, _ := store.Head(t.Context()); after.Size != before.Size {
		t.Errorf("%d entries for nothing", after.Size-before.Size)
	}
	// One goes away for good: its key goes in time, and not before.
	gone, _ := all[2].jwt.Current()
	all = all[:2]
	for range 12 {
		now = now.Add(12 * time.Hour)
		for _, a := range all {
			if err := a.jwt.Step(t.Context(), now); err != nil {
				t.Fatal(err)
			}
		}
		publish()
		ids, version := all[0].published(t)
		if other, v := all[1].published(t); fmt.Sprint(other) != fmt.Sprint(ids) || v != version || v < last {
			t.Fatalf("%v with %d and %v with %d", ids, version, other, v)
		} else {
			last = v
		}
		for _, a := range all {
			if own, _ := a.jwt.Current(); !ids[own.Active] {
				t.Fatal("a key that signs is not published")
			}
		}
	}
	if ids, _ := all[0].published(t); ids[gone.Active] {
		t.Error("the key of an authority that is gone is still there")
	}
}

func containsPrivate(s string) bool {
	return strings.Contains(s, `"d":`) || strings.Contains(s, "pkcs8") || strings.Contains(s, "PRIVATE")
}

// TestKeysWithoutLedger: while nothing can be recorded the authority starts, with
// its keys in the bundle, and records them later.
func TestKeysWithoutLedger(t *testing.T) {
	memory := ledgertest.NewMemory()
	away := &brokenStore{Memory: memory, err: fmt.Errorf("full: %w", ledger.ErrUnavailable)}
	a := newAuthority(t, away, time.Now)
	a.keys = newJWTBundle(a, true, time.Hour)
	if err := a.keys.open(t.Context()); err != nil {
		t.Error(err)
	}
	if ids, _ := a.published(t); len(ids) != 1 {
		t.Errorf("keys %v", ids)
	}
	a.store = memory
	if err := a.keys.publish(t.Context()); err != nil {
		t.Fatal(err)
	}
	if ids, version := a.published(t); len(ids) != 1 || version != 1 {
		t.Errorf("keys %v with %d", ids, version)
	}
}

// racingStore lets somebody else change the document between reading and writing.
type racingStore struct {
	*ledgertest.Memory
	before func()
}

func (s *racingStore) Commit(ctx context.Context, c ledger.Change) (uint64, error) {
	if f := s.before; f != nil {
		s.before = nil
		f()
	}
	return s.Memory.Commit(ctx, c)
}

// TestRaceForTheDocument: of two who change it at the same time neither loses a
// key.
func TestRaceForTheDocument(t *testing.T) {
	store := &racingStore{Memory: ledgertest.NewMemory()}
	a, b := newAuthority(t, ledgertest.NewMemory(), time.Now), newAuthority(t, ledgertest.NewMemory(), time.Now)
	a.store, b.store = store, store.Memory
	a.keys, b.keys = newJWTBundle(a, true, time.Hour), newJWTBundle(b, true, time.Hour)
	store.before = func() {
		if err := b.keys.publish(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if err := a.keys.publish(t.Context()); err != nil || errors.Is(err, ledger.ErrConflict) {
		t.Fatal(err)
	}
	ids, _ := a.published(t)
	for _, x := range []*Authority{a, b} {
		if own, _ := x.jwt.Current(); !ids[own.Active] {
			t.Errorf("keys %v", ids)
		}
	}
}

// FuzzJWTDocument: whatever the document is, the bundle stays one that can be read.
func FuzzJWTDocument(f *testing.F) {
	f.Add([]byte(`{"version":1,"keys":[{"kid":"a","jwk":{"kty":"EC"},"until":"2026-01-01T00:00:00Z"}]}`))
	f.Add([]byte(`{"version":18446744073709551615,"keys":[{"jwk":null}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		store := ledgertest.NewMemory()
		if _, err := store.Commit(t.Context(), ledger.Change{Put: map[string][]byte{jwtKeysDocument: data}, Entry: ledger.Entry{Kind: ledger.Rotated}}); err != nil {
			t.Skip()
		}
		b := newJWTBundle(&Authority{store: store, now: time.Now}, true, time.Hour)
		d, _, err := b.load(t.Context())
		if err != nil {
			return
		}
		if err := b.adopt(b.merge(d, jwtsvid.Set{}, time.Now()), false); err != nil {
			return
		}
		set, _ := b.current()
		if _, err := jwtbundle.Parse(td, set.jwks); len(set.jwks) > 0 && err != nil {
			t.Errorf("%s: %v", set.jwks, err)
		}
	})
}

package ca

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/writ-mesh/writ/ca/jwtsvid"
	"github.com/writ-mesh/writ/ca/ledger"
)

const (
	// jwtKeysDocument has the public keys of JWT-SVIDs of all authorities that share a
	// ledger. Private ones are in the state directory of the authority that they
	// belong to, and nowhere else.
	jwtKeysDocument = "jwt/keys"
	// jwtKeysCheck is how often an authority looks after its keys in the document.
	jwtKeysCheck = 30 * time.Second
	// jwtKeysRetry is how long to wait after a failure.
	jwtKeysRetry = time.Second
	// maxJWTKeys bounds the keys in the document: three of each authority.
	maxJWTKeys = 256
)

// jwtDocument is the form of the document.
type jwtDocument struct {
	// Version rises with each change of the set.
	Version uint64   `json:"version"`
	Keys    []jwtKey `json:"keys"`
}

type jwtKey struct {
	ID  string          `json:"kid"`
	JWK json.RawMessage `json:"jwk"`
	// Until is when the key goes if its authority does not say otherwise.
	Until time.Time `json:"until"`
}

// jwtSet is what the bundle has of it.
type jwtSet struct {
	jwks    []byte
	version uint64
}

// jwtBundle keeps the keys of all authorities that share a ledger in the bundle. An
// authority alone has its own, without the ledger.
type jwtBundle struct {
	a *Authority
	// shared: there may be other authorities.
	shared bool
	life   time.Duration

	mu      sync.Mutex
	set     jwtSet
	changed chan struct{}
}

func newJWTBundle(a *Authority, shared bool, life time.Duration) *jwtBundle {
	return &jwtBundle{a: a, shared: shared, life: life, changed: make(chan struct{})}
}

// current returns the set and a channel that is closed when it is replaced.
func (b *jwtBundle) current() (jwtSet, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.set, b.changed
}

// open publishes the keys at start. While the ledger cannot record, they are in the
// bundle without it.
func (b *jwtBundle) open(ctx context.Context) error {
	err := b.publish(ctx)
	if err != nil && errors.Is(err, ledger.ErrUnavailable) {
		b.a.log.WarnContext(ctx, "keys of JWT-SVIDs are not in the ledger yet", slog.Any("error", err))
		return nil
	}
	return err
}

// publish brings the document in line with this authority's keys and the clock, and
// takes it over into the bundle.
func (b *jwtBundle) publish(ctx context.Context) error {
	for {
		own, _ := b.a.jwt.Current()
		if !b.shared {
			b.replace(jwtSet{jwks: own.JWKS, version: own.Version})
			return nil
		}
		old, version, err := b.load(ctx)
		if err != nil {
			return err
		}
		next := b.merge(old, own, b.a.now())
		if next.same(old) {
			return b.adopt(next, false)
		}
		err = b.save(ctx, next, version, own.Active)
		if errors.Is(err, ledger.ErrConflict) && ctx.Err() == nil {
			continue
		}
		if aerr := b.adopt(next, err != nil); aerr != nil {
			return aerr
		}
		return err
	}
}

func (b *jwtBundle) load(ctx context.Context) (d jwtDocument, version uint64, err error) {
	doc, err := b.a.store.Get(ctx, jwtKeysDocument)
	switch {
	case errors.Is(err, ledger.ErrNoDocument):
		return d, 0, nil
	case err != nil:
		return d, 0, fmt.Errorf("keys of JWT-SVIDs: %w", err)
	}
	if err := json.Unmarshal(doc.Value, &d); err != nil {
		return d, 0, fmt.Errorf("the ledger's document %s cannot be read; restore the ledger from a backup: %w", jwtKeysDocument, err)
	}
	return d, doc.Version, nil
}

func (b *jwtBundle) save(ctx context.Context, d jwtDocument, version uint64, active string) error {
	data, err := json.Marshal(d)
	if err != nil {
		return err
	}
	_, err = b.a.store.Commit(ctx, ledger.Change{
		If: map[string]uint64{jwtKeysDocument: version}, Put: map[string][]byte{jwtKeysDocument: data},
		Entry: ledger.Entry{
			Kind: ledger.Rotated, Time: b.a.now().UTC(), Actor: selfActor, Subject: active, Detail: map[string]string{"step": "jwt keys"},
		},
	})
	if err != nil {
		return fmt.Errorf("keys of JWT-SVIDs: %w", err)
	}
	return nil
}

// merge gives what the document should be. An authority that does not come back
// leaves keys there that others drop in time.
func (b *jwtBundle) merge(old jwtDocument, set jwtsvid.Set, now time.Time) jwtDocument {
	own := set.Keys
	next := jwtDocument{Version: old.Version}
	mine := func(id string) int {
		return slices.IndexFunc(own, func(k jwtsvid.Published) bool { return k.ID == id })
	}
	for _, k := range old.Keys {
		if slices.Contains(set.Dropped, k.ID) {
			continue
		}
		if i := mine(k.ID); i >= 0 {
			next.Keys = append(next.Keys, jwtKey{ID: k.ID, JWK: own[i].JWK, Until: b.until(own[i], k.Until, now)})
		} else if now.Before(k.Until) {
			next.Keys = append(next.Keys, k)
		}
	}
	for _, k := range own {
		if !slices.ContainsFunc(old.Keys, func(o jwtKey) bool { return o.ID == k.ID }) && len(next.Keys) < maxJWTKeys {
			next.Keys = append(next.Keys, jwtKey{ID: k.ID, JWK: k.JWK, Until: b.until(k, time.Time{}, now)})
		}
	}
	if !slices.EqualFunc(old.Keys, next.Keys, func(x, y jwtKey) bool { return x.ID == y.ID && bytes.Equal(x.JWK, y.JWK) }) {
		// The authority may have been alone before.
		next.Version = max(old.Version+1, set.Version)
	}
	return next
}

// until is when others may drop a key. That of a key that may still sign is put off
// long before it comes.
func (b *jwtBundle) until(k jwtsvid.Published, was, now time.Time) time.Time {
	switch {
	case !k.Until.IsZero():
		return k.Until.UTC()
	case was.Sub(now) > 2*b.life:
		return was
	}
	return now.Add(4 * b.life).UTC()
}

func (d jwtDocument) same(o jwtDocument) bool {
	return slices.EqualFunc(d.Keys, o.Keys, func(x, y jwtKey) bool {
		return x.ID == y.ID && bytes.Equal(x.JWK, y.JWK) && x.Until.Equal(y.Until)
	})
}

// adopt takes a document into the bundle. What is ahead of the ledger has the number
// of before, until it is recorded.
func (b *jwtBundle) adopt(d jwtDocument, ahead bool) error {
	keys := make([]jwtsvid.Published, 0, len(d.Keys))
	for _, k := range d.Keys {
		keys = append(keys, jwtsvid.Published{ID: k.ID, JWK: k.JWK})
	}
	jwks, err := jwtsvid.JWKS(keys)
	if err != nil {
		return err
	}
	version := d.Version
	if ahead {
		set, _ := b.current()
		version = set.version
	}
	b.replace(jwtSet{jwks: jwks, version: version})
	return nil
}

// replace puts a set into the bundle, unless it is an older one.
func (b *jwtBundle) replace(set jwtSet) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if set.version < b.set.version || set.version == b.set.version && bytes.Equal(set.jwks, b.set.jwks) {
		return
	}
	b.set = set
	close(b.changed)
	b.changed = make(chan struct{})
}

// run keeps the document and the bundle until ctx ends.
func (b *jwtBundle) run(ctx context.Context) error {
	elsewhere := make(chan struct{}, 1)
	if b.shared {
		go b.watch(ctx, elsewhere)
	}
	for {
		_, own := b.a.jwt.Current()
		wait := jwtKeysCheck
		if err := b.publish(ctx); err != nil && ctx.Err() == nil {
			wait = jwtKeysRetry
			b.a.log.WarnContext(ctx, "keys of JWT-SVIDs are not published, will try again", slog.Any("error", err))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-own:
		case <-elsewhere:
		case <-time.After(wait):
		}
	}
}

// watch says when the document was changed, until ctx ends.
func (b *jwtBundle) watch(ctx context.Context, changed chan<- struct{}) {
	_ = watchDocuments(ctx, b.a.store, jwtKeysDocument, jwtKeysRetry, jwtKeysRetry, func(error) {}, func(ledger.Update, bool) error {
		select {
		case changed <- struct{}{}:
		default:
		}
		return nil
	})
}

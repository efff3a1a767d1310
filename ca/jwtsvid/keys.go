package jwtsvid

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/writ-mesh/writ/internal/service"
)

const (
	// maxKeys bounds a set: one signs, one is prepared, and of those that have been
	// retired each is dropped within the life of a token, which is shorter than
	// that of a key.
	maxKeys = 8
	// checkEvery is how often the schedule is looked at, at least.
	checkEvery = 30 * time.Second
	// leeway is what verifiers may give an expired token: go-spiffe and most others
	// allow a minute.
	leeway = time.Minute
)

// Storage keeps the keys. It holds private keys: nobody else may read it.
type Storage interface {
	// Load returns what was saved last, or an error that wraps fs.ErrNotExist.
	Load() ([]byte, error)
	// Save replaces it, all or nothing and durably.
	Save(data []byte) error
}

// Config is what Open needs.
type Config struct {
	Storage Storage
	// Life is how long a key signs.
	Life time.Duration
	// MaxTTL is the longest life of a token; a key stays published for so long after
	// its last token.
	MaxTTL time.Duration
	Log    *slog.Logger
}

// lead is how long a key is published before it signs.
func (c Config) lead() time.Duration { return c.Life / 2 }

// Keys are the JWT authorities of a trust domain. They are safe for concurrent
// use.
type Keys struct {
	cfg Config

	// stepping is held while a state is made of the one before.
	stepping sync.Mutex

	mu    sync.Mutex
	state state
	// active is the signer of the key that signs.
	active jose.Signer
	now    Set
	// changed is closed and replaced when now is.
	changed chan struct{}
}

// Set is what is published.
type Set struct {
	// JWKS is a JSON Web Key Set (RFC 7517), oldest key first.
	JWKS []byte
	// Version rises with every change, over restarts as well.
	Version uint64
	// Active is the ID of the key that signs.
	Active string
	// Keys are those of JWKS.
	Keys []Published
	// Dropped are the IDs of keys that were taken out before their time.
	Dropped []string
}

// Published is a key of a Set.
type Published struct {
	ID string
	// JWK is the public key (RFC 7517).
	JWK []byte
	// Until is when no token of its is valid any more; zero if it may still sign.
	Until time.Time
}

// state is the stored form.
type state struct {
	// Version is that of the published set.
	Version uint64 `json:"version"`
	Keys    []key  `json:"keys"`
	// Dropped are the IDs of keys that Drop took out.
	Dropped []string `json:"dropped,omitempty"`
}

// key is one authority. Times that have not come are zero.
type key struct {
	ID string `json:"kid"`
	// PKCS8 is the private key.
	PKCS8     []byte    `json:"pkcs8"`
	Prepared  time.Time `json:"prepared"`
	Activated time.Time `json:"activated,omitzero"`
	Retired   time.Time `json:"retired,omitzero"`
	// Longest is the longest life of a token that it may have signed: the
	// configuration may change while such a token is valid.
	Longest time.Duration `json:"longest_ns"`

	private *ecdsa.PrivateKey
}

// Open takes up the keys of the storage, or makes the first one. What is stored
// and damaged is an error: new keys would make every token invalid.
func Open(ctx context.Context, cfg Config, now time.Time) (*Keys, error) {
	k := &Keys{cfg: cfg, changed: make(chan struct{})}
	data, err := cfg.Storage.Load()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		first, err := newKey(now)
		if err != nil {
			return nil, err
		}
		first.Activated, first.Longest = now.UTC(), cfg.MaxTTL
		if err := k.save(ctx, state{Version: 1, Keys: []key{first}}); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, fmt.Errorf("keys of JWT-SVIDs: %w", err)
	default:
		st, err := parse(data)
		if err != nil {
			return nil, fmt.Errorf("%v is damaged: keys of JWT-SVIDs: %w; restore it from a backup, or remove it, which makes the tokens that are in use invalid", cfg.Storage, err)
		}
		if err := k.use(st); err != nil {
			return nil, err
		}
	}
	return k, k.Step(ctx, now)
}

// Current returns what is published, and a channel that is closed when it is
// replaced.
func (k *Keys) Current() (Set, <-chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.now, k.changed
}

// Run keeps the schedule until ctx ends. A step that fails is tried again: the key
// at hand goes on signing.
func (k *Keys) Run(ctx context.Context) error {
	every := min(checkEvery, max(k.cfg.Life/20, time.Second))
	return service.Every(ctx, every, func(time.Time) {
		if err := k.Step(ctx, time.Now()); err != nil {
			k.cfg.Log.ErrorContext(ctx, "the keys of JWT-SVIDs are not rotated, the old ones go on", slog.Any("error", err))
		}
	})
}

// Step does what the schedule asks for at a time. What it changes is durable
// before it is published.
func (k *Keys) Step(ctx context.Context, now time.Time) error {
	k.stepping.Lock()
	defer k.stepping.Unlock()
	k.mu.Lock()
	old := k.state
	k.mu.Unlock()
	next, err := k.cfg.step(old, now)
	if err != nil || next.Version == old.Version && slices.EqualFunc(next.Keys, old.Keys, key.same) {
		return err
	}
	return k.save(ctx, next)
}

// step computes what follows a state at a time.
func (c Config) step(old state, now time.Time) (state, error) {
	next := state{Version: old.Version, Keys: slices.Clone(old.Keys), Dropped: old.Dropped}
	active, prepared := -1, -1
	for i, k := range next.Keys {
		switch {
		case !k.Retired.IsZero():
		case !k.Activated.IsZero():
			active = i
		default:
			prepared = i
		}
	}
	if active < 0 {
		return state{}, errors.New("no key signs")
	}
	next.Keys[active].Longest = max(next.Keys[active].Longest, c.MaxTTL)
	end := next.Keys[active].Activated.Add(c.Life)
	if prepared < 0 && !now.Before(end.Add(-c.lead())) {
		k, err := newKey(now)
		if err != nil {
			return state{}, err
		}
		next.Keys, next.Version = append(next.Keys, k), next.Version+1
	}
	if prepared >= 0 && !now.Before(end) && !now.Before(next.Keys[prepared].Prepared.Add(c.lead())) {
		next.Keys[active].Retired, next.Keys[prepared].Activated = now.UTC(), now.UTC()
		next.Keys[prepared].Longest = c.MaxTTL
		next.Version++
	}
	gone := func(k key) bool { return !k.Retired.IsZero() && !now.Before(k.until()) }
	if slices.ContainsFunc(next.Keys, gone) {
		next.Keys, next.Version = slices.DeleteFunc(next.Keys, gone), next.Version+1
	}
	return next, nil
}

func (k *Keys) save(ctx context.Context, st state) error {
	data, err := json.Marshal(st)
	if err != nil {
		return err
	}
	if err := k.cfg.Storage.Save(data); err != nil {
		return fmt.Errorf("keys of JWT-SVIDs: %w", err)
	}
	if err := k.use(st); err != nil {
		return err
	}
	set, _ := k.Current()
	k.cfg.Log.InfoContext(ctx, "keys of JWT-SVIDs", slog.Int("published", len(st.Keys)), slog.String("signs", set.Active), slog.Uint64("version", set.Version))
	return nil
}

// use publishes a state.
func (k *Keys) use(st state) error {
	var published []Published
	var active *key
	for i, key := range st.Keys {
		data, err := json.Marshal(jose.JSONWebKey{Key: key.private.Public(), KeyID: key.ID, Algorithm: string(jose.ES256)})
		if err != nil {
			return fmt.Errorf("keys of JWT-SVIDs: %w", err)
		}
		published = append(published, Published{ID: key.ID, JWK: data, Until: key.until()})
		if !key.Activated.IsZero() && key.Retired.IsZero() {
			active = &st.Keys[i]
		}
	}
	if active == nil {
		return errors.New("keys of JWT-SVIDs: no key signs")
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: active.private, KeyID: active.ID}},
		(&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return fmt.Errorf("keys of JWT-SVIDs: %w", err)
	}
	data, err := JWKS(published)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.state, k.active, k.now = st, signer, Set{JWKS: data, Version: st.Version, Active: active.ID, Keys: published, Dropped: st.Dropped}
	close(k.changed)
	k.changed = make(chan struct{})
	return nil
}

// until is when no token of a key that was retired is valid any more.
func (k key) until() time.Time {
	if k.Retired.IsZero() {
		return time.Time{}
	}
	return k.Retired.Add(k.Longest + leeway)
}

// JWKS makes a JSON Web Key Set of keys, in their order.
func JWKS(keys []Published) ([]byte, error) {
	set := struct {
		Keys []json.RawMessage `json:"keys"`
	}{Keys: []json.RawMessage{}}
	for _, k := range keys {
		set.Keys = append(set.Keys, k.JWK)
	}
	data, err := json.Marshal(set)
	if err != nil {
		return nil, fmt.Errorf("keys of JWT-SVIDs: %w", err)
	}
	return data, nil
}

// newKey makes a key that is prepared now. Its ID is the SHA-256 of the public key.
func newKey(now time.Time) (key, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return key{}, fmt.Errorf("make a key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return key{}, fmt.Errorf("make a key: %w", err)
	}
	id, err := keyID(private)
	return key{ID: id, PKCS8: der, Prepared: now.UTC(), private: private}, err
}

func keyID(private *ecdsa.PrivateKey) (string, error) {
	public, err := x509.MarshalPKIXPublicKey(private.Public())
	if err != nil {
		return "", fmt.Errorf("key id: %w", err)
	}
	sum := sha256.Sum256(public)
	return hex.EncodeToString(sum[:16]), nil
}

// parse reads the stored form and checks that it makes sense.
func parse(data []byte) (state, error) {
	var st state
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&st); err != nil {
		return state{}, err
	}
	if len(st.Keys) == 0 || len(st.Keys) > maxKeys {
		return state{}, fmt.Errorf("%d keys: want 1 to %d", len(st.Keys), maxKeys)
	}
	active, prepared := 0, 0
	for i := range st.Keys {
		k := &st.Keys[i]
		if err := k.read(); err != nil {
			return state{}, fmt.Errorf("key %q: %w", k.ID, err)
		}
		switch {
		case k.Activated.IsZero() && !k.Retired.IsZero():
			return state{}, fmt.Errorf("key %q was retired and never signed", k.ID)
		case k.Activated.IsZero():
			prepared++
		case k.Retired.IsZero():
			active++
		}
	}
	if active != 1 || prepared > 1 {
		return state{}, fmt.Errorf("%d keys sign and %d are prepared: want one, and at most one", active, prepared)
	}
	return st, nil
}

func (k *key) read() error {
	private, err := x509.ParsePKCS8PrivateKey(k.PKCS8)
	if err != nil {
		return err
	}
	ec, ok := private.(*ecdsa.PrivateKey)
	if !ok || ec.Curve != elliptic.P256() {
		return errors.New("it is no P-256 key")
	}
	want, err := keyID(ec)
	if err != nil {
		return err
	}
	if k.ID != want {
		return errors.New("its ID is not that of its key")
	}
	k.private = ec
	return nil
}

func (k key) same(o key) bool {
	return k.ID == o.ID && k.Activated.Equal(o.Activated) && k.Retired.Equal(o.Retired) && k.Longest == o.Longest
}

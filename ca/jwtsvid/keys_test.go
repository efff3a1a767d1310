package jwtsvid_test

import (
	"bytes"
	"errors"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	gojwtsvid "github.com/spiffe/go-spiffe/v2/svid/jwtsvid"

	"github.com/writ-mesh/writ/ca/jwtsvid"
	"github.com/writ-mesh/writ/internal/proctest"
)

var (
	td      = spiffeid.RequireTrustDomainFromString("example.org")
	reviews = spiffeid.RequireFromString("spiffe://example.org/ns/default/sa/reviews")
)

const (
	life   = 24 * time.Hour
	maxTTL = time.Hour
)

// memory is a storage that can fail.
type memory struct {
	data  []byte
	fails error
	saves int
}

func (m *memory) Load() ([]byte, error) {
	if m.data == nil {
		return nil, fs.ErrNotExist
	}
	return m.data, nil
}

func (m *memory) Save(data []byte) error {
	if m.fails != nil {
		return m.fails
	}
	m.saves++
	m.data = bytes.Clone(data)
	return nil
}

func config(s jwtsvid.Storage) jwtsvid.Config {
	return jwtsvid.Config{Storage: s, Life: life, MaxTTL: maxTTL, Log: slog.New(slog.DiscardHandler)}
}

func open(t testing.TB, s jwtsvid.Storage, now time.Time) *jwtsvid.Keys {
	t.Helper()
	k, err := jwtsvid.Open(t.Context(), config(s), now)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// published gives the IDs of the published keys.
func published(t testing.TB, k *jwtsvid.Keys) map[string]bool {
	t.Helper()
	set, _ := k.Current()
	if bytes.Contains(set.JWKS, []byte(`"d"`)) {
		t.Fatal("a private key is published")
	}
	b, err := jwtbundle.Parse(td, set.JWKS)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]bool{}
	for id := range b.JWTAuthorities() {
		out[id] = true
	}
	if !out[set.Active] {
		t.Fatal("the key that signs is not published")
	}
	return out
}

// TestSchedule lives through a year with restarts, stops of up to a week and a
// storage that fails at times, and looks at every signature.
func TestSchedule(t *testing.T) {
	years := uint64(6)
	if proctest.Few() {
		years = 2
	}
	for seed := range years {
		r := rand.New(rand.NewPCG(seed, 0))
		start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		now, store := start, new(memory)
		k := open(t, store, now)
		seen := map[string]time.Time{} // when a key was first published
		type token struct {
			key    string
			expiry time.Time
		}
		var valid []token
		used := map[string]bool{}
		look := func() map[string]bool {
			keys := published(t, k)
			for id := range keys {
				if _, ok := seen[id]; !ok {
					seen[id] = now
				}
			}
			return keys
		}
		var version uint64
		for now.Before(start.Add(365 * 24 * time.Hour)) {
			switch r.IntN(20) {
			case 0:
				now = now.Add(time.Duration(r.Int64N(int64(7 * 24 * time.Hour))))
				store.fails = nil
				k = open(t, store, now)
				look()
			case 1:
				store.fails = errors.New("full")
			default:
				store.fails = nil
			}
			now = now.Add(time.Duration(r.Int64N(int64(2 * time.Hour))))
			err := k.Step(t.Context(), now)
			if err != nil && store.fails == nil {
				t.Fatal(err)
			}
			keys := look()
			if len(keys) > 3 {
				t.Fatalf("seed %d: %d keys", seed, len(keys))
			}
			tok, err := k.Sign(reviews, []string{"a"}, time.Duration(1+r.Int64N(int64(maxTTL))), now)
			if err != nil {
				t.Fatal(err)
			}
			if now.Sub(seen[tok.KeyID]) < life/2 && len(used) > 0 && !used[tok.KeyID] {
				t.Fatalf("seed %d: a key signs %s after it was published", seed, now.Sub(seen[tok.KeyID]))
			}
			used[tok.KeyID] = true
			valid = append(valid, token{tok.KeyID, tok.Expiry})
			for _, v := range valid {
				if now.Before(v.expiry) && !keys[v.key] {
					t.Fatalf("seed %d: the key of a valid token is not published", seed)
				}
			}
			valid = valid[max(0, len(valid)-50):]
			set, _ := k.Current()
			if set.Version < version {
				t.Fatalf("seed %d: version %d after %d", seed, set.Version, version)
			}
			version = set.Version
		}
		if len(used) < 50 {
			t.Errorf("seed %d: %d keys in a year", seed, len(used))
		}
	}
}

// TestRestartsChangeNothing: the set is the same, byte by byte, after a hundred
// starts, and tokens from before are valid.
func TestRestartsChangeNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "jwt-keys.json")
	now := time.Now()
	k := open(t, jwtsvid.File(path), now)
	first, _ := k.Current()
	tok, err := k.Sign(reviews, []string{"a"}, time.Minute, now)
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		k = open(t, jwtsvid.File(path), now)
		if set, _ := k.Current(); !bytes.Equal(set.JWKS, first.JWKS) || set.Version != first.Version || set.Active != first.Active {
			t.Fatalf("the set was %s and is %s", first.JWKS, set.JWKS)
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", info.Mode(), err)
	}
	set, _ := k.Current()
	b, err := jwtbundle.Parse(td, set.JWKS)
	if err != nil {
		t.Fatal(err)
	}
	svid, err := gojwtsvid.ParseAndValidate(tok.Compact, b, []string{"a"})
	if err != nil || svid.ID != reviews || !svid.Expiry.Equal(tok.Expiry) {
		t.Fatalf("%v, %v", svid, err)
	}
	if _, err := gojwtsvid.ParseAndValidate(tok.Compact, b, []string{"b"}); err == nil {
		t.Fatal("a token is good for another audience")
	}
}

// TestFailedSavePublishesNothing: what is not durable does not sign.
func TestFailedSavePublishesNothing(t *testing.T) {
	store := new(memory)
	now := time.Now()
	k := open(t, store, now)
	before, changed := k.Current()
	store.fails = errors.New("full")
	if err := k.Step(t.Context(), now.Add(life)); err == nil {
		t.Fatal("no error")
	}
	if after, _ := k.Current(); !bytes.Equal(after.JWKS, before.JWKS) {
		t.Fatal("a key is published that is not saved")
	}
	store.fails = nil
	if err := k.Step(t.Context(), now.Add(life)); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	default:
		t.Fatal("nobody was told of the new set")
	}
	if n := len(published(t, k)); n != 2 {
		t.Fatalf("%d keys", n)
	}
	store = &memory{fails: errors.New("full")}
	if _, err := jwtsvid.Open(t.Context(), config(store), now); err == nil {
		t.Fatal("a key that cannot be saved is used")
	}
}

// TestShorterConfiguration: a key stays for the tokens that it signed under the
// configuration before.
func TestShorterConfiguration(t *testing.T) {
	store := new(memory)
	now := time.Now()
	k := open(t, store, now)
	old, _ := k.Current()
	now = now.Add(life)
	if err := k.Step(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	cfg := config(store)
	cfg.MaxTTL = time.Minute
	now = now.Add(life)
	k, err := jwtsvid.Open(t.Context(), cfg, now)
	if err != nil {
		t.Fatal(err)
	}
	if set, _ := k.Current(); set.Active == old.Active {
		t.Fatal("the key was not retired")
	}
	if err := k.Step(t.Context(), now.Add(maxTTL)); err != nil {
		t.Fatal(err)
	}
	if !published(t, k)[old.Active] {
		t.Fatal("the key went before its tokens")
	}
	if err := k.Step(t.Context(), now.Add(maxTTL+2*time.Minute)); err != nil {
		t.Fatal(err)
	}
	if published(t, k)[old.Active] {
		t.Fatal("the key is still published")
	}
}

func TestDamageIsAnError(t *testing.T) {
	store := new(memory)
	open(t, store, time.Now())
	whole := string(store.data)
	for name, data := range map[string]string{
		"empty":        "",
		"cut":          whole[:len(whole)/2],
		"no keys":      `{"version":1,"keys":[]}`,
		"unknown":      strings.Replace(whole, `"version"`, `"verzion"`, 1),
		"other kid":    strings.Replace(whole, `"kid":"`, `"kid":"0`, 1),
		"none signs":   strings.Replace(whole, `"activated"`, `"retired"`, 1),
		"no key":       strings.Replace(whole, `"pkcs8":"`, `"pkcs8":"AAAA`, 1),
		"two sign":     strings.Replace(whole, `"keys":[`, `"keys":[`+whole[strings.Index(whole, `[`)+1:len(whole)-2]+`,`, 1),
		"many prepare": strings.Replace(whole, `"keys":[`, `"keys":[`+strings.Repeat(`{},`, 20), 1),
	} {
		if _, err := jwtsvid.Open(t.Context(), config(&memory{data: []byte(data)}), time.Now()); err == nil {
			t.Errorf("%s: taken", name)
		} else if strings.Contains(err.Error(), "MIG") {
			t.Errorf("%s: the error shows the key: %v", name, err)
		}
	}
	path := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(path, store.data, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := jwtsvid.Open(t.Context(), config(jwtsvid.File(path)), time.Now()); err == nil || !strings.Contains(err.Error(), "0640") {
		t.Errorf("a file for others to read: %v", err)
	}
}

func FuzzOpen(f *testing.F) {
	store := new(memory)
	open(f, store, time.Now())
	f.Add(store.data)
	f.Add([]byte(`{"version":1,"keys":[{}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		k, err := jwtsvid.Open(t.Context(), config(&memory{data: append([]byte{}, data...)}), time.Now())
		if err != nil {
			return
		}
		published(t, k)
	})
}

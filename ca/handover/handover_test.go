package handover_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/writ-mesh/writ/ca/handover"
)

const (
	td     = "example.org"
	rootID = "0a0b"
)

var now = time.Date(2026, 11, 21, 12, 0, 0, 123, time.UTC)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func signer(t *testing.T) (crypto.Signer, *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	return key, &x509.Certificate{PublicKey: key.Public()}
}

// replica is one that is announced, with its pairs.
func replica(t *testing.T, key crypto.Signer) (*handover.Pairs, handover.Replica) {
	t.Helper()
	pairs, err := handover.Open(filepath.Join(t.TempDir(), handover.File))
	must(t, err)
	public, _, err := pairs.Renew()
	must(t, err)
	r, err := handover.Announce(td, "host-1", rootID, key, public, now)
	must(t, err)
	return pairs, r
}

func text(t *testing.T, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	must(t, err)
	return data
}

// Whatever kind of key the root has, its holders' announcements are believed.
func TestAnnouncement(t *testing.T) {
	p256, _ := signer(t)
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	r2048, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	for _, key := range []crypto.Signer{p256, ed, r2048} {
		cert := &x509.Certificate{PublicKey: key.Public()}
		_, r := replica(t, key)
		got, err := handover.ParseReplica(text(t, r), td, rootID, cert)
		if err != nil || got.ID != r.ID || got.Name() != "replica "+r.ID+" on host-1" {
			t.Errorf("%T: got %+v, %v", key, got, err)
		}
	}
}

// Somebody who may write to the ledger and has no key of the root is given nothing.
func TestForgedAnnouncement(t *testing.T) {
	key, cert := signer(t)
	thief, _ := signer(t)
	_, good := replica(t, key)
	_, other := replica(t, thief)
	change := func(f func(*handover.Replica)) []byte { r := good; f(&r); return text(t, r) }
	for name, tc := range map[string]struct {
		data       []byte
		td, rootID string
	}{
		"another key of a root": {text(t, other), td, rootID},
		"another public key":    {change(func(r *handover.Replica) { r.Key = other.Key }), td, rootID},
		"and its id":            {change(func(r *handover.Replica) { r.Key, r.ID = other.Key, other.ID }), td, rootID},
		"another host":          {change(func(r *handover.Replica) { r.Host = "host-2" }), td, rootID},
		"another time":          {change(func(r *handover.Replica) { r.Since = now.Add(1) }), td, rootID},
		"root of before":        {text(t, good), td, "0c0d"},
		"another root named":    {change(func(r *handover.Replica) { r.Root = "0c0d" }), td, "0c0d"},
		"another trust domain":  {text(t, good), "example.com", rootID},
		"no proof":              {change(func(r *handover.Replica) { r.Proof = nil }), td, rootID},
		"no key":                {change(func(r *handover.Replica) { r.Key = nil }), td, rootID},
		"nothing":               {nil, td, rootID},
	} {
		if r, err := handover.ParseReplica(tc.data, tc.td, tc.rootID, cert); err == nil {
			t.Errorf("%s: %+v is believed", name, r)
		}
	}
	if _, err := handover.ParseReplica(text(t, good), td, rootID, cert); err != nil {
		t.Error(err)
	}
}

// A parcel is opened by those that it is for, and for what it is.
func TestParcel(t *testing.T) {
	key, _ := signer(t)
	one, r1 := replica(t, key)
	two, r2 := replica(t, key)
	outsider, _ := replica(t, key)
	secret := []byte("-----BEGIN PRIVATE KEY-----")
	p, err := handover.Seal(td, rootID, secret, []handover.Replica{r1, r2})
	must(t, err)
	data := text(t, p)
	if bytes.Contains(data, secret[5:10]) {
		t.Error("the key is in the parcel")
	}
	for _, pairs := range []*handover.Pairs{one, two} {
		if got, err := pairs.Unseal(data, td, rootID); err != nil || !bytes.Equal(got, secret) {
			t.Errorf("got %q, %v", got, err)
		}
	}
	if _, err := outsider.Unseal(data, td, rootID); !errors.Is(err, handover.ErrNotAddressed) {
		t.Errorf("got %v", err)
	}
	p.To[r1.ID] = p.To[r2.ID]
	p.To[r2.ID] = bytes.Clone(p.To[r2.ID])
	p.To[r2.ID][len(p.To[r2.ID])-1] ^= 1
	for name, f := range map[string]func() ([]byte, error){
		"another root":         func() ([]byte, error) { return one.Unseal(data, td, "0c0d") },
		"another trust domain": func() ([]byte, error) { return one.Unseal(data, "example.com", rootID) },
		"sealed to another":    func() ([]byte, error) { return one.Unseal(text(t, p), td, rootID) },
		"changed":              func() ([]byte, error) { return two.Unseal(text(t, p), td, rootID) },
		"nothing":              func() ([]byte, error) { return one.Unseal(nil, td, rootID) },
	} {
		if got, err := f(); err == nil || errors.Is(err, handover.ErrNotAddressed) {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
	}
}

// A parcel that came while a pair was being replaced is opened after a restart too; a
// settled pair opens nothing that came before it.
func TestPairsAreReplaced(t *testing.T) {
	key, _ := signer(t)
	path := filepath.Join(t.TempDir(), handover.File)
	pairs, err := handover.Open(path)
	must(t, err)
	public, _, err := pairs.Renew()
	must(t, err)
	r, err := handover.Announce(td, "h", rootID, key, public, now)
	must(t, err)
	p, err := handover.Seal(td, rootID, []byte("key"), []handover.Replica{r})
	must(t, err)
	data := text(t, p)
	var next []byte
	for range 3 { // as after changes of which nobody knows whether they were made
		public, former, err := pairs.Renew()
		must(t, err)
		if next != nil && !bytes.Equal(next, public) || former != r.ID {
			t.Fatalf("another pair every time, or %q was the one before", former)
		}
		next = public
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	again, err := handover.Open(path)
	must(t, err)
	if got, err := again.Unseal(data, td, rootID); err != nil || string(got) != "key" {
		t.Fatalf("got %q, %v", got, err)
	}
	must(t, again.Settle())
	last, err := handover.Open(path)
	must(t, err)
	for _, pairs := range []*handover.Pairs{again, last} {
		if _, err := pairs.Unseal(data, td, rootID); !errors.Is(err, handover.ErrNotAddressed) {
			t.Errorf("got %v", err)
		}
	}
}

// A key is taken over while the pair it is sealed to is being replaced: roots are loaded by
// whoever needs them.
func TestUnsealWhileReplaced(t *testing.T) {
	key, _ := signer(t)
	pairs, r := replica(t, key)
	p, err := handover.Seal(td, rootID, []byte("key"), []handover.Replica{r})
	must(t, err)
	data := text(t, p)
	var replacing sync.WaitGroup
	replacing.Go(func() {
		for range 3 {
			if _, _, err := pairs.Renew(); err != nil {
				t.Error(err)
			}
			if err := pairs.Settle(); err != nil {
				t.Error(err)
			}
		}
	})
	for range 20 {
		if got, err := pairs.Unseal(data, td, rootID); errors.Is(err, handover.ErrNotAddressed) {
			break
		} else if err != nil || string(got) != "key" {
			t.Errorf("got %q, %v", got, err)
		}
	}
	replacing.Wait()
}

func TestBadFile(t *testing.T) {
	for name, spoil := range map[string]func(path string, good []byte) error{
		"cut":      func(path string, good []byte) error { return os.WriteFile(path, good[:len(good)/2], 0o600) },
		"empty":    func(path string, _ []byte) error { return os.WriteFile(path, nil, 0o600) },
		"large":    func(path string, _ []byte) error { return os.WriteFile(path, make([]byte, 1<<20), 0o600) },
		"readable": func(path string, _ []byte) error { return os.Chmod(path, 0o640) },
		"no key":   func(path string, _ []byte) error { return os.WriteFile(path, []byte(`{"keys":["YQ=="]}`), 0o600) },
	} {
		path := filepath.Join(t.TempDir(), handover.File)
		pairs, err := handover.Open(path)
		must(t, err)
		_, _, err = pairs.Renew()
		must(t, err)
		good, err := os.ReadFile(path)
		must(t, err)
		must(t, spoil(path, good))
		if _, err := handover.Open(path); err == nil || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func FuzzParseReplica(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	cert := &x509.Certificate{PublicKey: key.Public()}
	pairs, err := handover.Open(filepath.Join(f.TempDir(), handover.File))
	if err != nil {
		f.Fatal(err)
	}
	public, _, err := pairs.Renew()
	if err != nil {
		f.Fatal(err)
	}
	good, err := handover.Announce(td, "h", rootID, key, public, now)
	if err != nil {
		f.Fatal(err)
	}
	data, err := json.Marshal(good)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`{"id":"","key":""}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		// Whatever is believed is what was announced.
		if r, err := handover.ParseReplica(data, td, rootID, cert); err == nil && (r.ID != good.ID || !bytes.Equal(r.Key, good.Key)) {
			t.Errorf("%+v is believed", r)
		}
	})
}

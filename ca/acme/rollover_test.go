package acme

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	stepjose "go.step.sm/crypto/jose"
	xacme "golang.org/x/crypto/acme"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/ledger/ledgertest"
)

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// patient lets as much time go by as there has to be between two changes of an account.
func (w *world) patient(by *time.Duration) {
	w.d.now = func() time.Time { return time.Now().Add(*by) }
}

// TestKeyChange: a real client changes the key of its account, twice and back again. It keeps account, orders and
// certificates; a key of before is good for nothing.
func TestKeyChange(t *testing.T) {
	w := newWorld(t, ledgertest.NewMemory(), nil)
	w.follow()
	var later time.Duration
	w.patient(&later)
	c, ctx := w.member(), t.Context()
	first := c.Key
	chain, _, err := w.obtain(c, "http-01", "a.example.test")
	if err != nil {
		t.Fatal(err)
	}
	reg, err := c.GetReg(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	// with is another client with a key, which finds its account by that.
	with := func(w *world, key crypto.Signer) (*xacme.Account, error) {
		other := w.client()
		other.Key = key
		return other.GetReg(ctx, "")
	}
	keys := []crypto.Signer{newKey(t), newKey(t), first}
	for i, key := range keys {
		before := c.Key
		if err := c.AccountKeyRollover(ctx, key); err != nil {
			t.Fatalf("change %d: %v", i, err)
		}
		for name, w := range map[string]*world{"the same": w, "another authority": w.second()} {
			if got, err := with(w, key); err != nil || got.URI != reg.URI {
				t.Errorf("change %d, %s: %v, %v; want the account of before", i, name, got, err)
			}
			_, err := with(w, before)
			if !errors.Is(err, xacme.ErrNoAccount) {
				t.Errorf("change %d, %s: the key of before: %v", i, name, err)
			}
		}
		stale := w.client()
		stale.Key, stale.KID = before, xacme.KeyID(reg.URI)
		_, err := stale.AuthorizeOrder(ctx, xacme.DomainIDs("b.example.test"))
		wantProblem(t, err, "malformed", http.StatusBadRequest)
		if i == 0 {
			_, err := stale.Register(ctx, w.account(), xacme.AcceptTOS)
			wantProblem(t, err, "unauthorized", http.StatusForbidden)
		}
		wantProblem(t, c.AccountKeyRollover(ctx, newKey(t)), "rateLimited", http.StatusTooManyRequests)
		later += updateEvery + time.Second
	}
	if err := c.RevokeCert(ctx, nil, chain[0].Raw, xacme.CRLReasonSuperseded); err != nil {
		t.Errorf("a certificate of before the changes: %v", err)
	}
	if _, _, err := w.obtain(c, "http-01", "b.example.test"); err != nil {
		t.Errorf("a certificate of after the changes: %v", err)
	}
	// One that has its first key again needs nothing beside it.
	docs, err := w.auth.store.List(ctx, accountPrefix)
	if err != nil || len(docs) != 1 {
		t.Errorf("%d documents, %v", len(docs), err)
	}
}

// TestKeyChangesThatAreRefused: what is not signed by both keys, for this account, its key of now and this address.
func TestKeyChangesThatAreRefused(t *testing.T) {
	w := newWorld(t, ledgertest.NewMemory(), nil)
	victim, thief, ctx := w.member(), w.member(), t.Context()
	const path, url = "/acme/key-change", "https://" + serverHost + "/acme/key-change"
	of := func(c *xacme.Client) (*ecdsa.PrivateKey, string) {
		reg, err := c.GetReg(ctx, "")
		if err != nil {
			t.Fatal(err)
		}
		key, ok := c.Key.(*ecdsa.PrivateKey)
		if !ok {
			t.Fatal("another key")
		}
		return key, reg.URI
	}
	vkey, vURI := of(victim)
	tkey, tURI := of(thief)
	next := newKey(t)
	about := func(uri string, old *ecdsa.PrivateKey) map[string]any {
		return map[string]any{"account": uri, "oldKey": jose.JSONWebKey{Key: old.Public()}}
	}
	// inner is what the new key signs: without a nonce, as it has to be.
	inner := func(key *ecdsa.PrivateKey, url string, payload any) json.RawMessage {
		s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, &jose.SignerOptions{EmbedJWK: true, ExtraHeaders: map[jose.HeaderKey]any{"url": url}})
		if err != nil {
			t.Fatal(err)
		}
		data, err := json.Marshal(payload)
		if err != nil {
			t.Fatal(err)
		}
		jws, err := s.Sign(data)
		if err != nil {
			t.Fatal(err)
		}
		return json.RawMessage(jws.FullSerialize())
	}
	// signedAs is a JWS with the signature of another.
	signedAs := func(jws, other json.RawMessage) json.RawMessage {
		var f, g map[string]string
		if err := errors.Join(json.Unmarshal(jws, &f), json.Unmarshal(other, &g)); err != nil {
			t.Fatal(err)
		}
		f["signature"] = g["signature"]
		out, err := json.Marshal(f)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	outer := func(key *ecdsa.PrivateKey, uri string, payload any) []byte {
		return sign(t, key, jose.ES256, uri, url, w.d.nonces.make(), payload)
	}
	entries := len(kinds(t, w.auth.store))
	for name, tc := range map[string]struct {
		body   []byte
		want   string
		status int
	}{
		"the victim's account with the thief's signature":  {outer(tkey, vURI, inner(next, url, about(vURI, vkey))), "malformed", http.StatusBadRequest},
		"the thief's account, about the victim's":          {outer(tkey, tURI, inner(next, url, about(vURI, vkey))), "malformed", http.StatusBadRequest},
		"the victim's key, about the thief's account":      {outer(tkey, tURI, inner(next, url, about(tURI, vkey))), "malformed", http.StatusBadRequest},
		"a key that the thief does not have":               {outer(tkey, tURI, signedAs(inner(next, url, about(tURI, tkey)), inner(tkey, url, about(tURI, tkey)))), "malformed", http.StatusBadRequest},
		"the thief's key, about the victim's account":      {outer(tkey, tURI, inner(next, url, about(vURI, tkey))), "malformed", http.StatusBadRequest},
		"the victim's key, which has an account":           {outer(tkey, tURI, inner(vkey, url, about(tURI, tkey))), "malformed", http.StatusConflict},
		"its own key":                                      {outer(tkey, tURI, inner(tkey, url, about(tURI, tkey))), "malformed", http.StatusConflict},
		"an inner part for another address":                {outer(tkey, tURI, inner(next, url+"x", about(tURI, tkey))), "malformed", http.StatusBadRequest},
		"an inner part with a nonce":                       {outer(tkey, tURI, json.RawMessage(sign(t, next, jose.ES256, "", url, "AAAA", about(tURI, tkey)))), "malformed", http.StatusBadRequest},
		"an inner part of an account":                      {outer(tkey, tURI, json.RawMessage(sign(t, next, jose.ES256, tURI, url, "", about(tURI, tkey)))), "malformed", http.StatusBadRequest},
		"no inner part":                                    {outer(tkey, tURI, about(tURI, tkey)), "malformed", http.StatusBadRequest},
		"nothing":                                          {outer(tkey, tURI, struct{}{}), "malformed", http.StatusBadRequest},
		"a signature by the new key alone":                 {sign(t, next, jose.ES256, "", url, w.d.nonces.make(), inner(next, url, about(tURI, tkey))), "malformed", http.StatusBadRequest},
		"a nonce of nobody":                                {sign(t, tkey, jose.ES256, tURI, url, "AAAA", inner(next, url, about(tURI, tkey))), "badNonce", http.StatusBadRequest},
		"a payload that was exchanged after it was signed": {forged(t, outer(tkey, tURI, inner(next, url, about(tURI, tkey)))), "malformed", http.StatusBadRequest},
		"an account that nobody has":                       {outer(tkey, tURI+"x", inner(next, url, about(tURI+"x", tkey))), "accountDoesNotExist", http.StatusBadRequest},
	} {
		if problem, status := w.post(path, tc.body, nil); problem != tc.want || status != tc.status {
			t.Errorf("%s: %s, %d; want %s, %d", name, problem, status, tc.want, tc.status)
		}
	}
	if n := len(kinds(t, w.auth.store)); n != entries {
		t.Errorf("%d entries of the ledger", n-entries)
	}
	// What is right goes, once.
	good := outer(tkey, tURI, inner(next, url, about(tURI, tkey)))
	if problem, status := w.post(path, good, nil); status != http.StatusOK {
		t.Fatal(problem, status)
	}
	if problem, status := w.post(path, good, nil); status == http.StatusOK {
		t.Error("a second time", problem)
	}
	// A key is one account's, also one that came by a change.
	if problem, status := w.post(path, outer(vkey, vURI, inner(next, url, about(vURI, vkey))), nil); problem != "malformed" || status != http.StatusConflict {
		t.Errorf("the key of another account: %s, %d", problem, status)
	}
	if _, err := victim.GetReg(ctx, ""); err != nil {
		t.Errorf("the victim: %v", err)
	}
	victim.Key, victim.KID = next, ""
	_, err := victim.Register(ctx, w.account(), xacme.AcceptTOS)
	if !errors.Is(err, xacme.ErrAccountAlreadyExists) {
		t.Errorf("a new account with the key: %v", err)
	}
}

// TestKeysAreForgottenAfterTheirAccount: what leads from a key to an account stays as long as that.
func TestKeysAreForgottenAfterTheirAccount(t *testing.T) {
	w := newWorld(t, ledgertest.NewMemory(), nil)
	c := w.member()
	if err := c.AccountKeyRollover(t.Context(), newKey(t)); err != nil {
		t.Fatal(err)
	}
	left := func(after time.Duration, want int) {
		t.Helper()
		for range 2 { // the account, and then what leads to it
			docs, err := w.auth.store.List(t.Context(), Prefix)
			if err != nil {
				t.Fatal(err)
			}
			w.d.take(t.Context(), ledger.Update{Put: docs}, true)
			if err := w.d.forget(t.Context(), time.Now().Add(after)); err != nil {
				t.Fatal(err)
			}
		}
		docs, err := w.auth.store.List(t.Context(), accountPrefix)
		if err != nil || len(docs) != want {
			t.Errorf("after %s: %d documents, %v; want %d", after, len(docs), err, want)
		}
	}
	left(unusedAccount-time.Hour, 2)
	left(unusedAccount+time.Hour, 0)
}

// FuzzNewKey: what an account signs is taken only if it is signed by a key that may be one, and never without a reason.
func FuzzNewKey(f *testing.F) {
	const url, location = "https://acme.example/acme/key-change", "https://acme.example/acme/account/x"
	now, next := newKey(f), newKey(f)
	a := account{Key: &stepjose.JSONWebKey{Key: now.Public()}}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: next}, &jose.SignerOptions{EmbedJWK: true, ExtraHeaders: map[jose.HeaderKey]any{"url": url}})
	if err != nil {
		f.Fatal(err)
	}
	for _, payload := range []any{map[string]any{"account": location, "oldKey": jose.JSONWebKey{Key: now.Public()}}, map[string]any{"account": location}, 1} {
		data, err := json.Marshal(payload)
		if err != nil {
			f.Fatal(err)
		}
		jws, err := s.Sign(data)
		if err != nil {
			f.Fatal(err)
		}
		f.Add([]byte(jws.FullSerialize()))
	}
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, payload []byte) {
		key, e := newKeyOf(payload, a, location, url)
		switch {
		case e != nil && (e.Status < 400 || e.Type == ""):
			t.Errorf("a problem without a status or type: %+v", e)
		case e == nil && !next.PublicKey.Equal(key.Key):
			t.Errorf("%q is taken", payload)
		}
	})
}

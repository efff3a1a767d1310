package acme

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"sync"
	"time"
)

const (
	// nonceLife is how long a nonce may be used.
	nonceLife = 10 * time.Minute
	// nonceSkew is by how much the clocks of two authorities may differ.
	nonceSkew = time.Minute
	// maxUsed bounds the used nonces that are remembered, in each half.
	maxUsed = 100_000

	nonceBody, nonceMAC = 8 + 16, 16
)

var errNonce = errors.New("the nonce is not one of this authority, too old or used")

// nonces makes and checks nonces. A nonce says itself when it was made and is
// authenticated, so that nothing is kept of those that are never used: whoever asks
// for them would fill the ledger otherwise. What is used is remembered here, and by
// a document of the ledger if anything is changed with it, which is what makes it
// good once among all authorities (see database.commit).
type nonces struct {
	key []byte
	now func() time.Time

	mu sync.Mutex
	// used and before are two halves of what was used; they change places when
	// nonceLife is over, and then the older one has only what is too old anyway.
	used, before map[[nonceBody]byte]struct{}
	turned       time.Time
}

func newNonces(key []byte, now func() time.Time) *nonces {
	return &nonces{key: key, now: now, used: map[[nonceBody]byte]struct{}{}, before: map[[nonceBody]byte]struct{}{}, turned: now()}
}

func (n *nonces) make() string {
	var body [nonceBody]byte
	binary.BigEndian.PutUint64(body[:], uint64(n.now().Unix())) //nolint:gosec // a date
	_, _ = rand.Read(body[8:])                                  // never fails
	return base64.RawURLEncoding.EncodeToString(append(body[:], n.mac(body[:])...))
}

func (n *nonces) mac(body []byte) []byte {
	h := hmac.New(sha256.New, n.key)
	h.Write(body)
	return h.Sum(nil)[:nonceMAC]
}

// use checks a nonce and takes it as used. What it returns names it in the ledger.
func (n *nonces) use(text string) (id string, err error) {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(raw) != nonceBody+nonceMAC || !hmac.Equal(raw[nonceBody:], n.mac(raw[:nonceBody])) {
		return "", errNonce
	}
	body := [nonceBody]byte(raw)
	now := n.now()
	made := time.Unix(int64(binary.BigEndian.Uint64(body[:])), 0) //nolint:gosec // it was made here
	if now.Sub(made) > nonceLife || made.Sub(now) > nonceSkew {
		return "", errNonce
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if now.Sub(n.turned).Abs() > nonceLife+nonceSkew || len(n.used) >= maxUsed {
		n.used, n.before, n.turned = map[[nonceBody]byte]struct{}{}, n.used, now
	}
	_, a := n.used[body]
	_, b := n.before[body]
	if a || b {
		return "", errNonce
	}
	n.used[body] = struct{}{}
	return hex.EncodeToString(body[:]), nil
}

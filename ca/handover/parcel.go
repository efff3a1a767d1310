package handover

import (
	"crypto/hpke"
	"encoding/json"
	"errors"
	"fmt"
)

// ErrNotAddressed is that of a parcel that none of an authority's pairs opens.
var ErrNotAddressed = errors.New("the key was not handed over to this replica")

// maxSecret bounds what a parcel holds, in bytes.
const maxSecret = 16 << 10

// Parcel is the key of a root, sealed to each of several replicas.
type Parcel struct {
	// To has what was sealed by the id of the replica.
	To map[string][]byte `json:"to"`
	// Closed: it is for those that were named, and nobody is added.
	Closed bool `json:"closed,omitempty"`
}

// Seal seals the key of the root with that key id, in whatever form the caller has it.
func Seal(trustDomain, rootID string, secret []byte, to []Replica) (Parcel, error) {
	p := Parcel{To: make(map[string][]byte, len(to))}
	return p, p.Add(trustDomain, rootID, secret, to)
}

// ParseParcel reads a parcel.
func ParseParcel(data []byte) (Parcel, error) {
	var p Parcel
	if err := json.Unmarshal(data, &p); err != nil || p.To == nil {
		return Parcel{}, errors.New("what was handed over cannot be read")
	}
	return p, nil
}

// Add seals the key to more replicas.
func (p Parcel) Add(trustDomain, rootID string, secret []byte, to []Replica) error {
	if len(secret) > maxSecret {
		return fmt.Errorf("handover: a key of %d bytes", len(secret))
	}
	for _, r := range to {
		public, err := kem().NewPublicKey(r.Key)
		if err == nil {
			p.To[r.ID], err = hpke.Seal(public, hpke.HKDFSHA256(), hpke.AES256GCM(), info(trustDomain, rootID, r.ID), secret)
		}
		if err != nil {
			return fmt.Errorf("handover: replica %s: %w", r.ID, err)
		}
	}
	return nil
}

// info binds what is sealed to what it is for.
func info(trustDomain, rootID, replica string) []byte {
	return fmt.Appendf(nil, "writ-ca: key of a root\x00%s\x00%s\x00%s", trustDomain, rootID, replica)
}

// Unseal opens a parcel with whichever pair it is addressed to. What it holds was made
// by anybody who can write to the ledger: whether it is the root's key is for the caller
// to find out.
func (p *Pairs) Unseal(data []byte, trustDomain, rootID string) ([]byte, error) {
	parcel, err := ParseParcel(data)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	keys := p.keys
	p.mu.Unlock()
	for _, key := range keys {
		id := idOf(key.PublicKey().Bytes())
		sealed, ok := parcel.To[id]
		if !ok {
			continue
		}
		secret, err := hpke.Open(key, hpke.HKDFSHA256(), hpke.AES256GCM(), info(trustDomain, rootID, id), sealed)
		if err != nil || len(secret) > maxSecret {
			return nil, errors.New("what was handed over to this replica is not what was sealed")
		}
		return secret, nil
	}
	return nil, ErrNotAddressed
}

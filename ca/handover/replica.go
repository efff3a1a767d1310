package handover

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// maxHost bounds the name of a machine.
const maxHost = 255

// Replica is an authority as it announces itself.
type Replica struct {
	// ID is made of the public key.
	ID string `json:"id"`
	// Host is the name of its machine, for people.
	Host string `json:"host"`
	// Key is the public one that parcels are sealed to.
	Key []byte `json:"key"`
	// Root is the key id of the root whose key made Proof.
	Root  string    `json:"root"`
	Proof []byte    `json:"proof"`
	Since time.Time `json:"since"`
}

// Announce makes the announcement of an authority that has the key of the root with
// that key id.
func Announce(trustDomain, host, rootID string, key crypto.Signer, public []byte, now time.Time) (Replica, error) {
	r := Replica{ID: idOf(public), Host: host[:min(len(host), maxHost)], Key: public, Root: rootID, Since: now.UTC()}
	message, opts := r.message(trustDomain), crypto.SignerOpts(crypto.SHA256)
	if _, ok := key.Public().(ed25519.PublicKey); ok {
		opts = crypto.Hash(0)
	} else {
		sum := sha256.Sum256(message)
		message = sum[:]
	}
	var err error
	if r.Proof, err = key.Sign(rand.Reader, message, opts); err != nil {
		return Replica{}, fmt.Errorf("handover: announce: %w", err)
	}
	return r, nil
}

// Ask makes the announcement of an authority that has no key of a root.
func Ask(host string, public []byte, now time.Time) Replica {
	return Replica{ID: idOf(public), Host: host[:min(len(host), maxHost)], Key: public, Since: now.UTC()}
}

// ParseAsking reads what Ask made. It proves nothing but that the id is the key's.
func ParseAsking(data []byte) (Replica, error) {
	r, err := parse(data)
	if err == nil && (r.Root != "" || len(r.Proof) > 0) {
		err = fmt.Errorf("replica %s does not ask", r.ID)
	}
	return r, err
}

// message is what the proof is about. It begins as no certificate does.
func (r Replica) message(trustDomain string) []byte {
	out := []byte("writ-ca: this replica has the key of the root\x00")
	for _, part := range []string{trustDomain, r.ID, r.Host, r.Root, string(r.Key), r.Since.Format(time.RFC3339Nano)} {
		out = binary.BigEndian.AppendUint32(out, uint32(len(part)))
		out = append(out, part...)
	}
	return out
}

// ParseReplica reads an announcement and verifies that whoever made it had the key of
// the root.
func ParseReplica(data []byte, trustDomain, rootID string, root *x509.Certificate) (Replica, error) {
	r, err := parse(data)
	if err != nil {
		return Replica{}, err
	}
	if r.Root != rootID {
		return Replica{}, fmt.Errorf("replica %s is announced under the root %.64q, which does not sign", r.ID, r.Root)
	}
	if !verify(root.PublicKey, r.message(trustDomain), r.Proof) {
		return Replica{}, fmt.Errorf("replica %s did not have the key of the root", r.ID)
	}
	return r, nil
}

// parse reads an announcement, whatever it proves.
func parse(data []byte) (Replica, error) {
	var r Replica
	if err := json.Unmarshal(data, &r); err != nil {
		return Replica{}, errors.New("the announcement of a replica cannot be read")
	}
	if r.ID != idOf(r.Key) || len(r.Host) > maxHost {
		return Replica{}, fmt.Errorf("the announcement of replica %.24q contradicts itself", r.ID)
	}
	if _, err := kem().NewPublicKey(r.Key); err != nil {
		return Replica{}, fmt.Errorf("the announcement of replica %s has no key", r.ID)
	}
	return r, nil
}

func verify(key crypto.PublicKey, message, signature []byte) bool {
	sum := sha256.Sum256(message)
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(key, sum[:], signature)
	case ed25519.PublicKey:
		return ed25519.Verify(key, message, signature)
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(key, crypto.SHA256, sum[:], signature) == nil
	}
	return false
}

// Name is how people are told of it.
func (r Replica) Name() string { return fmt.Sprintf("replica %s on %s", r.ID, r.Host) }

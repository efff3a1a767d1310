// Package jwks reads JSON Web Key Sets (RFC 7517) of token issuers, as those who verify
// tokens have to: keys that could not verify a signature safely are left out, symmetric
// ones above all, and an algorithm is bound to each key that stays (RFC 8725, section
// 3.1). Parse is all there is; it is pure.
package jwks

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
)

// Bounds of a key set.
const (
	// MaxSize is the size of a JWKS document in bytes.
	MaxSize = 1 << 20
	// maxKeys is the number of keys in one.
	maxKeys = 256
	// minRSA and maxRSA are in bits. RFC 7518 section 3.3 asks for 2048; above
	// 8192 a verification takes long enough to be an attack.
	minRSA, maxRSA = 2048, 8192
)

// Key is a public key that may verify signatures.
type Key struct {
	// ID is its "kid", empty if it has none.
	ID string
	// Algorithms are those that the key may be used with, never empty.
	Algorithms []string
	// Public is an *rsa.PublicKey, *ecdsa.PublicKey or ed25519.PublicKey.
	Public crypto.PublicKey
}

// Set is the usable part of a JWKS. Its zero value has no keys.
type Set struct {
	Keys []Key
	// Skipped says for each key that was left out why.
	Skipped []string
}

type jwk struct {
	Kty    string   `json:"kty"`
	Use    string   `json:"use"`
	KeyOps []string `json:"key_ops"`
	Alg    string   `json:"alg"`
	Kid    string   `json:"kid"`
	Crv    string   `json:"crv"`
	N      string   `json:"n"`
	E      string   `json:"e"`
	X      string   `json:"x"`
	Y      string   `json:"y"`
}

// ErrNoKey says that a key set has no key by which a token could be verified.
var ErrNoKey = errors.New("key set: no usable key")

// Parse reads a JWKS (RFC 7517). Keys that cannot verify signatures here,
// symmetric ones above all, are left out and listed in Skipped; a document
// without a single usable key is an error, ErrNoKey.
func Parse(b []byte) (*Set, error) {
	if len(b) > MaxSize {
		return nil, fmt.Errorf("key set: %d bytes, more than %d", len(b), MaxSize)
	}
	var doc struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		return nil, fmt.Errorf("key set: %w", err)
	}
	if len(doc.Keys) > maxKeys {
		return nil, fmt.Errorf("key set: %d keys, more than %d", len(doc.Keys), maxKeys)
	}
	set := &Set{}
	for i, raw := range doc.Keys {
		var j jwk
		err := json.Unmarshal(raw, &j)
		var key Key
		if err == nil {
			key, err = j.key()
		}
		if err != nil {
			set.Skipped = append(set.Skipped, fmt.Sprintf("key %d (kid %q): %v", i, j.Kid, err))
			continue
		}
		set.Keys = append(set.Keys, key)
	}
	if len(set.Keys) == 0 {
		if len(set.Skipped) > 0 {
			return nil, fmt.Errorf("%w: %s", ErrNoKey, set.Skipped[0])
		}
		return nil, ErrNoKey
	}
	return set, nil
}

func (j *jwk) key() (Key, error) {
	if j.Use != "" && j.Use != "sig" {
		return Key{}, fmt.Errorf("use %q is not for signatures", j.Use)
	}
	if len(j.KeyOps) > 0 && !slices.Contains(j.KeyOps, "verify") {
		return Key{}, errors.New("key_ops does not have verify")
	}
	k := Key{ID: j.Kid}
	var err error
	switch j.Kty {
	case "RSA":
		k.Algorithms = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}
		k.Public, err = j.rsa()
	case "EC":
		k.Algorithms, k.Public, err = j.ec()
	case "OKP":
		k.Algorithms = []string{"EdDSA"}
		k.Public, err = j.okp()
	case "oct":
		err = errors.New("symmetric keys are not accepted")
	default:
		err = fmt.Errorf("key type %q is not known", j.Kty)
	}
	if err != nil {
		return Key{}, err
	}
	if j.Alg != "" {
		if !slices.Contains(k.Algorithms, j.Alg) {
			return Key{}, fmt.Errorf("algorithm %q is not for key type %s", j.Alg, j.Kty)
		}
		k.Algorithms = []string{j.Alg}
	}
	return k, nil
}

func (j *jwk) rsa() (crypto.PublicKey, error) {
	n, err := number("n", j.N, maxRSA/8+1)
	if err != nil {
		return nil, err
	}
	e, err := number("e", j.E, 4)
	if err != nil {
		return nil, err
	}
	if bits := n.BitLen(); bits < minRSA || bits > maxRSA {
		return nil, fmt.Errorf("RSA key has %d bits; %d to %d are accepted", bits, minRSA, maxRSA)
	}
	if e.Int64() < 3 || e.Int64() > 1<<31-1 || e.Bit(0) == 0 {
		return nil, errors.New("RSA exponent is not accepted")
	}
	return &rsa.PublicKey{N: n, E: int(e.Int64())}, nil
}

func (j *jwk) ec() ([]string, crypto.PublicKey, error) {
	var curve elliptic.Curve
	var alg string
	switch j.Crv {
	case "P-256":
		curve, alg = elliptic.P256(), "ES256"
	case "P-384":
		curve, alg = elliptic.P384(), "ES384"
	case "P-521":
		curve, alg = elliptic.P521(), "ES512"
	default:
		return nil, nil, fmt.Errorf("curve %q is not known", j.Crv)
	}
	size := (curve.Params().BitSize + 7) / 8
	point := make([]byte, 1+2*size)
	point[0] = 4 // uncompressed
	for i, c := range []struct{ name, text string }{{"x", j.X}, {"y", j.Y}} {
		b, err := decode(c.text)
		if err != nil || len(b) != size {
			return nil, nil, fmt.Errorf("%q is not a coordinate of %s", c.name, j.Crv)
		}
		copy(point[1+i*size:], b)
	}
	// Refuses points that are not on the curve.
	public, err := ecdsa.ParseUncompressedPublicKey(curve, point)
	if err != nil {
		return nil, nil, fmt.Errorf("EC key: %w", err)
	}
	return []string{alg}, public, nil
}

func (j *jwk) okp() (crypto.PublicKey, error) {
	if j.Crv != "Ed25519" {
		return nil, fmt.Errorf("curve %q is not known", j.Crv)
	}
	b, err := decode(j.X)
	if err != nil || len(b) != ed25519.PublicKeySize {
		return nil, errors.New(`"x" is not an Ed25519 key`)
	}
	return ed25519.PublicKey(b), nil
}

// decode reads base64url. There shall be no padding (RFC 7515, section 2), but there are
// issuers that write it, and Envoy reads it.
func decode(text string) ([]byte, error) {
	return base64.RawURLEncoding.DecodeString(strings.TrimRight(text, "="))
}

func number(name, text string, limit int) (*big.Int, error) {
	b, err := decode(text)
	if err != nil || len(b) == 0 || len(b) > limit {
		return nil, fmt.Errorf("%q is not a number of 1 to %d bytes in base64url", name, limit)
	}
	return new(big.Int).SetBytes(b), nil
}

package keysource

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"

	"github.com/writ-mesh/writ/internal/jwks"
)

// maxEncoded bounds a set as proxies get it, in bytes: some hundred keys.
const maxEncoded = 128 << 10

// jwk is a key as proxies get it (RFC 7517, RFC 7518 section 6, RFC 8037 section 2).
type jwk struct {
	Kty string `json:"kty"`
	Kid string `json:"kid,omitempty"`
	Use string `json:"use"`
	Alg string `json:"alg,omitempty"`
	Crv string `json:"crv,omitempty"`
	N   string `json:"n,omitempty"`
	E   string `json:"e,omitempty"`
	X   string `json:"x,omitempty"`
	Y   string `json:"y,omitempty"`
}

// encode writes a set down; equal keys in another order give the same text.
func encode(set *jwks.Set) (string, error) {
	var keys []string
	for _, k := range set.Keys {
		out, err := jwkOf(k)
		if err != nil {
			return "", err
		}
		text, err := json.Marshal(out)
		if err != nil {
			return "", err
		}
		keys = append(keys, string(text))
	}
	slices.Sort(keys)
	text := `{"keys":[` + strings.Join(slices.Compact(keys), ",") + `]}`
	if len(text) > maxEncoded {
		return "", fmt.Errorf("its keys have %d bytes, more than %d", len(text), maxEncoded)
	}
	return text, nil
}

func jwkOf(k jwks.Key) (jwk, error) {
	out := jwk{Kid: k.ID, Use: "sig"}
	if len(k.Algorithms) == 1 {
		out.Alg = k.Algorithms[0]
	}
	b64 := base64.RawURLEncoding.EncodeToString
	switch public := k.Public.(type) {
	case *rsa.PublicKey:
		out.Kty, out.N, out.E = "RSA", b64(public.N.Bytes()), b64(big.NewInt(int64(public.E)).Bytes())
	case *ecdsa.PublicKey:
		point, err := public.Bytes()
		if err != nil {
			return out, err
		}
		half := len(point) / 2 // behind the byte that says that it is not compressed
		out.Kty, out.Crv, out.X, out.Y = "EC", public.Params().Name, b64(point[1:1+half]), b64(point[1+half:])
	case ed25519.PublicKey:
		out.Kty, out.Crv, out.X = "OKP", "Ed25519", b64(public)
	default:
		return out, fmt.Errorf("a key of type %T", k.Public)
	}
	return out, nil
}

// decode reads what a server gave, and gives it as proxies get it. No error has anything
// of the body in it.
func decode(body []byte) (text string, set *jwks.Set, err error) {
	set, err = jwks.Parse(body)
	switch {
	case errors.Is(err, jwks.ErrNoKey):
		return "", nil, errors.New("the key set has no key by which a token could be verified (symmetric ones, and such as are too weak or of an unknown kind, do not count)")
	case err != nil:
		return "", nil, errors.New("the server answers with something that is no key set (RFC 7517), or one that is too large")
	}
	text, err = encode(set)
	return text, set, err
}

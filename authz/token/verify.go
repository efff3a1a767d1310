package token

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/writ-mesh/writ/internal/jwks"
	"github.com/writ-mesh/writ/internal/revoked"
)

// maxToken is the size of a token in bytes that Verify looks at. Envoy takes
// headers up to 60 KiB.
const maxToken = 16 << 10

// maxDate is the end of the year 9999 in seconds since 1970. What is above does
// not fit the conversion to a time, whose result then depends on the machine.
const maxDate = 253402300799

// The reasons for refusal. Verify's errors wrap exactly one of them.
var (
	errTooLarge   = errors.New("token is too large")
	errMalformed  = errors.New("token is malformed")
	errAlgorithm  = errors.New("token's algorithm is not accepted")
	errIssuer     = errors.New("token's issuer is not accepted")
	ErrAudience   = errors.New("token's audience is not accepted")
	ErrUnknownKey = errors.New("token is signed with an unknown key")
	errSignature  = errors.New("token's signature is wrong")
	errExpired    = errors.New("token is expired")
	errNotYet     = errors.New("token is not valid yet")
)

// Issuer is somebody whose tokens are believed.
type Issuer struct {
	// Issuer has to equal the claim "iss".
	Issuer string
	// Audiences has to contain one value of the claim "aud"; empty is any.
	Audiences []string
	Keys      *jwks.Set
}

// Verified is a token whose signature and claims hold.
type Verified struct {
	// Issuer is the index of the one in the list that vouches for it.
	Issuer int
	// Claims is the payload as it was signed, a JSON object.
	Claims []byte
	// About is what a revocation of the token may be by.
	About revoked.Token
	// Expires is from when on the token is refused; the zero time is never.
	Expires time.Time
}

// methods are all algorithms there are.
var methods = map[string]jwt.SigningMethod{
	"RS256": jwt.SigningMethodRS256, "RS384": jwt.SigningMethodRS384, "RS512": jwt.SigningMethodRS512,
	"PS256": jwt.SigningMethodPS256, "PS384": jwt.SigningMethodPS384, "PS512": jwt.SigningMethodPS512,
	"ES256": jwt.SigningMethodES256, "ES384": jwt.SigningMethodES384, "ES512": jwt.SigningMethodES512,
	"EdDSA": jwt.SigningMethodEdDSA,
}

// Verify decides whether a token holds at now; leeway is granted on exp and nbf for
// clocks that differ. The issuers are those with the
// token's iss; if several have the same name, one whose keys and audiences fit
// is enough.
func Verify(raw string, issuers []Issuer, now time.Time, leeway time.Duration) (Verified, error) {
	h, claims, err := parse(raw)
	if err != nil {
		return Verified{}, err
	}
	best := errIssuer
	for i, issuer := range issuers {
		if issuer.Issuer != claims.Issuer {
			continue
		}
		// Of several reasons the one that got furthest says most.
		if err := h.verify(issuer, claims, now, leeway); err == nil {
			return Verified{Issuer: i, Claims: h.payload, About: about(claims, h.payload), Expires: expiry(claims, leeway)}, nil
		} else if errors.Is(best, errIssuer) || errors.Is(best, ErrUnknownKey) {
			best = err
		}
	}
	return Verified{}, best
}

// about reads what a revocation may be by, by the exact names. A jti, sub or iat of
// another type counts as missing.
func about(claims *jwt.RegisteredClaims, payload []byte) revoked.Token {
	t := revoked.Token{Issuer: claims.Issuer}
	var all map[string]any
	if json.Unmarshal(payload, &all) != nil {
		return t // was read before
	}
	t.Subject, _ = all["sub"].(string)
	t.ID, _ = all["jti"].(string)
	t.IssuedAt, t.HasIssuedAt = all["iat"].(float64)
	return t
}

func expiry(claims *jwt.RegisteredClaims, leeway time.Duration) time.Time {
	if claims.ExpiresAt == nil {
		return time.Time{}
	}
	return claims.ExpiresAt.Add(leeway)
}

// Peek reads the unverified iss of a token, to find out which keys are
// worth fetching. Nothing else may be done with them.
func Peek(raw string) (issuer string, err error) {
	_, claims, err := parse(raw)
	if err != nil {
		return "", err
	}
	return claims.Issuer, nil
}

// parsed is a token that is well-formed and not verified.
type parsed struct {
	alg       string
	kid       string
	hasKid    bool
	signed    string
	signature []byte
	payload   []byte
}

func parse(raw string) (*parsed, *jwt.RegisteredClaims, error) {
	if len(raw) > maxToken {
		return nil, nil, errTooLarge
	}
	head, rest, ok1 := strings.Cut(raw, ".")
	body, sig, ok2 := strings.Cut(rest, ".")
	if !ok1 || !ok2 || strings.Contains(sig, ".") {
		return nil, nil, fmt.Errorf("%w: it does not have three parts", errMalformed)
	}
	p := &parsed{signed: raw[:len(head)+1+len(body)]}
	header, err := decode(head)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: header", errMalformed)
	}
	if p.payload, err = decode(body); err != nil {
		return nil, nil, fmt.Errorf("%w: payload", errMalformed)
	}
	if err := p.header(header); err != nil {
		return nil, nil, err
	}
	if p.signature, err = decode(sig); err != nil {
		return nil, nil, fmt.Errorf("%w: signature", errMalformed)
	}
	if err := strictObject(p.payload); err != nil {
		return nil, nil, fmt.Errorf("%w: payload: %w", errMalformed, err)
	}
	claims := new(jwt.RegisteredClaims)
	if err := exactClaims(p.payload, claims); err != nil {
		return nil, nil, fmt.Errorf("%w: payload: %w", errMalformed, err)
	}
	return p, claims, nil
}

// header reads the JOSE header. A map, and not a struct, because Go's decoder
// takes "ALG" for "alg" in a struct.
func (p *parsed) header(b []byte) error {
	if err := strictObject(b); err != nil {
		return fmt.Errorf("%w: header: %w", errMalformed, err)
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		return fmt.Errorf("%w: header", errMalformed)
	}
	var ok bool
	if p.alg, ok = m["alg"].(string); !ok {
		return fmt.Errorf("%w: none is named", errAlgorithm)
	}
	if _, known := methods[p.alg]; !known {
		return fmt.Errorf("%w: %q", errAlgorithm, clip(p.alg))
	}
	if kid, there := m["kid"]; there {
		if p.kid, ok = kid.(string); !ok {
			return fmt.Errorf("%w: kid is not a string", errMalformed)
		}
		p.hasKid = true
	}
	// RFC 7515 section 4.1.11: what is critical and not understood is refused;
	// no extension is understood here (b64 of RFC 7797 is one of them).
	if _, there := m["crit"]; there {
		return fmt.Errorf("%w: critical extensions are not understood", errMalformed)
	}
	return nil
}

func (p *parsed) verify(issuer Issuer, claims *jwt.RegisteredClaims, now time.Time, leeway time.Duration) error {
	keys := find(issuer.Keys, p.kid, p.hasKid)
	if len(keys) == 0 {
		return ErrUnknownKey
	}
	method := methods[p.alg]
	err := fmt.Errorf("%w: %s is not for the issuer's key", errAlgorithm, p.alg)
	for _, k := range keys {
		if !slices.Contains(k.Algorithms, p.alg) {
			continue
		}
		if method.Verify(p.signed, p.signature, k.Public) == nil {
			return checkClaims(issuer, claims, now, leeway)
		}
		err = errSignature
	}
	return err
}

// find gives the keys that a token with this header may be signed by: those of its kid,
// or all if it names none.
func find(s *jwks.Set, kid string, hasKid bool) []jwks.Key {
	if s == nil {
		return nil
	}
	if !hasKid {
		return s.Keys
	}
	var out []jwks.Key
	for _, k := range s.Keys {
		if k.ID == kid {
			out = append(out, k)
		}
	}
	return out
}

func checkClaims(issuer Issuer, claims *jwt.RegisteredClaims, now time.Time, leeway time.Duration) error {
	opts := []jwt.ParserOption{jwt.WithLeeway(leeway), jwt.WithTimeFunc(func() time.Time { return now }), jwt.WithIssuer(issuer.Issuer)}
	if len(issuer.Audiences) > 0 {
		opts = append(opts, jwt.WithAudience(issuer.Audiences...))
	}
	err := jwt.NewValidator(opts...).Validate(claims)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, jwt.ErrTokenExpired):
		return errExpired
	case errors.Is(err, jwt.ErrTokenNotValidYet):
		return errNotYet
	case errors.Is(err, jwt.ErrTokenInvalidAudience):
		return ErrAudience
	case errors.Is(err, jwt.ErrTokenRequiredClaimMissing) && len(issuer.Audiences) > 0 && len(claims.Audience) == 0:
		return ErrAudience
	case errors.Is(err, jwt.ErrTokenInvalidIssuer):
		return errIssuer
	}
	return fmt.Errorf("%w: %w", errMalformed, err)
}

// exactClaims reads the registered claims by their exact names.
func exactClaims(payload []byte, into *jwt.RegisteredClaims) error {
	var all map[string]json.RawMessage
	if err := json.Unmarshal(payload, &all); err != nil {
		return err
	}
	exact := make(map[string]json.RawMessage, 5)
	for _, name := range []string{"iss", "aud", "exp", "nbf"} {
		if v, ok := all[name]; ok {
			if string(v) == "null" {
				return fmt.Errorf("%s is null", name)
			}
			exact[name] = v
		}
	}
	for _, name := range []string{"exp", "nbf"} {
		var n json.Number
		if v, ok := exact[name]; ok {
			if err := json.Unmarshal(v, &n); err != nil || v[0] == '"' {
				return fmt.Errorf("%s is not a number", name)
			}
			if f, err := n.Float64(); err != nil || f < 0 || f > maxDate {
				return fmt.Errorf("%s is not a date", name)
			}
		}
	}
	b, err := json.Marshal(exact)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, into)
}

// decode is base64url without padding and without spare bits, so that a token
// has one spelling only.
func decode(s string) ([]byte, error) {
	if strings.ContainsAny(s, "\r\n") {
		return nil, errMalformed
	}
	return base64.RawURLEncoding.Strict().DecodeString(s)
}

func clip(s string) string {
	if len(s) > 16 {
		return s[:16] + "..."
	}
	return s
}

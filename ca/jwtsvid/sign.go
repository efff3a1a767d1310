package jwtsvid

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Token is a signed JWT-SVID.
type Token struct {
	// Compact is the token in JWS compact serialization.
	Compact  string
	IssuedAt time.Time
	Expiry   time.Time
	// KeyID names the key that signed it.
	KeyID string
}

// claims of a JWT-SVID.
type claims struct {
	Subject  string   `json:"sub"`
	Audience []string `json:"aud"`
	Expiry   int64    `json:"exp"`
	IssuedAt int64    `json:"iat"`
}

// Sign makes a JWT-SVID. The audiences have been checked
// (package audience), and ttl is at most the
// longest life of the configuration.
func (k *Keys) Sign(id spiffeid.ID, audiences []string, ttl time.Duration, now time.Time) (Token, error) {
	if ttl <= 0 || ttl > k.cfg.MaxTTL {
		return Token{}, fmt.Errorf("life of a token is %s: want more than zero and at most %s", ttl, k.cfg.MaxTTL)
	}
	issued := now.Truncate(time.Second).UTC()
	// Rounded down: a token never lives longer than its key is published.
	expiry := now.Add(ttl).Truncate(time.Second).UTC()
	payload, err := json.Marshal(claims{Subject: id.String(), Audience: audiences, Expiry: expiry.Unix(), IssuedAt: issued.Unix()})
	if err != nil {
		return Token{}, fmt.Errorf("token: %w", err)
	}
	k.mu.Lock()
	signer, active := k.active, k.now.Active
	k.mu.Unlock()
	compact, err := sign(signer, payload)
	if err != nil {
		return Token{}, fmt.Errorf("token: %w", err)
	}
	return Token{Compact: compact, IssuedAt: issued, Expiry: expiry, KeyID: active}, nil
}

func sign(signer jose.Signer, payload []byte) (string, error) {
	signed, err := signer.Sign(payload)
	if err != nil {
		return "", err
	}
	return signed.CompactSerialize()
}

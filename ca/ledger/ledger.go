// Package ledger is the authority's memory: every certificate, written down
// durably before it is handed out, and the join tokens, each of which is good
// once. It says what a store must promise; filelog is the store on one machine,
// and package ledgertest holds every store to the promises.
package ledger

import (
	"context"
	"errors"
	"time"
)

// Certificate is what is kept of an issued certificate.
type Certificate struct {
	// Serial is in lower-case hexadecimal.
	Serial string `json:"serial"`
	// SPIFFEID is the identity that it proves.
	SPIFFEID string `json:"spiffe_id"`
	// Requester is who asked: a SPIFFE ID, "join-token" or "admin uid=N".
	Requester string    `json:"requester"`
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
	IssuedAt  time.Time `json:"issued_at"`
	// SHA256 is of the whole certificate in DER, in lower-case hexadecimal.
	SHA256 string `json:"sha256"`
}

// Token is what is kept of a join token: never the secret itself.
type Token struct {
	// ID names the token and is no secret.
	ID string `json:"id"`
	// Hash is that of the secret (see package jointoken).
	Hash []byte `json:"hash"`
	// SPIFFEID is the only identity that the token is good for.
	SPIFFEID  string    `json:"spiffe_id"`
	Creator   string    `json:"creator"`
	CreatedAt time.Time `json:"created_at"`
	ExpiresAt time.Time `json:"expires_at"`
}

var (
	// ErrNoToken is returned for a token that is unknown or already used.
	ErrNoToken = errors.New("no such join token, or it was used")
	// ErrUnavailable is wrapped by the errors of a store that cannot make a record
	// durable at the moment. Nothing may be issued then.
	ErrUnavailable = errors.New("the ledger cannot record now")
)

// Store keeps certificates and tokens. Its methods may be called concurrently.
// When a method that records returns nil, the record survives the death of the
// process and of the machine; when it returns an error, it may or may not.
type Store interface {
	Certificates
	Tokens
	// Check finds out whether a record could be made durable now; its error wraps
	// ErrUnavailable.
	Check(ctx context.Context) error
	// Close waits for records under way. No method may be called after it.
	Close() error
}

// Certificates is the ledger proper.
type Certificates interface {
	// Record adds a certificate.
	Record(ctx context.Context, c Certificate) error
	// Each calls f with all certificates that were recorded before the call, oldest
	// first, until f returns an error, which it returns.
	Each(ctx context.Context, f func(Certificate) error) error
}

// Tokens are the join tokens.
type Tokens interface {
	// AddToken adds a token.
	AddToken(ctx context.Context, t Token) error
	// Token returns the token with that ID, expired or not, or ErrNoToken.
	Token(ctx context.Context, id string) (Token, error)
	// RecordJoin uses up a token and records the certificate it bought, both or
	// neither. Of several calls with one token exactly one returns nil, the others
	// ErrNoToken.
	RecordJoin(ctx context.Context, tokenID string, c Certificate) error
}

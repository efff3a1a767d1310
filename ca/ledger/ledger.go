// Package ledger is the authority's memory: a log of everything that it did, and
// the documents that say how things stand now (join tokens, registrations, the
// state of the roots). It says what a store must promise; filelog is the store on
// one machine, pglog and etcdstore are those of several, and package ledgertest holds
// every store to the promises.
//
// What is done is one Change: an entry for the log and the documents that it puts
// or deletes, all of it or nothing. An entry is never altered or removed. The
// entries are the leaves of a Merkle tree (RFC 6962, section 2.1), and an entry
// names the SHA-256 of each document put along with it: so one root hash, which a
// Checkpoint holds and signs, stands for everything that the store has.
//
// Documents are for what changes when somebody does something, not for what
// changes by the second: each change stays in the log. What a document held is
// still in the store after the document was replaced or deleted.
package ledger

import (
	"context"
	"errors"
	"time"
)

var (
	// ErrUnavailable is wrapped by the errors of a store that cannot make a change
	// durable, or cannot read, at the moment. Nothing may be issued then.
	ErrUnavailable = errors.New("the ledger cannot record now")
	// ErrConflict is wrapped by the error of a change whose preconditions do not
	// hold (any more). Nothing of it was done.
	ErrConflict = errors.New("the document was changed meanwhile")
	// ErrNoDocument is returned for a document that is not there.
	ErrNoDocument = errors.New("no such document")
	// ErrNoEntry is returned for an entry that is not there (yet).
	ErrNoEntry = errors.New("no such entry")
)

// Kind is what happened.
type Kind string

// The kinds of entries. Others may follow: readers pass over those that they do
// not know.
const (
	// Issued: a certificate. Everything of Entry but Facts and Detail is set.
	Issued Kind = "issued"
	// IssuedJWT: a JWT-SVID; Subject, Authority (the key's id) and NotAfter are set.
	IssuedJWT Kind = "jwt"
	// Refused: somebody asked for what he may not have. Detail has the reason; an
	// entry that stands for several has their number in "count".
	Refused Kind = "refused"
	// TokenMade: a join token; Subject is the identity that it is good for.
	TokenMade Kind = "token"
	// Registered and Unregistered: an identity; Subject is the SPIFFE ID.
	Registered   Kind = "registered"
	Unregistered Kind = "unregistered"
	// Rotated: a step of a rotation; Subject is the authority's key id.
	Rotated Kind = "rotated"
	// Announced: an authority over the same ledger says that it is there; Subject is
	// its id.
	Announced Kind = "announced"
	// Heard: what an authority hears of its watchers during a rotation, for others over
	// the same ledger; Subject is the new root's key id.
	Heard Kind = "heard"
	// Revoked and Unrevoked: a certificate, an identity or an authority.
	Revoked   Kind = "revoked"
	Unrevoked Kind = "unrevoked"
	// ACME: an account or an order of an ACME client; Detail says what happened.
	ACME Kind = "acme"
	// Restored: the store was restored from a backup.
	Restored Kind = "restored"
)

// Entry is one thing that happened.
type Entry struct {
	Kind Kind `json:"kind"`
	// Time is by the clock of the authority that did it.
	Time time.Time `json:"time"`
	// Actor is who asked: a SPIFFE ID, "join-token" or "admin uid=N".
	Actor string `json:"actor,omitempty"`
	// Request is the kind of request, as in the metrics: join, renew, mint ...
	Request string `json:"request,omitempty"`
	// Subject is what it is about, mostly a SPIFFE ID.
	Subject string `json:"subject,omitempty"`
	// Serial is a certificate's, in lower-case hexadecimal.
	Serial string `json:"serial,omitempty"`
	// Authority is the key id of what signed: for a certificate the
	// subjectKeyIdentifier of its issuer, in lower-case hexadecimal.
	Authority string    `json:"authority,omitempty"`
	NotBefore time.Time `json:"not_before,omitzero"`
	NotAfter  time.Time `json:"not_after,omitzero"`
	// SHA256 is of the whole certificate in DER, in lower-case hexadecimal.
	SHA256 string `json:"sha256,omitempty"`
	// Facts are what the attestation saw, such as "unix:uid:1000".
	Facts []string `json:"facts,omitempty"`
	// Detail is the rest that is worth knowing.
	Detail map[string]string `json:"detail,omitempty"`
	// Documents has the SHA-256 of each document put with it, in lower-case
	// hexadecimal, and an empty string for each deleted one. The store fills it in.
	Documents map[string]string `json:"documents,omitempty"`
}

// Change is made whole or not at all.
type Change struct {
	// If has the versions that documents must have for the change to be made; zero
	// stands for a document that is not there. A document of Put or Delete that is
	// not in If is put or deleted whatever its version.
	If map[string]uint64
	// Entry says what happened. Every change has one.
	Entry Entry
	// Put has the new documents by key, Delete the keys of those to go. A key is a
	// path such as "tokens/ID" of printable ASCII, of 512 bytes at most; the values
	// of a change may have 256 KiB together.
	Put    map[string][]byte
	Delete []string
}

// Document is a small value that is replaced as a whole; nobody alters its bytes.
type Document struct {
	Key   string
	Value []byte
	// Version is that of the change that put it, and so is one more than the index
	// of its entry. It rises with each change of the document.
	Version uint64
}

// Update is what changed among the documents that somebody watches.
type Update struct {
	// Put are new documents and those with a new value, in the order of their keys.
	Put []Document
	// Deleted are the keys of documents that are gone.
	Deleted []string
}

// Head is the log at a moment.
type Head struct {
	// Size is the number of entries.
	Size uint64
	// Root is the hash of the Merkle tree over them.
	Root [32]byte
}

// Store keeps the log and the documents. Its methods may be called concurrently.
type Store interface {
	Log
	Documents
	// Commit makes a change and returns its version: the index of its entry plus
	// one. When it returns nil, the change survives the death of the process and of
	// the machine; when it returns an error other than ErrConflict, it may or may
	// not.
	Commit(ctx context.Context, c Change) (version uint64, err error)
	// Check finds out whether a change could be made durable now; its error wraps
	// ErrUnavailable.
	Check(ctx context.Context) error
	// Close waits for changes under way. No method may be called after it.
	Close() error
}

// Log is what reads the entries.
type Log interface {
	// Head returns the log as it is now.
	Head(ctx context.Context) (Head, error)
	// Each calls f with the records from an index on that were there before the
	// call, oldest first, until f returns an error, which it returns. The bytes of a
	// record are f's until it returns.
	Each(ctx context.Context, from uint64, f func(Record) error) error
	// Proofs are those of RFC 6962, sections 2.1.1 and 2.1.2.
	InclusionProof(ctx context.Context, index, size uint64) ([][]byte, error)
	ConsistencyProof(ctx context.Context, from, to uint64) ([][]byte, error)
}

// Documents is what reads the documents.
type Documents interface {
	// Get returns a document as it is now, or ErrNoDocument.
	Get(ctx context.Context, key string) (Document, error)
	// List returns the documents whose keys begin with prefix, in the order of their
	// keys.
	List(ctx context.Context, prefix string) ([]Document, error)
	// Watch calls f with the documents whose keys begin with prefix, also if there
	// are none, and then with what changed, soon after each change; changes that
	// come fast are told together, of each document the newest. It returns when ctx
	// ends, with its error, or with the first error of f.
	Watch(ctx context.Context, prefix string, f func(Update) error) error
}

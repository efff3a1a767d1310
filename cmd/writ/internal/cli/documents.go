package cli

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/writ-mesh/writ/ca/ledger"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// heldDocument is what a document is: by which entry, and the SHA-256 of its value.
type heldDocument struct {
	version uint64
	sum     [sha256.Size]byte
}

// documentsAudit compares the documents that an authority goes by with those that the
// entries of its log make. They were read at some moment after the log had from
// entries, while it may have gone on.
type documentsAudit struct {
	from uint64
	live map[string]heldDocument

	made map[string]heldDocument
	// open are the keys that were not met as they are live.
	open map[string]bool
}

// readDocuments asks an authority for its documents; the log had from entries before.
func readDocuments(ctx context.Context, client capb.LedgerClient, from uint64) (*documentsAudit, error) {
	stream, err := client.ReadDocuments(ctx, &capb.ReadDocumentsRequest{})
	if err != nil {
		return nil, err
	}
	live := make(map[string]heldDocument)
	for {
		d, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return newDocumentsAudit(from, live), nil
		}
		if err != nil {
			return nil, err
		}
		held := heldDocument{version: d.GetVersion()}
		copy(held.sum[:], d.GetSha256())
		live[d.GetKey()] = held
	}
}

func newDocumentsAudit(from uint64, live map[string]heldDocument) *documentsAudit {
	a := &documentsAudit{from: from, live: live, made: make(map[string]heldDocument), open: make(map[string]bool)}
	if from == 0 {
		a.compareAll()
	}
	return a
}

// add takes the next entry, from the first on.
func (a *documentsAudit) add(r ledger.Record) error {
	put, deleted, err := r.Documents()
	if err != nil {
		return err
	}
	for _, d := range put {
		a.made[d.Key] = heldDocument{version: d.Version, sum: sha256.Sum256(d.Value)}
	}
	for _, key := range deleted {
		delete(a.made, key)
	}
	switch {
	case r.Index+1 == a.from:
		a.compareAll()
	case r.Index+1 > a.from:
		for _, d := range put {
			a.compare(d.Key)
		}
		for _, key := range deleted {
			a.compare(key)
		}
	}
	return nil
}

func (a *documentsAudit) compareAll() {
	for key := range a.live {
		a.open[key] = true
		a.compare(key)
	}
	for key := range a.made {
		a.open[key] = true
		a.compare(key)
	}
}

// compare finds out whether a document is live as the log has it so far. One that
// first came later is none of those that can be missing.
func (a *documentsAudit) compare(key string) {
	live, there := a.live[key]
	made, should := a.made[key]
	if there == should && live == made {
		delete(a.open, key)
	}
}

// end says which document is not the one of the log, if one is.
func (a *documentsAudit) end() error {
	for _, key := range slices.Sorted(maps.Keys(a.open)) {
		live, there := a.live[key]
		made, should := a.made[key]
		switch {
		case !there:
			return fmt.Errorf("the document %s, which entry %d put, is not among those that the authority goes by", key, made.version-1)
		case !should:
			return fmt.Errorf("the authority goes by a document %s that the log does not have", key)
		default:
			return fmt.Errorf("the document %s that the authority goes by (of entry %d) is not the one that entry %d put", key, live.version-1, made.version-1)
		}
	}
	return nil
}

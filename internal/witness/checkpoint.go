package witness

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"
)

// Checkpoint is what a log was at a moment, as its authority signed it.
type Checkpoint struct {
	// Log is the name of the log.
	Log string
	// Size is the number of its entries, Root the hash of the Merkle tree over them.
	Size uint64
	Root [32]byte
}

// Open reads a checkpoint in the form of https://c2sp.org/tlog-checkpoint and
// verifies its signature with the public key.
func Open(text []byte, verifier string) (Checkpoint, error) {
	v, err := note.NewVerifier(strings.TrimSpace(verifier))
	if err != nil {
		return Checkpoint{}, fmt.Errorf("the log's public key: %w", err)
	}
	n, err := note.Open(text, note.VerifierList(v))
	if err != nil {
		return Checkpoint{}, fmt.Errorf("the checkpoint is not signed by %s: %w", v.Name(), err)
	}
	lines := strings.Split(n.Text, "\n")
	if len(lines) < 4 || lines[0] != v.Name() {
		return Checkpoint{}, errors.New("the checkpoint is no checkpoint of that log")
	}
	c := Checkpoint{Log: lines[0]}
	c.Size, err = strconv.ParseUint(lines[1], 10, 64)
	if err != nil || strconv.FormatUint(c.Size, 10) != lines[1] {
		return Checkpoint{}, fmt.Errorf("the checkpoint's size %q is no number", lines[1])
	}
	root, err := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err != nil || len(root) != len(c.Root) {
		return Checkpoint{}, fmt.Errorf("the checkpoint's root %q is no hash", lines[2])
	}
	c.Root = [32]byte(root)
	return c, nil
}

// goesOnFrom verifies that the log of an earlier checkpoint is the beginning of that
// of c.
func (c Checkpoint) goesOnFrom(earlier Checkpoint, hashes [][]byte) error {
	return proof.VerifyConsistency(rfc6962.DefaultHasher, earlier.Size, c.Size, hashes, earlier.Root[:], c.Root[:])
}

// includes verifies that the log of c has an entry.
func (c Checkpoint) includes(index uint64, leaf []byte, hashes [][]byte) error {
	return proof.VerifyInclusion(rfc6962.DefaultHasher, index, c.Size, rfc6962.DefaultHasher.HashLeaf(leaf), hashes, c.Root[:])
}

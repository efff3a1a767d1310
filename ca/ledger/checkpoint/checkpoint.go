// Package checkpoint puts the head of a log into a signed note that anybody can
// keep, and finds out whether a log is still the one that a note was about.
//
// The form is that of https://c2sp.org/tlog-checkpoint: the name of the log, its
// size, and its root hash in base64, each on a line, and signed as
// https://c2sp.org/signed-note says, with Ed25519. Who keeps a checkpoint and its
// key's public half elsewhere than on the authority's machine can tell later
// whether an entry was altered, removed or put in between, whoever did it.
package checkpoint

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/internal/atomicfile"
	"github.com/writ-mesh/writ/internal/witness"
)

// The files in an authority's state directory: the key, its public half, and the newest
// checkpoint.
const (
	KeyFile    = "ledger.key"
	PublicFile = "ledger.pub"
	File       = "ledger.checkpoint"
)

// Signer signs the checkpoints of one log.
type Signer struct {
	signer note.Signer
	// Log is the name of the log.
	Log string
	// Verifier is the public key in the form of package note, "name+hash+key".
	Verifier string
}

// OpenKey loads the key of a log from a file, or makes it (mode 0600), for the log
// with that name, if it is not there; with an empty name that is an error.
func OpenKey(path, name string) (*Signer, error) {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) && name != "" {
		secret, _, err := note.GenerateKey(rand.Reader, name)
		if err != nil {
			return nil, fmt.Errorf("ledger key: %w", err)
		}
		if err := atomicfile.Write(path, []byte(secret+"\n"), 0o600); err != nil {
			return nil, fmt.Errorf("ledger key: %w", err)
		}
		return parseKey(secret, path)
	}
	if err != nil {
		return nil, fmt.Errorf("ledger key: %w", err)
	}
	if mode := info.Mode(); !mode.IsRegular() || mode.Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s has mode %s, so that others may have read the ledger's key; chmod 600 it if nobody could, else move it and the checkpoint away for a new one", path, mode)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("ledger key: %w", err)
	}
	return parseKey(strings.TrimSuffix(string(data), "\n"), path)
}

func parseKey(secret, path string) (*Signer, error) {
	signer, err := note.NewSigner(secret)
	if err != nil {
		// The cause may hold a part of the key.
		return nil, fmt.Errorf("%s is damaged: it holds no key of the ledger; restore it from a backup", path)
	}
	verifier, err := publicOf(secret)
	if err != nil {
		return nil, fmt.Errorf("%s is damaged: it holds no key of the ledger; restore it from a backup", path)
	}
	return &Signer{signer: signer, Log: signer.Name(), Verifier: verifier}, nil
}

// Sign makes the checkpoint of a head.
func (s *Signer) Sign(h ledger.Head) ([]byte, error) {
	text := s.signer.Name() + "\n" + strconv.FormatUint(h.Size, 10) + "\n" + base64.StdEncoding.EncodeToString(h.Root[:]) + "\n"
	out, err := note.Sign(&note.Note{Text: text}, s.signer)
	if err != nil {
		return nil, fmt.Errorf("sign the checkpoint: %w", err)
	}
	return out, nil
}

// Checkpoint is a head that somebody signed.
type Checkpoint struct {
	// Log is the name of the log.
	Log string
	ledger.Head
}

// Open reads a checkpoint and verifies its signature with the public key.
func Open(text []byte, verifier string) (Checkpoint, error) {
	c, err := witness.Open(text, verifier)
	return Checkpoint{Log: c.Log, Head: ledger.Head{Size: c.Size, Root: c.Root}}, err
}

// Compare tells whether a log is the one of an earlier head, perhaps with more
// entries.
func Compare(ctx context.Context, log ledger.Log, earlier ledger.Head) error {
	now, err := log.Head(ctx)
	if err != nil {
		return err
	}
	if now.Size < earlier.Size {
		return fmt.Errorf("it has %d entries, and had %d: the last ones are lost", now.Size, earlier.Size)
	}
	p, err := log.ConsistencyProof(ctx, earlier.Size, now.Size)
	if err != nil {
		return err
	}
	if err := proof.VerifyConsistency(rfc6962.DefaultHasher, earlier.Size, now.Size, p, earlier.Root[:], now.Root[:]); err != nil {
		return fmt.Errorf("its first %d entries are not those that it had: something was altered", earlier.Size)
	}
	return nil
}

// publicOf is the public half of a key in the form of package note, which gives it
// only when it makes one.
func publicOf(secret string) (string, error) {
	parts := strings.SplitN(secret, "+", 5) // PRIVATE+KEY+name+hash+key
	if len(parts) != 5 {
		return "", errors.New("malformed")
	}
	key, err := base64.StdEncoding.DecodeString(parts[4])
	if err != nil || len(key) != 1+ed25519.SeedSize || key[0] != ed25519Algorithm {
		return "", errors.New("malformed")
	}
	return note.NewEd25519VerifierKey(parts[2], public(key[1:]))
}

// ed25519Algorithm is that of a key in the form of package note.
const ed25519Algorithm = 1

func public(seed []byte) ed25519.PublicKey {
	return bytes.Clone(ed25519.NewKeyFromSeed(seed)[ed25519.SeedSize:])
}

package handover

import (
	"crypto/hpke"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"

	"github.com/writ-mesh/writ/internal/atomicfile"
)

// File is that of the pairs in an authority's state directory.
const File = "handover.json"

// maxFile bounds it, in bytes.
const maxFile = 64 << 10

// kem is how keys are sealed; its name in RFC 9180 and its successors is X-Wing.
func kem() hpke.KEM { return hpke.MLKEM768X25519() }

// Pairs are an authority's own: the one that is announced, and beside it, until Settle,
// the one that is about to be. The very first is settled from the start. They are safe for
// concurrent use: keys are taken over where one is looked for, while others are announced.
type Pairs struct {
	path string
	mu   sync.Mutex
	keys []hpke.PrivateKey // the older first; replaced, never changed
}

// stored is the form of the file: private keys as RFC 9180 writes them.
type stored struct {
	Keys [][]byte `json:"keys"`
}

// Open loads the pairs of a file; none if it is not there.
func Open(path string) (*Pairs, error) {
	p := &Pairs{path: path}
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil
	}
	if err != nil {
		return nil, fmt.Errorf("handover: %w", err)
	}
	if mode := info.Mode(); !mode.IsRegular() || mode.Perm()&0o077 != 0 || info.Size() > maxFile {
		return nil, fmt.Errorf("%s has mode %s and %d bytes, so that others may have read or written it; remove it, another is made at the next start", path, mode, info.Size())
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("handover: %w", err)
	}
	// The cause may hold a part of a key.
	damaged := fmt.Errorf("%s is damaged; remove it, another is made at the next start", path)
	var s stored
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, damaged
	}
	if len(s.Keys) > 2 {
		return nil, damaged
	}
	for _, raw := range s.Keys {
		key, err := kem().NewPrivateKey(raw)
		if err != nil {
			return nil, damaged
		}
		p.keys = append(p.keys, key)
	}
	return p, nil
}

// Renew gives the public key of a pair that is not announced yet, and the id of the one
// before, which is or was; empty for none. The pair is on disk when it returns, and is
// the same until Settle.
func (p *Pairs) Renew() (public []byte, former string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	next := p.keys
	if len(next) < 2 {
		key, err := kem().GenerateKey()
		if err != nil {
			return nil, "", fmt.Errorf("handover: %w", err)
		}
		next = append(next[:len(next):len(next)], key)
		if err := p.write(next); err != nil {
			return nil, "", err
		}
		p.keys = next
	}
	if len(next) == 2 {
		former = idOf(next[0].PublicKey().Bytes())
	}
	return next[len(next)-1].PublicKey().Bytes(), former, nil
}

// Settle forgets all but the newest pair, which is announced now.
func (p *Pairs) Settle() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	last := p.keys[max(0, len(p.keys)-1):]
	if err := p.write(last); err != nil {
		return err
	}
	p.keys = last
	return nil
}

func (p *Pairs) write(keys []hpke.PrivateKey) error {
	var s stored
	for _, key := range keys {
		raw, err := key.Bytes()
		if err != nil {
			return fmt.Errorf("handover: %w", err)
		}
		s.Keys = append(s.Keys, raw)
	}
	data, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("handover: %w", err)
	}
	return atomicfile.Write(p.path, data, 0o600)
}

// idOf names a replica by its public key: by enough of it that nobody finds another one
// with the same name, since people compare it.
func idOf(public []byte) string {
	sum := sha256.Sum256(public)
	return hex.EncodeToString(sum[:12])
}

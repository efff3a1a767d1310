// Package proxysecret makes the secrets by which a node agent tells what an Envoy asks by itself from what it merely
// forwards. The kernel says which process is at the other end of the agent's socket, and not why it connects: whoever
// could make a proxy connect there would be taken for the proxy.
//
// Each proxy's bootstrap has a secret, which its Envoy sends with every call of its own to the agent. All come from one
// key of the node, so that an agent which is started again, and a bootstrap that is written again, agree with what runs.
package proxysecret

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/writ-mesh/writ/internal/atomicfile"
)

const (
	// Header carries the secret.
	Header = "x-writ-proxy-secret"
	// File is the key's usual name, in the state directory of the node agent.
	File = "proxy.key"
)

// keyBytes is the length of a key.
const keyBytes = 32

// context parts the secrets from anything else that might be made with the key.
const context = "writ proxy secret 1\x00"

// Key is that of a node.
type Key struct{ secret [keyBytes]byte }

// Open reads the key at path, which has the mode 0600 or less, and makes one if there is none. Of several that make one
// at the same time all get the same.
func Open(path string) (*Key, error) {
	k, err := read(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return k, err
	}
	if err := create(path); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("proxy key: %w", err)
	}
	return read(path)
}

// create makes a key in a whole file; the error is fs.ErrExist if another was first.
func create(path string) error {
	fresh := make([]byte, keyBytes)
	if _, err := rand.Read(fresh); err != nil {
		return err
	}
	own := path + "." + rand.Text()
	defer func() { _ = os.Remove(own) }()
	if err := atomicfile.Write(own, []byte(encoding().EncodeToString(fresh)+"\n"), 0o600); err != nil {
		return err
	}
	if err := os.Link(own, path); err != nil {
		return err
	}
	// Secrets are made of it at once: it has to outlive the machine.
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func encoding() *base64.Encoding { return base64.RawURLEncoding.Strict() }

func read(path string) (*Key, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("proxy key: %w", err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("proxy key: %w", err)
	}
	if mode := info.Mode(); !mode.IsRegular() || mode.Perm()&0o077 != 0 {
		return nil, fmt.Errorf("proxy key %s has mode %v: others could act as the node's proxies; make it 0600, or remove it and give every proxy a new bootstrap", path, mode)
	}
	want := encoding().EncodedLen(keyBytes) + 1
	data, err := io.ReadAll(io.LimitReader(f, int64(want)+1))
	if err != nil {
		return nil, fmt.Errorf("proxy key: %w", err)
	}
	k := new(Key)
	if len(data) == want && data[want-1] == '\n' {
		if n, err := encoding().Decode(k.secret[:], data[:want-1]); err == nil && n == keyBytes {
			return k, nil
		}
	}
	return nil, fmt.Errorf("proxy key %s is not what writ made: put the file back, or remove it and give every proxy a new bootstrap", path)
}

// Secret is that of the proxy with an xDS node id.
func (k *Key) Secret(proxyID string) string {
	h := hmac.New(sha256.New, k.secret[:])
	_, _ = h.Write([]byte(context + proxyID))
	return base64.RawURLEncoding.EncodeToString(h.Sum(nil))
}

// Is tells whether secret is that of a proxy, in a time that says nothing of how much of it is right.
func (k *Key) Is(proxyID, secret string) bool {
	return hmac.Equal([]byte(k.Secret(proxyID)), []byte(secret))
}

// Package kms keeps the keys of authorities in a key manager: a token that is
// reached by PKCS #11 (a hardware security module). The key never leaves it, and is
// named by a URI (RFC 7512). It is the one door to go.step.sm/crypto/kms.
//
// PKCS #11 modules are C libraries. Writ's programs are built without C, and then
// Open fails; a writ-ca that is built with CGO_ENABLED=1 and -tags pkcs11 has it.
package kms

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"

	"go.step.sm/crypto/kms/uri"
)

// scheme is that of the URIs.
const scheme = "pkcs11"

// maxPIN bounds a PIN in bytes.
const maxPIN = 256

// ErrNoKey is wrapped by errors that say that the token has no such key.
var ErrNoKey = errors.New("no such key")

// manager is what a key manager does for us.
type manager interface {
	// find gives the key with that URI. Its error wraps ErrNoKey if there is none.
	find(uri string) (crypto.Signer, error)
	// make makes a P-256 key with that URI, which cannot be taken out.
	make(uri string) error
	close() error
}

// Keys are those of a token. It is safe for concurrent use.
type Keys struct {
	m      manager
	prefix string // of the URIs: module and token
	object string
}

// Valid says what is wrong with the URI of a key.
func Valid(key string) error {
	_, err := parse(key)
	return err
}

func parse(key string) (*uri.URI, error) {
	if strings.Contains(key, "pin-value") || strings.Contains(key, "pin-source") {
		// Not repeated here: it may hold a PIN.
		return nil, errors.New("the URI has a pin-value or pin-source; put the PIN into a file of mode 0600 and name that in authority.pin_file")
	}
	u, err := uri.ParseWithScheme(scheme, key)
	if err != nil {
		return nil, fmt.Errorf("%q is no URI of a PKCS #11 key, such as pkcs11:module-path=/usr/lib/softhsm/libsofthsm2.so;token=writ;object=root: %w", key, err)
	}
	switch {
	case u.Get("module-path") == "":
		return nil, fmt.Errorf("%q does not name the module: module-path=FILE", key)
	case u.Get("token") == "" && u.Get("serial") == "" && u.Get("slot-id") == "":
		return nil, fmt.Errorf("%q does not name the token: token=LABEL, serial=NUMBER or slot-id=NUMBER", key)
	case u.Get("object") == "":
		return nil, fmt.Errorf("%q does not name the key: object=LABEL", key)
	}
	return u, nil
}

// Open opens the token of the key with that URI. The PIN is in pinFile, whose mode
// lets nobody else read it; empty for a token that wants none.
func Open(ctx context.Context, key, pinFile string) (*Keys, error) {
	u, err := parse(key)
	if err != nil {
		return nil, err
	}
	pin, err := readPIN(pinFile)
	if err != nil {
		return nil, err
	}
	k := &Keys{object: url.QueryEscape(u.Get("object"))}
	var parts []string
	for _, name := range []string{"module-path", "token", "serial", "slot-id"} {
		if v := u.Get(name); v != "" {
			parts = append(parts, name+"="+strings.ReplaceAll(url.QueryEscape(v), "%2F", "/"))
		}
	}
	k.prefix = scheme + ":" + strings.Join(parts, ";")
	if k.m, err = open(ctx, k.prefix, pin); err != nil {
		return nil, fmt.Errorf("%s: %w", k.prefix, err)
	}
	return k, nil
}

// Find gives the key with that URI; the error wraps ErrNoKey if there is none.
func (k *Keys) Find(key string) (crypto.Signer, error) {
	if _, err := parse(key); err != nil {
		return nil, err
	}
	return k.m.find(key)
}

// Make makes one more key beside the one that Open was given, and gives its URI.
func (k *Keys) Make() (key string, signer crypto.Signer, err error) {
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return "", nil, err
	}
	key = fmt.Sprintf("%s;id=%s;object=%s", k.prefix, hex.EncodeToString(id), k.object)
	if err := k.m.make(key); err != nil {
		return "", nil, err
	}
	signer, err = k.m.find(key)
	return key, signer, err
}

// Close ends the sessions with the token.
func (k *Keys) Close() error { return k.m.close() }

// readPIN reads a PIN; no error holds it.
func readPIN(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("PIN: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", fmt.Errorf("PIN: %w", err)
	}
	if mode := info.Mode(); !mode.IsRegular() || mode.Perm()&^0o600 != 0 {
		return "", fmt.Errorf("%s has mode %s, so that others may have read the PIN; chmod 600 it if nobody could, else change the PIN", path, mode)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxPIN+1))
	if err != nil {
		return "", fmt.Errorf("PIN: %w", err)
	}
	pin := string(bytes.TrimSpace(data))
	if pin == "" || len(data) > maxPIN || strings.ContainsAny(pin, "\r\n") {
		return "", fmt.Errorf("%s: want the PIN on one line, of at most %d bytes", path, maxPIN)
	}
	return pin, nil
}

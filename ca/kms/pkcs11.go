//go:build pkcs11 && cgo

package kms

import (
	"context"
	"crypto"
	"fmt"
	"strings"

	"go.step.sm/crypto/kms/apiv1"
	"go.step.sm/crypto/kms/pkcs11"
)

// token is a manager by PKCS #11.
type token struct{ keys *pkcs11.PKCS11 }

func open(ctx context.Context, prefix, pin string) (manager, error) {
	keys, err := pkcs11.New(ctx, apiv1.Options{Type: apiv1.PKCS11, URI: prefix, Pin: pin})
	if err != nil {
		return nil, err
	}
	return &token{keys}, nil
}

func (t *token) find(key string) (crypto.Signer, error) {
	signer, err := t.keys.CreateSigner(&apiv1.CreateSignerRequest{SigningKey: key})
	if err != nil && strings.HasSuffix(err.Error(), "not found") { // it has no other mark
		return nil, fmt.Errorf("%s: %w", key, ErrNoKey)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	return signer, nil
}

func (t *token) make(key string) error {
	if _, err := t.keys.CreateKey(&apiv1.CreateKeyRequest{Name: key, SignatureAlgorithm: apiv1.ECDSAWithSHA256}); err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	return nil
}

func (t *token) close() error { return t.keys.Close() }

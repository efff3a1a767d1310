package ca

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/writ-mesh/writ/ca/kms"
	"github.com/writ-mesh/writ/ca/root"
	"github.com/writ-mesh/writ/ca/roots"
	"github.com/writ-mesh/writ/ca/signer"
)

// remember keeps where the keys of a state's roots are.
func (k *keeper) remember(s roots.State) {
	for _, a := range s.Authorities {
		if a.Key != "" {
			k.refs.Store(a.KeyID, a.Key)
		}
	}
}

// firstKMS begins with a root whose key is in the key manager: the one of
// authority.kms, which is made if it is not there.
func (k *keeper) firstKMS(ctx context.Context, inUse bool) (*trust, error) {
	key, uri := k.kmsURI, k.kmsURI
	sign, err := k.keys.Find(key)
	if errors.Is(err, kms.ErrNoKey) {
		if inUse {
			return nil, fmt.Errorf("certificates were issued from this directory, yet the state of its roots is missing, and the key too: %w", err)
		}
		uri, sign, err = k.keys.Make()
	}
	if err != nil {
		return nil, fmt.Errorf("root key: %w", err)
	}
	cert, err := root.SelfSigned(ctx, sign, k.spec, k.now())
	if err != nil {
		return nil, err
	}
	service, err := signer.New(ctx, []*x509.Certificate{cert}, sign)
	if err != nil {
		return nil, err
	}
	s := roots.First(roots.Authority{KeyID: root.KeyID(cert), Certificate: cert.Raw, Key: uri})
	k.remember(s)
	if err := k.saveState(ctx, s, event{actor: selfActor, step: "first", subject: s.Active}); err != nil {
		return nil, err
	}
	return newTrust(k.spec.TrustDomain, s, service)
}

// further makes one more root, whose key is where new keys belong.
func (k *keeper) further(ctx context.Context, now time.Time) (roots.Authority, error) {
	if k.keys == nil {
		next, err := root.Further(ctx, k.dir, k.spec, now)
		if err != nil {
			return roots.Authority{}, err
		}
		return roots.Authority{KeyID: root.KeyID(next.Cert), Certificate: next.Cert.Raw}, nil
	}
	uri, key, err := k.keys.Make()
	if err != nil {
		return roots.Authority{}, fmt.Errorf("root key: %w", err)
	}
	cert, err := root.SelfSigned(ctx, key, k.spec, now)
	if err != nil {
		return roots.Authority{}, err
	}
	a := roots.Authority{KeyID: root.KeyID(cert), Certificate: cert.Raw, Key: uri}
	k.remember(roots.State{Authorities: []roots.Authority{a}})
	return a, nil
}

// kmsSigner gives who signs for a root whose key is in the key manager; nil if it is
// not.
func (k *keeper) kmsSigner(ctx context.Context, cert *x509.Certificate) (*signer.Signer, error) {
	ref, ok := k.refs.Load(root.KeyID(cert))
	if !ok {
		return nil, nil
	}
	uri, _ := ref.(string)
	if k.keys == nil {
		return nil, fmt.Errorf("the key of the root %s is %s, and authority.kms is not set", root.KeyID(cert), uri)
	}
	key, err := k.keys.Find(uri)
	if err != nil {
		return nil, fmt.Errorf("root key: %w", err)
	}
	sign, err := signer.New(ctx, []*x509.Certificate{cert}, key)
	if err != nil {
		return nil, fmt.Errorf("%s is not the key of the root %s", uri, root.KeyID(cert))
	}
	return sign, nil
}

// Package root keeps the keys of a trust domain's roots in the authority's state
// directory: those of the first root (root.key, mode 0600, and root.crt), those of
// roots that follow it (roots/KEYID.key, mode 0600), and the lock that keeps a
// second process out. What is there is loaded; a first start makes it; nothing that
// exists is ever overwritten.
package root

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-mesh/writ/ca/profile"
	"github.com/writ-mesh/writ/ca/signer"
	"github.com/writ-mesh/writ/internal/atomicfile"
)

// The files in a state directory.
const (
	CertFile = "root.crt"
	KeyFile  = "root.key"
)

// Root is a root certificate with its key.
type Root struct {
	Cert *x509.Certificate
	Key  crypto.Signer
	// New tells that it was made just now.
	New bool
}

// Spec says what a root is to be if there is none yet.
type Spec struct {
	TrustDomain spiffeid.TrustDomain
	// Life is how long a new root is valid.
	Life time.Duration
	// Skew is by how much a new root is backdated.
	Skew time.Duration
	// InUse tells that certificates were issued from this directory before, so
	// that a missing file is a loss and no first start.
	InUse bool
}

// Open loads the root from dir, which OpenDir has checked, or makes it if neither
// of its files is there. Errors name the file and say what to do.
func Open(ctx context.Context, dir string, spec Spec, now time.Time) (*Root, error) {
	keyPath, certPath := filepath.Join(dir, KeyFile), filepath.Join(dir, CertFile)
	key, err := loadKey(keyPath)
	hasKey := !errors.Is(err, fs.ErrNotExist)
	if hasKey && err != nil {
		return nil, err
	}
	cert, err := loadCert(certPath)
	hasCert := !errors.Is(err, fs.ErrNotExist)
	if hasCert && err != nil {
		return nil, err
	}
	switch {
	case hasKey && hasCert:
		return check(&Root{Cert: cert, Key: key}, dir, spec.TrustDomain, now)
	case hasCert:
		return nil, fmt.Errorf("%s is missing beside %s; restore it from a backup, or move %s away to begin with a new root", keyPath, CertFile, CertFile)
	case spec.InUse:
		return nil, fmt.Errorf("%s is missing, yet certificates were issued from this directory; restore %s and %s from a backup, or begin with an empty directory", certPath, KeyFile, CertFile)
	}
	return create(ctx, dir, key, spec, now)
}

// create makes what is missing. A key that is there alone is left from a first
// start that was cut off between the two files, and serves.
func create(ctx context.Context, dir string, key crypto.Signer, spec Spec, now time.Time) (*Root, error) {
	if key == nil {
		made, data, err := newKey()
		if err != nil {
			return nil, err
		}
		if err := atomicfile.Write(filepath.Join(dir, KeyFile), data, 0o600); err != nil {
			return nil, err
		}
		key = made
	}
	cert, err := SelfSigned(ctx, key, spec, now)
	if err != nil {
		return nil, err
	}
	if err := atomicfile.Write(filepath.Join(dir, CertFile), PEM(cert), 0o644); err != nil {
		return nil, err
	}
	r, err := check(&Root{Cert: cert, Key: key}, dir, spec.TrustDomain, now)
	if err != nil {
		return nil, err
	}
	r.New = true
	return r, nil
}

// newKey makes a key, and gives it in PEM too.
func newKey() (crypto.Signer, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("root key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("root key: %w", err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// SelfSigned makes a root's certificate for a key.
func SelfSigned(ctx context.Context, key crypto.Signer, spec Spec, now time.Time) (*x509.Certificate, error) {
	template, err := profile.Root(spec.TrustDomain, key.Public(), now.Add(-spec.Skew), now.Add(spec.Life))
	if err != nil {
		return nil, fmt.Errorf("root certificate: %w", err)
	}
	cert, err := signer.SelfSign(ctx, template, key)
	if err != nil {
		return nil, fmt.Errorf("root certificate: %w", err)
	}
	return cert, nil
}

func check(r *Root, dir string, td spiffeid.TrustDomain, now time.Time) (*Root, error) {
	certPath := filepath.Join(dir, CertFile)
	if err := profile.CheckRoot(r.Cert, td, now); err != nil {
		return nil, fmt.Errorf("%s: %w", certPath, err)
	}
	if !matches(r.Key, r.Cert) {
		return nil, fmt.Errorf("%s is not the certificate of the key in %s; restore both from the same backup", certPath, KeyFile)
	}
	return r, nil
}

// PEM encodes certificates one after the other.
func PEM(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

func loadKey(path string) (crypto.Signer, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, fmt.Errorf("root key: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file; put the key itself there", path)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("%s has mode %04o, so that others may have read the root key; chmod 600 it if nobody could, else begin with a new root", path, mode)
	}
	block, err := loadPEM(path, "PRIVATE KEY")
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block)
	if err != nil {
		return nil, fmt.Errorf("%s holds no PKCS #8 private key; restore it from a backup: %w", path, err)
	}
	key, ok := parsed.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%s holds a key that cannot sign; restore it from a backup", path)
	}
	return key, nil
}

func loadCert(path string) (*x509.Certificate, error) {
	block, err := loadPEM(path, "CERTIFICATE")
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(block)
	if err != nil {
		return nil, fmt.Errorf("%s holds no certificate; restore it from a backup: %w", path, err)
	}
	return cert, nil
}

// loadPEM reads a file that is one PEM block and nothing else, so that a file cut
// short or with something appended is noticed.
func loadPEM(path, kind string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	block, rest := pem.Decode(data)
	if block == nil || block.Type != kind || len(rest) > 0 {
		return nil, fmt.Errorf("%s is damaged (want one PEM block of type %s, found %d bytes of something else); restore it from a backup", path, kind, len(data))
	}
	return block.Bytes, nil
}

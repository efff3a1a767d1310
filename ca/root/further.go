package root

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/writ-mesh/writ/internal/atomicfile"
)

// furtherDir is the folder of the state directory with the keys of roots after the
// first, each in a file that is named by its key id.
const (
	furtherDir = "roots"
	keySuffix  = ".key"
)

// KeyID names a root by its key: the subject key identifier in lower-case
// hexadecimal, which is the authority key identifier of what it signs. A
// certificate without one, which Writ does not make, is named as if it had one.
func KeyID(cert *x509.Certificate) string {
	if len(cert.SubjectKeyId) == 0 {
		sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
		return hex.EncodeToString(sum[:20])
	}
	return hex.EncodeToString(cert.SubjectKeyId)
}

// Further makes one more root in dir, beside those that there are. Its key is on
// disk when it returns; the certificate is for the caller to keep.
func Further(ctx context.Context, dir string, spec Spec, now time.Time) (*Root, error) {
	if err := os.MkdirAll(filepath.Join(dir, furtherDir), 0o700); err != nil {
		return nil, fmt.Errorf("root key: %w", err)
	}
	key, data, err := newKey()
	if err != nil {
		return nil, err
	}
	cert, err := SelfSigned(ctx, key, spec, now)
	if err != nil {
		return nil, err
	}
	if err := atomicfile.Write(furtherKey(dir, KeyID(cert)), data, 0o600); err != nil {
		return nil, err
	}
	return &Root{Cert: cert, Key: key, New: true}, nil
}

// LoadFurther loads the key of a further root. The error wraps fs.ErrNotExist if
// the root is none or its key is gone; else it names the file and says what to do.
func LoadFurther(dir string, cert *x509.Certificate) (crypto.Signer, error) {
	path := furtherKey(dir, KeyID(cert))
	key, err := loadKey(path)
	if err != nil {
		return nil, err
	}
	if !matches(key, cert) {
		return nil, fmt.Errorf("%s is not the key of the root with that key id; restore it from a backup", path)
	}
	return key, nil
}

// Export gives the key of a root as it is on disk, for others that are the same
// authority. The error wraps fs.ErrNotExist if it is not there.
func Export(dir string, cert *x509.Certificate) ([]byte, error) {
	path := furtherKey(dir, KeyID(cert))
	key, err := loadKey(path)
	if errors.Is(err, fs.ErrNotExist) {
		path = filepath.Join(dir, KeyFile)
		if key, err = loadKey(path); err == nil && !matches(key, cert) {
			err = fmt.Errorf("key of the root %s: %w", KeyID(cert), fs.ErrNotExist)
		}
	}
	if err != nil {
		return nil, err
	}
	if !matches(key, cert) {
		return nil, fmt.Errorf("%s is not the key of the root with that key id; restore it from a backup", path)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("root key: %w", err)
	}
	return data, nil
}

// Import keeps what Export gave elsewhere as the key of a further root, if it is that.
func Import(dir string, cert *x509.Certificate, data []byte) (crypto.Signer, error) {
	block, rest := pem.Decode(data)
	if block == nil || block.Type != "PRIVATE KEY" || len(rest) > 0 {
		return nil, errors.New("what was handed over is no key")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("what was handed over is no key") // the cause may hold a part of it
	}
	if key, ok := parsed.(crypto.Signer); !ok || !matches(key, cert) {
		return nil, fmt.Errorf("what was handed over is not the key of the root %s", KeyID(cert))
	}
	if err := os.MkdirAll(filepath.Join(dir, furtherDir), 0o700); err != nil {
		return nil, fmt.Errorf("root key: %w", err)
	}
	if err := atomicfile.Write(furtherKey(dir, KeyID(cert)), data, 0o600); err != nil {
		return nil, err
	}
	return LoadFurther(dir, cert)
}

// Retire removes the key of a root that nothing is signed with any more. It is no
// error if it is gone already.
func Retire(dir string, cert *x509.Certificate) error {
	paths := []string{furtherKey(dir, KeyID(cert))}
	if key, err := loadKey(filepath.Join(dir, KeyFile)); err == nil && matches(key, cert) {
		paths = append(paths, filepath.Join(dir, KeyFile), filepath.Join(dir, CertFile))
	}
	for _, path := range paths {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("key of a root that is out of use: %w", err)
		}
	}
	return nil
}

// Leftovers removes the keys of roots other than those with the key ids in use: such
// are left from a step of a rotation that was cut off.
func Leftovers(dir string, inUse func(keyID string) bool) error {
	if cert, err := loadCert(filepath.Join(dir, CertFile)); err == nil && !inUse(KeyID(cert)) {
		if err := Retire(dir, cert); err != nil {
			return err
		}
		if err := os.Remove(filepath.Join(dir, CertFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("certificate of a root that is out of use: %w", err)
		}
	}
	entries, err := os.ReadDir(filepath.Join(dir, furtherDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("roots: %w", err)
	}
	for _, e := range entries {
		keyID, ours := strings.CutSuffix(e.Name(), keySuffix)
		if !ours || inUse(keyID) {
			continue
		}
		if err := os.Remove(filepath.Join(dir, furtherDir, e.Name())); err != nil {
			return fmt.Errorf("key of a root that is out of use: %w", err)
		}
	}
	return nil
}

// HasFurther tells whether there are keys of further roots.
func HasFurther(dir string) (bool, error) {
	found, err := filepath.Glob(filepath.Join(dir, furtherDir, "*"+keySuffix))
	return len(found) > 0, err
}

func furtherKey(dir, keyID string) string {
	return filepath.Join(dir, furtherDir, keyID+keySuffix)
}

func matches(key crypto.Signer, cert *x509.Certificate) bool {
	type publicKey interface{ Equal(crypto.PublicKey) bool }
	pub, ok := key.Public().(publicKey)
	return ok && pub.Equal(cert.PublicKey)
}

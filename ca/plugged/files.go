package plugged

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sys/unix"

	"github.com/writ-mesh/writ/internal/service"
)

// The files of a plugged-in authority, named as in Istio.
const (
	CertFile  = "ca-cert.pem"
	KeyFile   = "ca-key.pem"
	ChainFile = "cert-chain.pem"
	RootFile  = "root-cert.pem"
)

const (
	// lookEvery is how often the files are looked at, without reading them.
	lookEvery = time.Second
	// readEvery is how often they are read though they look the same.
	readEvery = time.Minute
)

// Load reads and checks the set in dir. key is that of ca-cert.pem if it is kept
// elsewhere, else nil, and ca-key.pem is read. Without a cert-chain.pem the issuing
// certificate is directly under a root. Errors name the file.
func Load(dir string, key crypto.Signer, td spiffeid.TrustDomain, now time.Time) (Set, error) {
	n := names{cert: filepath.Join(dir, CertFile), key: filepath.Join(dir, KeyFile), chain: filepath.Join(dir, ChainFile), root: filepath.Join(dir, RootFile)}
	if key != nil {
		n.key = "the key of authority.kms"
	}
	s := Set{Key: key}
	issuing, err := LoadCertificates(n.cert)
	if err != nil {
		return Set{}, err
	}
	if len(issuing) != 1 {
		return Set{}, fmt.Errorf("%s: there are %d certificates; leave the issuing one there, those above it belong into %s", n.cert, len(issuing), ChainFile)
	}
	if key == nil {
		if s.Key, err = LoadKey(n.key); err != nil {
			return Set{}, err
		}
	}
	if s.Roots, err = LoadCertificates(n.root); err != nil {
		return Set{}, err
	}
	s.Chain, err = LoadCertificates(n.chain)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		s.Chain, n.chain = issuing, n.cert
	case err != nil:
		return Set{}, err
	case !s.Chain[0].Equal(issuing[0]):
		return Set{}, fmt.Errorf("%s: it begins with %s, not with the certificate of %s (%s); put the issuing one first and after each the one that signed it",
			n.chain, s.Chain[0].Subject, CertFile, issuing[0].Subject)
	}
	return assemble(s, n, td, now)
}

// LoadCertificates reads a file of certificates, as ParseCertificates does. Errors name it.
func LoadCertificates(path string) ([]*x509.Certificate, error) {
	data, _, err := read(path)
	if err != nil {
		return nil, err
	}
	out, err := ParseCertificates(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return out, nil
}

// LoadKey reads a private key in PEM from a file that nobody else may read. Errors name
// it and hold nothing of the key.
func LoadKey(path string) (crypto.Signer, error) {
	data, mode, err := read(path)
	if err != nil {
		return nil, err
	}
	if mode&^0o600 != 0 {
		return nil, fmt.Errorf("%s: it has mode %04o, so that others may have read the key; chmod 600 it (in Kubernetes defaultMode: 0400) if nobody could, else replace the authority", path, mode)
	}
	key, err := parseKey(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}

// read reads a bounded file and gives its mode; a Kubernetes Secret is mounted as
// symbolic links.
func read(path string) ([]byte, fs.FileMode, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, fmt.Errorf("plugged-in authority: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, 0, fmt.Errorf("plugged-in authority: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, 0, fmt.Errorf("%s: it is no regular file", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return nil, 0, fmt.Errorf("plugged-in authority: %w", err)
	}
	if len(data) > maxSize {
		return nil, 0, fmt.Errorf("%s: it is longer than %d bytes", path, maxSize)
	}
	return data, info.Mode().Perm(), nil
}

// Watch calls changed at once, when files of dir have changed and are the same for a second
// since, as who replaces four files does not do so at once, and every minute in any
// case, until ctx ends.
func Watch(ctx context.Context, dir string, changed func(context.Context)) error {
	handled := look(dir)
	before, read := handled, time.Now()
	changed(ctx)
	return service.Every(ctx, lookEvery, func(time.Time) {
		seen := look(dir)
		steady := seen == before
		before = seen
		if !steady || seen == handled && time.Since(read) < readEvery {
			return
		}
		changed(ctx)
		handled, read = seen, time.Now()
	})
}

// look is what the files look like from outside: identity, size, mode and time of
// each.
func look(dir string) string {
	var out strings.Builder
	for _, name := range []string{CertFile, KeyFile, ChainFile, RootFile} {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(dir, name), &st); err != nil {
			fmt.Fprintf(&out, "%s: %v\n", name, err)
			continue
		}
		fmt.Fprintln(&out, name, st.Dev, st.Ino, st.Size, st.Mode, st.Mtim, st.Ctim)
	}
	return out.String()
}

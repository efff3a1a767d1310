package ca

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/root"
	"github.com/writ-mesh/writ/ca/roots"
	"github.com/writ-mesh/writ/ca/signer"
)

// trust is who signs and who is trusted, at a moment. It is never changed, only
// replaced as a whole, so that whoever holds one sees no half of a rotation.
type trust struct {
	state roots.State
	// version is that of the state's document.
	version uint64
	// since is when it was put into force here.
	since  time.Time
	signer *signer.Signer
	bundle *x509bundle.Bundle
	// roots are those of the bundle in DER.
	roots [][]byte
	// end is when the first certificate of those above a signed one expires.
	end time.Time
	// past are those who signed before, as far as their roots are still trusted.
	past []*signer.Signer
	// replaced is closed when there is a newer one.
	replaced chan struct{}

	formerMu sync.Mutex
	// former has the SHA-256 of each live certificate of a root that is not trusted
	// any more, nil until somebody asks.
	former map[string]bool
}

// newTrust builds what a state says; sign signs for its active authority.
func newTrust(td spiffeid.TrustDomain, s roots.State, sign *signer.Signer) (*trust, error) {
	t := &trust{state: s, signer: sign, bundle: x509bundle.New(td), roots: s.Trusted(), replaced: make(chan struct{})}
	for i, der := range t.roots {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("root %d of the bundle: %w", i+1, err)
		}
		t.bundle.AddX509Authority(cert)
		if root.KeyID(cert) == s.Active {
			t.end = cert.NotAfter
		}
	}
	for _, cert := range sign.Intermediates() {
		if cert.NotAfter.Before(t.end) {
			t.end = cert.NotAfter
		}
	}
	return t, nil
}

// covers tells whether the issuer of a certificate that this authority signed is
// still trusted. One that does not name its issuer is given the benefit.
func (t *trust) covers(cert *x509.Certificate) bool {
	if len(cert.AuthorityKeyId) == 0 || slices.Equal(cert.AuthorityKeyId, t.signer.Issuer().SubjectKeyId) {
		return true
	}
	return t.knows(issuerOf(cert))
}

// knows tells whether the authority with that key id is under a root that signs or
// signed here, and is trusted.
func (t *trust) knows(issuer string) bool {
	_, ok := t.state.Authority(t.state.RootOf(issuer))
	return ok
}

// issuerOf is the key id of the authority that signed a certificate.
func issuerOf(cert *x509.Certificate) string { return hex.EncodeToString(cert.AuthorityKeyId) }

// trusted is who signs and who is trusted now.
func (a *Authority) trusted() *trust { return a.trust.Load() }

// replace puts a new trust into force. When it returns, every certificate that the
// one before signed is in the ledger, and none will be signed by it any more.
func (a *Authority) replace(t *trust) {
	a.signing.Lock()
	old := a.trust.Swap(t)
	a.signing.Unlock()
	if old != nil {
		close(old.replaced)
	}
}

// rooted refuses a caller whose certificate is of a compromised root that was
// dropped since he connected, unless the ledger has that very certificate: whoever
// got hold of the root's key can make certificates, but not those. So a caller who
// was connected gets a new certificate, and a forger does not.
func (a *Authority) rooted(ctx context.Context, chain []*x509.Certificate) error {
	t := a.trusted()
	if last := t.state.Last; last == nil || !last.Compromised || last.Step != roots.Done || a.now().After(last.Since.Add(a.life.max)) {
		return nil
	}
	cert := chain[0]
	// By the signature: what a forged certificate says of its issuer is worth nothing.
	if _, _, err := x509svid.Verify(chain, t.bundle, x509svid.WithTime(a.now())); err == nil {
		return nil
	}
	t.formerMu.Lock()
	defer t.formerMu.Unlock()
	if t.former == nil {
		former, now := make(map[string]bool), a.now()
		err := a.eachCertificate(ctx, "", func(e ledger.Entry) error {
			if !t.knows(e.Authority) && e.NotAfter.After(now) {
				former[e.SHA256] = true
			}
			return nil
		})
		if err != nil {
			return refuse(unavailable, "the ledger cannot be read at the moment").because(err)
		}
		t.former = former
	}
	if sum := sha256.Sum256(cert.Raw); !t.former[hex.EncodeToString(sum[:])] {
		return refuse(stale, "the root of the client certificate is not trusted any more; join again")
	}
	return nil
}

// GetX509BundleForTrustDomain implements x509bundle.Source with the roots that are
// trusted at the moment of the call.
func (a *Authority) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	return a.trusted().bundle.GetX509BundleForTrustDomain(td)
}

// open puts the trust that the ledger remembers into force, or that of a new root.
func (k *keeper) open(ctx context.Context, inUse bool) error {
	t, err := k.openTrust(ctx, inUse)
	if err != nil {
		return err
	}
	t.version, t.since = k.version, k.now()
	k.a.replace(t)
	cert := t.signer.Issuer()
	k.log.InfoContext(ctx, "root certificate", slog.String("trust_domain", k.spec.TrustDomain.Name()), slog.String("root", t.state.Active),
		slog.String("issuer", root.KeyID(cert)), slog.Time("not_after", t.end), slog.Uint64("bundle", t.state.Sequence))
	return k.settle(ctx, t)
}

// openTrust loads the state of the roots and the key that signs, or makes the first
// root.
func (k *keeper) openTrust(ctx context.Context, inUse bool) (*trust, error) {
	s, version, err := k.loadState(ctx)
	if err != nil {
		return nil, err
	}
	k.version = version
	if o := k.outside.Load(); o != nil {
		return k.openOutside(ctx, o, s, inUse)
	}
	if version == 0 {
		t, err := k.first(ctx, inUse)
		if !errors.Is(err, ledger.ErrConflict) {
			return t, err
		}
		// Another authority over the same ledger was faster.
		if s, k.version, err = k.loadState(ctx); err != nil {
			return nil, err
		}
	}
	for {
		active, _ := s.Authority(s.Active)
		cert, err := x509.ParseCertificate(active.Certificate)
		if err != nil {
			return nil, fmt.Errorf("root %s: %w", s.Active, err)
		}
		sign, err := k.loadSigner(ctx, cert)
		if err == nil {
			return newTrust(k.spec.TrustDomain, s, sign)
		}
		if !errors.Is(err, errNoKey) {
			return nil, err
		}
		if err := k.others.ask(ctx); err != nil {
			return nil, err
		}
		if s, k.version, err = k.loadState(ctx); err != nil {
			return nil, err
		}
	}
}

// first makes the first root, or takes in the one that an earlier version made.
func (k *keeper) first(ctx context.Context, inUse bool) (*trust, error) {
	further, err := root.HasFurther(k.dir)
	if err != nil {
		return nil, err
	}
	if further {
		return nil, fmt.Errorf("the state of the roots is missing, yet there are keys in %s/roots; restore both from the same backup, or begin with an empty directory", k.dir)
	}
	if _, err := os.Stat(filepath.Join(k.dir, root.CertFile)); k.keys != nil && errors.Is(err, fs.ErrNotExist) {
		return k.firstKMS(ctx, inUse)
	}
	spec := k.spec
	spec.InUse = inUse
	r, err := root.Open(ctx, k.dir, spec, k.now())
	if err != nil {
		return nil, err
	}
	sign, err := signer.New(ctx, []*x509.Certificate{r.Cert}, r.Key)
	if err != nil {
		return nil, err
	}
	s := roots.First(roots.Authority{KeyID: root.KeyID(r.Cert), Certificate: r.Cert.Raw})
	if err := k.saveState(ctx, s, event{actor: selfActor, step: "first", subject: s.Active}); err != nil {
		if r.New && errors.Is(err, ledger.ErrConflict) {
			err = errors.Join(err, root.Retire(k.dir, r.Cert)) // nobody will ever trust it
		}
		return nil, err
	}
	return newTrust(k.spec.TrustDomain, s, sign)
}

// loadSigner loads the key of a root that is in the state: a further one's, or the
// first one's from the files where it has always been.
func (k *keeper) loadSigner(ctx context.Context, cert *x509.Certificate) (*signer.Signer, error) {
	if sign, err := k.outsideSigner(ctx, cert); sign != nil || err != nil {
		return sign, err
	}
	key, err := k.ownKey(ctx, cert)
	if err != nil {
		return nil, err
	}
	return signer.New(ctx, []*x509.Certificate{cert}, key)
}

// ownKey loads the key of a root of the authority's own from the state directory, or
// takes it over from the one over the same ledger that made it.
func (k *keeper) ownKey(ctx context.Context, cert *x509.Certificate) (crypto.Signer, error) {
	key, err := root.LoadFurther(k.dir, cert)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	if key, err := k.others.take(ctx, cert); key != nil || err != nil {
		return key, err
	}
	if k.foreign() {
		return nil, fmt.Errorf("root %s: %w", root.KeyID(cert), errForeign)
	}
	if k.others != nil && keyless(k.dir) {
		return nil, fmt.Errorf("root %s: %w", root.KeyID(cert), errNoKey)
	}
	spec := k.spec
	spec.InUse = true
	first, err := root.Open(ctx, k.dir, spec, k.now())
	if err != nil {
		return nil, err
	}
	if !first.Cert.Equal(cert) && k.others != nil {
		return nil, fmt.Errorf("root %s: %w", root.KeyID(cert), errNoKey)
	}
	if !first.Cert.Equal(cert) {
		return nil, fmt.Errorf("the root %s signs, of which %s has no key; restore the directory from a backup, or set authority if the root is not the authority's own", root.KeyID(cert), k.dir)
	}
	return first.Key, nil
}

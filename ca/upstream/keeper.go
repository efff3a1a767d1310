package upstream

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	mathrand "math/rand/v2"
	"net/url"
	"path/filepath"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-mesh/writ/ca/plugged"
	"github.com/writ-mesh/writ/internal/atomicfile"
)

// The files in the state directory.
const (
	keyFile   = "upstream.key"
	chainFile = "upstream.crt"
)

const (
	// retryMin and retryMax bound the wait between two attempts, of which each is
	// twice as long as the one before, give or take a half.
	retryMin, retryMax = time.Second, time.Minute
	// look is how often the file with the roots is read.
	look = time.Minute
)

// Keeper keeps the issuing certificate. Its methods are for one goroutine.
type Keeper struct {
	// Config is that of the authority.
	Config Config
	// By signs; nil means the step-ca of Config.
	By Authority
	// Dir is the state directory, where key and certificate are kept.
	Dir string
	// TrustDomain is the one that the certificate is for.
	TrustDomain spiffeid.TrustDomain
	Log         *slog.Logger
	// Away is told for how long the authority has not signed what is due, and why;
	// zero and nil when it has.
	Away func(since time.Duration, why error)

	key crypto.Signer
	set plugged.Set
	// signed is when the certificate was signed, zero if that was before the start.
	signed time.Time
	gone   time.Time // since when it is away, zero if it is not
	said   string
}

// Load gives the certificate that was kept, or waits until the authority has signed
// the first one or ctx ends.
func (k *Keeper) Load(ctx context.Context) (plugged.Set, error) {
	if err := k.loadKey(); err != nil {
		return plugged.Set{}, err
	}
	roots, err := plugged.LoadCertificates(k.Config.RootFile)
	if err != nil {
		return plugged.Set{}, err
	}
	path := filepath.Join(k.Dir, chainFile)
	chain, err := plugged.LoadCertificates(path)
	if err == nil {
		if k.set, err = plugged.New(chain, k.key, roots, k.TrustDomain, time.Now()); err == nil {
			return k.set, nil
		}
		k.Log.WarnContext(ctx, "the kept certificate of the upstream authority is of no use, asking for another", slog.String("file", path), slog.Any("error", err))
	} else if !errors.Is(err, fs.ErrNotExist) {
		return plugged.Set{}, err
	}
	if err := k.sign(ctx); err != nil {
		return plugged.Set{}, err
	}
	return k.set, nil
}

// Run has the certificate signed again at half its life, and takes in other roots,
// until ctx ends. take is called with each newer set.
func (k *Keeper) Run(ctx context.Context, take func(context.Context, plugged.Set) error) error {
	taken := false
	for {
		if !taken {
			err := take(ctx, k.set)
			k.say(ctx, "the newest certificate of the upstream authority is not taken", err)
			taken = err == nil
		}
		wait := time.NewTimer(min(max(time.Until(k.due()), 0), look))
		select {
		case <-ctx.Done():
			wait.Stop()
			return ctx.Err()
		case <-wait.C:
		}
		if !time.Now().Before(k.due()) {
			if err := k.sign(ctx); err != nil {
				return err
			}
			taken = false
		}
		taken = !k.otherRoots(ctx) && taken
	}
}

// due is when the certificate is to be signed again: at half its life, less up to a
// tenth of that, which is the same for one certificate. Its life begins when it was
// signed, not when it is valid from, which some authorities put before that.
func (k *Keeper) due() time.Time {
	end := k.set.Root.NotAfter
	for _, c := range k.set.Chain {
		if c.NotAfter.Before(end) {
			end = c.NotAfter
		}
	}
	from := k.set.Issuer().NotBefore
	if k.signed.After(from) {
		from = k.signed
	}
	half := end.Sub(from) / 2
	sum := sha256.Sum256(k.set.Issuer().Raw)
	return from.Add(half - time.Duration(sum[0])*half/2560)
}

// otherRoots takes in the roots if they are others than before.
func (k *Keeper) otherRoots(ctx context.Context) bool {
	roots, err := plugged.LoadCertificates(k.Config.RootFile)
	if err == nil && slices.EqualFunc(roots, k.set.Roots, func(a, b *x509.Certificate) bool { return a.Equal(b) }) {
		return false
	}
	var set plugged.Set
	if err == nil {
		set, err = plugged.New(k.set.Chain, k.key, roots, k.TrustDomain, time.Now())
	}
	if err != nil {
		k.say(ctx, "the roots of the upstream authority are not taken, those from before stay in force", err)
		return false
	}
	k.set = set
	return true
}

// sign asks until the authority has signed or ctx ends.
func (k *Keeper) sign(ctx context.Context) error {
	for attempt := 0; ; attempt++ {
		err := k.try(ctx)
		if err == nil {
			k.gone, k.said = time.Time{}, ""
			k.Away(0, nil)
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if k.gone.IsZero() {
			k.gone = time.Now()
		}
		k.Away(max(time.Since(k.gone), time.Second), err)
		k.say(ctx, "the upstream authority does not sign the issuing certificate, trying again", err)
		wait := time.NewTimer(retryIn(attempt, mathrand.Float64()))
		select {
		case <-ctx.Done():
			wait.Stop()
			return ctx.Err()
		case <-wait.C:
		}
	}
}

// retryIn is how long to wait after so many attempts before; jitter is in [0, 1).
func retryIn(attempt int, jitter float64) time.Duration {
	wait := min(retryMin<<min(attempt, 10), retryMax)
	return time.Duration(float64(wait) * (0.5 + jitter))
}

// try asks once, checks the answer and keeps it.
func (k *Keeper) try(ctx context.Context) error {
	csr, err := k.request()
	if err != nil {
		return err
	}
	by := k.By
	if by == nil {
		by = &stepCA{k.Config}
	}
	chain, err := by.Sign(ctx, csr, k.Config.TTL.D())
	if err != nil {
		return err
	}
	roots, err := plugged.LoadCertificates(k.Config.RootFile)
	if err != nil {
		return err
	}
	set, err := plugged.New(chain, k.key, roots, k.TrustDomain, time.Now())
	if err != nil {
		return fmt.Errorf("what the upstream authority signed is of no use: %w", err)
	}
	var data []byte
	for _, c := range set.Chain {
		data = append(data, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	if err := atomicfile.Write(filepath.Join(k.Dir, chainFile), data, 0o600); err != nil {
		return err
	}
	k.set, k.signed = set, time.Now()
	k.Log.InfoContext(ctx, "the upstream authority signed the issuing certificate", slog.String("issuer", set.Issuer().Issuer.String()), slog.Time("not_after", set.Issuer().NotAfter))
	return nil
}

func (k *Keeper) request() (*x509.CertificateRequest, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{Organization: []string{k.TrustDomain.Name()}, CommonName: "Writ " + k.TrustDomain.Name()},
		URIs:    []*url.URL{k.TrustDomain.ID().URL()},
	}, k.key)
	if err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	return x509.ParseCertificateRequest(der)
}

// loadKey loads the key, or makes it at the first start.
func (k *Keeper) loadKey() error {
	path := filepath.Join(k.Dir, keyFile)
	key, err := plugged.LoadKey(path)
	if err == nil {
		k.key = key
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	made, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(made)
	if err != nil {
		return err
	}
	k.key = made
	return atomicfile.Write(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
}

// say logs an error unless it was the last one.
func (k *Keeper) say(ctx context.Context, what string, err error) {
	if err == nil || err.Error() == k.said {
		return
	}
	k.said = err.Error()
	k.Log.ErrorContext(ctx, "upstream authority", slog.String("problem", what), slog.Any("error", err))
}

package ca

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-mesh/writ/ca/kms"
	"github.com/writ-mesh/writ/ca/plugged"
	"github.com/writ-mesh/writ/ca/upstream"
)

// AuthorityConfig says where the authority's key and certificate are, if they are
// not to be its own in the state directory.
type AuthorityConfig struct {
	// Files is a directory with ca-cert.pem, ca-key.pem, cert-chain.pem and
	// root-cert.pem.
	Files string `yaml:"files"`
	// KMS is the PKCS #11 URI of the key, without a PIN: that of the certificate in
	// Files, or else of a root of the authority's own.
	KMS string `yaml:"kms"`
	// PINFile holds the PIN of its token (mode 0600).
	PINFile string `yaml:"pin_file"`
	// Upstream is an authority that signs the issuing certificate of this one.
	Upstream upstream.Config `yaml:"upstream"`
}

func defaultAuthority() AuthorityConfig {
	return AuthorityConfig{Upstream: upstream.Config{TTL: upstream.DefaultTTL}}
}

func (c AuthorityConfig) validate() error {
	var errs []error
	if c.KMS != "" {
		if err := kms.Valid(c.KMS); err != nil {
			errs = append(errs, fmt.Errorf("authority.kms: %w", err))
		}
	}
	if c.PINFile != "" && c.KMS == "" {
		errs = append(errs, errors.New("authority.pin_file: it is for authority.kms, which is not set"))
	}
	if c.Upstream.URL != "" && c.Files+c.KMS != "" {
		errs = append(errs, errors.New("authority.upstream: it signs a key in the state directory; leave authority.files and authority.kms out"))
	}
	if err := c.Upstream.Validate(); err != nil {
		errs = append(errs, fmt.Errorf("authority.upstream: %w", err))
	}
	return errors.Join(errs...)
}

// openAuthority opens the key manager and the source of a set from outside, as far
// as the configuration has them.
func (k *keeper) openAuthority(ctx context.Context, c Config) error {
	if c.Authority.KMS != "" {
		keys, err := kms.Open(ctx, c.Authority.KMS, c.Authority.PINFile)
		if err != nil {
			return fmt.Errorf("authority.kms: %w", err)
		}
		k.keys, k.kmsURI = keys, c.Authority.KMS
	}
	switch {
	case c.Authority.Upstream.URL != "":
		return k.openSource(ctx, &upstreamSource{upstream.Keeper{
			Config: c.Authority.Upstream, Dir: k.dir, TrustDomain: k.spec.TrustDomain, Log: k.log, Away: k.away,
		}})
	case c.Authority.Files == "":
		return nil
	}
	files := &fileSource{k: k, dir: c.Authority.Files, td: k.spec.TrustDomain}
	if k.keys != nil {
		key, err := k.keys.Find(k.kmsURI)
		if err != nil {
			return fmt.Errorf("authority.kms: %w", err)
		}
		files.key = key
	}
	return k.openSource(ctx, files)
}

// openSource loads the set for the start.
func (k *keeper) openSource(ctx context.Context, from source) error {
	k.source = from
	set, err := from.load(ctx)
	if err != nil {
		return fmt.Errorf("authority: %w", err)
	}
	o, err := newOutside(ctx, set)
	if err != nil {
		return fmt.Errorf("authority: %w", err)
	}
	k.outside.Store(o)
	return nil
}

// follow has newer sets from outside taken until ctx ends.
func (k *keeper) follow(ctx context.Context) error {
	if k.source == nil {
		<-ctx.Done()
		return ctx.Err()
	}
	return k.source.run(ctx, k.take)
}

// upstreamSource is an upstream authority.
type upstreamSource struct{ keeper upstream.Keeper }

func (u *upstreamSource) load(ctx context.Context) (plugged.Set, error) { return u.keeper.Load(ctx) }

func (u *upstreamSource) run(ctx context.Context, take func(context.Context, plugged.Set) error) error {
	return u.keeper.Run(ctx, take)
}

// away is told how long the upstream authority has not signed what is due.
func (k *keeper) away(since time.Duration, why error) {
	k.a.metrics.upstreamAway.Set(since.Seconds())
	if why != nil {
		why = fmt.Errorf("the upstream authority has not signed for %s: %w", since.Truncate(time.Second), why)
	}
	k.refused(why)
}

// fileSource is a plugged-in authority in files.
type fileSource struct {
	k   *keeper
	dir string
	key crypto.Signer // nil: in the directory
	td  spiffeid.TrustDomain
	// since is when the files could not be taken for the first time in a row.
	since time.Time
	said  string
}

func (f *fileSource) load(context.Context) (plugged.Set, error) {
	return plugged.Load(f.dir, f.key, f.td, f.k.now())
}

func (f *fileSource) run(ctx context.Context, take func(context.Context, plugged.Set) error) error {
	return plugged.Watch(ctx, f.dir, func(ctx context.Context) {
		set, err := f.load(ctx)
		if err == nil {
			err = take(ctx, set)
		}
		f.report(ctx, set, err)
	})
}

// report says how the files stand, in the log when that changes.
func (f *fileSource) report(ctx context.Context, set plugged.Set, err error) {
	now, log := f.k.now(), f.k.log
	f.k.refused(err)
	if err == nil {
		f.k.a.metrics.filesRefused.Set(0)
		if f.said != "" {
			log.InfoContext(ctx, "the files of the plugged-in authority are in force", slog.String("issuer", set.Issuer().Subject.String()))
		}
		f.since, f.said = time.Time{}, ""
		return
	}
	if f.since.IsZero() {
		f.since = now
	}
	f.k.a.metrics.filesRefused.Set(max(now.Sub(f.since).Seconds(), 1))
	if f.said != err.Error() {
		f.said = err.Error()
		log.ErrorContext(ctx, "the files of the plugged-in authority are not taken, those from before stay in force", slog.Any("error", err))
	}
}

// refused keeps why the newest set from outside is not in force, nil if it is.
func (k *keeper) refused(err error) {
	k.statusMu.Lock()
	defer k.statusMu.Unlock()
	if (err == nil) != (k.outsideProblem == nil) || err != nil && err.Error() != k.outsideProblem.Error() {
		k.outsideProblem = err
		close(k.told)
		k.told = make(chan struct{})
	}
}

// close ends the sessions with the key manager.
func (k *keeper) close() error {
	if k.keys == nil {
		return nil
	}
	return k.keys.Close()
}

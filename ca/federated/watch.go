package federated

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-mesh/writ/internal/atomicfile"
)

// How long to wait for the next fetch: what the endpoint hints at, within these
// bounds, and from retryMin on after a failure.
const (
	refreshMin     = 5 * time.Second
	refreshDefault = 5 * time.Minute
	refreshMax     = time.Hour
	retryMin       = time.Second
	retryMax       = time.Minute
)

// Bundles are those of other trust domains. They are safe for concurrent use.
type Bundles struct {
	dir     string
	log     *slog.Logger
	domains []*domain

	mu      sync.Mutex
	changed chan struct{}
}

// domain is one of them; bundle is guarded by the mutex of Bundles.
type domain struct {
	owner  *Bundles
	td     spiffeid.TrustDomain
	fetch  *fetcher
	bundle *spiffebundle.Bundle
}

// Open takes up what is known of the trust domains, from a folder that it makes,
// or from the file to begin with.
func Open(dir string, domains []Domain, log *slog.Logger) (*Bundles, error) {
	b := &Bundles{dir: dir, log: log, changed: make(chan struct{})}
	if len(domains) == 0 {
		return b, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("federates_with: %w", err)
	}
	for _, c := range domains {
		td, err := spiffeid.TrustDomainFromString(c.TrustDomain)
		if err != nil {
			return nil, fmt.Errorf("federates_with: %w", err)
		}
		d := &domain{owner: b, td: td}
		if d.bundle, err = b.known(td, c.BundleFile); err != nil {
			return nil, fmt.Errorf("federates_with: %s: %w", td, err)
		}
		if d.fetch, err = newFetcher(c, td, d); err != nil {
			return nil, fmt.Errorf("federates_with: %s: %w", td, err)
		}
		b.domains = append(b.domains, d)
	}
	slices.SortFunc(b.domains, func(x, y *domain) int { return x.td.Compare(y.td) })
	return b, nil
}

// known reads the last good bundle, or the one to begin with; nil if there is none.
// A file to begin with that is newer counts: an operator put it there because the
// endpoint could not be believed any more.
func (b *Bundles) known(td spiffeid.TrustDomain, begin string) (*spiffebundle.Bundle, error) {
	data, err := os.ReadFile(b.path(td))
	if err == nil && begin != "" && newer(begin, b.path(td)) {
		err = fs.ErrNotExist
	}
	if err == nil {
		kept, perr := parse(td, data)
		if perr == nil {
			return kept, nil
		}
		b.log.Warn("a kept bundle is not used", slog.String("trust_domain", td.Name()), slog.Any("error", perr))
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if begin == "" {
		return nil, nil
	}
	if data, err = os.ReadFile(begin); err != nil {
		return nil, err
	}
	return parse(td, data)
}

func newer(x, y string) bool {
	a, err := os.Stat(x)
	if err != nil {
		return false
	}
	b, err := os.Stat(y)
	return err == nil && a.ModTime().After(b.ModTime())
}

// path is where a bundle is kept. The name of a trust domain has letters, digits,
// dots, dashes and underscores only.
func (b *Bundles) path(td spiffeid.TrustDomain) string {
	return filepath.Join(b.dir, "bundle-"+td.Name()+".json")
}

// Current returns the bundles that are known, in the order of their trust domains,
// and a channel that is closed when one is replaced.
func (b *Bundles) Current() ([]*spiffebundle.Bundle, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []*spiffebundle.Bundle
	for _, d := range b.domains {
		if d.bundle != nil {
			out = append(out, d.bundle)
		}
	}
	return out, b.changed
}

// Run fetches until ctx ends.
func (b *Bundles) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, d := range b.domains {
		wg.Go(func() { d.run(ctx) })
	}
	<-ctx.Done()
	wg.Wait()
	return ctx.Err()
}

// run fetches the bundle of one trust domain again and again.
func (d *domain) run(ctx context.Context) {
	failed := 0
	for {
		next, err := d.fetch.fetch(ctx)
		if err == nil {
			err = d.take(next)
		}
		wait := d.refresh()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			if failed++; failed == 1 || failed%20 == 0 {
				d.owner.log.WarnContext(ctx, "the bundle of another trust domain cannot be had, what is known of it stays", slog.String("trust_domain", d.td.Name()), slog.Any("error", err))
			}
			wait = min(retryMin<<min(failed-1, 6), retryMax)
		default:
			failed = 0
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait*9/10 + rand.N(wait/5)):
		}
	}
}

func (d *domain) refresh() time.Duration {
	d.owner.mu.Lock()
	defer d.owner.mu.Unlock()
	if d.bundle == nil {
		return refreshDefault
	}
	if hint, ok := d.bundle.RefreshHint(); ok {
		return min(max(hint, refreshMin), refreshMax)
	}
	return refreshDefault
}

// take puts a bundle that was fetched into force. An older one than is known would
// bring back what was taken out.
func (d *domain) take(next *spiffebundle.Bundle) error {
	b := d.owner
	b.mu.Lock()
	old := d.bundle
	b.mu.Unlock()
	if old != nil {
		had, ok := old.SequenceNumber()
		if has, given := next.SequenceNumber(); ok && given && has < had {
			return fmt.Errorf("the endpoint serves the bundle number %d, and number %d is known", has, had)
		}
		if old.Equal(next) {
			return nil
		}
	}
	data, err := next.Marshal()
	if err != nil {
		return err
	}
	if err := atomicfile.Write(b.path(d.td), data, 0o600); err != nil {
		// It is in force; only a restart would begin with the one before.
		b.log.Warn("a bundle of another trust domain is not kept", slog.Any("error", err))
	}
	b.log.Info("bundle of another trust domain", slog.String("trust_domain", d.td.Name()), slog.Int("roots", len(next.X509Authorities())), slog.Int("keys", len(next.JWTAuthorities())))
	b.mu.Lock()
	defer b.mu.Unlock()
	d.bundle = next
	close(b.changed)
	b.changed = make(chan struct{})
	return nil
}

// GetX509BundleForTrustDomain implements x509bundle.Source, for the handshake with
// the endpoint.
func (d *domain) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	d.owner.mu.Lock()
	defer d.owner.mu.Unlock()
	if td != d.td || d.bundle == nil {
		return nil, fmt.Errorf("no bundle of trust domain %s", td)
	}
	return d.bundle.X509Bundle(), nil
}

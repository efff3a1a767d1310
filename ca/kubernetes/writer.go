package kubernetes

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sync/errgroup"

	"github.com/writ-mesh/writ/internal/identity"
)

const (
	// writers is how many Secrets are worked on at once.
	writers = 8
	// batch is how many are chosen at once; then it is looked at what changed.
	batch = 256
	// tick is how often it is looked whether a certificate is due, by the wall clock:
	// timers stand still while a machine sleeps.
	tick = time.Second
	// replaceWithin is how soon, at random, certificates are replaced when another
	// authority signs, as node agents do; but within a twentieth of their life.
	replaceWithin = 30 * time.Second
	// retryMin and retryMax bound the pause before a Secret is tried again.
	retryMin = time.Second
	retryMax = time.Minute
)

// Issuer certifies keys for the Secrets, and knows what is trusted.
type Issuer interface {
	// Issue returns a certificate chain for the key, leaf first, when it is recorded.
	Issue(ctx context.Context, id spiffeid.ID, key publicKey) ([]*x509.Certificate, error)
	// Usable returns an error for a certificate that is revoked.
	Usable(leaf *x509.Certificate) error
	// Trust is what holds now.
	Trust() Trust
}

// Trust is who signs and who is trusted at a moment.
type Trust struct {
	// Sequence rises with each change of the roots.
	Sequence uint64
	Bundle   *x509bundle.Bundle
	// Authority is the key id of the one that signs, in hexadecimal.
	Authority string
	// Replaced is closed when there is a newer one.
	Replaced <-chan struct{}
}

// roots are the bundle's in PEM.
func (t Trust) roots() []byte { return certificates(t.Bundle.X509Authorities()) }

// kept is what is known of one account's Secret.
type kept struct {
	uid  string // the account's
	name name   // the Secret's
	id   spiffeid.ID

	// version is that of the Secret when it was looked at or written last; empty if
	// that has to be done.
	version string
	// leaf is its certificate, nil without a good one.
	leaf *x509.Certificate
	// roots says whether it has the roots of that sequence, since when.
	sequence uint64
	since    time.Time
	// former are the authorities of the certificates that it had before, by when pods
	// have the one after.
	former map[string]time.Time
	renew  time.Time
	// foreign says that somebody else's Secret has the name.
	foreign bool

	// ready was certified and could not be written yet.
	ready *material
	retry time.Time
	pause time.Duration
	said  string
	busy  bool
}

// writer keeps the Secrets of a cluster. It decides by what is, not by what
// happened: what a look at the API shows is put right, at once or with the next try.
type writer struct {
	c      *Cluster
	issuer Issuer
	api    secretsAPI
	// tick is that of the package, but in tests.
	tick time.Duration

	mu   sync.Mutex
	kept map[name]*kept // by account
}

func newWriter(c *Cluster, issuer Issuer) *writer {
	return &writer{c: c, issuer: issuer, api: secretsAPI{c}, tick: tick, kept: make(map[name]*kept)}
}

// run keeps the Secrets until ctx ends.
func (w *writer) run(ctx context.Context) error {
	ticker := time.NewTicker(w.tick)
	defer ticker.Stop()
	var working errgroup.Group
	working.SetLimit(writers)
	defer func() { _ = working.Wait() }() // none of them returns an error
	for {
		changed, trust := w.c.Changed(), w.issuer.Trust()
		due := w.due(trust)
		for account, k := range due {
			working.Go(func() error {
				w.work(ctx, account, k)
				return nil
			})
		}
		if len(due) == batch {
			continue // there are more
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-trust.Replaced:
		case <-ticker.C:
		}
	}
}

// due takes the accounts whose Secret has to be looked at or written, and marks them
// busy. As long as the cluster is not known for sure nothing is due but what was known
// before.
func (w *writer) due(t Trust) map[name]*kept {
	if !w.c.listed(w.c.accounts) || !w.c.listed(w.c.secrets) {
		return nil
	}
	accounts, seen, now := w.c.known(), w.seen(), w.c.now()
	w.mu.Lock()
	defer w.mu.Unlock()
	for a, k := range w.kept {
		// Of an account that was made anew the Secret is another.
		if uid, is := accounts[a]; !k.busy && (!is || uid != k.uid) {
			delete(w.kept, a)
		}
	}
	out, states := make(map[name]*kept), map[string]int{}
	for a, uid := range accounts {
		k := w.kept[a]
		if k == nil {
			if k = w.first(a, uid); k == nil {
				states["failed"]++
				continue
			}
			w.kept[a] = k
		}
		meta, is := seen[k.name]
		needs := k.needs(meta, is, t, now) || k.leaf != nil && meta.Deleted == "" && w.issuer.Usable(k.leaf) != nil
		states[k.state(needs)]++
		if needs && !k.busy && !now.Before(k.retry) && len(out) < batch {
			k.busy, out[a] = true, k
		}
	}
	for _, s := range []string{"current", "due", "foreign", "failed"} {
		w.c.metrics.secrets.WithLabelValues(s).Set(float64(states[s]))
	}
	return out
}

// first is an account that was not known yet; nil if it can have no identity.
func (w *writer) first(a name, uid string) *kept {
	id, err := identity.Workload(w.c.td, a.namespace, a.name)
	if err != nil || len(w.c.cfg.SecretPrefix)+len(a.name) > 253 {
		return nil
	}
	return &kept{uid: uid, id: id, name: name{a.namespace, w.c.cfg.SecretPrefix + a.name}, former: make(map[string]time.Time)}
}

// seen are the Secrets with our label.
func (w *writer) seen() map[name]metadata {
	out := make(map[name]metadata)
	for _, s := range w.c.secrets {
		s.each(func(n name, o object) { out[n] = o.Metadata })
	}
	return out
}

// state names how a Secret is, for the metric.
func (k *kept) state(needs bool) string {
	switch {
	case k.foreign:
		return "foreign"
	case k.said != "":
		return "failed"
	case needs:
		return "due"
	}
	return "current"
}

// needs decides whether there is something to do: the Secret is not the one that was
// looked at last, has no good certificate, or not the roots of now, or the
// certificate is due.
func (k *kept) needs(seen metadata, is bool, t Trust, now time.Time) bool {
	switch {
	case is && seen.Deleted != "":
		return false // when it is gone it comes back
	case !is || k.version == "" || seen.Version != k.version:
		return true
	}
	return k.leaf == nil || k.sequence != t.Sequence || k.replace(t, now)
}

// replace decides whether the certificate is due: half of its life is over, it is not
// valid yet since the clock went back, or another authority signs since a moment.
func (k *kept) replace(t Trust, now time.Time) bool {
	within := min(replaceWithin, k.leaf.NotAfter.Sub(k.leaf.NotBefore)/20)
	if hex.EncodeToString(k.leaf.AuthorityKeyId) != t.Authority && k.renew.After(now.Add(within)) {
		k.renew = now.Add(rand.N(within + 1)) //nolint:gosec // spreads
	}
	return now.Before(k.leaf.NotBefore) || !now.Before(k.renew)
}

// halfOf is when a certificate is to be replaced: around half of its life, spread so
// that what was made together does not come together.
func halfOf(leaf *x509.Certificate) time.Time {
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	return leaf.NotBefore.Add(life*45/100 + rand.N(life/10+1)) //nolint:gosec // spreads
}

// work looks at the Secret of an account and writes it if need be.
func (w *writer) work(ctx context.Context, account name, k *kept) {
	err := w.settle(ctx, account, k, w.issuer.Trust())
	w.mu.Lock()
	defer w.mu.Unlock()
	k.busy = false
	if ctx.Err() != nil {
		return
	}
	k.foreign = errors.Is(err, errForeign)
	if err == nil || is(err, http.StatusConflict) {
		// Somebody was faster: look again, after the event that tells of it.
		k.pause, k.said, k.retry = 0, "", w.c.now()
		if err != nil {
			k.version, k.retry = "", w.c.now().Add(retryMin)
		}
		return
	}
	k.pause = min(max(2*k.pause, retryMin), retryMax)
	if k.foreign {
		k.pause = retryMax
	}
	k.retry = w.c.now().Add(k.pause)
	w.c.metrics.writes.WithLabelValues("failed").Inc()
	if text := err.Error(); text != k.said {
		k.said = text
		w.c.log.ErrorContext(ctx, "the Secret of a service account is not up to date", slog.String("secret", k.name.String()), slog.Any("error", err))
	}
}

// errForeign: the name is taken.
var errForeign = errors.New("there is a Secret of this name that writ-ca did not make, which stays as it is; remove it, or set kubernetes.secret_prefix")

// settle makes the Secret what it has to be.
func (w *writer) settle(ctx context.Context, account name, k *kept, t Trust) error {
	meta, err := w.api.marks(ctx, k.name)
	switch {
	case errors.Is(err, errNoSecret):
		return w.make(ctx, account, k, t)
	case err != nil:
		return err
	case !marked(meta, k.id):
		return errForeign
	case meta.Deleted != "":
		return nil
	}
	s, err := w.api.read(ctx, k.name)
	switch {
	case err != nil:
		return err // also if it is gone by now: the next try makes it
	case !marked(s.Metadata, k.id) || s.Type != secretType:
		return errForeign
	}
	return w.amend(ctx, account, k, t, s)
}

// make makes the Secret that is not there.
func (w *writer) make(ctx context.Context, account name, k *kept, t Trust) error {
	m, err := w.material(ctx, k, t)
	if err != nil {
		return err
	}
	s, err := w.api.create(ctx, k.name, wanted(k.name, k.id, account.name, k.uid, t.roots(), m).full(k.name))
	if err != nil {
		return err
	}
	w.wrote(k, s, m.leaf, t)
	return nil
}

// amend changes what is not right in the Secret.
func (w *writer) amend(ctx context.Context, account name, k *kept, t Trust, s *secret) error {
	leaf, err := s.content(k.id, t, w.c.now())
	if err == nil {
		err = w.issuer.Usable(leaf)
	}
	if err == nil && !s.Metadata.ownedBy(k.uid) {
		err = errors.New("it is of an account of the same name that is gone")
	}
	if err == nil {
		w.adopt(k, leaf)
	}
	var m *material
	if err != nil || w.isDue(k, t) {
		if err != nil {
			w.c.log.InfoContext(ctx, "a Secret gets another certificate", slog.String("secret", k.name.String()), slog.Any("reason", err))
		}
		if m, err = w.material(ctx, k, t); err != nil {
			return err
		}
		leaf = m.leaf
	} else if s.sameRoots(t.roots()) {
		w.is(k, s, leaf, t)
		return nil
	}
	change := wanted(k.name, k.id, account.name, k.uid, t.roots(), m)
	change.Metadata.Version = s.Metadata.Version
	written, err := w.api.patch(ctx, k.name, change)
	if err != nil {
		return err
	}
	w.wrote(k, written, leaf, t)
	w.saw(change.Metadata.Version, written)
	return nil
}

// adopt takes a certificate that is in the Secret and was not known.
func (w *writer) adopt(k *kept, leaf *x509.Certificate) {
	w.mu.Lock()
	defer w.mu.Unlock()
	k.holds(leaf, w.c.now().Add(w.c.cfg.SecretDelay.D()))
}

// holds notes the certificate in the Secret, and until when pods may have the one
// before.
func (k *kept) holds(leaf *x509.Certificate, until time.Time) {
	if k.leaf != nil && k.leaf.Equal(leaf) {
		return
	}
	if k.leaf != nil {
		k.former[hex.EncodeToString(k.leaf.AuthorityKeyId)] = until
	}
	k.leaf, k.renew = leaf, halfOf(leaf)
}

func (w *writer) isDue(k *kept, t Trust) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return k.replace(t, w.c.now())
}

// material is a new key with its certificate, or one that could not be written the
// last time.
func (w *writer) material(ctx context.Context, k *kept, t Trust) (*material, error) {
	w.mu.Lock()
	m := k.ready
	w.mu.Unlock()
	now := w.c.now()
	if m != nil && hex.EncodeToString(m.leaf.AuthorityKeyId) == t.Authority && now.Before(halfOf(m.leaf)) && w.issuer.Usable(m.leaf) == nil {
		return m, nil
	}
	m, err := newMaterial(ctx, w.issuer, k.id)
	if err != nil {
		return nil, fmt.Errorf("a certificate for it: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	k.ready = m
	return m, nil
}

// wrote notes that the Secret is what was written.
func (w *writer) wrote(k *kept, s *secret, leaf *x509.Certificate, t Trust) {
	w.c.metrics.writes.WithLabelValues("ok").Inc()
	w.is(k, s, leaf, t)
}

// is notes what the Secret is.
func (w *writer) is(k *kept, s *secret, leaf *x509.Certificate, t Trust) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.c.now()
	k.holds(leaf, now.Add(w.c.cfg.SecretDelay.D()))
	if k.sequence != t.Sequence {
		k.sequence, k.since = t.Sequence, now
	}
	k.version, k.ready = s.Metadata.Version, nil
}

// saw puts what was changed into what is known of the cluster, before the event that
// tells of it, if nothing newer is known: the change was made to the version before, so
// whoever knows that one knows none between.
func (w *writer) saw(before string, s *secret) {
	i := slices.IndexFunc(w.c.cfg.Namespaces, func(n string) bool { return n == allNamespaces || n == s.Metadata.Namespace })
	w.c.secrets[i].follows(before, object{Metadata: s.Metadata})
}

package ca

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sync/errgroup"

	"github.com/writ-mesh/writ/ca/csr"
	"github.com/writ-mesh/writ/ca/kubernetes"
	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/placement"
	"github.com/writ-mesh/writ/ca/root"
	"github.com/writ-mesh/writ/ca/roots"
	"github.com/writ-mesh/writ/internal/identity"
)

const (
	// clusterActor is the cluster in the log of what was done, and who made its
	// registrations.
	clusterActor = "kubernetes"
	// clusterRefresh is how often the registrations are compared with the ledger
	// though the cluster did not change: an administrator may have dropped one.
	clusterRefresh = time.Minute
	// clusterRest is how long changes of the cluster are gathered.
	clusterRest = 100 * time.Millisecond
	// clusterCommits is how many registrations are changed at once; they share
	// commits of the ledger.
	clusterCommits = 16
)

// openCluster gives the cluster of the configuration, nil if there is none.
func openCluster(c Config, a *Authority, r prometheus.Registerer) *kubernetes.Cluster {
	if !c.Kubernetes.Enabled() {
		return nil
	}
	return kubernetes.New(c.Kubernetes, a.td, &clusterIssuer{a: a, ttl: c.Kubernetes.SecretTTL.D()}, r, a.now, a.log)
}

// clusterIssuer certifies the keys of Secrets. The authority itself asks: it replaces
// their certificates, and is who is waited for in a rotation.
type clusterIssuer struct {
	a   *Authority
	ttl time.Duration
}

// Issue implements kubernetes.Issuer.
func (i *clusterIssuer) Issue(ctx context.Context, id spiffeid.ID, key crypto.PublicKey) ([]*x509.Certificate, error) {
	self, err := identity.Service(i.a.td, identity.CA)
	if err != nil {
		return nil, err
	}
	cert, err := i.a.fulfil(ctx, order{kind: kindKubernetes, id: id, requester: self.String(), ttl: i.ttl}, func(o *order) error {
		o.csr = csr.Request{PublicKey: key}
		return nil
	})
	if err != nil {
		return nil, err
	}
	t, err := i.a.covering(cert)
	if err != nil {
		return nil, err
	}
	return t.chain(cert), nil
}

// Usable implements kubernetes.Issuer.
func (i *clusterIssuer) Usable(leaf *x509.Certificate) error { return i.a.revocations.usable(leaf) }

// Trust implements kubernetes.Issuer.
func (i *clusterIssuer) Trust() kubernetes.Trust {
	t := i.a.trusted()
	return kubernetes.Trust{Sequence: t.state.Sequence, Bundle: t.bundle, Authority: root.KeyID(t.signer.Issuer()), Replaced: t.replaced}
}

// withSecrets adds to the authority's own report where the Secrets of the cluster
// stand: it replaces them, so it is who is waited for.
func (a *Authority) withSecrets(r *roots.Report) {
	if a.cluster == nil {
		return
	}
	s := a.cluster.Report()
	if s == nil {
		return
	}
	if !s.Current {
		r.Acknowledged = 0
	}
	r.Authorities = append(r.Authorities, s.Authorities...)
	r.Waiting = append(r.Waiting, s.Waiting...)
}

// clusterRegistrations keeps the registrations of a cluster as it has its accounts.
// What somebody else registered is not touched.
type clusterRegistrations struct {
	a       *Authority
	cluster *kubernetes.Cluster
	// made are those of the ledger that the cluster made, with their versions, and
	// others those that somebody else did.
	made   map[string]uint64
	others map[string]bool
	read   time.Time
}

// run keeps them until ctx ends.
func (c *clusterRegistrations) run(ctx context.Context) error {
	for {
		changed := c.cluster.Changed()
		soon, err := c.reconcile(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		wait := clusterRefresh
		if err != nil {
			c.a.log.WarnContext(ctx, "registrations of the cluster are not up to date, will try again", slog.Any("error", err))
			c.read, wait = time.Time{}, 10*clusterRest
			changed = nil // the ledger needs a rest
		}
		if !soon.IsZero() {
			wait = min(wait, max(soon.Sub(c.a.now()), clusterRest))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		case <-changed:
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(clusterRest):
			}
		}
	}
}

// reconcile makes what is missing and drops what is too much, if the cluster is known.
func (c *clusterRegistrations) reconcile(ctx context.Context) (soon time.Time, err error) {
	places, soon, ok := c.cluster.Placed()
	if !ok {
		return soon, nil
	}
	if now := c.a.now(); c.read.IsZero() || now.Before(c.read) || !now.Before(c.read.Add(clusterRefresh)) {
		if err := c.load(ctx); err != nil {
			return soon, err
		}
		c.read = now
	}
	wanted := make(map[string]*placement.Registration, len(places))
	for _, p := range places {
		r, err := c.registration(p)
		if err != nil {
			c.a.log.WarnContext(ctx, "a service account cannot be registered", slog.String("namespace", p.Namespace), slog.String("service_account", p.ServiceAccount), slog.Any("error", err))
			continue
		}
		wanted[r.ID] = r
	}
	return soon, c.change(ctx, wanted)
}

func (c *clusterRegistrations) registration(p kubernetes.Place) (*placement.Registration, error) {
	id, err := identity.Workload(c.a.td, p.Namespace, p.ServiceAccount)
	if err != nil {
		return nil, err
	}
	return placement.NewRegistration(c.a.td, id, p.Node, []string{"k8s:ns:" + p.Namespace, "k8s:sa:" + p.ServiceAccount})
}

// load reads the ledger.
func (c *clusterRegistrations) load(ctx context.Context) error {
	docs, err := c.a.store.List(ctx, registrationPrefix)
	if err != nil {
		return err
	}
	c.made, c.others = make(map[string]uint64), make(map[string]bool)
	for _, d := range docs {
		id, kept, err := readRegistration(d)
		if err == nil && kept.CreatedBy == clusterActor {
			c.made[id] = d.Version
		} else {
			c.others[id] = true
		}
	}
	return nil
}

// change is one pass over the differences. Who was faster, another authority or an
// administrator, is right; the ledger is read again then.
func (c *clusterRegistrations) change(ctx context.Context, wanted map[string]*placement.Registration) error {
	type done struct {
		id      string
		version uint64 // 0: dropped
	}
	var work errgroup.Group
	work.SetLimit(clusterCommits)
	changes := make(chan done, len(wanted)+len(c.made))
	for id, r := range wanted {
		if c.made[id] == 0 && !c.others[id] {
			work.Go(func() error {
				version, err := c.put(ctx, r)
				changes <- done{id, version}
				return err
			})
		}
	}
	for id, version := range c.made {
		if wanted[id] == nil {
			work.Go(func() error {
				if err := c.drop(ctx, id, version); err != nil {
					return err
				}
				changes <- done{id, 0}
				return nil
			})
		}
	}
	err := work.Wait()
	close(changes)
	for d := range changes {
		if d.version == 0 {
			delete(c.made, d.id)
		} else {
			c.made[d.id] = d.version
		}
	}
	if errors.Is(err, ledger.ErrConflict) {
		c.read, err = time.Time{}, nil
	}
	return err
}

func (c *clusterRegistrations) put(ctx context.Context, r *placement.Registration) (uint64, error) {
	now := c.a.now().UTC()
	value, err := json.Marshal(keptRegistration{SPIFFEID: r.SPIFFEID.String(), Node: r.Node, Facts: r.Facts, CreatedAt: now, CreatedBy: clusterActor})
	if err != nil {
		return 0, err
	}
	return c.a.store.Commit(ctx, registered(r, value, clusterActor, now))
}

func (c *clusterRegistrations) drop(ctx context.Context, id string, version uint64) error {
	d, err := c.a.store.Get(ctx, registrationPrefix+id)
	switch {
	case errors.Is(err, ledger.ErrNoDocument):
		return nil
	case err != nil:
		return err
	case d.Version != version:
		return ledger.ErrConflict
	}
	_, kept, err := readRegistration(d)
	if err != nil {
		return err
	}
	_, err = c.a.store.Commit(ctx, unregistered(d, kept, clusterActor, c.a.now().UTC()))
	return err
}

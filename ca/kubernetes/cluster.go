package kubernetes

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sync/errgroup"

	"github.com/writ-mesh/writ/internal/kubeapi"
)

const (
	// apiTimeout bounds one call.
	apiTimeout = 10 * time.Second
	// maxAnswer bounds an answer, in bytes: a page of 500 pods has about 10 MB.
	maxAnswer = 64 << 20
	// linger is how long an account stays on a node after its last pod there: pods
	// are replaced all the time, and each change stays in the ledger.
	linger = time.Minute
)

// Place is an identity of the cluster on a node.
type Place struct {
	Namespace, ServiceAccount string
	// Node is empty for every node.
	Node string
}

// Cluster follows a cluster. Its methods may be called concurrently.
type Cluster struct {
	cfg     Config
	td      spiffeid.TrustDomain
	now     func() time.Time
	log     *slog.Logger
	metrics *metrics
	board   *board
	// accounts, pods and secrets have a watcher for each namespace; pods and secrets
	// are none if they are not needed.
	accounts, pods, secrets []*watcher
	writer                  *writer // nil without secrets

	mu sync.Mutex
	// left is since when a place that was told last has no pod.
	left map[Place]time.Time
	// told are the places that Placed returned last.
	told map[Place]bool
}

// New returns a cluster that has to be run. issuer is for its Secrets.
func New(cfg Config, td spiffeid.TrustDomain, issuer Issuer, r prometheus.Registerer, now func() time.Time, log *slog.Logger) *Cluster {
	c := &Cluster{cfg: cfg, td: td, now: now, log: log, metrics: newMetrics(r), board: newBoard(), left: make(map[Place]time.Time)}
	for _, namespace := range cfg.Namespaces {
		accounts := map[string][]string{}
		if cfg.Selector != "" {
			accounts["labelSelector"] = []string{cfg.Selector}
		}
		c.accounts = append(c.accounts, c.watcher(namespace, "serviceaccounts", listOfMetadata, metadataOnly, accounts))
		if cfg.Registrations == onNodes {
			// Pods that have ended keep their place in the API, and have none on their node.
			living := map[string][]string{"fieldSelector": {"status.phase!=Succeeded,status.phase!=Failed"}}
			c.pods = append(c.pods, c.watcher(namespace, "pods", "", "", living))
		}
		if cfg.Secrets {
			ours := map[string][]string{"labelSelector": {managedBy + "=" + manager}}
			c.secrets = append(c.secrets, c.watcher(namespace, "secrets", listOfMetadata, metadataOnly, ours))
		}
	}
	if cfg.Secrets {
		c.writer = newWriter(c, issuer)
	}
	return c
}

func (c *Cluster) client(accept string) kubeapi.Client {
	return kubeapi.Client{CAFile: c.cfg.CAFile, TokenFile: c.cfg.TokenFile, Accept: accept, Timeout: apiTimeout, MaxAnswer: maxAnswer}
}

func (c *Cluster) watcher(namespace, kind, lists, events string, query map[string][]string) *watcher {
	return &watcher{listing: c.client(lists), watching: c.client(events), url: collection(c.cfg.API, namespace, kind), query: query, log: c.log, board: c.board}
}

// Run follows the cluster, and keeps its Secrets, until ctx ends.
func (c *Cluster) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, w := range slices.Concat(c.accounts, c.pods, c.secrets) {
		g.Go(func() error { return w.run(ctx) })
	}
	if c.writer != nil {
		g.Go(func() error { return c.writer.run(ctx) })
	}
	g.Go(func() error { return c.observe(ctx) })
	return g.Wait()
}

// observe keeps the metric of the state of the watches.
func (c *Cluster) observe(ctx context.Context) error {
	for {
		changed := c.Changed()
		c.metrics.setSynced(c.synced(c.accounts) && c.synced(c.pods) && c.synced(c.secrets))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// Changed is closed at the next change of what the cluster has. Take it before
// calling Placed.
func (c *Cluster) Changed() <-chan struct{} { return c.board.changed() }

// synced tells whether all these know what there is now.
func (*Cluster) synced(ws []*watcher) bool {
	return !slices.ContainsFunc(ws, func(w *watcher) bool { _, synced := w.state(); return !synced })
}

// listed tells whether all these have known it once.
func (*Cluster) listed(ws []*watcher) bool {
	return !slices.ContainsFunc(ws, func(w *watcher) bool { listed, _ := w.state(); return !listed })
}

// known are the accounts by name, with their UIDs.
func (c *Cluster) known() map[name]string {
	out := make(map[name]string)
	for _, w := range c.accounts {
		w.each(func(n name, o object) { out[n] = o.Metadata.UID })
	}
	return out
}

// Placed are the places where the cluster's accounts may have their identities,
// sorted. ok is false as long as that is not known for sure: then nothing may be
// concluded from what is missing. Soon is when to ask again though nothing changed,
// zero for never.
func (c *Cluster) Placed() (places []Place, soon time.Time, ok bool) {
	if c.cfg.Registrations == "" || !c.synced(c.accounts) || !c.synced(c.pods) {
		return nil, time.Time{}, false
	}
	accounts, here := c.known(), map[Place]bool{}
	if c.cfg.Registrations == everywhere {
		for a := range accounts {
			here[Place{Namespace: a.namespace, ServiceAccount: a.name}] = true
		}
	}
	for _, w := range c.pods {
		w.each(func(_ name, pod object) {
			account := name{pod.Metadata.Namespace, pod.Spec.Account}
			if _, is := accounts[account]; is && pod.Spec.Node != "" {
				here[Place{account.namespace, account.name, c.cfg.NodePrefix + pod.Spec.Node}] = true
			}
		})
	}
	soon = c.keep(here, accounts)
	return slices.SortedFunc(maps.Keys(here), compare), soon, true
}

// keep adds the places that had a pod until a moment ago, as long as their account is
// there, and says when the first of them is over.
func (c *Cluster) keep(here map[Place]bool, accounts map[name]string) (soon time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now, left := c.now(), make(map[Place]time.Time)
	for p := range c.told {
		if _, is := accounts[name{p.Namespace, p.ServiceAccount}]; here[p] || !is {
			continue
		}
		since, was := c.left[p]
		if !was || since.After(now) {
			since = now
		}
		if over := since.Add(linger); now.Before(over) {
			left[p] = since
			if soon.IsZero() || over.Before(soon) {
				soon = over
			}
		}
	}
	for p := range left {
		here[p] = true
	}
	c.left, c.told = left, here
	return soon
}

func compare(a, b Place) int {
	return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.ServiceAccount, b.ServiceAccount), strings.Compare(a.Node, b.Node))
}

package ca

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-mesh/writ/ca/kms"
	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/root"
	"github.com/writ-mesh/writ/ca/roots"
	"github.com/writ-mesh/writ/internal/atomicfile"
	"github.com/writ-mesh/writ/internal/identity"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

const (
	// gateTick is how often the gate of a rotation is looked at when nobody reports
	// anything: certificates expire.
	gateTick = time.Second
	// gateRest keeps the ledger from being read all the time, which a gate needs: ten
	// times as long as the last reading took, this at least.
	gateRest = 50 * time.Millisecond
	// rootWarn is the part of a root's life that is left when the log begins to say
	// that it should be rotated.
	rootWarn = 3
	// rootWarnEvery is how often it says so.
	rootWarnEvery = 24 * time.Hour
	// selfActor is the authority in the log of what was done.
	selfActor = "authority"
)

// rootsDocument is the key of the state of the roots among the ledger's documents.
const rootsDocument = "roots"

// event is a change of the roots as the ledger keeps it.
type event struct {
	// actor is who wanted it.
	actor string
	// step is what was done.
	step string
	// subject is the key id that it is about.
	subject string
	// with is what else is in the change: documents put and deleted, and versions.
	with ledger.Change
}

// keeper keeps the roots: it makes and removes their keys, remembers the state of
// a rotation, hears where the watchers of the bundle stand, and goes on from step
// to step. Package roots has the rules.
type keeper struct {
	a      *Authority
	dir    string
	bundle string // the file
	spec   root.Spec
	store  ledger.Store
	now    func() time.Time
	log    *slog.Logger

	// keys are those of the key manager, nil without one; refs are the URIs of the
	// roots' keys in it by key id.
	keys   *kms.Keys
	refs   sync.Map
	kmsURI string
	// outside is the authority from outside, nil without one.
	outside outsideBox
	// source is where that is from, nil without one.
	source source
	// others are the authorities over the same ledger, nil if there are none.
	others *replicas

	// mu is held during a change of the state.
	mu      sync.Mutex
	version uint64

	seen seenLeaves

	reportsMu sync.Mutex
	reports   map[*report]struct{}
	// uncounted: there is news of the reports since they were counted.
	uncounted bool
	// news has a token when the gate has to be looked at again.
	news chan struct{}

	statusMu sync.Mutex
	status   progress
	// problem is why the last attempt at a step failed.
	problem error
	// outsideProblem is why the newest set from outside is not in force.
	outsideProblem error
	// told is closed when the status is replaced.
	told chan struct{}
	// stopped is closed when run ends.
	stopped chan struct{}
}

// progress is what a gate was judged by, for operators.
type progress struct {
	state   roots.State
	gate    []roots.Hold
	problem error
	live    map[string]livePart // by key id
}

// livePart is what there is of one authority's certificates.
type livePart struct {
	count uint64
	until time.Time
}

// report is one watcher's; the keeper's reportsMu guards it.
type report struct{ roots.Report }

func newKeeper(c Config, a *Authority) *keeper {
	return &keeper{
		a: a, dir: c.State, bundle: c.trustBundle(), store: a.store, log: a.log, now: a.now,
		spec:    root.Spec{TrustDomain: a.td, Life: c.RootTTL.D(), Skew: c.ClockSkew.D()},
		reports: make(map[*report]struct{}), news: make(chan struct{}, 1), told: make(chan struct{}), stopped: make(chan struct{}),
	}
}

// loadState reads the state; version 0 says that there is none yet.
func (k *keeper) loadState(ctx context.Context) (s roots.State, version uint64, err error) {
	doc, err := k.store.Get(ctx, rootsDocument)
	switch {
	case errors.Is(err, ledger.ErrNoDocument):
		return s, 0, nil
	case err != nil:
		return s, 0, fmt.Errorf("state of the roots: %w", err)
	}
	if err := json.Unmarshal(doc.Value, &s); err != nil {
		return s, 0, fmt.Errorf("the ledger's document %s cannot be read; restore the ledger from a backup: %w", rootsDocument, err)
	}
	if err := s.Check(); err != nil {
		return s, 0, fmt.Errorf("the ledger's document %s is damaged; restore the ledger from a backup: %w", rootsDocument, err)
	}
	k.remember(s)
	return s, doc.Version, nil
}

// saveState makes a state durable if the one before is still that of k.version.
func (k *keeper) saveState(ctx context.Context, s roots.State, e event) error {
	data, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("state of the roots: %w", err)
	}
	c := ledger.Change{
		If: map[string]uint64{rootsDocument: k.version}, Put: map[string][]byte{rootsDocument: data}, Delete: e.with.Delete,
		Entry: ledger.Entry{
			Kind: ledger.Rotated, Time: k.now().UTC(), Actor: e.actor, Subject: e.subject,
			Detail: map[string]string{"step": e.step, "sequence": strconv.FormatUint(s.Sequence, 10)},
		},
	}
	maps.Copy(c.If, e.with.If)
	maps.Copy(c.Put, e.with.Put)
	version, err := k.store.Commit(ctx, c)
	if err != nil {
		return fmt.Errorf("state of the roots: %w", err)
	}
	k.version = version
	return nil
}

// settle brings what follows from the state into line with it: the bundle's file,
// the keys that nobody needs, the metrics. It is done after each change, and at
// start for one that was cut off.
func (k *keeper) settle(ctx context.Context, t *trust) error {
	if err := atomicfile.Write(k.bundle, root.PEM(t.bundle.X509Authorities()...), 0o644); err != nil {
		return fmt.Errorf("trust bundle: %w", err)
	}
	k.a.metrics.roots(t)
	k.reportsMu.Lock()
	k.reported()
	k.reportsMu.Unlock()
	k.count() // who reads the metrics now must not see how many had the bundle of before
	k.note(t.state, nil, nil)
	inUse := func(keyID string) bool { _, ok := t.state.Authority(keyID); return ok }
	if err := root.Leftovers(k.dir, inUse); err != nil {
		k.log.WarnContext(ctx, "the key of a dropped root is still there; remove it by hand", slog.Any("error", err))
	}
	return nil
}

// change takes the state from f, makes it durable and puts it into force. Nothing
// that follows can fail the change any more. If another authority over the same ledger
// was faster, f is asked again.
func (k *keeper) change(ctx context.Context, e *event, f func(roots.State) (roots.State, error)) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for try := 1; ; try++ {
		e.with = ledger.Change{}
		err := k.tryChange(ctx, e, f)
		if !errors.Is(err, ledger.ErrConflict) || try == rootsTries {
			return err
		}
	}
}

func (k *keeper) tryChange(ctx context.Context, e *event, f func(roots.State) (roots.State, error)) error {
	if err := k.reload(ctx); err != nil {
		return err
	}
	before := k.a.trusted().state
	s, err := f(before)
	if err != nil {
		return err
	}
	t, err := k.prepared(ctx, s)
	if err != nil {
		return err
	}
	if err := k.others.cleared(ctx, e, before, s); err != nil {
		return err
	}
	if err := k.saveState(ctx, s, *e); err != nil {
		return err
	}
	k.log.InfoContext(ctx, "roots", slog.String("step", e.step), slog.String("actor", e.actor), slog.String("root", e.subject), slog.Uint64("sequence", s.Sequence), slog.String("active", s.Active))
	k.adopt(ctx, t)
	return nil
}

// reload adopts the state that the ledger has, if it is another one: an attempt to
// change it may have failed only after it was durable.
func (k *keeper) reload(ctx context.Context) error {
	s, version, err := k.loadState(ctx)
	if err != nil || version == k.version {
		return err
	}
	t, err := k.prepared(ctx, s)
	if err != nil {
		return err
	}
	k.version = version
	k.adopt(ctx, t)
	return nil
}

// adoptOthers takes what other authorities over the same ledger do to the roots,
// until ctx ends.
func (k *keeper) adoptOthers(ctx context.Context) error {
	var told string
	failed := func(err error) {
		if err.Error() != told {
			told = err.Error()
			k.log.ErrorContext(ctx, "the ledger has other roots, which cannot be taken, and nothing is issued under those of before; will try again", slog.Any("error", err))
		}
	}
	return watchDocuments(ctx, k.store, rootsDocument, rootsWait, rootsWait, failed, func(ledger.Update, bool) error {
		k.mu.Lock()
		defer k.mu.Unlock()
		return k.reload(ctx)
	})
}

// adopt puts a durable state into force and does what follows from it.
func (k *keeper) adopt(ctx context.Context, t *trust) {
	old := k.a.trusted()
	t.version, t.since = k.version, k.now()
	k.a.replace(t)
	for _, cert := range old.bundle.X509Authorities() {
		if t.bundle.HasX509Authority(cert) {
			continue
		}
		if err := root.Retire(k.dir, cert); err != nil {
			k.log.WarnContext(ctx, "the key of a dropped root is still there; remove it by hand", slog.Any("error", err))
		}
	}
	if err := k.settle(ctx, t); err != nil {
		k.log.ErrorContext(ctx, "the trust bundle's file is behind", slog.Any("error", err))
	}
	k.wake()
}

// prepared builds the trust of a state that is not durable yet.
func (k *keeper) prepared(ctx context.Context, s roots.State) (*trust, error) {
	old := k.a.trusted()
	sign := old.signer
	if s.Active != old.state.Active || k.outside.signsFor(s.Active) {
		next, ok := s.Authority(s.Active)
		if !ok {
			return nil, fmt.Errorf("root %s is not in the state", s.Active)
		}
		cert, err := x509.ParseCertificate(next.Certificate)
		if err != nil {
			return nil, fmt.Errorf("root %s: %w", s.Active, err)
		}
		if sign, err = k.loadSigner(ctx, cert); err != nil {
			return nil, err
		}
	}
	t, err := newTrust(k.spec.TrustDomain, s, sign)
	if err == nil {
		t.follows(old)
	}
	return t, err
}

// rotate begins a rotation, or lets the one under way go on.
func (k *keeper) rotate(ctx context.Context, by string, how roots.How) error {
	return k.rotateTo(ctx, by, how, nil)
}

// rotateTo begins a rotation in which the new key goes to the replicas with those ids
// only, nil for all; or lets the one under way go on.
func (k *keeper) rotateTo(ctx context.Context, by string, how roots.How, to []string) error {
	e := event{actor: by, step: "prepare"}
	return k.change(ctx, &e, func(s roots.State) (roots.State, error) {
		if r := s.Rotation; r != nil {
			e.step, e.subject = "continue", r.New
			if err := k.others.mayBeCompromised(ctx, r, how); err != nil {
				return s, err
			}
			return s.Continue(how)
		}
		if err := k.outside.refusesRotation(); err != nil {
			return s, err
		}
		now := k.now()
		// If the change fails its key goes with the next one, or at the next start.
		next, err := k.further(ctx, now)
		if err != nil {
			return s, err
		}
		e.step, e.subject = "prepare", next.KeyID
		if err := k.others.handOver(ctx, &e, s, next, how, to); err != nil {
			return s, err
		}
		return s.Begin(next, by, how, now)
	})
}

// abort takes the new root out again.
func (k *keeper) abort(ctx context.Context, by string) error {
	e := event{actor: by, step: "abort"}
	return k.change(ctx, &e, func(s roots.State) (roots.State, error) {
		if s.Rotation != nil {
			e.subject = s.Rotation.New
		}
		return s.Abort(k.now())
	})
}

// run takes the rotation under way from step to step until ctx ends.
func (k *keeper) run(ctx context.Context) error {
	defer close(k.stopped)
	tick := time.NewTicker(gateTick)
	defer tick.Stop()
	var warned time.Time
	for {
		rest := gateRest
		k.count()
		if t := k.a.trusted(); t.state.Rotation != nil {
			began := time.Now()
			k.step(ctx, t)
			rest = max(rest, 10*time.Since(began))
		} else {
			k.seen.forget()
		}
		warned = k.warn(ctx, warned)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(rest):
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		case <-k.news:
		}
	}
}

// step looks at the gate of the rotation in t and goes on if it is open. The rotation may
// be over meanwhile, by a state of another replica.
func (k *keeper) step(ctx context.Context, t *trust) {
	facts, err := k.facts(ctx, t)
	if err != nil {
		k.failed(ctx, fmt.Errorf("the ledger cannot be read: %w", err))
		return
	}
	r := t.state.Rotation
	gate := roots.Gate(t.state, facts, k.now())
	k.note(t.state, gate, facts.Leaves)
	if !r.May(gate) {
		return
	}
	step, subject := "activate", r.New
	if r.Step == roots.Draining {
		step, subject = "retire", r.Old
	}
	err = k.change(ctx, &event{actor: selfActor, step: step, subject: subject}, func(s roots.State) (roots.State, error) {
		if s.Sequence != t.state.Sequence || s.Rotation == nil || s.Rotation.Step != r.Step {
			return s, errMoved
		}
		return s.Advance(gate, k.now())
	})
	if !errors.Is(err, errMoved) {
		k.failed(ctx, err)
	}
}

// errMoved: the state is another than the gate was judged for.
var errMoved = errors.New("the roots have changed meanwhile")

// failed keeps why a step failed, nil if it did not.
func (k *keeper) failed(ctx context.Context, err error) {
	k.statusMu.Lock()
	fresh := err != nil && (k.problem == nil || k.problem.Error() != err.Error())
	k.problem = err
	k.statusMu.Unlock()
	if fresh {
		k.log.ErrorContext(ctx, "the rotation of the root does not go on, will try again", slog.Any("error", err))
	}
}

// warn says in the log that the root should be rotated, once a day.
func (k *keeper) warn(ctx context.Context, last time.Time) time.Time {
	now := k.now()
	t := k.a.trusted()
	cert := t.signer.Issuer()
	if t.state.Rotation != nil || now.Sub(last) < rootWarnEvery || cert.NotAfter.Sub(now) > cert.NotAfter.Sub(cert.NotBefore)/rootWarn {
		return last
	}
	if k.outside.signsFor(t.state.Active) {
		k.log.WarnContext(ctx, "two thirds of the issuing certificate's life are over; replace it where it is from", slog.String("issuer", root.KeyID(cert)), slog.Time("not_after", cert.NotAfter))
		return now
	}
	k.log.WarnContext(ctx, "two thirds of the root's life are over; replace it: writ roots rotate", slog.String("root", t.state.Active), slog.Time("not_after", cert.NotAfter))
	return now
}

// watch begins to hear a watcher of the bundle.
func (k *keeper) watch(holder spiffeid.ID) *report {
	k.reportsMu.Lock()
	defer k.reportsMu.Unlock()
	r := &report{roots.Report{Holder: holder.String(), Since: k.now()}}
	k.reports[r] = struct{}{}
	k.reported()
	return r
}

// heard takes what a watcher says about itself.
func (k *keeper) heard(r *report, req *capb.WatchBundleRequest) {
	k.reportsMu.Lock()
	defer k.reportsMu.Unlock()
	r.Acknowledged, r.Authorities, r.Waiting, r.Since = req.GetAcknowledged(), req.GetAuthorities(), req.GetWaiting(), k.now()
	k.reported()
}

// forget ends what watch began.
func (k *keeper) forget(r *report) {
	k.reportsMu.Lock()
	defer k.reportsMu.Unlock()
	delete(k.reports, r)
	k.reported()
}

// reported has the reports counted and the gate looked at, by run: with thousands of
// watchers, who all report when the bundle changes, to count at each report is far more
// than to take it. reportsMu is held.
func (k *keeper) reported() {
	k.uncounted = true
	k.wake()
	k.others.news()
}

// count counts the reports for the metrics, if there is news of them.
func (k *keeper) count() {
	k.reportsMu.Lock()
	defer k.reportsMu.Unlock()
	if !k.uncounted {
		return
	}
	k.uncounted = false
	current, sequence := 0, k.a.trusted().state.Sequence
	for r := range k.reports {
		if k.a.rootsSequence(r.Acknowledged) >= sequence {
			current++
		}
	}
	k.a.metrics.acknowledged.WithLabelValues("true").Set(float64(current))
	k.a.metrics.acknowledged.WithLabelValues("false").Set(float64(len(k.reports) - current))
}

func (k *keeper) wake() {
	select {
	case k.news <- struct{}{}:
	default:
	}
}

// facts are those of now: certificates from the ledger, reports of the watchers.
func (k *keeper) facts(ctx context.Context, t *trust) (roots.Facts, error) {
	// First the reports: one that comes meanwhile is for the next time, one that
	// ends is a holder that is not connected.
	f := roots.Facts{Reports: k.watched()}
	var err error
	f.Leaves, err = k.leaves(ctx)
	k.others.tell(t, &f, k.now())
	k.byRoot(f)
	return f, err
}

// watched are the reports of this authority's watchers and of its own.
func (k *keeper) watched() []roots.Report {
	var out []roots.Report
	k.reportsMu.Lock()
	for r := range k.reports {
		rep := r.Report
		rep.Acknowledged = k.a.rootsSequence(rep.Acknowledged)
		out = append(out, rep)
	}
	k.reportsMu.Unlock()
	if own, err := k.ownReport(); err == nil {
		out = append(out, own)
	}
	return out
}

// ownReport is where the authority itself stands: it uses the bundle by nature, and
// its own certificate until the next; and it speaks for the Secrets of a cluster.
func (k *keeper) ownReport() (roots.Report, error) {
	id, err := identity.Service(k.spec.TrustDomain, identity.CA)
	if err != nil {
		return roots.Report{}, err
	}
	r := roots.Report{Holder: id.String(), Acknowledged: k.a.trusted().state.Sequence, Since: k.now()}
	if own := k.a.own.Load(); own != nil {
		if svid := own.svid.Load(); svid != nil {
			r.Authorities = []string{issuerOf(svid.Certificates[0])}
		}
	}
	k.a.withSecrets(&r)
	return r, nil
}

// seenLeaves are the certificates of the ledger as far as it was read, so that a
// gate that is looked at every second reads what is new only.
type seenLeaves struct {
	mu     sync.Mutex
	leaves []roots.Leaf
	// next is the index of the first entry that was not read.
	next uint64
}

// forgetAfter is how long after its end a certificate is remembered, for a clock
// that goes back.
const forgetAfter = 24 * time.Hour

// leaves are the certificates of the ledger that have not expired.
func (k *keeper) leaves(ctx context.Context) ([]roots.Leaf, error) {
	now, seen := k.now(), &k.seen
	seen.mu.Lock()
	defer seen.mu.Unlock()
	err := k.store.Each(ctx, seen.next, func(r ledger.Record) error {
		if bytes.Contains(r.Leaf, []byte(ledger.Issued)) {
			e, err := r.Entry()
			if err != nil {
				return err
			}
			if e.Kind == ledger.Issued && e.NotAfter.After(now.Add(-forgetAfter)) {
				seen.leaves = append(seen.leaves, leaf(e.Subject, e.Actor, e.Authority, e.NotAfter))
			}
		}
		seen.next = r.Index + 1
		return nil
	})
	var out []roots.Leaf
	for _, l := range seen.leaves {
		if l.NotAfter.After(now) {
			out = append(out, l)
		}
	}
	return out, err
}

// forget lets go of what is needed during a rotation only.
func (s *seenLeaves) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leaves, s.next = nil, 0
}

// leaf is what a certificate of the ledger is for a gate.
func leaf(id, requester, issuer string, notAfter time.Time) roots.Leaf {
	l := roots.Leaf{Identity: id, Issuer: issuer, NotAfter: notAfter}
	parsed, err := spiffeid.FromString(id)
	if err != nil {
		return l
	}
	_, node := identity.NodeOf(parsed)
	_, service := identity.ServiceOf(parsed)
	switch {
	case node || service:
		l.Owner = id
	case strings.HasPrefix(requester, "spiffe://"):
		l.Owner = requester
	}
	return l
}

// note keeps what operators are told, and counts it.
func (k *keeper) note(s roots.State, gate []roots.Hold, leaves []roots.Leaf) {
	st := progress{state: s, gate: gate, live: make(map[string]livePart)}
	for _, l := range leaves {
		p := st.live[l.Issuer]
		p.count++
		if l.NotAfter.After(p.until) {
			p.until = l.NotAfter
		}
		st.live[l.Issuer] = p
	}
	k.statusMu.Lock()
	defer k.statusMu.Unlock()
	st.problem = k.problem
	k.status = st
	close(k.told)
	k.told = make(chan struct{})
	k.a.metrics.holds.Set(float64(len(gate)))
}

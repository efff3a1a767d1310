package ca

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/revocation"
	"github.com/writ-mesh/writ/ca/root"
	"github.com/writ-mesh/writ/ca/signer"
	"github.com/writ-mesh/writ/internal/rpc"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

const (
	// revocationRetry is how long to wait after the list could not be read or made.
	revocationRetry = time.Second
	// lookAtClock is how often it is looked whether the lists' time is over.
	lookAtClock = 5 * time.Second
	// minCRLLife is the shortest time from a certificate revocation list to its end.
	minCRLLife = 24 * time.Hour
	// crlBackdate is by how much a list is backdated. One that a verifier's clock
	// finds in the future fails every handshake, so it is more than for certificates.
	crlBackdate = 10 * time.Minute
	// pruneRest keeps lists from being made anew for each certificate that expires.
	pruneRest = time.Minute
	// tellFirst is how long after a new list connections of those who are revoked stay
	// open, so that they hear of it over them. Calls are refused at once.
	tellFirst = 500 * time.Millisecond
)

// revocations follows the documents that say what is revoked and keeps what is made
// of them at hand. It never stands in the way of issuing: what it cannot read or
// sign it tries again, and what it had stays in force meanwhile.
type revocations struct {
	a       *Authority
	metrics *revocationMetrics
	// life is that of a certificate revocation list.
	life time.Duration

	// current is never nil.
	current atomic.Pointer[revoked]

	// mu is held while a new current is made.
	mu      sync.Mutex
	entries map[string]revocation.Entry
	number  uint64
	// bad says what is wrong with a document; such a one is not in entries.
	bad error
	// serials are the certificates of revoked identities, by key.
	serials map[string]expansion
	// signers are by key id.
	signers map[string]*signer.Signer
	// peers are the connections of callers over TLS.
	peers rpc.Peers
}

// revoked is what is revoked at a moment. It is never changed, only replaced.
type revoked struct {
	list   *revocation.List
	served *capb.RevocationList
	// crls are by the key id of the authority.
	crls map[string][]byte
	// next is when a new one is to be made if nothing changes.
	next time.Time
	// replaced is closed when there is a newer one.
	replaced chan struct{}
}

// expansion are the certificates of an identity that was revoked by the document of
// that version. There are no more of them than then: new ones are refused.
type expansion struct {
	version      uint64
	certificates []ledger.Entry
}

// newRevocations reads what is revoked. A document that cannot be read is logged and
// left out: to issue for its identity is refused all the same, because the document
// is there.
func newRevocations(ctx context.Context, a *Authority, m *revocationMetrics) (*revocations, error) {
	r := &revocations{
		a: a, metrics: m, life: max(2*a.life.max, minCRLLife),
		entries: map[string]revocation.Entry{}, serials: map[string]expansion{}, signers: map[string]*signer.Signer{},
	}
	r.current.Store(&revoked{list: &revocation.List{}, served: &capb.RevocationList{}, replaced: make(chan struct{})})
	docs, err := a.store.List(ctx, revocation.Prefix)
	if err != nil {
		return nil, fmt.Errorf("revocations: %w", err)
	}
	r.take(ctx, ledger.Update{Put: docs}, true)
	r.renew(ctx)
	return r, nil
}

// run follows the documents and the roots until ctx ends.
func (r *revocations) run(ctx context.Context) error {
	changed := make(chan struct{}, 1)
	var wg sync.WaitGroup
	wg.Go(func() { r.follow(ctx, changed) })
	defer wg.Wait()
	for {
		// The wall clock may jump while timers do not, and so be beyond the end of the
		// lists, or before their beginning.
		wait := time.NewTimer(min(r.left(), lookAtClock))
		select {
		case <-ctx.Done():
		case <-changed:
		case <-r.a.trusted().replaced:
		case <-wait.C:
			if left := r.left(); left > 0 && left <= r.life/2 {
				continue
			}
		}
		wait.Stop()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		r.renew(ctx)
	}
}

// left is how long the lists of now are good by the wall clock.
func (r *revocations) left() time.Duration {
	return r.current.Load().next.Round(0).Sub(r.a.now().Round(0))
}

// follow takes the documents as they change.
func (r *revocations) follow(ctx context.Context, changed chan<- struct{}) {
	failed := func(err error) {
		r.a.log.ErrorContext(ctx, "the revocations cannot be followed; those known stay in force", slog.Any("error", err))
	}
	_ = watchDocuments(ctx, r.a.store, revocation.Prefix, revocationRetry, revocationRetry, failed, func(u ledger.Update, all bool) error {
		r.take(ctx, u, all)
		select {
		case changed <- struct{}{}:
		default:
		}
		return nil
	})
}

// take notes what changed among the documents; all says that there are no others.
func (r *revocations) take(ctx context.Context, u ledger.Update, all bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if all {
		clear(r.entries)
		r.bad = nil
	}
	for _, d := range u.Put {
		r.number = max(r.number, d.Version)
		if d.Key == revocation.NumberKey {
			continue
		}
		e, err := revocation.Unmarshal(d.Key, d.Version, d.Value)
		if err != nil {
			r.bad = err
			r.a.log.ErrorContext(ctx, "a revocation cannot be read and is not in the lists", slog.Any("error", err))
			continue
		}
		r.entries[d.Key] = e
	}
	for _, key := range u.Deleted {
		delete(r.entries, key)
	}
}

// renew makes a new current.
func (r *revocations) renew(ctx context.Context) {
	r.mu.Lock()
	defer r.mu.Unlock()
	old, now := r.current.Load(), r.a.now()
	fresh := &revoked{
		list: revocation.NewList(r.number, slices.Collect(maps.Values(r.entries))),
		next: now.Add(r.life / 2), replaced: make(chan struct{}),
	}
	live := fresh.list.Live(now)
	fresh.served = &capb.RevocationList{Sequence: r.number}
	for _, e := range live {
		fresh.served.Revocations = append(fresh.served.Revocations, entryProto(e))
		if end := later(e.NotAfter.Add(time.Second), now.Add(pruneRest)); !e.NotAfter.IsZero() && end.Before(fresh.next) {
			fresh.next = end
		}
	}
	r.stated(ctx, fresh.served, now)
	var err error
	if fresh.crls, err = r.sign(ctx, live, now); err != nil {
		// Those of before are better than none until they end.
		fresh.crls, fresh.next = old.crls, now.Add(revocationRetry)
		fresh.served.Problem = err.Error()
		r.a.log.ErrorContext(ctx, "no certificate revocation list can be made; issuing goes on", slog.Any("error", err))
	} else if r.bad != nil {
		fresh.served.Problem = r.bad.Error()
	}
	for _, id := range slices.Sorted(maps.Keys(fresh.crls)) {
		fresh.served.Crls = append(fresh.served.Crls, fresh.crls[id])
	}
	r.metrics.set(live, r.number, err == nil && r.bad == nil)
	r.current.Store(fresh)
	close(old.replaced)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// sign makes the list of each authority that issues or issued. Envoy wants one of each or
// none.
func (r *revocations) sign(ctx context.Context, live []revocation.Entry, now time.Time) (map[string][]byte, error) {
	certificates, err := r.certificates(ctx, live)
	if err != nil {
		return nil, err
	}
	issuers, err := r.issuers(ctx, r.a.trusted())
	if err != nil {
		return nil, err
	}
	out := map[string][]byte{}
	for _, s := range issuers {
		issuer := s.Issuer()
		id := root.KeyID(issuer)
		from := later(now.Add(-crlBackdate), issuer.NotBefore)
		template, err := revocation.Template(r.number, certificates[id], now, from, now.Add(r.life))
		if err != nil {
			return nil, err
		}
		if out[id], err = s.CRL(template); err != nil {
			return nil, fmt.Errorf("authority %s: %w", id, err)
		}
		if err := revocation.Check(out[id], template, issuer); err != nil {
			return nil, fmt.Errorf("authority %s: %w", id, err)
		}
	}
	return out, nil
}

// signerOf gives who signs for an authority in the bundle, also for one that issues
// nothing any more.
func (r *revocations) signerOf(ctx context.Context, t *trust, keyID string, der []byte) (*signer.Signer, error) {
	if keyID == t.state.Active {
		return t.signer, nil
	}
	if s := r.signers[keyID]; s != nil {
		return s, nil
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return r.a.keeper.loadSigner(ctx, cert)
}

// certificates are those that are revoked, by the key id of their authority.
func (r *revocations) certificates(ctx context.Context, live []revocation.Entry) (map[string][]revocation.Revoked, error) {
	out := map[string][]revocation.Revoked{}
	serials := map[string]expansion{}
	for _, e := range live {
		if e.OfAuthority() {
			continue // nobody trusts it any more
		}
		if e.Serial != "" {
			out[e.Authority] = append(out[e.Authority], revocation.Revoked{Serial: e.Serial, Reason: e.Reason, Time: e.Time, NotAfter: e.NotAfter})
			continue
		}
		x, ok := r.serials[e.Key()]
		if !ok || x.version != e.Sequence {
			x = expansion{version: e.Sequence}
			now := r.a.now()
			err := r.a.eachCertificate(ctx, e.SPIFFEID, func(c ledger.Entry) error {
				if now.Before(c.NotAfter) {
					x.certificates = append(x.certificates, c)
				}
				return nil
			})
			if err != nil {
				return nil, fmt.Errorf("certificates of %s: %w", e.SPIFFEID, err)
			}
		}
		serials[e.Key()] = x
		for _, c := range x.certificates {
			out[c.Authority] = append(out[c.Authority], revocation.Revoked{Serial: c.Serial, Reason: e.Reason, Time: e.Time, NotAfter: c.NotAfter})
		}
	}
	r.serials = serials
	return out, nil
}

// reached waits until a list with that number is in force here.
func (r *revocations) reached(ctx context.Context, number uint64) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for {
		c := r.current.Load()
		if c.list.Sequence >= number {
			return
		}
		select {
		case <-c.replaced:
		case <-ctx.Done():
			return
		}
	}
}

// issuable refuses to issue for a revoked identity. r may be nil.
func (r *revocations) issuable(id string) error {
	if r == nil {
		return nil
	}
	if e, ok := r.current.Load().list.Identity(id); ok {
		return refuseRevoked(e)
	}
	return nil
}

// usable refuses a caller's certificate that is revoked. r may be nil.
func (r *revocations) usable(cert *x509.Certificate) error {
	if r == nil || len(cert.URIs) != 1 {
		return nil
	}
	if e, ok := r.current.Load().list.Certificate(hex.EncodeToString(cert.SerialNumber.Bytes()), cert.URIs[0].String()); ok && !e.Expired(r.a.now()) {
		return refuseRevoked(e)
	}
	return nil
}

// admit refuses a connection of a caller, with his chain, if he is revoked.
func (r *revocations) admit(chain []*x509.Certificate) error {
	if len(chain) == 0 {
		return nil // who joins has no certificate yet
	}
	return r.usable(chain[0])
}

// cutOff ends the connections of callers who are revoked, with their streams, until
// ctx ends.
func (r *revocations) cutOff(ctx context.Context) error {
	for {
		c := r.current.Load()
		select {
		case <-time.After(tellFirst):
		case <-ctx.Done():
			return ctx.Err()
		}
		if n := r.peers.Close(func(chain []*x509.Certificate) bool { return r.admit(chain) != nil }); n > 0 {
			r.a.log.WarnContext(ctx, "connections of revoked callers are closed", slog.Int("connections", n))
		}
		select {
		case <-c.replaced:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func refuseRevoked(e revocation.Entry) *refusal {
	what := "the identity " + e.SPIFFEID
	if e.Serial != "" {
		what = "the certificate " + e.Serial + " of " + e.SPIFFEID
	}
	return refuse(denied, "%s was revoked at %s (%s)", what, e.Time.UTC().Format(time.RFC3339), reasonText(capb.RevocationReason(e.Reason)))
}

// conflicted says why a certificate could not be recorded: its identity was revoked
// meanwhile, or else its proof was used.
func (a *Authority) conflicted(ctx context.Context, o order, cause error) *refusal {
	key := revocation.IdentityKey(o.subject())
	doc, err := a.store.Get(ctx, key)
	switch {
	case err == nil:
		if e, err := revocation.Unmarshal(key, doc.Version, doc.Value); err == nil {
			return refuseRevoked(e).because(cause)
		}
		return refuse(denied, "the identity %s was revoked", o.subject()).because(cause)
	case !errors.Is(err, ledger.ErrNoDocument):
		return recording(err)
	case o.proof.Key != "":
		return refuse(denied, tokenRefused).because(cause)
	case o.also != nil:
		return refuse(unavailable, "the order was changed or fulfilled meanwhile; look at it again").because(cause)
	}
	return refuse(unavailable, "the identity was revoked and unrevoked just now; ask again").because(cause)
}

func entryProto(e revocation.Entry) *capb.Revocation {
	return &capb.Revocation{
		Serial: e.Serial, SpiffeId: e.SPIFFEID, Sha256: e.SHA256, Authority: e.Authority, Reason: capb.RevocationReason(e.Reason),
		RevokedAt: timestamppb.New(e.Time), Actor: e.Actor, NotAfter: stamp(e.NotAfter), Sequence: e.Sequence,
	}
}

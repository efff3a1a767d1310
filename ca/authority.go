package ca

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-mesh/writ/ca/acme"
	"github.com/writ-mesh/writ/ca/csr"
	"github.com/writ-mesh/writ/ca/federated"
	"github.com/writ-mesh/writ/ca/jwtsvid"
	"github.com/writ-mesh/writ/ca/kubernetes"
	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/ledger/checkpoint"
	"github.com/writ-mesh/writ/ca/profile"
	"github.com/writ-mesh/writ/ca/revocation"
	"github.com/writ-mesh/writ/internal/identity"
)

// The kinds of requests, as in the metrics.
const (
	kindJoin  = "join"
	kindRenew = "renew"
	kindIssue = "issue"
	kindMint  = "mint"
	kindIstio = "istio"
	kindSelf  = "self"
	// kindKubernetes is for a Secret of a cluster.
	kindKubernetes = "kubernetes"
	kindACME       = "acme"
)

const (
	// rootsTries is how often an order is signed again because the roots changed.
	rootsTries = 3
	// rootsWait is how long it waits each time for what they are now.
	rootsWait = time.Second
)

// lifetimes are the checked times of a Config.
type lifetimes struct {
	workload, service, max, skew, token, jwt, jwtMax time.Duration
}

// Authority is the core: it turns an order, whose right was checked by the
// caller, into a certificate that is in the ledger. It is safe for concurrent use.
type Authority struct {
	td spiffeid.TrustDomain
	// trust is who signs and who is trusted; keeper replaces it, under signing.
	trust atomic.Pointer[trust]
	// signing is held for reading from signing to recording, so that a new trust
	// finds everything in the ledger that the one before signed.
	signing sync.RWMutex
	keeper  *keeper
	// own is the authority's own certificate, nil if nothing is served over TLS.
	own     atomic.Pointer[own]
	store   ledger.Store
	jwt     *jwtsvid.Keys
	keys    *jwtBundle
	foreign *federated.Bundles
	// cluster is the Kubernetes cluster, nil without one.
	cluster *kubernetes.Cluster
	life    lifetimes
	now     func() time.Time
	log     *slog.Logger
	metrics *metrics
	// revocations are what is revoked; nil means nothing is.
	revocations *revocations
	// signer signs the authority's word about its log and its lists; nil means nothing
	// does.
	signer *checkpoint.Signer
	// lost knows what the ledger does not; nil means nothing was lost.
	lost *lost
	// refusals writes down what is refused; nil means nothing does.
	refusals *refusals
}

// order is a certificate that somebody may have.
type order struct {
	kind string
	id   spiffeid.ID
	csr  csr.Request
	// ttl is the wanted life; zero means the default.
	ttl       time.Duration
	requester string
	// proof is a document of the ledger that is deleted along with the record of the
	// certificate, because it is good once; zero for none. Of several orders with
	// one proof exactly one is fulfilled.
	proof ledger.Document
	// facts are what an attestation saw.
	facts []string
	// names make it the certificate of a server outside the mesh, which has them and no
	// SPIFFE ID.
	names []string
	// also adds to the change that records the certificate; nil for nothing.
	also func(*trust, *x509.Certificate) (ledger.Change, error)
}

// subject is what the certificate is for.
func (o order) subject() string {
	if len(o.names) > 0 {
		return acme.Subject(o.names)
	}
	return o.id.String()
}

// fulfil has an order filled in, whose kind and requester are known, and issues,
// counts and logs it. fill checks that the requester may have it. Errors are
// refusals.
func (a *Authority) fulfil(ctx context.Context, o order, fill func(*order) error) (*x509.Certificate, error) {
	begin := a.now()
	var cert *x509.Certificate
	err := fill(&o)
	if err == nil {
		cert, err = a.issue(ctx, o)
	}
	a.answer(ctx, o, begin, cert, err)
	return cert, err
}

// issue signs and records a certificate. Errors are refusals.
func (a *Authority) issue(ctx context.Context, o order) (*x509.Certificate, error) {
	if !o.csr.ID.IsZero() && o.csr.ID != o.id {
		return nil, refuse(invalid, "the certificate request asks for %s, the call for %s", o.csr.ID, o.id)
	}
	if len(o.names) == 0 && !o.id.MemberOf(a.td) {
		return nil, refuse(denied, "%s is not in the trust domain %s", o.id, a.td.Name())
	}
	if o.kind == kindJoin {
		if err := a.joinable(o.id); err != nil {
			return nil, refuse(denied, "%v", err)
		}
	}
	if err := a.revocations.issuable(o.subject()); err != nil {
		return nil, err
	}
	ttl, err := a.ttl(o)
	if err != nil {
		return nil, err
	}
	for range rootsTries {
		cert, t, err := a.signed(ctx, o, ttl)
		if !errors.Is(err, errMoved) {
			return cert, err
		}
		select {
		case <-t.replaced:
		case <-ctx.Done():
			return nil, refuse(gone, "the caller did not wait for a certificate")
		case <-time.After(rootsWait):
		}
	}
	return nil, refuse(unavailable, "the roots are being changed; ask again")
}

// signed signs and records a certificate with the trust that it returns. The error
// is a refusal, or errMoved if that is not the ledger's any more.
func (a *Authority) signed(ctx context.Context, o order, ttl time.Duration) (*x509.Certificate, *trust, error) {
	a.signing.RLock()
	defer a.signing.RUnlock()
	t, now := a.trusted(), a.now()
	cert, err := a.sign(t, o, now, ttl)
	if err != nil {
		return nil, t, err
	}
	if err := a.record(ctx, t, o, cert, now); err != nil {
		return nil, t, err
	}
	return cert, t, nil
}

// ttl gives the life of an ordered certificate.
func (a *Authority) ttl(o order) (time.Duration, error) {
	switch {
	case o.ttl == 0:
		return a.defaultTTL(o.id), nil
	case o.ttl < minTTL:
		return 0, refuse(invalid, "a life of %s is too short, it has to be %s at least", o.ttl, minTTL)
	}
	return min(o.ttl, a.life.max), nil
}

func (a *Authority) defaultTTL(id spiffeid.ID) time.Duration {
	_, node := identity.NodeOf(id)
	_, svc := identity.ServiceOf(id)
	if node || svc {
		return a.life.service
	}
	return a.life.workload
}

// sign makes the certificate and compares it with the order.
func (a *Authority) sign(t *trust, o order, now time.Time, ttl time.Duration) (*x509.Certificate, error) {
	issuer := t.signer.Issuer()
	if err := t.checkTime(now); err != nil {
		return nil, refuse(unavailable, "the authority's certificate is not valid now; see its log").because(err)
	}
	notBefore, notAfter := profile.Window(now, ttl, a.life.skew, issuer)
	if notAfter.After(t.end) {
		notAfter = t.end
	}
	template, err := o.template(notBefore, notAfter)
	if err != nil {
		return nil, refuse(internal, "the certificate could not be made; see the authority's log").because(err)
	}
	cert, err := t.signer.Sign(template)
	if err != nil {
		return nil, refuse(internal, "the certificate could not be signed; see the authority's log").because(err)
	}
	if err := o.check(cert, issuer); err != nil {
		return nil, refuse(internal, "the signed certificate is not what was ordered; see the authority's log").because(err)
	}
	return cert, nil
}

func (o order) template(notBefore, notAfter time.Time) (*x509.Certificate, error) {
	if len(o.names) > 0 {
		return profile.Server(o.names, o.csr.PublicKey, notBefore, notAfter)
	}
	return profile.Leaf(o.id, o.csr.PublicKey, notBefore, notAfter)
}

func (o order) check(cert, issuer *x509.Certificate) error {
	if len(o.names) > 0 {
		return profile.CheckServer(cert, o.names, o.csr.PublicKey, issuer)
	}
	return profile.CheckLeaf(cert, o.id, o.csr.PublicKey, issuer)
}

// record writes a certificate down and uses up the proof it was issued for, unless
// its identity is revoked at that moment, or another authority over the same ledger
// has changed the roots. Errors are refusals, or errMoved for the roots.
func (a *Authority) record(ctx context.Context, t *trust, o order, cert *x509.Certificate, now time.Time) error {
	c := ledger.Change{Entry: entry(o, cert, now), If: map[string]uint64{revocation.IdentityKey(o.subject()): 0, rootsDocument: t.version}}
	if o.proof.Key != "" {
		c.If[o.proof.Key] = o.proof.Version
		c.Delete = []string{o.proof.Key}
	}
	if o.also != nil {
		more, err := o.also(t, cert)
		if err != nil {
			return refuse(internal, "the certificate cannot be recorded; see the authority's log").because(err)
		}
		maps.Copy(c.If, more.If)
		c.Put = more.Put
	}
	_, err := a.store.Commit(ctx, c)
	switch {
	case errors.Is(err, ledger.ErrConflict):
		if doc, err := a.store.Get(ctx, rootsDocument); err == nil && doc.Version != t.version {
			return errMoved
		}
		return a.conflicted(ctx, o, err)
	case err != nil:
		return recording(err)
	}
	return nil
}

// entry is what the ledger keeps of a certificate.
func entry(o order, cert *x509.Certificate, now time.Time) ledger.Entry {
	sum := sha256.Sum256(cert.Raw)
	return ledger.Entry{
		Kind:      ledger.Issued,
		Time:      now.UTC(),
		Actor:     o.requester,
		Request:   o.kind,
		Subject:   o.subject(),
		Serial:    hex.EncodeToString(cert.SerialNumber.Bytes()),
		Authority: hex.EncodeToString(cert.AuthorityKeyId),
		NotBefore: cert.NotBefore,
		NotAfter:  cert.NotAfter,
		SHA256:    hex.EncodeToString(sum[:]),
		Facts:     o.facts,
	}
}

// answer counts and logs how a request ended. Refusals and what an administrator
// or a token got are always logged; the rest is in the ledger.
func (a *Authority) answer(ctx context.Context, o order, begin time.Time, cert *x509.Certificate, err error) {
	a.metrics.answered(o.kind, begin, a.now(), err)
	attrs := []slog.Attr{slog.String("kind", o.kind), slog.String("requester", o.requester), slog.String("spiffe_id", o.subject())}
	if err != nil {
		a.refusals.note(o.kind, o.requester, o.subject(), err)
		attrs = append(attrs, slog.String("result", string(reasonOf(err))), slog.Any("error", err))
		a.log.LogAttrs(ctx, slog.LevelWarn, "certificate refused", attrs...)
		return
	}
	level := slog.LevelDebug
	switch o.kind {
	case kindJoin, kindMint, kindIstio, kindACME:
		level = slog.LevelInfo
	}
	if a.log.Enabled(ctx, level) {
		attrs = append(attrs, slog.String("serial", hex.EncodeToString(cert.SerialNumber.Bytes())), slog.Time("not_after", cert.NotAfter))
		a.log.LogAttrs(ctx, level, "certificate issued", attrs...)
	}
}

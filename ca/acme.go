package ca

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"log/slog"
	"net"
	"time"

	"github.com/writ-mesh/writ/ca/acme"
	"github.com/writ-mesh/writ/ca/csr"
	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/limit"
	"github.com/writ-mesh/writ/ca/revocation"
	"github.com/writ-mesh/writ/internal/service"
)

// maxACMERevoked bounds what ACME clients revoked and has not expired, all of them
// and one account: it is in the lists that go to every Envoy.
const maxACMERevoked, maxACMERevokedByOne = 1000, 50

// serveACME opens the address for ACME clients.
func serveACME(ctx context.Context, c Config, a *Authority, limits *limit.Limiter, rt *service.Runtime) (func(context.Context) error, error) {
	failed := func(err error) {
		a.log.ErrorContext(ctx, "the documents of ACME cannot be followed", slog.Any("error", err))
	}
	return acme.Open(ctx, c.ACME, acme.Options{
		Authority: acmeAuthority{a}, Store: a.store, Root: a.trusted().bundle.X509Authorities()[0],
		Watch: func(ctx context.Context, f func(ledger.Update, bool) error) error {
			return watchDocuments(ctx, a.store, acme.Prefix, time.Second, time.Second, failed, f)
		},
		Wait: func(ctx context.Context, request string, from net.Addr) time.Duration {
			return limits.Visitor(ctx, kindACME+" "+request, from)
		},
		Now: a.now, Log: rt.Log, Metrics: rt.Metrics,
	})
}

// acmeAuthority implements acme.Authority.
type acmeAuthority struct{ a *Authority }

// Issue implements acme.Authority.
func (x acmeAuthority) Issue(ctx context.Context, o acme.Order) ([]*x509.Certificate, error) {
	cert, err := x.a.fulfil(ctx, order{kind: kindACME, requester: o.Actor, names: o.Names}, func(ord *order) error {
		if len(o.Names) == 0 || o.TTL <= 0 {
			return refuse(invalid, "a certificate needs names and a life")
		}
		if err := csr.CheckKey(o.PublicKey); err != nil {
			return refuse(invalid, "%v", err)
		}
		ord.csr, ord.ttl = csr.Request{PublicKey: o.PublicKey}, o.TTL
		for _, n := range o.Names {
			ord.facts = append(ord.facts, acme.Subject([]string{n}))
		}
		if o.Also != nil {
			ord.also = func(t *trust, cert *x509.Certificate) (ledger.Change, error) { return o.Also(serverChain(t, cert)) }
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	t, err := x.a.covering(cert)
	if err != nil {
		return nil, err
	}
	return serverChain(t, cert), nil
}

// serverChain is the chain that an ACME client gets.
func serverChain(t *trust, cert *x509.Certificate) []*x509.Certificate {
	if chain := t.chain(cert); len(chain) > 1 {
		return chain
	}
	return []*x509.Certificate{cert, t.signer.Issuer()}
}

// Revoke implements acme.Authority.
func (x acmeAuthority) Revoke(ctx context.Context, cert *x509.Certificate, names []string, reason int, actor string) error {
	now := x.a.now().UTC()
	s := &revocationsServer{a: x.a}
	sum := sha256.Sum256(cert.Raw)
	e := revocation.Entry{
		Serial: hex.EncodeToString(cert.SerialNumber.Bytes()), SPIFFEID: acme.Subject(names), SHA256: hex.EncodeToString(sum[:]),
		Authority: issuerOf(cert), Reason: reason, Time: now, Actor: actor, NotAfter: cert.NotAfter.UTC(),
	}
	err := x.mayRevoke(e, now)
	if err == nil {
		e, _, err = s.enter(ctx, e)
	}
	s.audit(ctx, "ACME revoke-cert by "+actor, e, err)
	return err
}

func (x acmeAuthority) mayRevoke(e revocation.Entry, now time.Time) error {
	if e.Expired(now) {
		return refuse(unfit, "the certificate has expired")
	}
	all, own := 0, 0
	for _, other := range x.a.revocations.current.Load().list.Live(now) {
		if acme.IsSubject(other.SPIFFEID) {
			all++
			if other.Actor == e.Actor {
				own++
			}
		}
	}
	if all >= maxACMERevoked || own >= maxACMERevokedByOne {
		return refuse(unavailable, "too many certificates are revoked already; ask whoever runs the authority")
	}
	return nil
}

// Revoked implements acme.Authority.
func (x acmeAuthority) Revoked(serial string) bool {
	_, ok := x.a.revocations.current.Load().list.Certificate(serial, "")
	return ok
}

// Signs implements acme.Authority.
func (x acmeAuthority) Signs(cert *x509.Certificate) bool {
	return issuerOf(cert) == hex.EncodeToString(x.a.trusted().signer.Issuer().SubjectKeyId)
}

// Refused implements acme.Authority.
func (x acmeAuthority) Refused(ctx context.Context, actor string, names []string, why string) {
	x.a.answer(ctx, order{kind: kindACME, requester: actor, names: names}, x.a.now(), nil, refuse(denied, "%s", why))
}

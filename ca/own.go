package ca

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/writ-mesh/writ/ca/csr"
	"github.com/writ-mesh/writ/internal/identity"
	"github.com/writ-mesh/writ/internal/rpc"
)

// ownTick is how often the authority looks at its certificate and at the wall
// clock, which may jump while timers do not (suspend, adjusted clock), and how long
// it waits after a failed renewal.
const ownTick = time.Second

// own is the authority's own X.509-SVID. Key and certificate live in memory only:
// a new process makes new ones.
type own struct {
	a    *Authority
	id   spiffeid.ID
	svid atomic.Pointer[x509svid.SVID]
	// compliance is for the TLS of node agents and services.
	compliance rpc.CompliancePolicy
}

// newOwn gets a certificate if it can; if the ledger cannot record now, run goes
// on trying.
func newOwn(ctx context.Context, a *Authority, compliance rpc.CompliancePolicy) (*own, error) {
	id, err := identity.Service(a.td, identity.CA)
	if err != nil {
		return nil, err
	}
	o := &own{a: a, id: id, compliance: compliance}
	if err := o.renew(ctx); err != nil && reasonOf(err) != unavailable {
		return nil, fmt.Errorf("the authority's own certificate: %w", err)
	}
	return o, nil
}

func (o *own) renew(ctx context.Context) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	cert, err := o.a.fulfil(ctx, order{kind: kindSelf, id: o.id, requester: o.id.String()}, func(ord *order) error {
		ord.csr = csr.Request{PublicKey: key.Public()}
		return nil
	})
	if err != nil {
		return err
	}
	t, err := o.a.covering(cert)
	if err != nil {
		return err
	}
	o.svid.Store(&x509svid.SVID{ID: o.id, Certificates: t.chain(cert), PrivateKey: key})
	o.a.metrics.notAfter.WithLabelValues("server").Set(float64(cert.NotAfter.Unix()))
	o.a.keeper.wake()
	return nil
}

// run renews at half life, when another authority signs, and when the clock went
// back to before the certificate, until ctx ends. What fails is tried again soon.
func (o *own) run(ctx context.Context) error {
	for {
		t := o.a.trusted()
		if o.due() || !o.signedBy(t) {
			_ = o.renew(ctx) // answer has logged it; the next tick tries again
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.replaced:
		case <-time.After(ownTick):
		}
	}
}

// signedBy tells whether the certificate at hand is of the authority that signs
// now, or there is none.
func (o *own) signedBy(t *trust) bool {
	svid := o.svid.Load()
	return svid == nil || slices.Equal(svid.Certificates[0].RawIssuer, t.signer.Issuer().RawSubject)
}

// due tells whether it is time for another certificate: there is none, half of its
// life is over, or it is not valid yet, since the clock went back.
func (o *own) due() bool {
	svid := o.svid.Load()
	if svid == nil {
		return true
	}
	cert, now := svid.Certificates[0], o.a.now()
	half := cert.NotBefore.Add(cert.NotAfter.Sub(cert.NotBefore) / 2)
	return now.Before(cert.NotBefore) || !now.Before(half)
}

// GetX509SVID implements x509svid.Source.
func (o *own) GetX509SVID() (*x509svid.SVID, error) {
	if svid := o.svid.Load(); svid != nil {
		return svid, nil
	}
	return nil, errors.New("the authority has no certificate of its own yet")
}

// serverTLS asks for a client certificate and takes a connection without one,
// because who joins has none yet; rpc.Methods says which methods need one. A
// certificate that is given has to be a valid X.509-SVID of the trust domain.
func (o *own) serverTLS() *tls.Config {
	verify := tlsconfig.VerifyPeerCertificate(o.a, tlsconfig.AuthorizeMemberOf(o.a.td))
	c := &tls.Config{
		GetCertificate: tlsconfig.GetCertificate(o),
		ClientAuth:     tls.RequestClientCert,
		VerifyPeerCertificate: func(raw [][]byte, chains [][]*x509.Certificate) error {
			if len(raw) == 0 {
				return nil
			}
			if err := verify(raw, chains); err != nil {
				return err
			}
			leaf, err := x509.ParseCertificate(raw[0])
			if err != nil {
				return err
			}
			return o.a.revocations.usable(leaf)
		},
		// A resumed session would not be verified again.
		SessionTicketsDisabled: true,
	}
	o.compliance.Apply(c)
	return c
}

// clientTLS is for calling the service of Writ with that identity.
func (o *own) clientTLS(service spiffeid.ID) *tls.Config {
	c := tlsconfig.MTLSClientConfig(o, o.a, tlsconfig.AuthorizeID(service))
	o.compliance.Apply(c)
	return c
}

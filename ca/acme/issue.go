package acme

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	stepacme "github.com/smallstep/certificates/acme"
	"github.com/smallstep/certificates/authority"
	"github.com/smallstep/certificates/authority/config"
	"github.com/smallstep/certificates/authority/provisioner"
	"github.com/smallstep/certificates/cas/apiv1"
	"github.com/smallstep/certificates/db"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-mesh/writ/ca/ledger"
)

// kind is what requests of this package are called in the ledger.
const kind = "acme"

// provisionerName is in the paths: /acme/directory.
const (
	provisionerName = "acme"
	provisionerID   = "acme/" + provisionerName
)

// subjectPrefix is that of Subject.
const subjectPrefix = "dns:"

// Subject names what a certificate is for where others have a SPIFFE ID.
func Subject(names []string) string { return subjectPrefix + names[0] }

// IsSubject tells whether a subject of the ledger is one of Subject's.
func IsSubject(s string) bool { return strings.HasPrefix(s, subjectPrefix) }

// Authority is who signs. Its errors have gRPC codes, and texts that clients may see.
type Authority interface {
	// Issue signs a certificate and records it, in one change with what o.Also adds.
	// The chain begins with it and goes on with its issuer at least, also if that is a
	// root, because certbot takes no chain of one.
	Issue(ctx context.Context, o Order) (chain []*x509.Certificate, err error)
	// Revoke revokes a certificate that was issued by Issue.
	Revoke(ctx context.Context, cert *x509.Certificate, names []string, reason int, actor string) error
	// Revoked tells whether a certificate with that serial number is revoked.
	Revoked(serial string) bool
	// Signs tells whether who signed a certificate is who signs now.
	Signs(cert *x509.Certificate) bool
	// Refused counts, logs and writes down that somebody asked for what he may not have.
	Refused(ctx context.Context, actor string, names []string, why string)
}

// Order is a server's certificate that somebody may have.
type Order struct {
	Names     []string
	PublicKey crypto.PublicKey
	TTL       time.Duration
	// Actor is who gets it.
	Actor string
	// Also gives the documents to be changed along with the record of the
	// certificate, and their conditions; nil for none. It may be called several times.
	Also func(chain []*x509.Certificate) (ledger.Change, error)
}

// issuer implements what smallstep's authority signs with. Its methods have no
// context, so the request for which the authority signs or revokes is handed over by
// what both sides see: the template, or the serial number.
type issuer struct {
	d *database

	mu      sync.Mutex
	signing map[*x509.Certificate]context.Context
	revokes map[string]context.Context
}

func newIssuer(d *database) *issuer {
	return &issuer{d: d, signing: map[*x509.Certificate]context.Context{}, revokes: map[string]context.Context{}}
}

// provisionerFor is smallstep's ACME provisioner for one request.
type provisionerFor struct {
	*provisioner.ACME

	issuer *issuer
	// done undoes what was handed over; the request calls it at its end.
	done []func()
}

// AuthorizeSign hands the request over to CreateCertificate.
func (p *provisionerFor) AuthorizeSign(ctx context.Context, token string) ([]provisioner.SignOption, error) {
	options, err := p.ACME.AuthorizeSign(ctx, token)
	if err != nil {
		return nil, err
	}
	return append(options, enforcer(func(template *x509.Certificate) {
		p.issuer.mu.Lock()
		defer p.issuer.mu.Unlock()
		p.issuer.signing[template] = ctx
		p.done = append(p.done, func() {
			p.issuer.mu.Lock()
			defer p.issuer.mu.Unlock()
			delete(p.issuer.signing, template)
		})
	})), nil
}

// enforcer is called with the template just before it is signed.
type enforcer func(*x509.Certificate)

// Enforce implements provisioner.CertificateEnforcer.
func (f enforcer) Enforce(template *x509.Certificate) error {
	f(template)
	return nil
}

// CreateCertificate implements apiv1.CertificateAuthorityService. Of the template the
// key and the names count, and the names have to be those of the order and allowed to
// its account now; the authority lays the certificate out anew.
func (i *issuer) CreateCertificate(req *apiv1.CreateCertificateRequest) (*apiv1.CreateCertificateResponse, error) {
	i.mu.Lock()
	ctx, ok := i.signing[req.Template]
	i.mu.Unlock()
	if !ok {
		return nil, errors.New("no order is being fulfilled")
	}
	r, t := requestFrom(ctx), req.Template
	names := slices.Sorted(slices.Values(r.order.names()))
	if r.orderID == "" || r.order.Status != stepacme.StatusReady || r.order.Account != r.account {
		return nil, stepacme.NewErrorISE("the order %s is not ready", r.orderID)
	}
	if !slices.Equal(slices.Sorted(slices.Values(t.DNSNames)), names) || len(t.URIs)+len(t.IPAddresses)+len(t.EmailAddresses) > 0 || t.IsCA {
		return nil, stepacme.NewDetailedError(stepacme.ErrorBadCSRType, "the names are not those of the order")
	}
	if err := i.d.mayHave(ctx, r, names); err != nil {
		return nil, err
	}
	chain, err := i.d.authority.Issue(ctx, Order{
		Names: names, PublicKey: t.PublicKey, TTL: i.d.ttl, Actor: actor(r.account),
		Also: func(chain []*x509.Certificate) (ledger.Change, error) { return i.d.fulfilled(r, chain) },
	})
	if err != nil {
		return nil, problemOf(err)
	}
	r.nonce = ""
	return &apiv1.CreateCertificateResponse{Certificate: chain[0], CertificateChain: chain[1:]}, nil
}

// fulfilled is what changes along with the record of a certificate: the order has it,
// and the certificate is there to be fetched.
func (d *database) fulfilled(r *request, chain []*x509.Certificate) (ledger.Change, error) {
	leaf := chain[0]
	serial := serialOf(leaf)
	o := *r.order
	o.Status, o.Certificate, o.NotBefore, o.NotAfter = stepacme.StatusValid, serial, leaf.NotBefore.UTC(), leaf.NotAfter.UTC()
	c := certificate{Account: r.account, Order: r.orderID, NotAfter: leaf.NotAfter.UTC()}
	for _, cert := range chain {
		c.Chain = append(c.Chain, cert.Raw)
	}
	change := ledger.Change{If: map[string]uint64{orderPrefix + r.orderID: r.version}, Put: map[string][]byte{}}
	for key, v := range map[string]any{orderPrefix + r.orderID: &o, certificatePrefix + serial: &c} {
		value, err := json.Marshal(v)
		if err != nil {
			return ledger.Change{}, err
		}
		change.Put[key] = value
	}
	d.claim(r, &change)
	return change, nil
}

// AuthorizeRevoke hands the request over to RevokeCertificate. It is called when
// smallstep has found out that whoever asks may revoke the certificate.
func (p *provisionerFor) AuthorizeRevoke(ctx context.Context, token string) error {
	if err := p.ACME.AuthorizeRevoke(ctx, token); err != nil {
		return err
	}
	serial := requestFrom(ctx).serial
	p.issuer.mu.Lock()
	defer p.issuer.mu.Unlock()
	p.issuer.revokes[serial] = ctx
	p.done = append(p.done, func() {
		p.issuer.mu.Lock()
		defer p.issuer.mu.Unlock()
		delete(p.issuer.revokes, serial)
	})
	return nil
}

// RevokeCertificate implements apiv1.CertificateAuthorityService.
func (i *issuer) RevokeCertificate(req *apiv1.RevokeCertificateRequest) (*apiv1.RevokeCertificateResponse, error) {
	if req.Certificate == nil {
		return nil, errors.New("no certificate to revoke")
	}
	i.mu.Lock()
	ctx, ok := i.revokes[serialOf(req.Certificate)]
	i.mu.Unlock()
	if !ok || len(req.Certificate.DNSNames) == 0 {
		return nil, errors.New("no certificate is being revoked")
	}
	r := requestFrom(ctx)
	who := actor(r.account)
	if r.account == "" {
		who = kind + " by the certificate's key"
	}
	if err := i.d.authority.Revoke(ctx, req.Certificate, req.Certificate.DNSNames, r.reason, who); err != nil {
		return nil, problemOf(err)
	}
	return &apiv1.RevokeCertificateResponse{Certificate: req.Certificate}, nil
}

// RenewCertificate implements apiv1.CertificateAuthorityService; ACME has no renewal.
func (i *issuer) RenewCertificate(*apiv1.RenewCertificateRequest) (*apiv1.RenewCertificateResponse, error) {
	return nil, apiv1.NotImplementedError{}
}

// problemOf makes an ACME problem of an error of the authority.
func problemOf(err error) *stepacme.Error {
	s, _ := status.FromError(err)
	switch s.Code() {
	case codes.InvalidArgument:
		return problem(stepacme.ErrorBadCSRType, http.StatusBadRequest, err, "%s", s.Message())
	case codes.PermissionDenied, codes.FailedPrecondition:
		return problem(stepacme.ErrorUnauthorizedType, http.StatusForbidden, err, "%s", s.Message())
	case codes.Unavailable, codes.Canceled, codes.DeadlineExceeded:
		e := away(err)
		e.Detail = s.Message()
		return e
	}
	return stepacme.WrapErrorISE(err, "the authority")
}

// revoked implements the part of smallstep's db.AuthDB that ACME needs: what is
// revoked is in the authority's ledger.
type revoked struct {
	db.AuthDB

	authority Authority
}

// IsRevoked implements db.AuthDB; the number is decimal.
func (r revoked) IsRevoked(serial string) (bool, error) {
	id, ok := hexSerial(serial)
	if !ok {
		return false, fmt.Errorf("%.40q is no serial number", serial)
	}
	return r.authority.Revoked(id), nil
}

// Revoke implements db.AuthDB; RevokeCertificate has done it.
func (r revoked) Revoke(*db.RevokedCertificateInfo) error { return nil }

// Shutdown implements db.AuthDB.
func (r revoked) Shutdown() error { return nil }

// GetCertificate implements db.AuthDB.
func (r revoked) GetCertificate(string) (*x509.Certificate, error) { return nil, db.ErrNotImplemented }

// newStep makes smallstep's authority and its ACME provisioner.
func newStep(c Config, i *issuer, a Authority, root *x509.Certificate) (*authority.Authority, *provisioner.ACME, error) {
	life := func(d time.Duration) *provisioner.Duration { return &provisioner.Duration{Duration: d} }
	off, on := false, true
	p := &provisioner.ACME{
		ID: provisionerID, Type: "ACME", Name: provisionerName, RequireEAB: c.RequireExternalAccount,
		Claims: &provisioner.Claims{
			// The authority's own code decides on the life.
			MinTLSDur: life(time.Second), DefaultTLSDur: life(c.TTL.D()), MaxTLSDur: life(c.TTL.D() + 24*time.Hour),
			EnableSSHCA: &off, DisableRenewal: &on, DisableSmallstepExtensions: &on,
		},
	}
	for _, ch := range c.Challenges {
		p.Challenges = append(p.Challenges, provisioner.ACMEChallenge(ch))
	}
	auth, err := authority.NewEmbedded(authority.WithQuietInit(), authority.WithX509CAService(i), authority.WithX509RootCerts(root),
		authority.WithDatabase(revoked{authority: a}),
		authority.WithConfig(&config.Config{AuthorityConfig: &config.AuthConfig{Provisioners: provisioner.List{p}, Backdate: life(0)}}))
	if err != nil {
		return nil, nil, fmt.Errorf("acme: %w", err)
	}
	if loaded, err := auth.LoadProvisionerByName(provisionerName); err != nil || loaded != provisioner.Interface(p) {
		return nil, nil, fmt.Errorf("acme: the provisioner did not start: %v, %w", loaded, err)
	}
	return auth, p, nil
}

func serialOf(c *x509.Certificate) string { return hex.EncodeToString(c.SerialNumber.Bytes()) }

// hexSerial makes of a decimal serial number the form that the ledger has.
func hexSerial(decimal string) (string, bool) {
	n, ok := new(big.Int).SetString(decimal, 10)
	if !ok || len(decimal) > 60 || n.Sign() <= 0 {
		return "", false
	}
	return hex.EncodeToString(n.Bytes()), true
}

// toStep gives the certificate as smallstep has it.
func (c certificate) toStep(id string) (*stepacme.Certificate, error) {
	out := &stepacme.Certificate{ID: id, AccountID: c.Account, OrderID: c.Order}
	for _, der := range c.Chain {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("the ledger's certificate %s: %w", id, err)
		}
		out.Intermediates = append(out.Intermediates, cert)
	}
	if len(out.Intermediates) == 0 {
		return nil, fmt.Errorf("the ledger's certificate %s is empty", id)
	}
	out.Leaf, out.Intermediates = out.Intermediates[0], out.Intermediates[1:]
	return out, nil
}

package acme

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"time"

	stepacme "github.com/smallstep/certificates/acme"

	"github.com/writ-mesh/writ/ca/ledger"
)

// database implements smallstep's acme.DB on the documents of the ledger. What
// belongs to one HTTP request is in its context (request).
type database struct {
	store     ledger.Store
	index     *index
	nonces    *nonces
	authority Authority
	// names are those that certificates may have, externals the external accounts.
	names     patterns
	externals map[string]external
	// bound says whether an account needs an external one.
	bound bool
	ttl   time.Duration
	now   func() time.Time
	log   *slog.Logger
}

var _ stepacme.DB = (*database)(nil)

var errNotUsed = errors.New("this authority has nothing of the kind")

// entry is what the ledger says of a change.
func (d *database) entry(what, who string, names []string) ledger.Entry {
	e := ledger.Entry{Kind: ledger.ACME, Time: d.now().UTC(), Actor: actor(who), Request: kind, Detail: map[string]string{"what": what}}
	if len(names) > 0 {
		e.Subject = Subject(names)
	}
	return e
}

// actor names an account for the ledger, the log and the lists of certificates.
func actor(account string) string {
	if account == "" {
		return kind
	}
	return kind + " " + account
}

// claim makes a change use up the nonce of its request, so that of all authorities
// over the ledger one does what the request says, once.
func (d *database) claim(r *request, c *ledger.Change) {
	if r.nonce == "" {
		return
	}
	if c.If == nil {
		c.If = map[string]uint64{}
	}
	if c.Put == nil {
		c.Put = map[string][]byte{}
	}
	key := noncePrefix + r.nonce
	c.If[key], c.Put[key] = 0, []byte(d.now().UTC().Format(time.RFC3339))
}

// commit makes a change of a request. The error is ledger.ErrConflict, as it is, if
// the documents are not those that were read, else a problem for the client.
func (d *database) commit(ctx context.Context, c ledger.Change) (version uint64, err error) {
	r := requestFrom(ctx)
	d.claim(r, &c)
	version, err = d.store.Commit(ctx, c)
	if err == nil {
		r.nonce = ""
		return version, nil
	}
	return 0, d.failed(ctx, err)
}

// failed makes of an error of the ledger what commit returns.
func (d *database) failed(ctx context.Context, err error) error {
	if !errors.Is(err, ledger.ErrConflict) {
		return away(err)
	}
	if nonce := requestFrom(ctx).nonce; nonce != "" {
		if _, err := d.store.Get(ctx, noncePrefix+nonce); err == nil {
			return stepacme.NewDetailedError(stepacme.ErrorBadNonceType, "%v", errNonce)
		}
	}
	return ledger.ErrConflict
}

// again is the answer to who was overtaken.
func again() *stepacme.Error {
	e := problem(stepacme.ErrorServerInternalType, http.StatusServiceUnavailable, ledger.ErrConflict, "overtaken")
	e.Detail = "The order or account was changed meanwhile; try again"
	return e
}

// get reads a document into v; missing is what to say if it is not there.
func (d *database) get(ctx context.Context, key string, v any, none error) (version uint64, err error) {
	if len(key) > 512 {
		return 0, none // longer than a key can be
	}
	doc, err := d.store.Get(ctx, key)
	switch {
	case errors.Is(err, ledger.ErrNoDocument):
		return 0, none
	case err != nil:
		return 0, away(err)
	}
	return doc.Version, read(doc, v)
}

// put commits a document on condition of its version.
func (d *database) put(ctx context.Context, key string, version uint64, v any, e ledger.Entry) (uint64, error) {
	value, err := json.Marshal(v)
	if err != nil {
		return 0, err
	}
	return d.commit(ctx, ledger.Change{If: map[string]uint64{key: version}, Put: map[string][]byte{key: value}, Entry: e})
}

// CreateNonce implements acme.DB.
func (d *database) CreateNonce(context.Context) (stepacme.Nonce, error) {
	return stepacme.Nonce(d.nonces.make()), nil
}

// DeleteNonce implements acme.DB. It comes before the signature is verified, so it
// writes nothing: the change does that the request makes, if it makes one.
func (d *database) DeleteNonce(ctx context.Context, nonce stepacme.Nonce) error {
	id, err := d.nonces.use(string(nonce))
	if err != nil {
		return stepacme.NewDetailedError(stepacme.ErrorBadNonceType, "%v", err)
	}
	switch _, err := d.store.Get(ctx, noncePrefix+id); {
	case err == nil:
		return stepacme.NewDetailedError(stepacme.ErrorBadNonceType, "%v", errNonce)
	case !errors.Is(err, ledger.ErrNoDocument):
		return away(err)
	}
	requestFrom(ctx).nonce = id
	return nil
}

// allowed are the names that certificates of an account may have; none if the
// account is no good any more.
func (d *database) allowed(a account) (patterns, bool) {
	if !d.bound {
		return d.names, true
	}
	ext, ok := d.externals[a.External]
	return ext.names, ok
}

// CreateCertificate implements acme.DB. The certificate is in the ledger already (see
// issuer.CreateCertificate); here smallstep learns its ID.
func (d *database) CreateCertificate(ctx context.Context, cert *stepacme.Certificate) error {
	serial := serialOf(cert.Leaf)
	found, err := d.GetCertificate(ctx, serial)
	if err != nil {
		return err
	}
	if found.AccountID != cert.AccountID || found.OrderID != cert.OrderID || !found.Leaf.Equal(cert.Leaf) {
		return stepacme.NewErrorISE("the certificate in the ledger is another one")
	}
	cert.ID = serial
	return nil
}

// GetCertificate implements acme.DB.
func (d *database) GetCertificate(ctx context.Context, id string) (*stepacme.Certificate, error) {
	var c certificate
	if _, err := d.get(ctx, certificatePrefix+id, &c, missing("certificate")); err != nil {
		return nil, err
	}
	return c.toStep(id)
}

// GetCertificateBySerial implements acme.DB; the number is decimal.
func (d *database) GetCertificateBySerial(ctx context.Context, serial string) (*stepacme.Certificate, error) {
	id, ok := hexSerial(serial)
	if !ok {
		return nil, missing("certificate")
	}
	return d.GetCertificate(ctx, id)
}

// GetAuthorizationsByAccountID implements acme.DB; nobody calls it.
func (d *database) GetAuthorizationsByAccountID(context.Context, string) ([]*stepacme.Authorization, error) {
	return nil, errNotUsed
}

// known reads the account of a request that its signature names.
func (d *database) known(ctx context.Context, id string) (account, uint64, error) {
	a, version, err := d.document(ctx, id)
	if err == nil && a.Moved != "" {
		return account{}, 0, stepacme.ErrNotFound
	}
	return a, version, err
}

// document reads an account, or what leads from another key to one.
func (d *database) document(ctx context.Context, id string) (account, uint64, error) {
	var a account
	// The ID is a thumbprint, so what it is not cannot be another document.
	if strings.ContainsAny(id, "/ ") {
		return a, 0, stepacme.ErrNotFound
	}
	version, err := d.get(ctx, accountPrefix+id, &a, stepacme.ErrNotFound)
	return a, version, err
}

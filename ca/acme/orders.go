package acme

import (
	"context"
	"crypto/rand"
	"errors"
	"net/http"
	"strconv"
	"time"

	stepacme "github.com/smallstep/certificates/acme"

	"github.com/writ-mesh/writ/ca/ledger"
)

const (
	// orderLife is how long an order can be fulfilled.
	orderLife = 24 * time.Hour
	// maxOpen bounds the orders of an account that got no certificate, failed ones
	// included, until they are forgotten; maxOrders those of all accounts.
	maxOpen   = 100
	maxOrders = 20_000
	// maxCertificates bounds an account's certificates that have not expired;
	// maxAllCertificates those of all accounts. One takes about 2 KB of memory.
	maxCertificates    = 300
	maxAllCertificates = 20_000
	// updateTries is how often a change is tried that others overtake.
	updateTries = 5
)

// CreateChallenge implements acme.DB. It comes before CreateAuthorization, and what
// is stored is the order, in CreateOrder.
func (d *database) CreateChallenge(ctx context.Context, ch *stepacme.Challenge) error {
	o := requestFrom(ctx).staged()
	last := len(o.Authorizations) - 1
	if last < 0 || o.Authorizations[last].Status != "" {
		o.Authorizations = append(o.Authorizations, authorization{Token: ch.Token})
		last++
	}
	a := &o.Authorizations[last]
	ch.ID = strconv.Itoa(len(a.Challenges))
	a.Challenges = append(a.Challenges, challenge{Type: ch.Type, Status: ch.Status})
	return nil
}

// staged is the order that the request makes.
func (r *request) staged() *order {
	if r.orderID == "" {
		r.order, r.orderID = new(order), rand.Text()
	}
	return r.order
}

// CreateAuthorization implements acme.DB. It refuses names that the account may not
// have.
func (d *database) CreateAuthorization(ctx context.Context, az *stepacme.Authorization) error {
	r := requestFrom(ctx)
	name := authorization{Name: az.Identifier.Value, Wildcard: az.Wildcard}.name()
	if err := d.mayHave(ctx, r, []string{name}); err != nil {
		return err
	}
	if len(az.Challenges) == 0 {
		return stepacme.NewDetailedError(stepacme.ErrorRejectedIdentifierType, "%s: this authority has no challenge for it; wildcards need dns-01", name)
	}
	o := r.staged()
	i := len(o.Authorizations) - 1
	a := &o.Authorizations[i]
	a.Name, a.Wildcard, a.Status = az.Identifier.Value, az.Wildcard, az.Status
	az.ID, az.ExpiresAt = authorizationID(r.orderID, i), d.now().UTC().Add(orderLife).Truncate(time.Second)
	return nil
}

// mayHave refuses names that the account of a request may not have (any more).
func (d *database) mayHave(ctx context.Context, r *request, names []string) error {
	allowed, ok := d.allowed(account{External: r.external})
	for _, name := range names {
		if !ok || !allowed.allow(name) {
			d.authority.Refused(ctx, actor(r.account), names, "the name "+name+" is not allowed to the account")
			return stepacme.NewDetailedError(stepacme.ErrorRejectedIdentifierType, "%s is not allowed here, or not to this account", name)
		}
	}
	return nil
}

// CreateOrder implements acme.DB.
func (d *database) CreateOrder(ctx context.Context, o *stepacme.Order) error {
	r := requestFrom(ctx)
	own, total := d.index.of(r.account)
	switch {
	case own.open >= maxOpen:
		return problem(stepacme.ErrorRateLimitedType, http.StatusTooManyRequests, nil, "the account has %d orders without a certificate; they are forgotten after a day", own.open)
	case own.certificates >= maxCertificates:
		return problem(stepacme.ErrorRateLimitedType, http.StatusTooManyRequests, nil, "the account has %d certificates that have not expired", own.certificates)
	case total.orders >= maxOrders || total.certificates >= maxAllCertificates:
		return problem(stepacme.ErrorRateLimitedType, http.StatusTooManyRequests, nil, "the authority has too many orders or certificates")
	}
	fresh := r.staged()
	fresh.Account, fresh.Status, fresh.Expires = o.AccountID, o.Status, d.now().UTC().Add(orderLife).Truncate(time.Second)
	version, err := d.put(ctx, orderPrefix+r.orderID, 0, fresh, d.entry("order", o.AccountID, fresh.names()))
	if err != nil {
		return overtaken(err)
	}
	r.version = version
	o.ID, o.ExpiresAt = r.orderID, fresh.Expires
	return nil
}

// order reads an order, and remembers it for the request.
func (d *database) order(ctx context.Context, id string) (*order, uint64, error) {
	o := new(order)
	version, err := d.get(ctx, orderPrefix+id, o, missing("order"))
	if err != nil {
		return nil, 0, err
	}
	r := requestFrom(ctx)
	r.order, r.orderID, r.version = o, id, version
	return o, version, nil
}

// GetOrder implements acme.DB.
func (d *database) GetOrder(ctx context.Context, id string) (*stepacme.Order, error) {
	o, _, err := d.order(ctx, id)
	if err != nil {
		return nil, err
	}
	return o.toStep(id, d.now(), d.ttl), nil
}

// GetOrdersByAccountID implements acme.DB.
func (d *database) GetOrdersByAccountID(_ context.Context, id string) ([]string, error) {
	if out := d.index.orders(id); out != nil {
		return out, nil
	}
	return []string{}, nil
}

// GetAuthorization implements acme.DB.
func (d *database) GetAuthorization(ctx context.Context, id string) (*stepacme.Authorization, error) {
	orderID, i, ok := splitAuthorization(id)
	if !ok {
		return nil, missing("authorization")
	}
	o, _, err := d.order(ctx, orderID)
	if err != nil {
		return nil, err
	}
	if i >= len(o.Authorizations) {
		return nil, missing("authorization")
	}
	return o.authorizationToStep(orderID, i), nil
}

// GetChallenge implements acme.DB.
func (d *database) GetChallenge(ctx context.Context, id, authzID string) (*stepacme.Challenge, error) {
	az, err := d.GetAuthorization(ctx, authzID)
	if err != nil {
		return nil, err
	}
	n, err := strconv.Atoi(id)
	if err != nil || n < 0 || n >= len(az.Challenges) {
		return nil, missing("challenge")
	}
	ch := az.Challenges[n]
	if ch.Status == stepacme.StatusPending && (az.Status != stepacme.StatusPending || d.now().After(az.ExpiresAt)) {
		return nil, stepacme.NewDetailedError(stepacme.ErrorMalformedType, "the authorization is not pending any more")
	}
	return ch, nil
}

// UpdateOrder implements acme.DB: an order expires, or is ready. One is fulfilled with
// the record of its certificate (database.fulfilled).
func (d *database) UpdateOrder(ctx context.Context, o *stepacme.Order) error {
	return d.update(ctx, o.ID, func(own *order) bool {
		if !own.open() || own.Status == stepacme.StatusInvalid || o.Status == stepacme.StatusValid {
			return false
		}
		own.Status, own.Error = o.Status, o.Error
		return true
	})
}

// UpdateAuthorization implements acme.DB: an authorization expires, or is valid.
func (d *database) UpdateAuthorization(ctx context.Context, az *stepacme.Authorization) error {
	id, i, ok := splitAuthorization(az.ID)
	if !ok {
		return missing("authorization")
	}
	return d.update(ctx, id, func(o *order) bool {
		a := &o.Authorizations[i]
		if a.Status != stepacme.StatusPending {
			return false
		}
		a.Status = az.Status
		return true
	})
}

// UpdateChallenge implements acme.DB, with the outcome of a validation. One that
// failed is not tried again: the client makes another order (RFC 8555 section 7.1.6).
func (d *database) UpdateChallenge(ctx context.Context, ch *stepacme.Challenge) error {
	if ch.Error != nil && errors.Is(ch.Error.Err, errBusy) {
		return problem(stepacme.ErrorRateLimitedType, http.StatusServiceUnavailable, ch.Error.Err, "%v", errBusy)
	}
	if ch.Error != nil {
		ch.Status = stepacme.StatusInvalid
	}
	id, i, ok := splitAuthorization(ch.AuthorizationID)
	n, err := strconv.Atoi(ch.ID)
	if !ok || err != nil {
		return missing("challenge")
	}
	return d.update(ctx, id, func(o *order) bool {
		a := &o.Authorizations[i]
		c := &a.Challenges[n]
		if a.Status != stepacme.StatusPending || c.Status != stepacme.StatusPending {
			return false
		}
		c.Status, c.Validated, c.Error = ch.Status, ch.ValidatedAt, ch.Error
		if c.Status == stepacme.StatusValid || c.Status == stepacme.StatusInvalid {
			a.Status = c.Status
		}
		return true
	})
}

// update changes an order, also if others do at the same time. change may be called
// several times, and says whether there is anything to change.
func (d *database) update(ctx context.Context, id string, change func(*order) bool) error {
	for range updateTries {
		o, version, err := d.order(ctx, id)
		if err != nil {
			return err
		}
		if !change(o) {
			return nil
		}
		o.settle()
		version, err = d.put(ctx, orderPrefix+id, version, o, d.entry("order "+string(o.Status), o.Account, o.names()))
		if err == nil {
			requestFrom(ctx).version = version
			return nil
		}
		if !errors.Is(err, ledger.ErrConflict) {
			return err
		}
	}
	return again()
}

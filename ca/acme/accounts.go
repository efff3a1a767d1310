package acme

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	stepacme "github.com/smallstep/certificates/acme"

	"github.com/writ-mesh/writ/ca/ledger"
)

const (
	// maxAccounts bounds all accounts, maxOfExternal those of one external account;
	// those that are not used are forgotten.
	maxAccounts   = 10_000
	maxOfExternal = 2_000
	// maxContacts and maxContact bound what an account says of its owner.
	maxContacts = 5
	maxContact  = 200
	// updateEvery is how often contacts may be changed: each change is an entry of the
	// ledger.
	updateEvery = time.Minute
)

// CreateAccount implements acme.DB. An account's ID is its key's thumbprint, so that
// a key has one account. That of an external account that there is no more makes way.
func (d *database) CreateAccount(ctx context.Context, acc *stepacme.Account) error {
	r := requestFrom(ctx)
	id, err := stepacme.KeyToID(acc.Key)
	if err != nil {
		return err
	}
	if err := checkContacts(acc.Contact); err != nil {
		return err
	}
	if own, total := d.index.accounts(r.external); total >= maxAccounts || r.external != "" && own >= maxOfExternal {
		return problem(stepacme.ErrorRateLimitedType, http.StatusTooManyRequests, nil, "there are %d accounts, %d of this external account; unused ones are forgotten in time", total, own)
	}
	old, version, err := d.document(ctx, id)
	if err != nil && !stepacme.IsErrNotFound(err) {
		return err
	}
	if err == nil && !old.has(id) {
		return problem(stepacme.ErrorUnauthorizedType, http.StatusForbidden, nil, "the key was or is that of an account whose key was changed; make another")
	}
	if _, ok := d.allowed(old); err == nil && ok {
		return again() // made meanwhile
	}
	a := account{Key: acc.Key, Contact: acc.Contact, Status: acc.Status, External: r.external, Location: acc.LocationPrefix, Created: d.now().UTC()}
	e := d.entry("account made", id, nil)
	if a.External != "" {
		e.Detail["external_account"] = a.External
	}
	if _, err := d.put(ctx, accountPrefix+id, version, a, e); err != nil {
		return overtaken(err)
	}
	acc.ID, r.account = id, id
	return nil
}

// has tells whether the key of an account is that with a thumbprint.
func (a account) has(thumbprint string) bool {
	if a.Moved != "" || a.Key == nil {
		return false
	}
	id, err := stepacme.KeyToID(a.Key)
	return err == nil && id == thumbprint
}

// overtaken tells a conflict to the client.
func overtaken(err error) error {
	if errors.Is(err, ledger.ErrConflict) {
		return again()
	}
	return err
}

func checkContacts(contacts []string) error {
	long := func(c string) bool {
		return len(c) > maxContact || strings.ContainsFunc(c, func(r rune) bool { return r < ' ' })
	}
	if len(contacts) > maxContacts || slices.ContainsFunc(contacts, long) {
		return stepacme.NewDetailedError(stepacme.ErrorMalformedType, "at most %d contacts of %d bytes", maxContacts, maxContact)
	}
	return nil
}

// GetAccount implements acme.DB.
func (d *database) GetAccount(ctx context.Context, id string) (*stepacme.Account, error) {
	a, version, err := d.known(ctx, id)
	if err != nil {
		return nil, err
	}
	if _, ok := d.allowed(a); !ok {
		// Of an external account that was taken out of the configuration.
		a.Status = stepacme.StatusDeactivated
	}
	r := requestFrom(ctx)
	r.account, r.external, r.version = id, a.External, version
	return &stepacme.Account{
		ID: id, Key: a.Key, Contact: a.Contact, Status: a.Status, LocationPrefix: a.Location, ProvisionerID: provisionerID, ProvisionerName: provisionerName,
	}, nil
}

// GetAccountByKeyID implements acme.DB.
func (d *database) GetAccountByKeyID(ctx context.Context, kid string) (*stepacme.Account, error) {
	id := kid
	a, _, err := d.document(ctx, id)
	if err == nil && a.Moved != "" {
		id = a.Moved
		a, _, err = d.known(ctx, id)
	}
	if err == nil {
		if _, ok := d.allowed(a); !ok || !a.has(kid) {
			return nil, stepacme.ErrNotFound
		}
	}
	return d.GetAccount(ctx, id)
}

// UpdateAccount implements acme.DB: contacts and deactivation.
func (d *database) UpdateAccount(ctx context.Context, acc *stepacme.Account) error {
	if err := checkContacts(acc.Contact); err != nil {
		return err
	}
	a, version, err := d.known(ctx, acc.ID)
	if err != nil {
		return err
	}
	now := d.now().UTC()
	switch {
	case acc.Status == stepacme.StatusDeactivated:
		a.Status = acc.Status
	case slices.Equal(a.Contact, acc.Contact):
		return nil
	case now.Sub(a.Updated).Abs() < updateEvery:
		return problem(stepacme.ErrorRateLimitedType, http.StatusTooManyRequests, nil, "the contacts were changed at %s; they can be every %s", a.Updated.Format(time.RFC3339), updateEvery)
	default:
		a.Contact, a.Updated = acc.Contact, now
	}
	_, err = d.put(ctx, accountPrefix+acc.ID, version, a, d.entry("account "+string(a.Status), acc.ID, nil))
	return overtaken(err)
}

// GetExternalAccountKey implements acme.DB. The signature with the key is verified
// here already, because smallstep answers a wrong one with 500.
func (d *database) GetExternalAccountKey(ctx context.Context, provisioner, id string) (*stepacme.ExternalAccountKey, error) {
	unknown := stepacme.NewDetailedError(stepacme.ErrorUnauthorizedType, "the external account is unknown, or its key another one")
	r := requestFrom(ctx)
	ext, ok := d.externals[id]
	if !ok || r.binding == nil {
		return nil, unknown
	}
	if _, err := r.binding.Verify(ext.key); err != nil {
		return nil, unknown
	}
	r.external = id
	return &stepacme.ExternalAccountKey{ID: id, ProvisionerID: provisioner, HmacKey: slices.Clone(ext.key)}, nil
}

// UpdateExternalAccountKey implements acme.DB. The account names its external
// account, which may have several.
func (d *database) UpdateExternalAccountKey(context.Context, string, *stepacme.ExternalAccountKey) error {
	return nil
}

// GetExternalAccountKeyByAccountID implements acme.DB. Which names an account may
// have is for CreateAuthorization.
func (d *database) GetExternalAccountKeyByAccountID(context.Context, string, string) (*stepacme.ExternalAccountKey, error) {
	return nil, nil // smallstep's way to say that there is no policy
}

// CreateExternalAccountKey and those that follow implement acme.DB: external accounts
// are in the configuration.
func (d *database) CreateExternalAccountKey(context.Context, string, string) (*stepacme.ExternalAccountKey, error) {
	return nil, errNotUsed
}

// GetExternalAccountKeys implements acme.DB.
func (d *database) GetExternalAccountKeys(context.Context, string, string, int) ([]*stepacme.ExternalAccountKey, string, error) {
	return nil, "", errNotUsed
}

// GetExternalAccountKeyByReference implements acme.DB.
func (d *database) GetExternalAccountKeyByReference(context.Context, string, string) (*stepacme.ExternalAccountKey, error) {
	return nil, errNotUsed
}

// DeleteExternalAccountKey implements acme.DB.
func (d *database) DeleteExternalAccountKey(context.Context, string, string) error { return errNotUsed }

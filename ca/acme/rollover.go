package acme

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"time"

	stepacme "github.com/smallstep/certificates/acme"
	"go.step.sm/crypto/jose"

	"github.com/writ-mesh/writ/ca/csr"
	"github.com/writ-mesh/writ/ca/ledger"
)

// keyChange is the resource by which an account gets another key (RFC 8555, section 7.3.5).
const keyChange = "key-change"

// unanswered lets an answer through, but for that of a resource which smallstep's code has checked the request for,
// nonce, address, account and signature, and does not have itself.
type unanswered struct {
	http.ResponseWriter

	none bool
}

// WriteHeader implements http.ResponseWriter.
func (u *unanswered) WriteHeader(status int) {
	if u.none = status == http.StatusNotImplemented; !u.none {
		u.ResponseWriter.WriteHeader(status)
	}
}

// Write implements http.ResponseWriter.
func (u *unanswered) Write(data []byte) (int, error) {
	if u.none {
		return len(data), nil
	}
	return u.ResponseWriter.Write(data)
}

// changeKey answers a request for another key.
func (s *server) changeKey(w http.ResponseWriter, req *http.Request) {
	w.Header().Del("Content-Type") // of the answer that is left out
	a, err := s.d.changeKey(req.Context(), "https://"+s.host+req.URL.Path)
	if taken := (*keyTaken)(nil); errors.As(err, &taken) {
		w.Header().Set("Location", taken.by)
		err = problem(stepacme.ErrorMalformedType, http.StatusConflict, err, "another account has that key, or had it")
	}
	if err != nil {
		e := new(stepacme.Error)
		if !errors.As(err, &e) {
			e = stepacme.WrapErrorISE(err, "key change")
		}
		e.Render(w, req)
		return
	}
	id := requestFrom(req.Context()).account
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Location", a.Location+id)
	_ = json.NewEncoder(w).Encode(&stepacme.Account{
		Contact: a.Contact, Status: a.Status, OrdersURL: s.linker.GetLink(req.Context(), stepacme.OrdersByAccountLinkType, id),
	})
}

// keyTaken is the error for a key that is an account's already.
type keyTaken struct{ by string }

// Error implements error.
func (k *keyTaken) Error() string { return "the key is that of " + k.by }

// changeKey gives the account of the request the key of the request. Nothing of it hangs on what smallstep's code
// answered: the signature of the account is verified here too, and the nonce is used up by the change.
func (d *database) changeKey(ctx context.Context, url string) (account, error) {
	r := requestFrom(ctx)
	a, version, err := d.known(ctx, r.account)
	if err != nil {
		return a, err
	}
	if _, ok := d.allowed(a); !ok || a.Status != stepacme.StatusValid || r.nonce == "" || r.jws == nil {
		return a, stepacme.NewDetailedError(stepacme.ErrorUnauthorizedType, "the account is not active")
	}
	payload, err := r.jws.Verify(a.Key)
	if err != nil {
		return a, stepacme.NewDetailedError(stepacme.ErrorMalformedType, "the request is not signed with the account's key")
	}
	key, e := newKeyOf(payload, a, a.Location+r.account, url)
	if e != nil {
		return a, e
	}
	now := d.now().UTC()
	if now.Sub(a.Updated).Abs() < updateEvery {
		return a, problem(stepacme.ErrorRateLimitedType, http.StatusTooManyRequests, nil, "the account was changed at %s; it can be every %s", a.Updated.Format(time.RFC3339), updateEvery)
	}
	return d.putKey(ctx, a, version, key, now)
}

// putKey makes the change durable: the account keeps its ID, and what stands under the thumbprint of the new key leads
// there. So a key is one account's, whoever of several authorities is asked.
func (d *database) putKey(ctx context.Context, a account, version uint64, key *jose.JSONWebKey, now time.Time) (account, error) {
	id := requestFrom(ctx).account
	next, err := stepacme.KeyToID(key)
	if err != nil {
		return a, err
	}
	before, err := stepacme.KeyToID(a.Key)
	if err != nil {
		return a, err
	}
	e := d.entry("account key changed", id, nil)
	e.Detail["key"], e.Detail["key_before"] = next, before
	a.Key, a.Updated = key, now
	c := ledger.Change{If: map[string]uint64{accountPrefix + id: version}, Put: map[string][]byte{}, Entry: e}
	if c.Put[accountPrefix+id], err = json.Marshal(a); err != nil {
		return a, err
	}
	if next != id {
		c.If[accountPrefix+next] = 0
		if c.Put[accountPrefix+next], err = json.Marshal(account{Moved: id, Location: a.Location, Created: now}); err != nil {
			return a, err
		}
	}
	if before != id {
		c.Delete = []string{accountPrefix + before}
	}
	switch other, version, err := d.document(ctx, next); {
	case err != nil && !stepacme.IsErrNotFound(err):
		return a, err
	case version > 0 && next != id || next == before:
		by := next
		if other.Moved != "" {
			by = other.Moved
		}
		return a, &keyTaken{a.Location + by}
	}
	if _, err = d.commit(ctx, c); err != nil {
		return a, overtaken(err)
	}
	return a, nil
}

// newKeyOf checks what the account signed: an object that the new key signed for this account, its key of now, and this
// address.
func newKeyOf(payload []byte, a account, location, url string) (*jose.JSONWebKey, *stepacme.Error) {
	wrong := func(what string) *stepacme.Error {
		return stepacme.NewDetailedError(stepacme.ErrorMalformedType, "the inner JWS: %s", what)
	}
	if len(payload) == 0 || payload[0] != '{' {
		return nil, wrong("want its JSON form")
	}
	inner, err := jose.ParseJWS(string(payload))
	if err != nil || len(inner.Signatures) != 1 {
		return nil, wrong("want one signature")
	}
	head, open := inner.Signatures[0].Protected, inner.Signatures[0].Unprotected
	key := head.JSONWebKey
	switch {
	case open.KeyID != "" || open.JSONWebKey != nil || open.Algorithm != "" || open.Nonce != "" || len(open.ExtraHeaders) > 0:
		return nil, wrong("unprotected header")
	case key == nil || !key.Valid() || !key.IsPublic() || head.KeyID != "":
		return nil, wrong("want the new key as jwk, and no kid")
	case head.Nonce != "":
		return nil, wrong("it must not have a nonce")
	case head.ExtraHeaders["url"] != url:
		return nil, wrong("its url is another one")
	case !slices.Contains([]string{jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.ES256, jose.ES384, jose.ES512, jose.EdDSA}, head.Algorithm):
		return nil, stepacme.NewDetailedError(stepacme.ErrorBadSignatureAlgorithmType, "the inner JWS: unsuitable algorithm")
	}
	if err := csr.CheckKey(key.Key); err != nil {
		return nil, stepacme.NewDetailedError(stepacme.ErrorBadPublicKeyType, "%v", err)
	}
	signed, err := inner.Verify(key)
	if err != nil {
		return nil, wrong("it is not signed with the new key")
	}
	var p struct {
		Account string           `json:"account"`
		OldKey  *jose.JSONWebKey `json:"oldKey"`
	}
	if err := json.Unmarshal(signed, &p); err != nil || p.OldKey == nil {
		return nil, wrong("want account and oldKey")
	}
	old, err := stepacme.KeyToID(p.OldKey)
	now, nerr := stepacme.KeyToID(a.Key)
	if err != nil || nerr != nil || old != now || p.Account != location {
		return nil, wrong("it is about another account, or another key of it")
	}
	return &jose.JSONWebKey{Key: key.Key}, nil
}

package acme

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"path"
	"slices"
	"strings"
	"time"

	stepacme "github.com/smallstep/certificates/acme"
	"go.step.sm/crypto/jose"

	"github.com/writ-mesh/writ/ca/csr"
	"github.com/writ-mesh/writ/ca/revocation"
)

const (
	// maxBody bounds a request: a certificate request of csr.MaxSize in base64 twice,
	// and as much again for the rest.
	maxBody = csr.MaxSize * 3
	// maxNames bounds the names of an order.
	maxNames = 20
)

// request is what is known of one HTTP request. One goroutine uses it.
type request struct {
	// kind is the resource, such as new-order.
	kind string
	// account is the ID of who signed it, as far as it was looked up.
	account string
	// external is the external account whose key was used.
	external string
	// binding is the external account binding that came along.
	binding *jose.JSONWebSignature
	// nonce names the nonce, until it is in the ledger.
	nonce string
	// order is the one that was read last, with its document's version.
	order   *order
	orderID string
	version uint64
	// jws is the request itself, if it is for another key.
	jws *jose.JSONWebSignature
	// serial and reason are of a certificate that is to be revoked.
	serial string
	reason int
}

type requestKey struct{}

func withRequest(ctx context.Context, r *request) context.Context {
	return context.WithValue(ctx, requestKey{}, r)
}

// requestFrom gives the request that a call is part of, never nil.
func requestFrom(ctx context.Context) *request {
	if r, ok := ctx.Value(requestKey{}).(*request); ok {
		return r
	}
	return new(request)
}

// kindOf gives the resource that a path is of: that of /acme/order/ID/finalize is
// finalize.
func kindOf(p string) string {
	parts := strings.Split(strings.TrimPrefix(path.Clean(p), "/"), "/")
	switch {
	case len(parts) < 2 || parts[0] != provisionerName:
		return ""
	case len(parts) == 4 && parts[1] == "order":
		return parts[3]
	}
	return parts[1]
}

// inspect checks what came before smallstep's code sees it: one signature by a key of
// a kind and size that is accepted, and in the payload what is ours to limit. Nothing
// is verified here. Errors are told to the client.
func (r *request) inspect(body []byte) *stepacme.Error {
	if len(body) == 0 || body[0] != '{' {
		return stepacme.NewDetailedError(stepacme.ErrorMalformedType, "want a JWS in its JSON form")
	}
	jws, err := jose.ParseJWS(string(body))
	if err != nil || len(jws.Signatures) != 1 {
		return stepacme.NewDetailedError(stepacme.ErrorMalformedType, "want a JWS with one signature")
	}
	if key := jws.Signatures[0].Protected.JSONWebKey; key != nil {
		if err := csr.CheckKey(key.Key); err != nil {
			return stepacme.NewDetailedError(stepacme.ErrorBadPublicKeyType, "%v", err)
		}
	}
	payload := jws.UnsafePayloadWithoutVerification()
	switch r.kind {
	case "new-account":
		return r.inspectAccount(payload)
	case "new-order":
		return inspectOrder(payload)
	case "finalize":
		return inspectFinalize(payload)
	case "revoke-cert":
		return r.inspectRevocation(payload)
	case keyChange:
		r.jws = jws
	}
	return nil
}

func (r *request) inspectAccount(payload []byte) *stepacme.Error {
	var p struct {
		ExternalAccountBinding json.RawMessage `json:"externalAccountBinding"`
	}
	if err := json.Unmarshal(payload, &p); err != nil {
		return stepacme.NewDetailedError(stepacme.ErrorMalformedType, "the payload is no account")
	}
	if len(p.ExternalAccountBinding) == 0 || string(p.ExternalAccountBinding) == "null" {
		return nil
	}
	jws, err := jose.ParseJWS(string(p.ExternalAccountBinding))
	if err != nil || len(jws.Signatures) != 1 {
		return stepacme.NewDetailedError(stepacme.ErrorMalformedType, "the external account binding is no JWS with one signature")
	}
	r.binding = jws
	return nil
}

func inspectOrder(payload []byte) *stepacme.Error {
	var p struct {
		Identifiers []stepacme.Identifier `json:"identifiers"`
		NotBefore   time.Time             `json:"notBefore"`
		NotAfter    time.Time             `json:"notAfter"`
	}
	switch err := json.Unmarshal(payload, &p); {
	case err != nil:
		return stepacme.NewDetailedError(stepacme.ErrorMalformedType, "the payload is no order")
	case len(p.Identifiers) > maxNames:
		return stepacme.NewDetailedError(stepacme.ErrorRejectedIdentifierType, "an order of %d names, %d are the most", len(p.Identifiers), maxNames)
	case !p.NotBefore.IsZero() || !p.NotAfter.IsZero():
		return stepacme.NewDetailedError(stepacme.ErrorMalformedType, "the authority says how long certificates live; leave notBefore and notAfter out")
	}
	var seen []string
	for _, id := range p.Identifiers {
		if id.Type != stepacme.DNS {
			return stepacme.NewDetailedError(stepacme.ErrorUnsupportedIdentifierType, "only DNS names get certificates here")
		}
		if slices.Contains(seen, id.Value) {
			return stepacme.NewDetailedError(stepacme.ErrorMalformedType, "a name is there twice")
		}
		seen = append(seen, id.Value)
	}
	return nil
}

func inspectFinalize(payload []byte) *stepacme.Error {
	var p struct {
		CSR string `json:"csr"`
	}
	if err := json.Unmarshal(payload, &p); err != nil {
		return stepacme.NewDetailedError(stepacme.ErrorMalformedType, "the payload has no certificate request")
	}
	der, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(p.CSR, "="))
	if err != nil {
		return stepacme.NewDetailedError(stepacme.ErrorMalformedType, "the certificate request is not in base64url")
	}
	if _, _, err := csr.ParseNames(der); err != nil {
		return stepacme.NewDetailedError(stepacme.ErrorBadCSRType, "%v", err)
	}
	return nil
}

func (r *request) inspectRevocation(payload []byte) *stepacme.Error {
	var p struct {
		Certificate string `json:"certificate"`
		Reason      int    `json:"reason"`
	}
	if err := json.Unmarshal(payload, &p); err != nil {
		return stepacme.NewDetailedError(stepacme.ErrorMalformedType, "the payload is no revocation")
	}
	if !revocation.IsReason(p.Reason) {
		return stepacme.NewDetailedError(stepacme.ErrorBadRevocationReasonType, "%d is no reason that is accepted", p.Reason)
	}
	der, err := base64.RawURLEncoding.DecodeString(p.Certificate)
	if err != nil {
		return stepacme.NewDetailedError(stepacme.ErrorMalformedType, "the certificate is not in base64url")
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return stepacme.NewDetailedError(stepacme.ErrorMalformedType, "the certificate cannot be read")
	}
	if err := csr.CheckKey(cert.PublicKey); err != nil {
		return stepacme.NewDetailedError(stepacme.ErrorMalformedType, "the certificate is not of this authority")
	}
	r.serial, r.reason = serialOf(cert), p.Reason
	return nil
}

// problem is an error of another HTTP status than smallstep's.
func problem(kind stepacme.ProblemType, status int, cause error, format string, args ...any) *stepacme.Error {
	e := stepacme.NewDetailedError(kind, format, args...)
	e.Status = status
	if cause != nil {
		e.Err = cause
	}
	return e
}

// away is the answer while the ledger does not work.
func away(cause error) *stepacme.Error {
	e := problem(stepacme.ErrorServerInternalType, http.StatusServiceUnavailable, cause, "unavailable")
	e.Detail = "The authority cannot record anything at the moment; try again"
	return e
}

// missing is the answer for what is not there.
func missing(what string) *stepacme.Error {
	return problem(stepacme.ErrorMalformedType, http.StatusNotFound, nil, "no such %s", what)
}

package ca

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-mesh/writ/ca/ledger"
)

// reason is why nothing was issued. It is the label "result" of the metrics.
type reason string

const (
	// invalid: the request cannot be granted to anybody.
	invalid reason = "invalid"
	// denied: the caller may not have this.
	denied reason = "denied"
	// unfit: not in the state that things are in.
	unfit reason = "unfit"
	// stale: the caller's own certificate has expired; connecting anew helps.
	stale reason = "unauthenticated"
	// unavailable: the same request may be granted later.
	unavailable reason = "unavailable"
	// gone: the caller went away.
	gone reason = "canceled"
	// internal: the authority is at fault.
	internal reason = "error"
)

// codeOf maps every reason to the code that callers see.
func codeOf(r reason) codes.Code {
	switch r {
	case invalid:
		return codes.InvalidArgument
	case denied:
		return codes.PermissionDenied
	case unfit:
		return codes.FailedPrecondition
	case stale:
		return codes.Unauthenticated
	case unavailable:
		return codes.Unavailable
	case gone:
		return codes.Canceled
	case internal:
		return codes.Internal
	}
	return codes.Unknown
}

// refusal is the error of every method. Its text goes to the caller; the cause
// stays in the log.
type refusal struct {
	reason reason
	text   string
	cause  error
}

// refuse makes a refusal whose text may go to the caller.
func refuse(r reason, format string, args ...any) *refusal {
	return &refusal{reason: r, text: fmt.Sprintf(format, args...)}
}

// Error implements error, for the log.
func (e *refusal) Error() string {
	if e.cause == nil {
		return e.text
	}
	return e.text + ": " + e.cause.Error()
}

// Unwrap gives the cause.
func (e *refusal) Unwrap() error { return e.cause }

// GRPCStatus is what the caller sees.
func (e *refusal) GRPCStatus() *status.Status { return status.New(codeOf(e.reason), e.text) }

// because attaches the cause.
func (e *refusal) because(err error) *refusal {
	e.cause = err
	return e
}

// recording makes a refusal of an error of the ledger.
func recording(err error) *refusal {
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return refuse(gone, "the caller did not wait for the record of the certificate").because(err)
	case errors.Is(err, ledger.ErrUnavailable):
		return refuse(unavailable, "the certificate cannot be recorded at the moment, so it is not issued; see the authority's log").because(err)
	}
	return refuse(internal, "the certificate was not recorded, so it is not issued; see the authority's log").because(err)
}

// reasonOf gives the reason of any error of this package.
func reasonOf(err error) reason {
	if r := new(refusal); errors.As(err, &r) {
		return r.reason
	}
	return internal
}

package fetch

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
)

// refusal is what this package itself says.
type refusal string

func (r refusal) Error() string { return string(r) }

var errNotHTTP = errors.New("the server does not answer in HTTP as it should")

// withoutAnswer gives what of an error may be told: what kind of failure it is, and
// nothing that the server said. Those of net/http have the URL of a redirect in them, the
// first line of what is no HTTP, or the text of a GOAWAY, and those of crypto/x509 the
// names in a certificate.
func withoutAnswer(err error) error {
	if wrapped := (*url.Error)(nil); errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	var (
		own     refusal
		timeout net.Error
		cert    *tls.CertificateVerificationError
		dns     *net.DNSError
		op      *net.OpError
		record  tls.RecordHeaderError
	)
	switch {
	case errors.As(err, &own):
		return own
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return fmt.Errorf("the server takes too long: %w", context.DeadlineExceeded)
	case errors.Is(err, context.Canceled):
		return context.Canceled
	case errors.As(err, &cert):
		return errors.New("the server's certificate " + problemOf(cert.Err))
	case errors.As(err, &dns):
		return dns
	case errors.As(err, &record), errors.Is(err, http.ErrSchemeMismatch):
		return errors.New("the server does not speak TLS")
	case errors.As(err, &op):
		return &net.OpError{Op: op.Op, Net: op.Net, Addr: op.Addr, Err: op.Err} // another port of ours is no other failure
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF
	}
	return errNotHTTP
}

// problemOf says what is wrong with a certificate.
func problemOf(err error) string {
	var (
		authority x509.UnknownAuthorityError
		host      x509.HostnameError
		invalid   x509.CertificateInvalidError
	)
	switch {
	case errors.As(err, &authority):
		return "is of an unknown authority"
	case errors.As(err, &host):
		return "is not for this host"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "has expired or is not valid yet"
	}
	return "cannot be verified"
}

package credential

import (
	"fmt"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// Foreign are files with the roots of other trust domains, by trust domain. A file
// vouches for its own trust domain and for no other; this source's own is vouched for by
// the bundle that it follows, whatever stands here. Files are read anew for each
// connection, so that a root can be replaced.
type Foreign map[spiffeid.TrustDomain]string

// foreign are the roots of all trust domains that count.
type foreign struct {
	source *Source
	files  Foreign
}

// GetX509BundleForTrustDomain implements x509bundle.Source.
func (f foreign) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	if td == f.source.td {
		return f.source.GetX509BundleForTrustDomain(td)
	}
	path, ok := f.files[td]
	if !ok {
		return nil, fmt.Errorf("there are no roots for the trust domain %s", td)
	}
	b, err := x509bundle.Load(td, path)
	if err != nil {
		return nil, fmt.Errorf("roots of the trust domain %s: %w", td, err)
	}
	return b, nil
}

// ServerCredentialsFor are as ServerCredentials, for clients with exactly these
// identities, which may be of other trust domains.
func (s *Source) ServerCredentialsFor(files Foreign, clients ...spiffeid.ID) credentials.TransportCredentials {
	c := s.tls13(tlsconfig.MTLSServerConfig(s, foreign{s, files}, tlsconfig.AuthorizeOneOf(clients...)))
	c.SessionTicketsDisabled = true // as in serverTLS
	return s.served.Track(credentials.NewTLS(c), s.admit)
}

// DialFor connects to a service of Writ in another trust domain. addr is host:port.
func (s *Source) DialFor(addr string, server spiffeid.ID, files Foreign) (*grpc.ClientConn, error) {
	return s.dial(addr, s.tls13(tlsconfig.MTLSClientConfig(s, foreign{s, files}, tlsconfig.AuthorizeID(server))))
}

package federated

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"

	"github.com/writ-mesh/writ/internal/pemroots"
)

const (
	// fetchTimeout bounds one fetch.
	fetchTimeout = 10 * time.Second
	// maxBundle bounds a bundle, in bytes.
	maxBundle = 1 << 20
	// maxAuthorities bounds the authorities of one kind in a bundle.
	maxAuthorities = 64
)

// fetcher gets the bundle of one trust domain.
type fetcher struct {
	td     spiffeid.TrustDomain
	url    string
	client *http.Client
}

// newFetcher makes the client of a domain. known is its bundle so far, by which the
// endpoint of https_spiffe is known.
func newFetcher(d Domain, td spiffeid.TrustDomain, known x509bundle.Source) (*fetcher, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	switch {
	case d.Profile == SPIFFE:
		id, err := spiffeid.FromString(d.EndpointID)
		if err != nil {
			return nil, err
		}
		config = tlsconfig.TLSClientConfig(known, tlsconfig.AuthorizeID(id))
	case d.CAFile != "":
		roots, err := pemroots.Load(d.CAFile)
		if err != nil {
			return nil, err
		}
		config.RootCAs = roots
	}
	return &fetcher{td: td, url: d.URL, client: &http.Client{
		Timeout: fetchTimeout,
		// Each fetch has a handshake of its own, with the bundle of then.
		Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true, ForceAttemptHTTP2: true, MaxResponseHeaderBytes: 64 << 10},
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return errors.New("the endpoint redirects; configure the URL that it redirects to")
		},
	}}, nil
}

func (f *fetcher) fetch(ctx context.Context) (*spiffebundle.Bundle, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.url, http.NoBody)
	if err != nil {
		return nil, err
	}
	resp, err := f.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the endpoint answers %s", resp.Status)
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxBundle+1))
	if err != nil {
		return nil, err
	}
	return parse(f.td, data)
}

// parse reads a bundle and checks that it is one to use.
func parse(td spiffeid.TrustDomain, data []byte) (*spiffebundle.Bundle, error) {
	if len(data) > maxBundle {
		return nil, fmt.Errorf("the bundle has more than %d bytes", maxBundle)
	}
	b, err := spiffebundle.Parse(td, data)
	if err != nil {
		return nil, err
	}
	x, j := len(b.X509Authorities()), len(b.JWTAuthorities())
	if x == 0 || x > maxAuthorities || j > maxAuthorities {
		return nil, fmt.Errorf("the bundle has %d roots and %d keys: want 1 to %d and %d at most", x, j, maxAuthorities, maxAuthorities)
	}
	for _, c := range b.X509Authorities() {
		if !c.IsCA {
			return nil, fmt.Errorf("the bundle has a certificate that is no root: %s", c.Subject)
		}
	}
	return b, nil
}

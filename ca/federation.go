package ca

import (
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// bundleSource is the bundle as other trust domains see it. It implements
// spiffebundle.Source.
type bundleSource struct {
	a *Authority
	// hint is how often others are told to look for changes.
	hint time.Duration
}

// GetBundleForTrustDomain implements spiffebundle.Source.
func (s bundleSource) GetBundleForTrustDomain(td spiffeid.TrustDomain) (*spiffebundle.Bundle, error) {
	if td != s.a.td {
		return nil, fmt.Errorf("this is the authority of %s, not of %s", s.a.td, td)
	}
	t := s.a.trusted()
	b := s.a.bundleProto(t)
	keys, err := jwtbundle.Parse(td, b.GetJwks())
	if err != nil {
		return nil, err
	}
	out := spiffebundle.FromX509Bundle(t.bundle)
	out.SetJWTAuthorities(keys.JWTAuthorities())
	out.SetSequenceNumber(b.GetSequence())
	out.SetRefreshHint(s.hint)
	return out, nil
}

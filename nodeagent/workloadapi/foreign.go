package workloadapi

import (
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Foreign is what is trusted of another trust domain, for identities of that trust
// domain alone.
type Foreign struct {
	td spiffeid.TrustDomain
	// roots are in DER, one after the other.
	roots []byte
	keys  Keys
}

// ParseForeign reads the bundle of another trust domain than own: roots in DER and
// a JSON Web Key Set.
func ParseForeign(own spiffeid.TrustDomain, name string, roots [][]byte, jwks []byte) (Foreign, error) {
	td, err := spiffeid.TrustDomainFromString(name)
	if err != nil {
		return Foreign{}, fmt.Errorf("bundle of another trust domain: %w", err)
	}
	if td == own {
		return Foreign{}, fmt.Errorf("the bundle of %s does not come from another trust domain", own)
	}
	out := Foreign{td: td}
	for _, der := range roots {
		if _, err := x509.ParseCertificate(der); err != nil {
			return Foreign{}, fmt.Errorf("bundle of %s: %w", td, err)
		}
		out.roots = append(out.roots, der...)
	}
	if len(out.roots) == 0 {
		return Foreign{}, fmt.Errorf("bundle of %s: %w", td, errors.New("it has no root"))
	}
	if out.keys, err = ParseKeys(td, jwks); err != nil {
		return Foreign{}, fmt.Errorf("bundle of %s: %w", td, err)
	}
	return out, nil
}

// verifiers are the keys of this trust domain and of the foreign ones.
func verifiers(own Keys, foreign []Foreign) *jwtbundle.Set {
	set := jwtbundle.NewSet(own.bundle)
	for _, f := range foreign {
		set.Add(f.keys.bundle)
	}
	return set
}

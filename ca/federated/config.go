package federated

import (
	"errors"
	"fmt"
	"net/url"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Domain is another trust domain.
type Domain struct {
	// TrustDomain is without scheme.
	TrustDomain string `yaml:"trust_domain"`
	// URL is that of its bundle endpoint, https://.
	URL string `yaml:"url"`
	// Profile is https_web or https_spiffe.
	Profile Profile `yaml:"profile"`
	// EndpointID is the SPIFFE ID that the endpoint of https_spiffe has to have.
	EndpointID string `yaml:"endpoint_id"`
	// BundleFile has the bundle to begin with, as JSON. https_spiffe needs it; it
	// counts until one was fetched.
	BundleFile string `yaml:"bundle_file"`
	// CAFile has the roots of https_web in PEM; those of the system if it is empty.
	CAFile string `yaml:"ca_file"`
}

// Validate checks the domains that a trust domain federates with.
func Validate(domains []Domain, own string) error {
	var errs []error
	seen := map[string]bool{}
	for i, d := range domains {
		if err := d.validate(own); err != nil {
			errs = append(errs, fmt.Errorf("federates_with, number %d: %w", i+1, err))
		}
		if seen[d.TrustDomain] {
			errs = append(errs, fmt.Errorf("federates_with, number %d: trust_domain %s is there twice", i+1, d.TrustDomain))
		}
		seen[d.TrustDomain] = true
	}
	return errors.Join(errs...)
}

func (d Domain) validate(own string) error {
	td, err := spiffeid.TrustDomainFromString(d.TrustDomain)
	if err != nil {
		return fmt.Errorf("trust_domain %q: %w", d.TrustDomain, err)
	}
	if td.Name() != d.TrustDomain {
		return fmt.Errorf("trust_domain %q: want it without scheme", d.TrustDomain)
	}
	if td.Name() == own {
		return fmt.Errorf("trust_domain %s is this one", own)
	}
	u, err := url.Parse(d.URL)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil {
		return fmt.Errorf("url %q: want https://HOST/PATH", d.URL)
	}
	if err := d.Profile.Check(
		Field{Key: "endpoint_id", Value: d.EndpointID, Of: SPIFFE, Needed: true},
		Field{Key: "ca_file", Value: d.CAFile, Of: Web},
	); err != nil {
		return err
	}
	if d.Profile == Web {
		return nil
	}
	if _, err := spiffeid.FromString(d.EndpointID); err != nil {
		return fmt.Errorf("endpoint_id %q: %w", d.EndpointID, err)
	}
	if d.BundleFile == "" {
		return fmt.Errorf("%s needs bundle_file, a bundle of %s to begin with", SPIFFE, td)
	}
	return nil
}

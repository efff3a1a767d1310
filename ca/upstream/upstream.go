// Package upstream keeps an issuing certificate that another authority signs: the
// key is ours and stays on this machine, and long before the certificate ends it is
// signed again. While the other authority is away the certificate at hand serves, so
// that an absence of less than about half its life is noticed in a metric only.
package upstream

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/writ-mesh/writ/internal/config"
)

// Authority signs issuing certificates.
type Authority interface {
	// Sign signs what the request in DER asks for, with about that life. The chain
	// begins with the new certificate, and each is followed by the one that signed it;
	// the root may be missing.
	Sign(ctx context.Context, csr *x509.CertificateRequest, life time.Duration) ([]*x509.Certificate, error)
}

// Config names an upstream authority: a step-ca.
type Config struct {
	// URL is its address, https://host:port; empty means that there is none.
	URL string `yaml:"url"`
	// RootFile has its roots in PEM: its server is verified by them, and they are the
	// mesh's roots. It is read anew each minute.
	RootFile string `yaml:"root_file"`
	// Provisioner is the name of its provisioner that lets an authority be signed.
	Provisioner string `yaml:"provisioner"`
	// KeyFile has the private key in PEM (mode 0600) by which the provisioner knows us.
	KeyFile string `yaml:"key_file"`
	// CertFile has the certificate chain of that key for a provisioner of type X5C;
	// empty for one of type JWK.
	CertFile string `yaml:"cert_file"`
	// TTL is the life to ask for.
	TTL config.Duration `yaml:"ttl"`
}

// DefaultTTL is what a step-ca grants at most, if nobody configured another.
const DefaultTTL = config.Duration(24 * time.Hour)

// Validate checks the configuration; its errors begin with the keys' names.
func (c Config) Validate() error {
	if c.URL == "" {
		if c.RootFile+c.Provisioner+c.KeyFile+c.CertFile != "" {
			return errors.New("url: name the authority, https://host:port")
		}
		return nil
	}
	var errs []error
	if u, err := url.Parse(c.URL); err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		errs = append(errs, fmt.Errorf("url: %q is no https://host:port", c.URL))
	}
	for _, k := range []struct{ key, value string }{{"root_file", c.RootFile}, {"provisioner", c.Provisioner}, {"key_file", c.KeyFile}} {
		if k.value == "" {
			errs = append(errs, fmt.Errorf("%s: it is needed with url", k.key))
		}
	}
	if c.TTL.D() < 10*time.Second || c.TTL.D() > 10*365*24*time.Hour {
		errs = append(errs, fmt.Errorf("ttl: %s is outside 10s to 87600h", c.TTL))
	}
	return errors.Join(errs...)
}

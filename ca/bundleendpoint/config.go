package bundleendpoint

import (
	"errors"
	"fmt"
	"time"

	"github.com/writ-mesh/writ/ca/federated"
	"github.com/writ-mesh/writ/internal/config"
	"github.com/writ-mesh/writ/internal/listen"
)

// Config says where the bundle is served to other trust domains.
type Config struct {
	// Listen is host:port or unix:///path; empty for nowhere.
	Listen string `yaml:"listen"`
	// Profile is https_web or https_spiffe.
	Profile federated.Profile `yaml:"profile"`
	// CertFile and KeyFile are PEM files with the server certificate of https_web.
	// They are read again when they change.
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
	// RefreshHint is how often others are told to look for changes.
	RefreshHint config.Duration `yaml:"refresh_hint"`
}

// Default is a configuration that serves nowhere.
func Default() Config {
	return Config{Profile: federated.SPIFFE, RefreshHint: config.Duration(5 * time.Minute)}
}

// Validate checks the configuration, without reading files.
func (c Config) Validate() error {
	if c.Listen == "" {
		if c.CertFile != "" || c.KeyFile != "" {
			return errors.New("bundle_endpoint: there is a certificate, and no listen")
		}
		return nil
	}
	var errs []error
	if err := listen.Valid(c.Listen); err != nil {
		errs = append(errs, fmt.Errorf("bundle_endpoint.listen: %w", err))
	}
	if err := c.Profile.Check(
		federated.Field{Key: "cert_file", Value: c.CertFile, Of: federated.Web, Needed: true},
		federated.Field{Key: "key_file", Value: c.KeyFile, Of: federated.Web, Needed: true},
	); err != nil {
		errs = append(errs, fmt.Errorf("bundle_endpoint: %w", err))
	}
	if d := c.RefreshHint.D(); d < time.Second || d > 24*time.Hour || d%time.Second != 0 {
		errs = append(errs, fmt.Errorf("bundle_endpoint.refresh_hint: %s: want whole seconds, 1s to 24h", c.RefreshHint))
	}
	return errors.Join(errs...)
}

// NeedsSVID tells whether Serve needs an X.509-SVID.
func (c Config) NeedsSVID() bool { return c.Listen != "" && c.Profile == federated.SPIFFE }

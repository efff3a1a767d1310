package ca

import (
	"errors"
	"flag"
	"fmt"
	"path/filepath"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-mesh/writ/ca/acme"
	"github.com/writ-mesh/writ/ca/bundleendpoint"
	"github.com/writ-mesh/writ/ca/federated"
	"github.com/writ-mesh/writ/ca/kubernetes"
	"github.com/writ-mesh/writ/ca/ledger/filelog"
	"github.com/writ-mesh/writ/ca/limit"
	"github.com/writ-mesh/writ/ca/nodeattest"
	"github.com/writ-mesh/writ/internal/config"
	"github.com/writ-mesh/writ/internal/listen"
	"github.com/writ-mesh/writ/internal/rpc"
	"github.com/writ-mesh/writ/internal/service"
)

// minTTL is the shortest life of a certificate. Below it, renewal at half life
// leaves no time for a retry.
const minTTL = 10 * time.Second

// The files in the state directory beside those of package root.
const (
	ledgerFile    = filelog.Name
	bundleFile    = "bundle.pem"
	placementFile = "placements.json"
)

// Config is the configuration file of writ-ca.
type Config struct {
	service.Common `yaml:",inline"`

	// TrustDomain is without scheme, for example cluster.local.
	TrustDomain string `yaml:"trust_domain"`
	// State is the directory of root, ledger and tokens (mode 0700).
	State string `yaml:"state"`
	// Ledger says where the ledger is, if not in the state directory.
	Ledger LedgerConfig `yaml:"ledger"`
	// Authority says where its key is, if not in the state directory.
	Authority AuthorityConfig `yaml:"authority"`
	// Listen is where certificates are issued over TLS: host:port, unix:///path, or
	// empty for nowhere.
	Listen string `yaml:"listen"`
	// CompliancePolicy pqc takes connections with a post-quantum key exchange only, from
	// node agents and services and to pilot. Empty prefers that.
	CompliancePolicy rpc.CompliancePolicy `yaml:"compliance_policy"`
	// Admin is the admin socket, unix:///path, or empty for none.
	Admin string `yaml:"admin"`
	// Pilot is where placements come from: host:port (mTLS) or unix:///path. Empty
	// means alone: then nodes can join and renew, and only the admin socket issues
	// for workloads.
	Pilot string `yaml:"pilot"`
	// TrustBundle is the file that the roots are written to for all to read; empty
	// means bundle.pem in the state directory.
	TrustBundle string `yaml:"trust_bundle"`

	// Join says by what node agents and services may join, besides one-time tokens.
	Join nodeattest.Config `yaml:"join"`

	// WorkloadTTL is the life of workload certificates if nobody asks for another.
	WorkloadTTL config.Duration `yaml:"workload_ttl"`
	// ServiceTTL is that of node agents and services of Writ, this one included.
	ServiceTTL config.Duration `yaml:"service_ttl"`
	// MaxTTL is the longest life that anybody gets.
	MaxTTL config.Duration `yaml:"max_ttl"`
	// RootTTL is the life of a root that has yet to be made.
	RootTTL config.Duration `yaml:"root_ttl"`
	// JoinTokenTTL is how long a join token may be used if nobody asks for another
	// time.
	JoinTokenTTL config.Duration `yaml:"join_token_ttl"`
	// ClockSkew is by how much a certificate is backdated for peers whose clock is
	// behind, but never more than a tenth of its life.
	ClockSkew config.Duration `yaml:"clock_skew"`
	// PlacementWait is how long a node's request waits for a placement that has
	// not arrived yet.
	PlacementWait config.Duration `yaml:"placement_wait"`

	// Limits says how much each caller may ask where certificates are issued over TLS.
	Limits limit.Config `yaml:"limits"`

	// JWT says how JWT-SVIDs are issued.
	JWT JWTConfig `yaml:"jwt"`
	// Kubernetes is the cluster whose service accounts are identities of the mesh.
	Kubernetes kubernetes.Config `yaml:"kubernetes"`
	// ACME says which servers outside the mesh get certificates for DNS names.
	ACME acme.Config `yaml:"acme"`
	// CRL says where certificate revocation lists are served.
	CRL CRLConfig `yaml:"crl"`
	// BundleEndpoint says where other trust domains get the bundle.
	BundleEndpoint bundleendpoint.Config `yaml:"bundle_endpoint"`
	// FederatesWith are the trust domains whose identities are accepted too.
	FederatesWith []federated.Domain `yaml:"federates_with"`
}

// DefaultConfig has the defaults filled in.
func DefaultConfig() Config {
	return Config{
		TrustDomain:   "cluster.local",
		WorkloadTTL:   config.Duration(time.Hour),
		ServiceTTL:    config.Duration(time.Hour),
		MaxTTL:        config.Duration(24 * time.Hour),
		RootTTL:       config.Duration(10 * 365 * 24 * time.Hour),
		JoinTokenTTL:  config.Duration(10 * time.Minute),
		ClockSkew:     config.Duration(10 * time.Second),
		PlacementWait: config.Duration(2 * time.Second),
		Limits:        limit.Default(),
		JWT:           defaultJWT(),
		Authority:     defaultAuthority(),

		BundleEndpoint: bundleendpoint.Default(),
		ACME:           acme.Default(),
		Kubernetes:     kubernetes.DefaultConfig(),
	}
}

// Flags binds the flags that stand for keys of the file.
func (c *Config) Flags(fs *flag.FlagSet) {
	fs.StringVar(&c.TrustDomain, "trust-domain", c.TrustDomain, "the trust `domain`, for example example.org")
	fs.StringVar(&c.State, "state", c.State, "the state `directory` (mode 0700)")
	fs.StringVar(&c.Listen, "listen", c.Listen, "issue over TLS on this `address`, host:port or unix:///path")
	fs.StringVar(&c.Admin, "admin", c.Admin, "the admin `socket`, unix:///path")
	fs.StringVar(&c.TrustBundle, "trust-bundle", c.TrustBundle, "write the roots to this `file` (default STATE/bundle.pem)")
	fs.Var(&c.WorkloadTTL, "workload-ttl", "default `life` of workload certificates")
}

// Validate checks the configuration.
func (c *Config) Validate() error {
	var errs []error
	if _, err := spiffeid.TrustDomainFromString(c.TrustDomain); err != nil {
		errs = append(errs, fmt.Errorf("trust_domain %q: %w", c.TrustDomain, err))
	}
	if c.State == "" {
		errs = append(errs, errors.New("state: name a directory for the root and the ledger (-state DIR)"))
	}
	if c.Listen == "" && c.Admin == "" {
		errs = append(errs, errors.New("nothing to serve: set listen (-listen HOST:PORT) or admin (-admin unix:///PATH)"))
	}
	for _, a := range []struct{ key, addr string }{{"listen", c.Listen}, {"admin", c.Admin}, {"pilot", c.Pilot}, {"crl.listen", c.CRL.Listen}} {
		if a.addr == "" {
			continue
		}
		if err := listen.Valid(a.addr); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", a.key, err))
		}
	}
	if _, ok := listen.Unix(c.Admin); c.Admin != "" && !ok {
		errs = append(errs, fmt.Errorf("admin: address %q: the admin service is served on a unix socket only (unix:///path)", c.Admin))
	}
	errs = append(errs, c.CompliancePolicy.Validate(), c.Authority.validate(), c.Join.Validate(), c.Limits.Validate(), c.BundleEndpoint.Validate(), c.ACME.Validate(c.MaxTTL.D()), c.Kubernetes.Validate(), federated.Validate(c.FederatesWith, c.TrustDomain))
	if c.Kubernetes.Registrations != "" && c.Listen == "" {
		errs = append(errs, errors.New("kubernetes.registrations: node agents get them at listen, which is not set"))
	}
	if err := c.Ledger.validate(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(append(errs, c.validateTimes()...)...)
}

func (c *Config) validateTimes() []error {
	var errs []error
	within := func(key string, d config.Duration, low, high time.Duration) {
		if d.D() < low || d.D() > high {
			errs = append(errs, fmt.Errorf("%s: %s is outside %s to %s", key, d, low, high))
		}
	}
	within("root_ttl", c.RootTTL, time.Hour, 30*365*24*time.Hour)
	within("max_ttl", c.MaxTTL, minTTL, max(c.RootTTL.D()/2, minTTL))
	within("workload_ttl", c.WorkloadTTL, minTTL, max(c.MaxTTL.D(), minTTL))
	within("service_ttl", c.ServiceTTL, minTTL, max(c.MaxTTL.D(), minTTL))
	within("join_token_ttl", c.JoinTokenTTL, time.Second, maxTokenTTL)
	within("clock_skew", c.ClockSkew, 0, 10*time.Minute)
	within("placement_wait", c.PlacementWait, 0, 30*time.Second)
	c.JWT.validate(within)
	return errs
}

// trustBundle is where the roots are written for all to read.
func (c *Config) trustBundle() string {
	if c.TrustBundle != "" {
		return c.TrustBundle
	}
	return filepath.Join(c.State, bundleFile)
}

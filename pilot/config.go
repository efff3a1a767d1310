package pilot

import (
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/writ-mesh/writ/internal/credential"
	"github.com/writ-mesh/writ/internal/listen"
	"github.com/writ-mesh/writ/internal/service"
	"github.com/writ-mesh/writ/pilot/meshdir"
	"github.com/writ-mesh/writ/pilot/model"
)

// Config is the configuration file of writ-pilot.
type Config struct {
	service.Common `yaml:",inline"`

	// Mesh is the directory with the configuration of the mesh.
	Mesh string `yaml:"mesh"`
	// Instances is the file that lists the running replicas; without it the mesh
	// has the services and policies of Mesh alone.
	Instances string `yaml:"instances"`
	// Listen is where node agents and the services of Writ get their
	// configuration over mTLS: host:port or unix:///path. Needs Credential.
	Listen string `yaml:"listen"`
	// Plaintext is where any xDS client gets its configuration without TLS. Only
	// a loopback address is taken.
	Plaintext string `yaml:"plaintext"`
	// Admin is the unix socket of the status service, mode 0600; empty for none.
	Admin string `yaml:"admin"`
	// State is the directory that keeps the number of the revision; without it
	// numbers begin with 1 at each start.
	State string `yaml:"state"`
	// Deciders are where Envoys reach the services that decide.
	Deciders Deciders `yaml:"deciders"`
	// ReservedFolders are folders with the mesh's own sockets and state, besides
	// /run/writ: no object may name a file or socket in one. An element may be a
	// pattern, such as /tmp/writ-*.
	ReservedFolders []string `yaml:"reserved_folders"`
	// ReservedAddresses are addresses and CIDR blocks of the mesh's own services:
	// no endpoint may have one.
	ReservedAddresses []string `yaml:"reserved_addresses"`
	// ListURLs are what the URL of an AccessList has to begin with, one of them:
	// scheme, host and a folder. Empty is any.
	ListURLs []string `yaml:"list_urls"`
	// KeySetURLs are what a place must begin with from which pilot fetches keys of token
	// issuers (jwksUri of RequestAuthentications, and what issuers without one say), one
	// of them: scheme, host and a folder. Empty is any. Of other places the proxies fetch
	// themselves.
	KeySetURLs []string `yaml:"key_set_urls"`
	// Credential says where the service's own certificate comes from.
	Credential credential.Config `yaml:"credential"`
}

// Deciders are addresses of services, unix:///path or host:port; empty for none.
type Deciders struct {
	Authz     string `yaml:"authz"`
	RateLimit string `yaml:"ratelimit"`
}

// Model gives the deciders as the translation needs them.
func (d Deciders) Model() model.Deciders {
	return model.Deciders{Authz: d.Authz, RateLimit: d.RateLimit}
}

// DefaultConfig has the defaults filled in; there are none.
func DefaultConfig() Config { return Config{} }

// Flags binds the flags that stand for keys of the file.
func (c *Config) Flags(fs *flag.FlagSet) {
	fs.StringVar(&c.Mesh, "mesh", c.Mesh, "the mesh `directory`: YAML files")
	fs.StringVar(&c.Plaintext, "plaintext", c.Plaintext, "serve any xDS client without TLS on a loopback `address`, such as 127.0.0.1:15010")
	fs.StringVar(&c.Admin, "admin", c.Admin, "serve the status on this `socket`, unix:///path")
	fs.StringVar(&c.State, "state", c.State, "the `directory` that keeps the revision number over a restart")
}

// Validate checks a configuration with its cross-field rules.
func (c *Config) Validate() error {
	if c.Mesh == "" {
		return errors.New("mesh: the directory with the configuration is not set; give mesh in the file or -mesh DIR")
	}
	info, err := os.Stat(c.Mesh)
	if err != nil {
		return fmt.Errorf("mesh: %w", err)
	}
	if !info.IsDir() {
		return fmt.Errorf("mesh: %s is not a directory", c.Mesh)
	}
	if c.Listen == "" && c.Plaintext == "" {
		return errors.New("listen: nobody could be served; set listen (mTLS) or plaintext (loopback only)")
	}
	if _, err := c.reserved(); err != nil {
		return err
	}
	for i, u := range c.ListURLs {
		if problem := model.URLProblem(u); problem != "" {
			return fmt.Errorf("list_urls[%d]: %q %s", i, u, problem)
		}
	}
	for i, u := range c.KeySetURLs {
		if problem := model.URLProblem(u); problem != "" {
			return fmt.Errorf("key_set_urls[%d]: %q %s", i, u, problem)
		}
	}
	return errors.Join(c.validateListeners()...)
}

// reserved is what no object may name: what is configured, and pilot's own state
// and address.
func (c *Config) reserved() (meshdir.Reserved, error) {
	out := meshdir.Reserved{Folders: slices.Clone(c.ReservedFolders)}
	for _, folder := range c.ReservedFolders {
		if !filepath.IsAbs(folder) {
			return out, fmt.Errorf("reserved_folders: %q is not an absolute path", folder)
		}
	}
	if c.State != "" {
		state, err := filepath.Abs(c.State)
		if err != nil {
			return out, fmt.Errorf("state: %w", err)
		}
		out.Folders = append(out.Folders, state)
	}
	for _, text := range c.ReservedAddresses {
		block, err := netip.ParsePrefix(text)
		if err != nil {
			addr, aerr := netip.ParseAddr(text)
			if aerr != nil {
				return out, fmt.Errorf("reserved_addresses: %q is neither an IP address nor a CIDR block", text)
			}
			block = netip.PrefixFrom(addr, addr.BitLen())
		}
		out.Addresses = append(out.Addresses, block)
	}
	return out, nil
}

func (c *Config) validateListeners() []error {
	var errs []error
	for _, a := range []struct{ field, addr string }{
		{"listen", c.Listen}, {"admin", c.Admin}, {"deciders.authz", c.Deciders.Authz}, {"deciders.ratelimit", c.Deciders.RateLimit},
	} {
		if a.addr == "" {
			continue
		}
		if err := listen.Valid(a.addr); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", a.field, err))
		}
	}
	if _, unix := listen.Unix(c.Admin); c.Admin != "" && !unix {
		errs = append(errs, fmt.Errorf("admin: %s: the status service is only for this machine; use unix:///path", c.Admin))
	}
	if c.Plaintext != "" {
		if err := listen.Loopback(c.Plaintext); err != nil {
			errs = append(errs, fmt.Errorf("plaintext: %w", err))
		}
	}
	if c.Listen != "" {
		if err := c.Credential.Validate(); err != nil {
			errs = append(errs, fmt.Errorf("credential: %w", err))
		}
	}
	return errs
}

package nodeagent

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-mesh/writ/internal/config"
	"github.com/writ-mesh/writ/internal/credential"
	"github.com/writ-mesh/writ/internal/identity"
	"github.com/writ-mesh/writ/internal/listen"
	"github.com/writ-mesh/writ/internal/service"
	"github.com/writ-mesh/writ/nodeagent/attest"
	"github.com/writ-mesh/writ/nodeagent/proxysecret"
)

// Config is the configuration file of writ-nodeagent.
type Config struct {
	service.Common `yaml:",inline"`

	// Node is the name of this node, as in pilot's placement.
	Node string `yaml:"node"`
	// Socket is where proxies find SDS and ADS: unix:///path.
	Socket string `yaml:"socket"`
	// SocketMode is the mode of Socket in octal, 0600 if empty. With 0666 proxies
	// of other users can connect; who they are is attested in any case.
	SocketMode string `yaml:"socket_mode"`
	// Admin is where the supervisor registers processes: unix:///path, mode 0600.
	// Empty means that proxies are recognized by their user id alone.
	Admin string `yaml:"admin"`
	// State is the directory that holds placement, registrations and the last
	// good configurations, mode 0700.
	State string `yaml:"state"`
	// ProxyKey is the file with the key of which the secrets of the proxies' bootstraps
	// are made, mode 0600; proxy.key in State if it is empty. It is made if it is not
	// there, by whoever needs it first, the agent or `writ bootstrap`.
	ProxyKey string `yaml:"proxy_key"`
	// Pilot is pilot's address, host:port (mTLS).
	Pilot string `yaml:"pilot"`
	// Credential says where the agent's own certificate comes from; the authority
	// that it names also issues those of the workloads.
	Credential credential.Config `yaml:"credential"`
	// DockerSocket is the Docker Engine API's, unix:///path, where containers'
	// labels, images and names come from. Empty means that they are not known.
	DockerSocket string `yaml:"docker_socket"`
	// Kubelet is where namespace, service account and name of a Kubernetes pod come
	// from. Without it they are not known.
	Kubelet attest.Kubelet `yaml:"kubelet"`
	// AttestWait is how long a caller that is not known yet waits to become so.
	AttestWait config.Duration `yaml:"attest_wait"`
}

// DefaultConfig has the defaults filled in.
func DefaultConfig() Config {
	return Config{
		Socket:     "unix:///run/writ/nodeagent.sock",
		SocketMode: "0600",
		Admin:      "unix:///run/writ/nodeagent-admin.sock",
		State:      "/var/lib/writ/nodeagent",
		AttestWait: config.Duration(5 * time.Second),
	}
}

// Validate checks a configuration with its cross-field rules.
func (c *Config) Validate() error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if err := c.Credential.Validate(); err != nil {
		errs = append(errs, err)
	} else if _, err := c.id(); err != nil {
		fail("node: %w", err)
	}
	if c.Node == "" {
		fail("node: the name of this node is not set")
	}
	for _, s := range []struct{ field, addr string }{{"socket", c.Socket}, {"admin", c.Admin}, {"docker_socket", c.DockerSocket}} {
		if s.addr == "" && s.field != "socket" {
			continue
		}
		if _, ok := listen.Unix(s.addr); !ok {
			fail("%s: %q is no unix socket; want unix:///absolute/path", s.field, s.addr)
		} else if err := listen.Valid(s.addr); err != nil {
			fail("%s: %w", s.field, err)
		}
	}
	if c.Socket == c.Admin {
		fail("admin: it must not be the same as socket: registering processes is for the supervisor alone")
	}
	if _, err := listen.Mode(c.SocketMode); err != nil {
		errs = append(errs, err)
	}
	if err := c.Kubelet.Validate(); err != nil {
		errs = append(errs, err)
	}
	if c.State == "" {
		fail("state: the directory for the agent's state is not set")
	}
	if _, _, err := net.SplitHostPort(c.Pilot); err != nil {
		fail("pilot: address %q: want host:port", c.Pilot)
	}
	if w := c.AttestWait.D(); w <= 0 || w > time.Minute {
		fail("attest_wait: %s is not between 0 and 1m", w)
	}
	return errors.Join(errs...)
}

// proxyKey is where the key of the proxies' secrets is.
func (c *Config) proxyKey() string {
	if c.ProxyKey != "" {
		return c.ProxyKey
	}
	return filepath.Join(c.State, proxysecret.File)
}

// dockerSocket is the path of DockerSocket, "" if there is none.
func (c *Config) dockerSocket() string {
	path, _ := listen.Unix(c.DockerSocket)
	return path
}

func (c *Config) trustDomain() (spiffeid.TrustDomain, error) {
	return spiffeid.TrustDomainFromString(c.Credential.TrustDomain)
}

// id is the agent's own identity.
func (c *Config) id() (spiffeid.ID, error) {
	td, err := c.trustDomain()
	if err != nil {
		return spiffeid.ID{}, err
	}
	return identity.Node(td, c.Node)
}

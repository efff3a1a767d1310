package kubernetes

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/writ-mesh/writ/internal/config"
)

// How service accounts become registrations.
const (
	// onNodes: on the nodes where pods run as them.
	onNodes = "nodes"
	// everywhere: on every node of the mesh.
	everywhere = "everywhere"
)

// allNamespaces stands for every namespace.
const allNamespaces = "*"

// maxPrefix leaves room in a Secret's name, which has 253 characters at most, for
// the account's.
const maxPrefix = 63

// Config is the cluster whose service accounts are identities of the mesh.
type Config struct {
	// API is the API server, https://host:port; empty for no cluster.
	API string `yaml:"api"`
	// CAFile has its roots; the system's if it is empty.
	CAFile string `yaml:"ca_file"`
	// TokenFile has the token with which it is called; it is read at each call.
	TokenFile string `yaml:"token_file"`
	// Namespaces are those whose service accounts count; "*" alone means all.
	Namespaces []string `yaml:"namespaces"`
	// Selector is a label selector that they have to fit; empty fits all.
	Selector string `yaml:"selector"`
	// Registrations is where they are registered: "nodes" (where pods run as them),
	// "everywhere", or empty for nowhere.
	Registrations string `yaml:"registrations"`
	// NodePrefix goes before the names of nodes, as in join.kubernetes.
	NodePrefix string `yaml:"node_prefix"`
	// Secrets says whether each gets a Secret with key and certificate.
	Secrets bool `yaml:"secrets"`
	// SecretPrefix goes before the account's name in the Secret's.
	SecretPrefix string `yaml:"secret_prefix"`
	// SecretTTL is the life of the certificates in them.
	SecretTTL config.Duration `yaml:"secret_ttl"`
	// SecretDelay is how long kubelets may take until pods have a changed Secret.
	SecretDelay config.Duration `yaml:"secret_delay"`
}

// DefaultConfig has no cluster.
func DefaultConfig() Config {
	return Config{
		SecretPrefix: "istio.", // as Citadel had it, and pods mount it
		// The API server may be away for half of it.
		SecretTTL: config.Duration(24 * time.Hour),
		// A kubelet looks at its pods every minute to a minute and a half.
		SecretDelay: config.Duration(2 * time.Minute),
	}
}

// Names of Kubernetes: RFC 1123 labels for namespaces, subdomains for the rest.
var (
	label  = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	prefix = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)*([a-z0-9]([a-z0-9-]*[a-z0-9])?-*)?$`)
)

// Enabled tells whether there is a cluster.
func (c Config) Enabled() bool { return c.API != "" }

// Validate checks the configuration.
func (c Config) Validate() error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf("kubernetes."+format, args...)) }
	if !c.Enabled() {
		if len(c.Namespaces) > 0 || c.Registrations != "" || c.Secrets {
			fail("api: name the API server, https://host:port")
		}
		return errors.Join(errs...)
	}
	if u, err := url.Parse(c.API); err != nil || u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" {
		fail("api: %q: want https://host:port", c.API)
	}
	if c.TokenFile == "" {
		fail("token_file: name the file with the token with which the API is called")
	}
	switch {
	case len(c.Namespaces) == 0:
		fail("namespaces: name those whose service accounts are identities of the mesh")
	case slices.Contains(c.Namespaces, allNamespaces) && len(c.Namespaces) > 1:
		fail("namespaces: %q stands for all, so name no other", allNamespaces)
	}
	for i, n := range c.Namespaces {
		if n != allNamespaces && !label.MatchString(n) || slices.Index(c.Namespaces, n) != i {
			fail("namespaces: %q is no name of a namespace, or is there twice", n)
		}
	}
	if !slices.Contains([]string{"", onNodes, everywhere}, c.Registrations) {
		fail("registrations: %q: want %s, %s or nothing", c.Registrations, onNodes, everywhere)
	}
	if c.Registrations == "" && !c.Secrets {
		fail("registrations: say what the cluster is for: registrations, secrets or both")
	}
	return errors.Join(append(errs, c.validateSecrets()...)...)
}

func (c Config) validateSecrets() []error {
	var errs []error
	// With no prefix an account called like somebody's Secret would name it.
	if c.SecretPrefix == "" || len(c.SecretPrefix) > maxPrefix || !prefix.MatchString(c.SecretPrefix) {
		errs = append(errs, fmt.Errorf("kubernetes.secret_prefix: %q: want the begin of a Secret's name, such as \"istio.\"", c.SecretPrefix))
	}
	if c.SecretTTL.D() < time.Minute {
		errs = append(errs, fmt.Errorf("kubernetes.secret_ttl: %s is less than a minute", c.SecretTTL))
	}
	if c.SecretDelay.D() < 0 || c.SecretDelay.D() > c.SecretTTL.D()/4 {
		errs = append(errs, fmt.Errorf("kubernetes.secret_delay: %s is outside 0s to a quarter of secret_ttl, %s", c.SecretDelay, c.SecretTTL.D()/4))
	}
	return errs
}

package authz

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"regexp"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/yaml"

	"github.com/writ-mesh/writ/authz/bundle"
	"github.com/writ-mesh/writ/authz/rego"
	"github.com/writ-mesh/writ/internal/listen"
)

// Standalone is the service in place of the OPA-Envoy plugin.
type Standalone struct {
	// ConfigFile is the file for `opa run --config-file`; empty means defaults.
	ConfigFile string
	// Paths are the arguments of `opa run`: files, folders, tarballs.
	Paths []string
	// Bundle takes each path for a bundle, as `opa run --bundle`.
	Bundle bool
	// V0 reads Rego as OPA before 1.0, as `opa run --v0-compatible`.
	V0 bool
	// PlainTextAnywhere lets it listen in plain text on more than this machine.
	PlainTextAnywhere bool
	// HTTPListen is the address for Envoys that ask by HTTP (http_service of
	// ext_authz); empty for none.
	HTTPListen string

	// config is the file in JSON, with the environment put in, local what Paths are.
	config []byte
	local  *bundle.Local
}

// pluginConfig is the section plugins.envoy_ext_authz_grpc; the meaning of each
// key is documented at https://www.openpolicyagent.org/docs/envoy.
type pluginConfig struct {
	Addr                     string    `json:"addr"`
	Path                     string    `json:"path"`
	Query                    string    `json:"query"`
	DryRun                   bool      `json:"dry-run"`
	EnableReflection         bool      `json:"enable-reflection"`
	ProtoDescriptor          string    `json:"proto-descriptor"`
	MaxRecv                  int       `json:"grpc-max-recv-msg-size"`
	MaxSend                  int       `json:"grpc-max-send-msg-size"`
	SkipBody                 bool      `json:"skip-request-body-parse"`
	EnablePerformanceMetrics bool      `json:"enable-performance-metrics"`
	Buckets                  []float64 `json:"grpc-request-duration-seconds-buckets"`

	// what reading made of it
	query string
	set   *rego.MessageSet
}

// opaConfig names the sections of OPA's configuration. What is in them is for
// OPA's own plugins to check. Sections that concern OPA's API (server, and the
// decisions it defaults to) have no effect; those that would change what is
// decided or told, and are not here, are refused.
type opaConfig struct {
	Services     any            `json:"services"`
	Labels       any            `json:"labels"`
	Keys         any            `json:"keys"`
	Discovery    any            `json:"discovery"`
	Bundle       any            `json:"bundle"`
	Bundles      any            `json:"bundles"`
	DecisionLogs any            `json:"decision_logs"`
	Status       any            `json:"status"`
	Plugins      map[string]any `json:"plugins"`
	Server       any            `json:"server"`
	Caching      any            `json:"caching"`
	Persistence  any            `json:"persistence_directory"`
	Default      any            `json:"default_decision"`
	DefaultAuthz any            `json:"default_authorization_decision"`
	NDCache      any            `json:"nd_builtin_cache"`
	Storage      any            `json:"storage"`
	Tracing      any            `json:"distributed_tracing"`
	Export       any            `json:"metrics_export"`
}

const pluginName = "envoy_ext_authz_grpc"

// The plugin's defaults.
const (
	defaultAddr    = ":9191"
	defaultPath    = "envoy/authz/allow"
	defaultMaxRecv = 4 << 20
)

// Validate reads the file and checks that this version can do what it asks for.
func (s *Standalone) Validate() error {
	var c opaConfig
	s.config = []byte("{}")
	if s.ConfigFile != "" {
		b, err := os.ReadFile(s.ConfigFile)
		if err != nil {
			return fmt.Errorf("opa configuration: %w", err)
		}
		b = substitute(b)
		if err := yaml.UnmarshalStrict(b, &c); err != nil {
			return fmt.Errorf("%s: %s", s.ConfigFile, oneLine(err))
		}
		if s.config, err = yaml.YAMLToJSON(b); err != nil {
			return fmt.Errorf("%s: %s", s.ConfigFile, oneLine(err))
		}
	}
	if err := c.supported(); err != nil {
		return fmt.Errorf("%s: %w", s.ConfigFile, err)
	}
	if len(s.Paths) == 0 && c.Bundles == nil && c.Bundle == nil && c.Discovery == nil {
		return errors.New("no policy: give .rego files, folders or bundles as arguments, or bundles or discovery in the configuration")
	}
	if _, err := s.httpAddress(); err != nil {
		return err
	}
	paths, bundles := s.Paths, []string(nil)
	if s.Bundle {
		paths, bundles = nil, s.Paths
	}
	var err error
	if s.local, err = bundle.ReadLocal(paths, bundles, s.V0); err != nil {
		return err
	}
	// Everything else is checked by who will read it, and thrown away.
	o := s.managerOptions(slog.New(slog.DiscardHandler), prometheus.NewRegistry(), io.Discard)
	if _, err := bundle.NewManager(context.Background(), o); err != nil {
		if s.ConfigFile == "" {
			return err
		}
		return fmt.Errorf("%s: %w", s.ConfigFile, err)
	}
	return nil
}

// supported refuses what is not there.
func (c *opaConfig) supported() error {
	for name := range c.Plugins {
		if name != pluginName {
			return notSupported("plugins." + name)
		}
	}
	switch {
	case c.Storage != nil:
		return notSupported("storage")
	case c.Tracing != nil:
		return notSupported("distributed_tracing")
	case c.Export != nil:
		return notSupported("metrics_export")
	}
	return nil
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

func notSupported(what string) error {
	return fmt.Errorf("%s: not supported by this version of writ-authz", what)
}

// substitute puts environment variables in for ${NAME}, as OPA does.
func substitute(b []byte) []byte {
	return regexp.MustCompile(`\$\{([^}]*)\}`).ReplaceAllFunc(b, func(m []byte) []byte {
		return []byte(os.Getenv(strings.TrimSpace(string(m[2 : len(m)-1]))))
	})
}

// managerOptions are those of the manager of OPA's plugins; what the plugin's
// section says is only checked. The caller changes Read to learn it.
func (s *Standalone) managerOptions(log *slog.Logger, metrics prometheus.Registerer, console io.Writer) bundle.Options {
	return bundle.Options{
		Config: s.config, Plugin: pluginName, Local: s.local, V0: s.V0, Console: console, Log: log, Metrics: metrics,
		// As in OPA, where a rule that is not there denies.
		Rego: rego.Options{Network: true, Undefined: true, V0: s.V0},
		Read: func(section []byte) (string, func(), error) {
			p, err := s.readPlugin(section)
			return p.query, nil, err
		},
	}
}

// readPlugin reads the plugin's section.
func (s *Standalone) readPlugin(section []byte) (pluginConfig, error) {
	p := pluginConfig{Addr: defaultAddr, MaxRecv: defaultMaxRecv, Buckets: pluginBuckets()}
	if err := yaml.UnmarshalStrict(section, &p); err != nil {
		return p, fmt.Errorf("plugins.%s: %s", pluginName, oneLine(err))
	}
	switch {
	case p.Path != "" && p.Query != "":
		return p, fmt.Errorf("plugins.%s: path and query are both set, give one", pluginName)
	case p.Query != "":
		p.query = p.Query
	case p.Path == "":
		p.Path = defaultPath
		fallthrough
	default:
		p.query = rego.QueryOfPath(p.Path)
	}
	if err := rego.CheckQuery(p.query); err != nil {
		return p, fmt.Errorf("plugins.%s: %w", pluginName, err)
	}
	if p.ProtoDescriptor != "" {
		b, err := os.ReadFile(p.ProtoDescriptor)
		if err == nil {
			p.set, err = rego.ReadMessageSet(b)
		}
		if err != nil {
			return p, fmt.Errorf("plugins.%s.proto-descriptor: %w", pluginName, err)
		}
	}
	_, err := s.address(p.Addr)
	return p, err
}

// address turns the plugin's form of an address into ours: unix:///path or
// host:port. An address without host means this machine.
func (s *Standalone) address(addr string) (string, error) {
	if path, ok := strings.CutPrefix(addr, "unix://"); ok {
		if !strings.HasPrefix(path, "/") {
			return "", fmt.Errorf("addr %q: want unix:///absolute/path (abstract sockets are not supported by this version)", addr)
		}
		return addr, nil
	}
	host, port, err := net.SplitHostPort(strings.TrimPrefix(addr, "grpc://"))
	if err != nil {
		return "", fmt.Errorf("addr %q: %w", addr, err)
	}
	if host == "" && !s.PlainTextAnywhere {
		host = "127.0.0.1"
	}
	out := net.JoinHostPort(host, port)
	if !s.PlainTextAnywhere {
		if err := listen.Loopback(out); err != nil {
			return "", fmt.Errorf("addr: %w; listen there or on a unix socket, or give -plaintext-anywhere", err)
		}
	}
	return out, nil
}

// httpAddress is that of the HTTP form, empty for none.
func (s *Standalone) httpAddress() (string, error) {
	if s.HTTPListen == "" {
		return "", nil
	}
	addr, err := s.address(s.HTTPListen)
	if err != nil {
		return "", fmt.Errorf("-http-listen: %w", err)
	}
	return addr, nil
}

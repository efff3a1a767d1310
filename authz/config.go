package authz

import (
	"errors"
	"flag"
	"fmt"
	"path/filepath"
	"strconv"
	"time"

	"github.com/writ-mesh/writ/authz/rego"
	"github.com/writ-mesh/writ/internal/config"
	"github.com/writ-mesh/writ/internal/decider"
	"github.com/writ-mesh/writ/internal/service"
)

// Config is the configuration file of writ-authz in the mesh. Alone the service
// takes an OPA configuration instead, see [Standalone].
type Config struct {
	service.Common `yaml:",inline"`
	decider.Config `yaml:",inline"`
	Decision       DecisionConfig `yaml:"decision"`
	Token          TokenConfig    `yaml:"token"`
	DecisionLog    LogConfig      `yaml:"decision_log"`
	Recording      RecordConfig   `yaml:"recording"`
	// BundleCredentials is a folder with a folder for each host that has bundles of
	// RegoPolicies, in which are the files that a policy may name for that host. It is
	// "bundle-credentials" in State if it is empty.
	BundleCredentials string `yaml:"bundle_credentials"`

	// Alone is set by flags only.
	Alone *Standalone `yaml:"-"`
}

// DecisionConfig bounds and records decisions.
type DecisionConfig struct {
	// Timeout bounds all policies of one check together. The default leaves room
	// below the second that pilot lets Envoys wait, and is long because it is wall
	// time: on a busy machine a decision of 50 us may wait for a processor.
	Timeout config.Duration `yaml:"timeout"`
	// MaxRequestBytes bounds headers, path and body of a check together; what is
	// larger is denied.
	MaxRequestBytes int `yaml:"max_request_bytes"`
	// Log says which decisions are logged: all, refusals or none.
	Log string `yaml:"log"`
	// NetworkBuiltins lets policies call http.send and net.lookup_ip_addr.
	NetworkBuiltins bool `yaml:"network_builtins"`
	// UnknownPolicyWait is how long a check waits for a policy that is named and
	// not known: the proxy may have got a revision a moment before this service.
	UnknownPolicyWait config.Duration `yaml:"unknown_policy_wait"`
	// Retire is how long a policy that was edited or removed still decides for proxies
	// whose routes go with it: those that have not got the revision yet, and connections
	// that drain. The default is for Envoy's drain time of ten minutes.
	Retire config.Duration `yaml:"retire"`
	// Cache keeps decisions for inputs that come again.
	Cache CacheConfig `yaml:"cache"`
	// EvaluationMemory is by how many bytes the heap may grow while an evaluation runs
	// that takes long; it is cancelled then. 0 is no bound.
	EvaluationMemory int `yaml:"evaluation_memory"`
}

// TokenConfig is for tokens that this service verifies itself.
type TokenConfig struct {
	// Leeway is granted on exp and nbf. The default is Envoy's (jwt_authn
	// clock_skew_seconds), so that both say the same about a token.
	Leeway config.Duration `yaml:"leeway"`
}

// The values of DecisionConfig.Log.
const (
	logAll      = "all"
	logRefusals = "refusals"
	logNone     = "none"
)

// DefaultConfig has the defaults filled in.
func DefaultConfig() Config {
	return Config{
		Config: decider.Config{Listen: "127.0.0.1:9191"},
		Decision: DecisionConfig{
			Timeout:           config.Duration(800 * time.Millisecond),
			MaxRequestBytes:   1 << 20,
			Log:               logAll,
			UnknownPolicyWait: config.Duration(200 * time.Millisecond),
			Retire:            config.Duration(15 * time.Minute),
			Cache:             defaultCache(),
			EvaluationMemory:  rego.DefaultMemory,
		},
		Token:       TokenConfig{Leeway: config.Duration(time.Minute)},
		DecisionLog: defaultLogConfig(),
		Recording:   RecordConfig{MaxBytes: 64 << 20, PerSecond: 10},
	}
}

func (c *Config) credentials() string {
	if c.BundleCredentials == "" && c.State != "" {
		return filepath.Join(c.State, "bundle-credentials")
	}
	return c.BundleCredentials
}

// Validate checks everything that can be checked without starting.
func (c *Config) Validate() error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Alone != nil {
		return errors.Join(append(errs, c.Alone.Validate())...)
	}
	if c.Pilot == "" {
		fail("pilot: missing; give pilot's address, or -opa-config and policy files to run alone")
	}
	if err := c.Config.Validate(); err != nil {
		errs = append(errs, err)
	}
	errs = append(errs, c.Decision.validate()...)
	errs = append(errs, c.DecisionLog.validate()...)
	errs = append(errs, c.Recording.validate()...)
	if c.Token.Leeway < 0 || c.Token.Leeway.D() > 10*time.Minute {
		fail("token.leeway %s: want 0s to 10m", c.Token.Leeway)
	}
	return errors.Join(errs...)
}

func (d *DecisionConfig) validate() (errs []error) {
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if d.Timeout.D() < time.Millisecond || d.Timeout.D() > time.Minute {
		fail("decision.timeout %s: want 1ms to 1m", d.Timeout)
	}
	if d.MaxRequestBytes < 1024 || d.MaxRequestBytes > 64<<20 {
		fail("decision.max_request_bytes %d: want 1024 to 67108864", d.MaxRequestBytes)
	}
	switch d.Log {
	case logAll, logRefusals, logNone:
	default:
		fail("decision.log %q: want all, refusals or none", d.Log)
	}
	if d.UnknownPolicyWait < 0 || d.UnknownPolicyWait > d.Timeout {
		fail("decision.unknown_policy_wait %s: want 0s to decision.timeout (%s)", d.UnknownPolicyWait, d.Timeout)
	}
	if c := d.Cache; c.Entries < 0 || c.Entries > 1<<24 || c.Bytes < 0 || c.Bytes > 1<<36 || (c.Entries > 0 && c.Bytes < 1<<20) {
		fail("decision.cache: %d entries, %d bytes: want 0 to 16777216 entries, 1048576 bytes to 64 GiB", c.Entries, c.Bytes)
	}
	if d.EvaluationMemory < 0 || (d.EvaluationMemory > 0 && d.EvaluationMemory < 1<<20) {
		fail("decision.evaluation_memory %d: want 0, for no bound, or 1048576 or more", d.EvaluationMemory)
	}
	if d.Retire < 0 || d.Retire.D() > time.Hour {
		fail("decision.retire %s: want 0s to 1h", d.Retire)
	}
	return errs
}

// Flags binds the command's flags. Those that run the service alone make c.Alone.
func (c *Config) Flags(fs *flag.FlagSet) {
	fs.StringVar(&c.Listen, "listen", c.Listen, "in the mesh: `address` for Envoys, unix:///path or host:port")
	alone := func() *Standalone {
		if c.Alone == nil {
			c.Alone = &Standalone{}
		}
		return c.Alone
	}
	fs.Func("opa-config", "run alone with this `file` of `opa run --config-file`; policies are the arguments", func(s string) error {
		alone().ConfigFile = s
		return nil
	})
	fs.Func("http-listen", "alone: also answer Envoys that ask by HTTP (http_service of ext_authz) at this `address`", func(addr string) error {
		alone().HTTPListen = addr
		return nil
	})
	flagFunc := func(name, usage string, set func(*Standalone)) {
		fs.BoolFunc(name, usage, func(s string) error {
			on, err := strconv.ParseBool(s)
			if err == nil && on {
				set(alone())
			}
			return err
		})
	}
	flagFunc("b", "alone: the arguments are bundles", func(s *Standalone) { s.Bundle = true })
	flagFunc("bundle", "the same as -b", func(s *Standalone) { s.Bundle = true })
	flagFunc("v0-compatible", "alone: read Rego as OPA before 1.0", func(s *Standalone) { s.V0 = true })
	flagFunc("plaintext-anywhere", "alone: allow plain text on addresses that are not of this machine", func(s *Standalone) { s.PlainTextAnywhere = true })
}

// Args takes the positional arguments: policies, to run alone.
func (c *Config) Args(args []string) error {
	if len(args) > 0 && c.Alone == nil {
		c.Alone = &Standalone{}
	}
	if c.Alone != nil {
		c.Alone.Paths = args
	}
	return nil
}

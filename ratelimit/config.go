package ratelimit

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-mesh/writ/internal/config"
	"github.com/writ-mesh/writ/internal/credential"
	"github.com/writ-mesh/writ/internal/listen"
	"github.com/writ-mesh/writ/internal/service"
	"github.com/writ-mesh/writ/ratelimit/descriptors"
	"github.com/writ-mesh/writ/ratelimit/memory"
	"github.com/writ-mesh/writ/ratelimit/redisstore"
)

// Config is the configuration file of writ-ratelimit.
type Config struct {
	service.Common `yaml:",inline"`
	// Listen is where Envoys call: "unix:///path", guarded by the socket's mode
	// and the caller's user, or "host:port" with mTLS. Alone and without a
	// credential it is plain text and must be a loopback address.
	Listen string `yaml:"listen"`
	// SocketMode is the mode of the unix socket in octal, 0600 if empty: only
	// this user's processes may call. Any wider mode means that whoever can open
	// the socket may.
	SocketMode string `yaml:"socket_mode"`
	// Pilot is pilot's address, host:port (mTLS). Either Pilot or Descriptors is set.
	Pilot string `yaml:"pilot"`
	// NodeID is the name under which pilot knows this instance.
	NodeID string `yaml:"node_id"`
	// Credential is where this service's own identity comes from.
	Credential credential.Config `yaml:"credential"`
	// State is a folder for the last good policies; empty keeps none.
	State string `yaml:"state"`
	// Descriptors is a folder with envoyproxy/ratelimit's YAML files, for running
	// alone. It is watched.
	Descriptors string `yaml:"descriptors"`
	// DescriptorHeaders adds x-ratelimit headers to answers for descriptors too,
	// which envoyproxy/ratelimit does not unless told to.
	DescriptorHeaders bool `yaml:"descriptor_headers"`
	// Mode is how counters are shared: "exact" asks the store for each decision.
	Mode   string       `yaml:"mode"`
	Redis  RedisConfig  `yaml:"redis"`
	Memory MemoryConfig `yaml:"memory"`
}

// RedisConfig says where the shared counters are.
type RedisConfig struct {
	// Address is host:port or unix:///path; empty keeps the counters in process.
	Address  string `yaml:"address"`
	Username string `yaml:"username"`
	// PasswordFile holds the password; white space around it is cut off.
	PasswordFile string `yaml:"password_file"`
	DB           int    `yaml:"db"`
	// TLS connects with TLS 1.2 or later and checks the server's name.
	TLS bool `yaml:"tls"`
	// CAFile is a PEM file with the roots for TLS, the system's if empty.
	CAFile string `yaml:"ca_file"`
	// Timeout is how long one decision waits for Redis before this replica
	// decides alone.
	Timeout config.Duration `yaml:"timeout"`
}

// MemoryConfig bounds the counters in process.
type MemoryConfig struct {
	// MaxKeys is how many counters are kept; the one used longest ago goes first.
	MaxKeys int `yaml:"max_keys"`
}

// The values of Config.Mode.
const (
	modeExact  = "exact"
	modeLeased = "leased"
)

// DefaultConfig has the defaults filled in.
func DefaultConfig() Config {
	return Config{
		Listen: "127.0.0.1:8081",
		NodeID: "writ-ratelimit",
		Mode:   modeExact,
		Redis:  RedisConfig{Timeout: config.Duration(redisstore.DefaultTimeout)},
		Memory: MemoryConfig{MaxKeys: memory.DefaultMaxKeys},
	}
}

// Flags binds the flags of the service standing alone.
func (c *Config) Flags(fs *flag.FlagSet) {
	fs.StringVar(&c.Descriptors, "descriptors", c.Descriptors, "run alone, with the limits in this `folder` of envoyproxy/ratelimit's YAML files")
	fs.StringVar(&c.Listen, "listen", c.Listen, "serve on this `address`, host:port or unix:///path")
	fs.StringVar(&c.Redis.Address, "redis", c.Redis.Address, "keep the counters in the Redis at this `address`, host:port or unix:///path")
	fs.StringVar(&c.Mode, "mode", c.Mode, "how counters are shared: exact")
}

// Validate checks everything that can be checked without starting.
func (c *Config) Validate() error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if err := listen.Valid(c.Listen); err != nil {
		fail("listen: %w", err)
	}
	if _, err := c.socketMode(); err != nil {
		errs = append(errs, err)
	}
	switch c.Mode {
	case modeExact:
	case modeLeased:
		fail("mode leased: not in this version; use exact")
	default:
		fail("mode %q: want exact", c.Mode)
	}
	if c.Memory.MaxKeys < 1 || c.Memory.MaxKeys > 100_000_000 {
		fail("memory.max_keys %d: want 1 to 100000000", c.Memory.MaxKeys)
	}
	errs = append(errs, c.Redis.validate()...)
	errs = append(errs, c.validateSource()...)
	return errors.Join(errs...)
}

// validateSource checks where limits come from and what that asks for.
func (c *Config) validateSource() (errs []error) {
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	switch {
	case c.Pilot == "" && c.Descriptors == "":
		fail("nothing to enforce: give pilot, or descriptors (-descriptors DIR) to run alone")
	case c.Pilot != "" && c.Descriptors != "":
		fail("pilot and descriptors are both set: limits come from one of them")
	case c.Pilot != "":
		if err := listen.Valid(c.Pilot); err != nil {
			fail("pilot: %w", err)
		}
		if c.NodeID == "" {
			fail("node_id: missing")
		}
		if err := c.Credential.Validate(); err != nil {
			errs = append(errs, err)
		}
	case c.hasCredential():
		if err := c.Credential.Validate(); err != nil {
			errs = append(errs, err)
		}
	case !loopback(c.Listen):
		fail("listen %s: without a credential this service speaks plain text, which it does only on loopback addresses and unix sockets", c.Listen)
	}
	if c.Descriptors != "" {
		if info, err := os.Stat(c.Descriptors); err != nil || !info.IsDir() {
			fail("descriptors %s: is not a folder", c.Descriptors)
		} else if set, err := descriptors.Load(c.Descriptors, nil); err != nil && len(set.Names()) == 0 {
			// One good domain is worth starting for; the others are logged and counted.
			errs = append(errs, err)
		}
	}
	return errs
}

func (c *Config) hasCredential() bool { return c.Credential != credential.Config{} }

func (c *Config) trustDomain() (spiffeid.TrustDomain, error) {
	return spiffeid.TrustDomainFromString(c.Credential.TrustDomain)
}

func (c *Config) socketMode() (fs.FileMode, error) {
	if c.SocketMode == "" {
		return listen.UnixMode, nil
	}
	n, err := strconv.ParseUint(c.SocketMode, 8, 32)
	if err != nil || n > 0o777 || n&0o600 != 0o600 {
		return 0, fmt.Errorf("socket_mode %q: want octal from 0600 to 0777", c.SocketMode)
	}
	return fs.FileMode(n), nil
}

func (r *RedisConfig) validate() (errs []error) {
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if r.Timeout.D() < 100*time.Microsecond || r.Timeout.D() > time.Second {
		fail("redis.timeout %s: want 100us to 1s", r.Timeout)
	}
	if r.DB < 0 {
		fail("redis.db %d: is negative", r.DB)
	}
	if r.Address == "" {
		if r.Username != "" || r.PasswordFile != "" || r.TLS {
			fail("redis.address: missing, but other keys of redis are set")
		}
		return errs
	}
	if err := listen.Valid(r.Address); err != nil {
		fail("redis.address: %w", err)
	}
	if r.CAFile != "" && !r.TLS {
		fail("redis.ca_file: is for tls: true")
	}
	return errs
}

// options reads the files that the configuration names.
func (r *RedisConfig) options() (redisstore.Options, error) {
	o := redisstore.Options{Address: r.Address, Username: r.Username, DB: r.DB, Timeout: r.Timeout.D()}
	if r.PasswordFile != "" {
		data, err := os.ReadFile(r.PasswordFile)
		if err != nil {
			return o, fmt.Errorf("redis.password_file: %w", err)
		}
		o.Password = strings.TrimSpace(string(data))
	}
	if !r.TLS {
		return o, nil
	}
	o.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	if host, _, err := net.SplitHostPort(r.Address); err == nil {
		o.TLS.ServerName = host
	}
	if r.CAFile != "" {
		data, err := os.ReadFile(r.CAFile)
		if err != nil {
			return o, fmt.Errorf("redis.ca_file: %w", err)
		}
		o.TLS.RootCAs = x509.NewCertPool()
		if !o.TLS.RootCAs.AppendCertsFromPEM(data) {
			return o, fmt.Errorf("redis.ca_file %s: holds no PEM certificate", r.CAFile)
		}
	}
	return o, nil
}

// loopback says whether only processes of this machine can reach an address.
func loopback(addr string) bool {
	if strings.HasPrefix(addr, "unix:") {
		return true
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

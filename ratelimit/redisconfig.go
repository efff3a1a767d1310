package ratelimit

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/writ-mesh/writ/internal/config"
	"github.com/writ-mesh/writ/internal/listen"
	"github.com/writ-mesh/writ/internal/pemroots"
	"github.com/writ-mesh/writ/ratelimit/limit"
	"github.com/writ-mesh/writ/ratelimit/redisstore"
)

// The modes of descriptors.
const (
	modeExact  = "exact"
	modeLeased = "leased"
)

// mode is how the counters of descriptors are shared.
func (c *Config) mode() limit.Mode {
	if c.Mode == modeLeased {
		return limit.Leased
	}
	return limit.Exact
}

// RedisConfig says where the shared counters are: in a single Redis, in the master
// that Sentinel knows, or in a cluster. With none of the three they are in process.
type RedisConfig struct {
	// Address is host:port or unix:///path of a single Redis.
	Address  string         `yaml:"address"`
	Sentinel SentinelConfig `yaml:"sentinel"`
	Cluster  ClusterConfig  `yaml:"cluster"`
	Username string         `yaml:"username"`
	// PasswordFile holds the password; white space around it is cut off. Nobody but
	// the service's user may be able to read it (mode 0600).
	PasswordFile string `yaml:"password_file"`
	DB           int    `yaml:"db"`
	// TLS connects with TLS 1.2 or later and checks the server's name, to Redis and
	// to the sentinels.
	TLS bool `yaml:"tls"`
	// CAFile is a PEM file with the roots for TLS, the system's if empty.
	CAFile string `yaml:"ca_file"`
	// Timeout is how long one decision waits for Redis before this replica
	// decides alone.
	Timeout config.Duration `yaml:"timeout"`
}

// SentinelConfig says who knows the master.
type SentinelConfig struct {
	// Master is the name that the sentinels know it by.
	Master string `yaml:"master"`
	// Addresses are host:port of sentinels.
	Addresses []string `yaml:"addresses"`
	// Username and PasswordFile are for the sentinels themselves.
	Username     string `yaml:"username"`
	PasswordFile string `yaml:"password_file"`
}

// ClusterConfig says where a cluster is.
type ClusterConfig struct {
	// Addresses are host:port of some of its nodes; they tell of the others.
	Addresses []string `yaml:"addresses"`
}

// shared says that there is a Redis at all.
func (r *RedisConfig) shared() bool {
	return r.Address != "" || r.Sentinel.Master != "" || len(r.Sentinel.Addresses) > 0 || len(r.Cluster.Addresses) > 0
}

func (r *RedisConfig) validate() (errs []error) {
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if r.Timeout.D() < 100*time.Microsecond || r.Timeout.D() > time.Second {
		fail("redis.timeout %s: want 100us to 1s", r.Timeout)
	}
	if r.DB < 0 {
		fail("redis.db %d: is negative", r.DB)
	}
	if !r.shared() {
		if r.Username != "" || r.PasswordFile != "" || r.TLS {
			fail("redis.address: missing, and no sentinel nor cluster, but other keys of redis are set")
		}
		return errs
	}
	if r.CAFile != "" && !r.TLS {
		fail("redis.ca_file: is for tls: true")
	}
	return append(errs, r.validateWhere()...)
}

// validateWhere checks that there is one way to say where Redis is.
func (r *RedisConfig) validateWhere() (errs []error) {
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	sentinel := r.Sentinel.Master != "" || len(r.Sentinel.Addresses) > 0
	cluster := len(r.Cluster.Addresses) > 0
	switch {
	case r.Address != "" && (sentinel || cluster), sentinel && cluster:
		fail("redis: want one of address, sentinel and cluster")
	case r.Address != "":
		if err := listen.Valid(r.Address); err != nil {
			fail("redis.address: %w", err)
		}
	case sentinel && r.Sentinel.Master == "":
		fail("redis.sentinel.master: the name that the sentinels know the master by is missing")
	case sentinel && len(r.Sentinel.Addresses) == 0:
		fail("redis.sentinel.addresses: want host:port of at least one sentinel")
	case cluster && r.DB != 0:
		fail("redis.db %d: a cluster has no databases but 0", r.DB)
	}
	for key, list := range map[string][]string{"redis.sentinel.addresses": r.Sentinel.Addresses, "redis.cluster.addresses": r.Cluster.Addresses} {
		for _, a := range list {
			if host, port, err := net.SplitHostPort(a); err != nil || host == "" || port == "" {
				fail("%s: %q is not host:port", key, a)
			}
		}
	}
	return errs
}

// options reads the files that the configuration names.
func (r *RedisConfig) options() (o redisstore.Options, err error) {
	o = redisstore.Options{
		Address: r.Address, Cluster: r.Cluster.Addresses, Username: r.Username, DB: r.DB, Timeout: r.Timeout.D(),
		Sentinel: redisstore.Sentinel{Master: r.Sentinel.Master, Addresses: r.Sentinel.Addresses, Username: r.Sentinel.Username},
	}
	if o.Password, err = password("redis.password_file", r.PasswordFile); err != nil {
		return o, err
	}
	if o.Sentinel.Password, err = password("redis.sentinel.password_file", r.Sentinel.PasswordFile); err != nil {
		return o, err
	}
	if !r.TLS {
		return o, nil
	}
	o.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	if host, _, err := net.SplitHostPort(r.Address); err == nil {
		o.TLS.ServerName = host // elsewhere each server is known by the address it is dialed at
	}
	if r.CAFile != "" {
		roots, err := pemroots.Load(r.CAFile)
		if err != nil {
			return o, fmt.Errorf("redis.ca_file: %w", err)
		}
		o.TLS.RootCAs = roots
	}
	return o, nil
}

// password reads the file of a password; there is none without a file.
func password(key, file string) (string, error) {
	if file == "" {
		return "", nil
	}
	info, err := os.Stat(file)
	if err != nil {
		return "", fmt.Errorf("%s: %w", key, err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("%s: %s has mode %#o and is a secret: chmod 600", key, file, info.Mode().Perm())
	}
	data, err := os.ReadFile(file) //nolint:gosec // the operator's own
	if err != nil {
		return "", fmt.Errorf("%s: %w", key, err)
	}
	text := strings.TrimSpace(string(data))
	if text == "" {
		return "", errors.New(key + ": the file is empty")
	}
	return text, nil
}

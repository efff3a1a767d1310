package ratelimit

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/writ-mesh/writ/internal/config"
	"github.com/writ-mesh/writ/internal/decider"
	"github.com/writ-mesh/writ/internal/listen"
	"github.com/writ-mesh/writ/internal/service"
	"github.com/writ-mesh/writ/ratelimit/configserver"
	"github.com/writ-mesh/writ/ratelimit/descriptors"
	"github.com/writ-mesh/writ/ratelimit/memory"
	"github.com/writ-mesh/writ/ratelimit/plans"
	"github.com/writ-mesh/writ/ratelimit/redisstore"
	"github.com/writ-mesh/writ/ratelimit/regions"
)

// Config is the configuration file of writ-ratelimit.
type Config struct {
	service.Common `yaml:",inline"`
	decider.Config `yaml:",inline"`
	// Descriptors is a folder with envoyproxy/ratelimit's YAML files, for running
	// alone. It is watched. Either this or pilot is set.
	Descriptors string `yaml:"descriptors"`
	// Mode is how the counters of descriptors are shared: exact, which asks Redis for
	// each decision, or leased, from shares that it gave before. QuotaPolicies say it
	// for each limit.
	Mode   string       `yaml:"mode"`
	Redis  RedisConfig  `yaml:"redis"`
	Memory MemoryConfig `yaml:"memory"`
	// Plans are tables that QuotaPolicies name.
	Plans PlansConfig `yaml:"plans"`
	// ConfigServer has the configuration of envoyproxy/ratelimit instead of a folder.
	ConfigServer configserver.Config `yaml:"config_server"`
	// DropIn is how to answer in place of envoyproxy/ratelimit.
	DropIn DropInConfig `yaml:"drop_in"`
	// Regions are those that keep the limits together with this one.
	Regions regions.Config `yaml:"regions"`
	// Admin is the socket for operators, unix:///path; empty is none.
	Admin string `yaml:"admin"`
}

// MemoryConfig bounds the counters in process.
type MemoryConfig struct {
	// MaxKeys is how many counters are kept; the one used longest ago goes first.
	MaxKeys int `yaml:"max_keys"`
}

// DefaultConfig has the defaults filled in.
func DefaultConfig() Config {
	return Config{
		Config: decider.Config{Listen: "127.0.0.1:8081"},
		Mode:   modeExact,
		Redis:  RedisConfig{Timeout: config.Duration(redisstore.DefaultTimeout)},
		Memory: MemoryConfig{MaxKeys: memory.DefaultMaxKeys},
		Plans:  PlansConfig{MaxCallers: plans.DefaultMaxCallers},

		ConfigServer: configserver.Config{NodeID: configserver.DefaultNodeID},
		DropIn:       defaultDropIn(),
		Regions:      regions.Config{Lend: regions.DefaultLend},
	}
}

// Flags binds the flags of the service standing alone.
func (c *Config) Flags(fs *flag.FlagSet) {
	fs.StringVar(&c.Descriptors, "descriptors", c.Descriptors, "run alone, with the limits in this `folder` of envoyproxy/ratelimit's YAML files")
	fs.StringVar(&c.ConfigServer.Address, "config-server", c.ConfigServer.Address, "run alone, with the limits of envoyproxy/ratelimit's management server at this `address`")
	fs.StringVar(&c.Admin, "admin", c.Admin, "serve operators on this `socket`, unix:///path")
	fs.StringVar(&c.Listen, "listen", c.Listen, "serve on this `address`, host:port or unix:///path")
	fs.StringVar(&c.Redis.Address, "redis", c.Redis.Address, "keep the counters in the Redis at this `address`, host:port or unix:///path")
	fs.StringVar(&c.Mode, "mode", c.Mode, "how the counters of descriptors are shared: `exact`, which asks Redis for each decision, or leased, from shares that it gave before")
}

// Validate checks everything that can be checked without starting.
func (c *Config) Validate() error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Memory.MaxKeys < 1 || c.Memory.MaxKeys > 100_000_000 {
		fail("memory.max_keys %d: want 1 to 100000000", c.Memory.MaxKeys)
	}
	switch {
	case c.Mode != modeExact && c.Mode != modeLeased:
		fail("mode %q: want exact or leased", c.Mode)
	case c.Mode == modeLeased && c.Pilot != "":
		fail("mode: is for descriptors; a QuotaPolicy says it for each limit")
	}
	errs = append(errs, c.Redis.validate()...)
	errs = append(errs, c.validateSource()...)
	errs = append(errs, c.Plans.validate(c)...)
	errs = append(errs, c.DropIn.validate()...)
	if err := c.ConfigServer.Validate(); err != nil {
		errs = append(errs, err)
	}
	if err := c.Regions.Validate(); err != nil {
		errs = append(errs, err)
	}
	if c.Regions.Enabled() && c.Pilot == "" {
		fail("regions: are for QuotaPolicies: give pilot")
	}
	if c.Admin != "" {
		if _, unix := listen.Unix(c.Admin); !unix {
			fail("admin: %s: is for this machine only; use unix:///path", c.Admin)
		}
	}
	return errors.Join(errs...)
}

// validateSource checks where limits come from and what that asks for.
func (c *Config) validateSource() (errs []error) {
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	var sources []string
	for name, value := range map[string]string{"pilot": c.Pilot, "descriptors": c.Descriptors, "config_server.address": c.ConfigServer.Address} {
		if value != "" {
			sources = append(sources, name)
		}
	}
	slices.Sort(sources)
	switch len(sources) {
	case 0:
		fail("nothing to enforce: give pilot, or descriptors (-descriptors DIR) or config_server to run alone")
	case 1:
	default:
		fail("%s are both set: limits come from one of them", strings.Join(sources, " and "))
	}
	if err := c.Config.Validate(); err != nil {
		errs = append(errs, err)
	}
	if c.Descriptors != "" {
		if info, err := os.Stat(c.Descriptors); err != nil || !info.IsDir() {
			fail("descriptors %s: is not a folder", c.Descriptors)
		} else if set, err := descriptors.Load(c.Descriptors, nil, c.DropIn.MergeDomains); err != nil && len(set.Names()) == 0 {
			// One good domain is worth starting for; the others are logged and counted.
			errs = append(errs, err)
		}
	}
	return errs
}

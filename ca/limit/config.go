package limit

import (
	"errors"
	"fmt"
)

// Config says how much each caller may ask. A rate is in requests per second, a
// burst is how many may come at once after a time of rest.
type Config struct {
	// CallerRate and CallerBurst are for one node agent or service.
	CallerRate  int `yaml:"caller_rate"`
	CallerBurst int `yaml:"caller_burst"`
	// CallerCalls bounds the calls that it has under way, CallerStreams the streams.
	CallerCalls   int `yaml:"caller_calls"`
	CallerStreams int `yaml:"caller_streams"`
	// IdentityRate and IdentityBurst are for one workload's identity on one node, so
	// that a single workload does not use up what its node may ask.
	IdentityRate  int `yaml:"identity_rate"`
	IdentityBurst int `yaml:"identity_burst"`
	// JoinRate and JoinBurst are for who has no certificate yet, by his address;
	// JoinTotalRate and JoinTotalBurst for all of those together.
	JoinRate       int `yaml:"join_rate"`
	JoinBurst      int `yaml:"join_burst"`
	JoinTotalRate  int `yaml:"join_total_rate"`
	JoinTotalBurst int `yaml:"join_total_burst"`
}

// The bounds of a configuration: what is beyond is a mistake.
const (
	maxRate  = 100_000
	maxBurst = 1_000_000
)

// Default rests on what was measured (docs/performance.md): a certificate for a
// workload costs 0.4 ms of one core's time, a node that joins 1.6 ms with its TLS
// handshake. So a node with 500 workloads starts at once, twice over, and one that
// never stops asking gets 4 % of a core; strangers all together get a third of a core,
// with which 5,000 nodes whose certificates all expired are back within 20 s.
func Default() Config {
	return Config{
		CallerRate: 100, CallerBurst: 1000, CallerCalls: 64, CallerStreams: 256,
		IdentityRate: 50, IdentityBurst: 600,
		JoinRate: 10, JoinBurst: 100, JoinTotalRate: 200, JoinTotalBurst: 1000,
	}
}

// Validate checks the numbers.
func (c Config) Validate() error {
	var errs []error
	for _, f := range []struct {
		key        string
		value, max int
	}{
		{"caller_rate", c.CallerRate, maxRate},
		{"caller_burst", c.CallerBurst, maxBurst},
		{"caller_calls", c.CallerCalls, maxRate},
		{"caller_streams", c.CallerStreams, maxRate},
		{"identity_rate", c.IdentityRate, maxRate},
		{"identity_burst", c.IdentityBurst, maxBurst},
		{"join_rate", c.JoinRate, maxRate},
		{"join_burst", c.JoinBurst, maxBurst},
		{"join_total_rate", c.JoinTotalRate, maxRate},
		{"join_total_burst", c.JoinTotalBurst, maxBurst},
	} {
		if f.value < 1 || f.value > f.max {
			errs = append(errs, fmt.Errorf("limits.%s: %d is outside 1 to %d", f.key, f.value, f.max))
		}
	}
	return errors.Join(errs...)
}

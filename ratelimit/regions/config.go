package regions

import (
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-mesh/writ/internal/listen"
)

// DefaultLend is Config.Lend where it is not said.
const DefaultLend = 50

// Config says which regions keep limits together.
type Config struct {
	// Name is this region's. Empty: there are no others.
	Name string `yaml:"name"`
	// Listen is where other regions ask, host:port (mTLS).
	Listen string `yaml:"listen"`
	// Lend is how much of its part of a limit this region lends to each other one at
	// most, in percent.
	Lend int `yaml:"lend"`
	// Shares are the weights of all regions by name, the same in all of them.
	Shares map[string]int `yaml:"shares"`
	// Peers are the other regions.
	Peers []Peer `yaml:"peers"`
}

// Peer is another region.
type Peer struct {
	// Name is as in Shares.
	Name string `yaml:"name"`
	// Address is that of its ratelimit for other regions, host:port.
	Address string `yaml:"address"`
	// TrustDomain is that of its ratelimit's identity, without scheme; empty is this one's.
	TrustDomain string `yaml:"trust_domain"`
	// TrustBundle is a PEM file with the roots of another trust domain. It is read anew
	// for each connection.
	TrustBundle string `yaml:"trust_bundle"`
	// Operators lets those of that region change counters here too, as with
	// "writ limits reset --all-regions" there.
	Operators bool `yaml:"operators"`
}

// Enabled says that there are other regions.
func (c *Config) Enabled() bool { return c.Name != "" }

// Validate checks everything that can be checked without starting.
func (c *Config) Validate() error {
	if !c.Enabled() {
		if c.Listen != "" || len(c.Shares) > 0 || len(c.Peers) > 0 {
			return errors.New("regions.name: is missing")
		}
		return nil
	}
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf("regions."+format, args...)) }
	if _, unix := listen.Unix(c.Listen); unix || listen.Valid(c.Listen) != nil {
		fail("listen %q: want host:port", c.Listen)
	}
	if c.Lend < 0 || c.Lend > 100 {
		fail("lend %d: want 0 to 100 percent", c.Lend)
	}
	if _, err := NewDivision(c.Name, c.Shares); err != nil {
		fail("%w", err)
	}
	seen := map[string]bool{c.Name: true}
	for i, p := range c.Peers {
		if _, there := c.Shares[p.Name]; !there || seen[p.Name] {
			fail("peers[%d].name %q: want each other region of shares once", i, p.Name)
		}
		seen[p.Name] = true
		if err := p.validate(); err != nil {
			fail("peers[%d].%w", i, err)
		}
	}
	if len(seen) < len(c.Shares) {
		fail("peers: has %d regions, shares %d others", len(seen)-1, len(c.Shares)-1)
	}
	return errors.Join(errs...)
}

func (p *Peer) validate() error {
	if _, unix := listen.Unix(p.Address); unix || listen.Valid(p.Address) != nil {
		return fmt.Errorf("address %q: want host:port", p.Address)
	}
	if (p.TrustDomain == "") != (p.TrustBundle == "") {
		return errors.New("trust_bundle: goes with trust_domain, for a region with roots of its own")
	}
	if p.TrustDomain != "" {
		if _, err := spiffeid.TrustDomainFromString(p.TrustDomain); err != nil {
			return fmt.Errorf("trust_domain: %w", err)
		}
	}
	return nil
}

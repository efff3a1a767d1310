package etcdstore

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Config says who is in the cluster.
type Config struct {
	// Name is this member's, one of Peers.
	Name string `yaml:"name"`
	// Peers are all members by name, each with the host:port where the others reach it.
	// The set is for good.
	Peers map[string]string `yaml:"peers"`
	// Listen is the address and port where this one listens for the others; empty for
	// the port of its own on all addresses.
	Listen string `yaml:"listen"`
	// CertFile, KeyFile (mode 0600) and CAFile are for the connections between members,
	// in both directions. The authority is for nothing else.
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
	CAFile   string `yaml:"ca_file"`
}

// Options are the other parts of Open.
type Options struct {
	// Dir is where the member's data is (mode 0700).
	Dir string
	// Cluster is a name that members of different clusters do not share.
	Cluster string
	// Log gets what there is to say; nil means nothing is logged.
	Log *slog.Logger
	// Committed is called after each commit with the number of entries, how long
	// it took and whether it worked. It must not block. May be nil.
	Committed func(entries int, took time.Duration, err error)
}

// ErrRefused is wrapped by the errors of what cannot be done to a cluster as it is.
var ErrRefused = errors.New("the cluster cannot be changed so")

// maxMembers bounds a cluster: with more a commit is slower, and no safer.
const maxMembers = 7

// IsZero tells whether there is none.
func (c Config) IsZero() bool {
	return c.Name+c.Listen+c.CertFile+c.KeyFile+c.CAFile == "" && len(c.Peers) == 0
}

// Validate checks a Config without reading its files.
func (c Config) Validate() error {
	var errs []error
	if n := len(c.Peers); n%2 == 0 || n > maxMembers {
		errs = append(errs, fmt.Errorf("peers: %d members; want 3 (or 1, 5, 7), so that more than half are left when some fail", n))
	}
	hosts := make(map[string]string)
	for _, name := range slices.Sorted(maps.Keys(c.Peers)) {
		addr := c.Peers[name]
		host, _, err := net.SplitHostPort(addr)
		if _, uerr := url.Parse("https://" + addr); err != nil || uerr != nil || host == "" {
			errs = append(errs, fmt.Errorf("peers: %s: %q is no host:port", name, addr))
		}
		if name == "" || strings.ContainsAny(name, "=, ") {
			errs = append(errs, fmt.Errorf("peers: %q is no name of a member: no comma, space or equals sign", name))
		}
		if other, twice := hosts[addr]; twice {
			errs = append(errs, fmt.Errorf("peers: %s and %s are both %s", other, name, addr))
		}
		hosts[addr] = name
	}
	if _, ok := c.Peers[c.Name]; !ok {
		errs = append(errs, fmt.Errorf("name: %q is none of the peers", c.Name))
	}
	if c.Listen != "" {
		if _, err := netip.ParseAddrPort(c.Listen); err != nil {
			errs = append(errs, fmt.Errorf("listen: %q: want an address and a port, such as 0.0.0.0:2380", c.Listen))
		}
	}
	for _, f := range []struct{ key, path string }{{"cert_file", c.CertFile}, {"key_file", c.KeyFile}, {"ca_file", c.CAFile}} {
		if f.path == "" {
			errs = append(errs, errors.New(f.key+": members talk over mutual TLS only; name the file"))
		}
	}
	return errors.Join(errs...)
}

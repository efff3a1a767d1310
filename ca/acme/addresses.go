package acme

import (
	"fmt"
	"net/netip"
)

// networks say where validation may connect to: public addresses, and those that
// are listed.
type networks struct {
	allowed []netip.Prefix
	// special are of IANA's registries of special-purpose addresses (RFC 6890), of
	// multicast (RFC 5771, RFC 4291) and of what embeds IPv4 addresses in IPv6.
	special []netip.Prefix
	// own are the special ones that lead to this machine or its link; a listed network
	// opens them only if it is within one.
	own []netip.Prefix
}

func parseNetworks(texts []string) (networks, error) {
	n := networks{special: specialNetworks(), own: ownNetworks()}
	for _, t := range texts {
		p, err := netip.ParsePrefix(t)
		if err != nil || p.Masked() != p || p.Addr().Is4In6() {
			return networks{}, fmt.Errorf("%q: want a network such as 10.0.0.0/8, without bits of a host", t)
		}
		n.allowed = append(n.allowed, p)
	}
	return n, nil
}

func specialNetworks() []netip.Prefix {
	return prefixes(
		"10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16",
		"198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4",
		"64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "5f00::/16", "fc00::/7",
	)
}

func ownNetworks() []netip.Prefix {
	return prefixes("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32",
		"::/127", "fe80::/10", "fec0::/10", "ff00::/8")
}

func prefixes(texts ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(texts))
	for i, t := range texts {
		out[i] = netip.MustParsePrefix(t)
	}
	return out
}

// permits tells whether validation may connect to an address.
func (n networks) permits(a netip.Addr) bool {
	if !a.IsValid() || a.Zone() != "" {
		return false
	}
	a = a.Unmap()
	own := within(n.own, a)
	for _, p := range n.allowed {
		if p.Contains(a) && (!own.IsValid() || own.Bits() <= p.Bits() && own.Contains(p.Addr())) {
			return true
		}
	}
	return !own.IsValid() && !within(n.special, a).IsValid()
}

// within gives the first network that has an address; the zero Prefix for none.
func within(networks []netip.Prefix, a netip.Addr) netip.Prefix {
	for _, p := range networks {
		if p.Contains(a) {
			return p
		}
	}
	return netip.Prefix{}
}

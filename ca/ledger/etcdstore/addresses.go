//go:build etcd

package etcdstore

import (
	"maps"
	"net"
	"slices"
	"strings"
)

// hosts are those of all members.
func (c Config) hosts() []string {
	out := make(map[string]struct{})
	for _, addr := range c.Peers {
		host, _, err := net.SplitHostPort(addr)
		if err == nil {
			out[host] = struct{}{}
		}
	}
	return slices.Sorted(maps.Keys(out))
}

// listen is where this member listens.
func (c Config) listen() string {
	if c.Listen != "" {
		return c.Listen
	}
	_, port, err := net.SplitHostPort(c.Peers[c.Name])
	if err != nil {
		return ""
	}
	return net.JoinHostPort("0.0.0.0", port)
}

// cluster is all members in the form that etcd has for them.
func (c Config) cluster() string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(c.Peers)) {
		out = append(out, name+"=https://"+c.Peers[name])
	}
	return strings.Join(out, ",")
}

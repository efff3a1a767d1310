package proxyconfig

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strings"
)

// listenerState is a listener as it was at one time.
type listenerState struct {
	Version  string          `json:"version_info"`
	Listener json.RawMessage `json:"listener"`
}

func (d *Dump) listeners(raw json.RawMessage) error {
	var in struct {
		Static  []listenerState `json:"static_listeners"`
		Dynamic []struct {
			Name     string         `json:"name"`
			Active   *listenerState `json:"active_state"`
			Warming  *listenerState `json:"warming_state"`
			Draining *listenerState `json:"draining_state"`
			Error    *failure       `json:"error_state"`
		} `json:"dynamic_listeners"`
	}
	if err := json.Unmarshal(raw, &in); err != nil {
		return err
	}
	add := func(l *listenerState, state, refused string) error {
		if l == nil {
			return nil
		}
		out, err := listenerOf(l, state)
		out.Error = refused
		d.Listeners = append(d.Listeners, out)
		return err
	}
	for _, l := range in.Dynamic {
		if l.Active == nil && l.Warming == nil && l.Draining == nil && l.Error != nil { // it never had one that was good
			d.Listeners = append(d.Listeners, Listener{resource: resource{Name: l.Name, State: Refused, Error: l.Error.Details}, Chains: []Chain{}})
		}
		for _, s := range []struct {
			of   *listenerState
			name string
		}{{l.Active, active}, {l.Warming, warming}, {l.Draining, draining}} {
			if err := add(s.of, s.name, l.Error.text()); err != nil {
				return fmt.Errorf("listener %s: %w", l.Name, err)
			}
		}
	}
	for i := range in.Static {
		if err := add(&in.Static[i], static, ""); err != nil {
			return fmt.Errorf("a static listener: %w", err)
		}
	}
	return nil
}

func listenerOf(s *listenerState, state string) (Listener, error) {
	var l struct {
		Name     string          `json:"name"`
		Address  address         `json:"address"`
		Internal json.RawMessage `json:"internal_listener"`
		Chains   []filterChain   `json:"filter_chains"`
		Default  *filterChain    `json:"default_filter_chain"`
	}
	err := json.Unmarshal(s.Listener, &l)
	out := Listener{
		resource: resource{Name: l.Name, Version: s.Version, State: state, Config: s.Listener},
		Address:  cmp.Or(l.Address.Socket.Address, l.Address.Pipe.Path, l.Address.Internal.Listener), Port: l.Address.Socket.Port, Chains: []Chain{},
	}
	if l.Internal != nil {
		out.Address = "inside Envoy"
	}
	for _, c := range l.Chains {
		out.Chains = append(out.Chains, Chain{c.Name, c.Match.text(), c.destination()})
	}
	if l.Default != nil {
		out.Chains = append(out.Chains, Chain{l.Default.Name, "what no other chain takes", l.Default.destination()})
	}
	return out, err
}

type filterChain struct {
	Name    string     `json:"name"`
	Match   chainMatch `json:"filter_chain_match"`
	Filters []struct {
		Config struct {
			Type string `json:"@type"`
			RDS  struct {
				Name string `json:"route_config_name"`
			} `json:"rds"`
			Inline   *routeConfig      `json:"route_config"`
			Cluster  string            `json:"cluster"`
			Weighted *weightedClusters `json:"weighted_clusters"`
		} `json:"typed_config"`
	} `json:"filters"`
}

func (c *filterChain) destination() string {
	for _, f := range c.Filters {
		switch f := f.Config; {
		case strings.HasSuffix(f.Type, ".HttpConnectionManager") && f.Inline != nil:
			return "routes inside the listener"
		case strings.HasSuffix(f.Type, ".HttpConnectionManager"):
			return "routes " + f.RDS.Name
		case strings.HasSuffix(f.Type, ".TcpProxy") && f.Weighted != nil:
			return "cluster " + f.Weighted.text()
		case strings.HasSuffix(f.Type, ".TcpProxy"):
			return "cluster " + f.Cluster
		}
	}
	return "nowhere"
}

// chainMatch is what a filter chain wants of a connection.
type chainMatch struct {
	Port      uint32   `json:"destination_port"`
	Names     []string `json:"server_names"`
	Transport string   `json:"transport_protocol"`
	Protocols []string `json:"application_protocols"`
	To        []block  `json:"prefix_ranges"`
	From      []block  `json:"source_prefix_ranges"`
	Direct    []block  `json:"direct_source_prefix_ranges"`
}

type block struct {
	Address string `json:"address_prefix"`
	Length  int    `json:"prefix_len"`
}

func (m *chainMatch) text() string {
	var parts []string
	add := func(name string, values []string) {
		if len(values) > 0 {
			parts = append(parts, name+" "+strings.Join(values, " or "))
		}
	}
	blocks := func(all []block) (out []string) {
		for _, b := range all {
			out = append(out, fmt.Sprintf("%s/%d", b.Address, b.Length))
		}
		return out
	}
	add("to", blocks(m.To))
	if m.Port != 0 {
		parts = append(parts, fmt.Sprintf("port %d", m.Port))
	}
	add("from", blocks(append(m.From, m.Direct...)))
	if m.Transport != "" {
		parts = append(parts, m.Transport)
	}
	add("SNI", m.Names)
	add("ALPN", m.Protocols)
	if len(parts) == 0 {
		return "all"
	}
	return strings.Join(parts, ", ")
}

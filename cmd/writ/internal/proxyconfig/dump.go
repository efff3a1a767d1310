// Package proxyconfig reads what an Envoy says of its own configuration: the answers of
// /config_dump?include_eds and of /clusters?format=json of its administration interface
// (https://www.envoyproxy.io/docs/envoy/latest/operations/admin).
package proxyconfig

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Dump is the answer of /config_dump, without the bootstrap, in which is the secret by
// which the node agent knows its own Envoy.
type Dump struct {
	Clusters  []Cluster
	Listeners []Listener
	Routes    []Route
	Secrets   []Secret
}

// States in which Envoy has a resource. Of those that it refused it keeps what it had before.
const (
	active   = "active"
	warming  = "warming"
	draining = "draining"
	// Refused is that of a resource of which it never had one that was good.
	Refused = "refused"
	static  = "static"
)

// resource is what all kinds have.
type resource struct {
	Name string `json:"name"`
	// Version is the version of the xDS server, "" for what the bootstrap says.
	Version string `json:"version,omitempty"`
	State   string `json:"state"`
	// Error is why Envoy refused a newer one.
	Error string `json:"error,omitempty"`
	// Config is the resource as Envoy has it, in the JSON form of its protocol buffer.
	Config json.RawMessage `json:"config,omitempty"`
}

// Cluster is where requests can go. Host, Port, Subset and Direction are what its name
// says, if it is of the form DIRECTION|PORT|SUBSET|HOST.
type Cluster struct {
	resource
	Host      string `json:"host"`
	Port      string `json:"port,omitempty"`
	Subset    string `json:"subset,omitempty"`
	Direction string `json:"direction,omitempty"`
	Type      string `json:"type"`
}

// Listener is a socket at which Envoy takes connections.
type Listener struct {
	resource
	Address string  `json:"address"`
	Port    uint32  `json:"port"`
	Chains  []Chain `json:"chains"`
}

// Chain says what becomes of some of a listener's connections.
type Chain struct {
	Name        string `json:"name,omitempty"`
	Match       string `json:"match"`
	Destination string `json:"destination"`
}

// Route is one route of a virtual host of a route configuration, whose name it has.
type Route struct {
	resource
	VirtualHost string   `json:"virtualHost"`
	Domains     []string `json:"domains"`
	Match       string   `json:"match"`
	Destination string   `json:"destination"`
}

// Parse reads an answer of /config_dump.
func Parse(data []byte) (*Dump, error) {
	var all struct {
		Configs []json.RawMessage `json:"configs"`
	}
	if err := unmarshal(data, &all); err != nil {
		return nil, fmt.Errorf("no answer of /config_dump: %w", err)
	}
	if all.Configs == nil {
		return nil, errors.New(`no answer of /config_dump: it has no "configs"`)
	}
	out := &Dump{Clusters: []Cluster{}, Listeners: []Listener{}, Routes: []Route{}, Secrets: []Secret{}}
	for i, raw := range all.Configs {
		var kind struct {
			Type string `json:"@type"`
		}
		err := json.Unmarshal(raw, &kind)
		if err == nil {
			switch _, name, _ := strings.Cut(kind.Type, "envoy.admin.v3."); name {
			case "ClustersConfigDump":
				err = out.clusters(raw)
			case "ListenersConfigDump":
				err = out.listeners(raw)
			case "RoutesConfigDump":
				err = out.routes(raw)
			case "SecretsConfigDump":
				err = out.secrets(raw)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("configs[%d] %s: %w", i, kind.Type, err)
		}
	}
	return out, nil
}

// unmarshal reads one value and wants nothing behind it.
func unmarshal(data []byte, into any) error {
	if len(bytes.TrimSpace(data)) == 0 {
		return errors.New("it is empty")
	}
	return json.Unmarshal(data, into)
}

// versioned is how Envoy gives a resource that came from a server.
type versioned struct {
	Name     string          `json:"name"`
	Version  string          `json:"version_info"`
	Cluster  json.RawMessage `json:"cluster"`
	Listener json.RawMessage `json:"listener"`
	Routes   json.RawMessage `json:"route_config"`
	Secret   json.RawMessage `json:"secret"`
	Error    *failure        `json:"error_state"`
}

// failure is why a resource was refused.
type failure struct {
	Details string `json:"details"`
}

func (f *failure) text() string {
	if f == nil {
		return ""
	}
	return f.Details
}

func (d *Dump) clusters(raw json.RawMessage) error {
	var in struct {
		Static  []versioned `json:"static_clusters"`
		Active  []versioned `json:"dynamic_active_clusters"`
		Warming []versioned `json:"dynamic_warming_clusters"`
	}
	if err := json.Unmarshal(raw, &in); err != nil {
		return err
	}
	for state, all := range each(in.Active, in.Warming, in.Static) {
		for _, v := range all {
			c, err := clusterOf(v, state)
			if err != nil {
				return err
			}
			d.Clusters = append(d.Clusters, c)
		}
	}
	return nil
}

// each goes through the lists of a dump by state.
func each(now, next, fixed []versioned) func(yield func(string, []versioned) bool) {
	return func(yield func(string, []versioned) bool) {
		_ = yield(active, now) && yield(warming, next) && yield(static, fixed)
	}
}

func clusterOf(v versioned, state string) (Cluster, error) {
	var c struct {
		Name string `json:"name"`
		Type string `json:"type"`
		Kind *struct {
			Name string `json:"name"`
		} `json:"cluster_type"`
	}
	if err := json.Unmarshal(v.Cluster, &c); err != nil {
		return Cluster{}, fmt.Errorf("a cluster: %w", err)
	}
	out := Cluster{resource: resource{Name: c.Name, Version: v.Version, State: state, Error: v.Error.text(), Config: v.Cluster}, Host: c.Name, Type: c.Type}
	switch {
	case c.Kind != nil:
		out.Type = c.Kind.Name
	case c.Type == "":
		out.Type = "STATIC" // which Envoy leaves out
	}
	out.Direction, out.Port, out.Subset, out.Host = nameParts(c.Name)
	return out, nil
}

// nameParts takes a name of the form DIRECTION|PORT|SUBSET|HOST apart; another one is all host.
func nameParts(name string) (direction, port, subset, host string) {
	parts := strings.Split(name, "|")
	if len(parts) != 4 {
		return "", "", "", name
	}
	if _, err := strconv.ParseUint(parts[1], 10, 16); err != nil {
		return "", "", "", name
	}
	return parts[0], parts[1], parts[2], parts[3]
}

func (d *Dump) routes(raw json.RawMessage) error {
	var in struct {
		Static  []versioned `json:"static_route_configs"`
		Dynamic []versioned `json:"dynamic_route_configs"`
	}
	if err := json.Unmarshal(raw, &in); err != nil {
		return err
	}
	for state, all := range each(in.Dynamic, nil, in.Static) {
		for _, v := range all {
			var c routeConfig
			if err := json.Unmarshal(v.Routes, &c); err != nil {
				return fmt.Errorf("a route configuration: %w", err)
			}
			r := resource{Name: c.Name, Version: v.Version, State: state, Error: v.Error.text()}
			more, err := c.all(r)
			if err != nil {
				return fmt.Errorf("route configuration %s: %w", c.Name, err)
			}
			d.Routes = append(d.Routes, more...)
		}
	}
	return nil
}

type routeConfig struct {
	Name         string `json:"name"`
	VirtualHosts []struct {
		Name    string            `json:"name"`
		Domains []string          `json:"domains"`
		Routes  []json.RawMessage `json:"routes"`
	} `json:"virtual_hosts"`
}

func (c *routeConfig) all(r resource) ([]Route, error) {
	var out []Route
	for _, vh := range c.VirtualHosts {
		for _, raw := range vh.Routes {
			var in route
			if err := json.Unmarshal(raw, &in); err != nil {
				return nil, fmt.Errorf("a route of %s: %w", vh.Name, err)
			}
			r.Config = raw
			out = append(out, Route{resource: r, VirtualHost: vh.Name, Domains: vh.Domains, Match: in.Match.text(), Destination: in.destination()})
		}
	}
	return out, nil
}

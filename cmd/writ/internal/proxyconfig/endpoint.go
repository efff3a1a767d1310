package proxyconfig

import (
	"errors"
	"fmt"
	"net"
	"strconv"
)

// Endpoint is one of the addresses of a cluster, as Envoy counts on it.
type Endpoint struct {
	Cluster string `json:"cluster"`
	Address string `json:"address"`
	// Health is what pilot says of it and its own checks, in Envoy's words.
	Health string `json:"health"`
	// Ejected says that it answered too badly of late (outlier detection).
	Ejected  bool   `json:"ejected"`
	Weight   uint32 `json:"weight"`
	Priority uint32 `json:"priority"`
	// Locality is REGION/ZONE/SUBZONE.
	Locality string `json:"locality,omitempty"`
}

// ParseEndpoints reads an answer of /clusters?format=json.
func ParseEndpoints(data []byte) ([]Endpoint, error) {
	var all struct {
		Clusters []struct {
			Name  string `json:"name"`
			Hosts []host `json:"host_statuses"`
		} `json:"cluster_statuses"`
	}
	if err := unmarshal(data, &all); err != nil {
		return nil, fmt.Errorf("no answer of /clusters?format=json: %w", err)
	}
	if all.Clusters == nil {
		return nil, errors.New(`no answer of /clusters?format=json: it has no "cluster_statuses"`)
	}
	out := []Endpoint{}
	for _, c := range all.Clusters {
		for i := range c.Hosts {
			e := c.Hosts[i].endpoint()
			e.Cluster = c.Name
			out = append(out, e)
		}
	}
	return out, nil
}

// address is a socket's, that of a unix socket, or that of a listener inside Envoy.
type address struct {
	Socket struct {
		Address string `json:"address"`
		Port    uint32 `json:"port_value"`
	} `json:"socket_address"`
	Pipe struct {
		Path string `json:"path"`
	} `json:"pipe"`
	Internal struct {
		Listener string `json:"server_listener_name"`
	} `json:"envoy_internal_address"`
}

// host is how Envoy tells an endpoint. What is 0, false or empty it leaves out.
type host struct {
	Address address `json:"address"`
	Health  struct {
		EDS     string `json:"eds_health_status"`
		Outlier bool   `json:"failed_outlier_check"`
		Active  bool   `json:"failed_active_health_check"`
	} `json:"health_status"`
	Weight   uint32 `json:"weight"`
	Priority uint32 `json:"priority"`
	Locality struct {
		Region  string `json:"region"`
		Zone    string `json:"zone"`
		Subzone string `json:"sub_zone"`
	} `json:"locality"`
}

func (h *host) endpoint() Endpoint {
	e := Endpoint{Health: h.Health.EDS, Ejected: h.Health.Outlier, Weight: h.Weight, Priority: h.Priority}
	switch a := h.Address; {
	case a.Socket.Address != "":
		e.Address = net.JoinHostPort(a.Socket.Address, strconv.FormatUint(uint64(a.Socket.Port), 10))
	case a.Pipe.Path != "":
		e.Address = "unix://" + a.Pipe.Path
	default:
		e.Address = "inside Envoy: " + a.Internal.Listener
	}
	if h.Health.Active {
		e.Health = "FAILED"
	}
	if l := h.Locality; l.Region != "" {
		e.Locality = l.Region
		if l.Zone != "" {
			e.Locality += "/" + l.Zone
		}
		if l.Subzone != "" {
			e.Locality += "/" + l.Subzone
		}
	}
	return e
}

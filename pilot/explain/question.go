package explain

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/writ-mesh/writ/pilot/model"
)

// Outside is a caller without an identity of the mesh.
const Outside = "outside"

// Question is one request.
type Question struct {
	// From is <namespace>/<service account>, the name of a workload, a SPIFFE ID, or
	// Outside.
	From string `json:"from"`
	// To is the host of a service, the name of a workload or of a gateway; a port may
	// follow.
	To     string `json:"to"`
	Port   uint32 `json:"port,omitempty"`
	Method string `json:"method,omitempty"`
	Path   string `json:"path,omitempty"`
	// Host is To's if empty.
	Host string `json:"host,omitempty"`
	// Headers have names in lower case, and values joined by commas where several lines
	// have one name. Lines are these lines.
	Headers map[string]string   `json:"headers,omitempty"`
	Lines   map[string][]string `json:"-"`
	// Token is a JWT; it is put where the workload looks for one.
	Token    string     `json:"-"`
	SourceIP netip.Addr `json:"sourceIp,omitzero"`
	SNI      string     `json:"sni,omitempty"`
	// Live says that the mesh is one that runs: it has what is revoked, and what came
	// from the sources of lists. Files alone have neither.
	Live bool `json:"live,omitempty"`
}

// caller is who From is.
type caller struct {
	// principal is the SPIFFE ID without scheme, empty for nobody.
	principal string
	address   netip.Addr
	namespace string
	// proxy is one of its Envoys, nil if the mesh has none.
	proxy *model.Proxy
}

func findCaller(m *model.Mesh, from string) (caller, error) {
	if from == Outside {
		return caller{}, nil
	}
	id, spiffe := strings.CutPrefix(from, "spiffe://")
	parts := strings.Split(id, "/")
	switch {
	case len(parts) == 5 && parts[1] == "ns" && parts[3] == "sa":
	case spiffe:
		return caller{}, fmt.Errorf("%q is not the SPIFFE ID of a workload: spiffe://TRUSTDOMAIN/ns/NAMESPACE/sa/ACCOUNT", from)
	case len(parts) == 2 && parts[0] != "" && parts[1] != "":
		id = m.TrustDomain + "/ns/" + parts[0] + "/sa/" + parts[1]
	default:
		p := proxiesNamed(m, from)
		if len(p) == 0 {
			return caller{}, fmt.Errorf("no workload %q: name a workload, NAMESPACE/ACCOUNT, a SPIFFE ID, or %s", from, Outside)
		}
		return caller{principalOf(m, p[0]), p[0].Address, p[0].Namespace, p[0]}, nil
	}
	c := caller{principal: id, namespace: strings.Split(id, "/")[2]}
	for _, p := range m.Proxies {
		if principalOf(m, p) == id {
			c.address, c.proxy = p.Address, p
			break
		}
	}
	return c, nil
}

func principalOf(m *model.Mesh, p *model.Proxy) string {
	return m.TrustDomain + "/ns/" + p.Namespace + "/sa/" + p.ServiceAccount
}

// workloadOf is the name of a replica without its number.
func workloadOf(p *model.Proxy) string {
	if i := strings.LastIndexByte(p.Name, '-'); i > 0 && p.Type == model.SidecarProxy {
		if _, err := strconv.ParseUint(p.Name[i+1:], 10, 32); err == nil {
			return p.Name[:i]
		}
	}
	return p.Name
}

// proxiesNamed gives the replicas that a name means: one replica, all of a workload,
// each also as <namespace>/<name>.
func proxiesNamed(m *model.Mesh, name string) []*model.Proxy {
	var out []*model.Proxy
	for _, p := range m.Proxies {
		names := []string{p.Name, workloadOf(p)}
		if slices.Contains(names, name) || slices.Contains([]string{p.Namespace + "/" + names[0], p.Namespace + "/" + names[1]}, name) {
			out = append(out, p)
		}
	}
	return out
}

// target is a port of a workload that a request goes to.
type target struct {
	proxy *model.Proxy
	port  model.WorkloadPort
	host  string
	// sni is the server name that a caller's Envoy sends for the service, whose port is
	// servicePort; nil if To is no service.
	sni         string
	service     *model.Service
	servicePort uint32
}

// findTargets finds the workloads behind To, one replica of each.
func findTargets(m *model.Mesh, q *Question, from string) ([]target, error) {
	name, port := q.To, q.Port
	if host, p, err := net.SplitHostPort(q.To); err == nil {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("%q: bad port", q.To)
		}
		name, port = host, uint32(n)
	}
	if from == "" {
		from = "default"
	}
	if s := m.ServiceCalled(name, from); s != nil {
		out, err := serviceTargets(s, port)
		for i := range out {
			out[i].host = q.To
		}
		return out, err
	}
	proxies := proxiesNamed(m, name)
	if len(proxies) == 0 {
		return nil, fmt.Errorf("%q is no service that namespace %s sees, no workload and no gateway of this mesh", name, from)
	}
	var out []target
	for _, p := range onePerWorkload(proxies) {
		if p.Type == model.GatewayProxy {
			w, err := gatewayPort(m, p, port)
			if err != nil {
				return nil, err
			}
			out = append(out, target{proxy: p, port: w, host: q.To})
			continue
		}
		w, err := portOf(p, port)
		if err != nil {
			return nil, err
		}
		out = append(out, target{proxy: p, port: w, host: q.To})
	}
	return out, nil
}

func serviceTargets(s *model.Service, port uint32) ([]target, error) {
	if port == 0 {
		if len(s.Ports) != 1 {
			return nil, fmt.Errorf("%s has %d ports: name one", s.Hostname, len(s.Ports))
		}
		port = s.Ports[0].Port
	}
	byProxy := map[*model.Proxy]uint32{}
	var proxies []*model.Proxy
	for _, e := range s.Endpoints {
		if at, ok := e.Ports[port]; ok && e.Proxy != nil {
			byProxy[e.Proxy] = at
			proxies = append(proxies, e.Proxy)
		}
	}
	if len(proxies) == 0 {
		return nil, fmt.Errorf("%s has no workload of the mesh behind port %d", s.Hostname, port)
	}
	var out []target
	for _, p := range onePerWorkload(proxies) {
		w, err := portOf(p, byProxy[p])
		if err != nil {
			return nil, err
		}
		out = append(out, target{proxy: p, port: w, sni: fmt.Sprintf("outbound_.%d_._.%s", port, s.Hostname), service: s, servicePort: port})
	}
	return out, nil
}

func onePerWorkload(proxies []*model.Proxy) []*model.Proxy {
	seen := map[string]bool{}
	return slices.DeleteFunc(slices.Clone(proxies), func(p *model.Proxy) bool {
		key := p.Namespace + "/" + workloadOf(p)
		if seen[key] {
			return true
		}
		seen[key] = true
		return false
	})
}

// gatewayPort is one of those that the gateway opens, its only one if none is named.
func gatewayPort(m *model.Mesh, p *model.Proxy, port uint32) (model.WorkloadPort, error) {
	ports := portsOf(m, p)
	if len(ports) == 0 { // its Gateway is not known: it is asked as a port of HTTP
		return model.WorkloadPort{Port: port, Protocol: model.HTTP}, nil
	}
	if moved, ok := p.GatewayPorts[port]; ok {
		port = moved
	}
	opened := *p
	opened.Ports = ports
	return portOf(&opened, port)
}

func portOf(p *model.Proxy, port uint32) (model.WorkloadPort, error) {
	if port == 0 && len(p.Ports) == 1 {
		return p.Ports[0], nil
	}
	var known []string
	for _, w := range p.Ports {
		if w.Port == port {
			return w, nil
		}
		known = append(known, strconv.FormatUint(uint64(w.Port), 10))
	}
	return model.WorkloadPort{}, fmt.Errorf("%s/%s listens on the ports %s: name one of them", p.Namespace, p.Name, strings.Join(known, ", "))
}

package meshdir

import (
	"cmp"
	"slices"
	"strings"

	"istio.io/api/label"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/writ-mesh/writ/pilot/model"
)

// checkServiceEntry follows the rules of Istio's validation of the kind.
func checkServiceEntry(c *checker) {
	se := c.object.spec.(*networking.ServiceEntry)
	if len(se.Hosts) == 0 {
		c.errorf("spec.hosts", "a ServiceEntry needs at least one host")
	}
	for i, h := range se.Hosts {
		at := index("spec.hosts", i)
		if h == "*" {
			c.errorf(at, "the host * is not allowed: name the hosts")
		} else if c.host(at, h) && strings.HasPrefix(h, "*") && !strings.HasPrefix(h, "*.") && se.Resolution != networking.ServiceEntry_DYNAMIC_DNS {
			c.warnf(at, "%q is a wildcard within a name, which Istio takes for whole domains only: write *. before a domain", h)
		}
	}
	for i, a := range se.Addresses {
		c.network(index("spec.addresses", i), a)
		if strings.Contains(a, "/") && se.Resolution != networking.ServiceEntry_NONE && se.Resolution != networking.ServiceEntry_STATIC {
			c.errorf(index("spec.addresses", i), "a CIDR block needs resolution NONE or STATIC")
		}
	}
	if se.WorkloadSelector != nil {
		c.workloadSelector("spec.workloadSelector", "labels", true, se.WorkloadSelector.Labels)
		if len(se.Endpoints) > 0 {
			c.errorf("spec.endpoints", "only one of endpoints and workloadSelector can be given")
		}
	}
	ports := c.entryPorts(se)
	c.portsAlone(se)
	c.resolution(se, ports)
	c.hostsAsAddresses(se)
	c.exportTo(se.ExportTo, false, true)
}

func (c *checker) entryPorts(se *networking.ServiceEntry) map[string]bool {
	names, numbers := map[string]bool{}, map[uint32]bool{}
	for i, p := range se.Ports {
		at := index("spec.ports", i)
		switch {
		case !isAnyLabel(p.Name):
			c.errorf(at+".name", "%q is not a port name: use letters, digits and '-'", shorten(p.Name))
		case names[p.Name]:
			c.errorf(at+".name", "the port name %q is given twice", p.Name)
		case numbers[p.Number]:
			c.errorf(at+".number", "the port %d is given twice", p.Number)
		}
		names[p.Name], numbers[p.Number] = true, true
		c.port(at+".number", p.Number)
		if p.TargetPort != 0 {
			c.port(at+".targetPort", p.TargetPort)
		}
		protocol, known := protocolOf(p.Protocol)
		if p.Protocol != "" && !known {
			c.errorf(at+".protocol", "unknown protocol %q: it is one of %s", shorten(p.Protocol), protocolNames)
		}
		encrypted := strings.EqualFold(p.Protocol, "HTTPS") || strings.EqualFold(p.Protocol, "TLS")
		if se.Resolution != networking.ServiceEntry_NONE && len(se.Hosts) > 1 && !protocol.IsHTTP() && !encrypted {
			c.errorf(at+".protocol", "several hosts need a protocol that names the host, such as HTTP or TLS: write one ServiceEntry for each host")
		}
	}
	return names
}

// portsAlone warns of TCP ports of hosts that get no address, neither here nor by Istio,
// which allocates one otherwise.
func (c *checker) portsAlone(se *networking.ServiceEntry) {
	wildcard := slices.ContainsFunc(se.Hosts, func(h string) bool { return strings.HasPrefix(h, "*") })
	allocated := se.Resolution != networking.ServiceEntry_NONE && !wildcard && !strings.EqualFold(c.object.meta.Labels[label.NetworkingEnableAutoallocateIp.Name], "false")
	if len(se.Addresses) > 0 || allocated {
		return
	}
	for i, p := range se.Ports {
		if strings.EqualFold(p.Protocol, "TCP") || p.Protocol == "" && !saysProtocol(p.Name, "") {
			c.warnf(index("spec.ports", i), "without addresses only its number tells connections to port %d from others: give addresses", p.Number)
		}
	}
}

func (c *checker) resolution(se *networking.ServiceEntry, ports map[string]bool) {
	switch se.Resolution {
	case networking.ServiceEntry_NONE:
		if len(se.Endpoints) > 0 {
			c.errorf("spec.endpoints", "resolution NONE goes to the address that the caller asked for: remove endpoints, or write resolution STATIC")
		}
		if se.WorkloadSelector != nil {
			c.warnf("spec.workloadSelector", "resolution NONE goes to the address that the caller asked for, not to workloads: remove it, or write resolution STATIC")
		}
	case networking.ServiceEntry_STATIC:
		for i, e := range se.Endpoints {
			c.workloadEntry(index("spec.endpoints", i), e, ports, false)
		}
	case networking.ServiceEntry_DNS, networking.ServiceEntry_DNS_ROUND_ROBIN:
		if len(se.Endpoints) == 0 {
			c.resolvableHosts(se)
		}
		c.addressOfHosts(se)
		if se.Resolution == networking.ServiceEntry_DNS_ROUND_ROBIN && len(se.Endpoints) > 1 {
			c.errorf("spec.endpoints", "resolution DNS_ROUND_ROBIN takes at most one endpoint")
		}
		for i, e := range se.Endpoints {
			at := index("spec.endpoints", i)
			if strings.HasPrefix(e.Address, unixPrefix) {
				c.errorf(at+".address", "a unix socket is not looked up: write resolution STATIC")
			}
			c.workloadEntry(at, e, ports, true)
		}
	case networking.ServiceEntry_DYNAMIC_DNS:
		c.dynamicDNS(se)
	default:
		c.errorf("spec.resolution", "%s is not supported by this version: write STATIC, DNS, DNS_ROUND_ROBIN, DYNAMIC_DNS or NONE", se.Resolution)
	}
}

// dynamicDNS: only the request says which name is meant.
func (c *checker) dynamicDNS(se *networking.ServiceEntry) {
	for i, h := range se.Hosts {
		if !strings.HasPrefix(h, "*") {
			c.errorf(index("spec.hosts", i), "resolution DYNAMIC_DNS is for wildcards: write resolution DNS for %q", shorten(h))
		}
	}
	if len(se.Addresses) > 0 {
		c.errorf("spec.addresses", "with resolution DYNAMIC_DNS the hosts alone say what is meant: remove addresses")
	}
	if len(se.Endpoints) > 0 {
		c.errorf("spec.endpoints", "resolution DYNAMIC_DNS looks up the name that the caller asked for: remove endpoints, or write resolution STATIC")
	}
	for i, p := range se.Ports {
		if !slices.Contains([]string{"HTTP", "HTTP2", "GRPC", "TLS"}, strings.ToUpper(p.Protocol)) {
			c.errorf(index("spec.ports", i)+".protocol", "resolution DYNAMIC_DNS needs a protocol that names the host: HTTP, HTTP2, GRPC or TLS")
		}
	}
}

func (c *checker) resolvableHosts(se *networking.ServiceEntry) {
	for i, h := range se.Hosts {
		if problem := hostProblem(h, false); problem != "" {
			c.errorf(index("spec.hosts", i), "%q cannot be resolved: with resolution %s and no endpoints the host must be a full name", shorten(h), se.Resolution)
		}
	}
}

// addressOfHosts: a connection to an address that several hosts share belongs to one.
func (c *checker) addressOfHosts(se *networking.ServiceEntry) {
	if len(se.Addresses) == 0 || len(se.Hosts) < 2 {
		return
	}
	for i, p := range se.Ports {
		if protocol, _ := protocolOf(p.Protocol); p.Protocol != "" && !protocol.IsHTTP() && protocol != model.UDP {
			c.warnf(index("spec.ports", i), "several hosts share the addresses, and connections to a port of protocol %s may not say which they mean: write one ServiceEntry for each host", p.Protocol)
			return
		}
	}
}

// hostsAsAddresses: without endpoints the hosts themselves are asked for.
func (c *checker) hostsAsAddresses(se *networking.ServiceEntry) {
	if len(se.Endpoints) > 0 || se.WorkloadSelector != nil || se.Resolution == networking.ServiceEntry_STATIC {
		return
	}
	for i, h := range se.Hosts {
		for _, p := range se.Ports {
			if problem := c.options.addressProblem(strings.TrimPrefix(h, "*"), cmp.Or(p.TargetPort, p.Number)); problem != "" {
				c.errorf(index("spec.hosts", i), "%s:%d %s", shorten(h), cmp.Or(p.TargetPort, p.Number), problem)
			}
		}
	}
	for i, a := range se.Addresses {
		for _, p := range se.Ports {
			if problem := c.options.blockProblem(a, p.Number); problem != "" && se.Resolution == networking.ServiceEntry_NONE {
				c.errorf(index("spec.addresses", i), "%s:%d %s", shorten(a), p.Number, problem)
			}
		}
	}
}

func checkWorkloadEntryObject(c *checker) {
	c.workloadEntry("spec", c.object.spec.(*networking.WorkloadEntry), nil, true)
}

// workloadEntry checks an endpoint; ports are those of the service, nil if
// unknown, and names says whether the address may be a host name.
func (c *checker) workloadEntry(at string, e *networking.WorkloadEntry, ports map[string]bool, names bool) {
	unix, isUnix := strings.CutPrefix(e.Address, unixPrefix)
	switch {
	case e.Address == "" && e.Network == "":
		c.errorf(at+".address", "an address is missing")
	case e.Address == "":
		c.warnf(at+".address", "without an address nothing is sent here")
	case isUnix:
		c.unixPath(at+".address", unix)
		if len(e.Ports) > 0 {
			c.errorf(at+".ports", "a unix socket has no ports: remove them")
		}
		if ports != nil && len(ports) != 1 {
			c.errorf(at+".address", "a unix socket needs a service with exactly one port")
		}
	case !isIP(e.Address) && (!names || hostProblem(e.Address, false) != ""):
		want := "an IP address"
		if names {
			want = "an IP address or a host name"
		}
		c.errorf(at+".address", "%q is not %s", shorten(e.Address), want)
	}
	for name, port := range e.Ports {
		place := at + ".ports[" + name + "]"
		c.port(place, port)
		if problem := c.options.addressProblem(e.Address, port); problem != "" && !isUnix {
			c.errorf(place, "%s:%d %s", shorten(e.Address), port, problem)
		}
		if !isAnyLabel(name) {
			c.errorf(place, "%q is not a port name: use letters, digits and '-'", shorten(name))
		}
		if ports != nil && !ports[name] {
			c.errorf(place, "the service has no port named %q", shorten(name))
		}
	}
	c.labels(at+".labels", e.Labels)
	c.withoutEffect(e.Address != "" && e.Network != "", at+".network")
}

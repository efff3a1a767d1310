package meshdir

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/writ-mesh/writ/pilot/model"
)

// What one EndpointSlice may hold, as the API of Kubernetes has it
// (discovery.k8s.io/v1, EndpointSlice and Endpoint).
const (
	maxSliceEndpoints = 1000
	maxSliceAddresses = 100 // of one endpoint
	maxSlicePorts     = 100
)

// importedService is the label of EndpointSlices that belong to a ServiceImport of
// the multi-cluster services API, and not to a Service.
const importedService = "multicluster.kubernetes.io/service-name"

// value is what p points to, else the zero value.
func value[T any](p *T) T {
	if p == nil {
		var none T
		return none
	}
	return *p
}

// checkEndpointSlice follows the rules of Kubernetes' validation of the kind, but
// for loopback addresses: replicas of a mesh directory have no others.
func checkEndpointSlice(c *checker) {
	s := c.object.spec.(*discoveryv1.EndpointSlice)
	c.sliceOwner()
	switch s.AddressType {
	case discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6:
	case discoveryv1.AddressTypeFQDN:
		c.warnf("addressType", "host names are not used, as in Istio: write a ServiceEntry with resolution DNS, or a Service of type ExternalName")
	case "":
		c.errorf("addressType", "the type of the addresses is missing: write IPv4 or IPv6")
	default:
		types := []string{"IPv4", "IPv6", "FQDN"}
		c.errorf("addressType", "unknown type %q%s", shorten(string(s.AddressType)), didYouMean(string(s.AddressType), types))
	}
	if n := len(s.Ports); n > maxSlicePorts {
		c.errorf("ports", "%d ports are too many: at most %d; write several EndpointSlices", n, maxSlicePorts)
		return
	}
	if n := len(s.Endpoints); n > maxSliceEndpoints {
		c.errorf("endpoints", "%d endpoints are too many: at most %d; write several EndpointSlices", n, maxSliceEndpoints)
		return
	}
	c.slicePorts(s.Ports)
	for i := range s.Endpoints {
		c.sliceEndpoint(index("endpoints", i), s, &s.Endpoints[i])
	}
}

// sliceOwner warns of a slice that is of no Service.
func (c *checker) sliceOwner() {
	labels := c.object.meta.Labels
	switch {
	case labels[importedService] != "":
		c.warnf("metadata.labels["+importedService+"]", "endpoints of imported services are not used: write %s", discoveryv1.LabelServiceName)
	case labels[discoveryv1.LabelServiceName] == "":
		c.warnf("metadata.labels", "without the label %s, which names a Service, these are endpoints of nothing", discoveryv1.LabelServiceName)
	}
}

func (c *checker) slicePorts(ports []discoveryv1.EndpointPort) {
	names := map[string]bool{}
	for i, p := range ports {
		at := index("ports", i)
		name := value(p.Name)
		switch {
		case name != "" && !isLabel(name):
			c.errorf(at+".name", "%q is not a port name: use lower-case letters, digits and '-'", shorten(name))
		case names[name]:
			c.errorf(at+".name", "the port name %q is given twice", name)
		}
		names[name] = true
		if p.Port == nil {
			c.warnf(at, "without a number the port is not used, as kube-proxy does not: write port")
		} else {
			c.port(at+".port", uint32(max(0, *p.Port)))
		}
		if transports := []string{"", "TCP", "UDP", "SCTP"}; !slices.Contains(transports, string(value(p.Protocol))) {
			c.errorf(at+".protocol", "unknown protocol %q: it is TCP, UDP or SCTP", shorten(string(*p.Protocol)))
		}
	}
}

func (c *checker) sliceEndpoint(at string, s *discoveryv1.EndpointSlice, e *discoveryv1.Endpoint) {
	switch n := len(e.Addresses); {
	case n == 0:
		c.errorf(at+".addresses", "an address is missing")
	case n > maxSliceAddresses:
		c.errorf(at+".addresses", "%d addresses are too many: at most %d; write several endpoints", n, maxSliceAddresses)
		return
	}
	for i, a := range e.Addresses {
		c.sliceAddress(index(at+".addresses", i), s, a)
	}
	if name := value(e.Hostname); e.Hostname != nil && !isLabel(name) {
		c.errorf(at+".hostname", "%q is not a host name of one part: use lower-case letters, digits and '-', at most 63", shorten(name))
	}
	if name := value(e.NodeName); e.NodeName != nil && !isSubdomain(name) {
		c.errorf(at+".nodeName", "%q is not the name of a node", shorten(name))
	}
	if zone := value(e.Zone); zone != "" && labelProblem("zone", zone) != "" {
		c.errorf(at+".zone", "%q is not a zone: use letters, digits, '-', '_' and '.', at most 63", shorten(zone))
	}
	c.withoutEffect(len(e.DeprecatedTopology) > 0, at+".deprecatedTopology")
}

func (c *checker) sliceAddress(at string, s *discoveryv1.EndpointSlice, address string) {
	ip, err := netip.ParseAddr(address)
	switch s.AddressType {
	case discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6:
	case discoveryv1.AddressTypeFQDN:
		if problem := hostProblem(address, false); problem != "" {
			c.errorf(at, "%s", problem)
		}
		return
	default:
		return // said of the type
	}
	switch {
	case err != nil || ip.Zone() != "":
		c.errorf(at, "%q is not an IP address", shorten(address))
		return
	case ip.Is4In6():
		c.errorf(at, "%q is an IPv4 address: write %s, and addressType IPv4", shorten(address), ip.Unmap())
		return
	case ip.Is4() != (s.AddressType == discoveryv1.AddressTypeIPv4):
		c.errorf(at, "%q is not of addressType %s", shorten(address), s.AddressType)
		return
	case ip.IsUnspecified() || ip.IsLinkLocalUnicast() || ip.IsLinkLocalMulticast():
		c.errorf(at, "%q is no address of an endpoint: it is unspecified or link-local", shorten(address))
		return
	}
	for _, p := range s.Ports {
		if problem := c.options.ipProblem(ip, uint32(max(0, value(p.Port)))); problem != "" {
			c.errorf(at, "%s:%d %s", address, value(p.Port), problem)
			return
		}
	}
}

// sliceKey is by what the slices of a Service are found.
func sliceKey(o *object) string {
	if o.meta.Labels[importedService] != "" {
		return ""
	}
	return o.meta.Namespace + "/" + o.meta.Labels[discoveryv1.LabelServiceName]
}

// collectSlices groups the EndpointSlices by their Service, the oldest first, and
// warns of those that no Service takes.
func (a *assembler) collectSlices() {
	list := a.objects["EndpointSlice"]
	if len(list) == 0 {
		return
	}
	a.endpointSlices, a.sidecarAt = map[string][]*object{}, map[netip.Addr]*model.Proxy{}
	for _, p := range slices.Backward(a.mesh.Proxies) { // the first of those with one address stays
		if p.Type == model.SidecarProxy {
			a.sidecarAt[p.Address.Unmap()] = p
		}
	}
	const at = "metadata.labels[" + discoveryv1.LabelServiceName + "]"
	for _, o := range list {
		key := sliceKey(o)
		namespace, name, _ := strings.Cut(key, "/")
		if name == "" {
			continue // said of the labels
		}
		service := a.byID[model.Ref{Kind: "Service", Namespace: namespace, Name: name}.ID()]
		if service == nil {
			if !a.broken() {
				a.report(o, func(c *checker) {
					c.warnf(at, "there is no Service %s, so the endpoints are not used%s", shorten(key), perhaps(name, a.serviceNames(namespace)))
				})
			}
			continue
		}
		switch k := service.spec.(*corev1.Service); {
		case k.Spec.Type == corev1.ServiceTypeExternalName:
			a.report(o, func(c *checker) {
				c.warnf(at, "Service %s is another name (type ExternalName), so the endpoints are not used", key)
			})
		case len(k.Spec.Selector) > 0:
			a.report(o, func(c *checker) {
				c.warnf(at, "Service %s has a selector, which says what is behind it, so the endpoints are not used: remove the selector", key)
			})
		default:
			a.endpointSlices[key] = append(a.endpointSlices[key], o)
		}
	}
}

// perhaps asks whether the candidate that looks like word was meant, if there is one.
func perhaps(word string, candidates []string) string {
	if c := nearest(word, candidates); c != "" {
		return ", did you mean \"" + c + "\"?"
	}
	return ""
}

// serviceNames are those of the Services of a namespace that have no selector.
func (a *assembler) serviceNames(namespace string) []string {
	var out []string
	for _, o := range a.objects["Service"] {
		if o.meta.Namespace == namespace && len(o.spec.(*corev1.Service).Spec.Selector) == 0 {
			out = append(out, o.meta.Name)
		}
	}
	return out
}

// sliceEndpoints adds what the EndpointSlices of a Service without selector say.
func (a *assembler) sliceEndpoints(s *model.Service) {
	list := a.endpointSlices[s.Namespace+"/"+s.Name]
	byAddress := map[netip.Addr]*model.Endpoint{}
	missing := map[uint32]bool{}
	for _, p := range s.Ports {
		missing[p.Port] = len(list) > 0 && p.Protocol != model.UDP
	}
	for _, o := range list {
		ports := a.sliceTargets(s, o)
		for number := range ports {
			missing[number] = false
		}
		if len(ports) > 0 {
			a.addSlice(s, o, ports, byAddress)
		}
	}
	s.Members = a.sliceMembers(s, list)
	for i, p := range s.Ports {
		if missing[p.Port] && !a.broken() {
			a.report(a.byID[s.ID()], func(c *checker) {
				c.warnf(index("spec.ports", i), "no EndpointSlice of the Service has a port named %q, so calls of port %d are answered 503", p.Name, p.Port)
			})
		}
	}
}

// sliceMembers are the workloads that slices name. Who needs a role at them does not hang
// on whether they are ready.
func (a *assembler) sliceMembers(s *model.Service, list []*object) []string {
	members := map[string]bool{}
	for _, o := range list {
		for _, e := range o.spec.(*discoveryv1.EndpointSlice).Endpoints {
			for _, text := range e.Addresses {
				ip, _ := netip.ParseAddr(text) // a host name is no workload's
				if p := a.sidecarAt[ip]; p != nil && p.Namespace == s.Namespace {
					members[p.ID] = true
				}
			}
		}
	}
	return slices.Sorted(maps.Keys(members))
}

// addSlice adds the endpoints of one slice that are ready, with its ports by those of
// the Service; byAddress are those that the Service has from slices.
func (a *assembler) addSlice(s *model.Service, o *object, ports map[uint32]uint32, byAddress map[netip.Addr]*model.Endpoint) {
	slice := o.spec.(*discoveryv1.EndpointSlice)
	if slice.AddressType == discoveryv1.AddressTypeFQDN {
		return
	}
	for i := range slice.Endpoints {
		e := &slice.Endpoints[i]
		// As in Istio only this condition counts; serving and terminating explain it.
		if e.Conditions.Ready != nil && !*e.Conditions.Ready {
			continue
		}
		for j, text := range e.Addresses {
			ip := netip.MustParseAddr(text) // checked before
			if first := byAddress[ip]; first != nil {
				a.addPorts(first, ports)
				continue
			}
			out := a.sliceEndpoint(s, o, index(index("endpoints", i)+".addresses", j), ip, ports)
			if out == nil {
				continue
			}
			if out.Proxy == nil {
				out.Locality = cmp.Or(a.nodes[value(e.NodeName)], zoneOf(e))
			}
			byAddress[ip] = out
			s.Endpoints = append(s.Endpoints, out)
		}
	}
}

// addPorts adds what an endpoint, which is in several slices, has in another of them.
// Of two numbers for one port the first counts. Endpoints of a slice share a map.
func (a *assembler) addPorts(e *model.Endpoint, ports map[uint32]uint32) {
	for number, to := range ports {
		if _, ok := e.Ports[number]; ok {
			continue
		}
		if e.Proxy != nil {
			var served bool
			if to, served = a.portOf(e.Proxy, target{number: to}); !served {
				continue
			}
		}
		e.Ports = maps.Clone(e.Ports)
		e.Ports[number] = to
	}
}

// sliceTargets maps the ports of a Service to those of a slice, by their names.
func (a *assembler) sliceTargets(s *model.Service, o *object) map[uint32]uint32 {
	slice := o.spec.(*discoveryv1.EndpointSlice)
	out := map[uint32]uint32{}
	for i, p := range slice.Ports {
		at := slices.IndexFunc(s.Ports, func(q model.ServicePort) bool { return q.Name == value(p.Name) })
		if at < 0 {
			a.report(o, func(c *checker) {
				c.warnf(index("ports", i), "Service %s/%s has no port named %q, so this one is not used%s", s.Namespace, s.Name, value(p.Name), perhaps(value(p.Name), portNames(s.Ports)))
			})
			continue
		}
		number := s.Ports[at].Port
		if _, taken := out[number]; p.Port != nil && !taken {
			out[number] = uint32(*p.Port)
		}
	}
	return out
}

func portNames(ports []model.ServicePort) []string {
	var out []string
	for _, p := range ports {
		if p.Name != "" {
			out = append(out, p.Name)
		}
	}
	return out
}

// sliceEndpoint gives what is at an address: a workload of the slice's namespace, with
// its identity, else a program without a sidecar. As in Istio a slice does not speak
// for workloads of other namespaces. Nil if the workload is not up.
func (a *assembler) sliceEndpoint(s *model.Service, o *object, at string, ip netip.Addr, ports map[uint32]uint32) *model.Endpoint {
	p := a.sidecarAt[ip]
	if p == nil || p.Namespace != s.Namespace {
		if p != nil {
			a.report(o, func(c *checker) {
				c.warnf(at, "is workload %s of namespace %s: as in Istio it is called in plain text from here, since a slice has workloads of its own namespace only", p.Name, p.Namespace)
			})
		}
		return &model.Endpoint{Address: ip.String(), Ports: ports, Namespace: s.Namespace, Weight: 1}
	}
	if a.unready[p] {
		return nil
	}
	e := a.proxyEndpoint(p)
	for number, to := range ports {
		if port, ok := a.portOf(p, target{number: to}); ok {
			e.Ports[number] = port
			continue
		}
		a.report(o, func(c *checker) {
			c.warnf(at, "workload %s has no port %d, so calls of port %d are not sent to it", p.Name, to, number)
		})
	}
	if len(e.Ports) == 0 {
		return nil
	}
	return e
}

// zoneOf is the locality of an endpoint that is no workload, and of whose node nothing is
// known. Its region is not known.
func zoneOf(e *discoveryv1.Endpoint) string {
	return model.LocalityOf(map[string]string{corev1.LabelTopologyZone: value(e.Zone)})
}

package meshdir

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/writ-mesh/writ/pilot/model"
)

// services makes the registry: Service objects, ServiceEntries, and a service
// for each app of the workloads that neither of them describes. A ServiceEntry
// never takes the name of a service that the namespace itself has: as in Istio,
// nobody gets at a name by writing it.
func (a *assembler) services() {
	taken := map[string]bool{}
	own := map[string]*model.Service{} // by their hostname, which has their namespace in it
	a.collectNodes()
	a.collectSlices()
	for _, o := range a.objects["Service"] {
		s := a.kubernetesService(o)
		taken[s.Hostname+"/"+s.Namespace], own[s.Hostname] = true, s
		a.mesh.Services = append(a.mesh.Services, s)
	}
	var entries []*model.Service
	for _, o := range a.objects["ServiceEntry"] {
		for _, s := range a.entryServices(o) {
			taken[s.Hostname+"/"+s.Namespace] = true
			entries = append(entries, s)
		}
	}
	for _, s := range a.impliedServices() {
		if !taken[s.Hostname+"/"+s.Namespace] {
			own[s.Hostname] = s
			a.mesh.Services = append(a.mesh.Services, s)
		}
	}
	for _, s := range entries {
		if first := own[s.Hostname]; first != nil {
			a.claims(s, fmt.Sprintf("is the name of %s: this ServiceEntry is not used for it", first.Ref))
			continue
		}
		a.mesh.Services = append(a.mesh.Services, s)
	}
	slices.SortStableFunc(a.mesh.Services, a.precedence)
	a.aliases()
	a.contested()
}

// precedence is by hostname; then whose namespace a name within the mesh has
// goes first, then the older, then the smaller namespace.
func (a *assembler) precedence(x, y *model.Service) int {
	foreign := func(s *model.Service) int {
		if strings.HasSuffix(s.Hostname, "."+s.Namespace+".svc."+a.mesh.DomainSuffix) {
			return 0
		}
		return 1
	}
	return cmp.Or(cmp.Compare(x.Hostname, y.Hostname), cmp.Compare(foreign(x), foreign(y)), x.Created.Compare(y.Created), cmp.Compare(x.Namespace, y.Namespace))
}

// contested warns of ServiceEntries of one host in several namespaces.
func (a *assembler) contested() {
	var first *model.Service
	for _, s := range a.mesh.Services {
		switch {
		case first == nil || first.Hostname != s.Hostname:
			first = s
		case first.Namespace != s.Namespace && isEverywhere(first.ExportTo) && isEverywhere(s.ExportTo):
			a.claims(s, fmt.Sprintf("is also that of %s, which goes first in every namespace but %s", first.Ref, s.Namespace))
		}
	}
}

// claims warns at a host of a ServiceEntry.
func (a *assembler) claims(s *model.Service, problem string) {
	o := a.byID[s.ID()]
	hosts := o.spec.(*networking.ServiceEntry).Hosts
	at := slices.IndexFunc(hosts, func(h string) bool { return strings.ToLower(h) == s.Hostname })
	a.report(o, func(c *checker) { c.warnf(index("spec.hosts", at), "%s %s", shorten(s.Hostname), problem) })
}

func (a *assembler) serviceExportTo(own []string) []string {
	if len(own) == 0 {
		own = a.mesh.Config.DefaultServiceExportTo
	}
	if isEverywhere(own) {
		return nil
	}
	return own
}

// sidecars gives the proxies of workloads in a namespace that are ready and have
// all labels.
func (a *assembler) sidecars(namespace string, selector map[string]string) []*model.Proxy {
	var out []*model.Proxy
	for _, p := range a.mesh.Proxies {
		if p.Type == model.SidecarProxy && !a.unready[p] && p.Namespace == namespace && model.SelectorMatches(selector, p.Labels) {
			out = append(out, p)
		}
	}
	return out
}

func (a *assembler) proxyEndpoint(p *model.Proxy) *model.Endpoint {
	return &model.Endpoint{
		Address: p.Address.String(), Ports: map[uint32]uint32{}, Labels: p.Labels, Namespace: p.Namespace,
		ServiceAccount: p.ServiceAccount, Weight: 1, Locality: cmp.Or(model.LocalityOf(p.Labels), a.nodes[p.Node]), Proxy: p,
	}
}

// target is the port behind a service's port: by name, or by number.
type target struct {
	name   string
	number uint32
}

// targetOf gives what a Service says about a port of it; without targetPort it is
// the same number.
func targetOf(p corev1.ServicePort) target {
	switch {
	case p.TargetPort.Type == intstr.String:
		return target{name: p.TargetPort.StrVal}
	case p.TargetPort.IntVal != 0:
		return target{number: uint32(p.TargetPort.IntVal)}
	}
	return target{number: uint32(p.Port)}
}

// portOf finds the target among a workload's ports: by number the one that
// callers use, else the one that the program listens on; or else among those that its
// Sidecar opens. With redirection any number reaches the workload.
func (a *assembler) portOf(p *model.Proxy, t target) (uint32, bool) {
	for _, w := range p.Ports {
		if t.name != "" && w.Name == t.name || t.name == "" && w.Port == t.number {
			return w.Port, true
		}
	}
	for _, in := range a.sidecarOf(p).GetIngress() {
		if n := in.GetPort(); t.name != "" && n.GetName() == t.name || t.name == "" && n.GetNumber() == t.number {
			return n.GetNumber(), true
		}
	}
	if t.name != "" {
		return 0, false
	}
	for _, w := range p.Ports {
		if w.App == t.number {
			return w.Port, true
		}
	}
	return t.number, p.Interception == model.Redirect
}

// sidecarOf is the Sidecar that holds for a workload, nil for none: one that selects it,
// else that of its namespace, else that of the mesh.
func (a *assembler) sidecarOf(p *model.Proxy) *networking.Sidecar {
	var general *networking.Sidecar
	for _, namespace := range []string{p.Namespace, a.mesh.RootNamespace} {
		for _, o := range a.objects["Sidecar"] {
			s := o.spec.(*networking.Sidecar)
			selector := s.GetWorkloadSelector().GetLabels()
			switch {
			case o.meta.Namespace != namespace:
			case len(selector) == 0 && general == nil:
				general = s
			case len(selector) > 0 && namespace == p.Namespace && model.SelectorMatches(selector, p.Labels):
				return s
			}
		}
	}
	return general
}

func (a *assembler) kubernetesService(o *object) *model.Service {
	k := o.spec.(*corev1.Service)
	s := &model.Service{Meta: o.meta, Hostname: model.ResolveHost(k.Name, o.meta.Namespace, a.mesh.DomainSuffix)}
	if text := o.meta.Annotations["networking.istio.io/exportTo"]; text != "" {
		for e := range strings.SplitSeq(text, ",") {
			s.ExportTo = append(s.ExportTo, strings.TrimSpace(e))
		}
	}
	s.ExportTo = a.serviceExportTo(s.ExportTo)
	s.Near = near(o.meta.Annotations, k.Spec.TrafficDistribution)
	for _, ip := range append([]string{k.Spec.ClusterIP}, k.Spec.ClusterIPs...) {
		if isIP(ip) && !slices.Contains(s.Addresses, ip) {
			s.Addresses = append(s.Addresses, ip)
		}
	}
	targets := map[uint32]target{}
	for _, p := range k.Spec.Ports {
		number := uint32(p.Port)
		var named string
		if p.AppProtocol != nil {
			named = *p.AppProtocol
		}
		s.Ports = append(s.Ports, model.ServicePort{Name: p.Name, Protocol: portProtocol(p.Name, named, string(p.Protocol)), Port: number})
		targets[number] = targetOf(p)
	}
	if k.Spec.Type == corev1.ServiceTypeExternalName {
		// A host outside of the mesh, unless aliases finds a service of that name.
		s.Resolution, s.External = model.DNS, true
		e := &model.Endpoint{Address: externalName(k), Ports: map[uint32]uint32{}, Namespace: s.Namespace, Weight: 1}
		for _, p := range s.Ports {
			e.Ports[p.Port] = p.Port
		}
		s.Endpoints = append(s.Endpoints, e)
		return s
	}
	s.Selector = k.Spec.Selector
	if len(k.Spec.Selector) > 0 {
		a.selectEndpoints(s, k.Spec.Selector, targets)
	} else {
		a.sliceEndpoints(s)
	}
	return s
}

// near reads how a Service wants its clients to choose between its endpoints, by Istio's
// annotation or, if there is none, Kubernetes' field.
func near(annotations map[string]string, field *string) []string {
	text := annotations["networking.istio.io/traffic-distribution"]
	if text == "" && field != nil {
		text = *field
	}
	switch strings.ToLower(text) {
	case "preferclose", "prefersamezone":
		return []string{model.NetworkLabel, model.RegionLabel, model.ZoneLabel}
	case "prefersamenode":
		return []string{model.NetworkLabel, model.RegionLabel, model.ZoneLabel, model.SubzoneLabel, model.HostLabel}
	}
	return nil
}

func externalName(k *corev1.Service) string {
	return strings.ToLower(strings.TrimSuffix(k.Spec.ExternalName, "."))
}

// aliases makes Services of type ExternalName further names of the services that
// they lead to, over other such Services too. As in Istio, routes and policies are
// then those of the service, whatever it is called by.
func (a *assembler) aliases() {
	leads := map[string]string{}
	for _, s := range a.mesh.Services {
		if k, ok := a.specOf(s.Ref).(*corev1.Service); ok && k.Spec.Type == corev1.ServiceTypeExternalName {
			leads[s.Hostname] = externalName(k)
		}
	}
	if len(leads) == 0 {
		return
	}
	concrete := map[string][]*model.Service{}
	for _, s := range a.mesh.Services {
		if _, alias := leads[s.Hostname]; !alias {
			concrete[s.Hostname] = append(concrete[s.Hostname], s)
		}
	}
	a.mesh.Aliases = map[string]string{}
	a.mesh.Services = slices.DeleteFunc(a.mesh.Services, func(s *model.Service) bool {
		name, alias := leads[s.Hostname]
		if !alias {
			return false
		}
		for range leads {
			if next, more := leads[name]; more {
				name = next
			}
		}
		if _, circle := leads[name]; circle {
			a.report(a.byID[s.ID()], func(c *checker) {
				c.warnf("spec.externalName", "leads to itself, so there is no such host")
			})
			return true
		}
		if len(concrete[name]) == 0 {
			s.Endpoints[0].Address = name
			if len(s.Ports) == 0 {
				a.report(a.byID[s.ID()], func(c *checker) {
					c.warnf("spec.ports", "there is no service %s, and without ports nobody can call the host: list them", shorten(name))
				})
			}
			return false
		}
		for _, of := range concrete[name] {
			of.Aliases = append(of.Aliases, s.Hostname)
		}
		a.mesh.Aliases[s.Hostname] = name
		return true
	})
}

// gatewayServers are the servers that a gateway proxy serves.
func (a *assembler) gatewayServers(p *model.Proxy) []*networking.Server {
	var out []*networking.Server
	for _, gw := range p.Serves(typed[networking.Gateway](a, "Gateway"), a.mesh.RootNamespace) {
		out = append(out, gw.Spec.Servers...)
	}
	return out
}

// gatewayEndpoint is a gateway proxy behind a service: of the service's ports
// those that one of its servers has.
func (a *assembler) gatewayEndpoint(p *model.Proxy, ports []model.ServicePort) *model.Endpoint {
	e := a.proxyEndpoint(p)
	for _, port := range ports {
		for _, s := range a.gatewayServers(p) {
			if s.Port.GetNumber() == port.Port {
				e.Ports[port.Port] = cmp.Or(p.GatewayPorts[port.Port], port.Port)
			}
		}
	}
	return e
}

// selectEndpoints adds the workloads that have the labels: replicas, gateways,
// and WorkloadEntries of the namespace.
func (a *assembler) selectEndpoints(s *model.Service, selector map[string]string, targets map[uint32]target) {
	for _, p := range a.sidecars(s.Namespace, selector) {
		e := a.proxyEndpoint(p)
		for number, t := range targets {
			if port, ok := a.portOf(p, t); ok {
				e.Ports[number] = port
			}
		}
		if len(e.Ports) > 0 {
			s.Endpoints = append(s.Endpoints, e)
		}
	}
	for _, p := range a.mesh.Proxies {
		if p.Type != model.GatewayProxy || a.unready[p] || p.Namespace != s.Namespace || !model.SelectorMatches(selector, p.Labels) {
			continue
		}
		if e := a.gatewayEndpoint(p, s.Ports); len(e.Ports) > 0 {
			s.Endpoints = append(s.Endpoints, e)
		}
	}
	for _, o := range a.objects["WorkloadEntry"] {
		w := o.spec.(*networking.WorkloadEntry)
		labels := mergeLabels(w.Labels, o.meta.Labels)
		if o.meta.Namespace != s.Namespace || !model.SelectorMatches(selector, labels) {
			continue
		}
		e := a.entryEndpoint(s, w, labels, targets)
		a.reachable(o, "spec", e)
		s.Endpoints = append(s.Endpoints, e)
	}
}

// reachable refuses an endpoint that belongs to the mesh itself, for o, which has
// it at a path.
func (a *assembler) reachable(o *object, at string, e *model.Endpoint) {
	if strings.HasPrefix(e.Address, unixPrefix) {
		return // checked before
	}
	for _, port := range slices.Sorted(maps.Values(e.Ports)) {
		if problem := a.options.addressProblem(e.Address, port); problem != "" {
			a.report(o, func(c *checker) { c.errorf(at+".address", "%s:%d %s", shorten(e.Address), port, problem) })
			return
		}
	}
}

func mergeLabels(a, b map[string]string) map[string]string {
	out := maps.Clone(a)
	if out == nil {
		out = map[string]string{}
	}
	maps.Copy(out, b)
	return out
}

// entryEndpoint: the entry's own port of that name wins, then the target port,
// then the service's number.
func (a *assembler) entryEndpoint(s *model.Service, w *networking.WorkloadEntry, labels map[string]string, targets map[uint32]target) *model.Endpoint {
	e := &model.Endpoint{
		Address: w.Address, Ports: map[uint32]uint32{}, Labels: labels, Namespace: s.Namespace,
		ServiceAccount: w.ServiceAccount, Weight: max(1, w.Weight), Locality: w.Locality,
	}
	for _, p := range s.Ports {
		e.Ports[p.Port] = p.Port
		if t, ok := targets[p.Port]; ok && t.number != 0 {
			e.Ports[p.Port] = t.number
		}
		if own, ok := w.Ports[p.Name]; ok {
			e.Ports[p.Port] = own
		}
	}
	if !s.External {
		for _, p := range a.mesh.Proxies {
			if p.Type == model.SidecarProxy && p.Address.String() == w.Address {
				e.Proxy, e.ServiceAccount = p, cmp.Or(w.ServiceAccount, p.ServiceAccount)
			}
		}
	}
	return e
}

func (a *assembler) entryServices(o *object) []*model.Service {
	se := o.spec.(*networking.ServiceEntry)
	resolutions := map[networking.ServiceEntry_Resolution]model.Resolution{
		// The names of a wildcard are looked up one by one where the caller gives a name,
		// which NONE does too.
		networking.ServiceEntry_NONE: model.None, networking.ServiceEntry_DYNAMIC_DNS: model.None, networking.ServiceEntry_STATIC: model.Static,
		networking.ServiceEntry_DNS: model.DNS, networking.ServiceEntry_DNS_ROUND_ROBIN: model.DNSRoundRobin,
	}
	var out []*model.Service
	for _, host := range se.Hosts {
		s := &model.Service{
			Meta: o.meta, Hostname: strings.ToLower(host), Addresses: se.Addresses, Resolution: resolutions[se.Resolution],
			External: se.Location == networking.ServiceEntry_MESH_EXTERNAL, ExportTo: a.serviceExportTo(se.ExportTo), SubjectAltNames: se.SubjectAltNames,
		}
		targets := map[uint32]target{}
		for _, p := range se.Ports {
			protocol, _ := protocolOf(p.Protocol)
			if p.Protocol == "" {
				protocol = portProtocol(p.Name, "", "")
			}
			s.Ports = append(s.Ports, model.ServicePort{Name: p.Name, Protocol: protocol, Port: p.Number})
			targets[p.Number] = target{number: cmp.Or(p.TargetPort, p.Number)}
		}
		a.entryEndpoints(o, s, targets)
		out = append(out, s)
	}
	return out
}

func (a *assembler) entryEndpoints(o *object, s *model.Service, targets map[uint32]target) {
	se := o.spec.(*networking.ServiceEntry)
	switch {
	case s.Resolution == model.None:
	case se.WorkloadSelector != nil:
		s.Selector = se.WorkloadSelector.Labels
		a.selectEndpoints(s, se.WorkloadSelector.Labels, targets)
	case len(se.Endpoints) > 0:
		for i, w := range se.Endpoints {
			e := a.entryEndpoint(s, w, w.Labels, targets)
			if s.Hostname == strings.ToLower(se.Hosts[0]) { // once for all hosts
				a.reachable(o, index("spec.endpoints", i), e)
			}
			s.Endpoints = append(s.Endpoints, e)
		}
	case s.Resolution != model.Static:
		s.Endpoints = append(s.Endpoints, a.entryEndpoint(s, &networking.WorkloadEntry{Address: s.Hostname}, nil, targets))
	}
}

var replicaForm = regexp.MustCompile(`^(.+)-[0-9]+$`)

// impliedName is the service that a workload without a Service object offers:
// its app label, else its name without the replica's number.
func impliedName(name string, labels map[string]string, replica bool) string {
	if app := labels["app"]; app != "" {
		return app
	}
	if m := replicaForm.FindStringSubmatch(name); replica && m != nil {
		return m[1]
	}
	return name
}

// gatewayServicePorts are the ports of the service that a gateway offers to the
// mesh, as an egress gateway does.
func (a *assembler) gatewayServicePorts(p *model.Proxy) []model.ServicePort {
	var out []model.ServicePort
	for _, s := range a.gatewayServers(p) {
		number := s.Port.GetNumber()
		if number == 0 || slices.ContainsFunc(out, func(q model.ServicePort) bool { return q.Port == number }) {
			continue
		}
		protocol, _ := protocolOf(s.Port.GetProtocol())
		out = append(out, model.ServicePort{Name: s.Port.GetName(), Protocol: protocol, Port: number})
	}
	return out
}

// impliedServices gives a service for each app of LocalWorkloads and instances,
// and for each gateway.
func (a *assembler) impliedServices() []*model.Service {
	services := map[string]*model.Service{}
	add := func(meta model.Meta, name string, ports []model.ServicePort) *model.Service {
		written := name
		name = strings.ToLower(name)
		if !isLabel(name) || len(ports) == 0 {
			return nil
		}
		key := meta.Namespace + "/" + name
		s := services[key]
		if s == nil {
			s = &model.Service{Meta: meta, Hostname: model.ResolveHost(name, meta.Namespace, a.mesh.DomainSuffix), ExportTo: a.serviceExportTo(nil)}
			if meta.Labels["app"] == written {
				s.Selector = map[string]string{"app": written}
			} else {
				s.Workload = written
			}
			services[key] = s
		}
		for _, p := range ports {
			if !slices.ContainsFunc(s.Ports, func(q model.ServicePort) bool { return q.Port == p.Port }) {
				s.Ports = append(s.Ports, p)
			}
		}
		return s
	}
	for _, w := range workloadsOf(a.objects["LocalWorkload"]) {
		var ports []model.ServicePort
		for _, p := range w.Spec.Ports {
			ports = append(ports, model.ServicePort{Name: p.Name, Protocol: p.Model(), Port: p.Port})
		}
		add(w.Meta, impliedName(w.Name, w.Labels, false), ports)
	}
	proxies := map[string]*model.Proxy{}
	for _, p := range a.mesh.Proxies {
		proxies[p.ID] = p
	}
	for _, o := range a.objects[instanceKind] {
		p := proxies[proxyOf(o).ID]
		if p.Type == model.GatewayProxy {
			ports := a.gatewayServicePorts(p)
			if s := add(o.meta, p.Name, ports); s != nil && !a.unready[p] {
				s.Endpoints = append(s.Endpoints, a.gatewayEndpoint(p, ports))
			}
			continue
		}
		var ports []model.ServicePort
		e := a.proxyEndpoint(p)
		for _, w := range p.Ports {
			ports = append(ports, model.ServicePort{Name: w.Name, Protocol: w.Protocol, Port: w.Port})
			e.Ports[w.Port] = w.Port
		}
		if s := add(o.meta, impliedName(p.Name, p.Labels, true), ports); s != nil && !a.unready[p] {
			s.Endpoints = append(s.Endpoints, e)
		}
	}
	// A gateway that does not run yet is a service already.
	for _, gw := range model.RootFirst(typed[networking.Gateway](a, "Gateway"), a.mesh.RootNamespace) {
		plan := gatewayPlanOf(gw, a.mesh.RootNamespace)
		meta := gw.Meta
		meta.Namespace = plan.Namespace
		if name := strings.ToLower(plan.Name); services[meta.Namespace+"/"+name] == nil {
			add(meta, name, a.gatewayServicePorts(&model.Proxy{Name: plan.Name, Gateway: gw.Namespace + "/" + gw.Name, Labels: plan.Labels}))
		}
	}
	out := make([]*model.Service, 0, len(services))
	for _, key := range slices.Sorted(maps.Keys(services)) {
		out = append(out, services[key])
	}
	return out
}

package translate

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	anypb "google.golang.org/protobuf/types/known/anypb"
	meshv1 "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/writ-mesh/writ/pilot/model"
)

// scopeKey tells clients apart as far as any object of the mesh does.
type scopeKey struct {
	namespace    string
	labels       string
	gateway      bool
	interception model.Interception
	locality     string
}

// scope is the mesh as the clients of one namespace (with alike labels) see it,
// and, for sidecars, the outbound resources that they share.
type scope struct {
	t            *Translator
	namespace    string
	labels       map[string]string
	isGateway    bool
	interception model.Interception
	locality     string
	sidecar      *model.Sidecar
	allowAny     bool

	services        []visibleService
	byHost          map[string][]*model.Service
	virtualServices []*virtualService // bound to the mesh and visible
	exactHosts      map[string]*virtualService
	wildcardHosts   []hostRule // longest first, then oldest
	rules           memo[*model.Service, *destinationRule]
	serverRules     memo[*model.Service, *destinationRule]

	// shared is what sidecars of this scope have in common; out collects it.
	shared *Snapshot
	out    *collector
	// explicit is the connection manager of the explicit proxy.
	explicit        *anypb.Any
	explicitSources []model.Ref
}

// visibleService is a service with those ports that the scope may call.
type visibleService struct {
	*model.Service
	ports []model.ServicePort
}

func (t *Translator) scope(p *model.Proxy) (*scope, error) {
	labels, text := t.relevantLabels(p.Labels)
	key := scopeKey{namespace: p.Namespace, labels: text, gateway: p.Type == model.GatewayProxy, interception: p.Interception, locality: t.index.locality(p)}
	return t.scopes.get(key, func() (*scope, error) {
		s := &scope{t: t, namespace: p.Namespace, labels: labels, isGateway: key.gateway, interception: p.Interception, locality: key.locality, shared: &Snapshot{}}
		s.sidecar = t.sidecarFor(s)
		s.allowAny = t.allowAny(s.sidecar)
		s.selectServices()
		s.selectVirtualServices()
		if s.isGateway {
			return s, nil
		}
		return s, s.buildOutbound()
	})
}

func (t *Translator) relevantLabels(all map[string]string) (map[string]string, string) {
	labels := map[string]string{}
	var text strings.Builder
	for _, k := range t.index.labelKeys {
		if v, ok := all[k]; ok {
			labels[k] = v
			fmt.Fprintf(&text, "%q=%q,", k, v)
		}
	}
	return labels, text.String()
}

// sidecarFor finds the Sidecar that applies: one of the namespace that selects
// the workload, else the namespace's own, else that of the root namespace.
// Sidecars say nothing to gateways.
func (t *Translator) sidecarFor(s *scope) *model.Sidecar {
	if s.isGateway {
		return nil
	}
	for _, c := range t.index.sidecars[s.namespace] {
		if l := c.Spec.GetWorkloadSelector().GetLabels(); len(l) > 0 && model.SelectorMatches(l, s.labels) {
			return c
		}
	}
	for _, ns := range []string{s.namespace, t.mesh.RootNamespace} {
		for _, c := range t.index.sidecars[ns] {
			if len(c.Spec.GetWorkloadSelector().GetLabels()) == 0 {
				return c
			}
		}
	}
	return nil
}

func (t *Translator) allowAny(sidecar *model.Sidecar) bool {
	if p := sidecarPolicy(sidecar); p != nil {
		return p.GetMode() == networking.OutboundTrafficPolicy_ALLOW_ANY
	}
	if p := t.mesh.Config.GetOutboundTrafficPolicy(); p != nil {
		return p.GetMode() != meshv1.MeshConfig_OutboundTrafficPolicy_REGISTRY_ONLY
	}
	return true
}

func sidecarPolicy(s *model.Sidecar) *networking.OutboundTrafficPolicy {
	if s == nil {
		return nil
	}
	return s.Spec.GetOutboundTrafficPolicy()
}

// selectServices keeps what is exported to the namespace and imported by the
// Sidecar. Of services with the same name in several namespaces the client's own
// counts, else the first.
func (s *scope) selectServices() {
	s.byHost = map[string][]*model.Service{}
	chosen := map[string]string{}
	for _, svc := range s.t.mesh.Services {
		if !s.sees(svc) {
			continue
		}
		if _, taken := chosen[svc.Hostname]; !taken || svc.Namespace == s.namespace {
			chosen[svc.Hostname] = svc.Namespace
		}
	}
	for _, svc := range s.t.mesh.Services {
		if !s.sees(svc) || chosen[svc.Hostname] != svc.Namespace {
			continue
		}
		for _, name := range append([]string{svc.Hostname}, svc.Aliases...) {
			s.byHost[name] = append(s.byHost[name], svc)
		}
		v := visibleService{Service: svc}
		for _, p := range svc.Ports {
			if p.Protocol != model.UDP && s.imports(svc.Namespace, svc.Hostname, p.Port) {
				v.ports = append(v.ports, p)
			}
		}
		if len(v.ports) > 0 {
			s.services = append(s.services, v)
		}
	}
	// A ServiceEntry may have a short form or an address of another service for
	// its own: it comes after those that have it by right.
	slices.SortStableFunc(s.services, func(a, b visibleService) int {
		return cmp.Compare(isEntry(a.Service), isEntry(b.Service))
	})
}

func isEntry(svc *model.Service) int {
	if svc.Kind == "ServiceEntry" {
		return 1
	}
	return 0
}

func (s *scope) sees(svc *model.Service) bool {
	return model.ExportedTo(exportTo(svc.ExportTo, s.t.mesh.Config.GetDefaultServiceExportTo()), svc.Namespace, s.namespace)
}

// imports says whether the Sidecar's egress lets the scope call the service host of
// namespace on port.
func (s *scope) imports(namespace, host string, port uint32) bool {
	if s.sidecar == nil || len(s.sidecar.Spec.GetEgress()) == 0 {
		return true
	}
	// Of a port that has a listener of its own the hosts are those of that listener alone.
	own := slices.ContainsFunc(s.sidecar.Spec.GetEgress(), func(e *networking.IstioEgressListener) bool { return egressPort(e) == port })
	return slices.ContainsFunc(s.sidecar.Spec.GetEgress(), func(e *networking.IstioEgressListener) bool {
		return (egressPort(e) == port || egressPort(e) == 0 && !own) && s.exposes(e, namespace, host, model.HostMatches)
	})
}

// importsRoutes says whether the Sidecar's egress has routes of namespace for host.
func (s *scope) importsRoutes(namespace, host string) bool {
	return s.sidecar == nil || len(s.sidecar.Spec.GetEgress()) == 0 ||
		slices.ContainsFunc(s.sidecar.Spec.GetEgress(), func(e *networking.IstioEgressListener) bool { return s.exposes(e, namespace, host, model.HostsOverlap) })
}

// egressPort is the port that a listener is for, 0 for all. What HTTP_PROXY names is
// where a proxy for all ports listens.
func egressPort(e *networking.IstioEgressListener) uint32 {
	if strings.EqualFold(e.GetPort().GetProtocol(), "HTTP_PROXY") {
		return 0
	}
	return e.GetPort().GetNumber()
}

// exposes says whether one of the listener's hosts takes host of namespace in and none,
// by a ~ before it, takes it out again.
func (s *scope) exposes(e *networking.IstioEgressListener, namespace, host string, in func(pattern, host string) bool) bool {
	found := false
	for _, pattern := range e.GetHosts() {
		ns, name, ok := strings.Cut(pattern, "/")
		if !ok {
			ns, name = "*", pattern
		}
		ns, out := strings.CutPrefix(ns, "~")
		switch {
		case ns == "" && out:
			ns = "*"
		case ns == "." && s.sidecar.Namespace == s.t.mesh.RootNamespace:
			ns = s.namespace // the mesh's default Sidecar speaks for each namespace
		case ns == ".":
			ns = s.sidecar.Namespace
		}
		if ns != "*" && ns != namespace {
			continue
		}
		name = model.ResolveHost(name, namespace, s.t.mesh.DomainSuffix)
		if out && model.HostMatches(name, host) {
			return false
		}
		found = found || !out && in(name, host)
	}
	return found
}

func (s *scope) selectVirtualServices() {
	for _, vs := range s.t.index.virtualServices {
		if !vs.bound(model.MeshGateway) || !model.ExportedTo(vs.exportTo, vs.Namespace, s.namespace) {
			continue
		}
		if slices.ContainsFunc(vs.hosts, func(h string) bool { return s.importsRoutes(vs.Namespace, h) }) {
			s.virtualServices = append(s.virtualServices, vs)
		}
	}
	sortByExport(s.virtualServices, s.namespace)
	s.indexHosts()
}

// sortByExport puts first what a namespace keeps to itself, then what is exported
// to it by name, then what is for everybody, so that it can override the latter;
// the order of age stays within each.
func sortByExport(list []*virtualService, namespace string) {
	rank := func(vs *virtualService) int {
		switch {
		case len(vs.exportTo) == 0 || slices.Contains(vs.exportTo, "*"):
			return 2
		case vs.Namespace == namespace && (slices.Contains(vs.exportTo, ".") || slices.Contains(vs.exportTo, namespace)):
			return 0
		}
		return 1
	}
	slices.SortStableFunc(list, func(a, b *virtualService) int { return cmp.Compare(rank(a), rank(b)) })
}

// hostRule is a VirtualService by one of its hosts.
type hostRule struct {
	host string
	vs   *virtualService
}

func (s *scope) indexHosts() {
	s.exactHosts = map[string]*virtualService{}
	for _, vs := range s.virtualServices {
		for _, h := range vs.hosts {
			if strings.HasPrefix(h, "*") {
				s.wildcardHosts = append(s.wildcardHosts, hostRule{h, vs})
			} else if s.exactHosts[h] == nil {
				s.exactHosts[h] = vs
			}
		}
	}
	slices.SortStableFunc(s.wildcardHosts, func(a, b hostRule) int { return cmp.Compare(len(b.host), len(a.host)) })
}

// virtualServiceFor finds the VirtualService of the mesh for host: one that
// names it, else the one with the longest wildcard; the oldest of equals.
func (s *scope) virtualServiceFor(host string) *virtualService {
	if vs := s.exactHosts[host]; vs != nil {
		return vs
	}
	for _, r := range s.wildcardHosts {
		if model.HostMatches(r.host, host) {
			return r.vs
		}
	}
	return nil
}

// service finds what a destination names, also if the Sidecar does not import
// it: a VirtualService that is visible brings its destinations along. The port
// decides between ServiceEntries of the same host; 0 is any.
func (s *scope) service(host string, port uint32) *model.Service {
	candidates := s.byHost[host]
	if candidates == nil {
		return s.t.mesh.ServiceByHost(host, s.namespace)
	}
	for _, svc := range candidates {
		if _, ok := servicePort(svc, port); ok {
			return svc
		}
	}
	return candidates[0]
}

func servicePort(svc *model.Service, port uint32) (model.ServicePort, bool) {
	for _, p := range svc.Ports {
		if p.Port == port {
			return p, true
		}
	}
	return model.ServicePort{}, false
}

// hostForms are the names under which a client of the scope may call svc,
// without port. Addresses are those that are no ranges, in brackets for IPv6.
func (s *scope) hostForms(svc *model.Service) []string {
	out := s.nameForms(svc.Hostname, svc.Namespace)
	for _, alias := range svc.Aliases {
		// name.namespace.svc.suffix, which is what a Service's name is completed to.
		_, rest, _ := strings.Cut(alias, ".")
		namespace, _, _ := strings.Cut(rest, ".")
		out = append(out, s.nameForms(alias, namespace)...)
	}
	for _, a := range svc.Addresses {
		if addr, err := netip.ParseAddr(a); err == nil {
			out = append(out, bracket(addr))
		} else if p, err := netip.ParsePrefix(a); err == nil && p.IsSingleIP() {
			out = append(out, bracket(p.Addr()))
		}
	}
	return out
}

// nameForms are the name of a service of namespace, and the shorter ones that a
// client of the scope completes to it.
func (s *scope) nameForms(hostname, namespace string) []string {
	out := []string{hostname}
	suffix := "." + namespace + ".svc." + s.t.mesh.DomainSuffix
	if name, ok := strings.CutSuffix(hostname, suffix); ok && name != "" && !strings.Contains(name, "*") {
		out = append(out, name+"."+namespace+".svc", name+"."+namespace)
		if namespace == s.namespace {
			out = append(out, name)
		}
	}
	return out
}

func bracket(addr netip.Addr) string {
	if addr.Is6() && !addr.Is4In6() {
		return "[" + addr.String() + "]"
	}
	return addr.String()
}

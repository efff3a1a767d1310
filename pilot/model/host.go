package model

import (
	"net/netip"
	"sort"
	"strings"
)

// MeshGateway is the reserved gateway name that stands for every sidecar.
const MeshGateway = "mesh"

// ResolveHost completes a short host name as Istio does: a name without dots
// belongs to the namespace of the object that uses it and becomes
// <host>.<namespace>.svc.<domainSuffix>. Names with dots, IP addresses and "*"
// stay as they are. The result is lower case.
func ResolveHost(host, namespace, domainSuffix string) string {
	host = strings.ToLower(host)
	if host == "" || host == "*" || strings.Contains(host, ".") {
		return host
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return host
	}
	return host + "." + namespace + ".svc." + domainSuffix
}

// ResolveGateway completes the name of a gateway as a VirtualService in
// namespace writes it: "mesh" stays, "name" and "./name" belong to namespace,
// "ns/name" stays, and the old form name.ns.svc.<suffix> becomes "ns/name".
func ResolveGateway(gateway, namespace string) string {
	if gateway == MeshGateway {
		return gateway
	}
	if ns, name, ok := strings.Cut(gateway, "/"); ok {
		if ns == "." {
			ns = namespace
		}
		return ns + "/" + name
	}
	name, rest, dotted := strings.Cut(gateway, ".")
	if !dotted {
		return namespace + "/" + gateway
	}
	ns, _, _ := strings.Cut(rest, ".")
	return ns + "/" + name
}

// SelectorMatches says whether every label of selector is in labels. The empty
// selector matches everything.
func SelectorMatches(selector, labels map[string]string) bool {
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// ExportedTo says whether an object of namespace owner is seen from namespace
// viewer: an empty list or "*" is everywhere, "." the owner itself, "~" nobody,
// anything else the namespace of that name.
func ExportedTo(exportTo []string, owner, viewer string) bool {
	if len(exportTo) == 0 {
		return true
	}
	for _, e := range exportTo {
		switch e {
		case "*":
			return true
		case "~":
		case ".":
			if owner == viewer {
				return true
			}
		default:
			if e == viewer {
				return true
			}
		}
	}
	return false
}

// HostMatches says whether host, which may itself be a wildcard, is within
// pattern: "*" contains everything, "*.example.com" every name that ends in
// ".example.com" (at any depth, but not example.com), and a name without "*"
// only itself. Case does not count.
func HostMatches(pattern, host string) bool {
	pattern, host = strings.ToLower(pattern), strings.ToLower(host)
	suffix, wildcard := strings.CutPrefix(pattern, "*")
	if !wildcard {
		return pattern == host
	}
	if hostSuffix, ok := strings.CutPrefix(host, "*"); ok {
		return strings.HasSuffix(hostSuffix, suffix)
	}
	return len(host) > len(suffix) && strings.HasSuffix(host, suffix)
}

// HostsOverlap says whether some host name is within both patterns.
func HostsOverlap(a, b string) bool { return HostMatches(a, b) || HostMatches(b, a) }

// realName gives the name of a service for any name of it.
func (m *Mesh) realName(hostname string) string {
	hostname = strings.ToLower(hostname)
	if of, ok := m.Aliases[hostname]; ok {
		return of
	}
	return hostname
}

// ServiceByHost finds the service that a caller in namespace fromNamespace
// reaches under the fully qualified hostname: of those that are exported to it
// the one with exactly that name (in its own namespace first), else the one
// with the longest wildcard that contains it. Nil if there is none. It relies
// on Services being sorted.
func (m *Mesh) ServiceByHost(hostname, fromNamespace string) *Service {
	hostname = m.realName(hostname)
	first := sort.Search(len(m.Services), func(i int) bool { return m.Services[i].Hostname >= hostname })
	var exact *Service
	for _, s := range m.Services[first:] {
		if s.Hostname != hostname {
			break
		}
		if !ExportedTo(s.ExportTo, s.Namespace, fromNamespace) {
			continue
		}
		if s.Namespace == fromNamespace {
			return s
		}
		if exact == nil {
			exact = s
		}
	}
	if exact != nil {
		return exact
	}
	// Wildcards come first in the order of host names, longer ones are closer.
	var best *Service
	for _, s := range m.Services {
		if s.Hostname > "*\xff" {
			break
		}
		if !strings.HasPrefix(s.Hostname, "*") || !HostMatches(s.Hostname, hostname) || !ExportedTo(s.ExportTo, s.Namespace, fromNamespace) {
			continue
		}
		closer := best == nil || len(s.Hostname) > len(best.Hostname)
		own := best != nil && len(s.Hostname) == len(best.Hostname) && s.Namespace == fromNamespace && best.Namespace != fromNamespace
		if closer || own {
			best = s
		}
	}
	return best
}

// ServiceCalled finds the service that a program in namespace fromNamespace calls by a
// host name as it is written, name.namespace and name.namespace.svc included. Nil if there
// is none.
func (m *Mesh) ServiceCalled(host, fromNamespace string) *Service {
	host = ResolveHost(host, fromNamespace, m.DomainSuffix)
	found := m.ServiceByHost(host, fromNamespace)
	if found == nil || strings.HasPrefix(found.Hostname, "*") {
		if s := m.inNamespace(host, fromNamespace); s != nil {
			return s
		}
	}
	return found
}

// inNamespace finds the mesh's own service, no ServiceEntry, that is called name.namespace
// or name.namespace.svc.
func (m *Mesh) inNamespace(hostname, fromNamespace string) *Service {
	short := strings.TrimSuffix(strings.ToLower(hostname), ".svc")
	if strings.Count(short, ".") != 1 {
		return nil
	}
	s := m.ServiceByHost(short+".svc."+m.DomainSuffix, fromNamespace)
	if s == nil || s.Kind == "ServiceEntry" {
		return nil
	}
	return s
}

// PolicyHost finds the service that a policy of a namespace means by a hostname
// to which it gives its trust, such as that of a key set or of an authorizer: a
// service by its own name within the mesh, else a ServiceEntry of the policy's
// namespace, else of the root namespace, else a service called name.namespace. What
// another namespace writes about the name never counts. Nil means a host outside of
// the mesh.
func (m *Mesh) PolicyHost(hostname, namespace string) *Service {
	hostname = m.realName(hostname)
	first := sort.Search(len(m.Services), func(i int) bool { return m.Services[i].Hostname >= hostname })
	for _, s := range m.Services[first:] {
		if s.Hostname != hostname {
			break
		}
		if s.Kind != "ServiceEntry" && ExportedTo(s.ExportTo, s.Namespace, namespace) {
			return s
		}
	}
	for _, ns := range []string{namespace, m.RootNamespace} {
		if s := m.ServiceByHost(hostname, ns); s != nil && s.Namespace == ns && ExportedTo(s.ExportTo, ns, namespace) {
			return s
		}
	}
	return m.inNamespace(hostname, namespace)
}

// IgnoredHeaderKey says that a key of a route's headers is one of those that Istio's
// documentation says are ignored: there are fields of these names beside.
func IgnoredHeaderKey(name string) bool {
	switch name {
	case "uri", "scheme", "method", "authority":
		return true
	}
	return false
}

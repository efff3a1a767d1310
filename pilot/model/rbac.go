package model

import (
	"slices"
	"strings"
)

// The kinds of rbac.istio.io/v1alpha1, Istio's authorization before
// AuthorizationPolicy (Istio 1.0 to 1.5), as they were checked: what one of them
// can be written in several ways has one form here.

// RbacMode is where roles are enforced at all.
type RbacMode uint8

// The modes.
const (
	RbacOff RbacMode = iota
	RbacOn
	// RbacInclusion is for the services and namespaces of RbacConfig alone.
	RbacInclusion
	// RbacExclusion is for all but these.
	RbacExclusion
)

// RbacConfig is the ClusterRbacConfig of the mesh, or its RbacConfig.
type RbacConfig struct {
	Meta
	Mode RbacMode
	// Services are host names in full, Namespaces whole names.
	Services, Namespaces []string
	// Permissive: everything is decided and recorded, and nothing refused.
	Permissive bool
}

// On says whether a service of a namespace is one whose callers need a role.
// Without a service it says so of what belongs to none.
func (c *RbacConfig) On(namespace, service string) bool {
	if c == nil {
		return false
	}
	listed := slices.Contains(c.Namespaces, namespace) || service != "" && slices.Contains(c.Services, service)
	switch c.Mode {
	case RbacOff:
	case RbacOn:
		return true
	case RbacInclusion:
		return listed
	case RbacExclusion:
		return !listed
	}
	return false
}

// ServiceRole is what may be done with services of its namespace.
type ServiceRole struct {
	Meta
	Rules []AccessRule
}

// AccessRule is one permission: all that it says has to hold.
type AccessRule struct {
	// Services are host names in full; one * at the beginning or the end stands
	// for anything.
	Services []string
	// To are methods, paths, hosts and ports.
	To []Clause
	// Where says of the workload what has to hold: its labels, namespace, name of
	// its service, account. Keys as in the file, such as destination.labels[version].
	Where []Clause
	// When are the other constraints, by the keys of package condition.
	When []Clause
}

// Keys of AccessRule.To.
const (
	RoleMethods = "methods"
	RolePaths   = "paths"
	RoleHosts   = "hosts"
)

// Keys of AccessRule.Where; DestinationLabels has the label's name in brackets.
const (
	DestinationLabels    = "destination.labels"
	DestinationNamespace = "destination.namespace"
	DestinationName      = "destination.name"
	DestinationUser      = "destination.user"
)

// Clause is one of values, or none of them if Not is set.
type Clause struct {
	Key    string
	Values []string
	Not    bool
}

// ServiceRoleBinding gives a role of its namespace to subjects.
type ServiceRoleBinding struct {
	Meta
	Role     string
	Subjects []Subject
	// Permissive: what it would allow is recorded, and it allows nothing.
	Permissive bool
}

// Subject is who has a role: all clauses have to hold, by the keys of package
// condition. Without clauses it is everybody, with or without an identity.
type Subject struct{ Clauses []Clause }

// Selects says whether the service is that of a workload: by labels, by the name of what
// is run, or because an EndpointSlice or an endpoint says so. It does not depend on whether
// the workload is ready: what is refused at it must not wait for that.
func (s *Service) Selects(p *Proxy) bool {
	switch {
	case s.External:
		return false
	case len(s.Selector) > 0 && s.Namespace == p.Namespace && SelectorMatches(s.Selector, p.Labels):
		return true
	case slices.Contains(s.Members, p.ID):
		return true
	case s.Workload != "" && s.Namespace == p.Namespace && (p.Name == s.Workload || p.Labels["app"] == "" && replicaOf(p.Name, s.Workload)):
		return true
	}
	return slices.ContainsFunc(s.Endpoints, func(e *Endpoint) bool { return e.Proxy != nil && e.Proxy.ID == p.ID && s.Serves(p) })
}

// Serves says whether what is said of the service may count at a workload behind it: only
// of those of its namespace. A ServiceEntry may lead to any address, and who writes one
// decides nothing at workloads of others.
func (s *Service) Serves(p *Proxy) bool { return s.Namespace == p.Namespace }

// replicaOf says whether name is <workload>-<number>.
func replicaOf(name, workload string) bool {
	number, ok := strings.CutPrefix(name, workload+"-")
	return ok && number != "" && strings.Trim(number, "0123456789") == ""
}

// PortsOf are the workload's ports behind the service. As long as it is no
// endpoint of the service they are not known, and ok is false.
func (s *Service) PortsOf(p *Proxy) (ports []uint32, ok bool) {
	for _, e := range s.Endpoints {
		if e.Proxy != nil && e.Proxy.ID == p.ID {
			ok = true
			for _, port := range e.Ports {
				ports = append(ports, port)
			}
		}
	}
	slices.Sort(ports)
	return slices.Compact(ports), ok
}

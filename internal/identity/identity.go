// Package identity gives the SPIFFE IDs that Writ uses their shape and takes
// them apart again. There are three kinds, told apart by their path:
//
//	spiffe://<td>/ns/<namespace>/sa/<service account>   a workload, as in Istio
//	spiffe://<td>/writ/node/<node>                      a node agent
//	spiffe://<td>/writ/<service>                        a service of Writ
//
// The syntax is that of the SPIFFE ID standard, section 2.
package identity

import (
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// The names of Writ's services as they stand in their identities.
const (
	CA        = "ca"
	Pilot     = "pilot"
	Authz     = "authz"
	RateLimit = "ratelimit"
)

// Workload gives the identity of a workload.
func Workload(td spiffeid.TrustDomain, namespace, serviceAccount string) (spiffeid.ID, error) {
	id, err := spiffeid.FromSegments(td, "ns", namespace, "sa", serviceAccount)
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("identity of service account %q in namespace %q: %w", serviceAccount, namespace, err)
	}
	return id, nil
}

// Node gives the identity of the node agent of a node.
func Node(td spiffeid.TrustDomain, node string) (spiffeid.ID, error) {
	id, err := spiffeid.FromSegments(td, "writ", "node", node)
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("identity of node %q: %w", node, err)
	}
	return id, nil
}

// Service gives the identity of a service of Writ. "node" is no service.
func Service(td spiffeid.TrustDomain, service string) (spiffeid.ID, error) {
	if service == "node" {
		return spiffeid.ID{}, fmt.Errorf("identity of service %q: the name is kept for node agents", service)
	}
	id, err := spiffeid.FromSegments(td, "writ", service)
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("identity of service %q: %w", service, err)
	}
	return id, nil
}

// WorkloadOf takes a workload's identity apart; ok is false for any other.
func WorkloadOf(id spiffeid.ID) (namespace, serviceAccount string, ok bool) {
	s := segments(id)
	if len(s) != 4 || s[0] != "ns" || s[2] != "sa" {
		return "", "", false
	}
	return s[1], s[3], true
}

// NodeOf gives the node of a node agent's identity; ok is false for any other.
func NodeOf(id spiffeid.ID) (node string, ok bool) {
	s := segments(id)
	if len(s) != 3 || s[0] != "writ" || s[1] != "node" {
		return "", false
	}
	return s[2], true
}

// ServiceOf gives the service of the identity of a service of Writ; ok is false
// for any other.
func ServiceOf(id spiffeid.ID) (service string, ok bool) {
	s := segments(id)
	if len(s) != 2 || s[0] != "writ" || s[1] == "node" {
		return "", false
	}
	return s[1], true
}

func segments(id spiffeid.ID) []string {
	return strings.Split(strings.TrimPrefix(id.Path(), "/"), "/")
}

package identity_test

import (
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-mesh/writ/internal/identity"
)

func TestKindsAreDisjointAndRoundTrip(t *testing.T) {
	td := spiffeid.RequireTrustDomainFromString("cluster.local")
	workload, err := identity.Workload(td, "default", "ratings")
	if err != nil {
		t.Fatal(err)
	}
	node, err := identity.Node(td, "n1")
	if err != nil {
		t.Fatal(err)
	}
	service, err := identity.Service(td, identity.Pilot)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		id                      spiffeid.ID
		workload, node, service bool
	}{
		{workload, true, false, false},
		{node, false, true, false},
		{service, false, false, true},
		{spiffeid.RequireFromString("spiffe://cluster.local"), false, false, false},
		{spiffeid.RequireFromString("spiffe://cluster.local/writ/node"), false, false, false},
		{spiffeid.RequireFromString("spiffe://cluster.local/writ/node/a/b"), false, false, false},
		{spiffeid.RequireFromString("spiffe://cluster.local/ns/a/sa/b/c"), false, false, false},
	} {
		_, _, w := identity.WorkloadOf(tc.id)
		_, n := identity.NodeOf(tc.id)
		_, s := identity.ServiceOf(tc.id)
		if w != tc.workload || n != tc.node || s != tc.service {
			t.Errorf("%s: workload %v, node %v, service %v", tc.id, w, n, s)
		}
	}
	if ns, sa, _ := identity.WorkloadOf(workload); ns != "default" || sa != "ratings" {
		t.Errorf("got %q %q", ns, sa)
	}
	if n, _ := identity.NodeOf(node); n != "n1" {
		t.Errorf("got node %q", n)
	}
	if s, _ := identity.ServiceOf(service); s != "pilot" {
		t.Errorf("got service %q", s)
	}
}

func TestBadSegments(t *testing.T) {
	td := spiffeid.RequireTrustDomainFromString("cluster.local")
	for _, bad := range []string{"", ".", "..", "a/b", "a b", "ä"} {
		if id, err := identity.Workload(td, bad, "x"); err == nil {
			t.Errorf("namespace %q gave %s", bad, id)
		}
		if id, err := identity.Node(td, bad); err == nil {
			t.Errorf("node %q gave %s", bad, id)
		}
	}
	if id, err := identity.Service(td, "node"); err == nil {
		t.Errorf("service node gave %s", id)
	}
}

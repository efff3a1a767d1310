package ca

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"google.golang.org/grpc"

	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// Node agents that are connected and have nothing to ask cost the ledger nothing,
// however many they are.
func TestAgentsAtRestAskTheLedgerNothing(t *testing.T) {
	h := start(t, nil)
	stores := func() (sum float64) {
		t.Helper()
		families, err := h.metrics.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			for _, m := range f.GetMetric() {
				if f.GetName() == "writ_ca_ledger_operations_total" {
					sum += m.GetCounter().GetValue()
				}
			}
		}
		return sum
	}
	begin := stores()
	conns := make([]*grpc.ClientConn, 0, 5)
	for i := range 5 {
		conns = append(conns, h.connAs(h.mint(fmt.Sprint(nodeID, i))))
	}
	if got := stores() - begin; got < 5 {
		t.Fatalf("%v operations for five certificates", got)
	}
	begin = stores()
	for _, conn := range conns {
		for range 20 {
			bundle, err := capb.NewCertificateAuthorityClient(conn).WatchBundle(t.Context())
			first(t, bundle, err)
			registrations, err := capb.NewNodeRegistrationsClient(conn).WatchRegistrations(t.Context(), &capb.WatchRegistrationsRequest{})
			first(t, registrations, err)
			revoked, err := capb.NewRevocationFeedClient(conn).WatchRevocations(t.Context(), &capb.WatchRevocationsRequest{})
			first(t, revoked, err)
			foreign, err := capb.NewFederationClient(conn).WatchFederated(t.Context(), &capb.WatchFederatedRequest{})
			first(t, foreign, err)
		}
	}
	// The authority itself asks now and then, for its checkpoint.
	if got := stores() - begin; got > 10 {
		t.Errorf("%v operations of the ledger for 400 streams", got)
	}
}

// first waits for the first message of a stream.
func first[T any](t *testing.T, s interface{ Recv() (*T, error) }, err error) {
	t.Helper()
	if err == nil {
		_, err = s.Recv()
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

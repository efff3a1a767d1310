package security

import (
	"maps"
	"slices"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/writ-mesh/writ/pilot/envoy"
	"github.com/writ-mesh/writ/pilot/model"
)

// TestBothEndpoints: the way from one list of what is revoked to another has both, each at
// its own address.
func TestBothEndpoints(t *testing.T) {
	const address = "127.0.0.1"
	of := func(ports map[uint32][]string) *anypb.Any {
		locality := &endpointv3.LocalityLbEndpoints{}
		for _, port := range slices.Sorted(maps.Keys(ports)) {
			var r model.Revoked
			for _, id := range ports[port] {
				r.Identities = append(r.Identities, model.RevokedIdentity{SPIFFEID: id})
			}
			locality.LbEndpoints = append(locality.LbEndpoints, &endpointv3.LbEndpoint{
				Metadata:       RevokedMetadata(&r),
				HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: envoy.SocketAddress(address, port)}},
			})
		}
		return envoy.Any(&endpointv3.ClusterLoadAssignment{ClusterName: "c", Endpoints: []*endpointv3.LocalityLbEndpoints{locality}})
	}
	for name, c := range map[string]struct{ before, after, want map[uint32][]string }{
		"more":              {map[uint32][]string{80: {"a"}}, map[uint32][]string{80: {"a", "b"}}, nil},
		"nothing before":    {map[uint32][]string{80: nil}, map[uint32][]string{80: {"a"}}, nil},
		"less":              {map[uint32][]string{80: {"a", "b"}}, map[uint32][]string{80: {"b"}}, map[uint32][]string{80: {"a", "b"}}},
		"nothing":           {map[uint32][]string{80: {"a"}}, map[uint32][]string{80: nil}, map[uint32][]string{80: {"a"}}},
		"others":            {map[uint32][]string{80: {"a"}}, map[uint32][]string{80: {"b"}}, map[uint32][]string{80: {"a", "b"}}},
		"another program":   {map[uint32][]string{80: {"a"}}, map[uint32][]string{81: nil}, nil},
		"one more program":  {map[uint32][]string{80: {"a"}}, map[uint32][]string{80: {"a"}, 81: {"b"}}, nil},
		"one of two":        {map[uint32][]string{80: {"a"}, 81: {"b"}}, map[uint32][]string{80: nil, 81: {"b"}}, map[uint32][]string{80: {"a"}, 81: {"b"}}},
		"its own, not both": {map[uint32][]string{80: {"a"}, 81: {"b"}}, map[uint32][]string{80: {"a"}, 81: nil}, map[uint32][]string{80: {"a"}, 81: {"b"}}},
	} {
		got, err := BothEndpoints(of(c.before), of(c.after))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if (got == nil) != (c.want == nil) || got != nil && !proto.Equal(got, of(c.want)) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
	// What else an endpoint has stays.
	after := &endpointv3.ClusterLoadAssignment{Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{{
		Metadata:       &corev3.Metadata{},
		HealthStatus:   corev3.HealthStatus_DRAINING,
		HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: envoy.SocketAddress(address, 80)}},
	}}}}}
	got, err := BothEndpoints(of(map[uint32][]string{80: {"a"}}), envoy.Any(after))
	if err != nil {
		t.Fatal(err)
	}
	var a endpointv3.ClusterLoadAssignment
	if err := got.UnmarshalTo(&a); err != nil || a.GetEndpoints()[0].GetLbEndpoints()[0].GetHealthStatus() != corev3.HealthStatus_DRAINING {
		t.Errorf("%v, %v", &a, err)
	}
}

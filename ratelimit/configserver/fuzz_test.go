package configserver

import (
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	ratelimitpb "github.com/writ-mesh/writ/proto/writ/ratelimit/v1"
	"github.com/writ-mesh/writ/ratelimit/descriptors"
)

// FuzzResponse takes any answer of a management server: nothing in it ends the service,
// and what is taken of it has a domain that is limited.
func FuzzResponse(f *testing.F) {
	deep := &ratelimitpb.DomainDescriptor{Key: "k"}
	for range 40 {
		deep = &ratelimitpb.DomainDescriptor{Key: "k", Descriptors: []*ratelimitpb.DomainDescriptor{deep}}
	}
	for _, d := range []*ratelimitpb.DomainConfig{
		{},
		{Name: "a", Domain: "a", Descriptors: []*ratelimitpb.DomainDescriptor{deep}},
		{Domain: "b", Descriptors: []*ratelimitpb.DomainDescriptor{{Key: "k", Value: "v*", RateLimit: &ratelimitpb.DomainLimit{}, ShadowMode: true, Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{"x": nil}}}}},
	} {
		value, err := proto.Marshal(d)
		if err != nil {
			continue
		}
		b, err := proto.Marshal(&discoveryv3.DiscoveryResponse{TypeUrl: typeURL, Resources: []*anypb.Any{{TypeUrl: typeURL, Value: value}}})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		resp := new(discoveryv3.DiscoveryResponse)
		if proto.Unmarshal(b, resp) != nil {
			return
		}
		sent, err := domains(resp)
		if err != nil {
			return
		}
		set, err := descriptors.FromServer(sent, nil, true)
		if set == nil {
			t.Fatalf("neither domains nor those of before: %v", err)
		}
		for _, name := range set.Names() {
			if name == "" {
				t.Error("a domain has no name")
			}
		}
	})
}

package ratelimit

import (
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/writ-mesh/writ/internal/proctest"
	ratelimitpb "github.com/writ-mesh/writ/proto/writ/ratelimit/v1"
)

// managementServer sends what comes over a channel, and gives the errors that it hears.
type managementServer struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	send  chan []*ratelimitpb.DomainConfig
	heard chan string
}

func (m *managementServer) StreamAggregatedResources(s discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	for {
		req, err := s.Recv()
		if err != nil {
			return err
		}
		if req.GetResponseNonce() != "" {
			m.heard <- req.GetErrorDetail().GetMessage()
		}
		resp := &discoveryv3.DiscoveryResponse{TypeUrl: req.GetTypeUrl(), Nonce: "n", VersionInfo: "v"}
		select {
		case <-s.Context().Done():
			return s.Context().Err()
		case domains := <-m.send:
			for _, d := range domains {
				raw, err := proto.Marshal(d)
				if err != nil {
					return err
				}
				resp.Resources = append(resp.Resources, &anypb.Any{TypeUrl: req.GetTypeUrl(), Value: raw})
			}
		}
		if err := s.Send(resp); err != nil {
			return err
		}
	}
}

// TestConfigServer: limits come from a management server and follow it; a broken domain
// is refused to it and stays as it was, while the others follow.
func TestConfigServer(t *testing.T) {
	m := &managementServer{send: make(chan []*ratelimitpb.DomainConfig), heard: make(chan string, 10)}
	l, err := new(net.ListenConfig).Listen(t.Context(), "unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(g, m)
	served := make(chan struct{})
	go func() { _ = g.Serve(l); close(served) }()
	t.Cleanup(func() { g.Stop(); <-served })

	c := DefaultConfig()
	c.Listen, c.ConfigServer.Address = proctest.Address(t), "unix://"+l.Addr().String()
	s, rt := start(t, c)
	if rt.Health.Ready() == nil {
		t.Error("ready without limits")
	}
	domain := func(name string, requests uint32, key string) *ratelimitpb.DomainConfig {
		return &ratelimitpb.DomainConfig{Name: name, Domain: name, Descriptors: []*ratelimitpb.DomainDescriptor{{Key: key, RateLimit: &ratelimitpb.DomainLimit{Unit: 4, RequestsPerUnit: requests}}}}
	}
	limits := func() (out [2]uint32) {
		for i, name := range []string{"d", "e"} {
			resp, err := s.server.ShouldRateLimit(t.Context(), &rlsv3.RateLimitRequest{Domain: name, Descriptors: []*commonv3.RateLimitDescriptor{desc("k", "v")}})
			if err != nil {
				t.Fatal(err)
			}
			out[i] = resp.GetStatuses()[0].GetCurrentLimit().GetRequestsPerUnit()
		}
		return out
	}
	for _, step := range []struct {
		domains []*ratelimitpb.DomainConfig
		refused string
		want    [2]uint32
	}{
		{[]*ratelimitpb.DomainConfig{domain("d", 1, "k"), domain("e", 2, "k")}, "", [2]uint32{1, 2}},
		{[]*ratelimitpb.DomainConfig{domain("d", 3, "k"), domain("e", 4, "")}, "resource e: a descriptor has no key", [2]uint32{3, 2}},
		{[]*ratelimitpb.DomainConfig{domain("d", 5, "k")}, "", [2]uint32{5, 0}},
	} {
		m.send <- step.domains
		select {
		case got := <-m.heard:
			if (got == "") != (step.refused == "") || !strings.Contains(got, step.refused) {
				t.Errorf("the server hears %q, want %q", got, step.refused)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("the server hears nothing")
		}
		if got := limits(); got != step.want {
			t.Errorf("limits %v, want %v", got, step.want)
		}
	}
	proctest.Eventually(t, 20*time.Second, rt.Health.Ready)
}

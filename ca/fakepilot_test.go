package ca

import (
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/writ-mesh/writ/internal/listen"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

// fakePilot hands out placements over delta xDS on a unix socket.
type fakePilot struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer

	t      *testing.T
	addr   string
	server *grpc.Server

	mu      sync.Mutex
	nodes   map[string]*configpb.NodePlacement
	changed chan struct{}
	streams int
}

func newFakePilot(t *testing.T) *fakePilot {
	t.Helper()
	p := &fakePilot{
		t: t, addr: "unix://" + filepath.Join(t.TempDir(), "s"), server: grpc.NewServer(),
		nodes: make(map[string]*configpb.NodePlacement), changed: make(chan struct{}),
	}
	l, err := listen.Listen(p.addr)
	if err != nil {
		t.Fatal(err)
	}
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(p.server, p)
	done := make(chan struct{})
	go func() { defer close(done); _ = p.server.Serve(l) }()
	t.Cleanup(func() { p.stop(); <-done })
	return p
}

func (p *fakePilot) stop() { p.server.Stop() }

// place puts workloads on a node, in addition to those that are there.
func (p *fakePilot) place(node string, ids ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	next := &configpb.NodePlacement{Node: node, Workloads: append([]*configpb.WorkloadPlacement(nil), p.nodes[node].GetWorkloads()...)}
	for _, id := range ids {
		next.Workloads = append(next.Workloads, &configpb.WorkloadPlacement{Name: "w-1", Namespace: "default", SpiffeId: id})
	}
	p.nodes[node] = next
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *fakePilot) subscribed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.streams > 0
}

// DeltaAggregatedResources sends everything at each change.
func (p *fakePilot) DeltaAggregatedResources(s discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	req, err := s.Recv()
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.streams++
	p.mu.Unlock()
	go func() {
		for {
			ack, err := s.Recv()
			if err != nil {
				return
			}
			if ack.GetErrorDetail() != nil {
				p.t.Errorf("placements were refused: %s", ack.GetErrorDetail().GetMessage())
			}
		}
	}()
	for n := 1; ; n++ {
		resp := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: req.GetTypeUrl(), Nonce: strconv.Itoa(n)}
		p.mu.Lock()
		changed := p.changed
		for name, node := range p.nodes {
			m, err := anypb.New(node)
			if err != nil {
				p.t.Error(err)
			}
			resp.Resources = append(resp.Resources, &discoveryv3.Resource{Name: name, Version: resp.GetNonce(), Resource: m})
		}
		p.mu.Unlock()
		if err := s.Send(resp); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-s.Context().Done():
			return s.Context().Err()
		}
	}
}

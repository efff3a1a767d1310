package authz

import (
	"context"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/writ-mesh/writ/internal/xdsclient"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

// pilot is a fake of pilot's discovery service: it sends what it is told to and
// hands on the acknowledgements.
type pilot struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	send chan *discoveryv3.DeltaDiscoveryResponse
	acks chan *discoveryv3.DeltaDiscoveryRequest
}

func (p *pilot) DeltaAggregatedResources(s grpc.BidiStreamingServer[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse]) error {
	go func() {
		for {
			req, err := s.Recv()
			if err != nil {
				return
			}
			if req.GetResponseNonce() != "" {
				p.acks <- req
			}
		}
	}()
	for {
		select {
		case r := <-p.send:
			if err := s.Send(r); err != nil {
				return err
			}
		case <-s.Context().Done():
			return nil
		}
	}
}

// push sends resources and returns the refusal, empty for an acknowledgement.
func (p *pilot) push(t *testing.T, nonce string, removed []string, resources ...proto.Message) string {
	t.Helper()
	r := &discoveryv3.DeltaDiscoveryResponse{Nonce: nonce, RemovedResources: removed, TypeUrl: "type.googleapis.com/writ.config.v1.RegoPolicy"}
	for _, m := range resources {
		packed, err := anypb.New(m)
		if err != nil {
			t.Fatal(err)
		}
		name := "default/r/0"
		if policy, ok := m.(*configpb.RegoPolicy); ok {
			name = policy.GetNamespace() + "/" + policy.GetName()
		} else {
			r.TypeUrl = "type.googleapis.com/writ.config.v1.TokenIssuer"
		}
		r.Resources = append(r.Resources, &discoveryv3.Resource{Name: name, Version: nonce, Resource: packed})
	}
	p.send <- r
	select {
	case ack := <-p.acks:
		if ack.GetResponseNonce() != nonce || ack.GetTypeUrl() != r.GetTypeUrl() {
			t.Fatalf("acknowledged %v", ack)
		}
		return ack.GetErrorDetail().GetMessage()
	case <-time.After(20 * time.Second):
		t.Fatal("no acknowledgement")
		return ""
	}
}

func TestFollowsPilot(t *testing.T) {
	l := bufconn.Listen(1 << 20)
	p := &pilot{send: make(chan *discoveryv3.DeltaDiscoveryResponse), acks: make(chan *discoveryv3.DeltaDiscoveryRequest, 8)}
	g := grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(g, p)
	go func() { _ = g.Serve(l) }()
	t.Cleanup(g.Stop)
	conn, err := grpc.NewClient("passthrough:pilot", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return l.Dial() }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })

	m := newMesh(t, func(c *Config) { c.State = t.TempDir() })
	ctx, cancel := context.WithCancel(context.Background())
	done, ready := make(chan struct{}), make(chan struct{}, 8)
	go func() {
		defer close(done)
		_ = xdsclient.Run(ctx, conn, "writ-authz", slog.New(slog.DiscardHandler), m.policies.subscriptions(ctx, m.metrics, func() { ready <- struct{}{} })...)
	}()
	t.Cleanup(func() { cancel(); <-done })

	if refusal := p.push(t, "1", nil, regoPolicy("default/a", "allow := true")); refusal != "" {
		t.Fatal(refusal)
	}
	<-ready
	if !allowed(m.check(t, "default/a")) {
		t.Error("the policy that was acknowledged does not decide")
	}
	refusal := p.push(t, "2", nil, regoPolicy("default/a", "allow := false"), regoPolicy("default/b", "allow if {"))
	if !strings.Contains(refusal, "RegoPolicy default/b (policies.yaml:7): default/b.rego:2:") {
		t.Errorf("refusal %q", refusal)
	}
	if !allowed(m.check(t, "default/a")) {
		t.Error("half of a refused revision is in force")
	}
	if sample(t, m.reg, "writ_authz_config_refused_total", "RegoPolicy") != 1 {
		t.Error("the refusal is not counted")
	}
	if refusal := p.push(t, "3", nil, regoPolicy("default/b", "allow := true")); refusal != "" || !allowed(m.check(t, "default/a,default/b")) {
		t.Errorf("after the refusal: %q", refusal)
	}
	if refusal := p.push(t, "4", nil, &configpb.TokenIssuer{Issuer: "i", Jwks: newIssuerKeys(t).jwks}); refusal != "" || len(m.policies.current.Load().issuers) != 1 {
		t.Errorf("issuer: %q", refusal)
	}
	if refusal := p.push(t, "5", []string{"default/b"}); refusal != "" || m.policies.current.Load().policies["default/b"] != nil {
		t.Errorf("removal: %q", refusal)
	}
}

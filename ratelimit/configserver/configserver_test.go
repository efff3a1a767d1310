package configserver_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/writ-mesh/writ/internal/proctest"
	ratelimitpb "github.com/writ-mesh/writ/proto/writ/ratelimit/v1"
	"github.com/writ-mesh/writ/ratelimit/configserver"
)

const typeURL = "type.googleapis.com/ratelimit.config.ratelimit.v3.RateLimitConfig"

// server is a management server that sends what a test says and gives what it hears.
type server struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	send  chan *discoveryv3.DiscoveryResponse
	heard chan *discoveryv3.DiscoveryRequest
	end   chan struct{} // ends the stream
}

func (s *server) StreamAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	go func() {
		for {
			req, err := stream.Recv()
			if err != nil {
				return
			}
			s.heard <- req
		}
	}()
	for {
		select {
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-s.end:
			return errors.New("the server goes")
		case resp := <-s.send:
			if err := stream.Send(resp); err != nil {
				return err
			}
		}
	}
}

func (s *server) listen(t *testing.T) string {
	t.Helper()
	s.send, s.heard, s.end = make(chan *discoveryv3.DiscoveryResponse), make(chan *discoveryv3.DiscoveryRequest, 100), make(chan struct{})
	l, err := new(net.ListenConfig).Listen(t.Context(), "unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(g, s)
	done := make(chan struct{})
	go func() { _ = g.Serve(l); close(done) }()
	t.Cleanup(func() { g.Stop(); <-done })
	return "unix://" + l.Addr().String()
}

// next is what the server hears next.
func (s *server) next(t *testing.T) *discoveryv3.DiscoveryRequest {
	t.Helper()
	select {
	case req := <-s.heard:
		return req
	case <-time.After(20 * time.Second):
		t.Fatal("the server hears nothing")
		return nil
	}
}

func response(t *testing.T, version, nonce string, domains ...string) *discoveryv3.DiscoveryResponse {
	t.Helper()
	resp := &discoveryv3.DiscoveryResponse{TypeUrl: typeURL, VersionInfo: version, Nonce: nonce}
	for _, d := range domains {
		raw, err := proto.Marshal(&ratelimitpb.DomainConfig{Name: d, Domain: d})
		if err != nil {
			t.Fatal(err)
		}
		resp.Resources = append(resp.Resources, &anypb.Any{TypeUrl: typeURL, Value: raw})
	}
	return resp
}

// TestConversation: what is taken is acknowledged, what is refused is refused with its
// reason and the version before it, and after an end the conversation goes on from there.
func TestConversation(t *testing.T) {
	s := &server{}
	client, err := configserver.New(configserver.Config{Address: s.listen(t), NodeID: "me", Metadata: map[string]string{"a": "b"}}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	applied := make(chan string, 10)
	proctest.Background(t, func(ctx context.Context) error {
		return client.Run(ctx, func(sent []*ratelimitpb.DomainConfig) error {
			var names []string
			for _, d := range sent {
				names = append(names, d.GetDomain())
			}
			applied <- strings.Join(names, ",")
			if slices.Contains(names, "bad") {
				return errors.New("bad is bad")
			}
			return nil
		})
	})
	first := s.next(t)
	if first.GetTypeUrl() != typeURL || first.GetNode().GetId() != "me" || first.GetNode().GetMetadata().GetFields()["a"].GetStringValue() != "b" || first.GetVersionInfo() != "" {
		t.Errorf("begins with %v", first)
	}
	wrong := response(t, "0", "n0", "x")
	wrong.TypeUrl = "type.googleapis.com/other"
	for _, c := range []struct {
		send             *discoveryv3.DiscoveryResponse
		applied, refused string
		version          string
	}{
		{response(t, "1", "n1", "a", "b"), "a,b", "", "1"},
		{response(t, "2", "n2", "a", "bad"), "a,bad", "bad is bad", "1"},
		{wrong, "-", "was not asked for", "1"},
		{&discoveryv3.DiscoveryResponse{TypeUrl: typeURL, VersionInfo: "3", Nonce: "n3", Resources: []*anypb.Any{{TypeUrl: typeURL, Value: []byte{0xff}}}}, "-", "resource 0: ", "1"},
		{&discoveryv3.DiscoveryResponse{TypeUrl: typeURL, VersionInfo: "3", Nonce: "n3", Resources: []*anypb.Any{{TypeUrl: "other"}}}, "-", "resource 0 has the type other", "1"},
		{response(t, "4", "n4"), "", "", "4"},
	} {
		s.send <- c.send
		ack := s.next(t)
		if ack.GetResponseNonce() != c.send.GetNonce() || ack.GetVersionInfo() != c.version || (ack.GetErrorDetail() != nil) != (c.refused != "") || !strings.Contains(ack.GetErrorDetail().GetMessage(), c.refused) {
			t.Errorf("%v: answered %v, want version %q and %q", c.send, ack, c.version, c.refused)
		}
		if c.applied != "-" {
			if got := <-applied; got != c.applied {
				t.Errorf("applied %q, want %q", got, c.applied)
			}
		}
	}
	s.end <- struct{}{}
	if again := s.next(t); again.GetVersionInfo() != "4" || again.GetResponseNonce() != "" || again.GetNode().GetId() != "me" {
		t.Errorf("goes on with %v", again)
	}
	if len(applied) != 0 {
		t.Errorf("applied once more: %q", <-applied)
	}
}

func TestValidate(t *testing.T) {
	for name, c := range map[string]struct {
		config configserver.Config
		want   string // "" is valid
	}{
		"none":              {configserver.Config{}, ""},
		"a socket":          {configserver.Config{Address: "unix:///s", NodeID: "n"}, ""},
		"this machine":      {configserver.Config{Address: "127.0.0.1:1", NodeID: "n"}, ""},
		"TLS":               {configserver.Config{Address: "config:18000", NodeID: "n", TLS: true, CAFile: "f", CertFile: "c", KeyFile: "k"}, ""},
		"plain text":        {configserver.Config{Address: "10.0.0.1:18000", NodeID: "n"}, "or set config_server.tls"},
		"no address":        {configserver.Config{Address: "config", NodeID: "n"}, "config_server.address"},
		"no node":           {configserver.Config{Address: "unix:///s"}, "node_id"},
		"roots without TLS": {configserver.Config{Address: "unix:///s", NodeID: "n", CAFile: "f"}, "are for tls: true"},
		"half a key":        {configserver.Config{Address: "unix:///s", NodeID: "n", TLS: true, CertFile: "c"}, "belong together"},
	} {
		if err := c.config.Validate(); c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	for _, c := range []configserver.Config{
		{Address: "localhost:1", NodeID: "n", TLS: true, CAFile: filepath.Join(t.TempDir(), "none")},
		{Address: "localhost:1", NodeID: "n", TLS: true, CertFile: "/none", KeyFile: "/none"},
	} {
		if _, err := configserver.New(c, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "config_server.c") {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

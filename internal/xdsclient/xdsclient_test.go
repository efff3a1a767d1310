package xdsclient_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/writ-mesh/writ/internal/xdsclient"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

const quotaType = "type.googleapis.com/writ.config.v1.QuotaPolicy"

// pilot hands each stream that is opened to the test.
type pilot struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	streams chan stream
}

type stream struct {
	discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
	end chan error
}

func (p pilot) DeltaAggregatedResources(s discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	end := make(chan error)
	select {
	case p.streams <- stream{s, end}:
	case <-s.Context().Done():
		return nil
	}
	select {
	case err := <-end:
		return err
	case <-s.Context().Done():
		return nil
	}
}

// client runs the client in a bubble of fake time until the test function ends.
func client(t *testing.T, subs []xdsclient.Subscription, test func(t *testing.T, p pilot)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l := bufconn.Listen(1 << 20)
		s := grpc.NewServer()
		p := pilot{streams: make(chan stream)}
		discoveryv3.RegisterAggregatedDiscoveryServiceServer(s, p)
		served := make(chan struct{})
		go func() { defer close(served); _ = s.Serve(l) }()
		conn, err := grpc.NewClient("passthrough:///pilot", grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- xdsclient.Run(ctx, conn, "service~authz", slog.New(slog.DiscardHandler), subs...) }()
		test(t, p)
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
		_ = conn.Close()
		s.Stop()
		<-served
	})
}

// holder is a consumer of quota policies that refuses those called "bad".
type holder struct{ applied []string }

func (h *holder) sub(names ...string) xdsclient.Subscription {
	return xdsclient.Subscription{Message: &configpb.QuotaPolicy{}, Names: names, Apply: func(rs map[string]proto.Message) error {
		var all []string
		for _, name := range slices.Sorted(maps.Keys(rs)) {
			p := rs[name].(*configpb.QuotaPolicy)
			if p.GetNamespace() == "bad" {
				return fmt.Errorf("policy %s is bad", name)
			}
			all = append(all, name+"="+p.GetSource())
		}
		h.applied = append(h.applied, strings.Join(all, ","))
		return nil
	}}
}

func policy(t *testing.T, name, namespace, version string) *discoveryv3.Resource {
	t.Helper()
	a, err := anypb.New(&configpb.QuotaPolicy{Name: name, Namespace: namespace, Source: version})
	if err != nil {
		t.Fatal(err)
	}
	return &discoveryv3.Resource{Name: name, Version: version, Resource: a}
}

func (s stream) receive(t *testing.T) *discoveryv3.DeltaDiscoveryRequest {
	t.Helper()
	req, err := s.Recv()
	if err != nil {
		t.Fatal(err)
	}
	return req
}

// give sends a response and returns its answer.
func (s stream) give(t *testing.T, nonce string, removed []string, rs ...*discoveryv3.Resource) *discoveryv3.DeltaDiscoveryRequest {
	t.Helper()
	if err := s.Send(&discoveryv3.DeltaDiscoveryResponse{TypeUrl: quotaType, Nonce: nonce, Resources: rs, RemovedResources: removed}); err != nil {
		t.Fatal(err)
	}
	ack := s.receive(t)
	if ack.GetResponseNonce() != nonce || ack.GetTypeUrl() != quotaType {
		t.Errorf("answer to %s: %v", nonce, ack)
	}
	return ack
}

func (h *holder) expect(t *testing.T, want ...string) {
	t.Helper()
	if !slices.Equal(h.applied, want) {
		t.Errorf("applied %q, want %q", h.applied, want)
	}
}

func TestSubscribesAndAcknowledges(t *testing.T) {
	h := new(holder)
	client(t, []xdsclient.Subscription{h.sub()}, func(t *testing.T, p pilot) {
		s := <-p.streams
		first := s.receive(t)
		if first.GetNode().GetId() != "service~authz" || first.GetTypeUrl() != quotaType || !slices.Equal(first.GetResourceNamesSubscribe(), []string{"*"}) || len(first.GetInitialResourceVersions()) > 0 {
			t.Errorf("first request: %v", first)
		}
		for i, answer := range []*discoveryv3.DeltaDiscoveryRequest{
			s.give(t, "1", nil, policy(t, "a", "default", "1"), policy(t, "b", "default", "1")),
			s.give(t, "2", nil, policy(t, "b", "default", "2")), // the rest stays
			s.give(t, "3", []string{"a"}),
			s.give(t, "4", nil), // nothing new: acknowledged, not applied
		} {
			if answer.GetErrorDetail() != nil {
				t.Errorf("response %d was refused: %s", i+1, answer.GetErrorDetail().GetMessage())
			}
		}
		h.expect(t, "a=1,b=1", "a=1,b=2", "b=2")
	})
}

func TestEmptySetIsAppliedOnce(t *testing.T) {
	h := new(holder)
	client(t, []xdsclient.Subscription{h.sub()}, func(t *testing.T, p pilot) {
		s := <-p.streams
		s.receive(t)
		s.give(t, "1", nil)
		s.give(t, "2", nil)
		h.expect(t, "")
	})
}

func TestRefusalKeepsTheLastGood(t *testing.T) {
	h := new(holder)
	client(t, []xdsclient.Subscription{h.sub()}, func(t *testing.T, p pilot) {
		s := <-p.streams
		s.receive(t)
		s.give(t, "1", nil, policy(t, "a", "default", "1"))
		nack := s.give(t, "2", []string{"a"}, policy(t, "b", "bad", "2"))
		if nack.GetErrorDetail().GetMessage() != "policy b is bad" {
			t.Errorf("refused with %q", nack.GetErrorDetail().GetMessage())
		}
		foreign, err := anypb.New(&configpb.RegoPolicy{})
		if err != nil {
			t.Fatal(err)
		}
		nack = s.give(t, "3", nil, &discoveryv3.Resource{Name: "c", Version: "3", Resource: foreign})
		if !strings.Contains(nack.GetErrorDetail().GetMessage(), "resource c") {
			t.Errorf("refused with %q", nack.GetErrorDetail().GetMessage())
		}
		// What was refused left no trace: a is there, b and c are not.
		s.give(t, "4", nil, policy(t, "d", "default", "4"))
		h.expect(t, "a=1", "a=1,d=4")
	})
}

func TestForeignTypeIsRefused(t *testing.T) {
	h := new(holder)
	client(t, []xdsclient.Subscription{h.sub()}, func(t *testing.T, p pilot) {
		s := <-p.streams
		s.receive(t)
		if err := s.Send(&discoveryv3.DeltaDiscoveryResponse{TypeUrl: "type.googleapis.com/x.Y", Nonce: "1"}); err != nil {
			t.Fatal(err)
		}
		if nack := s.receive(t); !strings.Contains(nack.GetErrorDetail().GetMessage(), "x.Y was not asked for") {
			t.Errorf("answer %v", nack)
		}
		h.expect(t)
	})
}

func TestReconnectsFromWhatItHolds(t *testing.T) {
	h := new(holder)
	client(t, []xdsclient.Subscription{h.sub("a", "b")}, func(t *testing.T, p pilot) {
		s := <-p.streams
		first := s.receive(t)
		if !slices.Equal(first.GetResourceNamesSubscribe(), []string{"a", "b"}) {
			t.Errorf("subscribes to %v", first.GetResourceNamesSubscribe())
		}
		s.give(t, "1", nil, policy(t, "a", "default", "1"), policy(t, "b", "default", "1"))
		s.give(t, "2", nil, policy(t, "b", "bad", "2"))
		// More often than any bound on attempts could allow.
		for range 50 {
			s.end <- errors.New("pilot goes away")
			s = <-p.streams
		}
		again := s.receive(t)
		if want := map[string]string{"a": "1", "b": "1"}; !maps.Equal(again.GetInitialResourceVersions(), want) || again.GetNode().GetId() == "" {
			t.Errorf("goes on from %v, want %v", again.GetInitialResourceVersions(), want)
		}
		h.expect(t, "a=1,b=1") // nothing was forgotten and nothing applied twice
		s.give(t, "1", nil, policy(t, "b", "default", "3"))
		h.expect(t, "a=1,b=1", "a=1,b=3")
	})
}

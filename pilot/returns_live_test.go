package pilot

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"

	"github.com/writ-mesh/writ/internal/envoytest"
	"github.com/writ-mesh/writ/pilot/xds"
)

// leaver gives nothing to an Envoy, under a version, and leaves it when it has taken that.
type leaver struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	// said is the version in the first question about listeners of each stream.
	said chan string
}

// StreamAggregatedResources is called for one stream after the other.
func (l *leaver) StreamAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	for {
		req, err := stream.Recv()
		if err != nil {
			return err
		}
		switch listeners := req.GetTypeUrl() == xds.ListenerType; {
		case listeners && req.GetResponseNonce() != "":
			return errors.New("until later")
		case listeners:
			l.said <- req.GetVersionInfo()
		case req.GetResponseNonce() != "":
			continue
		}
		if err := stream.Send(&discoveryv3.DiscoveryResponse{TypeUrl: req.GetTypeUrl(), VersionInfo: "7", Nonce: "n"}); err != nil {
			return err
		}
	}
}

// TestEnvoyThatReturnsSaysSo: over state of the world an Envoy tells by the version in its
// first question that it has listeners from before, which package xds goes by.
func TestEnvoyThatReturnsSaysSo(t *testing.T) {
	t.Parallel()
	for _, bin := range envoytest.All(t) {
		t.Run(filepath.Base(filepath.Dir(filepath.Dir(bin))), func(t *testing.T) {
			lis, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			l, s, done := &leaver{said: make(chan string, 16)}, grpc.NewServer(), make(chan error, 1)
			discoveryv3.RegisterAggregatedDiscoveryServiceServer(s, l)
			go func() { done <- s.Serve(lis) }()
			t.Cleanup(func() {
				s.Stop()
				if err := <-done; err != nil {
					t.Error(err)
				}
			})
			runEnvoy(t, bin, lis.Addr().String(), "sidecar~127.0.0.1~one.default~default.svc.cluster.local", "NONE", "GRPC")
			ctx, end := context.WithTimeout(t.Context(), bound)
			defer end()
			for _, want := range []string{"", "7"} {
				select {
				case got := <-l.said:
					if got != want {
						t.Errorf("an Envoy asks with version %q, want %q", got, want)
					}
				case <-ctx.Done():
					t.Fatal("no question about listeners")
				}
			}
		})
	}
}

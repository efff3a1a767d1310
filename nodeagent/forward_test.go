package nodeagent_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/writ-mesh/writ/internal/envoytest"
	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/nodeagent/proxysecret"
)

// forwarding is configuration that must not be: a listener that leads everybody to
// the agent's socket.
func forwarding(t *testing.T, r *rig, door string) (*listenerv3.Listener, *clusterv3.Cluster) {
	t.Helper()
	addr := func(path string) *corev3.Address {
		return &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: path}}}
	}
	// By another name, which nobody looking at the configuration could know.
	alias := r.path("harmless.sock")
	if err := os.Symlink(r.socket(), alias); err != nil {
		t.Fatal(err)
	}
	cluster := &clusterv3.Cluster{
		Name: "forward", ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}, ConnectTimeout: durationpb.New(time.Second),
		TypedExtensionProtocolOptions: map[string]*anypb.Any{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": anyOf(t, &httpv3.HttpProtocolOptions{
			UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
				ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: new(corev3.Http2ProtocolOptions)},
			}},
		})},
		LoadAssignment: &endpointv3.ClusterLoadAssignment{ClusterName: "forward", Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{{
			HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: addr(alias)}},
		}}}}},
	}
	manager := &hcmv3.HttpConnectionManager{
		StatPrefix: "door", CodecType: hcmv3.HttpConnectionManager_HTTP2,
		RouteSpecifier: &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: &routev3.RouteConfiguration{Name: "all", VirtualHosts: []*routev3.VirtualHost{{
			Name: "all", Domains: []string{"*"},
			Routes: []*routev3.Route{{
				Match:  &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
				Action: &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: "forward"}, Timeout: durationpb.New(0)}},
			}},
		}}}},
		HttpFilters: []*hcmv3.HttpFilter{{Name: "envoy.filters.http.router", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: anyOf(t, &routerv3.Router{})}}},
	}
	return &listenerv3.Listener{
		Name: "door", Address: addr(door),
		FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{{
			Name: "envoy.filters.network.http_connection_manager", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: anyOf(t, manager)},
		}}}},
	}, cluster
}

// everything calls each method of the agent's socket that gives something, and
// returns how each call ended.
func everything(ctx context.Context, conn *grpc.ClientConn) map[string]error {
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	ended := everyMethod(withHeader(ctx, "true"), conn)
	answer := func(name string, send, recv func() error) {
		// Who was refused before he had sent anything gets EOF for it, and the reason
		// instead of an answer.
		if ended[name] = send(); ended[name] == nil || errors.Is(ended[name], io.EOF) {
			ended[name] = recv()
		}
	}
	if s, err := secretv3.NewSecretDiscoveryServiceClient(conn).DeltaSecrets(ctx); err == nil {
		answer("delta secrets", func() error {
			return s.Send(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"default"}})
		}, func() error { _, err := s.Recv(); return err })
	}
	if s, err := secretv3.NewSecretDiscoveryServiceClient(conn).StreamSecrets(ctx); err == nil {
		answer("secrets", func() error { return s.Send(&discoveryv3.DiscoveryRequest{ResourceNames: []string{"default"}}) },
			func() error { _, err := s.Recv(); return err })
	}
	if s, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx); err == nil {
		answer("delta configuration", func() error { return s.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: clusterURL}) },
			func() error { _, err := s.Recv(); return err })
	}
	if s, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(ctx); err == nil {
		answer("configuration", func() error { return s.Send(&discoveryv3.DiscoveryRequest{TypeUrl: clusterURL}) },
			func() error { _, err := s.Recv(); return err })
	}
	return ended
}

// refusesEverything waits until the way through the proxy is there and wants that
// nothing comes of it, not even for a moment.
func refusesEverything(ctx context.Context, t *testing.T, what string, conn *grpc.ClientConn) {
	t.Helper()
	proctest.Eventually(t, bound, func() error {
		ended := everything(ctx, conn)
		if len(ended) != 9 {
			return fmt.Errorf("%s: some calls could not be made: %v", what, ended)
		}
		for name, err := range ended {
			switch status.Code(err) {
			case codes.PermissionDenied:
			case codes.Unavailable: // not there yet, or not any more
				return fmt.Errorf("%s: %s: %w", what, name, err)
			default:
				t.Fatalf("%s: %s: %v, want PERMISSION_DENIED", what, name, err)
			}
		}
		return nil
	})
}

// TestNobodyActsAsTheEnvoyThatForwards: a real Envoy that was configured to lead to the
// agent's socket gets its own secrets there, and whoever calls through it gets nothing,
// whichever method he calls and whatever he shows.
func TestNobodyActsAsTheEnvoyThatForwards(t *testing.T) {
	t.Parallel()
	for i, binary := range envoytest.All(t) {
		t.Run([]string{"newest", "oldest"}[i], func(t *testing.T) {
			t.Parallel()
			r := newRig(t, time.Hour)
			door := r.path("door.sock")
			l, c := forwarding(t, r, door)
			r.pilot.set(t, "door", l)
			r.pilot.set(t, "forward", c)
			at := address(t)
			r.pilot.set(t, "web", listener(t, at, "ROOTCA"))
			r.pilot.set(t, "answer", answer("own"))
			r.start(t)
			e := startEnvoy(t, r, binary)
			r.register(t, e.PID())
			newCaller(t, r, at).want(t, "the Envoy has its own key", "own")

			conn, err := grpc.NewClient("unix://"+door, grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = conn.Close() })
			issued := r.ca.count(spiffeID)
			refusesEverything(t.Context(), t, "through the proxy", conn)
			key, err := proxysecret.Open(r.path("state/" + proxysecret.File))
			if err != nil {
				t.Fatal(err)
			}
			other := key.Secret(strings.Replace(proxyID, "web-1", "web-2", 1))
			for _, guess := range []string{"", strings.Repeat("A", 43), other} {
				refusesEverything(metadata.AppendToOutgoingContext(t.Context(), proxysecret.Header, guess), t, "with a guess", conn)
			}
			// An agent that was started again has not been called by the Envoy yet.
			r.agent.Kill()
			r.start(t)
			refusesEverything(t.Context(), t, "after a restart of the agent", conn)
			if n := r.ca.count(spiffeID) - issued; n > 1 {
				t.Errorf("%d certificates were asked for since, want that of the Envoy after the restart", n)
			}
			newCaller(t, r, at).want(t, "the Envoy still has its own key", "own")
			sawNoSecret(t, e, r)
		})
	}
}

// sawNoSecret looks for the proxy's secret where others could read it.
func sawNoSecret(t *testing.T, e *envoy, r *rig) {
	t.Helper()
	code, dump, err := getBody(e.admin, "/config_dump")
	if err != nil || code != 200 || !strings.Contains(dump, "[redacted]") {
		t.Errorf("the Envoy's configuration: status %d, %v, %d bytes", code, err, len(dump))
	}
	places := map[string]string{"the Envoy's configuration": dump, "the agent's log": r.agent.Output.String(), "the Envoy's log": e.Output.String()}
	for _, kind := range []string{"environ", "cmdline"} {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", e.PID(), kind))
		if err != nil {
			t.Error(err)
		}
		places[kind] = string(data)
	}
	secret := r.secret(t)
	for place, text := range places {
		if strings.Contains(text, secret) {
			t.Errorf("the secret is in %s", place)
		}
	}
}

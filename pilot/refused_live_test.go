package pilot

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/writ-mesh/writ/internal/envoytest"
	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/pilot/envoy"
	"github.com/writ-mesh/writ/pilot/security"
	"github.com/writ-mesh/writ/pilot/xds"
)

// TestRefusedFilterLeavesTheRest: a real Envoy that does not take a filter gets the routes
// that do not want it, and what it said is in the status.
func TestRefusedFilterLeavesTheRest(t *testing.T) {
	t.Parallel()
	for i, bin := range envoytest.All(t) {
		t.Run(filepath.Base(filepath.Dir(filepath.Dir(bin))), func(t *testing.T) {
			t.Parallel()
			refusedFilter(t, bin, []string{"DELTA_GRPC", "GRPC"}[i%2])
		})
	}
}

// filtered is an Envoy with two listeners, of which the first has a filter of its own
// resource; revisions are given to it by hand.
type filtered struct {
	t     *testing.T
	srv   *xds.Server
	ports [2]int
	last  *xds.Snapshot
}

const filteredID = "sidecar~127.0.0.1~one.default~default.svc.cluster.local"

func refusedFilter(t *testing.T, bin, api string) {
	f := &filtered{t: t, ports: [2]int{proctest.Port(t), proctest.Port(t)}}
	f.srv = xds.New(xds.Options{
		Identify: func(context.Context, *corev3.Node) (xds.Client, error) {
			return xds.Client{ID: filteredID, Kind: xds.SidecarKind, Envoy: true}, nil
		},
		Between: security.BothFilters, Served: security.RoutesServed, Log: slog.New(slog.DiscardHandler),
	})
	address := f.serve()
	// A requirement of a provider that is not there is refused.
	const good, bad = "", "nobody"
	f.publish("1", "first", good)
	runEnvoy(t, bin, address, filteredID, "NONE", api)
	f.await("1", "1")
	proctest.Until(t, bound, "the first revision is acknowledged", func() bool { return f.srv.Clients()[0].Acked == 1 })
	f.publish("2", "second", bad)
	f.await("1", "2")
	proctest.Until(t, bound, "the refusal is known", func() bool {
		c := f.srv.Clients()[0]
		return c.Acked == 1 && strings.HasPrefix(c.LastError, "filter writ.jwt: ") && strings.Contains(c.LastError, "nobody")
	})
	if got := f.ask(0); got != "1" {
		t.Errorf("behind the filter that was refused: %s", got)
	}
	f.publish("3", "first", bad)
	f.await("3", "3")
	f.publish("4", "second", good)
	f.await("4", "4")
	proctest.Until(t, bound, "all is acknowledged", func() bool {
		c := f.srv.Clients()[0]
		return c.Acked == 4 && c.LastError == ""
	})
}

// serve gives the address of the server.
func (f *filtered) serve() string {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.t.Fatal(err)
	}
	s, done := grpc.NewServer(), make(chan error, 1)
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(s, f.srv)
	go func() { done <- s.Serve(lis) }()
	f.t.Cleanup(func() {
		f.srv.Stop()
		s.Stop()
		if err := <-done; err != nil {
			f.t.Error(err)
		}
	})
	return lis.Addr().String()
}

// publish gives a revision whose answers are its number, whose routes name a requirement
// and whose filter has that one, of a provider if one is named.
func (f *filtered) publish(number, requirement, provider string) {
	f.t.Helper()
	required := &jwtv3.JwtRequirement{RequiresType: &jwtv3.JwtRequirement_AllowMissing{AllowMissing: &emptypb.Empty{}}}
	if provider != "" {
		required.RequiresType = &jwtv3.JwtRequirement_ProviderName{ProviderName: provider}
	}
	build := xds.NewBuilder(f.last)
	resource := func(name string, m proto.Message) *xds.Resource {
		r, err := build.Resource(name, m, nil)
		if err != nil {
			f.t.Fatal(err)
		}
		return r
	}
	var listeners, routes []*xds.Resource
	for i, port := range f.ports {
		name := fmt.Sprint("l", i)
		listeners = append(listeners, resource(name, listenerWith(name, port, i == 0)))
		routes = append(routes, resource(name, answerWith(name, number, requirement, i == 0)))
	}
	jwt := &jwtv3.JwtAuthentication{RequirementMap: map[string]*jwtv3.JwtRequirement{requirement: required}}
	filter := resource("writ.jwt", &corev3.TypedExtensionConfig{Name: "writ.jwt", TypedConfig: envoy.Any(jwt)})
	config := build.Config("", build.Set(xds.ListenerType, listeners), build.Set(xds.RouteType, routes), build.Set(xds.ExtensionType, []*xds.Resource{filter}))
	f.last = build.Snapshot(map[string]*xds.Config{filteredID: config}, nil, "")
	f.last.Revision = uint64(number[0] - '0')
	f.srv.Publish(f.last)
}

func listenerWith(name string, port int, filter bool) *listenerv3.Listener {
	hcm := &hcmv3.HttpConnectionManager{
		StatPrefix:     name,
		RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{ConfigSource: envoy.ADS(), RouteConfigName: name}},
	}
	if filter {
		hcm.HttpFilters = append(hcm.HttpFilters, &hcmv3.HttpFilter{Name: "writ.jwt", ConfigType: &hcmv3.HttpFilter_ConfigDiscovery{
			ConfigDiscovery: &corev3.ExtensionConfigSource{ConfigSource: envoy.ADS(), TypeUrls: []string{envoy.Any(&jwtv3.JwtAuthentication{}).GetTypeUrl()}},
		}})
	}
	hcm.HttpFilters = append(hcm.HttpFilters, &hcmv3.HttpFilter{Name: "envoy.filters.http.router", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: envoy.Any(&routerv3.Router{})}})
	return &listenerv3.Listener{
		Name: name,
		Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
			Address: "127.0.0.1", PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(port)},
		}}},
		FilterChains: []*listenerv3.FilterChain{{
			Filters: []*listenerv3.Filter{{Name: "hcm", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: envoy.Any(hcm)}}},
		}},
	}
}

func answerWith(name, text, requirement string, filtered bool) *routev3.RouteConfiguration {
	host := &routev3.VirtualHost{Name: "all", Domains: []string{"*"}, Routes: []*routev3.Route{{
		Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
		Action: &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{
			Status: http.StatusOK, Body: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: text}},
		}},
	}}}
	if filtered {
		host.TypedPerFilterConfig = map[string]*anypb.Any{"writ.jwt": envoy.Any(&jwtv3.PerRouteConfig{RequirementSpecifier: &jwtv3.PerRouteConfig_RequirementName{RequirementName: requirement}})}
	}
	return &routev3.RouteConfiguration{Name: name, VirtualHosts: []*routev3.VirtualHost{host}}
}

// await waits until the two listeners answer so.
func (f *filtered) await(want ...string) {
	f.t.Helper()
	for i := range f.ports {
		proctest.Until(f.t, bound, fmt.Sprintf("listener %d answers %s", i, want[i]), func() bool { return f.ask(i) == want[i] })
	}
}

// ask gives what a listener answers, or why it does not.
func (f *filtered) ask(i int) string {
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/", f.ports[i]))
	if err != nil {
		return err.Error()
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return resp.Status
	}
	return string(text)
}

package security

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/proto"

	"github.com/writ-mesh/writ/pilot/envoy"
)

// inboundHeader names the inbound that a request is for, where several share a listener.
const inboundHeader = "x-inbound"

// listening is what listens for an inbound, or for several.
type listening struct {
	port    uint32
	mtls    bool
	filters []*listenerv3.Filter
	// manager is the one filter of an inbound for HTTP, scopes are the routes of those that
	// share it.
	manager *hcmv3.HttpConnectionManager
	scopes  []*routev3.ScopedRouteConfiguration
}

// grouped gives what listens for the inbounds by the listeners' names.
func (p *proxy) grouped(t testing.TB, inbounds map[string]inbound) map[string]*listening {
	t.Helper()
	listeners := map[string]*listening{}
	for _, name := range slices.Sorted(maps.Keys(inbounds)) {
		in := inbounds[name]
		if in.http == nil {
			listeners[name] = &listening{port: in.port, mtls: in.mtls, filters: append(slices.Clone(in.tcp.Filters), forwardTCP())}
			continue
		}
		manager := p.httpManager(in)
		if !in.shared {
			listeners[name] = &listening{port: in.port, mtls: in.mtls, manager: manager}
			continue
		}
		p.shared[name] = sharedBy(t, in.port, manager)
		l := listeners[p.shared[name]]
		if l == nil {
			l = &listening{port: in.port, manager: manager}
			listeners[p.shared[name]] = l
		}
		l.mtls = l.mtls || in.mtls
		l.scopes = append(l.scopes, &routev3.ScopedRouteConfiguration{
			Name: name, RouteConfiguration: manager.GetRouteConfig(),
			Key: &routev3.ScopedRouteConfiguration_Key{Fragments: []*routev3.ScopedRouteConfiguration_Key_Fragment{{
				Type: &routev3.ScopedRouteConfiguration_Key_Fragment_StringKey{StringKey: name},
			}}},
		})
	}
	return listeners
}

// sharedBy names the listener for inbounds whose managers differ in their routes only.
func sharedBy(t testing.TB, port uint32, m *hcmv3.HttpConnectionManager) string {
	t.Helper()
	same := proto.CloneOf(m)
	same.RouteSpecifier = nil
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(same)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("shared-%d-%x", port, sha256.Sum256(raw))
}

// listeners are "<name>.plain" and, for callers with certificates, "<name>.mtls".
func (l *listening) listeners(name string, server *corev3.TransportSocket) []*listenerv3.Listener {
	if l.scopes != nil {
		l.manager.RouteSpecifier = &hcmv3.HttpConnectionManager_ScopedRoutes{ScopedRoutes: &hcmv3.ScopedRoutes{
			Name: "inbounds",
			ScopeKeyBuilder: &hcmv3.ScopedRoutes_ScopeKeyBuilder{Fragments: []*hcmv3.ScopedRoutes_ScopeKeyBuilder_FragmentBuilder{{
				Type: &hcmv3.ScopedRoutes_ScopeKeyBuilder_FragmentBuilder_HeaderValueExtractor_{
					HeaderValueExtractor: &hcmv3.ScopedRoutes_ScopeKeyBuilder_FragmentBuilder_HeaderValueExtractor{
						Name:        inboundHeader,
						ExtractType: &hcmv3.ScopedRoutes_ScopeKeyBuilder_FragmentBuilder_HeaderValueExtractor_Index{},
					},
				},
			}}},
			ConfigSpecifier: &hcmv3.ScopedRoutes_ScopedRouteConfigurationsList{
				ScopedRouteConfigurationsList: &hcmv3.ScopedRouteConfigurationsList{ScopedRouteConfigurations: l.scopes},
			},
		}}
	}
	if l.manager != nil {
		l.filters = []*listenerv3.Filter{{Name: "hcm", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: envoy.Any(l.manager)}}}
	}
	listener := func(kind string, port uint32, socket *corev3.TransportSocket) *listenerv3.Listener {
		return &listenerv3.Listener{
			Name:         name + kind,
			Address:      envoy.SocketAddress("127.0.0.1", port),
			FilterChains: []*listenerv3.FilterChain{{Filters: l.filters, TransportSocket: socket}},
			// The SNI that rules see comes from here.
			ListenerFilters: []*listenerv3.ListenerFilter{{
				Name:       "tls_inspector",
				ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: envoy.Any(&tlsinspectorv3.TlsInspector{})},
			}},
		}
	}
	out := []*listenerv3.Listener{listener(".plain", l.port, nil)}
	if l.mtls {
		out = append(out, listener(".mtls", 0, server))
	}
	return out
}

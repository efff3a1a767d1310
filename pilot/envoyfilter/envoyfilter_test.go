package envoyfilter

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	luav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/lua/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/writ-mesh/writ/pilot/envoy"
	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/translate"
)

// filterOf reads the specification of an EnvoyFilter.
func filterOf(t testing.TB, name, namespace, text string) *model.EnvoyFilter {
	t.Helper()
	f := &model.EnvoyFilter{Meta: model.Meta{Ref: model.Ref{Kind: "EnvoyFilter", Namespace: namespace, Name: name}}, Spec: new(networking.EnvoyFilter)}
	var v any
	if err := yaml.Unmarshal([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	if err := protojson.Unmarshal(data, f.Spec); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return f
}

func manager(routes string) *listenerv3.Filter {
	http := func(name string, m proto.Message) *hcmv3.HttpFilter {
		return &hcmv3.HttpFilter{Name: name, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: envoy.Any(m)}}
	}
	return &listenerv3.Filter{Name: connectionManager, ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: envoy.Any(&hcmv3.HttpConnectionManager{
		RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{RouteConfigName: routes}},
		HttpFilters:    []*hcmv3.HttpFilter{http("writ.deny", &rbacv3.RBAC{}), http("envoy.filters.http.cors", &luav3.Lua{StatPrefix: "cors"}), http("envoy.filters.http.router", &routerv3.Router{})},
	})}}
}

func listenerAt(name, address string, port uint32, direction corev3.TrafficDirection, chains ...*listenerv3.FilterChain) translate.Resource {
	l := &listenerv3.Listener{Name: name, Address: envoy.SocketAddress(address, port), TrafficDirection: direction, FilterChains: chains}
	if direction == corev3.TrafficDirection_INBOUND {
		l.ListenerFilters = []*listenerv3.ListenerFilter{{Name: "envoy.filters.listener.tls_inspector"}}
	}
	return translate.Resource{Name: name, Message: l, Sources: []model.Ref{{Kind: "Service", Name: "s"}}}
}

func routesOf(name string, hosts ...*routev3.VirtualHost) translate.Resource {
	return translate.Resource{Name: name, Message: &routev3.RouteConfiguration{Name: name, VirtualHosts: hosts}}
}

func vhost(name string, routes ...string) *routev3.VirtualHost {
	vh := &routev3.VirtualHost{Name: name, Domains: []string{"*." + name}}
	for _, r := range routes {
		route := &routev3.Route{Name: r, Action: &routev3.Route_Route{Route: &routev3.RouteAction{Timeout: durationpb.New(15e9)}}}
		if r == "moved" {
			route.Action = &routev3.Route_Redirect{Redirect: &routev3.RedirectAction{}}
		}
		vh.Routes = append(vh.Routes, route)
	}
	return vh
}

func clusterOf(name string) translate.Resource {
	c := &clusterv3.Cluster{Name: name, ConnectTimeout: durationpb.New(10e9)}
	if strings.HasPrefix(name, "outbound") {
		c.TransportSocket = &corev3.TransportSocket{Name: "envoy.transport_sockets.tls", ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: envoy.Any(&tlsv3.UpstreamTlsContext{Sni: "sni"})}}
	}
	return translate.Resource{Name: name, Message: c}
}

// sidecar has what the translator gives a sidecar, in little.
func sidecar() (p *model.Proxy, own, shared *translate.Snapshot) {
	p = &model.Proxy{Name: "a-1", Namespace: "default", Type: model.SidecarProxy, Labels: map[string]string{"app": "a"}, Address: netip.MustParseAddr("127.0.0.2")}
	tls := &listenerv3.FilterChain{Name: "80-mtls", FilterChainMatch: &listenerv3.FilterChainMatch{TransportProtocol: "tls"}, Filters: []*listenerv3.Filter{manager("inbound|80||~x")}}
	tcp := &listenerv3.FilterChain{Name: "90", Filters: []*listenerv3.Filter{{Name: "writ.deny"}, {Name: "envoy.filters.network.tcp_proxy", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: envoy.Any(&tcpproxyv3.TcpProxy{StatPrefix: "tcp"})}}}}
	own = &translate.Snapshot{
		Listeners: []translate.Resource{
			listenerAt("inbound|80||", "127.0.0.2", 80, corev3.TrafficDirection_INBOUND, tls),
			listenerAt("inbound|90||", "127.0.0.2", 90, corev3.TrafficDirection_INBOUND, tcp),
			listenerAt(explicitProxy, "127.0.0.2", 15007, corev3.TrafficDirection_OUTBOUND, &listenerv3.FilterChain{Filters: []*listenerv3.Filter{manager(explicitProxy)}}),
		},
		Routes:   []translate.Resource{routesOf("inbound|80||~x", vhost("inbound|http|80", "default"))},
		Clusters: []translate.Resource{clusterOf("inbound|80||127.0.0.1:7"), clusterOf("writ-authz")},
	}
	shared = &translate.Snapshot{
		Routes:   []translate.Resource{routesOf(explicitProxy, vhost("b.default.svc.cluster.local:80", "first", "moved"), vhost("b.default.svc.cluster.local:90", "default"))},
		Clusters: []translate.Resource{clusterOf("outbound|80|v1|b.default.svc.cluster.local"), clusterOf("outbound|80||b.default.svc.cluster.local"), clusterOf("outbound|90||b.default.svc.cluster.local")},
	}
	return p, own, shared
}

func gatewayProxy() (p *model.Proxy, own, shared *translate.Snapshot) {
	p = &model.Proxy{Name: "gw", Namespace: "istio-system", Type: model.GatewayProxy, Labels: map[string]string{"istio": "ingressgateway"}, Gateway: "default/gw", GatewayPorts: map[uint32]uint32{80: 8080}}
	own = &translate.Snapshot{
		Listeners: []translate.Resource{listenerAt("gateway|8080", "127.0.0.1", 8080, corev3.TrafficDirection_OUTBOUND, &listenerv3.FilterChain{Filters: []*listenerv3.Filter{manager("http.8080~y")}})},
		Routes:    []translate.Resource{routesOf("http.8080~y", vhost("*:8080", "default")), routesOf("https.443.https.gw.default.0~z", vhost("*:443", "default"))},
	}
	return p, own, &translate.Snapshot{Clusters: []translate.Resource{clusterOf("outbound|80||b.default.svc.cluster.local")}}
}

func meshOf(filters ...*model.EnvoyFilter) *model.Mesh {
	m := &model.Mesh{RootNamespace: "istio-system", EnvoyFilters: filters}
	m.Gateways = []*model.Gateway{{Meta: model.Meta{Ref: model.Ref{Namespace: "default", Name: "gw"}}, Spec: &networking.Gateway{
		Selector: map[string]string{"istio": "ingressgateway"},
		Servers:  []*networking.Server{{Port: &networking.Port{Number: 80, Name: "web"}}, {Port: &networking.Port{Number: 443, Name: "https"}}},
	}}}
	return m
}

// lines tell what a snapshot has.
func lines(t testing.TB, all ...*translate.Snapshot) []string {
	t.Helper()
	var out []string
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	for _, s := range all {
		for _, r := range s.Listeners {
			l := r.Message.(*listenerv3.Listener)
			var names []string
			for _, f := range l.GetListenerFilters() {
				names = append(names, strings.TrimPrefix(f.GetName(), "envoy.filters.listener."))
			}
			add("%s %v %v", r.Name, names, l.GetEnableReusePort().GetValue())
			for _, fc := range append(slices.Clone(l.GetFilterChains()), l.GetDefaultFilterChain()) {
				if fc == nil {
					continue
				}
				for _, f := range fc.GetFilters() {
					line := fmt.Sprintf("%s %q %s", r.Name, fc.GetName(), strings.TrimPrefix(f.GetName(), "envoy.filters.network."))
					m := new(hcmv3.HttpConnectionManager)
					if f.GetTypedConfig().UnmarshalTo(m) == nil {
						line += " " + m.GetServerName()
						for _, h := range m.GetHttpFilters() {
							line += " " + strings.TrimPrefix(h.GetName(), "envoy.filters.http.")
							if lua := new(luav3.Lua); h.GetTypedConfig().UnmarshalTo(lua) == nil {
								line += "=" + lua.GetStatPrefix()
							}
						}
					}
					add("%s", line)
				}
			}
		}
		for _, r := range s.Routes {
			rc := r.Message.(*routev3.RouteConfiguration)
			add("%s %v", r.Name, rc.GetResponseHeadersToRemove())
			for _, vh := range rc.GetVirtualHosts() {
				line := r.Name + " " + vh.GetName() + fmt.Sprint(" ", vh.GetDomains())
				for _, route := range vh.GetRoutes() {
					line += fmt.Sprintf(" %s=%ds", route.GetName(), route.GetRoute().GetTimeout().GetSeconds())
				}
				add("%s", line)
			}
		}
		for _, r := range s.Clusters {
			c := r.Message.(*clusterv3.Cluster)
			tls := new(tlsv3.UpstreamTlsContext)
			_ = c.GetTransportSocket().GetTypedConfig().UnmarshalTo(tls)
			add("%s %s %s %s%v", r.Name, c.GetConnectTimeout().AsDuration(), c.GetTransportSocket().GetName(), tls.GetSni(), tls.GetCommonTlsContext().GetAlpnProtocols())
		}
		for _, r := range s.Extensions {
			add("extension %s", r.Name)
		}
	}
	return out
}

// TestApply: what each kind of patch does to which resources, and to no others.
func TestApply(t *testing.T) {
	const (
		hcm    = `filterChain: {filter: {name: envoy.filters.network.http_connection_manager}}`
		router = `filterChain: {filter: {name: envoy.filters.network.http_connection_manager, subFilter: {name: envoy.filters.http.router}}}`
		lua    = `{name: lua, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua, stat_prefix: new}}`
	)
	at := func(sub string) string {
		return `filterChain: {filter: {name: envoy.filters.network.http_connection_manager, subFilter: {name: ` + sub + `}}}`
	}
	for name, c := range map[string]struct {
		patch   string
		gateway bool
		// gone says that whole resources are removed, so that nobody is to blame.
		gone bool
		// want are the lines that change, "-" before and "+" after.
		want string
	}{
		"a filter before the router of one port": {
			patch: `{applyTo: HTTP_FILTER, match: {context: SIDECAR_INBOUND, listener: {portNumber: 80, ` + router + `}}, patch: {operation: INSERT_BEFORE, value: ` + lua + `}}`,
			want: `
-inbound|80|| "80-mtls" http_connection_manager  writ.deny cors=cors router
+inbound|80|| "80-mtls" http_connection_manager  writ.deny cors=cors lua=new router`,
		},
		"of another port":  {patch: `{applyTo: HTTP_FILTER, match: {context: SIDECAR_INBOUND, listener: {portNumber: 81, ` + router + `}}, patch: {operation: INSERT_BEFORE, value: ` + lua + `}}`},
		"of another chain": {patch: `{applyTo: HTTP_FILTER, match: {context: SIDECAR_INBOUND, listener: {filterChain: {transportProtocol: raw_buffer}}}, patch: {operation: INSERT_FIRST, value: ` + lua + `}}`},
		"for gateways":     {patch: `{applyTo: HTTP_FILTER, match: {context: GATEWAY}, patch: {operation: INSERT_FIRST, value: ` + lua + `}}`},
		"for a version":    {patch: `{applyTo: HTTP_FILTER, match: {proxy: {proxyVersion: ".*"}}, patch: {operation: INSERT_FIRST, value: ` + lua + `}}`},
		"for waypoints":    {patch: `{applyTo: HTTP_FILTER, match: {context: WAYPOINT}, patch: {operation: INSERT_FIRST, value: ` + lua + `}}`},
		"a filter that is not there": {
			patch: `{applyTo: HTTP_FILTER, match: {listener: {` + at("x") + `}}, patch: {operation: INSERT_AFTER, value: ` + lua + `}}`,
		},
		"a filter first, in one direction": {
			patch: `{applyTo: HTTP_FILTER, match: {context: SIDECAR_OUTBOUND, listener: {name: virtualOutbound, ` + hcm + `}}, patch: {operation: INSERT_FIRST, value: ` + lua + `}}`,
			want: `
-outbound|15007 "" http_connection_manager  writ.deny cors=cors router
+outbound|15007 "" http_connection_manager  lua=new writ.deny cors=cors router`,
		},
		"a filter before what decides policies, by the type of Envoy's filter": {
			patch: `{applyTo: HTTP_FILTER, match: {context: SIDECAR_INBOUND, listener: {name: virtualInbound, ` + at("envoy.filters.http.rbac") + `}}, patch: {operation: INSERT_BEFORE, value: ` + lua + `}}`,
			want: `
-inbound|80|| "80-mtls" http_connection_manager  writ.deny cors=cors router
+inbound|80|| "80-mtls" http_connection_manager  lua=new writ.deny cors=cors router`,
		},
		"what decides policies is not removed": {patch: `{applyTo: HTTP_FILTER, match: {listener: {` + at("envoy.filters.http.rbac") + `}}, patch: {operation: REMOVE}}`},
		"nor replaced":                         {patch: `{applyTo: HTTP_FILTER, match: {listener: {` + at("writ.deny") + `}}, patch: {operation: REPLACE, value: ` + lua + `}}`},
		"nor merged":                           {patch: `{applyTo: HTTP_FILTER, match: {listener: {` + at("envoy.filters.http.rbac") + `}}, patch: {operation: MERGE, value: {name: x}}}`},
		"nor removed from connections":         {patch: `{applyTo: NETWORK_FILTER, match: {listener: {filterChain: {filter: {name: writ.deny}}}}, patch: {operation: REMOVE}}`},
		"a filter replaced": {
			patch: `{applyTo: HTTP_FILTER, match: {context: SIDECAR_INBOUND, listener: {` + at("envoy.filters.http.cors") + `}}, patch: {operation: REPLACE, value: ` + lua + `}}`,
			want: `
-inbound|80|| "80-mtls" http_connection_manager  writ.deny cors=cors router
+inbound|80|| "80-mtls" http_connection_manager  writ.deny lua=new router`,
		},
		"a filter merged": {
			patch: `{applyTo: HTTP_FILTER, match: {context: SIDECAR_INBOUND, listener: {` + at("envoy.filters.http.cors") + `}}, patch: {operation: MERGE, value: {typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua, stat_prefix: merged}}}}`,
			want: `
-inbound|80|| "80-mtls" http_connection_manager  writ.deny cors=cors router
+inbound|80|| "80-mtls" http_connection_manager  writ.deny cors=merged router`,
		},
		"a filter merged with one of another type": {
			patch: `{applyTo: HTTP_FILTER, match: {listener: {` + at("envoy.filters.http.cors") + `}}, patch: {operation: MERGE, value: {typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer}}}}`,
		},
		"a filter removed": {
			patch: `{applyTo: HTTP_FILTER, match: {context: SIDECAR_INBOUND, listener: {` + at("envoy.filters.http.cors") + `}}, patch: {operation: REMOVE}}`,
			want: `
-inbound|80|| "80-mtls" http_connection_manager  writ.deny cors=cors router
+inbound|80|| "80-mtls" http_connection_manager  writ.deny router`,
		},
		"the connection manager": {
			patch: `{applyTo: NETWORK_FILTER, match: {context: SIDECAR_INBOUND, listener: {` + hcm + `}}, patch: {operation: MERGE, value: {typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, server_name: me}}}}`,
			want: `
-inbound|80|| "80-mtls" http_connection_manager  writ.deny cors=cors router
+inbound|80|| "80-mtls" http_connection_manager me writ.deny cors=cors router`,
		},
		"a filter of connections": {
			patch: `{applyTo: NETWORK_FILTER, match: {listener: {filterChain: {filter: {name: envoy.filters.network.tcp_proxy}}}}, patch: {operation: INSERT_BEFORE, value: {name: mine}}}`,
			want: `
+inbound|90|| "90" mine`,
		},
		"a filter of listeners": {
			patch: `{applyTo: LISTENER_FILTER, match: {listener: {portNumber: 90, listenerFilter: envoy.filters.listener.tls_inspector}}, patch: {operation: INSERT_AFTER, value: {name: mine}}}`,
			want: `
-inbound|90|| [tls_inspector] false
+inbound|90|| [tls_inspector mine] false`,
		},
		"a listener": {
			patch: `{applyTo: LISTENER, match: {context: SIDECAR_INBOUND, listener: {portNumber: 80}}, patch: {operation: MERGE, value: {name: other, enable_reuse_port: true}}}`,
			want: `
-inbound|80|| [tls_inspector] false
+inbound|80|| [tls_inspector] true`,
		},
		"a listener removed": {
			gone:  true,
			patch: `{applyTo: LISTENER, match: {listener: {portNumber: 15007}}, patch: {operation: REMOVE}}`,
			want: `
-outbound|15007 [] false
-outbound|15007 "" http_connection_manager  writ.deny cors=cors router`,
		},
		"a listener added": {
			patch: `{applyTo: LISTENER, patch: {operation: ADD, value: {name: a-new-one}}}`,
			want: `
+a-new-one [] false`,
		},
		"a chain removed": {
			patch: `{applyTo: FILTER_CHAIN, match: {listener: {filterChain: {name: 80-mtls}}}, patch: {operation: REMOVE}}`,
			want: `
-inbound|80|| "80-mtls" http_connection_manager  writ.deny cors=cors router`,
		},
		"a chain added": {
			patch: `{applyTo: FILTER_CHAIN, match: {listener: {portNumber: 90}}, patch: {operation: ADD, value: {name: more, filters: [{name: mine}]}}}`,
			want: `
+inbound|90|| "more" mine`,
		},
		"routes": {
			patch: `{applyTo: ROUTE_CONFIGURATION, match: {routeConfiguration: {name: "inbound|80||"}}, patch: {operation: MERGE, value: {response_headers_to_remove: [x]}}}`,
			want: `
-inbound|80||~x []
+inbound|80||~x [x]`,
		},
		"a virtual host by port and name": {
			patch: `{applyTo: VIRTUAL_HOST, match: {context: SIDECAR_OUTBOUND, routeConfiguration: {portNumber: 80, vhost: {name: "b.default.svc.cluster.local:80"}}}, patch: {operation: MERGE, value: {domains: [more]}}}`,
			want: `
-outbound|15007 b.default.svc.cluster.local:80 [*.b.default.svc.cluster.local:80] first=15s moved=0s
+outbound|15007 b.default.svc.cluster.local:80 [*.b.default.svc.cluster.local:80 more] first=15s moved=0s`,
		},
		"with a list replaced": {
			patch: `{applyTo: VIRTUAL_HOST, match: {routeConfiguration: {portNumber: 90, vhost: {domainName: "*.b.default.svc.cluster.local:90"}}}, patch: {operation: MERGE_AND_REPLACE_LIST, value: {domains: [more]}}}`,
			want: `
-outbound|15007 b.default.svc.cluster.local:90 [*.b.default.svc.cluster.local:90] default=15s
+outbound|15007 b.default.svc.cluster.local:90 [more] default=15s`,
		},
		"a virtual host removed": {
			patch: `{applyTo: VIRTUAL_HOST, match: {routeConfiguration: {vhost: {name: "b.default.svc.cluster.local:90"}}}, patch: {operation: REMOVE}}`,
			want: `
-outbound|15007 b.default.svc.cluster.local:90 [*.b.default.svc.cluster.local:90] default=15s`,
		},
		"a virtual host added": {
			patch: `{applyTo: VIRTUAL_HOST, match: {context: SIDECAR_OUTBOUND, routeConfiguration: {name: http_proxy}}, patch: {operation: ADD, value: {name: new, domains: [n]}}}`,
			want: `
+outbound|15007 new [n]`,
		},
		"a virtual host replaced": {
			patch: `{applyTo: VIRTUAL_HOST, match: {context: SIDECAR_INBOUND}, patch: {operation: REPLACE, value: {name: new, domains: [n]}}}`,
			want: `
-inbound|80||~x inbound|http|80 [*.inbound|http|80] default=15s
+inbound|80||~x new [n]`,
		},
		"a route merged: a duration is one value": {
			patch: `{applyTo: HTTP_ROUTE, match: {routeConfiguration: {vhost: {route: {name: first}}}}, patch: {operation: MERGE, value: {route: {timeout: 3s}}}}`,
			want: `
-outbound|15007 b.default.svc.cluster.local:80 [*.b.default.svc.cluster.local:80] first=15s moved=0s
+outbound|15007 b.default.svc.cluster.local:80 [*.b.default.svc.cluster.local:80] first=3s moved=0s`,
		},
		"a route by what it does": {
			patch: `{applyTo: HTTP_ROUTE, match: {routeConfiguration: {vhost: {route: {action: REDIRECT}}}}, patch: {operation: REMOVE}}`,
			want: `
-outbound|15007 b.default.svc.cluster.local:80 [*.b.default.svc.cluster.local:80] first=15s moved=0s
+outbound|15007 b.default.svc.cluster.local:80 [*.b.default.svc.cluster.local:80] first=15s`,
		},
		"a route before another": {
			patch: `{applyTo: HTTP_ROUTE, match: {routeConfiguration: {vhost: {route: {name: moved}}}}, patch: {operation: INSERT_BEFORE, value: {name: new}}}`,
			want: `
-outbound|15007 b.default.svc.cluster.local:80 [*.b.default.svc.cluster.local:80] first=15s moved=0s
+outbound|15007 b.default.svc.cluster.local:80 [*.b.default.svc.cluster.local:80] first=15s new=0s moved=0s`,
		},
		"a route first, where one matches": {
			patch: `{applyTo: HTTP_ROUTE, match: {context: SIDECAR_OUTBOUND, routeConfiguration: {vhost: {route: {name: moved}}}}, patch: {operation: INSERT_FIRST, value: {name: new}}}`,
			want: `
-outbound|15007 b.default.svc.cluster.local:80 [*.b.default.svc.cluster.local:80] first=15s moved=0s
+outbound|15007 b.default.svc.cluster.local:80 [*.b.default.svc.cluster.local:80] new=0s first=15s moved=0s`,
		},
		"the clusters of a service": {
			patch: `{applyTo: CLUSTER, match: {cluster: {service: b.default.svc.cluster.local, portNumber: 80, subset: v1}}, patch: {operation: MERGE, value: {connect_timeout: 1s, transport_socket: {name: envoy.transport_sockets.tls, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, common_tls_context: {alpn_protocols: [x]}}}}}}`,
			want: `
-outbound|80|v1|b.default.svc.cluster.local 10s envoy.transport_sockets.tls sni[]
+outbound|80|v1|b.default.svc.cluster.local 1s envoy.transport_sockets.tls sni[x]`,
		},
		"another kind of socket": {
			patch: `{applyTo: CLUSTER, match: {cluster: {name: "outbound|90||b.default.svc.cluster.local"}}, patch: {operation: MERGE, value: {name: other, transport_socket: {name: envoy.transport_sockets.raw_buffer}}}}`,
			want: `
-outbound|90||b.default.svc.cluster.local 10s envoy.transport_sockets.tls sni[]
+outbound|90||b.default.svc.cluster.local 10s envoy.transport_sockets.raw_buffer []`,
		},
		"the cluster of the program": {
			patch: `{applyTo: CLUSTER, match: {context: SIDECAR_INBOUND, cluster: {portNumber: 80}}, patch: {operation: MERGE, value: {connect_timeout: 1s}}}`,
			want: `
-inbound|80||127.0.0.1:7 10s  []
+inbound|80||127.0.0.1:7 1s  []`,
		},
		"all clusters but the mesh's own": {
			gone:  true,
			patch: `{applyTo: CLUSTER, patch: {operation: REMOVE}}`,
			want: `
-inbound|80||127.0.0.1:7 10s  []
-outbound|80|v1|b.default.svc.cluster.local 10s envoy.transport_sockets.tls sni[]
-outbound|80||b.default.svc.cluster.local 10s envoy.transport_sockets.tls sni[]
-outbound|90||b.default.svc.cluster.local 10s envoy.transport_sockets.tls sni[]`,
		},
		"a cluster added": {
			patch: `{applyTo: CLUSTER, patch: {operation: ADD, value: {name: new, connect_timeout: 1s}}}`,
			want: `
+new 1s  []`,
		},
		"an extension": {
			patch: `{applyTo: EXTENSION_CONFIG, match: {context: SIDECAR_INBOUND}, patch: {operation: ADD, value: ` + lua + `}}`,
			want: `
+extension lua`,
		},
		"a gateway's filter": {
			gateway: true,
			patch:   `{applyTo: HTTP_FILTER, match: {context: GATEWAY, listener: {portNumber: 80, ` + router + `}}, patch: {operation: INSERT_BEFORE, value: ` + lua + `}}`,
			want: `
-gateway|8080 "" http_connection_manager  writ.deny cors=cors router
+gateway|8080 "" http_connection_manager  writ.deny cors=cors lua=new router`,
		},
		"a gateway's listener by the name that Istio has for it": {
			gateway: true,
			patch:   `{applyTo: LISTENER, match: {listener: {name: 0.0.0.0_8080}}, patch: {operation: MERGE, value: {enable_reuse_port: true}}}`,
			want: `
-gateway|8080 [] false
+gateway|8080 [] true`,
		},
		"a gateway's routes by port": {
			gateway: true,
			patch:   `{applyTo: VIRTUAL_HOST, match: {routeConfiguration: {portNumber: 80, portName: web, gateway: default/gw}}, patch: {operation: MERGE, value: {domains: [more]}}}`,
			want: `
-http.8080~y *:8080 [*.*:8080] default=15s
+http.8080~y *:8080 [*.*:8080 more] default=15s`,
		},
		"a gateway's routes by the name of the port": {
			gateway: true,
			patch:   `{applyTo: VIRTUAL_HOST, match: {routeConfiguration: {portName: https}}, patch: {operation: REMOVE}}`,
			want: `
-https.443.https.gw.default.0~z *:443 [*.*:443] default=15s`,
		},
		"another gateway's routes": {gateway: true, patch: `{applyTo: VIRTUAL_HOST, match: {routeConfiguration: {gateway: default/other}}, patch: {operation: REMOVE}}`},
	} {
		t.Run(name, func(t *testing.T) {
			of := sidecar
			if c.gateway {
				of = gatewayProxy
			}
			p, own, shared := of()
			before := lines(t, own, shared)
			f, err := New(meshOf(filterOf(t, "f", "istio-system", "{configPatches: ["+c.patch+"]}")))
			if err != nil {
				t.Fatal(err)
			}
			newOwn, newShared, err := f.Apply(p, own, shared)
			if err != nil {
				t.Fatal(err)
			}
			after := lines(t, newOwn, newShared)
			got := ""
			for _, l := range before {
				if !slices.Contains(after, l) {
					got += "\n-" + l
				}
			}
			for _, l := range after {
				if !slices.Contains(before, l) {
					got += "\n+" + l
				}
			}
			// Lines of one place stand together.
			sorted := func(text string) []string {
				list := strings.Split(text, "\n")
				slices.Sort(list)
				return list
			}
			if diff := cmp.Diff(sorted(c.want), sorted(got)); diff != "" {
				t.Errorf("changed:%s\nwant -, got +:\n%s", got, diff)
			}
			if diff := cmp.Diff(before, lines(t, own, shared)); diff != "" {
				t.Errorf("what is shared was changed:\n%s", diff)
			}
			blamed := 0
			for _, list := range [][]translate.Resource{newOwn.Listeners, newOwn.Routes, newOwn.Clusters, newOwn.Extensions, newShared.Routes, newShared.Clusters} {
				for _, r := range list {
					if slices.ContainsFunc(r.Sources, func(ref model.Ref) bool { return ref.Name == "f" }) {
						blamed++
					}
				}
			}
			if (c.want != "" && !c.gone) != (blamed > 0) {
				t.Errorf("%d resources name the EnvoyFilter", blamed)
			}
		})
	}
}

// TestWhichCount: priority, the root namespace and age decide the order; workloads are
// selected; what is not selected is the same object as before.
func TestWhichCount(t *testing.T) {
	add := func(name string) string {
		return `configPatches: [{applyTo: HTTP_FILTER, match: {context: SIDECAR_INBOUND}, patch: {operation: INSERT_FIRST, value: {name: ` + name + `}}}]`
	}
	all := []*model.EnvoyFilter{
		filterOf(t, "own", "default", "{"+add("own")+"}"), filterOf(t, "root", "istio-system", "{"+add("root")+"}"), filterOf(t, "early", "default", "{priority: -1, "+add("early")+"}"),
		filterOf(t, "last", "istio-system", "{priority: 10, "+add("last")+"}"),
		filterOf(t, "other-app", "default", "{workloadSelector: {labels: {app: b}}, "+add("x")+"}"), filterOf(t, "other-namespace", "other", "{"+add("x")+"}"),
	}
	f, err := New(meshOf(all...))
	if err != nil {
		t.Fatal(err)
	}
	p, own, shared := sidecar()
	got, same, err := f.Apply(p, own, shared)
	if err != nil {
		t.Fatal(err)
	}
	want := `inbound|80|| "80-mtls" http_connection_manager  last own root early writ.deny cors=cors router`
	if text := lines(t, got); !slices.Contains(text, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(text, "\n"), want)
	}
	if second, again, err := f.Apply(&model.Proxy{Name: "a-2", Namespace: "default", Type: model.SidecarProxy}, own, shared); err != nil || again != same || second == got {
		t.Errorf("what two proxies have in common was made twice: %v", err)
	}
	nobody := &model.Proxy{Namespace: "none"}
	f, err = New(meshOf(all[0]))
	if err != nil {
		t.Fatal(err)
	}
	if o, s, err := f.Apply(nobody, own, shared); o != own || s != shared || err != nil {
		t.Error("a proxy that nothing is for was changed")
	}
}

// TestIntercepted: where traffic is intercepted the listeners of Istio's names are there,
// and ports are those of filter chains.
func TestIntercepted(t *testing.T) {
	p, _, shared := sidecar()
	p.Interception = model.Redirect
	chain := func(name string, port uint32) *listenerv3.FilterChain {
		return &listenerv3.FilterChain{Name: name, FilterChainMatch: &listenerv3.FilterChainMatch{DestinationPort: wrapperspb.UInt32(port)}, Filters: []*listenerv3.Filter{manager(name)}}
	}
	own := &translate.Snapshot{Listeners: []translate.Resource{
		listenerAt("0.0.0.0_80", "0.0.0.0", 80, corev3.TrafficDirection_OUTBOUND, chain("http", 80)),
		listenerAt(virtualInbound, "0.0.0.0", 15006, corev3.TrafficDirection_INBOUND, chain("8080", 8080), chain("9090", 9090)),
		listenerAt(virtualOutbound, "0.0.0.0", 15001, corev3.TrafficDirection_OUTBOUND, chain("unknown", 1)),
	}}
	patch := func(match, name string) string {
		return `{applyTo: HTTP_FILTER, match: {` + match + `}, patch: {operation: INSERT_FIRST, value: {name: ` + name + `}}}`
	}
	f, err := New(meshOf(filterOf(t, "f", "default", `{configPatches: [`+strings.Join([]string{
		patch("context: SIDECAR_INBOUND, listener: {portNumber: 8080}", "one-port"), patch("context: SIDECAR_INBOUND, listener: {filterChain: {destinationPort: 9090}}", "chain"),
		patch("listener: {name: virtualOutbound}", "named"), patch("context: SIDECAR_OUTBOUND, listener: {portNumber: 80}", "port"),
	}, ", ")+`]}`)))
	if err != nil {
		t.Fatal(err)
	}
	got, _, err := f.Apply(p, own, shared)
	if err != nil {
		t.Fatal(err)
	}
	var managers []string
	for _, l := range lines(t, got) {
		if strings.Contains(l, "http_connection_manager") {
			managers = append(managers, l)
		}
	}
	want := []string{
		`0.0.0.0_80 "http" http_connection_manager  port writ.deny cors=cors router`,
		`virtualInbound "8080" http_connection_manager  one-port writ.deny cors=cors router`,
		`virtualInbound "9090" http_connection_manager  chain writ.deny cors=cors router`,
		`virtualOutbound "unknown" http_connection_manager  named writ.deny cors=cors router`,
	}
	if diff := cmp.Diff(want, managers); diff != "" {
		t.Error(diff)
	}
}

func TestNameTaken(t *testing.T) {
	p, own, shared := sidecar()
	f, err := New(meshOf(filterOf(t, "f", "default", `{configPatches: [{applyTo: CLUSTER, patch: {operation: ADD, value: {name: "outbound|80||b.default.svc.cluster.local"}}}]}`)))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := f.Apply(p, own, shared); err == nil || !strings.Contains(err.Error(), `EnvoyFilter default/f: CLUSTER "outbound|80||b.default.svc.cluster.local" is there already`) {
		t.Error(err)
	}
}

// FuzzApply: whatever an EnvoyFilter says, it is applied or refused, and nothing that is
// shared changes.
func FuzzApply(f *testing.F) {
	for _, text := range []string{
		`{"configPatches": [{"applyTo": "HTTP_FILTER", "match": {"context": "SIDECAR_INBOUND", "listener": {"filterChain": {"filter": {"name": "envoy.filters.network.http_connection_manager", "subFilter": {"name": "envoy.filters.http.router"}}}}}, "patch": {"operation": "INSERT_BEFORE", "value": {"name": "x"}}}]}`,
		`{"configPatches": [{"applyTo": "CLUSTER", "patch": {"operation": "MERGE", "value": {"connect_timeout": "1s", "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"}}}}}]}`,
		`{"configPatches": [{"applyTo": "VIRTUAL_HOST", "match": {"routeConfiguration": {"portNumber": 80}}, "patch": {"operation": "REPLACE", "value": {"routes": [{}]}}}, {"applyTo": "HTTP_ROUTE", "patch": {"operation": "REMOVE"}}]}`,
		`{"configPatches": [{"applyTo": "FILTER_CHAIN", "patch": {"operation": "ADD", "value": {}}}, {"applyTo": "NETWORK_FILTER", "patch": {"operation": "MERGE", "value": {}}}, {"applyTo": "LISTENER_FILTER", "patch": {"operation": "REMOVE"}}]}`,
		`{"configPatches": [{"applyTo": "LISTENER", "patch": {"operation": "ADD"}}, {"patch": {}}, {}]}`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		spec := new(networking.EnvoyFilter)
		if protojson.Unmarshal(data, spec) != nil {
			return
		}
		filters, err := New(meshOf(&model.EnvoyFilter{Meta: model.Meta{Ref: model.Ref{Namespace: "istio-system"}}, Spec: spec}))
		if err != nil {
			return
		}
		for _, of := range []func() (*model.Proxy, *translate.Snapshot, *translate.Snapshot){sidecar, gatewayProxy} {
			p, own, shared := of()
			before := lines(t, own, shared)
			_, _, _ = filters.Apply(p, own, shared)
			if diff := cmp.Diff(before, lines(t, own, shared)); diff != "" {
				t.Errorf("what is shared was changed:\n%s", diff)
			}
		}
	})
}

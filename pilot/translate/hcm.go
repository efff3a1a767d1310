package translate

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	grpcwebv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/grpc_web/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	meshv1 "istio.io/api/mesh/v1alpha1"

	"github.com/writ-mesh/writ/pilot/envoy"
)

// Names of filters that routes configure.
const (
	faultFilter   = "envoy.filters.http.fault"
	corsFilter    = "envoy.filters.http.cors"
	grpcWebFilter = "envoy.filters.http.grpc_web"
	routerFilter  = "envoy.filters.http.router"
	hcmFilter     = "envoy.filters.network.http_connection_manager"
	tcpProxy      = "envoy.filters.network.tcp_proxy"
)

// serverName is what gateways put into the Server header.
const serverName = "writ"

// connectionManager is what all HTTP connection managers have in common. The
// route configuration routes comes over RDS, so that an edit of routes or
// policies never touches the listener.
func (t *Translator) connectionManager(statPrefix, routes, deniedBy string) *hcmv3.HttpConnectionManager {
	m := &hcmv3.HttpConnectionManager{
		StatPrefix: statPrefix,
		CodecType:  hcmv3.HttpConnectionManager_AUTO,
		RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{
			ConfigSource: envoy.ADS(), RouteConfigName: routes,
		}},
		AccessLog:                  t.accessLog(deniedBy, nil),
		UseRemoteAddress:           no(),
		StreamIdleTimeout:          dur(0),
		Http2ProtocolOptions:       &corev3.Http2ProtocolOptions{AllowConnect: true},
		UpgradeConfigs:             []*hcmv3.HttpConnectionManager_UpgradeConfig{{UpgradeType: "websocket"}},
		ServerHeaderTransformation: hcmv3.HttpConnectionManager_PASS_THROUGH,
	}
	t.normalizePath(m)
	if t.proxyHeaders().GetRequestId().GetDisabled().GetValue() {
		m.GenerateRequestId = no()
	}
	m.AppendXForwardedPort = t.proxyHeaders().GetXForwardedPort().GetEnabled().GetValue()
	return m
}

// proxyHeaders is what MeshConfig says of headers that proxies add.
func (t *Translator) proxyHeaders() *meshv1.ProxyConfig_ProxyHeaders {
	return t.mesh.Config.GetDefaultConfig().GetProxyHeaders()
}

// serverHeader has answers name their server as MeshConfig says, where it says so.
func (t *Translator) serverHeader(m *hcmv3.HttpConnectionManager) {
	switch server := t.proxyHeaders().GetServer(); {
	case server.GetDisabled().GetValue():
		m.ServerName, m.ServerHeaderTransformation = "", hcmv3.HttpConnectionManager_PASS_THROUGH
	case server.GetValue() != "":
		m.ServerName, m.ServerHeaderTransformation = server.GetValue(), hcmv3.HttpConnectionManager_OVERWRITE
	}
}

// routesFor names the route configuration of a connection manager after what its rules
// rely on in the listener: filters, how paths and addresses are read, and TLS. Where that
// changes the listener refers to other routes, and Envoy keeps the one before, with its
// own routes, until those have come (decision 0042). base begins the name.
//
// The mode of mutual TLS is no part of it: routes say themselves what it demands. Nor is
// what only tells of requests.
func routesFor(base string, m *hcmv3.HttpConnectionManager, socket *corev3.TransportSocket) string {
	stat, logs, replies, routes := m.StatPrefix, m.AccessLog, m.LocalReplyConfig, m.RouteSpecifier
	m.StatPrefix, m.AccessLog, m.LocalReplyConfig, m.RouteSpecifier = "", nil, nil, nil
	digest := sha256.New()
	for _, part := range []proto.Message{m, socket} {
		sum := sha256.Sum256(envoy.Any(part).GetValue())
		digest.Write(sum[:])
	}
	m.StatPrefix, m.AccessLog, m.LocalReplyConfig, m.RouteSpecifier = stat, logs, replies, routes
	name := base + "~" + hex.EncodeToString(digest.Sum(nil)[:6])
	m.GetRds().RouteConfigName = name
	return name
}

// NamedAfterListener tells whether a route configuration is that of an inbound port or of
// a gateway.
func NamedAfterListener(routes string) bool { return strings.Contains(routes, "~") }

// normalizePath is the same at every proxy: what one of them decides about a
// path must hold for the path that the next one sees.
func (t *Translator) normalizePath(m *hcmv3.HttpConnectionManager) {
	m.NormalizePath = yes()
	m.PathWithEscapedSlashesAction = hcmv3.HttpConnectionManager_KEEP_UNCHANGED
	switch t.mesh.Config.GetPathNormalization().GetNormalization() {
	case meshv1.MeshConfig_ProxyPathNormalization_NONE:
		m.NormalizePath = no()
	case meshv1.MeshConfig_ProxyPathNormalization_MERGE_SLASHES:
		m.MergeSlashes = true
	case meshv1.MeshConfig_ProxyPathNormalization_DECODE_AND_MERGE_SLASHES:
		m.MergeSlashes = true
		m.PathWithEscapedSlashesAction = hcmv3.HttpConnectionManager_UNESCAPE_AND_FORWARD
	}
}

// routeFilters are the filters that routes of VirtualServices configure, with
// the router at the end.
func (t *Translator) routeFilters(before ...*hcmv3.HttpFilter) []*hcmv3.HttpFilter {
	return append(before, httpFilter(faultFilter, &faultv3.HTTPFault{}), httpFilter(corsFilter, &corsv3.Cors{}), t.router())
}

func (t *Translator) router() *hcmv3.HttpFilter {
	return httpFilter(routerFilter, &routerv3.Router{SuppressEnvoyHeaders: t.proxyHeaders().GetEnvoyDebugHeaders().GetDisabled().GetValue()})
}

func grpcWeb() *hcmv3.HttpFilter { return httpFilter(grpcWebFilter, &grpcwebv3.GrpcWeb{}) }

// packedFilter is a network filter around an already packed configuration.
func packedFilter(name string, config *anypb.Any) *listenerv3.Filter {
	return &listenerv3.Filter{Name: name, ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: config}}
}

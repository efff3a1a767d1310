package security

import (
	"bufio"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	filelogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/writ-mesh/writ/pilot/envoy"
)

// fileLog logs what the tests read back.
func fileLog(path string) []*accesslogv3.AccessLog {
	return []*accesslogv3.AccessLog{{
		Name: "file",
		ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: envoy.Any(&filelogv3.FileAccessLog{
			Path: path,
			AccessLogFormat: &filelogv3.FileAccessLog_LogFormat{LogFormat: &corev3.SubstitutionFormatString{
				Format: &corev3.SubstitutionFormatString_TextFormatSource{
					TextFormatSource: inline(
						"%REQ(:METHOD)% %REQ(:PATH)% %RESPONSE_CODE% details=%RESPONSE_CODE_DETAILS% denied=" + DeniedByOperator + " gateway=" + DeniedByGatewayOperator +
							" peer=%DOWNSTREAM_PEER_URI_SAN% rbac=%DYNAMIC_METADATA(envoy.filters.http.rbac)% jwt=%DYNAMIC_METADATA(envoy.filters.http.jwt_authn)% hint=%DYNAMIC_METADATA(envoy.common)%\n"),
				},
			}},
		})},
	}}
}

// forwardTCP passes the connection on to lineServer.
func forwardTCP() *listenerv3.Filter {
	return &listenerv3.Filter{
		Name: "tcp_proxy",
		ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: envoy.Any(&tcpproxyv3.TcpProxy{
			StatPrefix: "tcp", ClusterSpecifier: &tcpproxyv3.TcpProxy_Cluster{Cluster: "line"},
		})},
	}
}

// lineServer reads one line of each connection and answers "passed".
func lineServer(t testing.TB) *clusterv3.Cluster {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer func() { _ = conn.Close() }()
				if _, err := bufio.NewReader(conn).ReadString('\n'); err == nil {
					_, _ = io.WriteString(conn, "passed\n")
				}
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); all.Wait() })
	address := netip.MustParseAddrPort(l.Addr().String())
	c := &clusterv3.Cluster{Name: "line", ConnectTimeout: durationpb.New(5 * time.Second)}
	addEndpoint(c, address.Addr().String(), uint32(address.Port()))
	return c
}

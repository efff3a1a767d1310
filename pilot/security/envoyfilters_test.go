package security

import (
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	filelogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	directresponsev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/direct_response/v3"

	"github.com/writ-mesh/writ/pilot/envoy"
)

// fileLog logs what the tests read back.
func fileLog(path string) []*accesslogv3.AccessLog {
	return []*accesslogv3.AccessLog{{
		Name: "file",
		ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: envoy.Any(&filelogv3.FileAccessLog{
			Path: path,
			AccessLogFormat: &filelogv3.FileAccessLog_LogFormat{LogFormat: &corev3.SubstitutionFormatString{
				Format: &corev3.SubstitutionFormatString_TextFormatSource{TextFormatSource: inline(
					"%REQ(:METHOD)% %REQ(:PATH)% %RESPONSE_CODE% details=%RESPONSE_CODE_DETAILS% denied=" + DeniedByOperator + " gateway=" + DeniedByGatewayOperator +
						" peer=%DOWNSTREAM_PEER_URI_SAN% rbac=%DYNAMIC_METADATA(envoy.filters.http.rbac)% jwt=%DYNAMIC_METADATA(envoy.filters.http.jwt_authn)% hint=%DYNAMIC_METADATA(envoy.common)%\n"),
				},
			}},
		})},
	}}
}

// directTCP answers "passed" to whoever gets through.
func directTCP() *listenerv3.Filter {
	return &listenerv3.Filter{
		Name:       "direct",
		ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: envoy.Any(&directresponsev3.Config{Response: inline("passed\n")})},
	}
}

package translate

import (
	"strings"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filelogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	streamlogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	meshv1 "istio.io/api/mesh/v1alpha1"

	"github.com/writ-mesh/writ/pilot/envoy"
	"github.com/writ-mesh/writ/pilot/security"
)

// stdout is where access logs go unless MeshConfig.accessLogFile names a file.
const stdout = "/dev/stdout"

// logFields are the fields of the JSON access log: Istio's, those that say who called
// and which rule refused, and the groups of TLS.
func logFields() map[string]string {
	return map[string]string{
		"start_time":                        "%START_TIME%",
		"method":                            "%REQ(:METHOD)%",
		"path":                              "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
		"protocol":                          "%PROTOCOL%",
		"authority":                         "%REQ(:AUTHORITY)%",
		"response_code":                     "%RESPONSE_CODE%",
		"response_code_details":             "%RESPONSE_CODE_DETAILS%",
		"response_flags":                    "%RESPONSE_FLAGS%",
		"connection_termination_details":    "%CONNECTION_TERMINATION_DETAILS%",
		"upstream_transport_failure_reason": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
		"bytes_received":                    "%BYTES_RECEIVED%",
		"bytes_sent":                        "%BYTES_SENT%",
		"duration":                          "%DURATION%",
		"upstream_service_time":             "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%",
		"user_agent":                        "%REQ(USER-AGENT)%",
		"x_forwarded_for":                   "%REQ(X-FORWARDED-FOR)%",
		"request_id":                        "%REQ(X-REQUEST-ID)%",
		"upstream_host":                     "%UPSTREAM_HOST%",
		"upstream_cluster":                  "%UPSTREAM_CLUSTER%",
		"downstream_local_address":          "%DOWNSTREAM_LOCAL_ADDRESS%",
		"downstream_remote_address":         "%DOWNSTREAM_REMOTE_ADDRESS%",
		"requested_server_name":             "%REQUESTED_SERVER_NAME%",
		"route_name":                        "%ROUTE_NAME%",
		"source_principal":                  "%DOWNSTREAM_PEER_URI_SAN%",
		"downstream_tls_group":              downstreamGroup,
		"upstream_tls_group":                upstreamGroup,
	}
}

// The groups by which the keys of a connection's both sides were agreed on, such as
// X25519MLKEM768. Envoys before 1.40 know no such operators; see ForOlderEnvoys.
const (
	downstreamGroup = "%DOWNSTREAM_TLS_GROUP%"
	upstreamGroup   = "%UPSTREAM_TLS_GROUP%"
)

// inboundLogFields are those of requests that arrive at a workload. Routes there
// rewrite no path: a header that says otherwise is the caller's.
func inboundLogFields() map[string]string {
	fields := security.HTTPLogFields()
	fields["path"] = "%REQ(:PATH)%"
	return fields
}

// accessLog is the log of a connection manager or TCP proxy. deniedBy is the
// format operator that gives the rule that refused, empty for none; recorded are
// further fields, may be nil.
func (t *Translator) accessLog(deniedBy string, recorded map[string]string) []*accesslogv3.AccessLog {
	format := t.logFormat(deniedBy, recorded)
	if file := t.mesh.Config.GetAccessLogFile(); file != "" && file != stdout {
		return []*accesslogv3.AccessLog{logger("envoy.access_loggers.file", &filelogv3.FileAccessLog{
			Path: file, AccessLogFormat: &filelogv3.FileAccessLog_LogFormat{LogFormat: format},
		})}
	}
	return []*accesslogv3.AccessLog{logger("envoy.access_loggers.stdout", &streamlogv3.StdoutAccessLog{
		AccessLogFormat: &streamlogv3.StdoutAccessLog_LogFormat{LogFormat: format},
	})}
}

// reported adds the report of what the proxy decides, if there is one.
func reported(logs []*accesslogv3.AccessLog, report *accesslogv3.AccessLog) []*accesslogv3.AccessLog {
	if report == nil {
		return logs
	}
	return append(logs, report)
}

func logger(name string, config proto.Message) *accesslogv3.AccessLog {
	return &accesslogv3.AccessLog{Name: name, ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: envoy.Any(config)}}
}

// logFormat is MeshConfig.accessLogFormat where it is given (text, or a JSON
// object with accessLogEncoding JSON), else our fields as JSON.
func (t *Translator) logFormat(deniedBy string, recorded map[string]string) *corev3.SubstitutionFormatString {
	custom := t.mesh.Config.GetAccessLogFormat()
	if custom != "" {
		if t.mesh.Config.GetAccessLogEncoding() == meshv1.MeshConfig_JSON {
			object := new(structpb.Struct)
			if protojson.Unmarshal([]byte(custom), object) == nil {
				return &corev3.SubstitutionFormatString{Format: &corev3.SubstitutionFormatString_JsonFormat{JsonFormat: object}}
			}
		}
		if !strings.HasSuffix(custom, "\n") {
			custom += "\n"
		}
		return &corev3.SubstitutionFormatString{Format: &corev3.SubstitutionFormatString_TextFormatSource{
			TextFormatSource: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: custom}},
		}}
	}
	fields := map[string]*structpb.Value{}
	for k, v := range logFields() {
		fields[k] = structpb.NewStringValue(v)
	}
	for k, v := range recorded {
		fields[k] = structpb.NewStringValue(v)
	}
	if deniedBy != "" {
		fields["denied_by"] = structpb.NewStringValue(deniedBy)
	}
	return &corev3.SubstitutionFormatString{Format: &corev3.SubstitutionFormatString_JsonFormat{JsonFormat: &structpb.Struct{Fields: fields}}}
}

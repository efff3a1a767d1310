package security

import (
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	celv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/filters/cel/v3"
	grpclogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/grpc/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	tracingv3 "github.com/envoyproxy/go-control-plane/envoy/type/tracing/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/writ-mesh/writ/pilot/envoy"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

// reportFlush is how long an Envoy gathers reports.
const reportFlush = time.Second

// What the reports are chosen by, cheapest first, so that a request that is allowed
// costs some comparisons. A refusal of authz itself is in its log already.
const (
	refusedHTTP = `response.code_details.startsWith('rbac_access_denied') || response.code_details.startsWith('jwt_authn_access_denied') || response.code_details == 'ext_authz_error'` +
		` || (response.code_details.startsWith('ext_authz_') && '` + rbacHTTPMetadata + `' in metadata.filter_metadata` +
		` && '` + customStatPrefix + `shadow_effective_policy_id' in metadata.filter_metadata['` + rbacHTTPMetadata + `'])`
	refusedTCP = `connection.termination_details.startsWith('rbac_access_denied') || connection.termination_details.startsWith('ext_authz_')`
	// rateLimitMetadata is where ratelimit says which limits would have refused.
	rateLimitMetadata = "envoy.filters.http.ratelimit"
	rateLimitObserved = "observed"
	// What a dry run leaves.
	shadowResult = "shadow_engine_result"
	shadowDenied = "denied"
)

// reportHTTP is an access log that tells authz which requests this proxy refused by
// itself, or would have refused if a policy did not only observe, and as many others
// as configpb.RecordRuntimeKey says; nil without authz. It depends on
// no policy, so that none changes a listener with it.
func (c *Compiler) reportHTTP() *accesslogv3.AccessLog {
	if c.mesh.Deciders.Authz == "" {
		return nil
	}
	lists, deny, allow := dryRunAccessStatPrefix+shadowResult, dryRunDenyStatPrefix+shadowResult, dryRunAllowStatPrefix+shadowResult
	return report("envoy.access_loggers.http_grpc", &grpclogv3.HttpGrpcAccessLogConfig{
		CommonConfig:                   reportConfig(),
		AdditionalResponseHeadersToLog: []string{DeniedByHeader},
	}, orFilter(
		andFilter(statusAtLeast(400), celFilter(refusedHTTP)),
		metadataFilter(rbacHTTPMetadata, lists, stringValue(exact(shadowDenied))),
		metadataFilter(rbacHTTPMetadata, deny, stringValue(exact(shadowDenied))),
		metadataFilter(rbacHTTPMetadata, allow, stringValue(exact(shadowDenied))),
		metadataFilter(rateLimitMetadata, rateLimitObserved, anyValue()),
		reportedAnyway(),
	))
}

// reportTCP is the same for connections.
func (c *Compiler) reportTCP() *accesslogv3.AccessLog {
	if c.mesh.Deciders.Authz == "" {
		return nil
	}
	lists, deny, allow := dryRunAccessStatPrefix+shadowResult, dryRunDenyStatPrefix+shadowResult, dryRunAllowStatPrefix+shadowResult
	return report("envoy.access_loggers.tcp_grpc", &grpclogv3.TcpGrpcAccessLogConfig{CommonConfig: reportConfig()}, orFilter(
		celFilter(refusedTCP),
		metadataFilter(rbacTCPMetadata, lists, stringValue(exact(shadowDenied))),
		metadataFilter(rbacTCPMetadata, deny, stringValue(exact(shadowDenied))),
		metadataFilter(rbacTCPMetadata, allow, stringValue(exact(shadowDenied))),
		reportedAnyway(),
	))
}

func report(name string, config proto.Message, filter *accesslogv3.AccessLogFilter) *accesslogv3.AccessLog {
	return &accesslogv3.AccessLog{Name: name, Filter: filter, ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: envoy.Any(config)}}
}

func reportConfig() *grpclogv3.CommonGrpcAccessLogConfig {
	return &grpclogv3.CommonGrpcAccessLogConfig{
		LogName:             "writ",
		TransportApiVersion: corev3.ApiVersion_V3,
		GrpcService: &corev3.GrpcService{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{
			ClusterName: authzCluster,
		}}},
		BufferFlushInterval: durationpb.New(reportFlush),
		CustomTags: []*tracingv3.CustomTag{{
			Tag:  configpb.ReportDryRunAllow,
			Type: &tracingv3.CustomTag_Value{Value: "%METADATA(VIRTUAL_HOST:" + metadataNamespace + ":" + nameDryRunAllow + ")%"},
		}},
	}
}

func orFilter(filters ...*accesslogv3.AccessLogFilter) *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_OrFilter{OrFilter: &accesslogv3.OrFilter{Filters: filters}}}
}

func andFilter(filters ...*accesslogv3.AccessLogFilter) *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_AndFilter{AndFilter: &accesslogv3.AndFilter{Filters: filters}}}
}

func statusAtLeast(status uint32) *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_StatusCodeFilter{StatusCodeFilter: &accesslogv3.StatusCodeFilter{
		Comparison: &accesslogv3.ComparisonFilter{
			Op: accesslogv3.ComparisonFilter_GE,
			// Envoy wants a key by which the number could be changed at run time.
			Value: &corev3.RuntimeUInt32{DefaultValue: status, RuntimeKey: "writ.report_status"},
		},
	}}}
}

func celFilter(expression string) *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_ExtensionFilter{ExtensionFilter: &accesslogv3.ExtensionFilter{
		Name:       "envoy.access_loggers.extension_filters.cel",
		ConfigType: &accesslogv3.ExtensionFilter_TypedConfig{TypedConfig: envoy.Any(&celv3.ExpressionFilter{Expression: expression})},
	}}}
}

func metadataFilter(filter, key string, value *matcherv3.ValueMatcher) *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_MetadataFilter{MetadataFilter: &accesslogv3.MetadataFilter{
		Matcher:            metadata(filter, []string{key}, value),
		MatchIfKeyNotFound: wrapperspb.Bool(false),
	}}}
}

func anyValue() *matcherv3.ValueMatcher {
	return &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_PresentMatch{PresentMatch: true}}
}

// reportedAnyway samples by the runtime.
func reportedAnyway() *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_RuntimeFilter{RuntimeFilter: &accesslogv3.RuntimeFilter{
		RuntimeKey:               configpb.RecordRuntimeKey,
		PercentSampled:           &typev3.FractionalPercent{},
		UseIndependentRandomness: true,
	}}}
}

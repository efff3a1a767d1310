package translate

import (
	"slices"
	"strings"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
)

// unreachedHeader is on the 503 with which a sidecar answers when it cannot
// connect to its program. The caller's proxy, which has connected well enough to
// the sidecar, learns by it that the connection failed one step later, and never
// passes it on.
const unreachedHeader = "x-writ-unreached"

// connectFailure is the condition under which Envoy repeats requests that could
// not be sent.
const connectFailure = "connect-failure"

// retriableHeaders is the condition that looks at headers of the answer.
const retriableHeaders = "retriable-headers"

// tellUnreached lets local replies say that the program was not reached. No
// refusal of a policy has the flag UF (upstream connection failure), so the
// mappers of in stay in force.
func tellUnreached(in *hcmv3.LocalReplyConfig) *hcmv3.LocalReplyConfig {
	unreached := &hcmv3.ResponseMapper{
		Filter: &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_ResponseFlagFilter{
			ResponseFlagFilter: &accesslogv3.ResponseFlagFilter{Flags: []string{"UF"}},
		}},
		HeadersToAdd: []*corev3.HeaderValueOption{{
			Header:       &corev3.HeaderValue{Key: unreachedHeader, Value: "true"},
			AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
		}},
	}
	return &hcmv3.LocalReplyConfig{
		Mappers: append([]*hcmv3.ResponseMapper{unreached}, in.GetMappers()...), BodyFormat: in.GetBodyFormat(),
	}
}

// retryUnreached makes a policy that repeats requests after a failed connection
// do so too where the connection from the server's sidecar to its program failed:
// nothing was processed in either case.
func retryUnreached(p *routev3.RetryPolicy) {
	conditions := strings.Split(p.GetRetryOn(), ",")
	if !slices.Contains(conditions, connectFailure) {
		return
	}
	if !slices.Contains(conditions, retriableHeaders) {
		p.RetryOn += "," + retriableHeaders
	}
	p.RetriableHeaders = append(p.RetriableHeaders, &routev3.HeaderMatcher{
		Name: unreachedHeader, HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: true},
	})
}

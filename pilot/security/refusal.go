package security

import (
	"fmt"
	"net/http"
	"regexp"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/writ-mesh/writ/internal/refusal"
)

const (
	// matchedPolicy is how the response code details of an RBAC refusal begin.
	matchedPolicy = "rbac_access_denied_matched_policy["
	// requestID is the id of a request, "-" if it is none: a caller may send anything.
	requestID = `%CEL(re.extract(request.id, '^([0-9a-fA-F-]+)$', '\\1'))%`
	// callsGRPC is the condition of a request by gRPC, that of package refusal.
	callsGRPC = `'content-type' in request.headers && request.headers['content-type'].matches(r'` + refusal.GRPC + `')`
)

// regoReplies are the local replies to what an Envoy refuses by RegoPolicies itself.
// The client gets what authz would have answered, so that it does not see who decided.
// An AuthorizationPolicy's refusal keeps Envoy's text, which Istio documents.
func regoReplies() []*hcmv3.ResponseMapper {
	refused := fmt.Sprintf("response.code_details.startsWith('%sRegoPolicy_')", matchedPolicy)
	out := []*hcmv3.ResponseMapper{grpcReply(refused, http.StatusForbidden, codes.PermissionDenied)}
	for _, c := range refusal.Choices() {
		out = append(out, reply(refused+" && "+accepts(c), c.Form, http.StatusForbidden))
	}
	return out
}

// malformedReplies are those to malformed requests: their status is not a policy's.
func malformedReplies() []*hcmv3.ResponseMapper {
	refused := fmt.Sprintf("response.code_details.startsWith('%s%s_')", matchedPolicy, malformedKind)
	out := []*hcmv3.ResponseMapper{grpcReply(refused, http.StatusBadRequest, codes.Internal), reply(refused, refusal.Problem, http.StatusBadRequest)}
	for _, m := range out {
		m.StatusCode = wrapperspb.UInt32(http.StatusBadRequest)
	}
	return out
}

// accepts is the condition that a choice fits a client's Accept header.
func accepts(c refusal.Choice) string {
	matches := func(e *regexp.Regexp) string { return `request.headers['accept'].matches(r'` + e.String() + `')` }
	var wants []string
	for _, w := range c.Wants {
		want := matches(w.Is)
		if w.But != nil {
			want += ` && !` + matches(w.But)
		}
		wants = append(wants, want)
	}
	if c.Fits("") {
		return `(!('accept' in request.headers) || ` + strings.Join(wants, " || ") + `)`
	}
	return `'accept' in request.headers && (` + strings.Join(wants, " || ") + `)`
}

func reply(condition, form string, status int) *hcmv3.ResponseMapper {
	const always = corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD
	m := mapper(condition, always, `%CEL(re.extract(response.code_details, '`+refusedBy+`.$', '\\1 \\2'))%`)
	m.BodyFormatOverride = &corev3.SubstitutionFormatString{
		Format: &corev3.SubstitutionFormatString_TextFormatSource{TextFormatSource: &corev3.DataSource{
			Specifier: &corev3.DataSource_InlineString{InlineString: strings.ReplaceAll(refusal.Body(form, status, "", "REQUEST-ID"), "REQUEST-ID", requestID)},
		}},
		ContentType: form,
	}
	return m
}

// grpcReply has a message where others have a body.
func grpcReply(condition string, status int, code codes.Code) *hcmv3.ResponseMapper {
	m := reply(condition+" && "+callsGRPC, refusal.Sentence, status)
	m.HeadersToAdd = append(m.HeadersToAdd, &corev3.HeaderValueOption{
		Header: &corev3.HeaderValue{Key: refusal.DetailsHeader, Value: refusal.Details(code, refusal.Body(refusal.Sentence, status, "", ""), "")},
	})
	return m
}

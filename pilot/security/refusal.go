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
	// malformedEnd is what they end with where a RegoPolicy was not even looked at,
	// because the request cannot be taken apart. No name has it.
	malformedEnd = "_malformed"
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
	malformed := localAnswer{
		when: refused + fmt.Sprintf(" && response.code_details.endsWith('%s]')", malformedEnd), end: malformedEnd,
		status: http.StatusBadRequest, code: codes.Internal, public: refusal.Malformed,
	}
	var out []*hcmv3.ResponseMapper
	for _, a := range []localAnswer{malformed, {when: refused, status: http.StatusForbidden, code: codes.PermissionDenied}} {
		out = append(out, a.toGRPC())
		for _, c := range refusal.Choices() {
			out = append(out, a.and(accepts(c)).in(c.Form))
		}
	}
	return out
}

// malformedReplies are those to malformed requests: their status is not a policy's.
func malformedReplies() []*hcmv3.ResponseMapper {
	a := localAnswer{when: fmt.Sprintf("response.code_details.startsWith('%s%s_')", matchedPolicy, malformedKind), status: http.StatusBadRequest, code: codes.Internal}
	return []*hcmv3.ResponseMapper{a.toGRPC(), a.in(refusal.Problem)}
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

// localAnswer is what is said of some refusals.
type localAnswer struct {
	// when is their condition, and end what their code details have behind the policy.
	when, end string
	status    int
	code      codes.Code
	// public is said to the client, beside the status.
	public string
}

func (a localAnswer) and(condition string) localAnswer {
	a.when += " && " + condition
	return a
}

// in is the answer in one of the forms of a body.
func (a localAnswer) in(form string) *hcmv3.ResponseMapper {
	const always = corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD
	m := mapper(a.when, always, `%CEL(re.extract(response.code_details, '`+refusedBy+a.end+`.$', '\\1 \\2'))%`)
	m.BodyFormatOverride = &corev3.SubstitutionFormatString{
		Format: &corev3.SubstitutionFormatString_TextFormatSource{TextFormatSource: &corev3.DataSource{
			Specifier: &corev3.DataSource_InlineString{InlineString: strings.ReplaceAll(refusal.Body(form, a.status, a.public, "REQUEST-ID"), "REQUEST-ID", requestID)},
		}},
		ContentType: form,
	}
	if a.status != http.StatusForbidden { // which is that of the filter
		m.StatusCode = wrapperspb.UInt32(uint32(a.status)) //nolint:gosec // a constant
	}
	return m
}

// toGRPC has a message where others have a body.
func (a localAnswer) toGRPC() *hcmv3.ResponseMapper {
	m := a.and(callsGRPC).in(refusal.Sentence)
	m.HeadersToAdd = append(m.HeadersToAdd, &corev3.HeaderValueOption{
		Header: &corev3.HeaderValue{Key: refusal.DetailsHeader, Value: refusal.Details(a.code, refusal.Body(refusal.Sentence, a.status, a.public, ""), "")},
	})
	return m
}

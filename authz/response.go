package authz

import (
	"net/http"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/writ-mesh/writ/authz/decisionlog"
	"github.com/writ-mesh/writ/authz/rego"
	"github.com/writ-mesh/writ/internal/refusal"
)

// DeniedByHeader names the policy that refused.
const DeniedByHeader = "x-writ-denied-by"

// The keys of the dynamic metadata that every answer has, in the namespace of
// Envoy's filter (envoy.filters.http.ext_authz), for access logs.
const (
	// metadataID is the decision's id, as the OPA-Envoy plugin names it.
	metadataID       = "decision_id"
	metadataRevision = "writ_revision"
	// metadataDeniedBy is "RegoPolicy <namespace>/<name>" or "TokenRevocation <reason>".
	metadataDeniedBy = "writ_denied_by"
	metadataReason   = "writ_reason"
	// metadataObserved lists, separated by commas, the policies that would have
	// refused and only observe.
	metadataObserved = "writ_observed"
)

// respond turns a verdict into the answer within the mesh.
func respond(req *authv3.CheckRequest, v *verdict) *authv3.CheckResponse {
	resp := &authv3.CheckResponse{DynamicMetadata: metadataOf(v)}
	if v.allow {
		resp.Status = &status.Status{Code: int32(codes.OK)}
		resp.HttpResponse = &authv3.CheckResponse_OkResponse{OkResponse: okResponse(v.decisions)}
		return resp
	}
	resp.Status = &status.Status{Code: int32(codes.PermissionDenied)}
	resp.HttpResponse = &authv3.CheckResponse_DeniedResponse{DeniedResponse: deniedResponse(req, v)}
	return resp
}

func metadataOf(v *verdict) *structpb.Struct {
	fields := make(map[string]*structpb.Value, 4)
	for _, d := range v.decisions {
		for k, x := range d.Metadata.GetFields() {
			fields[k] = x
		}
	}
	// After the policies', so that none can speak for this service.
	for _, k := range []string{metadataDeniedBy, metadataReason, metadataObserved} {
		delete(fields, k)
	}
	fields[metadataID] = structpb.NewStringValue(v.id)
	fields[metadataRevision] = structpb.NewStringValue(v.revision)
	if by := v.deniedBy(); by != "" {
		fields[metadataDeniedBy] = structpb.NewStringValue(by)
	}
	if v.detail != "" {
		fields[metadataReason] = structpb.NewStringValue(valid(decisionlog.Clip(v.detail, 512)))
	}
	if len(v.observed) > 0 {
		names := make([]string, len(v.observed))
		for i, o := range v.observed {
			names[i] = o.policy
		}
		fields[metadataObserved] = structpb.NewStringValue(strings.Join(names, ","))
	}
	return &structpb.Struct{Fields: fields}
}

// okResponse joins what all policies that allowed want done, in their order.
func okResponse(decisions []rego.Decision) *authv3.OkHttpResponse {
	ok := &authv3.OkHttpResponse{}
	for _, d := range decisions {
		ok.Headers = append(ok.Headers, headers(d.Headers)...)
		ok.HeadersToRemove = append(ok.HeadersToRemove, d.RemoveHeaders...)
		ok.ResponseHeadersToAdd = append(ok.ResponseHeadersToAdd, headers(d.ResponseHeaders)...)
		ok.QueryParametersToRemove = append(ok.QueryParametersToRemove, d.RemoveQuery...)
		for _, q := range d.SetQuery {
			ok.QueryParametersToSet = append(ok.QueryParametersToSet, &corev3.QueryParameter{Key: q.Key, Value: q.Value})
		}
	}
	return ok
}

func deniedResponse(req *authv3.CheckRequest, v *verdict) *authv3.DeniedHttpResponse {
	var d rego.Decision
	if len(v.decisions) > 0 {
		d = v.decisions[0]
	}
	code := http.StatusForbidden
	if v.status != 0 {
		code = v.status
	}
	if d.Status != 0 {
		code = d.Status
	}
	denied := &authv3.DeniedHttpResponse{
		Status:  &typev3.HttpStatus{Code: typev3.StatusCode(code)},
		Headers: headers(d.Headers),
		Body:    d.Body,
	}
	asked := req.GetAttributes().GetRequest().GetHttp().GetHeaders()
	if denied.GetBody() == "" {
		var kind string
		denied.Body, kind = refusalBody(asked, code, v)
		if kind != "" && !has(d.Headers, "content-type") {
			denied.Headers = append(denied.Headers, header("content-type", kind))
		}
	}
	if isGRPC(asked) && !has(d.Headers, refusal.DetailsHeader) {
		denied.Headers = append(denied.Headers, header(refusal.DetailsHeader, refusal.Details(grpcCode(code), denied.GetBody(), v.id)))
	}
	if by := v.deniedBy(); by != "" {
		denied.Headers = append(denied.Headers, header(DeniedByHeader, by))
	}
	return denied
}

// headers makes the options of a list. A name that is there before is appended
// to, so that a list of values in a decision arrives as a list.
func headers(pairs []rego.Pair) []*corev3.HeaderValueOption {
	if len(pairs) == 0 {
		return nil
	}
	out := make([]*corev3.HeaderValueOption, len(pairs))
	for i, p := range pairs {
		out[i] = header(p.Key, p.Value)
		if has(pairs[:i], p.Key) {
			// For request headers Envoy looks at append only.
			out[i].AppendAction, out[i].Append = corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD, wrapperspb.Bool(true) //nolint:staticcheck // see above
		}
	}
	return out
}

func header(name, value string) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{
		Header:       &corev3.HeaderValue{Key: name, Value: value},
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}
}

func has(pairs []rego.Pair, name string) bool {
	for _, p := range pairs {
		if strings.EqualFold(p.Key, name) {
			return true
		}
	}
	return false
}

// valid makes text that protobuf takes.
func valid(s string) string { return strings.ToValidUTF8(s, "?") }

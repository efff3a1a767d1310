package translate

import (
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	networking "istio.io/api/networking/v1alpha3"
)

// headerOps is what to do with the headers of requests and responses.
type headerOps struct {
	requestAdd, responseAdd       []*corev3.HeaderValueOption
	requestRemove, responseRemove []string
	// authority is a new Host, which Envoy takes only as a rewrite.
	authority string
}

// headerOperations translates set (replace), add (append) and remove, in this order.
func headerOperations(in *networking.Headers) headerOps {
	var out headerOps
	req, resp := in.GetRequest(), in.GetResponse()
	out.requestAdd = append(headerValues(req.GetSet(), corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD),
		headerValues(req.GetAdd(), corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD)...)
	out.responseAdd = append(headerValues(resp.GetSet(), corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD),
		headerValues(resp.GetAdd(), corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD)...)
	out.requestRemove = removable(req.GetRemove())
	out.responseRemove = removable(resp.GetRemove())
	for _, values := range []map[string]string{req.GetAdd(), req.GetSet()} {
		for k, v := range values {
			if isAuthority(k) {
				out.authority = v
			}
		}
	}
	return out
}

// applyHeaders adds the operations to a route and gives the new Host, if any.
func applyHeaders(r *routev3.Route, in *networking.Headers) (authority string) {
	ops := headerOperations(in)
	r.RequestHeadersToAdd = append(r.RequestHeadersToAdd, ops.requestAdd...)
	r.RequestHeadersToRemove = append(r.RequestHeadersToRemove, ops.requestRemove...)
	r.ResponseHeadersToAdd = append(r.ResponseHeadersToAdd, ops.responseAdd...)
	r.ResponseHeadersToRemove = append(r.ResponseHeadersToRemove, ops.responseRemove...)
	return ops.authority
}

func headerValues(in map[string]string, action corev3.HeaderValueOption_HeaderAppendAction) []*corev3.HeaderValueOption {
	var out []*corev3.HeaderValueOption
	for _, k := range sortedKeys(in) {
		if fixed(k) {
			continue
		}
		out = append(out, &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: k, Value: in[k]}, AppendAction: action, KeepEmptyValue: in[k] == ""})
	}
	return out
}

func removable(names []string) []string {
	var out []string
	for _, n := range names {
		if !fixed(n) {
			out = append(out, n)
		}
	}
	return out
}

// fixed headers are those that Envoy lets nobody add or remove.
func fixed(name string) bool { return strings.HasPrefix(name, ":") || strings.EqualFold(name, "host") }

func isAuthority(name string) bool {
	return strings.EqualFold(name, ":authority") || strings.EqualFold(name, "host")
}

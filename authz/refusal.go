package authz

import (
	"net/http"

	"google.golang.org/grpc/codes"

	"github.com/writ-mesh/writ/internal/refusal"
)

// isGRPC says that the caller speaks gRPC.
func isGRPC(h map[string]string) bool { return refusal.IsGRPC(h["content-type"]) }

// refusalBody is what the client is told, and its content type, which is empty for
// gRPC: there Envoy puts the body into grpc-message.
func refusalBody(h map[string]string, code int, v *verdict) (body, form string) {
	if !isGRPC(h) {
		form = refusal.Preferred(h["accept"])
	}
	return refusal.Body(form, code, v.public, v.id), form
}

// grpcCode is the code that Envoy answers a gRPC call with for a status of HTTP
// (https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md). The
// details have to have the same.
func grpcCode(status int) codes.Code {
	switch status {
	case http.StatusBadRequest:
		return codes.Internal
	case http.StatusUnauthorized:
		return codes.Unauthenticated
	case http.StatusForbidden:
		return codes.PermissionDenied
	case http.StatusNotFound:
		return codes.Unimplemented
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return codes.Unavailable
	}
	return codes.Unknown
}

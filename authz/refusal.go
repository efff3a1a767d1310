package authz

import (
	"encoding/base64"
	"encoding/json"
	"html"
	"net/http"
	"strconv"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// The kinds of a refusal's body.
const (
	kindProblem = "application/problem+json"
	kindHTML    = "text/html; charset=utf-8"
	kindText    = "text/plain; charset=utf-8"
)

// detailsHeader carries a google.rpc.Status beside grpc-status and grpc-message.
const detailsHeader = "grpc-status-details-bin"

// The reason and domain of a refusal in google.rpc.ErrorInfo.
const (
	errorReason = "REFUSED_BY_POLICY"
	errorDomain = "writ"
)

// isGRPC says that the caller speaks gRPC.
func isGRPC(h map[string]string) bool {
	kind, ok := strings.CutPrefix(h["content-type"], "application/grpc")
	return ok && (kind == "" || kind[0] == '+' || kind[0] == ';')
}

// refusalBody is problem+json (RFC 9457), a page for browsers or text, whichever
// the client prefers. It does not name the policy: the header does, and gateways
// take the header off. For gRPC Envoy puts the body into grpc-message, so it is
// one short sentence.
func refusalBody(h map[string]string, code int, v *verdict) (body, kind string) {
	title := http.StatusText(code)
	if title == "" {
		title = "Refused"
	}
	text := title
	if v.public != "" {
		text += ": " + v.public
	}
	if isGRPC(h) {
		return text, ""
	}
	switch kind := preferred(h["accept"]); kind {
	case kindHTML:
		return refusalPage(code, title, v), kind
	case kindText:
		return text + "\n", kind
	}
	b, err := json.Marshal(struct {
		Type     string `json:"type"`
		Title    string `json:"title"`
		Status   int    `json:"status"`
		Detail   string `json:"detail,omitempty"`
		Instance string `json:"instance"`
	}{"about:blank", title, code, v.public, "urn:uuid:" + v.id})
	if err != nil {
		return text + "\n", kindText
	}
	return string(b) + "\n", kindProblem
}

// refusalPage stands alone: nothing in it is fetched, and what a policy said is
// text, never markup.
func refusalPage(code int, title string, v *verdict) string {
	var b strings.Builder
	b.WriteString("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\"><title>")
	b.WriteString(strconv.Itoa(code) + " " + html.EscapeString(title))
	b.WriteString("</title></head>\n<body><h1>" + html.EscapeString(title) + "</h1>\n")
	if v.public != "" {
		b.WriteString("<p>" + html.EscapeString(v.public) + "</p>\n")
	}
	b.WriteString("<p>If you think that you should have access, give this number to who runs this site: <code>" + html.EscapeString(v.id) + "</code></p></body></html>\n")
	return b.String()
}

// preferred picks a kind of body by Accept (RFC 9110, section 12.5.1): the range
// with the highest weight that one of the kinds is in, the earlier of two alike.
// Who says nothing that is understood gets problem+json, or text if JSON is
// excluded.
func preferred(accept string) string {
	best, weight := kindText, 0.0
	if strings.TrimSpace(accept) == "" {
		return kindProblem
	}
	for part := range strings.SplitSeq(accept, ",") {
		name, params, _ := strings.Cut(part, ";")
		kind := kindOf(strings.ToLower(strings.TrimSpace(name)))
		if kind == "" {
			continue
		}
		if q := quality(params); q > weight {
			best, weight = kind, q
		}
	}
	return best
}

// kindOf is the kind of body for a media range.
func kindOf(media string) string {
	switch {
	case media == "*/*" || media == "application/*" || strings.HasSuffix(media, "/json") || strings.HasSuffix(media, "+json"):
		return kindProblem
	case media == "text/html" || media == "application/xhtml+xml":
		return kindHTML
	case media == "text/plain" || media == "text/*":
		return kindText
	}
	return ""
}

// quality reads q of a media range's parameters: 1 if there is none.
func quality(params string) float64 {
	for p := range strings.SplitSeq(params, ";") {
		name, value, _ := strings.Cut(strings.TrimSpace(p), "=")
		if strings.EqualFold(name, "q") {
			q, err := strconv.ParseFloat(value, 64)
			if err != nil || q < 0 || q > 1 {
				return 0
			}
			return q
		}
	}
	return 1
}

// statusDetails is the value of detailsHeader for a refusal: the same status in
// google.rpc's form, with an ErrorInfo by which programs know whose refusal it is.
// Like the body it does not name the policy.
func statusDetails(code int, message string, v *verdict) (string, error) {
	info, err := anypb.New(&errdetails.ErrorInfo{Reason: errorReason, Domain: errorDomain, Metadata: map[string]string{metadataID: v.id}})
	if err != nil {
		return "", err
	}
	b, err := proto.Marshal(&status.Status{Code: int32(grpcCode(code)), Message: valid(message), Details: []*anypb.Any{info}})
	if err != nil {
		return "", err
	}
	return base64.RawStdEncoding.EncodeToString(b), nil
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

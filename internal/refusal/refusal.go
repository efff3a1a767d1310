// Package refusal is what a client is told when a RegoPolicy refuses its request: a
// body in the form that it asked for, the same from authz and from an Envoy that has
// decided by itself.
//
// authz makes it with Preferred, Body and Details. An Envoy finds the form by the same
// expressions, and fills the id of the request into the same Body.
package refusal

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// The forms of a body by their content type. A gRPC call has a message in place of a
// body, which is Sentence.
const (
	Problem  = "application/problem+json"
	HTML     = "text/html; charset=utf-8"
	Text     = "text/plain; charset=utf-8"
	Sentence = ""
)

// Malformed is what is said to the client of a request whose path or query cannot be
// taken apart.
const Malformed = "the request is malformed"

// DetailsHeader carries a google.rpc.Status beside grpc-status and grpc-message.
const DetailsHeader = "grpc-status-details-bin"

// The reason and domain of a refusal in google.rpc.ErrorInfo.
const (
	errorReason = "REFUSED_BY_POLICY"
	errorDomain = "writ"
)

// GRPC is what the content type of a gRPC call matches. As all expressions here it is
// RE2, and says where it is anchored.
const GRPC = `^application/grpc($|[+;])`

var grpcCall = regexp.MustCompile(GRPC)

// IsGRPC says that a content type is that of a gRPC call.
func IsGRPC(contentType string) bool { return grpcCall.MatchString(contentType) }

// Choice is a form, and what an Accept header is like for which it is chosen: one of
// the wants holds.
type Choice struct {
	Form  string
	Wants []Want
}

// Want holds for an Accept header that Is matches and But, if there is one, does not.
// The expressions are short because Envoy allows short ones only.
type Want struct{ Is, But *regexp.Regexp }

// choices are in the order in which they are tried. Of the forms that a client wants
// without reserve a page goes before a problem before text, then of those that it wants
// at all, with q of less than 1 (RFC 9110 section 12.5.1, much simplified). Who says
// nothing gets a problem, who excludes all of them gets text.
var choices = func() []Choice {
	page := []string{`text/html`, `application/xhtml\+xml`}
	problem := []string{`\*/\*`, `application/\*`, `[^\s,;]+[/+]json`}
	text := []string{`text/plain`, `text/\*`}
	const reserve, none = `;[^,]*q=0`, `;[^,]*q=0(\.0*)?\s*(,|$)`
	choice := func(form string, media []string, but string) Choice {
		c := Choice{Form: form}
		for _, m := range media {
			m = `(^|,)\s*` + m + `\s*`
			c.Wants = append(c.Wants, Want{regexp.MustCompile(m + `(;|,|$)`), regexp.MustCompile(m + but)})
		}
		return c
	}
	return []Choice{
		{Problem, []Want{{Is: regexp.MustCompile(`^\s*$`)}}},
		choice(HTML, page, reserve), choice(Problem, problem, reserve), choice(Text, text, reserve),
		choice(HTML, page, none), choice(Problem, problem, none),
		{Text, []Want{{Is: regexp.MustCompile(``)}}},
	}
}()

// Choices are what Preferred goes through: the first that fits counts, and the last one
// always fits. No header is an empty one.
func Choices() []Choice { return choices }

// Fits says that the choice is one for this Accept header.
func (c Choice) Fits(accept string) bool {
	return slices.ContainsFunc(c.Wants, func(w Want) bool {
		return w.Is.MatchString(accept) && (w.But == nil || !w.But.MatchString(accept))
	})
}

// maxAccept is how much of an Accept header is read, in bytes. Browsers send some 150;
// with the 60 KiB that an Envoy lets pass, and matches in no time itself, the expressions
// would take tens of milliseconds here.
const maxAccept = 512

// Preferred is the form for an Accept header.
func Preferred(accept string) string {
	accept = accept[:min(len(accept), maxAccept)]
	for _, c := range choices {
		if c.Fits(accept) {
			return c.Form
		}
	}
	return Text
}

// Body says that a request was refused with an HTTP status. It does not name the
// policy: a header does, and gateways take the header off. public is what the policy
// itself says to the client, id that by which operators find the decision.
func Body(form string, code int, public, id string) string {
	title := http.StatusText(code)
	if title == "" {
		title = "Refused"
	}
	sentence := title
	if public != "" {
		sentence += ": " + public
	}
	switch form {
	case Sentence:
		return sentence
	case HTML:
		return page(code, title, public, id)
	case Problem:
		return problem(code, title, public, id)
	}
	return sentence + "\n"
}

// problem is problem+json (RFC 9457).
func problem(code int, title, public, id string) string {
	b, err := json.Marshal(struct {
		Type     string `json:"type"`
		Title    string `json:"title"`
		Status   int    `json:"status"`
		Detail   string `json:"detail,omitempty"`
		Instance string `json:"instance"`
	}{"about:blank", title, code, public, "urn:uuid:" + id})
	if err != nil { // texts and a number: cannot be
		panic(fmt.Errorf("refusal: %w", err))
	}
	return string(b) + "\n"
}

// page stands alone: nothing in it is fetched, and what a policy said is text, never
// markup.
func page(code int, title, public, id string) string {
	var b strings.Builder
	b.WriteString("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\"><title>")
	b.WriteString(strconv.Itoa(code) + " " + html.EscapeString(title))
	b.WriteString("</title></head>\n<body><h1>" + html.EscapeString(title) + "</h1>\n")
	if public != "" {
		b.WriteString("<p>" + html.EscapeString(public) + "</p>\n")
	}
	b.WriteString("<p>If you think that you should have access, give this number to who runs this site: <code>" + html.EscapeString(id) + "</code></p></body></html>\n")
	return b.String()
}

// Details is the value of DetailsHeader: an ErrorInfo by which programs know whose
// refusal it is. Like the body it does not name the policy. id may be empty.
func Details(code codes.Code, message, id string) string {
	info := &errdetails.ErrorInfo{Reason: errorReason, Domain: errorDomain}
	if id != "" {
		info.Metadata = map[string]string{"decision_id": strings.ToValidUTF8(id, "?")}
	}
	packed, err := anypb.New(info)
	var b []byte
	if err == nil {
		b, err = proto.Marshal(&status.Status{Code: int32(code), Message: strings.ToValidUTF8(message, "?"), Details: []*anypb.Any{packed}})
	}
	if err != nil { // valid texts and a number: cannot be
		panic(fmt.Errorf("refusal: %w", err))
	}
	return base64.RawStdEncoding.EncodeToString(b)
}

package refusal

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
)

func TestPreferred(t *testing.T) {
	for accept, want := range map[string]string{
		"": Problem, " ": Problem, "*/*": Problem, "application/json": Problem, "application/problem+json": Problem, "application/*": Problem,
		"text/html": HTML, "application/xhtml+xml": HTML, "text/html; charset=utf-8": HTML, "text/html;": HTML,
		"text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8": HTML,
		"application/json, text/plain, */*":                                                     Problem,
		"text/html;q=0.5, application/json":                                                     Problem, "text/html; q=0.5,application/json;q=1.000": Problem, "text/html ; q=0.5 , text/plain": Text,
		"text/plain, */*;q=0.1": Text, "text/*": Text,
		"application/json;q=0, text/html;q=0.1": HTML, "text/html;q=0.0, application/json;q=0.1": Problem, "text/html;level=1;q=0.3": HTML,
		"text/html;q=0": Text, "text/html; q=0.000 , text/*": Text,
		"image/png": Text, "json": Text, "text/htmlx": Text, "xtext/html": Text, "image/png, text/html": HTML, "a\ttext/html": Text,
	} {
		if got := Preferred(accept); got != want {
			t.Errorf("%q: %q, want %q", accept, got, want)
		}
	}
}

// TestPreferredReadsLittle: nobody has us read 60 KiB again and again.
func TestPreferredReadsLittle(t *testing.T) {
	for _, accept := range []string{strings.Repeat("x/y,", maxAccept/4) + "text/html", strings.Repeat("x/y,", 15_000)} {
		if got := Preferred(accept); got != Text {
			t.Errorf("%d bytes: %q", len(accept), got)
		}
	}
	if got := Preferred("text/html," + strings.Repeat("x/y,", 15_000)); got != HTML {
		t.Errorf("what comes first: %q", got)
	}
}

// FuzzPreferred: whatever a client sends, it gets one of the forms.
func FuzzPreferred(f *testing.F) {
	f.Add("text/html;q=0.5, */*")
	f.Fuzz(func(t *testing.T, accept string) {
		if got := Preferred(accept); got != Problem && got != HTML && got != Text {
			t.Errorf("%q: %q", accept, got)
		}
	})
}

func TestGRPC(t *testing.T) {
	for kind, want := range map[string]bool{
		"application/grpc": true, "application/grpc+proto": true, "application/grpc;x": true,
		"application/grpc-web": false, "application/grpcx": false, "xapplication/grpc": false, "application/json": false, "": false,
	} {
		if got := IsGRPC(kind); got != want {
			t.Errorf("%q: %v", kind, got)
		}
	}
}

func TestBody(t *testing.T) {
	for form, want := range map[string]string{Sentence: "Forbidden: closed", Text: "Forbidden: closed\n"} {
		if got := Body(form, 403, "closed", "x"); got != want {
			t.Errorf("%q: %q", form, got)
		}
	}
	var problem map[string]any
	if err := json.Unmarshal([]byte(Body(Problem, 499, `a"b`, "an-id")), &problem); err != nil || problem["title"] != "Refused" ||
		problem["status"] != 499.0 || problem["detail"] != `a"b` || problem["instance"] != "urn:uuid:an-id" {
		t.Errorf("%v, %v", problem, err)
	}
	// What a policy says to the client is text in the page, whatever is in it.
	page := Body(HTML, 403, `<script>alert("x")</script>`, "an-id")
	if strings.Contains(page, "<script>") || !strings.Contains(page, "&lt;script&gt;") || !strings.Contains(page, "an-id") || !strings.Contains(page, "<title>403 Forbidden</title>") {
		t.Errorf("%s", page)
	}
	// An Envoy fills in the id where it finds an operator, and nothing else.
	for _, form := range []string{Sentence, Text, HTML, Problem} {
		if strings.Contains(Body(form, 403, "", ""), "%") {
			t.Errorf("a percent sign in %q", form)
		}
	}
}

func TestDetails(t *testing.T) {
	for _, id := range []string{"an-id", ""} {
		raw, err := base64.RawStdEncoding.DecodeString(Details(codes.PermissionDenied, "Forbidden", id))
		if err != nil {
			t.Fatal(err)
		}
		st, info := new(status.Status), new(errdetails.ErrorInfo)
		if err := proto.Unmarshal(raw, st); err != nil || len(st.GetDetails()) != 1 {
			t.Fatal(st, err)
		}
		if err := st.GetDetails()[0].UnmarshalTo(info); err != nil || st.GetCode() != 7 || st.GetMessage() != "Forbidden" ||
			info.GetReason() != errorReason || info.GetDomain() != errorDomain || info.GetMetadata()["decision_id"] != id {
			t.Errorf("%v %v %v", st, info, err)
		}
	}
}

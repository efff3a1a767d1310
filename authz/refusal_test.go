package authz

import (
	"strings"
	"testing"
)

func TestPreferred(t *testing.T) {
	for accept, want := range map[string]string{
		"":                         kindProblem,
		"*/*":                      kindProblem,
		"application/json":         kindProblem,
		"application/problem+json": kindProblem,
		"text/html":                kindHTML,
		"text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8": kindHTML,
		"text/html;q=0.5, application/json":                                                     kindProblem,
		"text/plain, */*;q=0.1":                                                                 kindText,
		"TEXT/HTML; charset=utf-8":                                                              kindHTML,
		"application/json;q=0, text/html;q=0.1":                                                 kindHTML,
		"application/json;q=nonsense":                                                           kindText,
		"application/json;q=NaN":                                                                kindText,
		"image/png":                                                                             kindText,
		"text/*":                                                                                kindText,
	} {
		if got := preferred(accept); got != want {
			t.Errorf("%q: %s, want %s", accept, got, want)
		}
	}
}

// What a policy says to the client is text in the page, whatever is in it.
func TestRefusalPage(t *testing.T) {
	v := &verdict{id: "an-id", public: `<script>alert("x")</script>`}
	page, kind := refusalBody(map[string]string{"accept": "text/html"}, 403, v)
	if kind != kindHTML || strings.Contains(page, "<script>") || !strings.Contains(page, "&lt;script&gt;") || !strings.Contains(page, "an-id") || !strings.Contains(page, "<title>403 Forbidden</title>") {
		t.Errorf("%s: %s", kind, page)
	}
}

func TestIsGRPC(t *testing.T) {
	for kind, want := range map[string]bool{
		"application/grpc": true, "application/grpc+proto": true, "application/grpc;x": true,
		"application/grpc-web": false, "application/grpcx": false, "application/json": false, "": false,
	} {
		if got := isGRPC(map[string]string{"content-type": kind}); got != want {
			t.Errorf("%q: %v", kind, got)
		}
	}
}

package authz

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
)

// To Envoy's HTTP client 200 allows and 5xx may allow: no refusal is either.
func TestHTTPFormRefuses(t *testing.T) {
	for code, want := range map[int]int{0: 403, 100: 403, 101: 403, 200: 403, 201: 201, 204: 204, 302: 302, 401: 401, 403: 403, 429: 429, 499: 499, 500: 403, 503: 403, 599: 403} {
		f := &httpForm{maxBody: 10, check: func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
			return &authv3.CheckResponse{Status: &status.Status{Code: int32(codes.PermissionDenied)}, HttpResponse: &authv3.CheckResponse_DeniedResponse{
				DeniedResponse: &authv3.DeniedHttpResponse{Status: &typev3.HttpStatus{Code: typev3.StatusCode(code)}},
			}}, nil
		}}
		w := httptest.NewRecorder()
		f.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", http.NoBody))
		if w.Code != want {
			t.Errorf("a refusal with %d is answered %d, want %d", code, w.Code, want)
		}
	}
	f := &httpForm{maxBody: 10, check: func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
		return nil, errors.New("no answer")
	}}
	w := httptest.NewRecorder()
	f.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", http.NoBody))
	if w.Code != 403 {
		t.Errorf("without an answer: %d", w.Code)
	}
}

// What the policy gets to see is the request as it came, and no source.
func TestHTTPFormRequest(t *testing.T) {
	var got *authv3.CheckRequest
	f := &httpForm{maxBody: 10, check: func(_ context.Context, req *authv3.CheckRequest) (*authv3.CheckResponse, error) {
		got = req
		return &authv3.CheckResponse{Status: &status.Status{}}, nil
	}}
	s := httptest.NewServer(f)
	defer s.Close()
	target := "/a%2Fb//c?x=%20"
	do := func(body string) int {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.URL.Opaque = target
		req.Host = "shop.example"
		req.Header = http.Header{"X-A": {"1", "2"}, "X-Forwarded-For": {"192.0.2.1"}}
		resp, err := s.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		_, _ = io.Copy(io.Discard, resp.Body)
		return resp.StatusCode
	}
	if code := do("short"); code != 200 {
		t.Fatalf("status %d", code)
	}
	h := got.GetAttributes().GetRequest().GetHttp()
	if h.GetMethod() != "POST" || h.GetPath() != target || h.GetHost() != "shop.example" || h.GetHeaders()["x-a"] != "1,2" ||
		h.GetHeaders()[":authority"] != "shop.example" || h.GetBody() != "short" || got.GetAttributes().GetSource().GetAddress() != nil {
		t.Errorf("%v", got)
	}
	// The absolute form of a request's target is that of a request to a proxy.
	target = "//other.example" + target
	if code := do(""); code != 200 || got.GetAttributes().GetRequest().GetHttp().GetPath() != "/a%2Fb//c?x=%20" {
		t.Errorf("absolute form: %d %v", code, got)
	}
	got = nil
	if code := do("longer than ten"); code != 413 || got != nil {
		t.Errorf("a long body: %d, asked %v", code, got)
	}
	if code := do("\xff\xfe"); code != 200 || len(got.GetAttributes().GetRequest().GetHttp().GetRawBody()) != 2 {
		t.Errorf("bytes: %d %v", code, got)
	}
}

// Headers that would change the answer's own form are left out.
func TestHTTPFormHeaders(t *testing.T) {
	h := http.Header{}
	option := func(name, value string) *corev3.HeaderValueOption { return header(name, value) }
	again := func(name, value string) *corev3.HeaderValueOption {
		o := header(name, value)
		o.AppendAction = corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD
		return o
	}
	setHeaders(h, []*corev3.HeaderValueOption{
		option("Content-Length", "1"), option(":status", "200"), option("transfer-encoding", "chunked"), option("connection", "close"),
		option("x-a", "1"), again("x-a", "2"), option("set-cookie", "a"), again("set-cookie", "b"), option("x-b", "1"), option("x-b", "2"),
	})
	if len(h) != 3 || h.Get("x-a") != "1,2" || len(h.Values("set-cookie")) != 2 || h.Get("x-b") != "2" {
		t.Errorf("%v", h)
	}
}

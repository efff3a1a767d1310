package authz

import (
	"bufio"
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"unicode/utf8"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
)

// FuzzHTTPForm sends any request to the HTTP form: what is refused is never answered by
// what Envoy takes for yes, or for an error that it lets pass where it is open.
func FuzzHTTPForm(f *testing.F) {
	for _, seed := range []string{
		"GET /a?b=1 HTTP/1.1\r\nHost: x\r\nX-Request-Id: 1\r\n\r\n",
		"POST http://user@h/%zz HTTP/1.1\r\nHost: y\r\nContent-Length: 3\r\n\r\n\xff\xfea",
		"GET // HTTP/1.0\r\nAccept: text/html\r\nX: \xff\r\nX: b\r\n\r\n",
		"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
		"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
		"PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n",
	} {
		f.Add(seed, true)
		f.Add(seed, false)
	}
	f.Fuzz(func(t *testing.T, text string, allows bool) {
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(text)))
		if err != nil {
			return
		}
		asked := false
		form := &httpForm{maxBody: 1 << 10, check: func(_ context.Context, req *authv3.CheckRequest) (*authv3.CheckResponse, error) {
			asked = true
			h := req.GetAttributes().GetRequest().GetHttp()
			if h.GetHeaders()[":path"] != h.GetPath() || len(h.GetBody())+len(h.GetRawBody()) > 1<<10 {
				t.Errorf("the check is %v", h)
			}
			for name, value := range h.GetHeaders() {
				if name != strings.ToLower(name) || !strings.HasPrefix(name, ":") && !utf8.ValidString(value) {
					t.Errorf("the header %q has %q", name, value)
				}
			}
			code := codes.PermissionDenied
			if allows {
				code = codes.OK
			}
			return &authv3.CheckResponse{Status: &status.Status{Code: int32(code)}}, nil
		}}
		w := httptest.NewRecorder()
		form.ServeHTTP(w, r)
		if yes := w.Code == http.StatusOK; yes != (asked && allows) || w.Code >= http.StatusInternalServerError {
			t.Errorf("answered with %d: asked %v, allowed %v", w.Code, asked, allows)
		}
	})
}

// FuzzPlugin reads any section of the plugin, which discovery may bring: an error or
// something to decide by and an address of this machine.
func FuzzPlugin(f *testing.F) {
	for _, seed := range []string{
		"{}", `{"addr": ":9191", "path": "envoy/authz/allow"}`, "query: data.a.b\ndry-run: true", `{"path": "a", "query": "b"}`, "addr: unix://@x", "path: '../x y'",
		"grpc-max-recv-msg-size: -1", "query: 'data.a; http.send({})'", "addr: grpc://[::1]:0", "skip-request-body-parse: yes",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, section []byte) {
		if strings.Contains(string(section), "proto") {
			return // it would read a file
		}
		s := &Standalone{}
		p, err := s.readPlugin(section)
		if err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("the error has lines: %q", err)
			}
			return
		}
		if p.query == "" || p.Path != "" && p.Query != "" {
			t.Errorf("%q gives %+v", section, p)
		}
		if addr, err := s.address(p.Addr); err != nil || strings.HasPrefix(addr, ":") {
			t.Errorf("the address %q, %v", addr, err)
		}
	})
}

package authz

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// removeHeader is where Envoy's HTTP client of ext_authz finds the names of
// request headers to remove (x-envoy-auth-headers-to-remove).
const removeHeader = "x-envoy-auth-headers-to-remove"

// metadataHeader begins the names of headers with dynamic metadata, which
// Envoy's dynamic_metadata_from_headers can pick up.
const metadataHeader = "x-ext-authz-metadata-"

// httpForm answers checks by HTTP, as Envoy's ext_authz asks them with
// http_service: the method, path and headers of the check are those of the
// request that is decided. 200 allows, everything else refuses.
type httpForm struct {
	check func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error)
	// maxBody bounds the body of a check, in bytes.
	maxBody int64
}

// serve answers until ctx ends.
func (f *httpForm) serve(ctx context.Context, l net.Listener) error {
	// No ReadHeaderTimeout: it also ends connections that an Envoy keeps in store.
	s := &http.Server{Handler: f, ReadTimeout: time.Hour, WriteTimeout: time.Hour, IdleTimeout: time.Hour, MaxHeaderBytes: 1 << 20} //nolint:gosec // see above
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	select {
	case err := <-done:
		return fmt.Errorf("http form: %w", err)
	case <-ctx.Done():
	}
	bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	err := s.Shutdown(bound)
	<-done
	return err
}

// ServeHTTP implements http.Handler.
func (f *httpForm) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	req, err := f.request(w, r)
	if err != nil {
		code := http.StatusBadRequest
		if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
			code = http.StatusRequestEntityTooLarge
		}
		http.Error(w, http.StatusText(code), code)
		return
	}
	resp, err := f.check(r.Context(), req)
	if err != nil {
		// An answer of 5xx would let the request pass where Envoy is open on errors.
		http.Error(w, http.StatusText(http.StatusForbidden), http.StatusForbidden)
		return
	}
	if resp.GetStatus().GetCode() == int32(codes.OK) {
		allow(w, resp)
		return
	}
	deny(w, req, resp)
}

// request makes the request of the gRPC form. Who calls is not in it: Envoy's
// HTTP client does not say, and a header could be anybody's.
func (f *httpForm) request(w http.ResponseWriter, r *http.Request) (*authv3.CheckRequest, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, f.maxBody))
	if err != nil {
		return nil, err
	}
	path := r.RequestURI
	if !strings.HasPrefix(path, "/") {
		path = r.URL.RequestURI()
	}
	h := &authv3.AttributeContext_HttpRequest{
		Id: r.Header.Get("X-Request-Id"), Method: r.Method, Path: path, Host: r.Host,
		Scheme: r.Header.Get("X-Forwarded-Proto"), Protocol: r.Proto, Size: int64(len(body)),
		Headers: make(map[string]string, len(r.Header)+3),
	}
	for name, values := range r.Header {
		h.Headers[strings.ToLower(name)] = valid(strings.Join(values, ","))
	}
	h.Headers[":method"], h.Headers[":path"], h.Headers[":authority"] = r.Method, path, r.Host
	if utf8.Valid(body) {
		h.Body = string(body)
	} else {
		h.RawBody = body
	}
	return &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		Source: &authv3.AttributeContext_Peer{}, Destination: &authv3.AttributeContext_Peer{},
		Request: &authv3.AttributeContext_Request{Time: timestamppb.Now(), Http: h},
	}}, nil
}

// allow answers 200 with everything that Envoy may want: which of it goes where
// is what its filter is configured for.
func allow(w http.ResponseWriter, resp *authv3.CheckResponse) {
	ok := resp.GetOkResponse()
	setHeaders(w.Header(), ok.GetHeaders())
	setHeaders(w.Header(), ok.GetResponseHeadersToAdd())
	if remove := ok.GetHeadersToRemove(); len(remove) > 0 {
		w.Header().Set(removeHeader, strings.Join(remove, ","))
	}
	for name, v := range resp.GetDynamicMetadata().GetFields() {
		if text, ok := scalar(v); ok {
			w.Header().Set(metadataHeader+strings.ReplaceAll(name, "_", "-"), text)
		}
	}
	w.WriteHeader(http.StatusOK)
}

// deny answers with what the policy wants the client to see.
func deny(w http.ResponseWriter, req *authv3.CheckRequest, resp *authv3.CheckResponse) {
	denied := resp.GetDeniedResponse()
	setHeaders(w.Header(), denied.GetHeaders())
	code := refusalStatus(int(denied.GetStatus().GetCode()))
	body := denied.GetBody()
	if body == "" {
		v := &verdict{id: resp.GetDynamicMetadata().GetFields()[metadataID].GetStringValue()}
		var kind string
		if body, kind = refusalBody(req.GetAttributes().GetRequest().GetHttp().GetHeaders(), code, v); w.Header().Get("Content-Type") == "" {
			w.Header().Set("Content-Type", kind)
		}
	}
	w.WriteHeader(code)
	_, _ = io.WriteString(w, body) // the caller may have gone
}

// refusalStatus keeps a refusal one: to Envoy's HTTP client 200 allows, 5xx is an
// error, which passes where failure_mode_allow is set, and 1xx is no answer.
func refusalStatus(code int) int {
	if code <= http.StatusOK || code >= http.StatusInternalServerError {
		return http.StatusForbidden
	}
	return code
}

// setHeaders sets those that a server may set.
func setHeaders(h http.Header, options []*corev3.HeaderValueOption) {
	for _, o := range options {
		name := strings.ToLower(o.GetHeader().GetKey())
		if strings.HasPrefix(name, ":") || slices.Contains([]string{"content-length", "transfer-encoding", "connection", "upgrade", "trailer"}, name) {
			continue
		}
		value := o.GetHeader().GetValue()
		switch again := o.GetAppendAction() == corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD && h.Get(name) != ""; {
		case again && name == "set-cookie":
			h.Add(name, value)
		case again:
			// Of several lines Envoy would take the last.
			h.Set(name, h.Get(name)+","+value)
		default:
			h.Set(name, value)
		}
	}
}

// scalar is the text of metadata that fits into a header.
func scalar(v *structpb.Value) (string, bool) {
	switch v.GetKind().(type) {
	case *structpb.Value_StringValue:
		s := v.GetStringValue()
		return s, len(s) <= 1024 && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
	case *structpb.Value_NumberValue, *structpb.Value_BoolValue:
		return strings.TrimSpace(fmt.Sprint(v.AsInterface())), true
	}
	return "", false
}

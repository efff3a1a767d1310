package authz

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/writ-mesh/writ/internal/envoytest"
	"github.com/writ-mesh/writ/internal/listen"
	"github.com/writ-mesh/writ/internal/peercred"
	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/internal/refusal"
	"github.com/writ-mesh/writ/internal/rpc"
	"github.com/writ-mesh/writ/internal/service"
)

const envoyYAML = `
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}
static_resources:
  listeners:
  - name: in
    address: {socket_address: {address: 127.0.0.1, port_value: PORT}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: in
          access_log:
          - name: file
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
              path: ACCESSLOG
              log_format: {text_format_source: {inline_string: "%RESPONSE_CODE% %DYNAMIC_METADATA(envoy.filters.http.ext_authz:writ_denied_by)% %DYNAMIC_METADATA(envoy.filters.http.ext_authz:writ_reason)%\n"}}
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes: [{match: {prefix: /}, route: {cluster: app}}]
              typed_per_filter_config:
                envoy.filters.http.ext_authz:
                  "@type": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute
                  check_settings: {context_extensions: {"writ.policies": "default/methods,default/office"}, with_request_body: {max_request_bytes: 1024, allow_partial_message: true}}
          http_filters:
          - name: envoy.filters.http.ext_authz
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz
              transport_api_version: V3
              failure_mode_allow: true
              grpc_service: {envoy_grpc: {cluster_name: authz}, timeout: 5s}
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
  clusters:
  - name: app
    load_assignment: {cluster_name: app, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: APP}}}}]}]}
  - name: authz
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
    load_assignment: {cluster_name: authz, endpoints: [{lb_endpoints: [{endpoint: {address: {pipe: {path: SOCKET}}}}]}]}
`

// runEnvoy starts Envoy in front of an application and returns its URL.
func runEnvoy(t *testing.T, app *httptest.Server, socket, accessLog string) string {
	t.Helper()
	address := proctest.Address(t)
	_, port, _ := net.SplitHostPort(address)
	_, appPort, _ := net.SplitHostPort(app.Listener.Addr().String())
	file := writeFile(t, t.TempDir()+"/envoy.yaml", strings.NewReplacer("PORT", port, "APP", appPort, "SOCKET", socket, "ACCESSLOG", accessLog).
		Replace(envoyYAML))
	envoytest.Run(t, envoytest.Find(t), file, "--file-flush-interval-msec", "100")
	proctest.Eventually(t, 30*time.Second, func() error {
		c, err := net.Dial("tcp", address)
		if err != nil {
			return err
		}
		return c.Close()
	})
	return "http://" + address
}

func TestRealEnvoy(t *testing.T) {
	envoytest.Find(t)
	m := newMesh(t)
	m.apply(t,
		regoPolicy("default/methods", `allow if input.attributes.request.http.method in {"GET", "POST"}`),
		regoPolicy("default/office", `import input.attributes.request.http as req
			allow := {"allowed": true, "headers": {"x-role": "guest"}, "request_headers_to_remove": ["x-drop"], "response_headers_to_add": {"x-seen": "yes"}} if input.parsed_path[0] == "open"
			else := {"allowed": false, "http_status": 429, "body": "teapot", "headers": {"x-why": "tea"}, "reason": "tea time"} if input.parsed_path[0] == "tea"
			else if input.parsed_body.role == "admin"
			else if input.truncated_body
			else := 1 / 0 if input.parsed_path[0] == "broken"
			else := "yes" if input.parsed_path[0] == "form"`))

	dir := t.TempDir()
	socket, accessLog := dir+"/authz.sock", dir+"/access.log"
	l, err := listen.WithMode("unix://"+socket, listen.UnixMode)
	if err != nil {
		t.Fatal(err)
	}
	rt := &service.Runtime{Log: m.server.log}
	methods := rpc.Methods{authv3.Authorization_Check_FullMethodName: rpc.SameUser()}
	g := rpc.NewServer(peercred.Credentials(), methods, rt)
	authv3.RegisterAuthorizationServer(g, m.server)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- rpc.Serve(ctx, g, l) }()
	t.Cleanup(func() { cancel(); <-done })

	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "role=%s drop=%s body=%d", r.Header.Get("x-role"), r.Header.Get("x-drop"), len(body))
	}))
	t.Cleanup(app.Close)
	url := runEnvoy(t, app, socket, accessLog)

	for name, c := range map[string]struct {
		method, path, body string
		status             int
		want, by           string
		header             [2]string
	}{
		"allow":           {"GET", "/open/a", "", 200, "role=guest drop= body=0", "", [2]string{"x-seen", "yes"}},
		"deny by default": {"GET", "/closed", "", 403, `"title":"Forbidden"`, "RegoPolicy default/office", [2]string{"content-type", "application/problem+json"}},
		"deny by object":  {"GET", "/tea", "", 429, "teapot", "RegoPolicy default/office", [2]string{"x-why", "tea"}},
		"first refuses":   {"DELETE", "/open", "", 403, "", "RegoPolicy default/methods", [2]string{}},
		"body":            {"POST", "/x", `{"role": "admin"}`, 200, "body=17", "", [2]string{}},
		"body refused":    {"POST", "/x", `{"role": "guest"}`, 403, "", "RegoPolicy default/office", [2]string{}},
		"body malformed":  {"POST", "/x", `{"role"`, 400, "malformed", "RegoPolicy default/methods", [2]string{}},
		"body truncated":  {"POST", "/x", `{"role": "` + strings.Repeat("x", 2000) + `"}`, 200, "body=2012", "", [2]string{}},
		"path malformed":  {"GET", "/open/%zz", "", 400, "malformed", "RegoPolicy default/methods", [2]string{}},
		"no decision":     {"GET", "/form", "", 403, "could not be decided", "RegoPolicy default/office", [2]string{}},
		"undefined":       {"GET", "/broken", "", 403, "", "RegoPolicy default/office", [2]string{}},
	} {
		t.Run(name, func(t *testing.T) {
			req, err := http.NewRequest(c.method, url, strings.NewReader(c.body))
			if err != nil {
				t.Fatal(err)
			}
			req.URL.Opaque = c.path // as it is
			req.Header.Set("Content-Type", "application/json")
			req.Header.Set("X-Drop", "me")
			resp, err := (&http.Client{Timeout: 30 * time.Second}).Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, _ := io.ReadAll(resp.Body)
			if resp.StatusCode != c.status || !strings.Contains(string(body), c.want) || resp.Header.Get(DeniedByHeader) != c.by {
				t.Errorf("%d %q by %q", resp.StatusCode, body, resp.Header.Get(DeniedByHeader))
			}
			if c.header[0] != "" && resp.Header.Get(c.header[0]) != c.header[1] {
				t.Errorf("%s: %q", c.header[0], resp.Header.Get(c.header[0]))
			}
		})
	}

	t.Run("a page for a browser", func(t *testing.T) { refusedBrowser(t, url) })
	t.Run("details for a gRPC caller", func(t *testing.T) { refusedCall(t, strings.TrimPrefix(url, "http://")) })

	// Envoy writes its access log every second.
	proctest.Eventually(t, 20*time.Second, func() error {
		b, err := os.ReadFile(accessLog)
		if err == nil && !strings.Contains(string(b), "429 RegoPolicy default/office tea time") {
			err = fmt.Errorf("the access log does not name the policy: %s", b)
		}
		return err
	})
}

func refusedBrowser(t *testing.T, url string) {
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+"/closed", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8")
	resp, err := (&http.Client{Timeout: 30 * time.Second}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusForbidden || resp.Header.Get("Content-Type") != refusal.HTML || !strings.Contains(string(body), "<h1>Forbidden</h1>") {
		t.Errorf("%d %v %s", resp.StatusCode, resp.Header, body)
	}
}

// refusedCall: the client's library believes the details only if their code is
// that of the call.
func refusedCall(t *testing.T, addr string) {
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableServiceConfig())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for method, want := range map[string]codes.Code{"/closed/Check": codes.PermissionDenied, "/tea/Check": codes.Unavailable} {
		err := conn.Invoke(t.Context(), method, &grpc_health_v1.HealthCheckRequest{}, &grpc_health_v1.HealthCheckResponse{})
		st := status.Convert(err)
		if st.Code() != want || len(st.Details()) != 1 {
			t.Errorf("%s: %v, details %v", method, err, st.Details())
			continue
		}
		if info, ok := st.Details()[0].(*errdetails.ErrorInfo); !ok || info.GetReason() != "REFUSED_BY_POLICY" || info.GetMetadata()[metadataID] == "" {
			t.Errorf("%s: details %v", method, st.Details())
		}
	}
}

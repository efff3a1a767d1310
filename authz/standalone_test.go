package authz

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"

	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/internal/service"
)

// start runs the service with this configuration until the test ends.
func start(t *testing.T, c Config) {
	t.Helper()
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	rt := &service.Runtime{Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(), Health: new(service.Health)}
	rt.Health.Register(healthListener) // or it would be ready before it runs
	go func() { done <- Run(ctx, c, rt) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	proctest.Eventually(t, 20*time.Second, func() error {
		select {
		case err := <-done:
			done <- nil
			t.Fatalf("run ended: %v", err)
		default:
		}
		return rt.Health.Ready()
	})
}

// startAlone runs the service as `writ-authz -opa-config ... policy.rego` on a
// unix socket, and returns a client.
func startAlone(t *testing.T, opaConfig, policy string) (authv3.AuthorizationClient, *grpc.ClientConn) {
	t.Helper()
	dir := t.TempDir()
	addr := "unix://" + filepath.Join(dir, "s")
	c := DefaultConfig()
	c.Alone = &Standalone{
		ConfigFile: writeFile(t, dir+"/config.yaml", strings.ReplaceAll(opaConfig, "ADDR", addr)),
		Paths:      []string{writeFile(t, dir+"/policy.rego", policy)},
	}
	start(t, c)
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return authv3.NewAuthorizationClient(conn), conn
}

// The example that the plugin's documentation walks through: employees, with a
// role in a token that the policy itself decodes, and a body.
func TestAloneEmployees(t *testing.T) {
	client, _ := startAlone(t, `
plugins:
  envoy_ext_authz_grpc:
    addr: ADDR
    path: envoy/authz/allow
    dry-run: false
    enable-reflection: false
decision_logs:
  console: true
`, `package envoy.authz

import input.attributes.request.http as req

default allow := false

role := payload.role if [_, payload, _] := io.jwt.decode(substring(req.headers.authorization, 7, -1))

allow if {
	req.method == "GET"
	input.parsed_path == ["people"]
	role in {"guest", "admin"}
}

allow if {
	req.method == "POST"
	input.parsed_path == ["people"]
	role == "admin"
	lower(input.parsed_body.firstname) != "bob"
}
`)
	// Payloads {"role":"guest"} and {"role":"admin"}; the policy does not verify.
	tokens := map[string]string{"guest": "eyJhbGciOiJub25lIn0.eyJyb2xlIjoiZ3Vlc3QifQ.", "admin": "eyJhbGciOiJub25lIn0.eyJyb2xlIjoiYWRtaW4ifQ."}
	for _, c := range []struct {
		role, method, path, body string
		allow                    bool
	}{
		{"guest", "GET", "/people", "", true},
		{"guest", "GET", "/people?page=2", "", true},
		{"guest", "GET", "/people/1", "", false},
		{"guest", "POST", "/people", `{"firstname": "Charlie"}`, false},
		{"admin", "GET", "/people", "", true},
		{"admin", "POST", "/people", `{"firstname": "Charlie"}`, true},
		{"admin", "POST", "/people", `{"firstname": "Bob"}`, false},
		{"admin", "POST", "/people", "", false},
		{"", "GET", "/people", "", false},
	} {
		req := checkRequest("", withHeader("content-type", "application/json"), func(a *authv3.AttributeContext) {
			a.Request.Http.Method, a.Request.Http.Path, a.Request.Http.Body = c.method, c.path, c.body
			if c.role != "" {
				a.Request.Http.Headers["authorization"] = "Bearer " + tokens[c.role]
			}
		})
		resp, err := client.Check(context.Background(), req)
		if err != nil {
			t.Fatal(err)
		}
		if allowed(resp) != c.allow || resp.GetDynamicMetadata().GetFields()[metadataID].GetStringValue() == "" || resp.GetHttpResponse() != nil {
			t.Errorf("%+v: %v", c, resp)
		}
	}
	if r, err := client.Check(context.Background(), checkRequest("", withHeader("content-type", "application/json"), func(a *authv3.AttributeContext) { a.Request.Http.Body = "{" })); err != nil || r.GetDeniedResponse().GetStatus().GetCode() != 400 || allowed(r) {
		t.Errorf("a malformed body: %v %v", r, err)
	}
}

// A decision that is an object: headers, body and status of it.
func TestAloneObject(t *testing.T) {
	client, _ := startAlone(t, `
plugins:
  envoy_ext_authz_grpc:
    addr: ADDR
    query: data.istio.authz.allow
`, `package istio.authz

default allow := {"allowed": false, "headers": {"x-ext-auth-allow": "no"}, "body": "Unauthorized Request", "http_status": 301}

allow := {"allowed": true, "headers": {"x-ext-auth-allow": "yes"}, "response_headers_to_add": {"x-validated-by": "security-checkpoint"},
	"request_headers_to_remove": ["one-auth-header"], "dynamic_metadata": {"foo": "bar"}} if input.attributes.request.http.method == "GET"

allow := "oops" if input.attributes.request.http.method == "PATCH"
`)
	get, err := client.Check(context.Background(), checkRequest(""))
	if err != nil {
		t.Fatal(err)
	}
	ok := get.GetOkResponse()
	if !allowed(get) || ok.GetHeaders()[0].GetHeader().GetValue() != "yes" || ok.GetHeadersToRemove()[0] != "one-auth-header" ||
		ok.GetResponseHeadersToAdd()[0].GetHeader().GetKey() != "x-validated-by" || get.GetDynamicMetadata().GetFields()["foo"].GetStringValue() != "bar" {
		t.Errorf("GET: %v", get)
	}
	method := func(m string) func(*authv3.AttributeContext) {
		return func(a *authv3.AttributeContext) { a.Request.Http.Method = m }
	}
	post, err := client.Check(context.Background(), checkRequest("", method("POST")))
	if err != nil {
		t.Fatal(err)
	}
	if d := post.GetDeniedResponse(); allowed(post) || d.GetBody() != "Unauthorized Request" || d.GetStatus().GetCode() != 301 || len(d.GetHeaders()) != 1 {
		t.Errorf("POST: %v", post)
	}
	patch, err := client.Check(context.Background(), checkRequest("", method("PATCH")))
	if err != nil || allowed(patch) {
		t.Errorf("PATCH, whose decision is malformed: %v %v", patch, err)
	}
}

func TestAloneDryRunAndReflection(t *testing.T) {
	client, conn := startAlone(t, `
plugins:
  envoy_ext_authz_grpc:
    addr: ADDR
    dry-run: true
    enable-reflection: true
    skip-request-body-parse: true
`, "package envoy.authz\nallow := false")
	resp, err := client.Check(context.Background(), checkRequest("", withHeader("content-type", "application/json"), func(a *authv3.AttributeContext) { a.Request.Http.Body = "{" }))
	if err != nil || !allowed(resp) || resp.GetDeniedResponse() != nil {
		t.Errorf("%v %v", resp, err)
	}
	s, err := grpc_reflection_v1.NewServerReflectionClient(conn).ServerReflectionInfo(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(&grpc_reflection_v1.ServerReflectionRequest{MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	if r, err := s.Recv(); err != nil || !strings.Contains(r.String(), "envoy.service.auth.v3.Authorization") {
		t.Errorf("%v %v", r, err)
	}
}

// A rule that is not there denies, as with the plugin, and does not stop the start.
func TestAloneUndefined(t *testing.T) {
	client, _ := startAlone(t, "plugins: {envoy_ext_authz_grpc: {addr: ADDR, path: no/such/rule}}", "package envoy.authz\nallow := true")
	resp, err := client.Check(context.Background(), checkRequest(""))
	if err != nil || resp.GetStatus().GetCode() != int32(codes.PermissionDenied) {
		t.Errorf("%v %v", resp, err)
	}
}

func noPaths(s *Standalone) { s.Paths = nil }

func TestStandaloneValidate(t *testing.T) {
	dir := t.TempDir()
	policy := writeFile(t, dir+"/policy.rego", "package envoy.authz\nallow := true")
	t.Setenv("WRIT_TEST_PATH", "from/environment")
	for name, c := range map[string]struct {
		config, want string
		change       func(*Standalone)
	}{
		"empty":             {config: "{}"},
		"all of the plugin": {config: "plugins: {envoy_ext_authz_grpc: {addr: ':9191', path: a/b, dry-run: true, enable-reflection: true, grpc-max-recv-msg-size: 40194304, grpc-max-send-msg-size: 2147483647, skip-request-body-parse: true, enable-performance-metrics: true, grpc-request-duration-seconds-buckets: [1, 2]}}"},
		"services":          {config: "services: [{name: controller, url: https://example.org}]\nlabels: {app: x}"},
		"services as map":   {config: "services: {controller: {url: https://example.org}}"},
		"file bundle":       {config: "bundles: {authz: {resource: 'file://" + dir + "'}}"},
		"environment":       {config: "plugins: {envoy_ext_authz_grpc: {path: '${WRIT_TEST_PATH}'}}"},
		"console log":       {config: "decision_logs: {console: true}"},
		"everywhere, asked": {config: "plugins: {envoy_ext_authz_grpc: {addr: 'grpc://0.0.0.0:9191'}}", change: func(s *Standalone) { s.PlainTextAnywhere = true }},

		"everywhere":      {config: "plugins: {envoy_ext_authz_grpc: {addr: '0.0.0.0:9191'}}", want: "or give -plaintext-anywhere"},
		"abstract":        {config: "plugins: {envoy_ext_authz_grpc: {addr: 'unix://@x'}}", want: "not supported by this version"},
		"bad address":     {config: "plugins: {envoy_ext_authz_grpc: {addr: 'x'}}", want: "addr"},
		"path and query":  {config: "plugins: {envoy_ext_authz_grpc: {path: a, query: data.a}}", want: "both set"},
		"unknown key":     {config: "plugins: {envoy_ext_authz_grpc: {pth: a}}", want: "pth"},
		"unknown section": {config: "bundels: {}", want: "bundels"},
		"other plugin":    {config: "plugins: {other: {}}", want: "plugins.other: not supported by this version"},
		"remote bundle":   {config: "services: [{name: c, url: https://x.example}]\nbundles: {authz: {service: c, resource: b.tar.gz, polling: {min_delay_seconds: 1, max_delay_seconds: 2, long_polling_timeout_seconds: 30}}}", change: noPaths},
		"registry":        {config: "services: {c: {url: https://ghcr.example, type: oci, credentials: {bearer: {scheme: Basic, token: u:p}}}}\nbundles: {authz: {service: c, resource: ghcr.example/a/b:1, persist: true}}\npersistence_directory: /tmp/x", change: noPaths},
		"signed bundle":   {config: "keys: {k: {algorithm: ES256, key: PEM}}\nbundles: {authz: {resource: 'file:///x', signing: {keyid: k}}}", change: noPaths},
		"remote log":      {config: "services: [{name: c, url: https://x.example}]\ndecision_logs: {service: c, mask_decision: /system/log/mask}\nstatus: {service: c}"},
		"discovery":       {config: "services: [{name: c, url: https://x.example}]\ndiscovery: {resource: x, service: c}", change: noPaths},

		"key that is not there":    {config: "bundles: {authz: {resource: 'file:///x', signing: {keyid: k}}}", want: "k"},
		"bundle of no service":     {config: "bundles: {authz: {service: c}}", want: `"c" not found`},
		"log to no service":        {config: "decision_logs: {service: c}", want: `"c"`},
		"service without address":  {config: "services: [{name: c}]", want: "services.c: url"},
		"two services of one name": {config: "services: [{name: c, url: https://x}, {name: c, url: https://y}]", want: "services[1]"},
		"two credentials":          {config: "services: [{name: c, url: https://x, credentials: {bearer: {token: t}, client_tls: {cert: c}}}]", want: "maximum one credential"},
		"plugin for credentials":   {config: "services: [{name: c, url: https://x, credentials: {plugin: p}}]", want: "no such plugins"},
		"storage":                  {config: "storage: {disk: {}}", want: "storage: not supported"},
		"tracing":                  {config: "distributed_tracing: {type: grpc}", want: "distributed_tracing: not supported"},
		"bad query":                {config: "plugins: {envoy_ext_authz_grpc: {query: 'data.'}}", want: "query"},
		"http everywhere":          {config: "{}", change: func(s *Standalone) { s.HTTPListen = "0.0.0.0:1" }, want: "-http-listen"},
		"not YAML":                 {config: "a: [", want: "config.yaml"},
		"descriptor":               {config: "plugins: {envoy_ext_authz_grpc: {proto-descriptor: /none.pb}}", want: "/none.pb"},
		"bad descriptor":           {config: "plugins: {envoy_ext_authz_grpc: {proto-descriptor: " + policy + "}}", want: "file descriptor set"},
		"no policy":                {config: "{}", change: func(s *Standalone) { s.Paths = nil }, want: "no policy"},
		"missing policy":           {config: "{}", change: func(s *Standalone) { s.Paths = []string{dir + "/none.rego"} }, want: "none.rego"},
	} {
		t.Run(name, func(t *testing.T) {
			s := &Standalone{ConfigFile: writeFile(t, t.TempDir()+"/config.yaml", c.config), Paths: []string{policy}}
			if c.change != nil {
				c.change(s)
			}
			err := s.Validate()
			switch {
			case c.want == "" && err != nil:
				t.Error(err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n")):
				t.Errorf("error %v, want %q", err, c.want)
			}
			if name == "environment" && !strings.Contains(string(s.config), "from/environment") {
				t.Errorf("config %s", s.config)
			}
		})
	}
	s := &Standalone{Paths: []string{policy}}
	if err := s.Validate(); err != nil {
		t.Fatal(err)
	}
	p, err := s.readPlugin([]byte("{}"))
	if addr, aerr := s.address(p.Addr); err != nil || aerr != nil || addr != "127.0.0.1:9191" || p.query != `data["envoy"]["authz"]["allow"]` {
		t.Errorf("defaults: %s %s %v", addr, p.query, err)
	}
}

func TestAlonePortInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dir := t.TempDir()
	c := DefaultConfig()
	c.Alone = &Standalone{
		ConfigFile: writeFile(t, dir+"/c.yaml", "plugins: {envoy_ext_authz_grpc: {addr: '"+l.Addr().String()+"'}}"),
		Paths:      []string{writeFile(t, dir+"/p.rego", "package envoy.authz\nallow := true")},
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	rt := &service.Runtime{Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(), Health: new(service.Health)}
	if err := Run(context.Background(), c, rt); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("error %v", err)
	}
}

package rego

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/open-policy-agent/opa/v1/ast"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

func compile(t testing.TB, module, query string) *Program {
	t.Helper()
	p, err := Compile(context.Background(), Source{Modules: map[string]string{"policy.rego": module}}, query, Options{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// request is what an Envoy sends for a GET between two workloads.
func request(change ...func(*authv3.AttributeContext)) *authv3.CheckRequest {
	addr := func(ip string, port uint32) *corev3.Address {
		return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
			Address: ip, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port},
		}}}
	}
	a := &authv3.AttributeContext{
		Source: &authv3.AttributeContext_Peer{
			Address: addr("127.0.16.1", 40000), Principal: "spiffe://cluster.local/ns/default/sa/reviews",
		},
		Destination: &authv3.AttributeContext_Peer{
			Address: addr("127.0.16.2", 9080), Principal: "spiffe://cluster.local/ns/default/sa/ratings",
		},
		Request: &authv3.AttributeContext_Request{
			Time: &timestamppb.Timestamp{Seconds: 1_700_000_000, Nanos: 5},
			Http: &authv3.AttributeContext_HttpRequest{
				Id: "1", Method: "GET", Path: "/ratings/7?full=yes&full=no", Host: "ratings:9080", Scheme: "http", Protocol: "HTTP/2",
				Headers: map[string]string{":method": "GET", ":path": "/ratings/7?full=yes&full=no", "x-role": "reader"},
			},
		},
	}
	for _, f := range change {
		f(a)
	}
	return &authv3.CheckRequest{Attributes: a}
}

func body(kind, text string) func(*authv3.AttributeContext) {
	return func(a *authv3.AttributeContext) {
		a.Request.Http.Headers["content-type"] = kind
		a.Request.Http.Body = text
	}
}

func input(t testing.TB, req *authv3.CheckRequest, o InputOptions) *Input {
	t.Helper()
	in, err := NewInput(req, o)
	if err != nil {
		t.Fatal(err)
	}
	return in
}

func TestCheck(t *testing.T) {
	for name, c := range map[string]struct{ module, query, want string }{
		"good":            {"package office\nallow := true", "data.office.allow", ""},
		"package":         {"package office\nallow := true", "data.office", ""},
		"part of a rule":  {"package office\nr := {\"a\": true}", "data.office.r.a", ""},
		"dotted rule":     {"package office\nr.a.b := true", "data.office.r.a", ""},
		"expression":      {"package office\nn := 3", "data.office.n > 2", ""},
		"syntax":          {"package office\nallow if {", "data.office.allow", "x/office.rego:2: rego_parse_error"},
		"type":            {"package office\n\nallow if 1 + \"a\" == 2", "data.office.allow", "x/office.rego:3: rego_type_error"},
		"unknown builtin": {"package office\nallow if nope(1)", "data.office.allow", "x/office.rego:2: rego_type_error: undefined function nope"},
		"unsafe variable": {"package office\nallow if x == y", "data.office.allow", "x/office.rego:2: rego_unsafe_var_error"},
		"recursion":       {"package office\nallow if allow", "data.office.allow", "x/office.rego:2: rego_recursion_error"},
		"network":         {"package office\nallow if http.send({\"url\": \"http://a\", \"method\": \"GET\"})", "data.office.allow", "x/office.rego:2: rego_type_error: undefined function http.send"},
		"no such rule":    {"package office\nallow := true", "data.office.alow", "query data.office.alow: the policy has no such rule"},
		"bad query":       {"package office\nallow := true", "data.office.", "query"},
		"empty query":     {"package office\nallow := true", "", "query"},
		"no package":      {"allow := true", "data.office.allow", "x/office.rego:1"},
		"empty":           {"", "data.office.allow", "x/office.rego"},
	} {
		t.Run(name, func(t *testing.T) {
			err := Check("x/office.rego", c.module, c.query)
			switch {
			case c.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case c.want != "" && err == nil:
				t.Error("accepted")
			case c.want != "" && (!strings.HasPrefix(err.Error(), c.want) || strings.Contains(err.Error(), "\n")):
				t.Errorf("error %q does not have %q in one line", err, c.want)
			}
		})
	}
}

func TestQueryOfPath(t *testing.T) {
	for path, want := range map[string]string{
		"envoy/authz/allow":    `data["envoy"]["authz"]["allow"]`,
		"/envoy//authz/":       `data["envoy"]["authz"]`,
		`a"b/c`:                `data["a\"b"]["c"]`,
		"":                     "data",
		"with-dash/and.dot/42": `data["with-dash"]["and.dot"]["42"]`,
	} {
		if got := QueryOfPath(path); got != want {
			t.Errorf("%q: %s, want %s", path, got, want)
		}
	}
}

func TestEvalForms(t *testing.T) {
	const undefined, malformed = "undefined", "malformed"
	for name, c := range map[string]struct {
		rule string
		want Decision
		fail string
	}{
		"true":               {rule: `d := true`, want: Decision{Allowed: true}},
		"false":              {rule: `d := false`},
		"undefined":          {rule: `d if input.no.such`, fail: undefined},
		"string":             {rule: `d := "true"`, fail: malformed},
		"number":             {rule: `d := 1`, fail: malformed},
		"null":               {rule: `d := null`, fail: malformed},
		"list":               {rule: `d := [true]`, fail: malformed},
		"set":                {rule: `d := {true}`, fail: malformed},
		"empty object":       {rule: `d := {}`, fail: malformed},
		"allowed is string":  {rule: `d := {"allowed": "true"}`, fail: malformed},
		"conflict":           {rule: "d := x if x := true\nd := y if y := false", fail: "eval_conflict_error"},
		"object":             {rule: `d := {"allowed": true}`, want: Decision{Allowed: true, Structured: true}},
		"unknown keys stay":  {rule: `d := {"allowed": false, "else": 1}`, want: Decision{Structured: true}},
		"headers object":     {rule: `d := {"allowed": true, "headers": {"b": ["2", "3"], "a": "1"}}`, want: Decision{Allowed: true, Structured: true, Headers: []Pair{{"a", "1"}, {"b", "2"}, {"b", "3"}}}},
		"headers list":       {rule: `d := {"allowed": true, "headers": [{"a": "1"}, {"a": "2"}]}`, want: Decision{Allowed: true, Structured: true, Headers: []Pair{{"a", "1"}, {"a", "2"}}}},
		"headers number":     {rule: `d := {"allowed": true, "headers": {"a": 1}}`, fail: malformed},
		"headers string":     {rule: `d := {"allowed": true, "headers": "a"}`, fail: malformed},
		"header split":       {rule: `d := {"allowed": true, "headers": {"a": "1\r\nb: 2"}}`, fail: malformed},
		"header name":        {rule: `d := {"allowed": true, "headers": {"a b": "1"}}`, fail: malformed},
		"response headers":   {rule: `d := {"allowed": true, "response_headers_to_add": {"a": "1"}}`, want: Decision{Allowed: true, Structured: true, ResponseHeaders: []Pair{{"a", "1"}}}},
		"remove headers":     {rule: `d := {"allowed": true, "request_headers_to_remove": ["a", "b"]}`, want: Decision{Allowed: true, Structured: true, RemoveHeaders: []string{"a", "b"}}},
		"remove headers bad": {rule: `d := {"allowed": true, "request_headers_to_remove": "a"}`, fail: malformed},
		"refusal":            {rule: `d := {"allowed": false, "http_status": 429, "body": "wait", "reason": "late"}`, want: Decision{Structured: true, Status: 429, Body: "wait", Reason: "late"}},
		"status unknown":     {rule: `d := {"allowed": false, "http_status": 299}`, fail: malformed},
		"status fraction":    {rule: `d := {"allowed": false, "http_status": 403.5}`, fail: malformed},
		"status wraps":       {rule: `d := {"allowed": false, "http_status": 4294967696}`, fail: malformed},
		"status string":      {rule: `d := {"allowed": false, "http_status": "403"}`, fail: malformed},
		"body number":        {rule: `d := {"allowed": false, "body": 1}`, fail: malformed},
		"query":              {rule: `d := {"allowed": true, "query_parameters_to_set": {"a": ["1", "2"]}, "query_parameters_to_remove": ["b"]}`, want: Decision{Allowed: true, Structured: true, SetQuery: []Pair{{"a", "1"}, {"a", "2"}}, RemoveQuery: []string{"b"}}},
		"metadata":           {rule: `d := {"allowed": true, "dynamic_metadata": {"a": [1, {"b": null}]}}`, want: Decision{Allowed: true, Structured: true, Metadata: mustStruct(t, `{"a": [1, {"b": null}]}`)}},
		"metadata string":    {rule: `d := {"allowed": true, "dynamic_metadata": "a"}`, fail: malformed},
	} {
		t.Run(name, func(t *testing.T) {
			p := compile(t, "package x\n"+c.rule, "data.x.d")
			got, err := p.Eval(context.Background(), input(t, request(), InputOptions{}), time.Minute)
			var form *FormError
			switch {
			case c.fail == "" && err != nil:
				t.Fatal(err)
			case c.fail == undefined && !errors.Is(err, ErrUndefined),
				c.fail == malformed && !errors.As(err, &form),
				c.fail != "" && c.fail != undefined && c.fail != malformed && (err == nil || !strings.Contains(err.Error(), c.fail)):
				t.Fatalf("error %v, want %s", err, c.fail)
			}
			if diff := cmp.Diff(c.want, got, cmp.Comparer(func(a, b *structpb.Struct) bool { return cmp.Equal(a.AsMap(), b.AsMap()) }),
				cmpopts.IgnoreUnexported(Decision{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func mustStruct(t *testing.T, text string) *structpb.Struct {
	t.Helper()
	s := new(structpb.Struct)
	if err := s.UnmarshalJSON([]byte(text)); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestEvalEndsInTime(t *testing.T) {
	for name, module := range map[string]string{
		"loop": `package x
d if {
	some a in numbers.range(1, 3000)
	some b in numbers.range(1, 3000)
	some c in numbers.range(1, 3000)
	a * b * c < 0
}`,
		"range": `package x
d if count(numbers.range(1, 1000000000)) < 0`,
	} {
		t.Run(name, func(t *testing.T) {
			p := compile(t, module, "data.x.d")
			start := time.Now()
			_, err := p.Eval(context.Background(), input(t, request(), InputOptions{}), 30*time.Millisecond)
			if !errors.Is(err, ErrTimeout) {
				t.Errorf("error %v, want a timeout", err)
			}
			if took := time.Since(start); took > 30*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
	t.Run("deadline of the caller", func(t *testing.T) {
		ctx, cancel := context.WithDeadline(context.Background(), time.Now().Add(-time.Second))
		defer cancel()
		p := compile(t, "package x\nd := true", "data.x.d")
		if _, err := p.Eval(ctx, input(t, request(), InputOptions{}), time.Second); !errors.Is(err, ErrTimeout) {
			t.Errorf("error %v, want a timeout", err)
		}
	})
}

func TestInputDocument(t *testing.T) {
	in := input(t, request(body("application/json", `{"a": [1, "b"]}`)), InputOptions{
		Token: &Token{Issuer: "https://issuer", Claims: []byte(`{"sub": "john", "n": 12345678901234567890}`)},
	})
	got, err := in.json()
	if err != nil {
		t.Fatal(err)
	}
	var want any
	d := json.NewDecoder(strings.NewReader(`{
 "attributes": {
  "source": {"address": {"socketAddress": {"address": "127.0.16.1", "portValue": 40000}}, "principal": "spiffe://cluster.local/ns/default/sa/reviews"},
  "destination": {"address": {"socketAddress": {"address": "127.0.16.2", "portValue": 9080}}, "principal": "spiffe://cluster.local/ns/default/sa/ratings"},
  "request": {
   "time": {"seconds": 1700000000, "nanos": 5},
   "http": {"id": "1", "method": "GET", "path": "/ratings/7?full=yes&full=no", "host": "ratings:9080", "scheme": "http", "protocol": "HTTP/2",
    "headers": {":method": "GET", ":path": "/ratings/7?full=yes&full=no", "x-role": "reader", "content-type": "application/json"},
    "body": "{\"a\": [1, \"b\"]}"}}},
 "parsed_path": ["ratings", "7"],
 "parsed_query": {"full": ["yes", "no"]},
 "parsed_body": {"a": [1, "b"]},
 "truncated_body": false,
 "source_principal": "spiffe://cluster.local/ns/default/sa/reviews",
 "version": {"ext_authz": "v3", "encoding": "protojson"},
 "jwt": {"verified": true, "issuer": "https://issuer", "claims": {"sub": "john", "n": 12345678901234567890}}}`))
	d.UseNumber()
	if err := d.Decode(&want); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// A request without anything still has the documents that policies read.
func TestInputOfNothing(t *testing.T) {
	for _, req := range []*authv3.CheckRequest{{}, {Attributes: &authv3.AttributeContext{}}} {
		got, err := input(t, req, InputOptions{}).json()
		if err != nil {
			t.Fatal(err)
		}
		m := got.(map[string]any)
		if diff := cmp.Diff([]any{""}, m["parsed_path"]); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff(map[string]any{}, m["parsed_query"]); diff != "" {
			t.Error(diff)
		}
		if _, ok := m["jwt"]; ok {
			t.Error("a token from nowhere")
		}
	}
}

func TestParsedPathAndQuery(t *testing.T) {
	for path, want := range map[string]struct {
		path  []any
		query map[string]any
		bad   bool
	}{
		"/a/b":              {path: []any{"a", "b"}},
		"":                  {path: []any{""}},
		"/":                 {path: []any{""}},
		"//a//b/":           {path: []any{"a", "", "b", ""}},
		"/my%2Ftest%20path": {path: []any{"my", "test path"}},
		"/a?":               {path: []any{"a"}},
		"/a?x=1&x=2&y":      {path: []any{"a"}, query: map[string]any{"x": []any{"1", "2"}, "y": []any{""}}},
		"/a?x=%41?b":        {path: []any{"a"}, query: map[string]any{"x": []any{"A?b"}}},
		"/a%zz":             {bad: true},
		"/a?x=%zz":          {bad: true},
		"/a?x;y":            {bad: true},
	} {
		in, err := NewInput(request(func(a *authv3.AttributeContext) { a.Request.Http.Path = path }), InputOptions{})
		var malformed *InputError
		if want.bad {
			if !errors.As(err, &malformed) {
				t.Errorf("%q: error %v", path, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", path, err)
			continue
		}
		x, _ := in.json()
		if want.query == nil {
			want.query = map[string]any{}
		}
		if diff := cmp.Diff([]any{want.path, want.query}, []any{x.(map[string]any)["parsed_path"], x.(map[string]any)["parsed_query"]}); diff != "" {
			t.Errorf("%q: %s", path, diff)
		}
	}
}

func TestParsedBody(t *testing.T) {
	const form = "--x\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\nhello\r\n" +
		"--x\r\nContent-Disposition: form-data; name=\"a\"\r\nContent-Type: application/json\r\n\r\n{\"n\": 1}\r\n--x--\r\n"
	header := func(k, v string) func(*authv3.AttributeContext) {
		return func(a *authv3.AttributeContext) { a.Request.Http.Headers[k] = v }
	}
	for name, c := range map[string]struct {
		change    []func(*authv3.AttributeContext)
		want      any
		truncated bool
		bad       bool
	}{
		"no type":          {change: []func(*authv3.AttributeContext){body("", `{"a": 1}`)}},
		"other type":       {change: []func(*authv3.AttributeContext){body("text/plain", `{"a": 1}`)}},
		"json":             {change: []func(*authv3.AttributeContext){body("application/json; charset=utf-8", `{"a": "1"}`)}, want: map[string]any{"a": "1"}},
		"json list":        {change: []func(*authv3.AttributeContext){body("application/json", `[true]`)}, want: []any{true}},
		"json empty":       {change: []func(*authv3.AttributeContext){body("application/json", "")}},
		"json broken":      {change: []func(*authv3.AttributeContext){body("application/json", `{"a"`)}, bad: true},
		"json trailing":    {change: []func(*authv3.AttributeContext){body("application/json", `{} {}`)}, bad: true},
		"json huge number": {change: []func(*authv3.AttributeContext){body("application/json", `{"a": [1e999999999]}`)}, bad: true},
		"json long number": {change: []func(*authv3.AttributeContext){body("application/json", strings.Repeat("9", 1000))}, bad: true},
		"json truncated":   {change: []func(*authv3.AttributeContext){body("application/json", `{"a": 1}`), header("content-length", "100")}, truncated: true},
		"json whole":       {change: []func(*authv3.AttributeContext){body("application/json", `"a"`), header("content-length", "3")}, want: "a"},
		"bad length":       {change: []func(*authv3.AttributeContext){body("application/json", `"a"`), header("content-length", "x")}, bad: true},
		"envoy truncated":  {change: []func(*authv3.AttributeContext){body("application/json", `{"a": 1}`), header(partialBody, "true")}, truncated: true},
		"envoy whole":      {change: []func(*authv3.AttributeContext){body("application/json", `"a"`), header(partialBody, "false")}, want: "a"},
		"raw": {
			change: []func(*authv3.AttributeContext){body("application/json", ""), func(a *authv3.AttributeContext) { a.Request.Http.RawBody = []byte(`"raw"`) }},
			want:   "raw",
		},
		"form":          {change: []func(*authv3.AttributeContext){body("application/x-www-form-urlencoded", "a=1&a=2&b=")}, want: map[string]any{"a": []any{"1", "2"}, "b": []any{""}}},
		"form broken":   {change: []func(*authv3.AttributeContext){body("application/x-www-form-urlencoded", "a=%zz")}, bad: true},
		"multipart":     {change: []func(*authv3.AttributeContext){body(`multipart/form-data; boundary="x"`, form)}, want: map[string]any{"a": []any{"hello", map[string]any{"n": json.Number("1")}}}},
		"no boundary":   {change: []func(*authv3.AttributeContext){body("multipart/form-data", form)}},
		"cut multipart": {change: []func(*authv3.AttributeContext){body("multipart/form-data; boundary=x", form[:60])}, bad: true},
		"grpc":          {change: []func(*authv3.AttributeContext){body("application/grpc", "")}},
	} {
		t.Run(name, func(t *testing.T) {
			in, err := NewInput(request(c.change...), InputOptions{})
			var malformed *InputError
			if c.bad {
				if !errors.As(err, &malformed) {
					t.Fatalf("error %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			x, _ := in.json()
			m := x.(map[string]any)
			if diff := cmp.Diff(c.want, m["parsed_body"]); diff != "" {
				t.Error(diff)
			}
			if m["truncated_body"] != c.truncated {
				t.Errorf("truncated_body is %v", m["truncated_body"])
			}
			x, _ = input(t, request(), InputOptions{SkipBody: true}).json()
			if _, ok := x.(map[string]any)["parsed_body"]; ok {
				t.Error("parsed_body is there though it is to be skipped")
			}
		})
	}
}

// A bundle on disk is compiled.
func TestBundleFromDisk(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("bundle/.manifest", `{"revision": "7", "roots": ["a", "roles"]}`)
	write("bundle/a/b/policy.rego", "package a.b\nallow if input.parsed_path[0] in data.roles.paths")
	write("bundle/roles/data.json", `{"paths": ["ratings"]}`)
	write("broken/broken.rego", "package x\nallow if {")
	compile := func(folder, rule string) (*Program, error) {
		return Compile(context.Background(), Source{Bundles: []string{filepath.Join(dir, folder)}}, QueryOfPath(rule), Options{})
	}
	p, err := compile("bundle", "a/b/allow")
	if err != nil {
		t.Fatal(err)
	}
	d, err := p.Eval(context.Background(), input(t, request(), InputOptions{}), time.Minute)
	if err != nil || !d.Allowed {
		t.Errorf("decision %v, %v", d, err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	// Who reads the pipe waits for ever.
	for folder, want := range map[string]string{"none": "none", "broken": "broken.rego:2", "pipe": "neither a folder nor a file"} {
		if _, err := compile(folder, "x/allow"); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: error %q, want one with %q", folder, err, want)
		}
	}
}

// json gives the document.
func (in *Input) json() (any, error) { return ast.JSON(in.Document()) }

func metadata(filter string, s *structpb.Struct) *corev3.Metadata {
	return &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{filter: s}}
}

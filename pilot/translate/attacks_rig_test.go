package translate

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/textproto"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	meshv1 "istio.io/api/mesh/v1alpha1"

	"github.com/writ-mesh/writ/authz/rego"
	"github.com/writ-mesh/writ/internal/envoytest"
	"github.com/writ-mesh/writ/pilot/model"
)

// What every policy of the attacked workloads says, each in its own form: nothing below
// /admin, no DELETE, not the host secret.example, not the header x-role: admin.
const (
	attackedDeny = `
kind: AuthorizationPolicy
metadata: {name: p}
spec:
  selector: {matchLabels: {app: %[1]s}}
  action: DENY
  rules:
  - to: [{operation: {paths: [/admin, "/admin/*"]}}]
  - to: [{operation: {methods: [DELETE]}}]
  - to: [{operation: {hosts: [secret.example]}}]
  - when: [{key: "request.headers[x-role]", values: [admin]}]
`
	attackedAllow = `
kind: AuthorizationPolicy
metadata: {name: q}
spec:
  selector: {matchLabels: {app: %[1]s}}
  rules:
  - to: [{operation: {paths: [/public, "/public/*"], methods: [GET, POST], hosts: [%[1]s.example]}}]
    when: [{key: "request.headers[x-role]", notValues: [admin]}]
`
	attackedRego = `package p
import input.attributes.request.http as http
default allow := false
allow if not bad
bad if input.parsed_path[0] == "admin"
bad if http.method == "DELETE"
bad if startswith(lower(http.host), "secret.example")
bad if http.headers["x-role"] == "admin"
`
	// attackedClock keeps a policy at authz.
	attackedClock = "bad if time.now_ns() < 0\n"
)

// attackedKinds are the workloads, by what decides.
var attackedKinds = []string{"deny", "allow", "rego", "authz"}

// attackedProgram is a program behind sidecars that does with its bytes what a simple
// server does, and keeps what came. It never upgrades.
type attackedProgram struct {
	mu   sync.Mutex
	seen []*attackedRequest
}

// attackedRequest is a request as the program read it.
type attackedRequest struct {
	at, method, target, host string
	headers                  http.Header
	// mark is the header by which an attack knows its own.
	mark string
	// garbage is what was no request.
	garbage string
}

func (p *attackedProgram) serve(at string, l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go p.connection(at, c)
	}
}

func (p *attackedProgram) connection(at string, c net.Conn) {
	defer c.Close()
	in := textproto.NewReader(bufio.NewReader(c))
	for {
		line, err := in.ReadLine()
		if err != nil {
			return // the other side has ended it
		}
		words := strings.Split(line, " ")
		headers, err := in.ReadMIMEHeader()
		if err != nil || len(words) != 3 || words[2] != "HTTP/1.1" {
			p.keep(&attackedRequest{at: at, garbage: fmt.Sprintf("%q, %v, %v", line, headers, err)})
			return
		}
		h := http.Header(headers)
		r := &attackedRequest{
			at: at, method: words[0], target: words[1], host: strings.Join(h.Values("Host"), " and "), headers: h, mark: h.Get(attackMark),
		}
		h.Del("Host")
		p.keep(r)
		var body io.Reader = http.NoBody
		if n, err := strconv.ParseInt(h.Get("Content-Length"), 10, 64); err == nil {
			body = io.LimitReader(in.R, n)
		}
		if h.Get("Transfer-Encoding") != "" {
			body = httputil.NewChunkedReader(in.R)
		}
		if _, err := io.Copy(io.Discard, body); err != nil {
			return // the caller, or Envoy, broke off
		}
		if h.Get("Transfer-Encoding") != "" {
			if _, err := in.ReadMIMEHeader(); err != nil { // trailers
				return
			}
		}
		if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok\n"); err != nil {
			return
		}
	}
}

func (p *attackedProgram) keep(r *attackedRequest) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen = append(p.seen, r)
}

// take gives what came since, and forgets it.
func (p *attackedProgram) take() []*attackedRequest {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := p.seen
	p.seen = nil
	return out
}

// attackedAuthz decides the RegoPolicies that are asked about, as authz does, and keeps
// what it was asked.
type attackedAuthz struct {
	authv3.UnimplementedAuthorizationServer
	programs map[string]*rego.Program
	mu       sync.Mutex
	asked    []*authv3.AttributeContext_HttpRequest
}

func (a *attackedAuthz) Check(ctx context.Context, r *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	a.mu.Lock()
	a.asked = append(a.asked, r.GetAttributes().GetRequest().GetHttp())
	a.mu.Unlock()
	if a.allows(ctx, r.GetAttributes().GetContextExtensions()["writ.policies"], r) {
		return &authv3.CheckResponse{Status: &rpcstatus.Status{Code: int32(codes.OK)}}, nil
	}
	return &authv3.CheckResponse{
		Status: &rpcstatus.Status{Code: int32(codes.PermissionDenied)},
		HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
			Status: &typev3.HttpStatus{Code: typev3.StatusCode_Forbidden},
		}},
	}, nil
}

func (a *attackedAuthz) allows(ctx context.Context, policy string, r *authv3.CheckRequest) bool {
	in, err := rego.NewInput(r, rego.InputOptions{})
	if err != nil || a.programs[policy] == nil {
		return false
	}
	d, err := a.programs[policy].Eval(ctx, in, 0)
	return err == nil && d.Allowed
}

func (a *attackedAuthz) take() []*authv3.AttributeContext_HttpRequest {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := a.asked
	a.asked = nil
	return out
}

// attackedMesh is one Envoy that is the sidecar of a workload for each kind of policy,
// with and without escaped slashes decoded, and the gateway before them.
type attackedMesh struct {
	*liveMesh
	program *attackedProgram
	authz   *attackedAuthz
	// oldest says that it is the oldest supported Envoy.
	oldest bool
	// targets are the addresses by name: "deny", "strict-deny", "gateway-deny" and so on.
	targets map[string]string
}

// startAttacked runs it.
func startAttacked(t *testing.T, bin string, network byte) *attackedMesh {
	t.Helper()
	m := &attackedMesh{
		liveMesh: newLive(t, network), program: &attackedProgram{}, oldest: strings.Contains(bin, "envoy-"+envoytest.Oldest),
		authz: &attackedAuthz{programs: map[string]*rego.Program{}}, targets: map[string]string{},
	}
	m.mesh.Deciders.Authz = m.authz.serve(t)
	m.mesh.Config.AccessLogFile = "/dev/null"
	strict := &liveMesh{meshBuilder: newMesh(t), t: t, ca: m.ca}
	strict.net, strict.next, strict.mesh.Deciders.Authz, strict.mesh.Config.AccessLogFile = network, 100, m.mesh.Deciders.Authz, "/dev/null"
	strict.mesh.Config.PathNormalization = &meshv1.MeshConfig_ProxyPathNormalization{Normalization: meshv1.MeshConfig_ProxyPathNormalization_DECODE_AND_MERGE_SLASHES}
	for i, kind := range attackedKinds {
		m.attacked(m.liveMesh, kind, 8001+i)
		m.attacked(strict, "strict-"+kind, 8011+i)
	}
	gateway := m.gatewayBefore()
	all := &Snapshot{}
	for _, of := range []*liveMesh{m.liveMesh, strict} {
		tr := of.translator()
		for _, p := range of.mesh.Proxies {
			s, err := tr.Proxy(p)
			if err != nil {
				t.Fatal(err)
			}
			all.join(s)
		}
	}
	config := filepath.Join(t.TempDir(), "envoy.json")
	bootstrap := staticBootstrap(t, bin, all, hostPort(gateway.Address, model.AdminPort), m.ca.secrets(t, m.mesh.Proxies[0]))
	patient(bootstrap)
	writeJSON(t, config, bootstrap)
	envoytest.Run(t, bin, config)
	m.waitReady(gateway)
	return m
}

// patient has Envoy wait longer for authz than pilot does: what is late is refused, and
// on a busy machine everything is.
func patient(v any) {
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			patient(e)
		}
	case map[string]any:
		if service, ok := v["grpcService"].(map[string]any); ok && service["timeout"] != nil {
			service["timeout"] = "60s"
		}
		for _, e := range v {
			patient(e)
		}
	}
}

// join adds what is not there, but for what sidecars have for their own workload.
func (s *Snapshot) join(from *Snapshot) {
	add := func(to *[]Resource, all []Resource) {
		for _, r := range all {
			if r.Name != explicitRoutes && !slices.ContainsFunc(*to, func(have Resource) bool { return have.Name == r.Name }) {
				*to = append(*to, r)
			}
		}
	}
	add(&s.Clusters, from.Clusters)
	add(&s.Endpoints, from.Endpoints)
	add(&s.Listeners, from.Listeners)
	add(&s.Routes, from.Routes)
	add(&s.Extensions, from.Extensions)
}

// attacked adds a workload with the policy of its kind.
func (m *attackedMesh) attacked(to *liveMesh, name string, number int) {
	m.t.Helper()
	kind := strings.TrimPrefix(name, "strict-")
	p := to.workload(name, "default", "server", map[string]string{"app": name}, port(m.t, "http", number))
	to.service(name, "default", p)
	m.targets[name] = hostPort(p.Address, number)
	l := m.listen(p.Ports[0])
	m.t.Cleanup(func() { l.Close() })
	go m.program.serve(name, l)
	switch kind {
	case "deny":
		to.apply(fmt.Sprintf(attackedDeny, name))
	case "allow":
		to.apply(fmt.Sprintf(attackedAllow, name))
	default:
		policy := &model.RegoPolicy{
			Meta:     model.Meta{Ref: model.Ref{Kind: "RegoPolicy", Namespace: "default", Name: name}},
			Selector: p.Labels, Module: attackedRego, Query: "data.p.allow",
		}
		if kind == "authz" {
			policy.Module += attackedClock
		}
		program, err := rego.Compile(m.t.Context(), rego.Source{Modules: map[string]string{"p.rego": policy.Module}}, policy.Query, rego.Options{})
		if err != nil {
			m.t.Fatal(err)
		}
		m.authz.programs["default/"+name] = program
		if kind == "rego" {
			policy.Form = new(rego.Splitter).Split(name, policy.Module, policy.Query)
		}
		to.mesh.RegoPolicies = append(to.mesh.RegoPolicies, policy)
	}
}

func (m *attackedMesh) gatewayBefore() *model.Proxy {
	m.t.Helper()
	gateway := m.gateway("gw", map[string]string{"istio": "gw"})
	m.apply("kind: Gateway\nmetadata: {name: gw, namespace: istio-system}\nspec: {selector: {istio: gw}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]}")
	for i, kind := range attackedKinds {
		m.targets["gateway-"+kind] = hostPort(gateway.Address, 8080)
		m.apply(fmt.Sprintf("kind: VirtualService\nmetadata: {name: %[1]s}\nspec: {hosts: [%[1]s.example], gateways: [istio-system/gw], http: [{route: [{destination: {host: %[1]s, port: {number: %[2]d}}}]}]}", kind, 8001+i))
	}
	return gateway
}

func (a *attackedAuthz) serve(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	authv3.RegisterAuthorizationServer(s, a)
	done := make(chan struct{})
	go func() { _ = s.Serve(l); close(done) }()
	t.Cleanup(func() { s.Stop(); <-done })
	return "unix://" + l.Addr().String()
}

// attackedAt is the workload behind a target, and its host.
func attackedAt(target string) (workload, host string) {
	workload = strings.TrimPrefix(target, "gateway-")
	return workload, workload + ".example"
}

// attackMark is a header that each request has.
const attackMark = "x-attack"

// furtherAnswer is how long a second answer is waited for where an attack hopes for one.
const furtherAnswer = 100 * time.Millisecond

// raw sends bytes and gives the status codes of as many answers, fewer if the
// connection ends or they do not come.
func (m *attackedMesh) raw(target, bytes string, answers int) []int {
	c, err := net.DialTimeout("tcp", m.targets[target], bound)
	if err != nil {
		return nil
	}
	defer c.Close()
	go func() { _, _ = io.WriteString(c, bytes) }() // a refusal may come before the end
	in := bufio.NewReader(c)
	var out []int
	wait := bound
	for len(out) < answers {
		_ = c.SetDeadline(time.Now().Add(wait))
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			break
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.StatusCode >= 200 {
			out = append(out, resp.StatusCode)
			wait = furtherAnswer
		}
	}
	return out
}

// alive: every target answers what is allowed, and the program gets it.
func (m *attackedMesh) alive(t *testing.T) {
	t.Helper()
	for target := range m.targets {
		_, host := attackedAt(target)
		if got := m.raw(target, "GET /public/alive HTTP/1.1\r\nHost: "+host+"\r\n"+attackMark+": alive\r\nConnection: close\r\n\r\n", 1); len(got) != 1 || got[0] != 200 {
			t.Fatalf("%s is not alive: %v", target, got)
		}
	}
}

// judge asks anew about what the program got, as it got it. checked is what authz was
// asked, by mark.
func (m *attackedMesh) judge(t *testing.T, r *attackedRequest, checked map[string][]*authv3.AttributeContext_HttpRequest) {
	t.Helper()
	path, _, _ := strings.Cut(r.target, "?")
	below := func(p string) bool { return path == p || strings.HasPrefix(path, p+"/") }
	roles := r.headers.Values("x-role")
	if m.oldest { // decision 0016
		roles = []string{strings.Join(roles, ",")}
	}
	host, _, _ := strings.Cut(strings.ToLower(r.host), ":")
	bad := r.method == http.MethodDelete || strings.TrimSuffix(host, ".") == "secret.example" || slices.Contains(roles, "admin")
	switch strings.TrimPrefix(r.at, "strict-") {
	case "deny":
		bad = bad || below("/admin")
	case "allow":
		bad = bad || !below("/public") || r.host != r.at+".example"
	case "authz":
		if !slices.ContainsFunc(checked[r.mark], func(c *authv3.AttributeContext_HttpRequest) bool { return sameRequest(c, r) }) {
			t.Errorf("%s: the program got %s %s of %s with %v, authz was asked about %v", r.at, r.method, r.target, r.host, r.headers, checked[r.mark])
		}
		fallthrough
	default:
		bad = !m.authz.allows(t.Context(), "default/"+r.at, &authv3.CheckRequest{Attributes: &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{
			Http: &authv3.AttributeContext_HttpRequest{Method: r.method, Path: r.target, Host: r.host, Headers: joined(r.headers)},
		}}})
	}
	if bad {
		t.Errorf("%s: the program got what its policy refuses: %s %s of %s with %v", r.at, r.method, r.target, r.host, r.headers)
	}
}

// sameRequest compares what authz was asked about with what the program got.
func sameRequest(c *authv3.AttributeContext_HttpRequest, r *attackedRequest) bool {
	got := joined(r.headers)
	for _, name := range []string{"x-role", "authorization", "x-forwarded-for", "x-user"} {
		if c.GetHeaders()[name] != got[name] {
			return false
		}
	}
	return c.GetMethod() == r.method && c.GetPath() == r.target && c.GetHost() == r.host
}

// joined is headers as the input document has them. What is not UTF-8 is "!" in it.
func joined(h http.Header) map[string]string {
	out := map[string]string{}
	for name, values := range h {
		out[strings.ToLower(name)] = strings.ToValidUTF8(strings.Join(values, ","), "!")
	}
	return out
}

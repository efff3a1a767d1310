package security

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/writ-mesh/writ/pilot/model"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

// decider stands for authz, ratelimit and CUSTOM providers: it remembers what it
// was asked and refuses requests with the header "refuse".
type decider struct {
	authv3.UnimplementedAuthorizationServer
	ratelimitv3.UnimplementedRateLimitServiceServer
	// deniedBy is the header that it gives with a refusal.
	deniedBy string
	// limitHeader is what it gives with what passes.
	limitHeader string
	// tells says that it counted all limits, but not those of who is "lost".
	tells bool

	mu     sync.Mutex
	checks []*authv3.CheckRequest
	limits []*ratelimitv3.RateLimitRequest
}

func (d *decider) Check(_ context.Context, r *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.checks = append(d.checks, r)
	if r.GetAttributes().GetRequest().GetHttp().GetHeaders()["refuse"] == "" && !strings.Contains(r.GetAttributes().GetSource().GetPrincipal(), "refuse") {
		return &authv3.CheckResponse{Status: &rpcstatus.Status{Code: int32(codes.OK)}}, nil
	}
	denied := &authv3.DeniedHttpResponse{Status: &typev3.HttpStatus{Code: typev3.StatusCode_Forbidden}, Body: "no"}
	if d.deniedBy != "" {
		denied.Headers = []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: DeniedByHeader, Value: d.deniedBy}}}
	}
	return &authv3.CheckResponse{
		Status:       &rpcstatus.Status{Code: int32(codes.PermissionDenied)},
		HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: denied},
	}, nil
}

func (d *decider) ShouldRateLimit(_ context.Context, r *ratelimitv3.RateLimitRequest) (*ratelimitv3.RateLimitResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.limits = append(d.limits, r)
	out := &ratelimitv3.RateLimitResponse{OverallCode: ratelimitv3.RateLimitResponse_OK}
	if d.limitHeader != "" {
		out.ResponseHeadersToAdd = []*corev3.HeaderValue{{Key: "x-ratelimit-limit", Value: d.limitHeader}}
	}
	if d.tells && !strings.Contains(r.String(), "lost") {
		out.DynamicMetadata = &structpb.Struct{Fields: map[string]*structpb.Value{configpb.QuotaToldKey: structpb.NewBoolValue(true)}}
	}
	for _, desc := range r.GetDescriptors() {
		for _, e := range desc.GetEntries() {
			if e.GetValue() == "refuse" {
				out.OverallCode = ratelimitv3.RateLimitResponse_OVER_LIMIT
				if d.deniedBy != "" {
					out.ResponseHeadersToAdd = []*corev3.HeaderValue{{Key: DeniedByHeader, Value: d.deniedBy}}
				}
			}
		}
	}
	return out, nil
}

// serve listens on a unix socket and gives its address.
func (d *decider) serve(t testing.TB) string {
	t.Helper()
	return "unix://" + d.listen(t, "unix", filepath.Join(t.TempDir(), "s"))
}

func (d *decider) listen(t testing.TB, network, address string) string {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), network, address)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	authv3.RegisterAuthorizationServer(s, d)
	ratelimitv3.RegisterRateLimitServiceServer(s, d)
	done := make(chan struct{})
	go func() { _ = s.Serve(l); close(done) }()
	t.Cleanup(func() { s.Stop(); <-done })
	return l.Addr().String()
}

func (d *decider) lastCheck(t testing.TB) *authv3.CheckRequest {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.checks) == 0 {
		t.Fatal("nothing was asked")
	}
	return d.checks[len(d.checks)-1]
}

func (d *decider) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.checks)
}

// lastDescriptors gives the entries of the last request, "key=value" each.
func (d *decider) lastDescriptors() [][]string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.limits) == 0 {
		return nil
	}
	var out [][]string
	for _, desc := range d.limits[len(d.limits)-1].GetDescriptors() {
		var entries []string
		for _, e := range desc.GetEntries() {
			entries = append(entries, e.GetKey()+"="+e.GetValue())
		}
		out = append(out, entries)
	}
	return out
}

func regoPolicy(name string, failOpen bool) *model.RegoPolicy {
	return &model.RegoPolicy{Meta: model.Meta{Ref: model.Ref{Kind: "RegoPolicy", Namespace: "default", Name: name}}, FailOpen: failOpen}
}

func TestRegoLive(t *testing.T) {
	t.Parallel()
	s := newSigner(t)
	eachEnvoy(t, func(t *testing.T, bin string) {
		authz := &decider{deniedBy: "RegoPolicy default/b"}
		address := authz.serve(t)
		build := func(address string, pols ...*model.RegoPolicy) inbound {
			m := newMesh(t, s.document("jwt", testIssuer, ""))
			m.Deciders.Authz, m.RegoPolicies = address, pols
			return inbound{http: compileHTTP(t, m, workload()), mtls: true}
		}
		gone := "unix://" + filepath.Join(t.TempDir(), "gone")
		p := start(t, bin, map[string]inbound{
			"on":   build(address, regoPolicy("a", false), regoPolicy("b", true)),
			"none": build(address),
		})
		if got := p.do("none", request{}); got.status != 200 || authz.count() != 0 {
			t.Errorf("without policy: status %d, asked %d times", got.status, authz.count())
		}
		got := p.do("on", request{identity: sleep, header: bearer(s.token(t, nil))})
		if got.status != 200 {
			t.Errorf("status %d, want 200", got.status)
		}
		attrs := authz.lastCheck(t).GetAttributes()
		if got := attrs.GetContextExtensions()[PoliciesKey]; got != "default/a,default/b" {
			t.Errorf("policies %q", got)
		}
		if attrs.GetSource().GetPrincipal() != sleep {
			t.Errorf("principal %q", attrs.GetSource().GetPrincipal())
		}
		sub := attrs.GetMetadataContext().GetFilterMetadata()[jwtMetadata].GetFields()[jwtPayload].GetStructValue().GetFields()["sub"].GetStringValue()
		if sub != "alice" {
			t.Errorf("claims do not reach authz: %v", attrs.GetMetadataContext())
		}
		got = p.do("on", request{header: map[string]string{"refuse": "1"}})
		if got.status != 403 || got.deniedBy != "RegoPolicy default/b" || got.body != "no" {
			t.Errorf("refused: %d %q %q", got.status, got.deniedBy, got.body)
		}

		away := start(t, bin, map[string]inbound{"closed": build(gone, regoPolicy("a", false), regoPolicy("b", true))})
		if got := away.do("closed", request{}); got.status != 403 || got.deniedBy != "RegoPolicy default/a (authz does not answer)" {
			t.Errorf("authz away, closed: %d %q", got.status, got.deniedBy)
		}
		open := start(t, bin, map[string]inbound{"open": build(gone, regoPolicy("b", true)), "nowhere": build("", regoPolicy("a", false)), "nowhere-open": build("", regoPolicy("a", true))})
		for name, want := range map[string]string{"open": "", "nowhere": "RegoPolicy default/a", "nowhere-open": ""} {
			got := open.do(name, request{})
			if (got.status == 200) != (want == "") || got.deniedBy != want {
				t.Errorf("%s: %d %q, want %q", name, got.status, got.deniedBy, want)
			}
		}
	})
}

func quotaPolicy(name string, closed bool, limits ...model.QuotaLimit) *model.QuotaPolicy {
	return &model.QuotaPolicy{Meta: model.Meta{Ref: model.Ref{Kind: "QuotaPolicy", Namespace: "default", Name: name}}, Limits: limits, FailClosed: closed}
}

func per(dims ...model.Dimension) model.QuotaLimit {
	return model.QuotaLimit{Per: dims, Requests: 1, Every: time.Minute}
}

func dim(text string) model.Dimension {
	kind, arg, _ := strings.Cut(strings.TrimSuffix(text, "]"), "[")
	return model.Dimension{Text: text, Kind: kind, Arg: arg}
}

func TestQuotaLive(t *testing.T) {
	t.Parallel()
	s := newSigner(t)
	all := []model.Dimension{
		dim("source.principal"), dim("source.namespace"), dim("source.ip"), dim("request.method"), dim("request.path"),
		dim("request.headers[X-It's]"), dim("request.auth.claims[sub]"), dim("request.auth.claims[a][b]"), dim("destination.service"),
		{Text: "tier", Kind: "constant", Arg: "gold"},
	}
	token := s.token(t, map[string]any{"a": map[string]any{"b": 7}})
	cases := []struct {
		request
		want []string
	}{
		{
			request{identity: curlFoo, path: "/p?q=1", header: map[string]string{"Authorization": "Bearer " + token, "x-it's": "v"}},
			[]string{"cluster.local/ns/foo/sa/curl", "foo", "127.0.0.1", "GET", "/p", "v", "alice", "7", "httpbin.default.svc.cluster.local", "gold"},
		},
		{request{method: "POST", from: "127.0.0.7", header: map[string]string{"x-forwarded-for": "10.0.0.1"}}, []string{"-", "-", "127.0.0.7", "POST", "/", "-", "-", "-", "httpbin.default.svc.cluster.local", "gold"}},
		{
			request{identity: "spiffe://cluster.local/writ/authz", header: map[string]string{"x-it's": ""}},
			[]string{"cluster.local/writ/authz", "-", "127.0.0.1", "GET", "/", "-", "-", "-", "httpbin.default.svc.cluster.local", "gold"},
		},
	}
	eachEnvoy(t, func(t *testing.T, bin string) {
		server := &decider{deniedBy: "QuotaPolicy default/q limit 1"}
		build := func(address string, pols ...*model.QuotaPolicy) inbound {
			m := newMesh(t, s.document("jwt", testIssuer, ""))
			m.Deciders.RateLimit, m.QuotaPolicies = address, pols
			w := workload()
			m.Services = []*model.Service{{Hostname: "httpbin.default.svc.cluster.local", Endpoints: []*model.Endpoint{{Proxy: w, Ports: map[uint32]uint32{80: 8000}}}}}
			return inbound{http: compileHTTP(t, m, w), mtls: true}
		}
		p := start(t, bin, map[string]inbound{"in": patient(t, build(server.serve(t), quotaPolicy("q", false, per(all...), per(dim("request.headers[who]")))))})
		for _, c := range cases {
			if got := p.do("in", c.request); got.status != 200 {
				t.Fatalf("status %d", got.status)
			}
			want := []string{"writ.policy=default/q", "writ.limit=0"}
			for i, d := range all {
				want = append(want, d.Text+"="+c.want[i])
			}
			got := server.lastDescriptors()
			if len(got) != 2 || !slices.Equal(got[0], want) {
				t.Errorf("descriptors\n got %q\nwant %q", got, want)
			}
		}
		m := newMesh(t, "")
		m.Deciders.RateLimit = server.serve(t)
		m.QuotaPolicies = []*model.QuotaPolicy{quotaPolicy("q", false, per(dim("source.ip"), dim("destination.service")))}
		gateway := workload()
		gateway.Type = model.GatewayProxy
		atGateway := start(t, bin, map[string]inbound{"in": patient(t, inbound{http: compileHTTP(t, m, gateway)})})
		for _, c := range []struct {
			request
			want string
		}{
			{request{header: map[string]string{"x-forwarded-for": "10.0.0.1"}, host: "shop.example"}, "source.ip=10.0.0.1 destination.service=shop.example"},
			{request{header: map[string]string{"x-forwarded-for": "fd00::1"}, host: "shop.example"}, "source.ip=fd00::1 destination.service=shop.example"},
		} {
			atGateway.do("in", c.request)
			if got := strings.Join(server.lastDescriptors()[0][2:], " "); got != c.want {
				t.Errorf("at the gateway: %q, want %q", got, c.want)
			}
		}
		// What is no UTF-8 is nobody: ratelimit could not read the question, and all limits would be passed.
		for sent, want := range map[string]string{"caf\xc3\xa9 \t\xf0\x9f\x98\x80": "caf\u00e9 \t\U0001f600", "a\xff": "-", "\xed\xa0\x80": "-", "\xe0\x80\xaf": "-", "\xf4\x90\x80\x80": "-", "\xc3": "-"} {
			if asked := server.limitsAsked(func() { p.do("in", request{header: map[string]string{"who": sent}}) }); len(asked) != 2 {
				t.Errorf("%q: asked for %q", sent, asked)
				continue
			}
			if got := strings.Join(server.lastDescriptors()[1][2:], " "); got != "request.headers[who]="+want {
				t.Errorf("%q is counted as %q, want %q", sent, got, want)
			}
		}
		got := p.do("in", request{header: map[string]string{"who": "refuse"}})
		if got.status != 429 || got.deniedBy != "QuotaPolicy default/q limit 1" {
			t.Errorf("refused: %d %q", got.status, got.deniedBy)
		}
		gone := "unix://" + filepath.Join(t.TempDir(), "gone")
		away := start(t, bin, map[string]inbound{
			"open": build(gone, quotaPolicy("q", false, per())), "closed": build(gone, quotaPolicy("q", true, per()), quotaPolicy("r", false, per())), "nowhere": build("", quotaPolicy("q", true, per())),
		})
		if got := away.do("open", request{}); got.status != 200 {
			t.Errorf("ratelimit away, open: %d", got.status)
		}
		if got := away.do("closed", request{}); got.status != 503 || got.deniedBy != "QuotaPolicy default/q (ratelimit does not answer)" {
			t.Errorf("ratelimit away, closed: %d %q", got.status, got.deniedBy)
		}
		if got := away.do("nowhere", request{}); got.status != 403 || got.deniedBy != "QuotaPolicy default/q" {
			t.Errorf("no ratelimit, closed: %d %q", got.status, got.deniedBy)
		}
	})
}

func customMesh(t testing.TB, provider string) *model.Mesh {
	return newMesh(t, documents(
		"kind: MeshConfig\nspec:\n  extensionProviders:\n"+indent(provider),
		policy("ext", "action: CUSTOM\nprovider: {name: my}\nrules: [{to: [{operation: {paths: ['/ext*']}}]}]"),
		policy("d", "action: DENY\nrules: [{to: [{operation: {paths: ['/ext/deny']}}]}]")))
}

func TestCustomLive(t *testing.T) {
	t.Parallel()
	eachEnvoy(t, func(t *testing.T, bin string) {
		server := &decider{}
		grpcAddress := netip.MustParseAddrPort(server.listen(t, "tcp", "127.0.0.1:0"))
		var seen http.Header
		var seenPath string
		web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			seen, seenPath = r.Header.Clone(), r.URL.Path
			w.Header().Set("X-Said", "web")
			switch r.Header.Get("Refuse") {
			case "":
			case "quota": // a product that counts requests too
				w.Header().Set("Retry-After", "7")
				w.WriteHeader(http.StatusTooManyRequests)
			default:
				w.WriteHeader(http.StatusUnauthorized)
			}
		}))
		t.Cleanup(web.Close)
		webURL, err := url.Parse(web.URL)
		if err != nil {
			t.Fatal(err)
		}
		ports := func(text string) string {
			return strings.NewReplacer("GRPC", strconv.Itoa(int(grpcAddress.Port())), "WEB", webURL.Port()).Replace(text)
		}
		build := func(provider string) inbound {
			return inbound{http: compileHTTP(t, customMesh(t, ports(provider)), workload())}
		}
		p := start(t, bin, map[string]inbound{
			"grpc":    build("- name: my\n  envoyExtAuthzGrpc: {service: 127.0.0.1, port: GRPC, timeout: 2s}"),
			"http":    build("- name: my\n  envoyExtAuthzHttp: {service: localhost, port: WEB, timeout: 2s, pathPrefix: /check, includeRequestHeadersInCheck: ['refuse', 'x-in*'], includeAdditionalHeadersInCheck: {x-more: m}, headersToDownstreamOnDeny: [x-said, retry-after]}"),
			"away":    build("- name: my\n  envoyExtAuthzGrpc: {service: 127.0.0.1, port: 1, timeout: 2s, statusOnError: '503'}"),
			"open":    build("- name: my\n  envoyExtAuthzGrpc: {service: 127.0.0.1, port: 1, timeout: 2s, failOpen: true}"),
			"unknown": build("- name: other\n  envoyExtAuthzGrpc: {service: 127.0.0.1, port: 1}"),
		})
		refuse := map[string]string{"refuse": "1", "x-inner": "i", "x-other": "o"}
		cases := []struct {
			in     string
			r      request
			status int
			by     string
		}{
			{"grpc", request{path: "/else", header: refuse}, 200, ""},
			{"grpc", request{path: "/ext"}, 200, ""},
			{"grpc", request{path: "/ext", header: refuse}, 403, by("ext", 0)},
			{"grpc", request{path: "/ext/deny"}, 403, by("d", 0)},
			{"http", request{path: "/ext/1"}, 200, ""},
			{"http", request{path: "/ext/1", header: map[string]string{"refuse": "quota"}}, 429, by("ext", 0)},
			{"http", request{path: "/ext/1", header: refuse}, 401, by("ext", 0)},
			{"away", request{path: "/else"}, 200, ""},
			{"away", request{path: "/ext"}, 503, by("ext", 0) + " (the provider does not answer)"},
			{"open", request{path: "/ext"}, 200, ""},
			{"unknown", request{path: "/ext"}, 403, by("ext", 0)},
			{"unknown", request{path: "/else"}, 200, ""},
		}
		for _, c := range cases {
			got := p.do(c.in, c.r)
			if got.status != c.status || got.deniedBy != c.by {
				t.Errorf("%s %+v: %d %q, want %d %q", c.in, c.r, got.status, got.deniedBy, c.status, c.by)
			}
			if wait := got.header.Get("retry-after"); (wait == "7") != (c.status == http.StatusTooManyRequests) {
				t.Errorf("%s %+v: retry-after %q", c.in, c.r, wait)
			}
		}
		if server.count() != 3 {
			t.Errorf("the provider was asked %d times, want 3: only where a rule matches", server.count())
		}
		if seenPath != "/check/ext/1" || seen.Get("x-more") != "m" || seen.Get("x-inner") != "i" || seen.Get("x-other") != "" {
			t.Errorf("check request: %s %v", seenPath, seen)
		}
	})
}

func TestRemoteJWKSLive(t *testing.T) {
	t.Parallel()
	s := newSigner(t)
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, s.jwks()) }))
	t.Cleanup(web.Close)
	doc := func(uri string) string {
		return fmt.Sprintf("kind: RequestAuthentication\nmetadata: {name: jwt}\nspec:\n  jwtRules: [{issuer: %q, jwksUri: %q, timeout: 1s}]", testIssuer, uri)
	}
	eachEnvoy(t, func(t *testing.T, bin string) {
		p := start(t, bin, map[string]inbound{
			"up":   {http: compileHTTP(t, newMesh(t, doc(web.URL+"/keys")), workload())},
			"away": {http: compileHTTP(t, newMesh(t, doc("http://127.0.0.1:1/keys")), workload())},
			"tls":  {http: compileHTTP(t, newMesh(t, doc("https://127.0.0.1:1/keys")), workload())},
		})
		if got := p.do("up", request{header: bearer(s.token(t, nil))}); got.status != 200 {
			t.Errorf("good token: %d %q", got.status, got.body)
		}
		if got := p.do("up", request{header: bearer(newSigner(t).token(t, nil))}); got.status != 401 {
			t.Errorf("bad token: %d", got.status)
		}
		for _, in := range []string{"away", "tls"} {
			if got := p.do(in, request{header: bearer(s.token(t, nil))}); got.status != 401 || !strings.HasPrefix(got.deniedBy, "RequestAuthentication default/jwt (") {
				t.Errorf("%s: keys cannot be had: %d %q", in, got.status, got.deniedBy)
			}
			if got := p.do(in, request{}); got.status != 200 {
				t.Errorf("%s: no token: %d", in, got.status)
			}
		}
	})
}

func TestSeveralIssuersLive(t *testing.T) {
	t.Parallel()
	one, two := newSigner(t), newSigner(t)
	m := newMesh(t, documents(one.document("one", testIssuer, ""), two.document("two", "https://two.example", "    fromHeaders: [{name: x-two, prefix: 'Two '}]\n    fromParams: [t2]\n    fromCookies: [c2]\n    outputClaimToHeaders: [{header: x-sub, claim: sub}]")))
	a, b := one.token(t, nil), two.token(t, map[string]any{"iss": "https://two.example"})
	cases := []struct {
		name   string
		r      request
		status int
	}{
		{"none", request{}, 200},
		{"one", request{header: bearer(a)}, 200},
		{"two in header", request{header: map[string]string{"x-two": "Two " + b}}, 200},
		{"two in parameter", request{path: "/?t2=" + b}, 200},
		{"two in cookie", request{header: map[string]string{"Cookie": "c2=" + b}}, 200},
		{"both", request{header: map[string]string{"Authorization": "Bearer " + a, "x-two": "Two " + b}}, 200},
		{"two at the place of one", request{header: bearer(b)}, 401},
		{"bad two", request{header: map[string]string{"x-two": "Two " + a}}, 401},
	}
	eachEnvoy(t, func(t *testing.T, bin string) {
		p := start(t, bin, map[string]inbound{"in": {http: compileHTTP(t, m, workload())}})
		for _, c := range cases {
			got := p.do("in", c.r)
			if got.status != c.status {
				t.Errorf("%s: %d %s, want %d", c.name, got.status, got.body, c.status)
			}
			if c.name == "two in header" && got.header.Get("Saw-X-Sub") != "alice" {
				t.Errorf("%s: the program saw x-sub %q", c.name, got.header.Get("Saw-X-Sub"))
			}
			if c.status != 200 && !strings.HasPrefix(got.deniedBy, "RequestAuthentication default/one,default/two (") {
				t.Errorf("%s: denied by %q", c.name, got.deniedBy)
			}
		}
	})
}

package pilot

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"github.com/golang-jwt/jwt/v5"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/writ-mesh/writ/authz"
	"github.com/writ-mesh/writ/authz/rego"
	"github.com/writ-mesh/writ/internal/credential"
	"github.com/writ-mesh/writ/internal/envoytest"
	"github.com/writ-mesh/writ/internal/identity"
	"github.com/writ-mesh/writ/internal/pkitest"
	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/internal/service"
	"github.com/writ-mesh/writ/pilot/envoy"
	"github.com/writ-mesh/writ/pilot/meshdir"
	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/revision"
	"github.com/writ-mesh/writ/pilot/security"
	"github.com/writ-mesh/writ/pilot/xds"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
	"github.com/writ-mesh/writ/ratelimit"
)

// half is an edit that changes who is let in and what is asked of him at once. In neither
// of its configurations somebody without a token is let in unless he is X by his
// certificate (or anybody by one), and in the second anybody with a token is, in plain text.
// APP is the port of the program, GUARDED that of one that asks for a token itself, and JUDGE
// that of a provider that does; APP as one lets everybody pass.
type half struct {
	name          string
	first, second string
	// before was in force before both and lets Y in, with the listener of the first.
	before string
	// always: X with a token is let in by both, over mutual TLS.
	always bool
	// anybody: the first lets in whoever has a certificate; nobody: not even X.
	anybody, nobody bool
	// split has Envoys decide parts of Rego; nil leaves all of it to authz.
	split SplitRego
	// forged is what callers may hope to have their requests decided by.
	forged string
	// refuse is what the second has another of than the first, and is refused at the end.
	refuse string
}

// nobodyElse refuses what nobody asks for.
const nobodyElse = `---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: who, namespace: default}
spec: {action: DENY, rules: [{to: [{operation: {paths: [/nothing]}}]}]}
`

func halves(t *testing.T, key tokenKey) []half {
	t.Helper()
	mode := func(mode string) string {
		return fmt.Sprintf("---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: all, namespace: default}\nspec: {mtls: {mode: %s}}\n", mode)
	}
	tokens := func(require string, issuers ...string) string {
		out := "---\napiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: users, namespace: default, annotations: {policy.writ.mesh/require: " + require + "}}\nspec:\n  jwtRules:\n"
		for _, i := range issuers {
			out += fmt.Sprintf("  - {issuer: %q, jwks: '%s'}\n", i, key.jwks(t))
		}
		return out
	}
	policy := func(spec string) string {
		return strings.Replace(nobodyElse, "{action: DENY, rules: [{to: [{operation: {paths: [/nothing]}}]}]}", spec, 1)
	}
	onlyX := policy("{rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/x]}}]}]}")
	anyToken := policy(`{rules: [{from: [{source: {requestPrincipals: ["*"]}}]}]}`)
	none := nobodyElse
	custom := func(provider string, name ...string) string {
		spec := policy("{action: CUSTOM, provider: {name: " + provider + "}, rules: [{}]}")
		return strings.Replace(spec, "who", strings.Join(append(name, "who")[:1], ""), 1)
	}
	program := func(port string) string {
		return fmt.Sprintf(`---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: one, namespace: default}
spec: {ingress: [{port: {number: APP, name: http, protocol: HTTP}, defaultEndpoint: "127.0.0.1:%s"}]}
`, port)
	}
	const module = "package p\n\nallow if { %s; time.now_ns() > 0 }\n" // which no Envoy decides alone
	rule := func(rule string) string {
		lines := strings.Split(fmt.Sprintf(module, rule), "\n")
		return "---\napiVersion: policy.writ.mesh/v1alpha1\nkind: RegoPolicy\nmetadata: {name: rego, namespace: default}\nspec:\n  query: data.p.allow\n  module: |\n    " + strings.TrimSpace(strings.Join(lines, "\n    ")) + "\n"
	}
	quota := func(requests int) string {
		return fmt.Sprintf("---\napiVersion: policy.writ.mesh/v1alpha1\nkind: QuotaPolicy\nmetadata: {name: quota, namespace: default}\nspec:\n  whenUnavailable: Deny\n  limits: [{requests: %d, every: 1h}]\n", requests)
	}
	relaxed := "default/rego@" + (&model.RegoPolicy{Module: fmt.Sprintf(module, "true"), Query: "data.p.allow"}).ContentHash()
	isX := `endswith(input.attributes.source.principal, "/sa/x")`
	byRego, byToken := mode("PERMISSIVE")+tokens("none", "a")+rule(isX), mode("PERMISSIVE")+tokens("none", "a")+rule("true")+anyToken
	first, filter, routes := mode("STRICT")+onlyX, xds.ExtensionType, xds.RouteType
	return []half{
		{name: "a mode and a rule", first: mode("STRICT") + tokens("none", "a") + onlyX, second: mode("PERMISSIVE") + tokens("none", "a", "b") + anyToken, always: true, refuse: filter},
		{name: "a mode and a required token", first: mode("STRICT") + tokens("none", "a"), second: mode("PERMISSIVE") + tokens("any", "a"), always: true, anybody: true, refuse: routes},
		{name: "a mode and the first token", first: first, second: mode("PERMISSIVE") + tokens("any", "a") + none, before: mode("STRICT") + none, always: true, refuse: routes},
		{name: "plain text alone", first: mode("PERMISSIVE") + tokens("none", "a") + onlyX, second: mode("DISABLE") + tokens("none", "a") + anyToken},
		{name: "not plain text alone", first: mode("DISABLE") + tokens("none", "a") + onlyX, second: mode("PERMISSIVE") + tokens("any", "a") + none, nobody: true},
		{name: "a provider and a rule", first: mode("STRICT") + custom("judge"), second: mode("PERMISSIVE") + tokens("none", "a") + anyToken},
		{name: "a rule and another program", first: mode("STRICT") + program("GUARDED"), second: mode("PERMISSIVE") + tokens("none", "a") + anyToken + program("APP"), always: true},
		{name: "a rule and a provider that moved", first: mode("STRICT") + custom("moved") + "---\n" + entry("moved", "JUDGE"), second: mode("PERMISSIVE") + tokens("none", "a") + anyToken + custom("moved", "ask") + "---\n" + entry("moved", "APP"), always: true},
		{name: "a rule and Rego", first: byRego, second: byToken, always: true, refuse: routes, forged: relaxed},
		{name: "a rule and Rego in parts", first: byRego, second: byToken, always: true, split: new(rego.Splitter).Split},
		{name: "a rule and a quota", first: mode("PERMISSIVE") + tokens("none", "a") + quota(0), second: mode("PERMISSIVE") + tokens("none", "a") + quota(1_000_000) + anyToken, nobody: true, refuse: routes},
		{name: "a rule and another provider", first: first, second: mode("PERMISSIVE") + custom("other"), before: mode("STRICT") + none},
	}
}

// TestNoHalfOfAnEditCounts edits to and fro what a port demands of callers and what is
// required of their requests, while an Envoy is let wait for the routes and filters that
// go with its listeners: nobody passes whom neither of the two configurations lets pass,
// on new connections and on such as were open before. Then it refuses one of them.
func TestNoHalfOfAnEditCounts(t *testing.T) {
	t.Parallel()
	key := newTokenKey(t, "k")
	for i, bin := range envoytest.All(t) {
		t.Run(filepath.Base(filepath.Dir(filepath.Dir(bin))), func(t *testing.T) {
			t.Parallel()
			for j, h := range halves(t, key) {
				t.Run(h.name, func(t *testing.T) { noHalf(t, bin, []string{"DELTA_GRPC", "GRPC"}[(i+j)%2], 20*i+j+1, key, h) })
			}
		})
	}
}

func noHalf(t *testing.T, bin, api string, n int, key tokenKey, h half) {
	root := pkitest.NewRoot(t, "cluster.local")
	judge := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "" {
			w.WriteHeader(http.StatusForbidden)
		}
	}))
	t.Cleanup(judge.Close)
	address := fmt.Sprintf("127.9.80.%d", n)
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "here") }))
	t.Cleanup(app.Close)
	_, port, _ := net.SplitHostPort(app.Listener.Addr().String())
	_, judgePort, _ := net.SplitHostPort(judge.Listener.Addr().String())
	ports := strings.NewReplacer("APP", port, "GUARDED", judgePort, "JUDGE", judgePort)
	h.first, h.second = ports.Replace(h.first), ports.Replace(h.second)
	sockets := socketFolder(t)
	deciders := model.Deciders{Authz: "unix://" + sockets + "/authz"}
	if strings.Contains(h.first, "QuotaPolicy") {
		deciders.RateLimit = "unix://" + sockets + "/ratelimit"
	}
	r := startWith(t, map[string]string{
		"mesh.yaml": `extensionProviders:
- name: judge
  envoyExtAuthzHttp: {service: judge.example, port: 80, includeRequestHeadersInCheck: [authorization]}
- name: other
  envoyExtAuthzHttp: {service: judge.example, port: 80, includeRequestHeadersInCheck: [authorization], timeout: 7s}
- name: moved
  envoyExtAuthzHttp: {service: moved.example, port: 80, includeRequestHeadersInCheck: [authorization]}
`,
		"judge.yaml": entry("judge", judgePort),
		"one.yaml": fmt.Sprintf(`apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: one, namespace: default}
spec:
  hosts: [one.example]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: %s, name: http, protocol: HTTP}]
  endpoints: [{address: %s}]
`, port, address),
		"edit.yaml": cmp.Or(h.before, h.first),
	}, meshdir.Options{Deciders: deciders, SplitRego: h.split})
	if strings.Contains(h.first, "RegoPolicy") {
		runDecider(t, r, root, identity.Authz, func(ctx context.Context, pilot string, as credential.Config, rt *service.Runtime) error {
			c := authz.DefaultConfig()
			c.Listen, c.Pilot, c.Credential, c.Decision.Log = deciders.Authz, pilot, as, "none"
			if err := c.Validate(); err != nil {
				return err
			}
			return authz.Run(ctx, c, rt)
		})
	}
	if deciders.RateLimit != "" {
		runDecider(t, r, root, identity.RateLimit, func(ctx context.Context, pilot string, as credential.Config, rt *service.Runtime) error {
			c := ratelimit.DefaultConfig()
			c.Listen, c.Pilot, c.Credential = deciders.RateLimit, pilot, as
			s, err := ratelimit.New(c, rt)
			if err != nil {
				return err
			}
			return s.Run(ctx)
		})
	}
	line := newDelayed(t, r.addr, root)
	runEnvoy(t, bin, line.addr, "sidecar~"+address+"~one.default~default.svc.cluster.local", "NONE", api)

	url, token := fmt.Sprintf("http://%s:%s/", address, port), tokenOf(t, key)
	x, y := identified(t, root, "x"), identified(t, root, "y")
	plain := newCaller(t, url, "", nil, false)
	withToken := newCaller(t, url, token, nil, true)
	counts := func(second bool) {
		t.Helper()
		proctest.Until(t, bound, fmt.Sprintf("the edit counts: %v", second), func() bool { return (withToken.ask() == http.StatusOK) == second })
		proctest.Until(t, bound, "it is live", func() bool { _, s := r.serving(); return s == revision.Live })
	}
	counts(false)
	ofX := newCaller(t, "https"+url[len("http"):], token, x, false)
	if h.always {
		proctest.Until(t, bound, "X is let in", func() bool { return ofX.ask() == http.StatusOK })
	}

	first := 1
	if h.before != "" {
		stays := newCaller(t, ofX.url, "", y, false)
		proctest.Until(t, bound, "Y is let in", func() bool { return stays.ask() == http.StatusOK })
		r.write(t, "edit.yaml", h.second)
		counts(true)
		first = 2
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	flow := func(what string, c caller, wrong func(int) bool) {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if code := c.ask(); wrong(code) {
					t.Errorf("%s: %d", what, code)
					return
				}
				line.rounds.Add(1)
			}
		})
	}
	passes := func(code int) bool { return code == http.StatusOK }
	flow("plain text without token, new connections", newCaller(t, url, "", nil, true), passes)
	flow("plain text without token, open connections", plain, passes)
	if !h.anybody {
		flow("Y without token, new connections", newCaller(t, ofX.url, "", y, true), passes)
		flow("Y without token, open connections", newCaller(t, ofX.url, "", y, false), passes)
	}
	if h.nobody {
		flow("X without token, new connections", newCaller(t, ofX.url, "", x, true), passes)
		flow("X without token, open connections", newCaller(t, ofX.url, "", x, false), passes)
	}
	if h.forged != "" {
		liar := newCaller(t, url, "", nil, false)
		liar.policies = h.forged
		flow("plain text without token that names a content", liar, passes)
	}
	if h.always {
		flow("X with token", ofX, func(code int) bool { return code != http.StatusOK })
	}
	line.slow.Store(true)
	defer line.slow.Store(false)
	const edits = 4
	for i := first; i <= edits; i++ {
		r.write(t, "edit.yaml", []string{h.first, h.second}[i%2])
		counts(i%2 == 1)
		if i%2 == 1 && h.forged != "" {
			r.mu.Lock()
			if p := r.current.mesh.RegoPolicies[0]; configpb.PolicyRef(p.Namespace, p.Name, p.Fingerprint) != h.forged {
				t.Errorf("the content is %s", p.Fingerprint)
			}
			r.mu.Unlock()
		}
	}
	if h.refuse != "" {
		line.spoil.Store(&h.refuse)
		r.write(t, "edit.yaml", h.second+strings.Replace(nobodyElse, "who", "more", 1))
		proctest.Until(t, bound, "it is refused", func() bool { return line.refused.Load() > 0 })
		after := line.rounds.Load() + 40
		proctest.Until(t, bound, "requests after that", func() bool { return line.rounds.Load() > after || t.Failed() })
		counts(false)
	}
	close(stop)
	wg.Wait()
	t.Logf("%d requests during %d edits", line.rounds.Load(), edits)
}

// socketFolder is one whose name is short enough for sockets.
func socketFolder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "w") //nolint:usetesting // t.TempDir is too long
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// runDecider has a service follow a pilot until the test ends.
func runDecider(t *testing.T, r *running, root *pkitest.Root, name string, run func(ctx context.Context, pilot string, as credential.Config, rt *service.Runtime) error) {
	t.Helper()
	bundle := filepath.Join(t.TempDir(), "bundle.pem")
	if err := os.WriteFile(bundle, root.PEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	identified := func(service string) credential.Config {
		dir := t.TempDir()
		cert, key := root.Issue(t, pkitest.Leaf("spiffe://cluster.local/writ/"+service, time.Hour))
		if err := os.WriteFile(filepath.Join(dir, "identity.pem"), append(key, cert...), 0o600); err != nil {
			t.Fatal(err)
		}
		return credential.Config{CA: "127.0.0.1:1", TrustBundle: bundle, TokenFile: "none", Dir: dir, TrustDomain: "cluster.local"}
	}
	quiet := func() *service.Runtime {
		return &service.Runtime{Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(), Health: &service.Health{}}
	}
	ads, of, own, as := proctest.Address(t), quiet(), identified("pilot"), identified(name)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- service.RunTasks(ctx, func(ctx context.Context) error { return r.ServeADS(ctx, ads, own, quiet()) }, func(ctx context.Context) error { return run(ctx, ads, as, of) })
	}()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("%s: %v", name, err)
		}
	})
	proctest.Until(t, bound, name+" has its policies", func() bool { return of.Health.Ready() == nil })
}

func tokenOf(t *testing.T, key tokenKey) string {
	t.Helper()
	token := jwt.NewWithClaims(jwt.SigningMethodES256, jwt.MapClaims{"iss": "a", "sub": "joe", "exp": time.Now().Add(time.Hour).Unix()})
	token.Header["kid"] = key.kid
	text, err := token.SignedString(key.key)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func identified(t *testing.T, root *pkitest.Root, account string) *tls.Config {
	t.Helper()
	return &tls.Config{
		Certificates:       []tls.Certificate{root.Pair(t, pkitest.Leaf("spiffe://cluster.local/ns/default/sa/"+account, time.Hour))},
		InsecureSkipVerify: true, //nolint:gosec // what the server lets pass is what counts
	}
}

// caller asks as somebody, over one connection or over a new one each time.
type caller struct {
	url, token string
	client     *http.Client
	// policies are in headers of the names by which proxies tell authz what is meant.
	policies string
}

func newCaller(t *testing.T, url, token string, certificate *tls.Config, anew bool) caller {
	c := caller{url: url, token: token, client: &http.Client{Transport: &http.Transport{MaxConnsPerHost: 1, TLSClientConfig: certificate, DisableKeepAlives: anew}, Timeout: bound}}
	t.Cleanup(c.client.CloseIdleConnections)
	return c
}

// ask gives the status, 0 if there was no answer.
func (c caller) ask() int {
	req, err := http.NewRequest(http.MethodGet, c.url, nil)
	if err != nil {
		return 0
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	if c.policies != "" {
		for _, name := range []string{security.PoliciesKey, configpb.PoliciesMetadata} {
			req.Header.Set(name, c.policies)
		}
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return 0
	}
	defer func() { _ = resp.Body.Close() }()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return 0
	}
	return resp.StatusCode
}

// delayed passes on what pilot and an Envoy say, and has the secrets of the Envoy.
type delayed struct {
	secretv3.UnimplementedSecretDiscoveryServiceServer
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	pilot   discoveryv3.AggregatedDiscoveryServiceClient
	secrets []*discoveryv3.Resource
	addr    string
	// slow: routes and filters wait for some more requests, which are counted in rounds.
	slow   atomic.Bool
	rounds atomic.Int64
	// spoil is a type whose resources become such as Envoys refuse, which are counted in
	// refused.
	spoil   atomic.Pointer[string]
	refused atomic.Int64
}

func newDelayed(t *testing.T, pilot string, root *pkitest.Root) *delayed {
	t.Helper()
	conn, err := grpc.NewClient(pilot, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &delayed{pilot: discoveryv3.NewAggregatedDiscoveryServiceClient(conn), addr: lis.Addr().String()}
	inline := func(b []byte) *corev3.DataSource {
		return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: b}}
	}
	cert, key := root.Issue(t, pkitest.Leaf("spiffe://cluster.local/ns/default/sa/one", time.Hour))
	for _, s := range []*tlsv3.Secret{
		{Name: envoy.SecretDefault, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{CertificateChain: inline(cert), PrivateKey: inline(key)}}},
		{Name: envoy.SecretRoot, Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{TrustedCa: inline(root.PEM())}}},
	} {
		d.secrets = append(d.secrets, &discoveryv3.Resource{Name: s.Name, Version: "1", Resource: envoy.Any(s)})
	}
	s, done := grpc.NewServer(), make(chan error, 1)
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(s, d)
	secretv3.RegisterSecretDiscoveryServiceServer(s, d)
	go func() { done <- s.Serve(lis) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		_ = conn.Close()
	})
	return d
}

// DeltaSecrets gives the secrets that are asked for.
func (d *delayed) DeltaSecrets(stream secretv3.SecretDiscoveryService_DeltaSecretsServer) error {
	for {
		req, err := stream.Recv()
		if err != nil {
			return nil //nolint:nilerr // the Envoy has gone
		}
		resp := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: req.GetTypeUrl(), Nonce: "n"}
		for _, r := range d.secrets {
			if slices.Contains(req.GetResourceNamesSubscribe(), r.GetName()) {
				resp.Resources = append(resp.Resources, r)
			}
		}
		if len(resp.Resources) == 0 {
			continue
		}
		if err := stream.Send(resp); err != nil {
			return err
		}
	}
}

// DeltaAggregatedResources passes a stream on.
func (d *delayed) DeltaAggregatedResources(down discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	up, err := d.pilot.DeltaAggregatedResources(down.Context())
	if err != nil {
		return err
	}
	go pass(up, func() error {
		req, err := down.Recv()
		if err == nil {
			d.noteRefusal(req.GetErrorDetail())
			err = up.Send(req)
		}
		return err
	})
	for {
		resp, err := up.Recv()
		if err != nil {
			return err
		}
		for _, r := range resp.GetResources() {
			r.Resource = d.passed(r.GetResource())
		}
		d.wait(down.Context(), resp.GetTypeUrl())
		if err := down.Send(resp); err != nil {
			return err
		}
	}
}

// StreamAggregatedResources passes a stream on.
func (d *delayed) StreamAggregatedResources(down discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	up, err := d.pilot.StreamAggregatedResources(down.Context())
	if err != nil {
		return err
	}
	go pass(up, func() error {
		req, err := down.Recv()
		if err == nil {
			d.noteRefusal(req.GetErrorDetail())
			err = up.Send(req)
		}
		return err
	})
	for {
		resp, err := up.Recv()
		if err != nil {
			return err
		}
		for i, r := range resp.GetResources() {
			resp.Resources[i] = d.passed(r)
		}
		d.wait(down.Context(), resp.GetTypeUrl())
		if err := down.Send(resp); err != nil {
			return err
		}
	}
}

func pass(up grpc.ClientStream, one func() error) {
	for one() == nil { //nolint:revive // all is in the condition
	}
	_ = up.CloseSend()
}

func (d *delayed) noteRefusal(detail *status.Status) {
	if detail != nil {
		d.refused.Add(1)
	}
}

// passed is a resource as the Envoy gets it.
func (d *delayed) passed(r *anypb.Any) *anypb.Any {
	if spoil := d.spoil.Load(); spoil == nil || r.GetTypeUrl() != *spoil {
		return r
	}
	var filter corev3.TypedExtensionConfig
	if r.UnmarshalTo(&filter) == nil {
		filter.TypedConfig = envoy.Any(&jwtv3.JwtAuthentication{RequirementMap: map[string]*jwtv3.JwtRequirement{
			"": {RequiresType: &jwtv3.JwtRequirement_ProviderName{ProviderName: "nobody"}},
		}})
		return envoy.Any(&filter)
	}
	var routes routev3.RouteConfiguration
	if r.UnmarshalTo(&routes) == nil {
		routes.VirtualHosts = append(routes.VirtualHosts, &routev3.VirtualHost{Name: "without domains"})
	}
	return envoy.Any(&routes)
}

// wait holds routes and filters back while requests meet what the Envoy has.
func (d *delayed) wait(ctx context.Context, url string) {
	if !d.slow.Load() || url != xds.RouteType && url != xds.ExtensionType {
		return
	}
	for until := d.rounds.Load() + 24; d.rounds.Load() < until && ctx.Err() == nil && d.slow.Load(); {
		runtime.Gosched()
	}
}

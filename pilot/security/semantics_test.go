package security

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	securityapi "istio.io/api/security/v1beta1"
	"sigs.k8s.io/yaml"

	"github.com/writ-mesh/writ/authz/token"
	"github.com/writ-mesh/writ/internal/envoytest"
	"github.com/writ-mesh/writ/internal/jwks"
	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/pilot/explain"
	"github.com/writ-mesh/writ/pilot/model"
)

// semanticCase is one entry of testdata/semantics: policies, and what becomes of
// requests. A request is written as words: METHOD, /path, and then "as
// namespace/account" (or a whole SPIFFE ID without scheme), "from ADDRESS", "host
// NAME", "with Header=value", "also Header=value" for one more line of it, "token
// NAME", "header Header=value" and "query name=value", the last two with the name of a
// token at the end of the value. %20 is a space.
type semanticCase struct {
	Name string
	// Says is the sentence of the documentation, in short.
	Says string
	// Allow and DenyRule are the rules of a policy p; Docs are further documents.
	Allow    string
	DenyRule string `json:"deny_rule"`
	Docs     string
	// JWT adds the usual RequestAuthentication.
	JWT     bool
	Gateway bool
	TCP     bool
	// Federated says that other-td is a trust domain of the mesh's federation.
	Federated bool
	// Pass and Deny (403 of RBAC), Unauthorized (401) and Forbidden (403 for a token's
	// audience) are the requests.
	Pass, Deny, Unauthorized, Forbidden []string

	listener string
	port     uint32
	mesh     *model.Mesh
}

// casesIn reads the tables of a folder.
func casesIn[T any](t *testing.T, folder string) []*T {
	t.Helper()
	files, err := filepath.Glob(folder + "/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: %d tables, %v", folder, len(files), err)
	}
	var out []*T
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		var cases []*T
		if err := yaml.UnmarshalStrict(data, &cases); err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		out = append(out, cases...)
	}
	return out
}

// TestSemantics has a real Envoy and explain decide the same requests, which must
// come out as the tables say and, where refused, name the same rule.
func TestSemantics(t *testing.T) {
	t.Parallel() // one request after the other: most of it is waiting for answers
	cases := casesIn[semanticCase](t, "testdata/semantics")
	s := newSigner(t)
	tokens := semanticTokens(t, s)
	inbounds, port := map[string]inbound{}, uint32(proctest.Port(t))
	for i, c := range cases {
		c.prepare(t, i, s, port)
		in := inbound{direct: true, shared: true, mtls: c.certificates(), port: c.port}
		if c.TCP {
			var err error
			if in.tcp, err = compiler(t, c.mesh).TCP(workload(), httpPort()); err != nil {
				t.Fatalf("%s: %v", c.Name, err)
			}
		} else {
			in.http = compileHTTP(t, c.mesh, c.proxy())
		}
		inbounds[c.listener] = in
	}
	p := start(t, envoytest.Version(t, "1.40.0"), inbounds)
	asked := 0
	for _, c := range cases {
		for status, requests := range map[int][]string{200: c.Pass, 403: c.Deny, 401: c.Unauthorized, -403: c.Forbidden} {
			for _, words := range requests {
				asked++
				c.compare(t, p, tokens, words, status)
			}
		}
	}
	t.Logf("%d requests of %d cases", asked, len(cases))
	if len(cases) < 300 || asked < 2*len(cases) {
		t.Errorf("only %d requests of %d cases", asked, len(cases))
	}
}

// certificates says whether a caller has one.
func (c *semanticCase) certificates() bool {
	return slices.ContainsFunc(slices.Concat(c.Pass, c.Deny, c.Unauthorized, c.Forbidden), func(words string) bool {
		return slices.Contains(strings.Fields(words), "as")
	})
}

// prepare makes the mesh of a case. Those for HTTP that name a port share it.
func (c *semanticCase) prepare(t *testing.T, i int, s signer, port uint32) {
	t.Helper()
	c.listener = fmt.Sprintf("case%d", i)
	switch all := c.Allow + c.DenyRule + c.Docs; {
	case !strings.Contains(all, "$PORT"):
	case c.TCP:
		c.port = uint32(proctest.Port(t))
	default:
		c.port = port
	}
	docs := []string{c.Docs}
	policy := func(action, rules string) {
		if rules != "" {
			docs = append(docs, "kind: AuthorizationPolicy\nmetadata: {name: p}\nspec:\n  action: "+action+"\n  rules:\n"+indent(rules))
		}
	}
	policy("ALLOW", c.Allow)
	policy("DENY", c.DenyRule)
	if c.JWT {
		docs = append(docs, semanticJWT(s))
	}
	if c.Gateway && !strings.Contains(c.Docs, "kind: Gateway\nmetadata") {
		docs = append(docs, "kind: Gateway\nmetadata: {name: gw, namespace: istio-system, annotations: {policy.writ.mesh/denied-by: \"true\"}}\nspec: {selector: {istio: ingress}}")
	}
	text := strings.NewReplacer("$PORT", strconv.Itoa(int(c.port)), "$JWKS", s.jwks()).Replace(documents(docs...))
	c.mesh = newMesh(t, text)
	c.mesh.TrustDomainAliases = []string{"old-td"}
	if c.Federated {
		c.mesh.FederatedDomains = []string{"other-td"}
	}
	c.mesh.Proxies = []*model.Proxy{c.proxy()}
}

func (c *semanticCase) proxy() *model.Proxy {
	p := workload()
	p.Address = netip.MustParseAddr("127.0.0.1")
	port := httpPort()
	if c.port != 0 {
		port.Port = c.port
	}
	if c.TCP {
		port.Protocol = model.TCP
	}
	p.Ports = []model.WorkloadPort{port}
	if c.Gateway {
		p.Type, p.Name, p.Namespace, p.Ports = model.GatewayProxy, "gw", "istio-system", nil
		p.Labels = map[string]string{"istio": "ingress"}
	}
	return p
}

// semanticJWT is the usual RequestAuthentication of the tables.
func semanticJWT(s signer) string {
	jwks, _ := json.Marshal(s.jwks())
	return fmt.Sprintf("kind: RequestAuthentication\nmetadata: {name: jwt}\nspec: {jwtRules: [{issuer: %q, jwks: %s}, {issuer: accounts.example, jwks: %s}]}", testIssuer, jwks, jwks)
}

func semanticTokens(t *testing.T, s signer) map[string]string {
	t.Helper()
	ago, soon := time.Now().Add(-time.Hour).Unix(), time.Now().Add(time.Hour).Unix()
	out := map[string]string{"stranger": newSigner(t).token(t, nil)}
	for name, changes := range map[string]map[string]any{
		"alice": {
			"groups": []string{"g1", "g2"}, "scope": "read write", "roles": "viewer editor", "level": 3,
			"nested": map[string]any{"key1": "v1", "list": []string{"a"}},
		},
		"bob":      {"sub": "bob", "aud": []string{"bookinfo", "x"}, "azp": "app-1", "roles": "viewer"},
		"single":   {"groups": "g1"},
		"audience": {"aud": "bookinfo"},
		"stray":    {"aud": "else"},
		"expired":  {"exp": ago},
		"early":    {"nbf": soon},
		"issuer":   {"iss": "https://else.example"},
		"carol":    {"iss": "accounts.example", "sub": "carol"},
		"nosub":    {"sub": nil},
		"rich": {
			"empty": "", "none": []string{}, "mixed": []any{"a", 3, true}, "flag": true, "email": "root@x.example", "azp": []string{"p1", "p2"},
			"a.b": "dot", "https://x.example/role": "admin", "odd][c[d]": "x", "permission": "read write",
			"deep": map[string]any{"a": map[string]any{"b": "c"}},
		},
		"two": {"iss": "https://two.example"},
	} {
		out[name] = s.token(t, changes)
	}
	unsigned, err := jwt.NewWithClaims(jwt.SigningMethodNone, claims(nil)).SignedString(jwt.UnsafeAllowNoneSignatureType)
	if err != nil {
		t.Fatal(err)
	}
	out["unsigned"] = unsigned
	return out
}

// read turns the words of a request into it.
func (c *semanticCase) read(t *testing.T, tokens map[string]string, words string) request {
	t.Helper()
	r := request{method: "GET", path: "/", header: map[string]string{}}
	fields := strings.Fields(words)
	for i := 0; i < len(fields); i++ {
		word := fields[i]
		switch {
		case strings.HasPrefix(word, "/"):
			r.path = word
			continue
		case word == strings.ToUpper(word):
			r.method = word
			continue
		}
		i++
		value, err := url.PathUnescape(fields[i])
		if err != nil {
			t.Fatal(err)
		}
		name, inner, _ := strings.Cut(value, "=")
		switch word {
		case "as":
			r.identity = "spiffe://" + value
			if strings.Count(value, "/") == 1 {
				r.identity = "spiffe://cluster.local/ns/" + strings.Replace(value, "/", "/sa/", 1)
			}
		case "from":
			r.from = value
		case "host":
			r.host = value
		case "with":
			r.header[name] = inner
		case "also":
			r.more = append(r.more, [2]string{name, inner})
		case "token":
			r.header["Authorization"] = "Bearer " + mustToken(t, tokens, value)
		case "header", "query":
			at := strings.LastIndexAny(inner, " =") + 1
			inner = inner[:at] + mustToken(t, tokens, inner[at:])
			if word == "header" {
				r.header[name] = inner
			} else {
				r.path += "?" + name + "=" + inner
			}
		default:
			t.Fatalf("%s: what is %q?", c.Name, word)
		}
	}
	return r
}

func mustToken(t *testing.T, tokens map[string]string, name string) string {
	t.Helper()
	if tokens[name] == "" {
		t.Fatalf("no token %q", name)
	}
	return tokens[name]
}

func (c *semanticCase) compare(t *testing.T, p *proxy, tokens map[string]string, words string, want int) {
	t.Helper()
	r := c.read(t, tokens, words)
	told := c.explain(t, r)
	name := fmt.Sprintf("%s: %q", c.Name, words)
	if (told.Decision == explain.Allowed) != (want == 200) || told.Decision == explain.Depends {
		t.Errorf("%s: explain says %s by %s", name, told.Decision, told.By)
	}
	if c.TCP {
		if got := p.connect(c.listener, r.identity, r.from); got != (want == 200) {
			t.Errorf("%s: Envoy lets it pass: %v", name, got)
		}
		return
	}
	got := p.do(c.listener, r)
	status := max(want, -want)
	if got.status != status {
		t.Errorf("%s: Envoy says %d by %q, want %d", name, got.status, got.deniedBy, status)
	}
	if status != 200 && told.Status != got.status {
		t.Errorf("%s: explain says %d, Envoy %d", name, told.Status, got.status)
	}
	by := told.By
	if want != 200 && want != 403 { // a token: each has words of its own for what is wrong with it
		by, _, _ = strings.Cut(by, " (")
		got.deniedBy, _, _ = strings.Cut(got.deniedBy, " (")
	}
	if status != 200 && by != got.deniedBy {
		t.Errorf("%s: explain says by %q, Envoy by %q", name, by, got.deniedBy)
	}
}

// headers are those of a request as a question has them: joined, and the lines of
// those that have several.
func (r request) headers() (joined map[string]string, lines map[string][]string) {
	joined, lines = map[string]string{}, map[string][]string{}
	for k, v := range r.header {
		joined[strings.ToLower(k)] = v
	}
	for _, more := range r.more {
		name := strings.ToLower(more[0])
		if len(lines[name]) == 0 {
			lines[name] = []string{joined[name]}
		}
		lines[name] = append(lines[name], more[1])
		joined[name] += "," + more[1]
	}
	return joined, lines
}

func (c *semanticCase) explain(t *testing.T, r request) explain.Target {
	t.Helper()
	q := explain.Question{
		From: explain.Outside, To: "httpbin-1", Method: r.method, Path: r.path, Host: r.host,
		SourceIP: netip.MustParseAddr("127.0.0.1"),
	}
	if q.Host == "" {
		q.Host = "httpbin.default"
	}
	if c.Gateway {
		q.To = "gw"
	}
	if r.identity != "" {
		q.From, q.SNI = r.identity, "httpbin.default"
	}
	if r.from != "" {
		q.SourceIP = netip.MustParseAddr(r.from)
	}
	q.Headers, q.Lines = r.headers()
	m := *c.mesh
	if domain, _, _ := strings.Cut(strings.TrimPrefix(r.identity, "spiffe://"), "/"); domain != "" && domain != m.TrustDomain && domain != "old-td" {
		// The listeners of this test take callers of every trust domain.
		m.FederatedDomains = []string{domain}
	}
	a, err := explain.Request(&m, q, semanticDeciders())
	if err != nil {
		t.Fatalf("%s: %v", c.Name, err)
	}
	return a.Targets[0]
}

// semanticDeciders verify tokens as writ does, with authz's package.
func semanticDeciders() explain.Deciders {
	return explain.Deciders{
		Now: time.Now(),
		Find: func(rule *securityapi.JWTRule, headers map[string]string, path string) []string {
			where := token.Locations{Params: rule.GetFromParams(), Cookies: rule.GetFromCookies()}
			for _, h := range rule.GetFromHeaders() {
				where.Headers = append(where.Headers, token.Header{Name: h.GetName(), Prefix: h.GetPrefix()})
			}
			return where.Find(token.Request{Headers: headers, Path: path})
		},
		Verify: func(raw string, rule *securityapi.JWTRule, now time.Time) explain.Verified {
			keys, err := jwks.Parse([]byte(rule.GetJwks()))
			if err != nil {
				keys = &jwks.Set{}
			}
			issuer := token.Issuer{Issuer: rule.GetIssuer(), Audiences: rule.GetAudiences(), Keys: keys}
			if _, err := token.Verify(raw, []token.Issuer{issuer}, now, time.Minute); err != nil {
				return explain.Verified{Reason: err.Error(), WrongAudience: errors.Is(err, token.ErrAudience)}
			}
			payload, err := base64.RawURLEncoding.DecodeString(strings.Split(raw, ".")[1])
			if err != nil {
				return explain.Verified{Reason: err.Error()}
			}
			var claims map[string]any
			if err := json.Unmarshal(payload, &claims); err != nil {
				return explain.Verified{Reason: err.Error()}
			}
			return explain.Verified{Claims: claims}
		},
	}
}

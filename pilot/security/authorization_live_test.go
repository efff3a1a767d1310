package security

import (
	"fmt"
	"strings"
	"testing"

	"github.com/writ-mesh/writ/internal/envoytest"
	"github.com/writ-mesh/writ/pilot/model"
)

const (
	sleep   = "spiffe://cluster.local/ns/default/sa/sleep"
	curlFoo = "spiffe://cluster.local/ns/foo/sa/curl"
	oldTD   = "spiffe://old-td/ns/default/sa/sleep"
)

// liveCase is a set of policies and what becomes of requests.
type liveCase struct {
	name     string
	policies string
	requests []liveRequest
}

type liveRequest struct {
	request
	// denied is the whole header; empty means the request passes.
	denied string
}

// policy is an AuthorizationPolicy for the workload under test.
func policy(name, spec string) string {
	return fmt.Sprintf("kind: AuthorizationPolicy\nmetadata: {name: %s}\nspec:\n  selector: {matchLabels: {app: httpbin}}\n%s", name, indent(spec))
}

func indent(text string) string {
	return "  " + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n  ")
}

func documents(docs ...string) string { return strings.Join(docs, "\n---\n") }

func noneAllows(names ...string) string {
	return "AuthorizationPolicy default/" + strings.Join(names, ",default/") + " no rule allows"
}

func by(name string, rule int) string {
	return fmt.Sprintf("AuthorizationPolicy default/%s rule %d", name, rule)
}

// authorizationCases follow the examples of Istio's documentation of
// AuthorizationPolicy and its conditions, then every field by itself.
func authorizationCases(s signer, t testing.TB) []liveCase {
	alice, bob := s.token(t, map[string]any{"groups": []string{"g1", "g2"}, "scope": "read write", "nested": map[string]any{"key1": "v1", "list": []string{"a"}}}),
		s.token(t, map[string]any{"sub": "bob", "aud": []string{"bookinfo", "x"}, "azp": "app-1"})
	jwt := s.document("jwt", testIssuer, "    forwardOriginalToken: true")
	pass := func(r request) liveRequest { return liveRequest{r, ""} }
	deny := func(r request, by string) liveRequest { return liveRequest{r, by} }
	onlyAllows := func(name, rules string, passes, denies []request) liveCase {
		c := liveCase{name: name, policies: documents(jwt, policy("p", "action: ALLOW\nrules:\n"+rules))}
		for _, r := range passes {
			c.requests = append(c.requests, pass(r))
		}
		for _, r := range denies {
			c.requests = append(c.requests, deny(r, noneAllows("p")))
		}
		return c
	}
	return []liveCase{
		{"no policy", "", []liveRequest{pass(request{})}},
		{"allow nothing", policy("allow-nothing", "action: ALLOW"), []liveRequest{deny(request{}, noneAllows("allow-nothing"))}},
		{"allow all", policy("allow-all", "rules: [{}]"), []liveRequest{pass(request{})}},
		{"deny without rules never matches", policy("d", "action: DENY"), []liveRequest{pass(request{})}},
		{"deny all", policy("d", "action: DENY\nrules: [{}]"), []liveRequest{deny(request{}, by("d", 0))}},
		{
			"docs: sleep or ns test may GET info, or POST data with a token",
			documents(jwt, policy("httpbin", `
action: ALLOW
rules:
- from:
  - source: {principals: ["cluster.local/ns/default/sa/sleep"]}
  - source: {namespaces: ["foo"]}
  to:
  - operation: {methods: ["GET"], paths: ["/info*"]}
  - operation: {methods: ["POST"], paths: ["/data"]}
  when:
  - key: request.auth.claims[iss]
    values: ["https://issuer.example"]
`)),
			[]liveRequest{
				pass(request{identity: sleep, path: "/info", header: bearer(alice)}),
				pass(request{identity: curlFoo, path: "/info/x?y=1", header: bearer(alice)}),
				pass(request{identity: curlFoo, method: "POST", path: "/data", header: bearer(alice)}),
				deny(request{identity: sleep, path: "/info"}, noneAllows("httpbin")),
				deny(request{identity: sleep, path: "/data", header: bearer(alice)}, noneAllows("httpbin")),
				deny(request{path: "/info", header: bearer(alice)}, noneAllows("httpbin")),
				deny(request{identity: "spiffe://cluster.local/ns/bar/sa/sleep", path: "/info", header: bearer(alice)}, noneAllows("httpbin")),
			},
		},
		{
			"docs: deny goes before allow",
			documents(policy("a", "rules: [{}]"), policy("d", "action: DENY\nrules:\n- from:\n  - source: {namespaces: [dev]}\n  to:\n  - operation: {methods: [POST]}\n- to:\n  - operation: {paths: [/admin]}")),
			[]liveRequest{
				pass(request{}),
				pass(request{identity: "spiffe://cluster.local/ns/dev/sa/x"}),
				deny(request{identity: "spiffe://cluster.local/ns/dev/sa/x", method: "POST"}, by("d", 0)),
				deny(request{path: "/admin?x"}, by("d", 1)),
			},
		},
		{
			"two allow policies", documents(policy("a", "rules:\n- to:\n  - operation: {paths: [/a]}"), policy("b", "rules:\n- to:\n  - operation: {paths: [/b]}")),
			[]liveRequest{pass(request{path: "/a"}), pass(request{path: "/b"}), deny(request{path: "/c"}, noneAllows("a", "b"))},
		},
		{"audit refuses nothing", policy("a", "action: AUDIT\nrules: [{}]"), []liveRequest{pass(request{})}},
		{
			"dry run refuses nothing", strings.Replace(policy("d", "action: DENY\nrules: [{}]"), "{name: d}", "{name: d, annotations: {istio.io/dry-run: \"true\"}}", 1),
			[]liveRequest{pass(request{})},
		},
		{
			"root namespace applies everywhere", strings.Replace(policy("r", "action: DENY\nrules: [{}]"), "{name: r}", "{name: r, namespace: istio-system}", 1),
			[]liveRequest{deny(request{}, "AuthorizationPolicy istio-system/r rule 0")},
		},
		{"odd name", policy("odd_name_rule_7", "action: DENY\nrules: [{}]"), []liveRequest{deny(request{}, "AuthorizationPolicy default/odd_name_rule_7 rule 0")}},
		{
			"another namespace does not", strings.Replace(policy("r", "action: DENY\nrules: [{}]"), "{name: r}", "{name: r, namespace: other}", 1),
			[]liveRequest{pass(request{})},
		},

		onlyAllows("principals", "- from: [{source: {principals: ['cluster.local/ns/default/sa/sleep']}}]",
			[]request{{identity: sleep}, {identity: oldTD}}, []request{{}, {identity: curlFoo}}),
		onlyAllows("principals: any", "- from: [{source: {principals: ['*']}}]", []request{{identity: sleep}, {identity: curlFoo}}, []request{{}}),
		onlyAllows("principals: prefix", "- from: [{source: {principals: ['cluster.local/ns/foo/*']}}]", []request{{identity: curlFoo}}, []request{{}, {identity: sleep}}),
		onlyAllows("principals: suffix", "- from: [{source: {principals: ['*/sa/curl']}}]", []request{{identity: curlFoo}}, []request{{}, {identity: sleep}}),
		onlyAllows("notPrincipals", "- from: [{source: {notPrincipals: ['cluster.local/ns/foo/sa/curl']}}]", []request{{}, {identity: sleep}}, []request{{identity: curlFoo}}),
		onlyAllows("requestPrincipals", "- from: [{source: {requestPrincipals: ['https://issuer.example/alice']}}]", []request{{header: bearer(alice)}}, []request{{}, {header: bearer(bob)}}),
		onlyAllows("requestPrincipals: any", "- from: [{source: {requestPrincipals: ['*']}}]", []request{{header: bearer(alice)}, {header: bearer(bob)}}, []request{{}}),
		onlyAllows("requestPrincipals: prefix", "- from: [{source: {requestPrincipals: ['https://issuer.example/*']}}]", []request{{header: bearer(alice)}}, []request{{}}),
		onlyAllows("requestPrincipals: suffix", "- from: [{source: {requestPrincipals: ['*/bob']}}]", []request{{header: bearer(bob)}}, []request{{}, {header: bearer(alice)}}),
		onlyAllows("notRequestPrincipals", "- from: [{source: {notRequestPrincipals: ['*']}}]", []request{{}}, []request{{header: bearer(bob)}}),
		onlyAllows("namespaces", "- from: [{source: {namespaces: [foo]}}]", []request{{identity: curlFoo}}, []request{{}, {identity: sleep}}),
		onlyAllows("namespaces: prefix", "- from: [{source: {namespaces: ['fo*']}}]", []request{{identity: curlFoo}}, []request{{}, {identity: sleep}}),
		onlyAllows("notNamespaces", "- from: [{source: {notNamespaces: [foo]}}]", []request{{}, {identity: sleep}}, []request{{identity: curlFoo}}),
		onlyAllows("serviceAccounts", "- from: [{source: {serviceAccounts: [sleep, foo/curl]}}]", []request{{identity: sleep}, {identity: curlFoo}},
			[]request{{}, {identity: "spiffe://cluster.local/ns/foo/sa/sleep"}, {identity: "spiffe://cluster.local/ns/default/sa/sleeper"}}),
		onlyAllows("notServiceAccounts", "- from: [{source: {notServiceAccounts: [sleep]}}]", []request{{identity: curlFoo}}, []request{{identity: sleep}}),
		onlyAllows("ipBlocks", "- from: [{source: {ipBlocks: ['127.0.0.2', '127.0.3.0/24']}}]", []request{{from: "127.0.0.2"}, {from: "127.0.3.9"}}, []request{{from: "127.0.0.3"}}),
		onlyAllows("notIpBlocks", "- from: [{source: {notIpBlocks: ['127.0.0.2']}}]", []request{{from: "127.0.0.3"}}, []request{{from: "127.0.0.2"}}),
		onlyAllows("remoteIpBlocks", "- from: [{source: {remoteIpBlocks: ['10.9.0.0/16']}}]",
			[]request{{header: map[string]string{"x-forwarded-for": "10.9.1.1"}}}, []request{{}, {header: map[string]string{"x-forwarded-for": "10.8.1.1"}}}),
		onlyAllows("notRemoteIpBlocks", "- from: [{source: {notRemoteIpBlocks: ['10.9.0.0/16']}}]",
			[]request{{}}, []request{{header: map[string]string{"x-forwarded-for": "10.9.1.1"}}}),
		onlyAllows("trustDomains", "- from: [{source: {trustDomains: [old-td]}}]", []request{{identity: oldTD}, {identity: sleep}}, []request{{identity: "spiffe://td3/ns/a/sa/b"}}),
		onlyAllows("hosts", "- to: [{operation: {hosts: ['Example.com', '*.suffix.com', 'prefix.*']}}]",
			[]request{{host: "example.COM"}, {host: "a.suffix.com"}, {host: "prefix.x"}}, []request{{host: "example.com:8080"}, {host: "suffix.com"}, {host: "a.prefix.x"}}),
		onlyAllows("notHosts", "- to: [{operation: {notHosts: ['example.com']}}]", []request{{host: "x"}}, []request{{host: "EXAMPLE.com"}}),
		onlyAllows("methods", "- to: [{operation: {methods: [GET, 'PU*']}}]", []request{{}, {method: "PUT"}}, []request{{method: "POST"}}),
		onlyAllows("notMethods", "- to: [{operation: {notMethods: [GET]}}]", []request{{method: "POST"}}, []request{{}}),
		onlyAllows("paths", "- to: [{operation: {paths: ['/exact', '/prefix*', '*/suffix']}}]",
			[]request{{path: "/exact"}, {path: "/exact?a=/b"}, {path: "/prefix/x"}, {path: "/x/suffix"}}, []request{{path: "/exact/"}, {path: "/Exact"}, {path: "/x?y=/suffix"}}),
		onlyAllows("paths: any", "- to: [{operation: {paths: ['*']}}]", []request{{path: "/"}}, nil),
		onlyAllows("notPaths", "- to: [{operation: {notPaths: ['/admin*']}}]", []request{{path: "/"}}, []request{{path: "/admin/x"}}),
		onlyAllows("paths: templates", "- to: [{operation: {paths: ['/foo/{*}', '/bar/{*}/x/{**}']}}]",
			[]request{{path: "/foo/1"}, {path: "/bar/1/x/2/3"}, {path: "/foo/1?q=/2"}, {path: "/bar/1/x/"}}, []request{{path: "/bar/1/x"}, {path: "/foo/1/2"}, {path: "/foo"}, {path: "/bar/1/y/2"}}),
		onlyAllows("notPaths: templates", "- to: [{operation: {notPaths: ['/foo/{*}']}}]", []request{{path: "/foo/1/2"}}, []request{{path: "/foo/1"}}),
		onlyAllows("ports that are not this one", "- to: [{operation: {ports: ['1']}}]", nil, []request{{}}),
		onlyAllows("notPorts", "- to: [{operation: {notPorts: ['1']}}]", []request{{}}, nil),

		onlyAllows("when header", "- when: [{key: 'request.headers[X-Token]', values: [a, 'b*', '*c']}]",
			[]request{{header: map[string]string{"x-token": "a"}}, {header: map[string]string{"x-token": "bb"}}, {header: map[string]string{"x-token": "cc"}}}, []request{{}, {header: map[string]string{"x-token": "A"}}}),
		onlyAllows("when not header", "- when: [{key: 'request.headers[X-Token]', notValues: [a]}]", []request{{}}, []request{{header: map[string]string{"x-token": "a"}}}),
		onlyAllows("when header present", "- when: [{key: 'request.headers[X-Token]', values: ['*']}]", []request{{header: map[string]string{"x-token": ""}}}, []request{{}}),
		onlyAllows("when source.ip", "- when: [{key: source.ip, values: ['127.0.0.2']}]", []request{{from: "127.0.0.2"}}, []request{{}}),
		onlyAllows("when remote.ip", "- when: [{key: remote.ip, values: ['10.9.0.0/16']}]", []request{{header: map[string]string{"x-forwarded-for": "10.9.1.1"}}}, []request{{}}),
		onlyAllows("when source.namespace", "- when: [{key: source.namespace, values: [foo]}]", []request{{identity: curlFoo}}, []request{{identity: sleep}}),
		onlyAllows("when source.principal", "- when: [{key: source.principal, values: ['cluster.local/ns/foo/sa/curl']}]", []request{{identity: curlFoo}}, []request{{identity: sleep}}),
		onlyAllows("when source.serviceAccount", "- when: [{key: source.serviceAccount, values: [sleep]}]", []request{{identity: sleep}}, []request{{identity: curlFoo}}),
		onlyAllows("when request.auth.principal", "- when: [{key: request.auth.principal, values: ['https://issuer.example/bob']}]", []request{{header: bearer(bob)}}, []request{{header: bearer(alice)}, {}}),
		onlyAllows("when request.auth.audiences", "- when: [{key: request.auth.audiences, values: [bookinfo]}]", []request{{header: bearer(bob)}}, []request{{header: bearer(alice)}}),
		onlyAllows("when request.auth.presenter", "- when: [{key: request.auth.presenter, values: [app-1]}]", []request{{header: bearer(bob)}}, []request{{header: bearer(alice)}}),
		onlyAllows("when list claim", "- when: [{key: 'request.auth.claims[groups]', values: [g2]}]", []request{{header: bearer(alice)}}, []request{{header: bearer(bob)}, {}}),
		onlyAllows("when not claim", "- when: [{key: 'request.auth.claims[groups]', notValues: [g2]}]", []request{{header: bearer(bob)}, {}}, []request{{header: bearer(alice)}}),
		onlyAllows("when scope", "- when: [{key: 'request.auth.claims[scope]', values: [write]}]", []request{{header: bearer(alice)}}, []request{{header: bearer(bob)}}),
		onlyAllows("when nested claim", "- when: [{key: 'request.auth.claims[nested][key1]', values: [v1]}, {key: 'request.auth.claims[nested][list]', values: [a]}]", []request{{header: bearer(alice)}}, []request{{header: bearer(bob)}}),
		onlyAllows("when destination.ip", "- when: [{key: destination.ip, values: ['127.0.0.0/8']}]", []request{{}}, nil),
		onlyAllows("when not destination.ip", "- when: [{key: destination.ip, notValues: ['127.0.0.1']}]", nil, []request{{}}),
		onlyAllows("when destination.port", "- when: [{key: destination.port, values: ['1']}]", nil, []request{{}}),
		onlyAllows("when connection.sni", "- when: [{key: connection.sni, values: ['httpbin.default']}]", []request{{identity: sleep}}, []request{{}}),
		onlyAllows("when connection.sni not", "- when: [{key: connection.sni, notValues: ['httpbin.*']}]", []request{{}}, []request{{identity: sleep}}),
	}
}

func TestAuthorizationLive(t *testing.T) {
	t.Parallel()
	s := newSigner(t)
	cases := authorizationCases(s, t)
	eachEnvoy(t, func(t *testing.T, bin string) {
		inbounds := map[string]inbound{}
		for i, c := range cases {
			m := newMesh(t, c.policies)
			m.TrustDomainAliases = []string{"old-td"}
			inbounds[fmt.Sprint("case", i)] = inbound{http: compileHTTP(t, m, workload()), shared: true, mtls: true}
		}
		p := start(t, bin, inbounds)
		for i, c := range cases {
			for _, r := range c.requests {
				got := p.do(fmt.Sprint("case", i), r.request)
				checkAnswer(t, c.name, r, got)
			}
		}
	})
}

func checkAnswer(t *testing.T, name string, r liveRequest, got answer) {
	t.Helper()
	want, body := 200, "passed\n"
	if r.denied != "" {
		want, body = 403, "RBAC: access denied"
	}
	if got.status != want || got.body != body || got.deniedBy != r.denied {
		t.Errorf("%s: %+v\n got %d %q denied by %q\nwant %d %q denied by %q", name, r.request, got.status, got.body, got.deniedBy, want, body, r.denied)
	}
}

func TestGatewayDeniedBy(t *testing.T) {
	docs := policy("d", "action: DENY\nrules: [{to: [{operation: {paths: [/no]}}]}]")
	gateway := func(annotation string) string {
		return "kind: Gateway\nmetadata: {name: gw, annotations: {policy.writ.mesh/denied-by: \"" + annotation + "\"}}\nspec:\n  selector: {app: httpbin}"
	}
	gw := workload()
	gw.Type, gw.Ports = model.GatewayProxy, nil
	p := start(t, envoytest.Find(t), map[string]inbound{
		"hidden": {http: compileHTTP(t, newMesh(t, documents(docs, gateway("false"))), gw)},
		"shown":  {http: compileHTTP(t, newMesh(t, documents(docs, gateway("true"))), gw)},
	})
	if got := p.do("hidden", request{path: "/no"}); got.status != 403 || got.deniedBy != "" {
		t.Errorf("hidden: %d, denied by %q; want 403 and nothing", got.status, got.deniedBy)
	}
	if got := p.do("shown", request{path: "/no"}); got.status != 403 || got.deniedBy != by("d", 0) {
		t.Errorf("shown: %d, denied by %q; want 403 and the rule", got.status, got.deniedBy)
	}
	want := "gateway=" + by("d", 0)
	if log := p.accessLog(2); strings.Count(log, want) != 2 {
		t.Errorf("access log does not say %q twice:\n%s", want, log)
	}
}

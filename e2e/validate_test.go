package e2e

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// istioObject writes a document of one of Istio's kinds.
func istioObject(group, kind, name, spec string) string {
	return fmt.Sprintf("apiVersion: %s.istio.io/v1\nkind: %s\nmetadata:\n  name: %s\nspec:\n  %s\n", group, kind, name, strings.ReplaceAll(spec, "\n", "\n  "))
}

// TestValidate: one document at a time, the verdict of Istio's own validation,
// the line and the field.
func TestValidate(t *testing.T) {
	t.Parallel()
	authorization := func(spec string) string { return istioObject("security", "AuthorizationPolicy", "p", spec) }
	authentication := func(spec string) string { return istioObject("security", "RequestAuthentication", "p", spec) }
	peer := func(spec string) string { return istioObject("security", "PeerAuthentication", "p", spec) }
	for _, tc := range []struct {
		name, text string
		// want is "" for a valid document, else line and field.
		want string
	}{
		{"nothing", "# nothing\n", ""},
		{"allow nothing", authorization("{}"), ""},
		{"deny everything", authorization("action: DENY\nrules: [{}]"), ""},
		{"JSON is YAML", `{"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": {"name": "p"}, "spec": {"mtls": {"mode": "STRICT"}}}`, ""},
		{"beta", strings.Replace(peer("mtls: {mode: STRICT}"), "/v1", "/v1beta1", 1), ""},
		{"every field of an AuthorizationPolicy", authorization(`selector: {matchLabels: {app: x}}
action: ALLOW
rules:
- from:
  - source: {principals: ["a/ns/b/sa/c"], notPrincipals: ["*"], requestPrincipals: ["i/s"], notRequestPrincipals: ["x*"], namespaces: [a], notNamespaces: [b], ipBlocks: [10.0.0.0/8], notIpBlocks: ["::1"], remoteIpBlocks: [1.2.3.4], notRemoteIpBlocks: [1.2.3.5]}
  - source: {serviceAccounts: [a, b/c], notServiceAccounts: [d]}
  to:
  - operation: {hosts: ["*.x"], notHosts: [y], ports: ["80"], notPorts: ["81"], methods: [GET], notMethods: [PUT], paths: ["/a*", "/b/{*}/c", "/d/{**}"], notPaths: ["/z"]}
  when: [{key: "request.headers[x]", values: [a], notValues: [b]}]`), ""},
		{"unknown action", authorization("action: ALOW"), "6: spec.action"},
		{"unknown field", authorization("rules:\n- form: []"), "7: spec.rules[0].form"},
		{"wrong type", authorization("rules:\n- to:\n  - operation:\n      ports: [80]"), "9: spec.rules[0].to[0].operation.ports[0]"},
		{"DENY without rules", authorization("action: DENY"), "spec.rules"},
		{"CUSTOM without a provider", authorization("action: CUSTOM\nrules: [{}]"), "spec.provider"},
		{"provider without CUSTOM", authorization("provider: {name: x}"), "6: spec.provider"},
		{"an empty from", authorization("rules:\n- from: []"), "7: spec.rules[0].from"},
		{"an empty source", authorization("rules:\n- from:\n  - source: {}"), "8: spec.rules[0].from[0].source"},
		{"a source is missing", authorization("rules:\n- from:\n  - {}"), "8: spec.rules[0].from[0].source"},
		{"an empty operation", authorization("rules:\n- to:\n  - operation: {}"), "spec.rules[0].to[0].operation"},
		{"an empty value", authorization("rules:\n- from:\n  - source:\n      principals: [\"\"]"), "9: spec.rules[0].from[0].source.principals[0]"},
		{"a bad port", authorization("rules: [{to: [{operation: {ports: [\"99999\"]}}]}]"), "spec.rules[0].to[0].operation.ports[0]"},
		{"a bad CIDR", authorization("rules: [{from: [{source: {ipBlocks: [1.2.3.4/99]}}]}]"), "spec.rules[0].from[0].source.ipBlocks[0]"},
		{"a bad template", authorization("rules: [{to: [{operation: {paths: [\"/a/{**}/{*}\"]}}]}]"), "spec.rules[0].to[0].operation.paths[0]"},
		{"a template that would end Envoy", authorization("rules: [{to: [{operation: {paths: [\"a/{*}\"]}}]}]"), "spec.rules[0].to[0].operation.paths[0]"},
		{"an unknown condition", authorization("rules:\n- when:\n  - {key: request.header, values: [x]}"), "8: spec.rules[0].when[0].key"},
		{"a condition without values", authorization("rules: [{when: [{key: source.ip}]}]"), "spec.rules[0].when[0]"},
		{"service accounts and namespaces", authorization("rules: [{from: [{source: {serviceAccounts: [a], namespaces: [b]}}]}]"), "spec.rules[0].from[0].source.serviceAccounts"},
		{"PeerAuthentication by port", peer("selector: {matchLabels: {app: x}}\nportLevelMtls: {8080: {mode: DISABLE}}"), ""},
		{"ports without a selector", peer("portLevelMtls: {8080: {mode: DISABLE}}"), "6: spec.portLevelMtls"},
		{"port 0", peer("selector: {matchLabels: {app: x}}\nportLevelMtls: {0: {mode: DISABLE}}"), "spec.portLevelMtls[0]"},
		{"unknown mode", peer("mtls: {mode: STRIKT}"), "6: spec.mtls.mode"},
		{"a rule of RequestAuthentication", authentication(`jwtRules: [{issuer: i, jwksUri: "https://x.example/jwks", audiences: [a], fromHeaders: [{name: x, prefix: "B "}], fromParams: [p], fromCookies: [c], outputPayloadToHeader: x-p, outputClaimToHeaders: [{header: x-c, claim: c}], forwardOriginalToken: true, timeout: 3s}]`), ""},
		{"no issuer", authentication("jwtRules: [{audiences: [a]}]"), "spec.jwtRules[0].issuer"},
		{"both key sources", authentication("jwtRules: [{issuer: i, jwksUri: \"https://x\", jwks: '{\"keys\":[]}'}]"), "spec.jwtRules[0].jwksUri"},
		{"a bad jwksUri", authentication("jwtRules: [{issuer: i, jwksUri: \"file:///x\"}]"), "spec.jwtRules[0].jwksUri"},
		{"a bad key set", authentication("jwtRules: [{issuer: i, jwks: nonsense}]"), "spec.jwtRules[0].jwks"},
		{"a bad header", authentication("jwtRules: [{issuer: i, jwksUri: \"https://x\", outputPayloadToHeader: \"a b\"}]"), "spec.jwtRules[0].outputPayloadToHeader"},
		{"a claim without name", authentication("jwtRules: [{issuer: i, jwksUri: \"https://x\", outputClaimToHeaders: [{header: x}]}]"), "spec.jwtRules[0].outputClaimToHeaders[0].claim"},
		{"QuotaPolicy", "kind: QuotaPolicy\nmetadata: {name: q}\nspec: {limits: [{per: [source.principal, \"request.headers[x]\", \"request.auth.claims[a][b]\", anything], requests: 1, every: 1m}]}\n", ""},
		{"a quota without limits", "kind: QuotaPolicy\nmetadata: {name: q}\nspec: {}\n", "spec.limits"},
		{"a quota by something unknown", "kind: QuotaPolicy\nmetadata: {name: q}\nspec:\n  limits:\n  - {per: [source.principle], requests: 1, every: 1m}\n", "5: spec.limits[0].per[0]"},
		{"a quota without time", "kind: QuotaPolicy\nmetadata: {name: q}\nspec: {limits: [{requests: 1}]}\n", "spec.limits[0].every"},
		{"RegoPolicy", "kind: RegoPolicy\nmetadata: {name: r}\nspec: {query: data.p.allow, module: \"package p\\ndefault allow := true\"}\n", ""},
		{"Rego that does not compile", "kind: RegoPolicy\nmetadata: {name: r}\nspec:\n  query: data.p.allow\n  module: \"package p\\nallow := nonsense(1)\"\n", "5: spec.module"},
		{"a query that is none", "kind: RegoPolicy\nmetadata: {name: r}\nspec:\n  query: allow\n  module: \"package p\\ndefault allow := true\"\n", "4: spec.query"},
		{"unknown mode of ours", "kind: RegoPolicy\nmetadata: {name: r}\nspec: {mode: watch, query: data.p.allow, module: \"package p\\ndefault allow := true\"}\n", "spec.mode"},
		{"no kind", "metadata: {name: x}\n", "kind"},
		{"an unknown kind", "apiVersion: v1\nkind: Servcie\nmetadata: {name: x}\n", "2: kind"},
		{"a version that is none", strings.Replace(peer("mtls: {}"), "/v1", "/v7", 1), "1: apiVersion"},
		{"no name", "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nspec: {}\n", "metadata"},
		{"twice the same", peer("{}") + "---\n" + peer("{}"), "metadata.name"},
		{"a key twice", peer("mtls: {mode: STRICT}\nmtls: {mode: DISABLE}"), "7: "},
		{"no YAML", "a: [\n", "p.yaml:"},
		{"an unknown service", istioObject("networking", "VirtualService", "v", "hosts: [x]\nhttp:\n- route:\n  - destination: {host: nowhere}"), "9: spec.http[0].route[0].destination.host"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			dir := writeFiles(t, map[string]string{"p.yaml": tc.text})
			out, code := writ(t, "validate", dir)
			if tc.want == "" {
				if code != 0 {
					t.Errorf("exit code %d:\n%s", code, out)
				}
				return
			}
			line, field, ok := strings.Cut(tc.want, ": ")
			if !ok {
				line, field = "", tc.want
			}
			if code != 1 || !strings.Contains(out, filepath.Join(dir, "p.yaml:"+line)) || !strings.Contains(out, field) {
				t.Errorf("exit code %d, want line %q and field %q in:\n%s", code, line, field, out)
			}
		})
	}
	t.Run("no directory", func(t *testing.T) {
		t.Parallel()
		if out, code := writ(t, "validate", filepath.Join(t.TempDir(), "nowhere")); code != 2 {
			t.Errorf("exit code %d: %s", code, out)
		}
	})
	t.Run("as JSON", func(t *testing.T) {
		t.Parallel()
		out, code := writ(t, "validate", "-o", "json", writeFiles(t, map[string]string{"p.yaml": authorization("action: ALOW"), "q.yaml": peer("{}")}))
		var got struct {
			Valid    bool
			Problems []struct {
				File, Object, Field, Severity string
				Line                          int
			}
		}
		if err := json.Unmarshal([]byte(out), &got); err != nil || code != 1 || got.Valid || len(got.Problems) != 1 {
			t.Fatalf("exit code %d, %v: %s", code, err, out)
		}
		if p := got.Problems[0]; p.File != "p.yaml" || p.Line != 6 || p.Field != "spec.action" || p.Object != "AuthorizationPolicy default/p" {
			t.Errorf("%+v", p)
		}
	})
	t.Run("what has no effect is said", func(t *testing.T) {
		t.Parallel()
		out, code := writ(t, "validate", writeFiles(t, map[string]string{"p.yaml": authorization("action: CUSTOM\nprovider: {name: none}\nrules: [{}]")}))
		if code != 0 || !strings.Contains(out, "warning") || !strings.Contains(out, "refused") {
			t.Errorf("exit code %d: %s", code, out)
		}
	})
	t.Run("the examples", func(t *testing.T) {
		t.Parallel()
		if out, code := writ(t, "validate", filepath.Join("..", "examples", "bookinfo")); code != 0 {
			t.Errorf("exit code %d: %s", code, out)
		}
	})
}

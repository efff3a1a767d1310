package cli

import (
	"strings"
	"testing"
)

// TestDiffIsNotExact: where sets of requests are not all that there is to know it is
// told, and only there.
func TestDiffIsNotExact(t *testing.T) {
	custom := func(provider, path string) map[string]string {
		return map[string]string{
			"mesh.yaml": "trustDomain: cluster.local\nextensionProviders:\n- {name: one, envoyExtAuthzGrpc: {service: web.default.svc.cluster.local, port: 8000}}\n" +
				"- {name: two, envoyExtAuthzGrpc: {service: admin.default.svc.cluster.local, port: 8000}}\n",
			"custom.yaml": "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: c}\n" +
				"spec: {selector: {matchLabels: {app: shop}}, action: CUSTOM, provider: {name: " + provider + "}, rules: [{to: [{operation: {paths: [" + path + "]}}]}]}\n",
		}
	}
	rego := func(expression string) map[string]string {
		return map[string]string{"rego.yaml": "apiVersion: policy.writ.mesh/v1alpha1\nkind: RegoPolicy\nmetadata: {name: p}\nspec:\n  selector: {matchLabels: {app: shop}}\n  query: data.p.allow\n  module: |\n    package p\n    allow if " + expression + "\n"}
	}
	list := func(from, entries string) map[string]string {
		return map[string]string{
			"list.yaml": "apiVersion: policy.writ.mesh/v1alpha1\nkind: AccessList\nmetadata: {name: l}\nspec: {selector: {matchLabels: {app: shop}}, action: DENY, match: request.path, from: {" + from + "}}\n",
			"paths.txt": entries,
		}
	}
	const notes, url, file = "NOT EXACT, OR NOT COMPARED", "url: 'https://lists.example/'", "file: paths.txt"
	for name, c := range map[string]struct {
		before, after map[string]string
		code          int
		want          []string
	}{
		"more for a provider":        {custom("one", "/a"), custom("one", "/a, /b"), 1, []string{"allowed is now allowed if the provider one allows", "path: /b"}},
		"another provider":           {custom("one", "/a"), custom("two", "/a"), 1, []string{notes, "the providers one and two may answer differently"}},
		"the same provider":          {custom("one", "/a"), custom("one", "/a"), 0, []string{"no decision differs"}},
		"Rego that stays with authz": {rego("time.now_ns() > 5"), rego("time.now_ns() > 6"), 0, []string{notes, "RegoPolicy default/p differs, and not all that it decides is known without a request"}},
		"the same Rego":              {rego("time.now_ns() > 5"), rego("time.now_ns() > 5"), 0, []string{"no decision differs"}},
		"Rego that Envoys decide":    {rego("input.parsed_path[0] == \"a\""), rego("input.parsed_path[0] == \"b\""), 1, []string{"allowed is now refused"}},
		"the same list, elsewhere":   {list(url, ""), list(url, ""), 0, []string{"no decision differs"}},
		"a list from elsewhere":      {nil, list(url, ""), 1, []string{notes, "the entries that AccessList default/l gets from elsewhere are not known here"}},
		"a list of a file":           {list(file, "/a\n"), list(file, "/a\n/b\n"), 1, []string{"allowed is now refused", "path: /b", "AccessList default/l rule 1"}},
		"the same file":              {list(file, "/a\n"), list(file, "/a\n"), 0, []string{"no decision differs"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Chdir(t.TempDir())
			meshFiles(t, "before", c.before)
			meshFiles(t, "after", c.after)
			code, out := writ("diff", "before", "after")
			for _, want := range c.want {
				if code != c.code || !strings.Contains(out, want) {
					t.Errorf("exit code %d, want %d and %q in\n%s", code, c.code, want, out)
				}
			}
			if strings.Contains(out, notes) != (c.want[0] == notes) {
				t.Errorf("notes:\n%s", out)
			}
		})
	}
}

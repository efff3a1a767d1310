package cli

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/writ-mesh/writ/pilot/explain"
)

// askingDir makes a directory with the example and the page's candidate, and goes there.
func askingDir(t *testing.T) {
	t.Helper()
	source, err := filepath.Abs("../../../../examples/bookinfo")
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(t.TempDir())
	for _, name := range []string{"examples/bookinfo", "candidate"} {
		if err := os.CopyFS(name, os.DirFS(source)); err != nil {
			t.Fatal(err)
		}
	}
	edit(t, "candidate/policies/who-may-call.yaml", func(text string) string {
		before, after, ok := strings.Cut(text, "metadata: {name: reviews}")
		if !ok {
			t.Fatal("the example has no policy reviews any more")
		}
		return before + "metadata: {name: reviews}" + strings.Replace(after, "methods: [GET]", `methods: [GET, DELETE], paths: ["/reviews/*"]`, 1)
	})
}

func edit(t *testing.T, file string, change func(string) string) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(change(string(data))), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestAskingOnThePage runs the examples of docs/authorization.md.
func TestAskingOnThePage(t *testing.T) {
	page, err := os.ReadFile("../../../../docs/authorization.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), "## Asking: explain, whocan, diff\n")
	section, _, _ = strings.Cut(section, "\n## ")
	blocks := regexp.MustCompile("(?s)```console\n\\$ writ (.*?)\n(.*?)```").FindAllStringSubmatch(section, -1)
	if len(blocks) < 3 {
		t.Fatalf("%d examples", len(blocks))
	}
	askingDir(t)
	for _, b := range blocks {
		var out bytes.Buffer
		Main(strings.Fields(b[1]), &out, &out)
		if out.String() != b[2] {
			t.Errorf("writ %s says\n%s\nthe page\n%s", b[1], &out, b[2])
		}
	}
}

// TestAsking has what the commands say in short, and their exit codes.
func TestAsking(t *testing.T) {
	askingDir(t)
	gateway := "istio-system/istio-ingressgateway-service-account"
	for _, tc := range []struct {
		args string
		code int
		want string
	}{
		{"explain --from reviews-v2 --to ratings --path /ratings/1 examples/bookinfo", 0, "AuthorizationPolicy default/ratings rule 0 (policies/who-may-call.yaml:34)"},
		{"explain --from reviews-v2 --to ratings --method POST --path /ratings/1 --header x-stars=9 examples/bookinfo", 1, "by RegoPolicy default/sane-ratings"},
		{"explain --from reviews-v2 --to ratings --method POST --path /ratings/1 --header x-stars=5 examples/bookinfo", 0, "QuotaPolicy: not decided"},
		{"explain --from outside --to ratings:9080 examples/bookinfo", 1, "STRICT: a connection without a certificate of the mesh is closed; on one that was open before, requests get 403"},
		{"explain --from spiffe://cluster.local/ns/default/sa/bookinfo-reviews --to ratings examples/bookinfo", 0, "allowed: GET /"},
		{"explain --from default/bookinfo-reviews --to details examples/bookinfo", 1, "from[0].source.principals wants"},
		{"explain --from " + gateway + " --to productpage --path /api/x --jwt examples/bookinfo/tokens/alice.jwt examples/bookinfo", 0, "the token of https://issuer.bookinfo.example is valid"},
		{"explain --from " + gateway + " --to productpage --path /api/x --jwt examples/bookinfo/tokens/expired.jwt examples/bookinfo", 1, "the caller gets 401"},
		{"explain --from " + gateway + " --to productpage --path /api/x --jwt examples/bookinfo/tokens/other-audience.jwt examples/bookinfo", 1, "the caller gets 403"},
		{"explain --from " + gateway + " --to productpage --path /api/x examples/bookinfo", 1, "by AuthorizationPolicy default/api-needs-token rule 0 (policies/tokens.yaml:21)"},
		{"explain --from outside --to bookinfo-gateway examples/bookinfo", 0, "it calls on as"},
		{"explain --from reviews-v2 --to ratings.default --path /ratings/1 examples/bookinfo", 0, "by AuthorizationPolicy default/ratings rule 0"},
		{"explain --from nobody --to ratings examples/bookinfo", 2, `no workload "nobody"`},
		{"explain --from outside --to nothing examples/bookinfo", 2, `"nothing" is no service`},
		{"explain --to ratings examples/bookinfo", 2, "name who calls"},
		{"explain --from outside examples/bookinfo", 2, "name what is called"},
		{"explain --from outside --to ratings --header x examples/bookinfo", 2, "want NAME=VALUE"},
		{"whocan --to ratings --path /ratings/1 examples/bookinfo", 0, "cluster.local/ns/default/sa/bookinfo-reviews"},
		{"whocan --to details --method DELETE examples/bookinfo", 1, "nobody"},
		{"whocan --to ratings --method DELETE examples/bookinfo", 1, "nobody"},
		{"whocan --to ratings --method POST examples/bookinfo", 0, "cluster.local/ns/default/sa/bookinfo-reviews, if header x-stars: 1 or 2 or 3 or 4 or 5"},
		{"diff examples/bookinfo examples/bookinfo", 0, "no decision differs"},
		{"diff candidate examples/bookinfo", 1, "refused is now allowed"},
		{"diff examples/bookinfo /nowhere", 2, "/nowhere is no mesh directory"},
	} {
		var out bytes.Buffer
		if code := Main(strings.Fields(tc.args), &out, &out); code != tc.code || !strings.Contains(out.String(), tc.want) {
			t.Errorf("writ %s: exit code %d, want %d and %q in\n%s", tc.args, code, tc.code, tc.want, &out)
		}
	}
	var out bytes.Buffer
	var a explain.Answer
	if code := Main(strings.Fields("explain --from outside --to ratings -o json examples/bookinfo"), &out, &out); code != 1 {
		t.Errorf("exit code %d", code)
	}
	if err := json.Unmarshal(out.Bytes(), &a); err != nil || a.Targets[0].Decision != explain.Refused || a.Targets[0].At != "policies/mtls.yaml:2" {
		t.Errorf("%v, %+v", err, a)
	}
	edit(t, "candidate/policies/rego.yaml", func(text string) string { return strings.Replace(text, `"4", "5"}`, `"4"}`, 1) })
	out.Reset()
	Main([]string{"diff", "examples/bookinfo", "candidate"}, &out, &out)
	for _, want := range []string{"allowed is now refused at default/ratings port 9080", "header x-stars: 5\n", "now:    RegoPolicy default/sane-ratings (policies/rego.yaml:3)"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in what differs by Rego:\n%s", want, &out)
		}
	}
	edit(t, "candidate/mesh.yaml", func(text string) string { return text + "\nnonsense: true\n" })
	out.Reset()
	if code := Main([]string{"diff", "examples/bookinfo", "candidate"}, &out, &out); code != 2 || !strings.Contains(out.String(), "candidate is not valid") {
		t.Errorf("of a directory with an error: exit code %d, %s", code, &out)
	}
}

// TestAskingHowCallersSpeak: a DestinationRule decides whether the called Envoy learns who
// calls, and whether it is spoken to at all.
func TestAskingHowCallersSpeak(t *testing.T) {
	const base = `
apiVersion: local.writ.mesh/v1alpha1
kind: LocalWorkload
metadata: {name: a, labels: {app: a}}
---
apiVersion: local.writ.mesh/v1alpha1
kind: LocalWorkload
metadata: {name: b, namespace: other, labels: {app: b}}
spec: {ports: [{name: http, port: 8000}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p, namespace: other}
spec: {rules: [{from: [{source: {principals: ["*"]}}]}]}
`
	rule := func(namespace, mode string) string {
		return "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: r, namespace: " + namespace + "}\nspec: {host: b.other.svc.cluster.local, trafficPolicy: {tls: {mode: " + mode + "}}}\n"
	}
	peer := func(mode string) string {
		return "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p, namespace: other}\nspec: {mtls: {mode: " + mode + "}}\n"
	}
	for _, tc := range []struct {
		name, mesh, more string
		code             int
		want             string
	}{
		{"by itself", "", "", 0, "PERMISSIVE: the caller is cluster.local/ns/default/sa/default"},
		{"plain text by a rule", "", rule("default", "DISABLE"), 1, "the caller's Envoy sends plain text, as DestinationRule default/r (a.yaml:16) says, in which nobody has an identity"},
		{"another's rule", "", rule("third", "DISABLE"), 0, "by AuthorizationPolicy other/p"},
		{"the rule that goes first", "", rule("default", "ISTIO_MUTUAL") + strings.ReplaceAll(rule("other", "DISABLE"), "{name: r,", "{name: s,"), 0, "by AuthorizationPolicy other/p"},
		{"plain text to STRICT", "", rule("other", "DISABLE") + peer("STRICT"), 1, "STRICT: the caller's Envoy sends plain text, as DestinationRule other/r"},
		{"mutual TLS to DISABLE", "", rule("other", "ISTIO_MUTUAL") + peer("DISABLE"), 1, "DISABLE: the caller's Envoy speaks mutual TLS, as DestinationRule other/r"},
		{"without auto mTLS", "enableAutoMtls: false\n", "", 1, "without auto mTLS the caller's Envoy sends plain text"},
		{"and with a rule", "enableAutoMtls: false\n", rule("other", "ISTIO_MUTUAL"), 0, "by AuthorizationPolicy other/p"},
	} {
		dir := t.TempDir()
		for name, text := range map[string]string{"a.yaml": base + tc.more, "mesh.yaml": tc.mesh} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		var out bytes.Buffer
		if code := Main([]string{"explain", "--from", "a", "--to", "b.other:8000", dir}, &out, &out); code != tc.code || !strings.Contains(out.String(), tc.want) {
			t.Errorf("%s: exit code %d, want %d and %q in\n%s", tc.name, code, tc.code, tc.want, &out)
		}
	}
}

package meshdir

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew")

// compileStub refuses modules of package broken, as a compiler would.
func compileStub(_, module, _ string) error {
	if strings.Contains(module, "package broken") {
		return errors.New("1 error occurred: module.rego:1:\n rego_parse_error: broken")
	}
	return nil
}

// TestBadDocuments reads each file of testdata/bad together with the good mesh.
// Every document in it has a mistake; the golden file has what is said about it.
func TestBadDocuments(t *testing.T) {
	files, err := filepath.Glob("testdata/bad/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	rego, err := os.ReadFile("testdata/bad/broken.rego")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			name := "zz-" + filepath.Base(file)
			mesh := exampleFiles(t)
			mesh[name], mesh["broken.rego"] = data, rego
			_, problems := Parse(mesh, exampleInstances(t), Options{CompileRego: compileStub, ReadFile: func(name string) ([]byte, error) {
				return (&Options{Dir: "testdata/bad"}).named(name)
			}})
			var got strings.Builder
			for _, p := range problems {
				fmt.Fprintln(&got, p)
			}
			sameAsGolden(t, strings.TrimSuffix(file, ".yaml")+".txt", got.String())
			everyDocumentIsRefused(t, name, data, problems)
		})
	}
}

// sameAsGolden compares with a golden file, which -update writes anew.
func sameAsGolden(t *testing.T, golden, got string) {
	t.Helper()
	if *update {
		write(t, ".", golden, got)
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Error(diff)
	}
}

func everyDocumentIsRefused(t *testing.T, name string, data []byte, problems []Problem) {
	t.Helper()
	chunks := splitDocuments(data)
	for i, c := range chunks {
		last := c.skipped + bytes.Count(c.text, []byte("\n"))
		found := false
		for _, p := range Errors(problems) {
			found = found || p.File == name && p.Line > c.skipped && p.Line <= last+1
		}
		// Of two objects with one name the first is used.
		if !found && !(i == len(chunks)-2 && bytes.Contains(c.text, []byte("name: twice"))) {
			t.Errorf("nothing is said about the document in line %d:\n%s", c.skipped+1, c.text)
		}
	}
}

func TestMeshConfigMistakes(t *testing.T) {
	for text, want := range map[string]string{
		"trustDomian: a":                        `mesh.yaml:1: MeshConfig: trustDomian: unknown field "trustDomian", did you mean "trustDomain"?`,
		"\ntrustDomain: Exa_mple/x":             `mesh.yaml:2: MeshConfig: trustDomain: "Exa_mple/x" is not a trust domain: use lower-case letters, digits, '-' and '.', such as example.org`,
		"trustDomain: a\n---\nrootNamespace: b": `mesh.yaml:3: MeshConfig: mesh.yaml holds one bare MeshConfig: move other documents into another file`,
		"apiVersion: v1\nkind: ConfigMap":       `mesh.yaml:2: MeshConfig: kind: mesh.yaml holds a bare MeshConfig without apiVersion and kind: move this document into another file`,
		"rootNamespace: A.b":                    `mesh.yaml:1: MeshConfig: rootNamespace: "A.b" is not a namespace`,
		"meshMTLS: {ecdhCurves: [X25519]}":      `mesh.yaml:1: MeshConfig: meshMTLS.ecdhCurves: the mesh prefers X25519MLKEM768 and takes others: remove it, or give X25519MLKEM768 alone, which requires it`,
		"meshMTLS: {ecdhCurves: [X25519MLKEM768], minProtocolVersion: TLSV1_2}":                                               `mesh.yaml:1: MeshConfig: meshMTLS.ecdhCurves: X25519MLKEM768 is of TLS 1.3 alone: remove minProtocolVersion`,
		"tlsDefaults: {ecdhCurves: [P-256, Kurve]}":                                                                           `mesh.yaml:1: MeshConfig: tlsDefaults.ecdhCurves[1]: warning: no Envoy knows "Kurve": it is left out`,
		"tlsDefaults: {cipherSuites: [AES]}":                                                                                  `mesh.yaml:1: MeshConfig: tlsDefaults.cipherSuites[0]: warning: no Envoy knows "AES": it is left out`,
		"meshMTLS: {cipherSuites: [AES128-SHA]}":                                                                              `mesh.yaml:1: MeshConfig: meshMTLS.cipherSuites: warning: the mesh speaks TLS 1.3, which has cipher suites of its own: these count with minProtocolVersion TLSV1_2 only`,
		"defaultHttpRetryPolicy: {attempts: 1, retryOn: 5xxx}":                                                                `mesh.yaml:1: MeshConfig: defaultHttpRetryPolicy.retryOn: unknown condition "5xxx", did you mean "5xx"?`,
		"defaultTrafficPolicy: {connectionPool: {tcp: {maxConnections: -1}}}":                                                 `mesh.yaml:1: MeshConfig: defaultTrafficPolicy.connectionPool.tcp.maxConnections: -1 is negative`,
		"defaultTrafficPolicy: {outlierDetection: {maxEjectionPercent: 101}}":                                                 `mesh.yaml:1: MeshConfig: defaultTrafficPolicy.outlierDetection.maxEjectionPercent: 101 is not a percentage from 0 to 100`,
		"tcpKeepalive: {time: 0.5ms}":                                                                                         `mesh.yaml:1: MeshConfig: tcpKeepalive.time: 500µs is too short: a duration must be at least 1ms`,
		"outboundTrafficPolicy: {mode: ALLOW_ANY_DYNAMIC_DNS, tls: {mode: SIMPLE}}":                                           `mesh.yaml:1: MeshConfig: outboundTrafficPolicy.tls: it is not supported by this version: remove it`,
		"serviceEntryVisibility: {}":                                                                                          `mesh.yaml:1: MeshConfig: serviceEntryVisibility: it is not supported by this version: remove it`,
		"defaultConfig: {proxyHeaders: {preserveHttp1HeaderCase: true}}":                                                      `mesh.yaml:1: MeshConfig: defaultConfig.proxyHeaders.preserveHttp1HeaderCase: warning: it has no effect in this version`,
		"discoverySelectors: [{matchLabels: {a: b}}]":                                                                         `mesh.yaml:1: MeshConfig: discoverySelectors: warning: it has no effect in this version`,
		"dnsRefreshRate: 0s":                                                                                                  `mesh.yaml:1: MeshConfig: dnsRefreshRate: 0s is too short: a duration must be at least 1ms`,
		"serviceSettings: [{hosts: [a_.b.c]}]":                                                                                `mesh.yaml:1: MeshConfig: serviceSettings[0].hosts[0]: "a_.b.c" is not a valid host name: "a_" cannot be a part of one`,
		"connectTimeout: 61m":                                                                                                 `mesh.yaml:1: MeshConfig: connectTimeout: 1h1m0s is too long: at most 1h`,
		"defaultConfig: {concurency: 2}":                                                                                      `mesh.yaml:1: MeshConfig: defaultConfig.concurency: unknown field "concurency", did you mean "concurrency"?`,
		"extensionProviders: [{name: a}]":                                                                                     `mesh.yaml:1: MeshConfig: extensionProviders[0]: says nothing about the provider: give for example envoyExtAuthzGrpc`,
		"extensionProviders:\n- name: a\n  envoyExtAuthzGrpc: {service: a b, port: 0}":                                        `mesh.yaml:3: MeshConfig: extensionProviders[0].envoyExtAuthzGrpc.service: "a b" is not a valid host name: "a b" cannot be a part of one`,
		"caCertificates: [{trustDomains: [B]}]":                                                                               `mesh.yaml:1: MeshConfig: caCertificates[0].trustDomains[0]: "B" is not a trust domain: use lower-case letters, digits, '-' and '.', such as example.org`,
		"trustDomain: a\ncaCertificates: [{trustDomains: [b_c]}]":                                                             `mesh.yaml:2: MeshConfig: caCertificates[0].trustDomains[0]: Envoys cannot verify that certificates are of "b_c" alone: its name has an underscore`,
		"trustDomain: a\ncaCertificates: [{trustDomains: [b, a]}]":                                                            `mesh.yaml:2: MeshConfig: caCertificates[0].trustDomains[1]: a is the mesh's own trust domain`,
		"trustDomain: a\ncaCertificates: [{trustDomains: [cluster.local]}]":                                                   `mesh.yaml:2: MeshConfig: caCertificates[0].trustDomains[0]: policies mean the mesh's own trust domain by cluster.local: another one cannot be called that`,
		"trustDomain: a\ncaCertificates: [{pem: x}]":                                                                          `mesh.yaml:2: MeshConfig: caCertificates[0].trustDomains: say of which other trust domain this is: without it another root would vouch for identities of a; its own further roots are the authority's affair (root-cert.pem)`,
		"trustDomain: a\ncaCertificates: [{trustDomains: [b], certSigners: [c]}]":                                             `mesh.yaml:2: MeshConfig: caCertificates[0].certSigners: it is not supported by this version: remove it`,
		"trustDomain: a\ntrustDomainAliases: [c]\ncaCertificates: [{trustDomains: [b]}]":                                      `mesh.yaml:2: MeshConfig: trustDomainAliases: this version has no aliases of a mesh that accepts other trust domains (caCertificates)`,
		"trustDomain: a\ncaCertificates: [{trustDomains: [b], spiffeBundleUrl: 'https://b.example/'}]":                        `mesh.yaml:2: MeshConfig: caCertificates[0].spiffeBundleUrl: warning: it has no effect: the authority fetches the bundles of other trust domains (federates_with)`,
		"extensionProviders:\n- name: a\n  envoyExtAuthzHttp: {service: a.b, port: 80, headersToUpstreamOnAllow: [x-a, '*']}": `mesh.yaml:3: MeshConfig: extensionProviders[0].envoyExtAuthzHttp.headersToUpstreamOnAllow[1]: warning: "*" alone makes the provider unusable, so all that the rules match is refused: give names, prefixes ("x-*") or suffixes`,
		"extensionProviders:\n- name: a\n  envoyExtAuthzGrpc: {service: a.b, port: 80, includeRequestBodyInCheck: {packAsBytes: true}}": `mesh.yaml:3: MeshConfig: extensionProviders[0].envoyExtAuthzGrpc.includeRequestBodyInCheck.maxRequestBytes: is missing: write how many bytes of a body the provider gets`,
		"outboundTrafficPolicy: {mode: REGISTRY}": `mesh.yaml:1: MeshConfig: outboundTrafficPolicy.mode: unknown value "REGISTRY": known are ALLOW_ANY, ALLOW_ANY_DYNAMIC_DNS, REGISTRY_ONLY`,
	} {
		mesh, problems := Parse(map[string][]byte{"mesh.yaml": []byte(text)}, nil, Options{})
		if !slices.ContainsFunc(problems, func(p Problem) bool { return p.String() == want }) {
			t.Errorf("%q:\n got %v\nwant %s", text, problems, want)
		}
		if mesh.TrustDomain == "" || mesh.Config == nil {
			t.Errorf("%q: no usable mesh", text)
		}
	}
}

// A reference that only a bad object would satisfy takes its user down too, and
// says so; everything else stays.
func TestOneBadObjectDoesNotHoldBackOthers(t *testing.T) {
	files := exampleFiles(t)
	files["traffic.yaml"] = bytes.Replace(files["traffic.yaml"], []byte("subsets:"), []byte("subsetz:"), 1)
	mesh, problems := Parse(files, exampleInstances(t), Options{})
	if len(mesh.DestinationRules) != 0 || len(mesh.VirtualServices) != 1 || len(mesh.AuthorizationPolicies) != 2 {
		t.Errorf("%d %d %d", len(mesh.DestinationRules), len(mesh.VirtualServices), len(mesh.AuthorizationPolicies))
	}
	if len(Errors(problems)) < 2 {
		t.Error(problems)
	}
}

func TestRegoModuleFile(t *testing.T) {
	files := map[string][]byte{
		"policies/office.rego": []byte("package office\n"),
		"p.yaml":               []byte("apiVersion: policy.writ.mesh/v1alpha1\nkind: RegoPolicy\nmetadata: {name: a}\nspec: {moduleFile: policies/office.rego, query: data.office.allow}"),
	}
	mesh, problems := Parse(files, nil, Options{})
	if len(problems) > 0 || len(mesh.RegoPolicies) != 1 || mesh.RegoPolicies[0].Module != "package office\n" {
		t.Errorf("%v %+v", problems, mesh.RegoPolicies)
	}
}

func TestOwnKindsNeedNoVersion(t *testing.T) {
	text := "kind: QuotaPolicy\nmetadata: {name: a}\nspec: {limits: [{requests: 1, every: 1m}]}"
	if mesh, problems := Parse(map[string][]byte{"a.yaml": []byte(text)}, nil, Options{}); len(problems) > 0 || len(mesh.QuotaPolicies) != 1 {
		t.Error(problems)
	}
}

func TestOnlyConfigurationIsRead(t *testing.T) {
	bad := []byte("nonsense: [")
	mesh := map[string][]byte{
		"README.md": bad, ".writ/instances.yaml": bad, "checks.yaml": bad, "a/.hidden/b.yaml": bad, ".c.yaml": bad, "a/d.txt": bad,
	}
	maps.Copy(mesh, exampleFiles(t))
	if _, problems := Parse(mesh, nil, Options{}); len(problems) > 0 {
		t.Error(problems)
	}
	if _, problems := Parse(map[string][]byte{"a/checks.yaml": bad}, nil, Options{}); len(problems) == 0 {
		t.Error("only the checks.yaml of the directory itself is left out")
	}
}

func TestDelegates(t *testing.T) {
	const head = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: "
	root := head + "{name: root}\nspec: {hosts: [web], http: [{delegate: {name: leaf, namespace: team}}]}\n"
	leaf := func(more string) string {
		return head + "{name: leaf, namespace: team}\nspec: {" + more + "http: [{route: [{destination: {host: web.default.svc.cluster.local}}]}]}\n"
	}
	for name, c := range map[string]struct{ leaf, want string }{
		"good":         {leaf(""), ""},
		"missing":      {"", "there is no VirtualService team/leaf"},
		"with hosts":   {leaf("hosts: [web.default.svc.cluster.local], "), "has hosts, so it is no delegate"},
		"not exported": {leaf("exportTo: [.], "), "is not exported to namespace default"},
		"cycle":        {head + "{name: leaf, namespace: team}\nspec: {http: [{delegate: {name: leaf}}]}", "a delegate cannot delegate further"},
	} {
		_, problems := Parse(map[string][]byte{"w.yaml": []byte(workloadText), "root.yaml": []byte(root), "leaf.yaml": []byte(c.leaf)}, nil, Options{})
		switch {
		case c.want == "" && len(problems) > 0:
			t.Errorf("%s: %v", name, problems)
		case c.want != "" && (len(problems) == 0 || !strings.Contains(fmt.Sprint(problems), c.want)):
			t.Errorf("%s: %v, want %q", name, problems, c.want)
		}
	}
	_, problems := Parse(map[string][]byte{"w.yaml": []byte(workloadText), "leaf.yaml": []byte(leaf(""))}, nil, Options{})
	if len(problems) != 1 || problems[0].Severity != Warning {
		t.Errorf("a delegate that nobody uses: %v", problems)
	}
}

// Aliases that expand without end, or to too much, are refused in time.
func TestAliasBombs(t *testing.T) {
	bomb := "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
	for c := 'b'; c <= 'i'; c++ {
		bomb += fmt.Sprintf("%c: &%c [", c, c) + strings.Repeat(fmt.Sprintf("*%c, ", c-1), 9) + fmt.Sprintf("*%c]\n", c-1)
	}
	deep := strings.Repeat("[", 5000) + strings.Repeat("]", 5000)
	for _, text := range []string{bomb, deep, "a: &a {b: *a}", strings.Repeat("{a: ", 200) + strings.Repeat("}", 200)} {
		_, problems := Parse(map[string][]byte{"a.yaml": []byte(text)}, nil, Options{})
		if len(problems) != 1 || problems[0].Line == 0 {
			t.Errorf("%.40q: %v", text, problems)
		}
	}
}

func TestMergeKeys(t *testing.T) {
	text := "apiVersion: v1\nkind: Namespace\nmetadata:\n  labels: &l {a: b, c: d}\n  annotations: {<<: *l, c: e}\n  name: n\n"
	mesh, problems := Parse(map[string][]byte{"a.yaml": []byte(text)}, nil, Options{})
	if len(problems) > 0 || mesh.NamespaceLabels["n"]["a"] != "b" {
		t.Error(problems, mesh.NamespaceLabels)
	}
}

// TestUnknownProvider: without its provider a CUSTOM policy has to stay, because
// it refuses then, as in Istio; without the policy everything would pass.
func TestUnknownProvider(t *testing.T) {
	files := map[string][]byte{
		"mesh.yaml":   []byte("extensionProviders:\n- {name: opa, envoyExtAuthzGrpc: {service: opa.example, port: \"9191\"}}\n"),
		"policy.yaml": []byte("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\nspec: {action: CUSTOM, provider: {name: oppa}, rules: [{}]}\n"),
	}
	mesh, problems := Parse(files, nil, Options{})
	if len(Errors(problems)) > 0 || len(mesh.AuthorizationPolicies) != 1 {
		t.Errorf("%v, %d policies", problems, len(mesh.AuthorizationPolicies))
	}
	if len(problems) != 1 || !strings.Contains(problems[0].String(), `policy.yaml:4: AuthorizationPolicy default/p: spec.provider.name`) || !strings.Contains(problems[0].Message, `"opa"`) {
		t.Error(problems)
	}
}

// TestBundleThatIsNotThere: authz would refuse it, and hold back everybody.
func TestBundleThatIsNotThere(t *testing.T) {
	dir := t.TempDir()
	policy := func(path string) string {
		return "kind: RegoPolicy\nmetadata: {name: r}\nspec: {query: data.p.allow, bundle: {url: 'file://" + path + "'}}\n"
	}
	for path, want := range map[string]int{dir: 0, dir + "/none.tar.gz": 1} {
		if err := os.WriteFile(filepath.Join(dir, "policy.yaml"), []byte(policy(path)), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, problems := Validate(Options{Dir: dir}); len(Errors(problems)) != want {
			t.Errorf("%s: %v", path, problems)
		}
	}
}

package security

import (
	"bytes"
	"crypto/ecdh"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/writ-mesh/writ/pilot/envoy"
	"github.com/writ-mesh/writ/pilot/model"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares value, as indented JSON, with testdata/<name>.json.
func golden(t *testing.T, name string, value any) {
	t.Helper()
	got, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	path := filepath.Join("testdata", name+".json")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil { //nolint:gosec // test data is not secret
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil { //nolint:gosec // as above
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (run go test -update)", err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs (run go test -update and read the difference):\n%s", path, cmp.Diff(string(want), string(got)))
	}
}

// asJSON is m in the stable form that protojson alone does not promise.
func asJSON(t testing.TB, m proto.Message) any {
	t.Helper()
	raw, err := protojson.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var out any
	if err := json.Unmarshal(raw, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func perFilter(t testing.TB, h *HTTP) map[string]any {
	out := map[string]any{}
	for name, packed := range h.PerFilterConfig {
		m, err := packed.UnmarshalNew()
		if err != nil {
			t.Fatal(err)
		}
		out[name] = asJSON(t, m)
	}
	return out
}

// TestAuthorizationGolden shows the RBAC of every field and condition.
func TestAuthorizationGolden(t *testing.T) {
	got := map[string]any{}
	for _, c := range authorizationCases(newSigner(t), t) {
		m := newMesh(t, c.policies)
		m.TrustDomainAliases = []string{"old-td"}
		filters := perFilter(t, compileHTTP(t, m, workload()))
		delete(filters, filterJWT) // names a requirement by its keys, which are new each time
		got[c.name] = filters
	}
	golden(t, "authorization", got)
}

// wholeMesh has every kind of policy at once.
func wholeMesh(t testing.TB) *model.Mesh {
	m := customMesh(t, "- name: my\n  envoyExtAuthzHttp: {service: ext.default.svc.cluster.local, port: 9000, includeRequestBodyInCheck: {maxRequestBytes: 100}, headersToUpstreamOnAllow: [x-*]}")
	ext := &model.Proxy{Type: model.SidecarProxy, Namespace: "default", ServiceAccount: "ext"}
	m.Services = []*model.Service{{
		Meta: model.Meta{Ref: model.Ref{Namespace: "default"}}, Hostname: "ext.default.svc.cluster.local",
		Endpoints: []*model.Endpoint{{Address: "127.0.9.1", Ports: map[uint32]uint32{9000: 9000}, Namespace: "default", ServiceAccount: "ext", Proxy: ext}},
	}}
	addDocument(t, m, `kind: RequestAuthentication
metadata: {name: jwt}
spec:
  jwtRules:
  - {issuer: a, audiences: [x], fromHeaders: [{name: h, prefix: "p "}], fromParams: [q], fromCookies: [c], forwardOriginalToken: true, outputPayloadToHeader: x-payload, outputClaimToHeaders: [{header: x-sub, claim: sub}], spaceDelimitedClaims: [roles]}
  - {issuer: b, jwksUri: "https://keys.example/jwks", timeout: 2s}`)
	addDocument(t, m, policy("audit", "action: AUDIT\nrules: [{}]"))
	addDocument(t, m, policy("allow", "rules: [{from: [{source: {principals: ['cluster.local/ns/default/sa/sleep']}}]}]"))
	m.Deciders = model.Deciders{Authz: "127.0.0.1:9191", RateLimit: "unix:///run/writ/ratelimit.sock"}
	m.RegoPolicies = []*model.RegoPolicy{regoPolicy("r", false)}
	m.RegoPolicies[0].Module = "package x\nallow if input.parsed_body.ok"
	m.QuotaPolicies = []*model.QuotaPolicy{quotaPolicy("q", true, per(dim("source.principal"), dim("request.auth.claims[a][b]"))), quotaPolicy("o", false, per())}
	return m
}

// TestWholeGolden shows everything at once, filters in their order.
func TestWholeGolden(t *testing.T) {
	h := compileHTTP(t, wholeMesh(t), workload())
	var filters, extensions, clusters, limits []any
	for _, f := range h.Filters {
		filters = append(filters, asJSON(t, f))
	}
	for _, e := range h.Extensions {
		extensions = append(extensions, asJSON(t, e.Config))
	}
	for _, c := range h.Clusters {
		clusters = append(clusters, asJSON(t, c))
	}
	for _, l := range h.RateLimits {
		limits = append(limits, asJSON(t, l))
	}
	golden(t, "whole", map[string]any{
		"filters": filters, "extensions": extensions, "per_filter_config": perFilter(t, h), "metadata": asJSON(t, h.Metadata),
		"rate_limits": limits, "clusters": clusters, "local_reply": asJSON(t, h.LocalReply), "sources": h.Sources,
	})
}

// TestWholeValidates has every Envoy check the configuration of TestWholeGolden.
func TestWholeValidates(t *testing.T) {
	agent, err := envoy.GRPCCluster(wholeMesh(t), envoy.AgentCluster, "unix:///nowhere", "")
	if err != nil {
		t.Fatal(err)
	}
	whole := inbound{http: compileHTTP(t, wholeMesh(t), workload())}
	eachEnvoy(t, func(t *testing.T, bin string) {
		p := &proxy{t: t, authority: newAuthority(t), log: filepath.Join(t.TempDir(), "log")}
		validate(t, bin, bootstrap(t, p, map[string]inbound{"in": whole}, []*clusterv3.Cluster{agent}))
	})
}

// TestGenericListener holds the promise that a policy changes no listener.
func TestGenericListener(t *testing.T) {
	empty := newMesh(t, "")
	empty.Deciders = model.Deciders{Authz: "unix:///a", RateLimit: "unix:///r"}
	full := newMesh(t, documents(policy("d", "action: DENY\nrules: [{}]"), policy("a", "rules: [{}]"), policy("u", "action: AUDIT\nrules: [{}]")))
	full.Deciders = empty.Deciders
	full.RegoPolicies = []*model.RegoPolicy{regoPolicy("r", true)}
	full.QuotaPolicies = []*model.QuotaPolicy{quotaPolicy("q", true, per())}
	a, b := compileHTTP(t, empty, workload()), compileHTTP(t, full, workload())
	if len(a.PerFilterConfig) != 0 || a.Metadata != nil || len(a.RateLimits) != 0 {
		t.Errorf("without policies the virtual host has %v %v", a.PerFilterConfig, a.Metadata)
	}
	if len(b.PerFilterConfig) != 5 {
		t.Errorf("%d filters are enabled, want 5", len(b.PerFilterConfig))
	}
	if len(a.Filters) != len(b.Filters) {
		t.Fatalf("%d filters without policies, %d with", len(a.Filters), len(b.Filters))
	}
	for i := range a.Filters {
		if !proto.Equal(a.Filters[i], b.Filters[i]) {
			t.Errorf("filter %s differs", a.Filters[i].GetName())
		}
	}
	if !proto.Equal(a.LocalReply, b.LocalReply) {
		t.Error("local replies differ")
	}
}

func TestErrorsNameThePolicy(t *testing.T) {
	cases := map[string]string{
		policy("p", "rules: [{from: [{source: {ipBlocks: [nonsense]}}]}]"):                                      `AuthorizationPolicy default/p: rules[0]: source.ip: "nonsense" is neither an IP address nor a CIDR`,
		policy("p", "rules: [{}, {to: [{operation: {ports: ['99999']}}]}]"):                                     `AuthorizationPolicy default/p: rules[1]: destination.port: "99999" is not a port`,
		policy("p", "action: DENY\nrules: [{when: [{key: bad.key, values: [x]}]}]"):                             `AuthorizationPolicy default/p: rules[0]: when: unknown key "bad.key"`,
		"kind: RequestAuthentication\nmetadata: {name: r}\nspec: {jwtRules: [{issuer: i, jwksUri: 'ftp://x'}]}": `RequestAuthentication default/r[0]: jwksUri: "ftp://x": want http:// or https://`,
	}
	for docs, want := range cases {
		_, err := compiler(t, newMesh(t, docs)).HTTP(workload(), httpPort())
		if err == nil || err.Error() != want {
			t.Errorf("error %v, want %s", err, want)
		}
	}
}

func TestTargetRefs(t *testing.T) {
	const doc = "kind: AuthorizationPolicy\nmetadata: {name: t, namespace: NS}\nspec: {action: DENY, targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: NAME}], rules: [{}]}"
	build := func(namespace, name string, p *model.Proxy) int {
		docs := documents(strings.NewReplacer("NS", namespace, "NAME", name).Replace(doc), "kind: Gateway\nmetadata: {name: ingress, namespace: apps}\nspec: {selector: {istio: ingress}}")
		return len(compileHTTP(t, newMesh(t, docs), p).Sources)
	}
	gateway := &model.Proxy{Type: model.GatewayProxy, Name: "ingress", Namespace: "istio-system", Labels: map[string]string{"istio": "ingress"}}
	for _, c := range []struct {
		namespace, name string
		p               *model.Proxy
		want            int
	}{
		{"istio-system", "ingress", gateway, 1},
		{"apps", "ingress", gateway, 1},
		{"apps", "egress", gateway, 0},
		{"elsewhere", "ingress", gateway, 0},
		{"default", "httpbin-1", workload(), 0},
	} {
		if got := build(c.namespace, c.name, c.p); got != c.want {
			t.Errorf("%s/%s on %s: %d policies, want %d", c.namespace, c.name, c.p.Name, got, c.want)
		}
	}
}

// TestNobodysKey holds the comment that says how the key came about.
func TestNobodysKey(t *testing.T) {
	var set struct {
		Keys []struct{ X, Y string }
	}
	if err := json.Unmarshal([]byte(nobodysKey), &set); err != nil {
		t.Fatal(err)
	}
	want := sha256.Sum256([]byte("writ: nobody has this key 1"))
	x, errX := base64.RawURLEncoding.DecodeString(set.Keys[0].X)
	y, errY := base64.RawURLEncoding.DecodeString(set.Keys[0].Y)
	if errX != nil || errY != nil || !bytes.Equal(x, want[:]) {
		t.Errorf("x is %x, want %x (%v, %v)", x, want, errX, errY)
	}
	if _, err := ecdh.P256().NewPublicKey(slices.Concat([]byte{4}, x, y)); err != nil {
		t.Errorf("not a point of P-256: %v", err)
	}
}

// TestTreesByDefault holds when a set becomes a tree.
func TestTreesByDefault(t *testing.T) {
	docs := func(n int) string {
		var all []string
		for i := range n {
			all = append(all, policy(fmt.Sprint("p", i), fmt.Sprintf("rules: [{from: [{source: {principals: ['cluster.local/ns/a/sa/s%d']}}]}]", i)))
		}
		return documents(all...)
	}
	gateway := workload()
	gateway.Type = model.GatewayProxy
	for _, c := range []struct {
		policies int
		p        *model.Proxy
		trees    int
	}{{defaultTreeThreshold - 1, workload(), 0}, {defaultTreeThreshold, workload(), 1}, {defaultTreeThreshold, gateway, 0}} {
		if got := countTrees(t, compileHTTP(t, newMesh(t, docs(c.policies)), c.p)); got != c.trees {
			t.Errorf("%d policies, proxy type %d: %d trees, want %d", c.policies, c.p.Type, got, c.trees)
		}
	}
}

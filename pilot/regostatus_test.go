package pilot

import (
	"maps"
	"strings"
	"testing"

	"github.com/writ-mesh/writ/authz/rego"
	"github.com/writ-mesh/writ/pilot/meshdir"
	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/security"
)

// TestRegoPlacements: the status says where each policy is decided and, if not in
// Envoy, the line of the file that is to blame.
func TestRegoPlacements(t *testing.T) {
	const head = "apiVersion: policy.writ.mesh/v1alpha1\nkind: RegoPolicy\n"
	files := map[string][]byte{
		"mesh.yaml":      []byte("trustDomain: cluster.local\n"),
		"workloads.yaml": []byte("apiVersion: local.writ.mesh/v1alpha1\nkind: LocalWorkload\nmetadata: {name: a, labels: {app: a}}\nspec: {ports: [{name: http, port: 8000}]}\n"),
		"whole.yaml": []byte(head + `metadata: {name: whole}
spec:
  query: data.p.allow
  module: |
    package p
    allow if input.parsed_path[0] == "health"
`),
		"clock.yaml": []byte(head + `metadata: {name: clock}
spec:
  query: data.p.allow
  module: |
    package p
    allow if input.parsed_path[0] == "health"
    allow if time.now_ns() > 5
`),
		"file.yaml":       []byte(head + "metadata: {name: file}\nspec: {query: data.q.allow, moduleFile: policies/q.rego}\n"),
		"policies/q.rego": []byte("package q\n\nallow if input.parsed_query.x[0] == \"1\"\n"),
	}
	instances, err := meshdir.MarshalInstances([]meshdir.Instance{{
		Name: "a-1", Namespace: "default", Labels: map[string]string{"app": "a"},
		Spec: meshdir.InstanceSpec{Node: "local", Address: "127.0.16.1", Ports: []meshdir.InstancePort{{Name: "http", Port: 8000, App: 20001}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	m, problems := meshdir.Parse(files, instances, meshdir.Options{SplitRego: new(rego.Splitter).Split})
	for _, p := range problems {
		if p.Severity == meshdir.Error {
			t.Fatal(p)
		}
	}
	c, err := security.New(m)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, p := range regoPlacements(m, c) {
		got[p.GetPolicy()] = p.GetRuns()
		for _, r := range p.GetRemote() {
			got[p.GetPolicy()] += " " + r.GetFile() + ":" + string(rune('0'+r.GetLine())) + " " + r.GetExpression()
		}
		if p.GetProxies() != 1 {
			t.Errorf("%d proxies", p.GetProxies())
		}
	}
	want := map[string]string{
		"default/whole": "envoy",
		"default/clock": "envoy and authz clock.yaml:9 time.now_ns() > 5",
		"default/file":  "authz policies/q.rego:3 input.parsed_query.x[0] == \"1\"",
	}
	for name, w := range want {
		if got[name] != w {
			t.Errorf("%s: %q, want %q", name, got[name], w)
		}
	}
}

// TestRegoPlacementsOfPorts: ports that speak HTTP are one, and a TCP port is told apart
// where it is decided elsewhere.
func TestRegoPlacementsOfPorts(t *testing.T) {
	proxy := &model.Proxy{
		ID: "a", Namespace: "default", ServiceAccount: "a",
		Ports: []model.WorkloadPort{{Protocol: model.HTTP, Port: 1}, {Protocol: model.GRPC, Port: 2}, {Protocol: model.TCP, Port: 3}, {Protocol: model.TCP, Port: 4}},
	}
	m := &model.Mesh{TrustDomain: "cluster.local", RootNamespace: "istio-system", Proxies: []*model.Proxy{proxy}}
	for name, body := range map[string]string{"caller": `allow if endswith(input.source_principal, "/sa/b")`, "path": `allow if input.parsed_path[0] == "a"`} {
		p := &model.RegoPolicy{Meta: model.Meta{Ref: model.Ref{Kind: "RegoPolicy", Namespace: "default", Name: name}}, Module: "package p\n" + body, Query: "data.p.allow"}
		p.Form = new(rego.Splitter).Split(name, p.Module, p.Query)
		m.RegoPolicies = append(m.RegoPolicies, p)
	}
	c, err := security.New(m)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]int{}
	for _, p := range regoPlacements(m, c) {
		why := ""
		for _, r := range p.GetRemote() {
			why += " " + r.GetWhy()
		}
		got[strings.TrimPrefix(p.GetPolicy(), "default/")+" "+p.GetRuns()+why] = int(p.GetProxies())
	}
	want := map[string]int{"caller envoy": 1, "path envoy": 1, "path authz it reads input.parsed_path, which connections do not have": 1}
	if !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

package security

import (
	"testing"

	"github.com/writ-mesh/writ/pilot/model"
)

// TestLookup: to whom the hosts of policies and of mesh.yaml lead.
func TestLookup(t *testing.T) {
	entry := func(namespace, host string) *model.Service {
		return &model.Service{Meta: model.Meta{Ref: model.Ref{Kind: "ServiceEntry", Namespace: namespace, Name: "e"}}, Hostname: host}
	}
	mesh := &model.Mesh{RootNamespace: "istio-system", DomainSuffix: "cluster.local", Services: []*model.Service{
		entry("aaa", "authz.example.com"), entry("aaa", "external-authz-grpc.local"), entry("aaa", "twice.local"), entry("bbb", "twice.local"),
	}}
	c := &Compiler{mesh: mesh}
	for _, tc := range []struct {
		name string
		in   upstream
		want string
		err  bool
	}{
		{"a public name is never another namespace's", upstream{host: "authz.example.com", provider: true, namespace: "istio-system"}, "", false},
		{"but the one that mesh.yaml names", upstream{host: "aaa/authz.example.com", provider: true, namespace: "istio-system"}, "aaa", false},
		{"Istio's example of a local authorizer", upstream{host: "external-authz-grpc.local", provider: true, namespace: "istio-system"}, "aaa", false},
		{"two claim it", upstream{host: "twice.local", provider: true, namespace: "istio-system"}, "", true},
		{"mesh.yaml says which", upstream{host: "bbb/twice.local", provider: true, namespace: "istio-system"}, "bbb", false},
		{"key sets have no such exception", upstream{host: "external-authz-grpc.local", namespace: "default"}, "", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, s, err := c.lookup(tc.in)
			got := ""
			if s != nil {
				got = s.Namespace
			}
			if got != tc.want || (err != nil) != tc.err {
				t.Errorf("got %q, %v; want %q", got, err, tc.want)
			}
		})
	}
}

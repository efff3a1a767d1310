package eval_test

import (
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	security "istio.io/api/security/v1beta1"

	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/security/eval"
)

// TestAuthorize has what the differential test of package security cannot have:
// connections, templates at their edges, and names of what decided.
func TestAuthorize(t *testing.T) {
	const foo, bar = "cluster.local/ns/foo/sa/x", "cluster.local/ns/bar/sa/x"
	cases := []struct {
		name string
		spec string
		r    eval.Request
		want bool
		rule int
	}{
		{"no rules", `{}`, eval.Request{}, false, 0},
		{"empty rule", `{"rules":[{}]}`, eval.Request{}, true, 0},
		{"deny without rules", `{"action":"DENY"}`, eval.Request{}, true, 0},
		{"second rule", `{"rules":[{"to":[{"operation":{"methods":["POST"]}}]},{}]}`, eval.Request{Method: "GET"}, true, 1},
		{"tcp allow needs http", `{"rules":[{"to":[{"operation":{"methods":["GET"]}}]}]}`, eval.Request{TCP: true}, false, 0},
		{"tcp allow condition", `{"rules":[{"when":[{"key":"request.headers[a]","notValues":["b"]}]}]}`, eval.Request{TCP: true}, false, 0},
		{"tcp deny is wider", `{"action":"DENY","rules":[{"from":[{"source":{"namespaces":["foo"]}}],"to":[{"operation":{"methods":["GET"]}}]}]}`, eval.Request{TCP: true, Principal: foo}, false, 0},
		{"tcp deny elsewhere", `{"action":"DENY","rules":[{"from":[{"source":{"namespaces":["foo"]}}],"to":[{"operation":{"methods":["GET"]}}]}]}`, eval.Request{TCP: true, Principal: bar}, true, 0},
		{"two stars", `{"rules":[{"to":[{"operation":{"paths":["/a/{**}"]}}]}]}`, eval.Request{Path: "/a/b/c"}, true, 0},
		{"two stars are nothing", `{"rules":[{"to":[{"operation":{"paths":["/a/{*}/b/{**}"]}}]}]}`, eval.Request{Path: "/a/x/b/"}, true, 0},
		{"two stars need their slash", `{"rules":[{"to":[{"operation":{"paths":["/a/{**}"]}}]}]}`, eval.Request{Path: "/a"}, false, 0},
		{"two stars within", `{"rules":[{"to":[{"operation":{"paths":["/a/{**}/"]}}]}]}`, eval.Request{Path: "/a//"}, true, 0},
		{"one star is one segment", `{"rules":[{"to":[{"operation":{"paths":["/a/{*}"]}}]}]}`, eval.Request{Path: "/a/b/c"}, false, 0},
		{"one star is not nothing", `{"rules":[{"to":[{"operation":{"paths":["/a/{*}"]}}]}]}`, eval.Request{Path: "/a/"}, false, 0},
		{"a denied host", `{"action":"DENY","rules":[{"to":[{"operation":{"hosts":["internal.example"]}}]}]}`, eval.Request{Host: "Internal.example"}, false, 0},
		{"a denied host with a port", `{"action":"DENY","rules":[{"to":[{"operation":{"hosts":["internal.example"]}}]}]}`, eval.Request{Host: "internal.example:8080"}, false, 0},
		{"a denied host as an absolute name", `{"action":"DENY","rules":[{"to":[{"operation":{"hosts":["internal.example"]}}]}]}`, eval.Request{Host: "internal.example.:80"}, false, 0},
		{"a denied domain", `{"action":"DENY","rules":[{"to":[{"operation":{"hosts":["*.example"]}}]}]}`, eval.Request{Host: "internal.example.:80"}, false, 0},
		{"another host", `{"action":"DENY","rules":[{"to":[{"operation":{"hosts":["internal.example"]}}]}]}`, eval.Request{Host: "internal.example.com:80"}, true, 0},
		{"what a denial leaves out is exact", `{"action":"DENY","rules":[{"to":[{"operation":{"notHosts":["open.example"]}}]}]}`, eval.Request{Host: "open.example:80"}, false, 0},
		{"an allowed host is exact", `{"rules":[{"to":[{"operation":{"hosts":["open.example"]}}]}]}`, eval.Request{Host: "open.example:80"}, false, 0},
		{"account without namespace", `{"rules":[{"from":[{"source":{"serviceAccounts":["x"]}}]}]}`, eval.Request{Principal: "cluster.local/ns/default/sa/x"}, true, 0},
		{"account of another namespace", `{"rules":[{"from":[{"source":{"serviceAccounts":["x"]}}]}]}`, eval.Request{Principal: foo}, false, 0},
		{"alias", `{"rules":[{"from":[{"source":{"principals":["cluster.local/ns/foo/sa/x"]}}]}]}`, eval.Request{Principal: "old/ns/foo/sa/x"}, true, 0},
		{"not an alias", `{"rules":[{"from":[{"source":{"principals":["cluster.local/ns/foo/sa/x"]}}]}]}`, eval.Request{Principal: "new/ns/foo/sa/x"}, false, 0},
		{"metadata", `{"rules":[{"when":[{"key":"experimental.envoy.filters.a.b[c]","values":["[d*]"]}]}]}`, eval.Request{Metadata: filtered("x", "dd")}, true, 0},
		{"metadata is a list", `{"rules":[{"when":[{"key":"experimental.envoy.filters.a.b[c]","values":["dd"]}]}]}`, eval.Request{Metadata: filtered("dd")}, false, 0},
	}
	for _, c := range cases {
		spec := &security.AuthorizationPolicy{}
		if err := protojson.Unmarshal([]byte(c.spec), spec); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		pol := &model.AuthorizationPolicy{Meta: model.Meta{Ref: model.Ref{Namespace: "default", Name: "p"}}, Spec: spec}
		got, err := eval.Authorize(eval.Domains{Own: []string{"cluster.local", "old"}}, []*model.AuthorizationPolicy{pol}, c.r)
		if err != nil || got.Allowed != c.want || got.Rule != c.rule {
			t.Errorf("%s: %+v (%v), want allowed %v by rule %d", c.name, got, err, c.want, c.rule)
		}
	}
}

func filtered(list ...any) map[string]map[string]any {
	return map[string]map[string]any{"envoy.filters.a.b": {"c": list}}
}

package explain

import (
	"slices"
	"testing"

	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/security/eval"
)

// TestWhoCanIsExact asks random meshes who may send a request, and compares the answer
// with the decisions about every request of that method, path and host in a small world:
// each that passes is in exactly one of the regions, no other is in any, and workloads of
// whom one passes are named.
func TestWhoCanIsExact(t *testing.T) {
	meshes, g := 30, seeded(t, 2)
	if proctest.Few() {
		meshes = 8
	}
	requests := universe()
	passed, refused := 0, 0
	for range meshes {
		m := g.mesh()
		for _, p := range []model.Proxy{{Namespace: "a", ServiceAccount: "y"}, {Namespace: "b", ServiceAccount: "x"}, {Namespace: "ab", ServiceAccount: "z"}} {
			m.Proxies = append(m.Proxies, &p)
		}
		asked := requests[g.IntN(len(requests))]
		path := asked.Path + queryOf(asked)
		s, err := newSide(m, m.Proxies[0], m.Proxies[0].Ports[0], &eval.Request{Method: asked.Method, Host: asked.Host, Path: asked.Path, Query: queryOf(asked)}, path)
		if err != nil {
			t.Fatal(err)
		}
		space, regions, err := s.passing()
		if err != nil {
			t.Fatal(err)
		}
		callers, err := s.callers()
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range requests {
			if r.Method != asked.Method || r.Path != asked.Path || r.Host != asked.Host {
				continue
			}
			if iss, _ := r.Claims["iss"].(string); iss != "" && iss != badToken && !knows([]*side{s}, iss) {
				continue // to it that is just a bad token
			}
			got, cells := 0, locate(t, space, r)
			for _, region := range regions {
				if within(cells, region) {
					got++
				}
			}
			want := 0
			if bruteForce(t, s, r) == Allowed {
				want = 1
				passed++
			} else {
				refused++
			}
			if got != want {
				t.Fatalf("request %+v\n is in %d regions, want %d\npolicies %v", r, got, want, m.AuthorizationPolicies)
			}
			if who := r.Principal; want == 1 && slices.Contains(identities(m), who) && !slices.ContainsFunc(callers.Known, func(c Caller) bool { return c.Who == who }) {
				t.Fatalf("%s gets through with %+v and is not named: %+v", who, r, callers)
			}
		}
	}
	t.Logf("%d requests passed, %d were refused", passed, refused)
	if passed < meshes || refused < meshes {
		t.Error("the requests are too much alike to test anything")
	}
}

package security

import (
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"
	security "istio.io/api/security/v1beta1"

	"github.com/writ-mesh/writ/pilot/model"
)

// TestReuseHoldsOneRevision: what is kept is what the present revision is made of,
// however many were before it, and what did not change is the same.
func TestReuseHoldsOneRevision(t *testing.T) {
	const many, revisions = 20, 30
	policy := func(i, version int) *model.AuthorizationPolicy {
		return &model.AuthorizationPolicy{
			Meta: model.Meta{Ref: model.Ref{Kind: "AuthorizationPolicy", Namespace: "default", Name: fmt.Sprint(i)}},
			Spec: &security.AuthorizationPolicy{Rules: []*security.Rule{{To: []*security.Rule_To{{Operation: &security.Operation{Paths: []string{fmt.Sprintf("/%d/%d", i, version)}}}}}}},
		}
	}
	versions := make([]int, many)
	contents := func(m *model.Mesh) map[*model.AuthorizationPolicy]contentKey {
		out := map[*model.AuthorizationPolicy]contentKey{}
		for i, p := range m.AuthorizationPolicies {
			out[p] = contentKey{byte(i), byte(versions[i])}
		}
		return out
	}
	p := &model.Proxy{ID: "a", Name: "a", Namespace: "default", ServiceAccount: "a"}
	var earlier *Compiler
	var first *madeRule
	for revision := range revisions {
		versions[revision%(many-1)+1]++
		m := newMesh(t, "")
		for i, version := range versions {
			m.AuthorizationPolicies = append(m.AuthorizationPolicies, policy(i, version))
		}
		c := compiler(t, m)
		c.After(earlier, contents(m))
		got, err := c.HTTP(p, httpPort())
		if err != nil {
			t.Fatal(err)
		}
		c.Settle()
		want, err := compiler(t, m).HTTP(p, httpPort())
		if err != nil || !proto.Equal(got.PerFilterConfig[filterAllow], want.PerFilterConfig[filterAllow]) {
			t.Fatalf("revision %d: %v, or not what a compiler comes to that knows no other", revision, err)
		}
		sets := 0
		c.reuse.sets.Range(func(any, any) bool { sets++; return true })
		if len(c.reuse.parts) != many || sets != 2 || c.reuse.earlier != nil {
			t.Fatalf("revision %d holds %d policies and %d sets, and an earlier one: %v", revision, len(c.reuse.parts), sets, c.reuse.earlier != nil)
		}
		same := c.reuse.parts[partKey{policy: contentKey{0, 0}}].rules[0]
		if first != nil && same != first {
			t.Fatalf("revision %d compiled a policy again that nobody edited", revision)
		}
		first, earlier = same, c
	}
}

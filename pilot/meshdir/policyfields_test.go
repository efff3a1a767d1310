package meshdir

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/fieldtest"
	"github.com/writ-mesh/writ/pilot/model"
)

// TestNoFieldOfAPolicyIsLost: whatever is written in a policy of ours changes the
// object of the mesh.
func TestNoFieldOfAPolicyIsLost(t *testing.T) {
	requests, every := uint32(1), duration(time.Second)
	quota := quotaSpec{
		Selector: &labelSelector{}, Mode: "observe", WhenUnavailable: "Deny", Upper: "override", Lower: "exempt",
		Match:  []quotaMatch{{Principals: []string{"p"}, When: []quotaWhen{{Key: "request.auth.claims[a]", Values: []string{"b"}}}}},
		Limits: []quotaLimit{{Name: "n", Per: []string{"source.ip"}, Requests: &requests, Every: &every, Algorithm: "gcra", Burst: &requests, Mode: "leased", Cost: &quotaCost{From: model.CostResponseBytes, Reserve: 1, Expire: &every}, Plan: &quotaPlan{Table: "t", By: "source.ip", Numbers: "n"}, Fair: &quotaFair{By: "source.namespace", Weights: map[string]uint32{"a": 2}, Plan: &fairPlan{Table: "t", Numbers: "n"}}}},
	}
	lostNothing(t, "QuotaPolicy", &quota, func() any {
		l := quota.Limits[0]
		if l.Requests == nil || l.Every == nil {
			return "refused before"
		}
		if l.Timeout != nil {
			return "refused without concurrent"
		}
		if l.Cost != nil {
			if _, _, problem := costSource(l.Cost.From); problem != "" {
				return problem
			}
		}
		return quotaPolicyOf(&object{spec: &quota})
	})
	quota.Limits = []quotaLimit{{Concurrent: &requests, Timeout: &every}}
	lostNothing(t, "QuotaPolicy", &quota.Limits[0].Timeout, func() any { return quotaPolicyOf(&object{spec: &quota}) })
	rego := regoSpec{
		Selector: &labelSelector{}, Module: "package a", Bundle: &regoBundle{URL: "file:///a", Refresh: &every, Signing: &regoSigning{Key: "k", Algorithm: "ES256", Scope: "s"}, CAFile: "r", Credentials: &bundleCredentials{
			Bearer: &bearerFile{TokenFile: "t"}, ClientTLS: &clientFiles{CertificateFile: "c", KeyFile: "k"}, OAuth2: &oauth2File{ClientFile: "o", Scopes: []string{"s"}},
		}},
		Query: "data.a.allow", Mode: "observe", WhenUnavailable: "Allow",
	}
	lostNothing(t, "RegoPolicy", &rego, func() any {
		a := &assembler{options: &Options{}}
		p := a.regoPolicy(&object{spec: &rego})
		return []any{p, len(a.findings)}
	})
}

func lostNothing[Spec any](t *testing.T, kind string, spec *Spec, made func() any) {
	t.Helper()
	text := func() string {
		data, err := json.Marshal(made())
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	base := text()
	fieldtest.Each(spec, func(field string) {
		if text() == base && field != ".Selector" { // no selector and an empty one are the same
			t.Errorf("%s%s is lost", kind, field)
		}
	})
}

// TestNoFieldOfARoleIsLost is the same for the kinds that came from elsewhere or are
// looked up.
func TestNoFieldOfARoleIsLost(t *testing.T) {
	role := serviceRoleSpec{Rules: []accessRule{{
		Services: []string{"a"}, Hosts: []string{"a"}, NotHosts: []string{"a"}, Paths: []string{"a"}, NotPaths: []string{"a"}, Methods: []string{"a"}, NotMethods: []string{"a"},
		Ports: []uint32{1}, NotPorts: []uint32{1}, Constraints: []roleConstraint{{Key: "destination.ip", Values: []string{"a"}}},
	}}}
	lostNothing(t, "ServiceRole", &role, func() any { return serviceRoleOf(&object{spec: &role}) })
	binding := serviceRoleBindingSpec{RoleRef: &roleRef{Kind: "ServiceRole", Name: "a"}, Mode: "ENFORCED", Subjects: []roleSubject{{
		User: "a", Names: []string{"a"}, NotNames: []string{"a"}, Group: "a", Groups: []string{"a"}, NotGroups: []string{"a"}, Namespaces: []string{"a"},
		NotNamespaces: []string{"a"}, IPs: []string{"a"}, NotIPs: []string{"a"}, Properties: map[string]string{"a": "b"},
	}}}
	lostNothing(t, "ServiceRoleBinding", &binding, func() any {
		if binding.RoleRef == nil || binding.RoleRef.Kind != "ServiceRole" {
			return "refused before"
		}
		out := serviceRoleBindingOf(&object{spec: &binding})
		return []any{out, binding.Mode} // there are two modes only
	})
	every := duration(2 * time.Second)
	list := accessListSpec{
		Selector: &labelSelector{}, Action: "DENY", Match: "request.host", EntryType: "STRINGS", Entries: []string{"a"}, Overrides: &accessOverrides{Allow: []string{"a"}, Deny: []string{"a"}},
		From: &accessFrom{URL: "http://a.example/", File: "a", CACertificates: "a", Refresh: &every, Timeout: &every, MaxAge: &every}, Mode: "observe", WhenUnavailable: "Allow",
	}
	lostNothing(t, "AccessList", &list, func() any { return []any{accessListOf(&object{spec: &list}), list.EntryType} })
}

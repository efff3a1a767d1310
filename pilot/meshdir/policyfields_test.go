package meshdir

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/writ-mesh/writ/internal/fieldtest"
)

// TestNoFieldOfAPolicyIsLost: whatever is written in a policy of ours changes the
// object of the mesh.
func TestNoFieldOfAPolicyIsLost(t *testing.T) {
	requests, every := uint32(1), duration(time.Second)
	quota := quotaSpec{
		Selector: &labelSelector{}, Mode: "observe", WhenUnavailable: "Deny",
		Limits: []quotaLimit{{Per: []string{"source.ip"}, Requests: &requests, Every: &every}},
	}
	lostNothing(t, "QuotaPolicy", &quota, func() any {
		if l := quota.Limits[0]; l.Requests == nil || l.Every == nil {
			return "refused before"
		}
		return quotaPolicyOf(&object{spec: &quota})
	})
	rego := regoSpec{
		Selector: &labelSelector{}, Module: "package a", Bundle: &regoBundle{URL: "file:///a", Refresh: &every},
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

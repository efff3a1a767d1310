package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/writ-mesh/writ/pilot/meshdir"
)

const plannedPolicy = `apiVersion: policy.writ.mesh/v1alpha1
kind: QuotaPolicy
metadata: {name: q, namespace: default}
spec:
  limits:
  - {per: [source.principal], requests: 1, every: 1m, plan: {table: customers, by: source.principal, numbers: minute}}
  - {per: [source.principal], requests: 1, every: 1h, plan: {table: customers, by: source.principal, numbers: hour}}
  - {per: [source.principal], requests: 1, every: 1h, plan: {table: customers, by: source.principal}}
  - {per: [source.principal], requests: 1, every: 1h, plan: {table: partners, by: source.principal}}
  - {per: [], requests: 9, every: 1m, fair: {by: source.namespace, plan: {table: customers, numbers: weight}}}
  - {per: [], requests: 9, every: 1m, fair: {by: source.namespace, plan: {table: weights}}}
`

// TestValidatePlans: tables of plans are checked with the mesh, and that they have what
// its policies name.
func TestValidatePlans(t *testing.T) {
	for _, c := range []struct {
		name, table string
		want        []string
	}{
		{"good", "numbers minute month\nplan gold 1 2\ncaller ann gold\n", []string{
			"q.yaml:1: QuotaPolicy default/q: spec.limits[1].plan.numbers: the table customers has no column hour: it has minute, month",
			"q.yaml:1: QuotaPolicy default/q: spec.limits[2].plan.numbers: the table customers has several columns: say which, minute or month",
			"q.yaml:1: QuotaPolicy default/q: spec.limits[3].plan.table: warning: there is no plans/partners.plans",
			"q.yaml:1: QuotaPolicy default/q: spec.limits[4].fair.plan.numbers: the table customers has no column weight: it has minute, month",
			"q.yaml:1: QuotaPolicy default/q: spec.limits[5].fair.plan.table: warning: there is no plans/weights.plans: until ratelimit has this table, from Redis for example, all have the weight 1",
		}},
		{"bad", "numbers minute month\ncaller ann gold 1\ncaller bob -1 1\n", []string{
			`plans/customers.plans:2: minute: "gold" is not a number`,
			`plans/customers.plans:3: minute: "-1" is below 0`,
			"there is no plans/partners.plans",
			"there is no plans/weights.plans",
		}},
	} {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "plans"), 0o700); err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{"q.yaml": plannedPolicy, "plans/customers.plans": c.table} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		mesh, problems := meshdir.Validate(meshdir.Options{Dir: dir})
		if len(meshdir.Errors(problems)) > 0 {
			t.Fatal(problems)
		}
		var got []string
		for _, p := range planProblems(dir, mesh) {
			got = append(got, p.String())
		}
		if len(got) != len(c.want) {
			t.Errorf("%s: %d problems, want %d:\n%s", c.name, len(got), len(c.want), strings.Join(got, "\n"))
			continue
		}
		for i, want := range c.want {
			if !strings.Contains(got[i], want) {
				t.Errorf("%s:\n got %s\nwant %s", c.name, got[i], want)
			}
		}
	}
	if got := planProblems(t.TempDir(), nil); len(got) != 0 {
		t.Errorf("a mesh without tables: %v", got)
	}
}

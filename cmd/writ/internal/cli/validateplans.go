package cli

import (
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/writ-mesh/writ/cmd/writ/internal/stack"
	"github.com/writ-mesh/writ/pilot/meshdir"
	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/ratelimit/plans"
)

// planProblems checks the tables of plans of a mesh directory, and that they have what
// its policies name.
func planProblems(dir string, mesh *model.Mesh) []meshdir.Problem {
	var out []meshdir.Problem
	good, problems := plans.Check(filepath.Join(dir, stack.PlansFolder), plans.DefaultMaxCallers)
	broken := map[string]bool{}
	for _, p := range problems {
		broken[strings.TrimSuffix(p.File, plans.Suffix)] = true
		out = append(out, meshdir.Problem{File: path.Join(stack.PlansFolder, p.File), Line: p.Line, Message: p.Err.Error(), Severity: meshdir.Error})
	}
	if mesh == nil {
		return out
	}
	for _, policy := range mesh.QuotaPolicies {
		for i, limit := range policy.Limits {
			check := func(plan *model.QuotaPlan, at, without string) {
				if plan == nil || broken[plan.Table] {
					return
				}
				if p, wrong := planProblem(plan, good[plan.Table], without); wrong {
					p.File, p.Line, p.Object = policy.File, policy.Line, policy.ID()
					p.Field = fmt.Sprintf("spec.limits[%d].%s.%s", i, at, p.Field)
					out = append(out, p)
				}
			}
			check(limit.Plan, "plan", "all callers have the limit's own numbers")
			if limit.Fair != nil {
				check(limit.Fair.Plan, "fair.plan", "all have the weight 1 that have none in the policy")
			}
		}
	}
	return out
}

// planProblem compares what a limit names with the table of this name, nil if there is
// no such file; without is what holds then.
func planProblem(plan *model.QuotaPlan, table *plans.Table, without string) (p meshdir.Problem, wrong bool) {
	switch {
	case table == nil:
		return meshdir.Problem{
			Field: "table", Severity: meshdir.Warning,
			Message: fmt.Sprintf("there is no %s/%s%s: until ratelimit has this table, from Redis for example, %s", stack.PlansFolder, plan.Table, plans.Suffix, without),
		}, true
	case plan.Numbers == "" && len(table.Columns()) > 1:
		return meshdir.Problem{
			Field: "numbers", Severity: meshdir.Error,
			Message: fmt.Sprintf("the table %s has several columns: say which, %s", plan.Table, strings.Join(table.Columns(), " or ")),
		}, true
	case plan.Numbers != "" && !slices.Contains(table.Columns(), plan.Numbers):
		return meshdir.Problem{
			Field: "numbers", Severity: meshdir.Error,
			Message: fmt.Sprintf("the table %s has no column %s: it has %s", plan.Table, plan.Numbers, strings.Join(table.Columns(), ", ")),
		}, true
	}
	return p, false
}

package model

import (
	"cmp"
	"slices"
)

// EnvoyFiltersOf gives the EnvoyFilters that are for a proxy, in the order in which they
// count: by priority, then those of the root namespace first, then the older.
func (m *Mesh) EnvoyFiltersOf(p *Proxy) []*EnvoyFilter {
	var out []*EnvoyFilter
	for _, f := range m.EnvoyFilters {
		if (f.Namespace == m.RootNamespace || f.Namespace == p.Namespace) && SelectorMatches(f.Spec.GetWorkloadSelector().GetLabels(), p.Labels) {
			out = append(out, f)
		}
	}
	slices.SortStableFunc(out, func(a, b *EnvoyFilter) int {
		return cmp.Or(
			cmp.Compare(a.Spec.GetPriority(), b.Spec.GetPriority()), boolOrder(a.Namespace != m.RootNamespace)-boolOrder(b.Namespace != m.RootNamespace),
			a.Created.Compare(b.Created), cmp.Compare(a.Name+"."+a.Namespace, b.Name+"."+b.Namespace),
		)
	})
	return out
}

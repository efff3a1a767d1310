package security

import (
	"maps"
	"slices"

	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/security/eval"
)

// selection is every policy that applies to one proxy, those of the root
// namespace first, each group in the mesh's order of age.
type selection struct {
	custom, audit, deny, allow []*model.AuthorizationPolicy
	jwt                        []*model.RequestAuthentication
	rego                       []*model.RegoPolicy
	quota                      []*model.QuotaPolicy
	lists                      []*model.AccessList
}

func (c *Compiler) selectFor(p *model.Proxy) selection {
	near := *c.mesh
	near.AuthorizationPolicies = c.near.policies(c.mesh, p)
	s := eval.Select(&near, p)
	return selection{custom: s.Custom, audit: s.Audit, deny: s.Deny, allow: s.Allow, jwt: s.JWT, rego: s.Rego, quota: s.Quota, lists: s.Lists}
}

func (s selection) sources() []model.Ref {
	refs := refsOf(s.custom, s.audit, s.deny, s.allow)
	for _, o := range s.jwt {
		refs = append(refs, o.Ref)
	}
	for _, o := range s.rego {
		refs = append(refs, o.Ref)
	}
	for _, o := range s.quota {
		refs = append(refs, o.Ref)
	}
	for _, o := range s.lists {
		refs = append(refs, o.Ref)
	}
	return refs
}

func refsOf(groups ...[]*model.AuthorizationPolicy) []model.Ref {
	var refs []model.Ref
	for _, g := range groups {
		for _, o := range g {
			refs = append(refs, o.Ref)
		}
	}
	return refs
}

// nearness finds AuthorizationPolicies by a label that they ask for, of which there may
// be tens of thousands for a few workloads each.
type nearness struct {
	// byLabel and others are places in the mesh's list.
	byLabel map[[2]string][]int
	// others ask for no label.
	others []int
}

func newNearness(m *model.Mesh) nearness {
	n := nearness{byLabel: map[[2]string][]int{}}
	for i, p := range m.AuthorizationPolicies {
		labels := p.Spec.GetSelector().GetMatchLabels()
		if len(labels) == 0 || len(p.Spec.GetTargetRefs()) > 0 || p.Spec.GetTargetRef() != nil {
			n.others = append(n.others, i)
			continue
		}
		key := slices.Min(slices.Collect(maps.Keys(labels)))
		at := [2]string{key, labels[key]}
		n.byLabel[at] = append(n.byLabel[at], i)
	}
	return n
}

// policies are all that may apply to p, in the mesh's order, and few that do not.
func (n nearness) policies(m *model.Mesh, p *model.Proxy) []*model.AuthorizationPolicy {
	at := slices.Clone(n.others)
	for k, v := range p.Labels {
		at = append(at, n.byLabel[[2]string{k, v}]...)
	}
	slices.Sort(at)
	out := make([]*model.AuthorizationPolicy, len(at))
	for i, place := range at {
		out[i] = m.AuthorizationPolicies[place]
	}
	return out
}

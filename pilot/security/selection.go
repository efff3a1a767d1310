package security

import (
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
	s := eval.Select(c.mesh, p)
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

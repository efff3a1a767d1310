package eval

import (
	security "istio.io/api/security/v1beta1"
	typev1beta1 "istio.io/api/type/v1beta1"

	"github.com/writ-mesh/writ/pilot/model"
)

// Policies is every policy that applies to one proxy, those of the root
// namespace first, each group in the mesh's order of age. AuthorizationPolicies
// are by action, dry runs among them; what ServiceRoles come to is among those that allow.
type Policies struct {
	Custom, Audit, Deny, Allow []*model.AuthorizationPolicy
	JWT                        []*model.RequestAuthentication
	Rego                       []*model.RegoPolicy
	Quota                      []*model.QuotaPolicy
	Lists                      []*model.AccessList
}

// Select finds the policies that apply to p.
func Select(m *model.Mesh, p *model.Proxy) Policies {
	var s Policies
	for _, pol := range inScope(m, p, m.AuthorizationPolicies, func(o *model.AuthorizationPolicy) string { return o.Namespace }) {
		if !attached(m, p, pol.Namespace, pol.Spec) {
			continue
		}
		switch pol.Spec.GetAction() {
		case security.AuthorizationPolicy_CUSTOM:
			s.Custom = append(s.Custom, pol)
		case security.AuthorizationPolicy_AUDIT:
			s.Audit = append(s.Audit, pol)
		case security.AuthorizationPolicy_DENY:
			s.Deny = append(s.Deny, pol)
		case security.AuthorizationPolicy_ALLOW:
			s.Allow = append(s.Allow, pol)
		}
	}
	for _, pol := range inScope(m, p, m.RequestAuthentications, func(o *model.RequestAuthentication) string { return o.Namespace }) {
		if attached(m, p, pol.Namespace, pol.Spec) {
			s.JWT = append(s.JWT, pol)
		}
	}
	for _, pol := range inScope(m, p, m.RegoPolicies, func(o *model.RegoPolicy) string { return o.Namespace }) {
		if model.SelectorMatches(pol.Selector, p.Labels) {
			s.Rego = append(s.Rego, pol)
		}
	}
	for _, pol := range inScope(m, p, m.QuotaPolicies, func(o *model.QuotaPolicy) string { return o.Namespace }) {
		if model.SelectorMatches(pol.Selector, p.Labels) {
			s.Quota = append(s.Quota, pol)
		}
	}
	for _, pol := range inScope(m, p, m.AccessLists, func(o *model.AccessList) string { return o.Namespace }) {
		if model.SelectorMatches(pol.Selector, p.Labels) {
			s.Lists = append(s.Lists, pol)
		}
	}
	s.Allow = append(s.Allow, roles(m, p, s)...)
	return s
}

// inScope gives the objects of the root namespace and then those of the proxy's own.
func inScope[O any](m *model.Mesh, p *model.Proxy, all []O, namespace func(O) string) []O {
	var root, own []O
	for _, o := range all {
		switch namespace(o) {
		case m.RootNamespace:
			root = append(root, o)
		case p.Namespace:
			own = append(own, o)
		default:
			if p.Type == model.GatewayProxy && targetsGateway(m, p, namespace(o), o) {
				own = append(own, o)
			}
		}
	}
	return append(root, own...)
}

// targetable is an Istio policy that selects by labels or by target.
type targetable interface {
	GetSelector() *typev1beta1.WorkloadSelector
	GetTargetRef() *typev1beta1.PolicyTargetReference
	GetTargetRefs() []*typev1beta1.PolicyTargetReference
}

func targets(spec targetable) []*typev1beta1.PolicyTargetReference {
	if refs := spec.GetTargetRefs(); len(refs) > 0 {
		return refs
	}
	if ref := spec.GetTargetRef(); ref != nil {
		return []*typev1beta1.PolicyTargetReference{ref}
	}
	return nil
}

// attached says whether a policy of namespace that is in scope selects the
// proxy. A policy with targets is never for a sidecar.
func attached(m *model.Mesh, p *model.Proxy, namespace string, spec targetable) bool {
	refs := targets(spec)
	if len(refs) == 0 {
		return model.SelectorMatches(spec.GetSelector().GetMatchLabels(), p.Labels)
	}
	if p.Type != model.GatewayProxy {
		return false
	}
	for _, ref := range refs {
		if ref.GetKind() != "Gateway" || ref.GetNamespace() != "" && ref.GetNamespace() != namespace {
			continue
		}
		if ref.GetName() == p.Name && (namespace == p.Namespace || runsGateway(m, p, namespace, ref.GetName())) {
			return true
		}
	}
	return false
}

// targetsGateway is for policies that live beside a Gateway object while its
// proxy runs in the root namespace.
func targetsGateway(m *model.Mesh, p *model.Proxy, namespace string, object any) bool {
	var spec targetable
	switch o := object.(type) {
	case *model.AuthorizationPolicy:
		spec = o.Spec
	case *model.RequestAuthentication:
		spec = o.Spec
	default:
		return false
	}
	return len(targets(spec)) > 0 && attached(m, p, namespace, spec)
}

// runsGateway says whether the proxy serves the Gateway object namespace/name.
func runsGateway(m *model.Mesh, p *model.Proxy, namespace, name string) bool {
	for _, g := range m.Gateways {
		if g.Namespace == namespace && g.Name == name {
			return model.SelectorMatches(g.Spec.GetSelector(), p.Labels)
		}
	}
	return false
}

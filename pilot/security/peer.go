package security

import (
	"slices"

	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"

	"github.com/writ-mesh/writ/pilot/model"
)

// kindPeer is in the header of a refusal before the mode that refuses.
const kindPeer = "PeerAuthentication"

// ServerMode gives the effective PeerAuthentication mode of a workload's port.
func (c *Compiler) ServerMode(namespace string, labels map[string]string, port uint32) model.PeerMode {
	return c.peer.Of(namespace, labels, port)
}

// addPeer has the virtual host say too what the filter chains of a port demand of
// callers. Chains and virtual hosts reach an Envoy in two messages, and connections
// outlive their chain while it drains: whatever listener a request came by, what it meets
// is what this revision makes of its caller (decision 0042). Envoy has a filter for
// malformed requests before all others, into which the rule goes; a port in PERMISSIVE
// mode, which takes everybody, needs none.
func (c *Compiler) addPeer(b *httpBuilder, p *model.Proxy, port model.WorkloadPort, s selection) {
	if p.Type == model.GatewayProxy {
		return
	}
	mode := c.ServerMode(p.Namespace, p.Labels, port.Port)
	// Only the mesh's own TLS ends here, for which a client certificate is required.
	rule := &rbacv3.Principal{Identifier: &rbacv3.Principal_Authenticated_{Authenticated: &rbacv3.Principal_Authenticated{}}}
	switch {
	case mode == model.Strict:
		rule = notID(rule)
	case mode == model.Disable && s.decides():
		// Nobody has an identity in plain text: what rules say of one lets nobody in.
	default:
		return
	}
	rbac := malformed()
	rbac.Rules.Policies[kindPeer+" "+mode.String()] = &rbacv3.Policy{
		Permissions: []*rbacv3.Permission{{Rule: &rbacv3.Permission_Any{Any: true}}}, Principals: []*rbacv3.Principal{rule},
	}
	b.enable(filterMalformed, perRoute(rbac))
}

// decides says whether any of the policies may let callers pass and refuse others. Those
// that only observe refuse nobody.
func (s selection) decides() bool {
	rules := slices.Concat(s.custom, s.deny, s.allow)
	return slices.ContainsFunc(rules, func(p *model.AuthorizationPolicy) bool { return !model.DryRun(p) }) ||
		slices.ContainsFunc(s.rego, func(p *model.RegoPolicy) bool { return !p.Observe }) ||
		slices.ContainsFunc(s.lists, func(l *model.AccessList) bool { return !l.Observe })
}

package security

import (
	"fmt"
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	extauthztcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/ext_authz/v3"
	rbactcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/writ-mesh/writ/internal/regoform"
	"github.com/writ-mesh/writ/pilot/envoy"
	"github.com/writ-mesh/writ/pilot/model"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

// addRegoTCP adds what decides RegoPolicies about connections, after all other
// policies: what needs no call, and the call to authz for the rest. Both are asked
// once, when the client first sends something.
//
// The network filter has nowhere to say which policies are meant, so that they
// are in the metadata of the call. When one is edited its listeners change and drain, as
// for an AuthorizationPolicy, instead of leaving connections open that the new text would
// refuse.
func (c *Compiler) addRegoTCP(out *TCP, p *model.Proxy, port model.WorkloadPort, s selection) error {
	var asked []*model.RegoPolicy
	refused := ruleSet{enforced: &rbacv3.RBAC{Action: rbacv3.RBAC_DENY, Policies: map[string]*rbacv3.Policy{}}}
	rules := refused.enforced
	for _, placed := range c.placeRegoTCP(p, port, s) {
		switch {
		case placed.form != nil:
			if refuse := regoform.Not(placed.form.Perhaps); refuse.Op() != regoform.OpFalse {
				rules.Policies[placed.policy.ID()] = &rbacv3.Policy{
					Permissions: []*rbacv3.Permission{{Rule: &rbacv3.Permission_Any{Any: true}}},
					Principals:  []*rbacv3.Principal{regoID(refuse)},
				}
			}
		case c.mesh.Deciders.Authz != "":
			asked = append(asked, placed.policy)
		case !placed.policy.FailOpen && !placed.policy.Observe:
			refused.refuseAll(placed.policy.Ref)
		}
	}
	if len(rules.Policies) > 0 {
		out.add(filterRegoRules, &rbactcpv3.RBAC{StatPrefix: "tcp.", Rules: rules})
	}
	if len(asked) == 0 {
		return nil
	}
	cluster, err := envoy.GRPCCluster(c.mesh, authzCluster, c.mesh.Deciders.Authz, "authz")
	if err != nil {
		return err
	}
	out.Clusters = appendCluster(out.Clusters, cluster)
	out.add(filterRego, regoTCP(asked))
	return nil
}

func regoTCP(asked []*model.RegoPolicy) *extauthztcpv3.ExtAuthz {
	var names []string
	open := true
	for _, p := range asked {
		names = append(names, configpb.PolicyRef(p.Namespace, p.Name, p.Fingerprint))
		open = open && (p.FailOpen || p.Observe)
	}
	return &extauthztcpv3.ExtAuthz{
		StatPrefix:          "tcp.",
		TransportApiVersion: corev3.ApiVersion_V3,
		GrpcService: &corev3.GrpcService{
			TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: authzCluster}},
			Timeout:         durationpb.New(authzTimeout),
			InitialMetadata: []*corev3.HeaderValue{{Key: configpb.PoliciesMetadata, Value: strings.Join(names, ",")}},
		},
		FailureModeAllow:  open,
		IncludeTlsSession: true,
	}
}

// placeRegoTCP decides for each policy whether the proxy can decide it for the
// connections of a port itself: all of it or nothing, since a connection is asked
// about once.
func (c *Compiler) placeRegoTCP(p *model.Proxy, port model.WorkloadPort, s selection) []*placedRego {
	var out []*placedRego
	for _, pol := range s.rego {
		placed := &placedRego{policy: pol}
		out = append(out, placed)
		form, why := c.formForTCP(p, port, s, pol)
		if why != "" {
			placed.remote = append(reasonsOf(pol, pol.Form), RegoReason{File: pol.File, Line: pol.Line, Why: why})
		} else {
			placed.form = form
		}
	}
	return out
}

func (c *Compiler) formForTCP(p *model.Proxy, port model.WorkloadPort, s selection, pol *model.RegoPolicy) (form *regoform.Policy, why string) {
	form, why = c.formFor(p, s, pol)
	switch {
	case why != "":
		return nil, why
	case len(pol.Form.Requests) > 0:
		return nil, fmt.Sprintf("it reads %s, which connections do not have", pol.Form.Requests[0])
	case !form.Whole():
		return nil, "only authz knows all of the answer"
	case form.Reads(regoform.SNI, regoform.DestinationIP):
		return nil, "it reads the server name or the destination's address, of which the proxy's filter for connections may know another form"
	case port.Port == 0 && form.Reads(regoform.DestinationPort):
		return nil, "it reads the port, and this port has no name"
	case form.Perhaps.Atoms() > maxRegoAtoms:
		return nil, fmt.Sprintf("it comes to more than %d conditions", maxRegoAtoms)
	}
	return form.Map(func(a regoform.Atom) *regoform.Formula {
		switch a.Kind {
		case regoform.Principal, regoform.SourceIP:
			return regoform.Of(a)
		case regoform.DestinationPort:
			if n, err := strconv.ParseUint(a.Value, 10, 16); err == nil && uint32(n) == port.Port {
				return regoform.Always()
			}
		case regoform.Header, regoform.DestinationPrincipal, regoform.DestinationIP, regoform.SNI, regoform.Claim, regoform.Token, regoform.NoToken:
		}
		return regoform.False()
	}), ""
}

// regoID is a formula over the caller.
func regoID(f *regoform.Formula) *rbacv3.Principal {
	switch f.Op() {
	case regoform.OpTrue:
		return andIDs(nil)
	case regoform.OpFalse:
		return notID(andIDs(nil))
	case regoform.OpNot:
		return notID(regoID(f.Parts()[0]))
	case regoform.OpAtom:
		return regoIDAtom(f.Atom())
	case regoform.OpAnd, regoform.OpOr:
	}
	parts := make([]*rbacv3.Principal, len(f.Parts()))
	for i, part := range f.Parts() {
		parts[i] = regoID(part)
	}
	if f.Op() == regoform.OpAnd {
		return andIDs(parts)
	}
	return orIDs(parts)
}

func regoIDAtom(a regoform.Atom) *rbacv3.Principal {
	if a.Kind == regoform.SourceIP {
		block, err := cidr(a.Value)
		if err != nil {
			return notID(andIDs(nil))
		}
		return &rbacv3.Principal{Identifier: &rbacv3.Principal_DirectRemoteIp{DirectRemoteIp: block}}
	}
	var m *matcherv3.StringMatcher
	switch a.Test {
	case regoform.Prefix:
		m = prefix(a.Value)
	case regoform.Suffix:
		m = suffix(a.Value)
	case regoform.Contains:
		m = &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Contains{Contains: a.Value}}
	case regoform.Regex:
		m = regex(a.Value)
	case regoform.Present:
		m = regex(`\C*`)
	case regoform.Equal, regoform.Within, regoform.Has, regoform.True, regoform.Untrue, regoform.Text, regoform.List:
		m = exact(a.Value)
	}
	m.IgnoreCase = a.Fold
	return peer(m)
}

package meshdir

import (
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	security "istio.io/api/security/v1beta1"

	"github.com/writ-mesh/writ/pilot/model"
)

// deniedOnTCP: what connections do not have is left out of a DENY rule, so a rule
// of nothing else denies every connection.
func (c *checker) deniedOnTCP(p *security.AuthorizationPolicy) {
	if p.Action != security.AuthorizationPolicy_DENY {
		return
	}
	for i, rule := range p.Rules {
		from, to := slices.ContainsFunc(rule.GetFrom(), fromOfTCP), slices.ContainsFunc(rule.GetTo(), toOfTCP)
		switch at := index("spec.rules", i); {
		case len(rule.GetFrom())+len(rule.GetTo()) == 0 || to:
		case !from:
			c.warnf(at, "on TCP ports a DENY rule of HTTP conditions alone denies everything: give to.operation.ports")
		case len(rule.GetTo()) > 0:
			c.warnf(at, "on TCP ports the HTTP conditions of a DENY rule are left out, so it denies every connection of these callers: give to.operation.ports")
		}
	}
}

func fromOfTCP(from *security.Rule_From) bool {
	return hasAddresses(from.GetSource()) || slices.ContainsFunc(sourceStatements("", from.GetSource()), statement.ofPeer)
}

func toOfTCP(to *security.Rule_To) bool {
	return len(to.GetOperation().GetPorts())+len(to.GetOperation().GetNotPorts()) > 0
}

// requestsOnTCP: a RegoPolicy holds for TCP ports too, where what it says about requests
// is undefined, which usually refuses.
func (a *assembler) requestsOnTCP(c *checker) {
	i := slices.IndexFunc(a.mesh.RegoPolicies, func(p *model.RegoPolicy) bool { return p.Ref == c.object.meta.Ref })
	if i < 0 || a.mesh.RegoPolicies[i].Form == nil || a.mesh.RegoPolicies[i].Form.Ports {
		return
	}
	p := a.mesh.RegoPolicies[i]
	at := slices.IndexFunc(p.Form.Requests, func(path string) bool {
		return slices.ContainsFunc([]string{"input.attributes.request", "input.parsed_", "input.truncated_body", "input.jwt"}, func(of string) bool { return strings.HasPrefix(path, of) })
	})
	if at < 0 {
		return // it may be about connections as well
	}
	field := "spec.module"
	if c.object.spec.(*regoSpec).ModuleFile != "" {
		field = "spec.moduleFile"
	}
	for _, w := range a.selected(p.Namespace, p.Selector) {
		port := slices.IndexFunc(w.Ports, func(p model.WorkloadPort) bool { return !p.Protocol.IsHTTP() })
		if w.Type == model.GatewayProxy || port < 0 {
			continue
		}
		c.warnf(field, "it reads %s, which connections do not have, and is asked about those to port %d of %s too, which is TCP: allow that port, as in input.attributes.destination.address.socketAddress.portValue == %d, or select other workloads",
			p.Form.Requests[at], w.Ports[port].Port, w.Name, w.Ports[port].Port)
		return
	}
}

// servesTCP says that a workload has a port that is not HTTP's. With redirection
// it also has those that nobody has named.
func (a *assembler) servesTCP(w workload) bool {
	if w.Type != model.GatewayProxy {
		return w.Interception == model.Redirect || slices.ContainsFunc(w.Ports, func(p model.WorkloadPort) bool { return !p.Protocol.IsHTTP() })
	}
	return slices.ContainsFunc(a.gatewayServers(w.Proxy), func(s *networking.Server) bool {
		protocol, _ := protocolOf(s.GetPort().GetProtocol())
		terminated := protocol == model.HTTPS && s.GetTls().GetMode() != networking.ServerTLSSettings_PASSTHROUGH
		return !protocol.IsHTTP() && !terminated
	})
}

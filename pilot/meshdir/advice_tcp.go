package meshdir

import (
	"slices"

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
		if len(rule.GetFrom())+len(rule.GetTo()) > 0 && !slices.ContainsFunc(rule.GetFrom(), fromOfTCP) && !slices.ContainsFunc(rule.GetTo(), toOfTCP) {
			c.warnf(index("spec.rules", i), "on TCP ports a DENY rule of HTTP conditions alone denies everything: give to.operation.ports")
		}
	}
}

func fromOfTCP(from *security.Rule_From) bool {
	return hasAddresses(from.GetSource()) || slices.ContainsFunc(sourceStatements("", from.GetSource()), statement.ofPeer)
}

func toOfTCP(to *security.Rule_To) bool {
	return len(to.GetOperation().GetPorts())+len(to.GetOperation().GetNotPorts()) > 0
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

package translate

import (
	networking "istio.io/api/networking/v1alpha3"

	"github.com/writ-mesh/writ/pilot/model"
)

// Sends says how the Envoy of from speaks to that of to, which is behind a port of a
// service: in plain text (DISABLE), by mutual TLS of the mesh, or by TLS that a
// DestinationRule describes. by is the rule that says so, empty if none does. Subsets are
// left out.
func (t *Translator) Sends(from *model.Proxy, svc *model.Service, to *model.Proxy, port uint32) (mode networking.ClientTLSSettings_TLSmode, by model.Ref) {
	s := &scope{t: t, namespace: from.Namespace}
	if rule := s.findRule(svc, from.Labels); rule != nil {
		if tls := rule.trafficPolicy(port, "").GetTls(); tls != nil {
			return tls.GetMode(), rule.sources[0]
		}
	}
	for _, e := range svc.Endpoints {
		if e.Proxy == to && t.meshPeer(svc, e, port) {
			return networking.ClientTLSSettings_ISTIO_MUTUAL, model.Ref{}
		}
	}
	return networking.ClientTLSSettings_DISABLE, model.Ref{}
}

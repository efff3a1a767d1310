package translate

import (
	networking "istio.io/api/networking/v1alpha3"

	"github.com/writ-mesh/writ/pilot/model"
)

// served is a port of a service that leads to a port of a workload.
type served struct {
	service *model.Service
	port    uint32 // the service's
	target  uint32 // the workload's
}

// addServed notes which services lead to which workloads, if some DestinationRule says
// what counts at the server too.
func (ix *index) addServed(m *model.Mesh) {
	limits := false
	for _, dr := range m.DestinationRules {
		limits = limits || limitsServers(dr.Spec.GetTrafficPolicy())
	}
	if !limits {
		return
	}
	ix.served = map[*model.Proxy][]served{}
	for _, svc := range m.Services {
		for _, e := range svc.Endpoints {
			if e.Proxy == nil || e.Proxy.Type != model.SidecarProxy || svc.External || !svc.Serves(e.Proxy) {
				continue
			}
			for _, p := range svc.Ports {
				if to, ok := e.Ports[p.Port]; ok {
					ix.served[e.Proxy] = append(ix.served[e.Proxy], served{svc, p.Port, to})
				}
			}
		}
	}
}

func limitsServers(p *networking.TrafficPolicy) bool {
	if p.GetConnectionPool() != nil || p.GetRetryBudget() != nil {
		return true
	}
	for _, port := range p.GetPortLevelSettings() {
		if port.GetConnectionPool() != nil {
			return true
		}
	}
	return false
}

// servedBy is the service by which callers know a port of a workload: of several the
// oldest, then the first by its name, as in Istio. Services are sorted by name.
func (ix *index) servedBy(p *model.Proxy, port uint32) (best served, ok bool) {
	for _, s := range ix.served[p] {
		if s.target == port && (!ok || s.service.Created.Before(best.service.Created)) {
			best, ok = s, true
		}
	}
	return best, ok
}

// inboundPolicy is what limits connections and requests to the program behind a port
// of a workload, as in Istio: the Sidecar's connectionPool, else that of the
// DestinationRule of the service, else the mesh's; and the rule's retry budget. The rule
// is found as a client in the workload's namespace finds it, but for rules that select
// clients, and its subsets do not count. The other settings of a rule are the client's
// alone; so is useClientProtocol, for sidecars speak HTTP/2 with each other whatever the
// client speaks.
// The references are to what gave any of it.
func (s *scope) inboundPolicy(p *model.Proxy, port uint32) (*networking.TrafficPolicy, []model.Ref) {
	policy := &networking.TrafficPolicy{}
	var from []model.Ref
	if own := inboundPool(s.sidecar, port); own != nil {
		policy.ConnectionPool = own
		from = append(from, s.sidecar.Ref)
	}
	if of, ok := s.t.index.servedBy(p, port); ok {
		number := of.port
		if s.sidecar != nil && len(s.sidecar.Spec.GetIngress()) > 0 {
			number = port // the listener's stands for the service's
		}
		rule := s.serverRule(of.service)
		all := rule.trafficPolicy(number, "")
		policy.RetryBudget = all.GetRetryBudget()
		if policy.ConnectionPool == nil {
			policy.ConnectionPool = all.GetConnectionPool()
		}
		if rule != nil && (policy.RetryBudget != nil || len(from) == 0 && policy.ConnectionPool != nil) {
			from = append(from, rule.sources...)
		}
	}
	if policy.ConnectionPool == nil {
		policy.ConnectionPool = s.t.mesh.Config.GetDefaultTrafficPolicy().GetConnectionPool()
	}
	return policy, from
}

package translate

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/writ-mesh/writ/pilot/model"
)

// destinationRule is a DestinationRule with its host completed. Several of one
// namespace for the same host count as one: the oldest gives the policy and all
// of them give subsets.
type destinationRule struct {
	host      string
	namespace string
	exportTo  []string
	selector  map[string]string
	policy    *networking.TrafficPolicy
	subsets   []*networking.Subset
	sources   []model.Ref
}

func (ix *index) addDestinationRules(m *model.Mesh) {
	for _, obj := range m.DestinationRules {
		dr := &destinationRule{
			host:      model.ResolveHost(obj.Spec.GetHost(), obj.Namespace, m.DomainSuffix),
			namespace: obj.Namespace,
			exportTo:  exportTo(obj.Spec.GetExportTo(), m.Config.GetDefaultDestinationRuleExportTo()),
			selector:  obj.Spec.GetWorkloadSelector().GetMatchLabels(),
			policy:    obj.Spec.GetTrafficPolicy(),
			subsets:   slices.Clone(obj.Spec.GetSubsets()),
			sources:   []model.Ref{obj.Ref},
		}
		rules := ix.destinationRules[obj.Namespace]
		if rules == nil {
			rules = &namespaceRules{exact: map[string][]*destinationRule{}}
			ix.destinationRules[obj.Namespace] = rules
		}
		rules.add(dr)
	}
	for _, rules := range ix.destinationRules {
		slices.SortStableFunc(rules.wildcards, func(a, b *destinationRule) int { return cmp.Compare(len(b.host), len(a.host)) })
	}
}

// namespaceRules are the rules of one namespace.
type namespaceRules struct {
	exact map[string][]*destinationRule // by host, oldest first
	// wildcards are sorted by the length of their host, longest first, then by age.
	wildcards []*destinationRule
}

func (r *namespaceRules) add(dr *destinationRule) {
	list := r.wildcards
	wildcard := strings.HasPrefix(dr.host, "*")
	if !wildcard {
		list = r.exact[dr.host]
	}
	for _, older := range list {
		if older.host == dr.host && slices.Equal(older.exportTo, dr.exportTo) && maps.Equal(older.selector, dr.selector) {
			older.merge(dr)
			return
		}
	}
	if wildcard {
		r.wildcards = append(r.wildcards, dr)
	} else {
		r.exact[dr.host] = append(r.exact[dr.host], dr)
	}
}

func (dr *destinationRule) merge(younger *destinationRule) {
	for _, s := range younger.subsets {
		if dr.subset(s.GetName()) == nil {
			dr.subsets = append(dr.subsets, s)
		}
	}
	if dr.policy == nil {
		dr.policy = younger.policy
	}
	dr.sources = append(dr.sources, younger.sources...)
}

func (dr *destinationRule) subset(name string) *networking.Subset {
	if dr == nil || name == "" {
		return nil
	}
	for _, s := range dr.subsets {
		if s.GetName() == name {
			return s
		}
	}
	return nil
}

// destinationRule finds the rule for a service as seen from the scope: first in
// the client's namespace, then in the service's, then in the root namespace;
// within a namespace the longest host, and a rule that selects the client
// before one for everybody. Nil if there is none.
func (s *scope) destinationRule(svc *model.Service) *destinationRule {
	dr, _ := s.rules.get(svc, func() (*destinationRule, error) { return s.findRule(svc, s.labels), nil })
	return dr
}

// serverRule is the rule of a service for the workloads behind it. As in Istio, what a
// rule selects are clients: rules that select do not count here.
func (s *scope) serverRule(svc *model.Service) *destinationRule {
	dr, _ := s.serverRules.get(svc, func() (*destinationRule, error) { return s.findRule(svc, nil), nil })
	return dr
}

func (s *scope) findRule(svc *model.Service, labels map[string]string) *destinationRule {
	seen := map[string]bool{}
	for _, ns := range []string{s.namespace, svc.Namespace, s.t.mesh.RootNamespace} {
		// The rules of the root namespace are the mesh's defaults and come last
		// also for clients that live there.
		if ns == s.t.mesh.RootNamespace && ns == s.namespace && ns != svc.Namespace && !seen[svc.Namespace] {
			if dr := s.ruleIn(svc.Namespace, svc.Hostname, labels); dr != nil {
				return dr
			}
			seen[svc.Namespace] = true
		}
		if seen[ns] {
			continue
		}
		seen[ns] = true
		if dr := s.ruleIn(ns, svc.Hostname, labels); dr != nil {
			return dr
		}
	}
	return nil
}

func (s *scope) ruleIn(namespace, host string, labels map[string]string) *destinationRule {
	rules := s.t.index.destinationRules[namespace]
	if rules == nil {
		return nil
	}
	var best *destinationRule
	for _, dr := range rules.exact[host] {
		best = s.prefer(best, dr, namespace, labels)
	}
	if best != nil {
		return best
	}
	for _, dr := range rules.wildcards {
		if best != nil && dr.host != best.host {
			break
		}
		if model.HostMatches(dr.host, host) {
			best = s.prefer(best, dr, namespace, labels)
		}
	}
	return best
}

// prefer gives dr if it holds for a client of the scope with these labels and is closer
// than best: of rules for the same host one that selects the client comes before one
// for everybody, else the older one stays.
func (s *scope) prefer(best, dr *destinationRule, namespace string, labels map[string]string) *destinationRule {
	if !model.SelectorMatches(dr.selector, labels) {
		return best
	}
	// A rule with a selector never leaves its namespace.
	if namespace != s.namespace && (len(dr.selector) > 0 || !model.ExportedTo(dr.exportTo, dr.namespace, s.namespace)) {
		return best
	}
	if best == nil || len(dr.selector) > 0 && len(best.selector) == 0 {
		return dr
	}
	return best
}

// trafficPolicy is what holds for one port and subset: the rule's own policy,
// overlaid by the subset's field by field; a port's settings replace, whole,
// those of the level that they are written at.
func (dr *destinationRule) trafficPolicy(port uint32, subset string) *networking.TrafficPolicy {
	if dr == nil {
		return &networking.TrafficPolicy{}
	}
	out := overlay(&networking.TrafficPolicy{}, dr.policy, port)
	if s := dr.subset(subset); s != nil {
		out = overlay(out, s.GetTrafficPolicy(), port)
	}
	return out
}

func overlay(base, over *networking.TrafficPolicy, port uint32) *networking.TrafficPolicy {
	if over == nil {
		return base
	}
	out := &networking.TrafficPolicy{
		ConnectionPool:   cmp.Or(over.ConnectionPool, base.ConnectionPool),
		LoadBalancer:     cmp.Or(over.LoadBalancer, base.LoadBalancer),
		OutlierDetection: cmp.Or(over.OutlierDetection, base.OutlierDetection),
		Tls:              cmp.Or(over.Tls, base.Tls),
		Tunnel:           cmp.Or(over.Tunnel, base.Tunnel),
		ProxyProtocol:    cmp.Or(over.ProxyProtocol, base.ProxyProtocol),
		RetryBudget:      cmp.Or(over.RetryBudget, base.RetryBudget),
	}
	for _, p := range over.GetPortLevelSettings() {
		if p.GetPort().GetNumber() == port {
			out.ConnectionPool, out.LoadBalancer = p.GetConnectionPool(), p.GetLoadBalancer()
			out.OutlierDetection, out.Tls = p.GetOutlierDetection(), p.GetTls()
			break
		}
	}
	return out
}

package translate

import (
	"cmp"
	"slices"
	"strings"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/writ-mesh/writ/pilot/model"
)

// localitySetting is what holds for the cluster; nil if it is switched off.
func (t *Translator) localitySetting(policy *networking.TrafficPolicy) *networking.LocalityLoadBalancerSetting {
	s := policy.GetLoadBalancer().GetLocalityLbSetting()
	if s == nil {
		s = t.mesh.Config.GetLocalityLbSetting()
	}
	if s == nil || s.GetEnabled() != nil && !s.GetEnabled().GetValue() {
		return nil
	}
	return s
}

// applyLocality sets weights between localities, or priorities for failover.
// As Istio documents it, failover needs outlier detection, because without it
// nothing would notice that a locality fails.
func (b *clusterBuilder) applyLocality(out *endpointv3.ClusterLoadAssignment) {
	setting := b.t.localitySetting(b.policy)
	if setting == nil {
		return
	}
	if len(setting.GetDistribute()) > 0 {
		b.distribute(out, setting)
		return
	}
	if b.policy.GetOutlierDetection() == nil {
		return
	}
	used := map[uint32]bool{}
	for _, g := range out.Endpoints {
		used[g.Priority] = true
	}
	// Envoy wants priorities without gaps.
	order := make([]uint32, 0, len(used))
	for p := range used {
		order = append(order, p)
	}
	slices.Sort(order)
	for _, g := range out.Endpoints {
		rank, _ := slices.BinarySearch(order, g.Priority)
		g.Priority = uint32(rank)
	}
	slices.SortStableFunc(out.Endpoints, func(x, y *endpointv3.LocalityLbEndpoints) int { return cmp.Compare(x.Priority, y.Priority) })
}

// priority is how far an endpoint is from the client, 0 for nearest; 0 for all
// where failover does not apply.
func (b *clusterBuilder) priority(e *model.Endpoint) uint32 {
	setting := b.t.localitySetting(b.policy)
	if setting == nil || len(setting.GetDistribute()) > 0 || b.policy.GetOutlierDetection() == nil {
		return 0
	}
	if order := setting.GetFailoverPriority(); len(order) > 0 {
		return labelDistance(order, b.key.labels, e.Labels)
	}
	if b.key.locality == "" {
		return 0
	}
	return localityDistance(b.key.locality, e.Locality, setting.GetFailover())
}

// labelDistance counts how many labels, from the first on, client and endpoint
// do not share. An entry key=value asks for that value of the endpoint.
func labelDistance(order []string, client *scope, endpoint map[string]string) uint32 {
	for i, entry := range order {
		key, want, fixed := strings.Cut(entry, "=")
		if !fixed {
			want = client.labels[key]
		}
		if got, ok := endpoint[key]; !ok || got != want {
			return uint32(len(order) - i)
		}
	}
	return 0
}

// localityDistance: 0 same sub-zone, 1 same zone, 2 same region, then the
// regions that failover names, then all others.
func localityDistance(client, endpoint string, failover []*networking.LocalityLoadBalancerSetting_Failover) uint32 {
	c, e := locality(client), locality(endpoint)
	switch {
	case c.GetRegion() != e.GetRegion():
		for _, f := range failover {
			if f.GetFrom() == c.GetRegion() && f.GetTo() == e.GetRegion() {
				return 3
			}
		}
		return 4
	case c.GetZone() != e.GetZone():
		return 2
	case c.GetSubZone() != e.GetSubZone():
		return 1
	}
	return 0
}

// distribute gives each locality the share that the rule for the client's
// locality says; localities that it does not name get nothing.
func (b *clusterBuilder) distribute(out *endpointv3.ClusterLoadAssignment, setting *networking.LocalityLoadBalancerSetting) {
	for _, d := range setting.GetDistribute() {
		if b.key.locality == "" || !localityMatches(d.GetFrom(), b.key.locality) {
			continue
		}
		weights := make([]uint32, len(out.Endpoints))
		for _, to := range sortedKeys(d.GetTo()) {
			total := uint32(0)
			for i, g := range out.Endpoints {
				if weights[i] == 0 && localityMatches(to, localityText(g)) {
					total += g.LoadBalancingWeight.GetValue()
				}
			}
			for i, g := range out.Endpoints {
				if weights[i] == 0 && total > 0 && localityMatches(to, localityText(g)) {
					// A hundred times the percentage keeps shares of small parts apart.
					weights[i] = max(1, d.GetTo()[to]*100*g.LoadBalancingWeight.GetValue()/total)
				}
			}
		}
		var kept []*endpointv3.LocalityLbEndpoints
		for i, g := range out.Endpoints {
			if weights[i] > 0 {
				g.LoadBalancingWeight = u32(weights[i])
				kept = append(kept, g)
			}
		}
		out.Endpoints = kept
		return
	}
}

func localityText(g *endpointv3.LocalityLbEndpoints) string {
	l := g.GetLocality()
	return strings.Join([]string{l.GetRegion(), l.GetZone(), l.GetSubZone()}, "/")
}

// localityMatches compares part by part; "*", or nothing more, matches the rest.
func localityMatches(pattern, text string) bool {
	parts := append(strings.Split(text, "/"), "", "")
	for i, p := range strings.Split(pattern, "/") {
		if p == "*" {
			return true
		}
		if i >= len(parts) || p != parts[i] {
			return false
		}
	}
	return true
}

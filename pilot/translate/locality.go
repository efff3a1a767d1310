package translate

import (
	"cmp"
	"slices"
	"strings"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/writ-mesh/writ/pilot/model"
)

// localitySetting is what holds for the clusters of a service; nil if it is switched off.
// What the service itself prefers comes after the rule's and before the mesh's, and needs
// no outlier detection (always).
func (t *Translator) localitySetting(policy *networking.TrafficPolicy, svc *model.Service) (setting *networking.LocalityLoadBalancerSetting, always bool) {
	s := policy.GetLoadBalancer().GetLocalityLbSetting()
	if s == nil && svc.Near != nil {
		return &networking.LocalityLoadBalancerSetting{FailoverPriority: svc.Near}, true
	}
	if s == nil {
		s = t.mesh.Config.GetLocalityLbSetting()
	}
	if s == nil || s.GetEnabled() != nil && !s.GetEnabled().GetValue() {
		return nil, false
	}
	return s, false
}

// failover is the setting that gives the cluster's endpoints priorities; nil if none does.
// As Istio documents it, that needs outlier detection, because without it nothing would
// notice that a locality fails.
func (b *clusterBuilder) failover() *networking.LocalityLoadBalancerSetting {
	setting, always := b.t.localitySetting(b.policy, b.key.svc)
	if len(setting.GetDistribute()) > 0 || b.policy.GetOutlierDetection() == nil && !always {
		return nil
	}
	return setting
}

// applyLocality sets weights between localities, or priorities for failover.
func (b *clusterBuilder) applyLocality(out *endpointv3.ClusterLoadAssignment) {
	if setting, _ := b.t.localitySetting(b.policy, b.key.svc); len(setting.GetDistribute()) > 0 {
		b.distribute(out, setting)
		return
	}
	if b.failover() == nil {
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
	setting := b.failover()
	if setting == nil {
		return 0
	}
	var byLabels uint32
	if order := setting.GetFailoverPriority(); len(order) > 0 {
		byLabels = labelDistance(order, b.key.labels, e)
		if len(setting.GetFailover()) == 0 {
			return byLabels
		}
	}
	if b.key.locality == "" {
		return byLabels
	}
	return byLabels*(farthest+1) + localityDistance(b.key.locality, e.Locality, setting.GetFailover())
}

// labelDistance counts how many labels, from the first on, client and endpoint
// do not share; neither of them having one is sharing it. An entry key=value asks for
// that value of the endpoint. Another network, where it comes first, is farther than
// all of the others.
func labelDistance(order []string, client *scope, e *model.Endpoint) uint32 {
	var network uint32
	for i, entry := range order {
		key, want, fixed := strings.Cut(entry, "=")
		if !fixed {
			want = placeLabel(key, client.labels, client.locality)
		}
		switch same := placeLabel(key, e.Labels, e.Locality) == want; {
		case same:
		case i == 0 && entry == model.NetworkLabel:
			network = uint32(len(order))
		default:
			return network + uint32(len(order)-i)
		}
	}
	return network
}

// placeLabel is a label; what has none of a place has that of its locality.
func placeLabel(key string, labels map[string]string, place string) string {
	if v, ok := labels[key]; ok {
		return v
	}
	switch l := locality(place); key {
	case model.RegionLabel:
		return l.GetRegion()
	case model.ZoneLabel:
		return l.GetZone()
	case model.SubzoneLabel:
		return l.GetSubZone()
	}
	return ""
}

// farthest is the largest locality distance.
const farthest = 4

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
		return farthest
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
		if !localityMatches(d.GetFrom(), b.key.locality) {
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

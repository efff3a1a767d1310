package translate

import (
	"fmt"
	"slices"
	"testing"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
)

// TestLocality: each line of want is locality, priority and weight of a group.
func TestLocality(t *testing.T) {
	t.Parallel()
	var all []*Snapshot
	for _, c := range []struct {
		name, rule string
		want       []string
	}{
		{"without outlier detection nothing fails over", `{}`, []string{"eu/west/a 0 1", "eu/west/b 0 1", "eu/east/a 0 1", "us/west/a 0 1", "asia/east/a 0 1"}},
		{
			"nearest first", `{outlierDetection: {consecutive5xxErrors: 1}}`,
			[]string{"eu/west/a 0 1", "eu/west/b 1 1", "eu/east/a 2 1", "us/west/a 3 1", "asia/east/a 3 1"},
		},
		{
			"a region to fail over to", `{outlierDetection: {consecutive5xxErrors: 1}, loadBalancer: {localityLbSetting: {failover: [{from: eu, to: asia}]}}}`,
			[]string{"eu/west/a 0 1", "eu/west/b 1 1", "eu/east/a 2 1", "asia/east/a 3 1", "us/west/a 4 1"},
		},
		{
			"switched off", `{outlierDetection: {consecutive5xxErrors: 1}, loadBalancer: {localityLbSetting: {enabled: false}}}`,
			[]string{"eu/west/a 0 1", "eu/west/b 0 1", "eu/east/a 0 1", "us/west/a 0 1", "asia/east/a 0 1"},
		},
		{
			"shares", `{loadBalancer: {localityLbSetting: {distribute: [{from: us/*, to: {us/*: 100}}, {from: eu/west/*, to: {"eu/west/*": 80, "us/west/a": 20}}]}}}`,
			[]string{"eu/west/a 0 4000", "eu/west/b 0 4000", "us/west/a 0 2000"},
		},
		{
			"by labels", `{outlierDetection: {consecutive5xxErrors: 1}, loadBalancer: {localityLbSetting: {failoverPriority: [app, rack]}}}`,
			[]string{"eu/west/a 0 1", "eu/west/b 1 1", "eu/east/a 1 1", "us/west/a 1 1", "asia/east/a 1 1"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newMesh(t)
			client := b.workload("web-1", "default", "web", map[string]string{"app": "web", "rack": "1"}, "http:9080")
			svc := b.service("web", "default", client)
			svc.Endpoints[0].Locality = "eu/west/a"
			for i, l := range []string{"eu/west/b", "eu/east/a", "us/west/a", "asia/east/a"} {
				e := *svc.Endpoints[0]
				e.Address, e.Locality, e.Labels, e.Proxy = fmt.Sprintf("192.0.2.%d", i), l, map[string]string{"app": "web"}, nil
				svc.Endpoints = append(svc.Endpoints, &e)
			}
			b.apply("kind: DestinationRule\nmetadata: {name: web}\nspec:\n  host: web\n  trafficPolicy: " + c.rule)
			s := b.snapshot(client)
			var got []string
			for _, g := range s.Endpoints[0].Message.(*endpointv3.ClusterLoadAssignment).GetEndpoints() {
				got = append(got, fmt.Sprintf("%s %d %d", localityText(g), g.GetPriority(), g.GetLoadBalancingWeight().GetValue()))
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
			all = append(all, s)
		})
	}
	validate(t, all...)
}

package translate

import (
	"fmt"
	"slices"
	"testing"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"

	"github.com/writ-mesh/writ/pilot/model"
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
		{
			// As in Istio's reference: nobody says anything of networks, so all are in one.
			"by labels of places", `{outlierDetection: {consecutive5xxErrors: 1}, loadBalancer: {localityLbSetting: {failoverPriority: [topology.istio.io/network, topology.kubernetes.io/region, topology.kubernetes.io/zone, topology.istio.io/subzone]}}}`,
			[]string{"eu/west/a 0 1", "eu/west/b 1 1", "eu/east/a 2 1", "us/west/a 3 1", "asia/east/a 3 1"},
		},
		{
			"by the value of a label", `{outlierDetection: {consecutive5xxErrors: 1}, loadBalancer: {localityLbSetting: {failoverPriority: [app=web, topology.kubernetes.io/region=us]}}}`,
			[]string{"us/west/a 0 1", "eu/west/a 1 1", "eu/west/b 1 1", "eu/east/a 1 1", "asia/east/a 1 1"},
		},
		{
			"by labels, then by place", `{outlierDetection: {consecutive5xxErrors: 1}, loadBalancer: {localityLbSetting: {failoverPriority: [app], failover: [{from: eu, to: asia}]}}}`,
			[]string{"eu/west/a 0 1", "eu/west/b 1 1", "eu/east/a 2 1", "asia/east/a 3 1", "us/west/a 4 1"},
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

// TestLocalityOfClients: a client without ports, which is behind no service, is where its
// labels say. One that says nothing is anywhere.
func TestLocalityOfClients(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		labels map[string]string
		rule   string
		want   []string
	}{
		{map[string]string{"topology.kubernetes.io/region": "us", "topology.kubernetes.io/zone": "west"}, `{outlierDetection: {consecutive5xxErrors: 1}}`, []string{"us/west/ 0 1", "eu/west/ 1 1"}},
		{map[string]string{"istio-locality": "eu.west"}, `{outlierDetection: {consecutive5xxErrors: 1}}`, []string{"eu/west/ 0 1", "us/west/ 1 1"}},
		{nil, `{outlierDetection: {consecutive5xxErrors: 1}}`, []string{"eu/west/ 0 1", "us/west/ 0 1"}},
		{nil, `{loadBalancer: {localityLbSetting: {distribute: [{from: "*", to: {"us/*": 100}}]}}}`, []string{"us/west/ 0 10000"}},
		{
			map[string]string{"istio-locality": "eu.west", "rack": "1"},
			`{portLevelSettings: [{port: {number: 80}, outlierDetection: {consecutive5xxErrors: 1}, loadBalancer: {localityLbSetting: {failoverPriority: [rack]}}}]}`,
			[]string{"us/west/ 0 1", "eu/west/ 1 1"},
		},
	} {
		b := newMesh(t)
		client := b.workload("web-1", "default", "web", c.labels)
		b.apply(`
kind: ServiceEntry
metadata: {name: far}
spec:
  hosts: [far.example]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
  endpoints: [{address: 192.0.2.1, locality: eu/west, weight: 1}, {address: 192.0.2.2, locality: us/west, weight: 1, labels: {rack: "1"}}]
---
kind: DestinationRule
metadata: {name: far}
spec: {host: far.example, trafficPolicy: ` + c.rule + `}
`)
		var got []string
		for _, g := range b.snapshot(client).Endpoints[0].Message.(*endpointv3.ClusterLoadAssignment).GetEndpoints() {
			got = append(got, fmt.Sprintf("%s %d %d", localityText(g), g.GetPriority(), g.GetLoadBalancingWeight().GetValue()))
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%v, %s: got %v, want %v", c.labels, c.rule, got, c.want)
		}
	}
}

// TestServicesPreferNearEndpoints: the preference of a Service needs no rule and no outlier
// detection; a rule's setting goes before it.
func TestServicesPreferNearEndpoints(t *testing.T) {
	t.Parallel()
	for rule, want := range map[string][]string{
		"": {"eu/west/a 0 1", "eu/west/b 0 1", "eu/east/a 1 1", "us/west/a 2 1"},
		"{loadBalancer: {localityLbSetting: {enabled: false}}}": {"eu/west/a 0 1", "eu/west/b 0 1", "eu/east/a 0 1", "us/west/a 0 1"},
	} {
		b := newMesh(t)
		client := b.workload("web-1", "default", "web", map[string]string{"app": "web"}, "http:9080")
		svc := b.service("web", "default", client)
		svc.Near = []string{model.NetworkLabel, model.RegionLabel, model.ZoneLabel}
		svc.Endpoints[0].Locality = "eu/west/a"
		for i, l := range []string{"eu/west/b", "eu/east/a", "us/west/a"} {
			e := *svc.Endpoints[0]
			e.Address, e.Locality, e.Proxy = fmt.Sprintf("192.0.2.%d", i), l, nil
			svc.Endpoints = append(svc.Endpoints, &e)
		}
		if rule != "" {
			b.apply("kind: DestinationRule\nmetadata: {name: web}\nspec: {host: web, trafficPolicy: " + rule + "}")
		}
		var got []string
		for _, g := range b.snapshot(client).Endpoints[0].Message.(*endpointv3.ClusterLoadAssignment).GetEndpoints() {
			got = append(got, fmt.Sprintf("%s %d %d", localityText(g), g.GetPriority(), g.GetLoadBalancingWeight().GetValue()))
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", rule, got, want)
		}
	}
}

package xds

import (
	"slices"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// needs names the resources that Envoy subscribes to because of m and over the
// same stream: for a cluster its endpoints, for a listener its routes and those of
// its filters that are not in it. filtered are the routes behind each such filter.
func needs(m proto.Message) (names []string, filtered map[string][]string) {
	switch m := m.(type) {
	case *clusterv3.Cluster:
		return clusterNeeds(m), nil
	case *listenerv3.Listener:
		return listenerNeeds(m)
	}
	return nil, nil
}

func clusterNeeds(c *clusterv3.Cluster) []string {
	if c.GetType() != clusterv3.Cluster_EDS || !overADS(c.GetEdsClusterConfig().GetEdsConfig()) {
		return nil
	}
	if name := c.GetEdsClusterConfig().GetServiceName(); name != "" {
		return []string{name}
	}
	return []string{c.GetName()}
}

func listenerNeeds(l *listenerv3.Listener) (names []string, filtered map[string][]string) {
	add := func(config *anypb.Any) {
		var hcm hcmv3.HttpConnectionManager
		if !config.MessageIs(&hcm) || config.UnmarshalTo(&hcm) != nil {
			return
		}
		routes := ""
		if rds := hcm.GetRds(); rds != nil && overADS(rds.GetConfigSource()) {
			routes = rds.GetRouteConfigName()
			names = append(names, routes)
		}
		for _, f := range hcm.GetHttpFilters() {
			if !overADS(f.GetConfigDiscovery().GetConfigSource()) {
				continue
			}
			names = append(names, f.GetName())
			if routes != "" {
				if filtered == nil {
					filtered = map[string][]string{}
				}
				filtered[f.GetName()] = append(filtered[f.GetName()], routes)
			}
		}
	}
	for _, chain := range slices.Concat(l.GetFilterChains(), []*listenerv3.FilterChain{l.GetDefaultFilterChain()}) {
		for _, f := range chain.GetFilters() {
			add(f.GetTypedConfig())
		}
	}
	add(l.GetApiListener().GetApiListener())
	return names, filtered
}

func overADS(c *corev3.ConfigSource) bool { return c.GetAds() != nil || c.GetSelf() != nil }

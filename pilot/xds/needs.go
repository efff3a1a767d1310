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
// its filters that are not in it.
func needs(m proto.Message) []string {
	switch m := m.(type) {
	case *clusterv3.Cluster:
		return clusterNeeds(m)
	case *listenerv3.Listener:
		return listenerNeeds(m)
	}
	return nil
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

func listenerNeeds(l *listenerv3.Listener) []string {
	var names []string
	add := func(config *anypb.Any) {
		var hcm hcmv3.HttpConnectionManager
		if !config.MessageIs(&hcm) || config.UnmarshalTo(&hcm) != nil {
			return
		}
		if rds := hcm.GetRds(); rds != nil && overADS(rds.GetConfigSource()) {
			names = append(names, rds.GetRouteConfigName())
		}
		for _, f := range hcm.GetHttpFilters() {
			if overADS(f.GetConfigDiscovery().GetConfigSource()) {
				names = append(names, f.GetName())
			}
		}
	}
	for _, chain := range slices.Concat(l.GetFilterChains(), []*listenerv3.FilterChain{l.GetDefaultFilterChain()}) {
		for _, f := range chain.GetFilters() {
			add(f.GetTypedConfig())
		}
	}
	add(l.GetApiListener().GetApiListener())
	return names
}

func overADS(c *corev3.ConfigSource) bool { return c.GetAds() != nil || c.GetSelf() != nil }

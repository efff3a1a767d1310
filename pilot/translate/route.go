package translate

import (
	"slices"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/anypb"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/writ-mesh/writ/pilot/envoy"
	"github.com/writ-mesh/writ/pilot/model"
)

// routeBuilder turns rules into routes for one virtual host: of a scope, on one
// port, for the mesh or a gateway.
type routeBuilder struct {
	s       *scope
	gateway string // model.MeshGateway, or namespace/name
	port    uint32 // the port that callers use
	bound   uint32 // the port that is really bound, where it differs; 0 for the same
	tls     bool   // whether callers come by TLS
	out     *collector
	src     *sources
}

// virtualService gives the routes of vs in order. complete says that the last
// one takes every request.
func (b *routeBuilder) virtualService(vs *virtualService) (routes []*routev3.Route, complete bool, err error) {
	b.src.add(vs.sources...)
	for _, rule := range vs.http {
		matches := rule.GetMatch()
		if len(matches) == 0 {
			matches = []*networking.HTTPMatchRequest{nil}
		}
		for _, match := range matches {
			if !b.applies(match, vs.Namespace) {
				continue
			}
			r, err := b.route(vs, rule, match)
			if err != nil {
				return nil, false, err
			}
			if port := b.defaultPort(rule.GetRedirect()); port != 0 {
				routes = append(routes, leavingPort(r, port))
			}
			routes = append(routes, r)
			if matchesAll(r.GetMatch()) {
				return routes, true, nil
			}
		}
	}
	return routes, false, nil
}

// applies decides what is known before any request: port, gateway and client.
// As in Istio, gateways in a match make its source labels and namespace void.
func (b *routeBuilder) applies(match *networking.HTTPMatchRequest, namespace string) bool {
	if match == nil {
		return true
	}
	if match.GetPort() != 0 && match.GetPort() != b.port {
		return false
	}
	if gateways := match.GetGateways(); len(gateways) > 0 {
		return slices.ContainsFunc(gateways, func(g string) bool { return model.ResolveGateway(g, namespace) == b.gateway })
	}
	return b.s.isClient(match.GetSourceLabels(), match.GetSourceNamespace())
}

// isClient says whether the clients of the scope have the labels and namespace
// that a match asks for.
func (s *scope) isClient(labels map[string]string, namespace string) bool {
	return model.SelectorMatches(labels, s.labels) && (namespace == "" || namespace == s.namespace)
}

func (b *routeBuilder) route(vs *virtualService, rule *httpRoute, match *networking.HTTPMatchRequest) (*routev3.Route, error) {
	out := &routev3.Route{Name: rule.GetName(), Match: routeMatch(match), StatPrefix: match.GetStatPrefix()}
	if match.GetName() != "" {
		out.Name += "." + match.GetName()
	}
	if out.Name == "" {
		out.Name = vs.Namespace + "/" + vs.Name
	}
	authority := applyHeaders(out, rule.GetHeaders())
	switch {
	case rule.GetRedirect() != nil:
		out.Action = b.redirect(rule.GetRedirect())
	case rule.GetDirectResponse() != nil:
		out.Action = directResponse(rule.GetDirectResponse())
	default:
		action, err := b.action(out, rule, authority)
		if err != nil {
			return nil, err
		}
		out.Action = &routev3.Route_Route{Route: action}
	}
	perFilter := map[string]*anypb.Any{}
	if f := fault(rule.GetFault()); f != nil {
		perFilter[faultFilter] = envoy.Any(f)
	}
	if c := cors(rule.GetCorsPolicy()); c != nil {
		perFilter[corsFilter] = envoy.Any(c)
	}
	if len(perFilter) > 0 {
		out.TypedPerFilterConfig = perFilter
	}
	return out, nil
}

// action forwards to the destinations of the rule.
func (b *routeBuilder) action(out *routev3.Route, rule *httpRoute, authority string) (*routev3.RouteAction, error) {
	a := &routev3.RouteAction{AppendXForwardedHost: b.s.t.proxyHeaders().GetXForwardedHost().GetEnabled().GetValue()}
	setTimeout(a, rule.GetTimeout())
	if rw := rule.GetRewrite(); rw != nil {
		rewritePath(a, rw)
		if rw.GetAuthority() != "" {
			authority = rw.GetAuthority()
		}
	}
	if authority != "" {
		a.HostRewriteSpecifier = &routev3.RouteAction_HostRewriteLiteral{HostRewriteLiteral: authority}
	}
	if err := b.mirrors(a, rule); err != nil {
		return nil, err
	}
	hashed, err := b.destinations(out, a, rule)
	if err != nil {
		return nil, err
	}
	retries := rule.GetRetries()
	if retries == nil {
		retries = b.s.t.mesh.Config.GetDefaultHttpRetryPolicy()
	}
	a.RetryPolicy = retryPolicy(retries, hashed)
	return a, nil
}

// destinations sets the cluster or the weighted clusters. hashed says that a
// destination is chosen by a hash.
func (b *routeBuilder) destinations(out *routev3.Route, a *routev3.RouteAction, rule *httpRoute) (hashed bool, err error) {
	live := rule.GetRoute()
	if len(live) > 1 {
		live = slices.DeleteFunc(slices.Clone(live), func(d *networking.HTTPRouteDestination) bool { return d.GetWeight() == 0 })
	}
	if len(live) == 0 {
		// All weights are zero: nowhere to go, and certainly not everywhere.
		a.ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: blackHoleCluster}
		return false, nil
	}
	var weighted []*routev3.WeightedCluster_ClusterWeight
	for _, d := range live {
		cluster, dst, err := b.destination(d.GetDestination(), rule.namespace)
		if err != nil {
			return false, err
		}
		if hash := b.s.consistentHash(dst, d.GetDestination().GetSubset()); hash != nil {
			hashed = true
			a.HashPolicy = append(a.HashPolicy, hashPolicy(hash)...)
		}
		if len(live) == 1 {
			a.ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: cluster}
			if authority := applyHeaders(out, d.GetHeaders()); authority != "" && a.HostRewriteSpecifier == nil {
				a.HostRewriteSpecifier = &routev3.RouteAction_HostRewriteLiteral{HostRewriteLiteral: authority}
			}
			return hashed, nil
		}
		weighted = append(weighted, weightedCluster(cluster, d))
	}
	a.ClusterSpecifier = &routev3.RouteAction_WeightedClusters{WeightedClusters: &routev3.WeightedCluster{Clusters: weighted}}
	return hashed, nil
}

func weightedCluster(cluster string, d *networking.HTTPRouteDestination) *routev3.WeightedCluster_ClusterWeight {
	ops := headerOperations(d.GetHeaders())
	w := &routev3.WeightedCluster_ClusterWeight{
		Name: cluster, Weight: u32(uint32(d.GetWeight())),
		RequestHeadersToAdd: ops.requestAdd, RequestHeadersToRemove: ops.requestRemove,
		ResponseHeadersToAdd: ops.responseAdd, ResponseHeadersToRemove: ops.responseRemove,
	}
	if ops.authority != "" {
		w.HostRewriteSpecifier = &routev3.WeightedCluster_ClusterWeight_HostRewriteLiteral{HostRewriteLiteral: ops.authority}
	}
	return w
}

// target is where a destination leads; svc is nil if nothing of that name is
// visible.
type target struct {
	svc  *model.Service
	port uint32
}

// destination resolves a destination and adds its cluster. What does not exist
// gives the name of a cluster that does not exist: 503, never another version.
func (b *routeBuilder) destination(d *networking.Destination, namespace string) (cluster string, dst target, err error) {
	host := model.ResolveHost(d.GetHost(), namespace, b.s.t.mesh.DomainSuffix)
	dst.port = d.GetPort().GetNumber()
	dst.svc = b.s.service(host, dst.port)
	if dst.port == 0 {
		dst.port = b.port
		if dst.svc != nil && len(dst.svc.Ports) == 1 {
			dst.port = dst.svc.Ports[0].Port
		}
	}
	if dst.svc == nil {
		return outboundName(dst.port, d.GetSubset(), host), dst, nil
	}
	if _, ok := servicePort(dst.svc, dst.port); !ok {
		return outboundName(dst.port, d.GetSubset(), host), target{}, nil
	}
	b.src.add(dst.svc.Ref)
	if dr := b.s.destinationRule(dst.svc); dr != nil {
		b.src.add(dr.sources...)
	}
	cluster, err = b.s.addCluster(b.out, dst.svc, dst.port, d.GetSubset())
	return cluster, dst, err
}

// defaultRoute goes to the service itself.
func (b *routeBuilder) defaultRoute(svc *model.Service) (*routev3.Route, error) {
	cluster, err := b.s.addCluster(b.out, svc, b.port, "")
	if err != nil {
		return nil, err
	}
	b.src.add(svc.Ref)
	if dr := b.s.destinationRule(svc); dr != nil {
		b.src.add(dr.sources...)
	}
	a := &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: cluster}}
	setTimeout(a, nil)
	hash := b.s.consistentHash(target{svc, b.port}, "")
	a.HashPolicy = hashPolicy(hash)
	a.RetryPolicy = retryPolicy(b.s.t.mesh.Config.GetDefaultHttpRetryPolicy(), hash != nil)
	return &routev3.Route{Name: "default", Match: routeMatch(nil), Action: &routev3.Route_Route{Route: a}}, nil
}

// consistentHash is the hash that a destination asks for, nil for none.
func (s *scope) consistentHash(dst target, subset string) *networking.LoadBalancerSettings_ConsistentHashLB {
	if dst.svc == nil {
		return nil
	}
	return s.destinationRule(dst.svc).trafficPolicy(dst.port, subset).GetLoadBalancer().GetConsistentHash()
}

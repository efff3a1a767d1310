package translate

import (
	"math"
	"strconv"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	matchv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/matcher/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
	meshv1 "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"
)

// defaultConnectTimeout is MeshConfig's default.
const defaultConnectTimeout = 10 * time.Second

// noPanic keeps traffic off unhealthy endpoints even when most of them are: with
// Envoy's default of 50 % an ejected or failing endpoint would get traffic again.
func noPanic() *typev3.Percent { return &typev3.Percent{Value: 0} }

// unlimited takes Envoy's small default circuit breakers away, as Istio does:
// only a DestinationRule limits.
func unlimited() *clusterv3.CircuitBreakers {
	return &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{thresholds()}}
}

func thresholds() *clusterv3.CircuitBreakers_Thresholds {
	return &clusterv3.CircuitBreakers_Thresholds{
		MaxConnections: u32(math.MaxUint32), MaxPendingRequests: u32(math.MaxUint32),
		MaxRequests: u32(math.MaxUint32), MaxRetries: u32(math.MaxUint32), TrackRemaining: true,
	}
}

// connectionPool applies the limits and timeouts of connections and requests.
func (b *clusterBuilder) connectionPool() {
	limits := thresholds()
	b.out.CircuitBreakers = &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{limits}}
	pool := b.policy.GetConnectionPool()
	set := func(into **wrapperspb.UInt32Value, v int32) {
		if v > 0 {
			*into = u32(uint32(v))
		}
	}
	set(&limits.MaxConnections, pool.GetTcp().GetMaxConnections())
	set(&limits.MaxPendingRequests, pool.GetHttp().GetHttp1MaxPendingRequests())
	set(&limits.MaxRequests, pool.GetHttp().GetHttp2MaxRequests())
	set(&limits.MaxRetries, pool.GetHttp().GetMaxRetries())
	if rb := b.policy.GetRetryBudget(); rb != nil {
		limits.RetryBudget = retryBudget(rb)
	}
	if d := pool.GetTcp().GetConnectTimeout(); d != nil {
		b.out.ConnectTimeout = d
	}
	b.keepalive(pool.GetTcp().GetTcpKeepalive())
	common := &corev3.HttpProtocolOptions{}
	common.IdleTimeout = pool.GetHttp().GetIdleTimeout()
	if common.IdleTimeout == nil {
		common.IdleTimeout = pool.GetTcp().GetIdleTimeout()
	}
	common.MaxConnectionDuration = pool.GetTcp().GetMaxConnectionDuration()
	set(&common.MaxRequestsPerConnection, pool.GetHttp().GetMaxRequestsPerConnection())
	if common.IdleTimeout != nil || common.MaxConnectionDuration != nil || common.MaxRequestsPerConnection != nil {
		b.options.CommonHttpProtocolOptions = common
	}
}

func retryBudget(rb *networking.TrafficPolicy_RetryBudget) *clusterv3.CircuitBreakers_Thresholds_RetryBudget {
	out := &clusterv3.CircuitBreakers_Thresholds_RetryBudget{
		BudgetPercent: &typev3.Percent{Value: 20}, BudgetInterval: rb.GetBudgetInterval(), MinRetryConcurrency: u32(3),
	}
	if rb.GetPercent() != nil {
		out.BudgetPercent.Value = rb.GetPercent().GetValue()
	}
	if rb.GetMinRetryConcurrency() > 0 {
		out.MinRetryConcurrency = u32(rb.GetMinRetryConcurrency())
	}
	return out
}

func (b *clusterBuilder) keepalive(k *networking.ConnectionPoolSettings_TCPSettings_TcpKeepalive) {
	if k == nil {
		k = b.t.mesh.Config.GetTcpKeepalive()
	}
	if k == nil {
		return
	}
	out := &corev3.TcpKeepalive{}
	if k.GetProbes() > 0 {
		out.KeepaliveProbes = u32(k.GetProbes())
	}
	if k.GetTime() != nil {
		out.KeepaliveTime = u32(uint32(k.GetTime().GetSeconds()))
	}
	if k.GetInterval() != nil {
		out.KeepaliveInterval = u32(uint32(k.GetInterval().GetSeconds()))
	}
	b.out.UpstreamConnectionOptions = &clusterv3.UpstreamConnectionOptions{TcpKeepalive: out}
}

// httpProtocol chooses how the cluster speaks HTTP. Between sidecars it is
// HTTP/2, unless a DestinationRule limits what only means something with one
// request per connection (maxConnections, http1MaxPendingRequests,
// maxRequestsPerConnection): then the documented limits must hold.
func (b *clusterBuilder) httpProtocol() protocol {
	h := b.policy.GetConnectionPool().GetHttp()
	if h.GetUseClientProtocol() {
		return sameAsClient
	}
	if h.GetH2UpgradePolicy() == networking.ConnectionPoolSettings_HTTPSettings_UPGRADE {
		return b.http2()
	}
	if !b.port.Protocol.IsHTTP() {
		return notHTTP
	}
	if b.port.Protocol.IsHTTP2() {
		return b.http2()
	}
	if h.GetH2UpgradePolicy() == networking.ConnectionPoolSettings_HTTPSettings_DO_NOT_UPGRADE {
		return http1
	}
	if b.t.mesh.Config.GetH2UpgradePolicy() == meshv1.MeshConfig_UPGRADE {
		return b.http2()
	}
	limited := b.policy.GetConnectionPool().GetTcp().GetMaxConnections() > 0 || h.GetHttp1MaxPendingRequests() > 0 || h.GetMaxRequestsPerConnection() > 0
	if b.allMesh() && !limited {
		return http2Mesh
	}
	return http1
}

func (b *clusterBuilder) http2() protocol {
	if b.allMesh() {
		return http2Mesh
	}
	return http2
}

// allMesh says whether every endpoint is a sidecar that this cluster reaches by
// mesh mTLS.
func (b *clusterBuilder) allMesh() bool {
	if b.peers.mesh == 0 || b.peers.plain > 0 {
		return false
	}
	tls := b.policy.GetTls()
	return tls == nil || tls.GetMode() == networking.ClientTLSSettings_ISTIO_MUTUAL
}

// protocol writes the protocol options at last, when all that goes in is known.
func (b *clusterBuilder) protocol() {
	p := b.httpProtocol()
	empty := b.options.CommonHttpProtocolOptions == nil && b.options.UpstreamHttpProtocolOptions == nil && b.options.OutlierDetection == nil
	if p == notHTTP && empty {
		return
	}
	b.pack(p)
}

// pack writes the options of the protocol, with the limits of HTTP/2 connections.
func (b *clusterBuilder) pack(p protocol) {
	b.out.TypedExtensionProtocolOptions = protocolOptions(b.options, p)
	if http2 := b.options.GetExplicitHttpConfig().GetHttp2ProtocolOptions(); http2 != nil {
		h := b.policy.GetConnectionPool().GetHttp()
		if n := h.GetMaxConcurrentStreams(); n > 0 {
			http2.MaxConcurrentStreams = u32(uint32(n))
		}
		if k := h.GetHttp2KeepAlive(); k != nil {
			http2.ConnectionKeepalive = &corev3.KeepaliveSettings{Interval: k.GetInterval(), Timeout: k.GetTimeout()}
		}
		http2.AllowConnect = http2.AllowConnect || b.policy.GetTunnel() != nil
		b.out.TypedExtensionProtocolOptions = packOptions(b.options)
	}
}

// outlierDetection ejects endpoints that fail.
func (b *clusterBuilder) outlierDetection() {
	in := b.policy.GetOutlierDetection()
	if in == nil {
		return
	}
	out := &clusterv3.OutlierDetection{
		EnforcingSuccessRate: u32(0),
		Interval:             in.GetInterval(),
		BaseEjectionTime:     in.GetBaseEjectionTime(),
	}
	enforce := func(v *wrapperspb.UInt32Value) *wrapperspb.UInt32Value {
		if v.GetValue() > 0 {
			return u32(100)
		}
		return u32(0)
	}
	if e := in.GetConsecutive_5XxErrors(); e != nil {
		out.Consecutive_5Xx, out.EnforcingConsecutive_5Xx = u32(e.GetValue()), enforce(e)
	}
	if e := in.GetConsecutiveGatewayErrors(); e != nil {
		out.ConsecutiveGatewayFailure, out.EnforcingConsecutiveGatewayFailure = u32(e.GetValue()), enforce(e)
	}
	//nolint:staticcheck // the old field still counts where the new one is absent
	if e := in.GetConsecutiveErrors(); e > 0 && in.GetConsecutive_5XxErrors() == nil && in.GetConsecutiveGatewayErrors() == nil {
		out.ConsecutiveGatewayFailure, out.EnforcingConsecutiveGatewayFailure = u32(uint32(e)), u32(100)
	}
	if p := in.GetMaxEjectionPercent(); p > 0 {
		out.MaxEjectionPercent = u32(uint32(p))
	}
	if in.GetSplitExternalLocalOriginErrors() {
		out.SplitExternalLocalOriginErrors = true
		out.EnforcingLocalOriginSuccessRate = u32(0)
		if e := in.GetConsecutiveLocalOriginFailures(); e.GetValue() > 0 {
			out.ConsecutiveLocalOriginFailure, out.EnforcingConsecutiveLocalOriginFailure = u32(e.GetValue()), u32(100)
		}
	}
	b.out.OutlierDetection = out
	b.out.CommonLbConfig.HealthyPanicThreshold = &typev3.Percent{Value: float64(max(in.GetMinHealthPercent(), 0))}
	if codes := in.GetOutlierDetectionHttpErrorCodes(); len(codes) > 0 {
		b.options.OutlierDetection = &httpv3.HttpProtocolOptions_OutlierDetection{ErrorMatcher: statusMatcher(codes)}
	}
}

func statusMatcher(codes []uint32) *matchv3.MatchPredicate {
	var rules []*matchv3.MatchPredicate
	for _, code := range codes {
		rules = append(rules, &matchv3.MatchPredicate{Rule: &matchv3.MatchPredicate_HttpResponseHeadersMatch{
			HttpResponseHeadersMatch: &matchv3.HttpHeadersMatch{Headers: []*routev3.HeaderMatcher{{
				Name:                 ":status",
				HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: exact(strconv.Itoa(int(code)))},
			}}},
		}})
	}
	if len(rules) == 1 {
		return rules[0]
	}
	return &matchv3.MatchPredicate{Rule: &matchv3.MatchPredicate_OrMatch{OrMatch: &matchv3.MatchPredicate_MatchSet{Rules: rules}}}
}

// loadBalancer chooses the algorithm; LEAST_REQUEST unless told otherwise.
func (b *clusterBuilder) loadBalancer() {
	if b.out.LbPolicy == clusterv3.Cluster_CLUSTER_PROVIDED {
		return
	}
	lb := b.policy.GetLoadBalancer()
	switch lb.GetSimple() {
	case networking.LoadBalancerSettings_RANDOM:
		b.out.LbPolicy = clusterv3.Cluster_RANDOM
	case networking.LoadBalancerSettings_ROUND_ROBIN:
		b.out.LbPolicy = clusterv3.Cluster_ROUND_ROBIN
		if w := slowStart(lb); w != nil {
			b.out.LbConfig = &clusterv3.Cluster_RoundRobinLbConfig_{RoundRobinLbConfig: &clusterv3.Cluster_RoundRobinLbConfig{SlowStartConfig: w}}
		}
	default:
		b.out.LbPolicy = clusterv3.Cluster_LEAST_REQUEST
		if w := slowStart(lb); w != nil {
			b.out.LbConfig = &clusterv3.Cluster_LeastRequestLbConfig_{LeastRequestLbConfig: &clusterv3.Cluster_LeastRequestLbConfig{SlowStartConfig: w}}
		}
	}
	if h := lb.GetConsistentHash(); h != nil {
		b.consistentHash(h)
	}
	b.localityWeights(lb)
}

func slowStart(lb *networking.LoadBalancerSettings) *clusterv3.Cluster_SlowStartConfig {
	if w := lb.GetWarmup(); w != nil {
		out := &clusterv3.Cluster_SlowStartConfig{
			SlowStartWindow:  w.GetDuration(),
			Aggression:       &corev3.RuntimeDouble{DefaultValue: 1, RuntimeKey: "writ.warmup.aggression"},
			MinWeightPercent: &typev3.Percent{Value: 10},
		}
		if w.GetAggression() != nil {
			out.Aggression.DefaultValue = w.GetAggression().GetValue()
		}
		if w.GetMinimumPercent() != nil {
			out.MinWeightPercent.Value = w.GetMinimumPercent().GetValue()
		}
		return out
	}
	//nolint:staticcheck // the older spelling of warmup.duration
	if d := lb.GetWarmupDurationSecs(); d != nil {
		return &clusterv3.Cluster_SlowStartConfig{SlowStartWindow: d}
	}
	return nil
}

func (b *clusterBuilder) consistentHash(h *networking.LoadBalancerSettings_ConsistentHashLB) {
	if m := h.GetMaglev(); m != nil {
		b.out.LbPolicy, b.out.LbConfig = clusterv3.Cluster_MAGLEV, nil
		if m.GetTableSize() > 0 {
			b.out.LbConfig = &clusterv3.Cluster_MaglevLbConfig_{MaglevLbConfig: &clusterv3.Cluster_MaglevLbConfig{TableSize: wrapperspb.UInt64(m.GetTableSize())}}
		}
		return
	}
	size := uint64(1024)
	//nolint:staticcheck // the older spelling of ringHash.minimumRingSize
	if n := h.GetMinimumRingSize(); n > 0 {
		size = n
	}
	if n := h.GetRingHash().GetMinimumRingSize(); n > 0 {
		size = n
	}
	b.out.LbPolicy = clusterv3.Cluster_RING_HASH
	b.out.LbConfig = &clusterv3.Cluster_RingHashLbConfig_{RingHashLbConfig: &clusterv3.Cluster_RingHashLbConfig{MinimumRingSize: wrapperspb.UInt64(size)}}
}

// localityWeights balances between localities by weight where a rule gives
// shares. Hash rings need it off, because they have one ring over all localities.
func (b *clusterBuilder) localityWeights(lb *networking.LoadBalancerSettings) {
	if setting, _ := b.t.localitySetting(b.policy, b.key.svc); len(setting.GetDistribute()) == 0 || lb.GetConsistentHash() != nil {
		return
	}
	b.out.CommonLbConfig.LocalityConfigSpecifier = &clusterv3.Cluster_CommonLbConfig_LocalityWeightedLbConfig_{
		LocalityWeightedLbConfig: &clusterv3.Cluster_CommonLbConfig_LocalityWeightedLbConfig{},
	}
}

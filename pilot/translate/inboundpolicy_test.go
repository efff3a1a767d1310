package translate

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/writ-mesh/writ/pilot/envoy"
	"github.com/writ-mesh/writ/pilot/model"
)

// inboundCluster is that of the program behind a port of p.
func inboundCluster(t *testing.T, s *Snapshot, port uint32) (*clusterv3.Cluster, []model.Ref) {
	t.Helper()
	for _, r := range s.Clusters {
		if c := r.Message.(*clusterv3.Cluster); c.GetAltStatName() == inboundName(port) {
			return c, r.Sources
		}
	}
	t.Fatalf("no cluster of port %d", port)
	return nil, nil
}

// TestServerLimits: which connectionPool counts at the server, by what Istio does: that
// of the Sidecar, of the rule of the oldest service, of the mesh.
func TestServerLimits(t *testing.T) {
	t.Parallel()
	rule := func(name, namespace, host, more, policy string) string {
		return fmt.Sprintf("\n---\nkind: DestinationRule\nmetadata: {name: %s, namespace: %s}\nspec: {host: %s, %s trafficPolicy: {%s}}\n", name, namespace, host, more, policy)
	}
	pool := func(n int) string { return fmt.Sprintf("connectionPool: {tcp: {maxConnections: %d}}", n) }
	const whole, svc = "web.team.svc.cluster.local", "web"
	const meshDefault = "\n---\nkind: MeshConfig\nmetadata: {name: x}\nspec: {defaultTrafficPolicy: {connectionPool: {tcp: {maxConnections: 90}}}}\n"
	sidecar := func(spec string) string {
		return "\n---\nkind: Sidecar\nmetadata: {name: s, namespace: team}\nspec: {" + spec + "}\n"
	}
	const none = math.MaxUint32
	for name, c := range map[string]struct {
		yaml string
		want uint32 // maxConnections of port 80
	}{
		"nothing":                                {"", none},
		"a rule without limits":                  {rule("r", "team", svc, "", "loadBalancer: {simple: RANDOM}"), none},
		"the service's own namespace":            {rule("r", "team", svc, "", pool(1)), 1},
		"for its own namespace alone":            {rule("r", "team", svc, "exportTo: [.],", pool(1)), 1},
		"a client's namespace":                   {rule("r", "other", whole, "", pool(1)), none},
		"the root namespace":                     {rule("r", "istio-system", whole, "", pool(1)), 1},
		"a wildcard of the root namespace":       {rule("r", "istio-system", "'*.svc.cluster.local'", "", pool(1)), 1},
		"own before root":                        {rule("r", "istio-system", whole, "", pool(1)) + rule("r", "team", svc, "", pool(2)), 2},
		"a rule that selects clients":            {rule("r", "team", svc, "workloadSelector: {matchLabels: {app: web}},", pool(1)), none},
		"one that selects and one for all":       {rule("r", "team", svc, "workloadSelector: {matchLabels: {app: web}},", pool(1)) + rule("all", "team", svc, "", pool(2)), 2},
		"a subset":                               {rule("r", "team", svc, "subsets: [{name: a, labels: {app: web}, trafficPolicy: {"+pool(1)+"}}],", pool(2)), 2},
		"a subset alone":                         {rule("r", "team", svc, "subsets: [{name: a, labels: {app: web}, trafficPolicy: {"+pool(1)+"}}],", ""), none},
		"the service's port":                     {rule("r", "team", svc, "", pool(1)+", portLevelSettings: [{port: {number: 8080}, "+pool(2)+"}]"), 2},
		"the workload's port":                    {rule("r", "team", svc, "", pool(1)+", portLevelSettings: [{port: {number: 80}, "+pool(2)+"}]"), 1},
		"a port without limits":                  {rule("r", "team", svc, "", pool(1)+", portLevelSettings: [{port: {number: 8080}, loadBalancer: {simple: RANDOM}}]"), none},
		"another service of the workload":        {rule("r", "team", "zoo", "", pool(1)), none},
		"of both, the oldest":                    {rule("r", "team", "zoo", "", pool(1)) + rule("w", "team", svc, "", pool(2)), 2},
		"the mesh's":                             {meshDefault, 90},
		"a rule before the mesh":                 {meshDefault + rule("r", "team", svc, "", pool(1)), 1},
		"the mesh's for a rule without limits":   {meshDefault + rule("r", "team", svc, "", "loadBalancer: {simple: RANDOM}"), 90},
		"the Sidecar before a rule":              {rule("r", "team", svc, "", pool(1)) + sidecar("inboundConnectionPool: {tcp: {maxConnections: 7}}"), 7},
		"the whole pool of the Sidecar":          {rule("r", "team", svc, "", pool(1)) + sidecar("inboundConnectionPool: {http: {http2MaxRequests: 7}}"), none},
		"a rule at a listener of a Sidecar":      {rule("r", "team", svc, "", pool(1)) + sidecar("ingress: [{port: {number: 80, protocol: HTTP, name: http}}]"), 1},
		"the port of a listener of a Sidecar":    {rule("r", "team", svc, "", pool(1)+", portLevelSettings: [{port: {number: 80}, "+pool(2)+"}]") + sidecar("ingress: [{port: {number: 80, protocol: HTTP, name: http}}]"), 2},
		"a Sidecar that does not import its own": {rule("r", "team", svc, "", pool(1)) + sidecar("egress: [{hosts: ['istio-system/*']}]"), 1},
	} {
		t.Run(name, func(t *testing.T) {
			b := newMesh(t)
			p := b.workload("web-1", "team", "web", map[string]string{"app": "web"}, "http:80")
			for i, name := range []string{"web", "zoo"} {
				s := b.service(name, "team", p)
				s.Created = time.Unix(int64(i), 0)
				s.Ports[0].Port = 8080
				s.Endpoints[0].Ports = map[uint32]uint32{8080: 80}
			}
			if c.yaml != "" {
				b.apply(strings.TrimPrefix(c.yaml, "\n---\n"))
			}
			got, from := inboundCluster(t, b.snapshot(p), 80)
			if n := got.GetCircuitBreakers().GetThresholds()[0].GetMaxConnections().GetValue(); n != c.want {
				t.Errorf("maxConnections %d, want %d", n, c.want)
			}
			blamed := slices.ContainsFunc(from, func(r model.Ref) bool { return r.Kind == "DestinationRule" })
			if c.want == 1 && !blamed {
				t.Errorf("the rule is not among its sources: %v", from)
			}
		})
	}
}

// TestOldestServiceLimitsItsWorkload: by age, whatever the names.
func TestOldestServiceLimitsItsWorkload(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		a, z time.Time
		want uint32
	}{
		{time.Unix(1, 0), time.Unix(2, 0), 1},
		{time.Unix(2, 0), time.Unix(1, 0), 26},
		{time.Time{}, time.Time{}, 1},
	} {
		b := newMesh(t)
		p := b.workload("web-1", "team", "web", nil, "http:80")
		b.service("a", "team", p).Created = c.a
		b.service("z", "team", p).Created = c.z
		b.apply(`
kind: DestinationRule
metadata: {name: a, namespace: team}
spec: {host: a, trafficPolicy: {connectionPool: {tcp: {maxConnections: 1}}}}
---
kind: DestinationRule
metadata: {name: z, namespace: team}
spec: {host: z, trafficPolicy: {connectionPool: {tcp: {maxConnections: 26}}}}
`)
		got, _ := inboundCluster(t, b.snapshot(p), 80)
		if n := got.GetCircuitBreakers().GetThresholds()[0].GetMaxConnections().GetValue(); n != c.want {
			t.Errorf("a of %v, z of %v: %d, want %d", c.a, c.z, n, c.want)
		}
	}
}

// TestStrangersDoNotLimitServers: a ServiceEntry of another namespace that leads to the
// workload, older than its own service, has no say at it.
func TestStrangersDoNotLimitServers(t *testing.T) {
	t.Parallel()
	b := newMesh(t)
	p := b.workload("web-1", "team", "web", nil, "http:80")
	b.service("web", "team", p).Created = time.Unix(2, 0)
	b.service("trap", "other", p).Created = time.Unix(1, 0)
	b.apply(`
kind: DestinationRule
metadata: {name: trap, namespace: other}
spec: {host: trap, trafficPolicy: {connectionPool: {tcp: {maxConnections: 1}}}}
---
kind: DestinationRule
metadata: {name: web, namespace: team}
spec: {host: web, trafficPolicy: {connectionPool: {tcp: {maxConnections: 26}}}}
`)
	got, _ := inboundCluster(t, b.snapshot(p), 80)
	if n := got.GetCircuitBreakers().GetThresholds()[0].GetMaxConnections().GetValue(); n != 26 {
		t.Errorf("maxConnections %d, want 26, of the workload's own service", n)
	}
}

// TestServerLimitFields: which fields of a rule are written into the server's cluster,
// by the protocol of the port.
func TestServerLimitFields(t *testing.T) {
	t.Parallel()
	b := newMesh(t)
	p := b.workload("web-1", "team", "web", nil, "http:80", "grpc:81", "tcp:82")
	b.service("web", "team", p)
	b.apply(`
kind: DestinationRule
metadata: {name: web, namespace: team}
spec:
  host: web
  trafficPolicy:
    loadBalancer: {simple: RANDOM}
    outlierDetection: {consecutive5xxErrors: 1}
    tls: {mode: SIMPLE}
    proxyProtocol: {version: V1}
    retryBudget: {percent: 10, minRetryConcurrency: 4}
    connectionPool:
      tcp:
        maxConnections: 1
        connectTimeout: 2s
        tcpKeepalive: {probes: 3, time: 60s, interval: 5s}
        maxConnectionDuration: 100s
      http:
        http1MaxPendingRequests: 5
        http2MaxRequests: 6
        maxRequestsPerConnection: 7
        maxRetries: 8
        idleTimeout: 9s
        maxConcurrentStreams: 10
        http2KeepAlive: {interval: 11s, timeout: 12s}
        h2UpgradePolicy: UPGRADE
        useClientProtocol: true
`)
	snapshot := b.snapshot(p)
	for _, port := range []uint32{80, 81, 82} {
		c, _ := inboundCluster(t, snapshot, port)
		limits := c.GetCircuitBreakers().GetThresholds()[0]
		if got := []uint32{limits.GetMaxConnections().GetValue(), limits.GetMaxPendingRequests().GetValue(), limits.GetMaxRequests().GetValue(), limits.GetMaxRetries().GetValue()}; !slices.Equal(got, []uint32{1, 5, 6, 8}) {
			t.Errorf("%d: limits %v", port, got)
		}
		if r := limits.GetRetryBudget(); r.GetBudgetPercent().GetValue() != 10 || r.GetMinRetryConcurrency().GetValue() != 4 {
			t.Errorf("%d: retry budget %v", port, r)
		}
		if k := c.GetUpstreamConnectionOptions().GetTcpKeepalive(); c.GetConnectTimeout().GetSeconds() != 2 || k.GetKeepaliveProbes().GetValue() != 3 {
			t.Errorf("%d: %v, %v", port, c.GetConnectTimeout(), k)
		}
		options := &httpv3.HttpProtocolOptions{}
		if err := c.GetTypedExtensionProtocolOptions()[envoy.HTTPOptionsKey].UnmarshalTo(options); err != nil {
			t.Fatal(port, err)
		}
		common := options.GetCommonHttpProtocolOptions()
		if common.GetIdleTimeout().GetSeconds() != 9 || common.GetMaxConnectionDuration().GetSeconds() != 100 || common.GetMaxRequestsPerConnection().GetValue() != 7 {
			t.Errorf("%d: %v", port, common)
		}
		// What the program speaks is said by its port's name.
		h2 := options.GetExplicitHttpConfig().GetHttp2ProtocolOptions()
		if (h2 != nil) != (port == 81) {
			t.Errorf("%d: %v", port, options)
		}
		if h2 != nil && (h2.GetMaxConcurrentStreams().GetValue() != 10 || h2.GetConnectionKeepalive().GetTimeout().AsDuration() != 12*time.Second) {
			t.Errorf("%d: %v", port, h2)
		}
		// The rest is for clients.
		if c.GetOutlierDetection() != nil || c.GetTransportSocket() != nil || c.GetLbPolicy() != clusterv3.Cluster_ROUND_ROBIN {
			t.Errorf("%d: %v", port, c)
		}
	}
}

// TestMeshKeepaliveAtServers: MeshConfig's settings are for every connection that a
// proxy makes, to the program too.
func TestMeshKeepaliveAtServers(t *testing.T) {
	t.Parallel()
	b := newMesh(t)
	p := b.workload("web-1", "team", "web", nil, "http:80")
	b.service("web", "team", p)
	b.apply("kind: MeshConfig\nmetadata: {name: x}\nspec: {tcpKeepalive: {probes: 5}}\n")
	b.mesh.Config.ConnectTimeout = durationpb.New(3 * time.Second)
	c, _ := inboundCluster(t, b.snapshot(p), 80)
	if n := c.GetUpstreamConnectionOptions().GetTcpKeepalive().GetKeepaliveProbes().GetValue(); n != 5 || c.GetConnectTimeout().GetSeconds() != 3 {
		t.Errorf("%v", c)
	}
}

package xds

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

// world is what a proxy shall have, as small numbers: service n has a cluster,
// endpoints and a route; contents differ by generation.
type world struct {
	// clusters, endpoints, routes and listeners by number, each with its generation.
	clusters, endpoints, routes, listeners map[int]int
	// uses says to which clusters a route refers.
	uses map[int][]int
	// filters are of the listeners of that number that have one, each with its generation.
	filters map[int]int
}

func simple(n, generation int) world {
	w := world{clusters: map[int]int{}, endpoints: map[int]int{}, routes: map[int]int{}, listeners: map[int]int{}, uses: map[int][]int{}, filters: map[int]int{}}
	for i := range n {
		w.clusters[i], w.endpoints[i], w.routes[i], w.listeners[i] = generation, generation, generation, generation
		w.uses[i] = []int{i}
	}
	return w
}

func ads() *corev3.ConfigSource {
	return &corev3.ConfigSource{ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}}}
}

func mustAny(m proto.Message) *anypb.Any {
	a, err := anypb.New(m)
	if err != nil {
		panic(err)
	}
	return a
}

func cluster(i, generation int) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name: fmt.Sprint("c", i), AltStatName: fmt.Sprint(generation), ConnectTimeout: durationpb.New(1e9),
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		EdsClusterConfig:     &clusterv3.Cluster_EdsClusterConfig{EdsConfig: ads()},
	}
}

func endpoints(i, generation int) *endpointv3.ClusterLoadAssignment {
	return &endpointv3.ClusterLoadAssignment{ClusterName: fmt.Sprint("c", i), Policy: &endpointv3.ClusterLoadAssignment_Policy{EndpointStaleAfter: durationpb.New(1e9 * 60)}, NamedEndpoints: map[string]*endpointv3.Endpoint{fmt.Sprint(generation): {}}}
}

func route(i, generation int, uses []int) *routev3.RouteConfiguration {
	r := &routev3.RouteConfiguration{Name: fmt.Sprint("r", i)}
	vh := &routev3.VirtualHost{Name: fmt.Sprint(generation), Domains: []string{"*"}}
	for _, c := range uses {
		vh.Routes = append(vh.Routes, &routev3.Route{
			Match:  &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
			Action: &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: fmt.Sprint("c", c)}}},
		})
	}
	r.VirtualHosts = []*routev3.VirtualHost{vh}
	return r
}

func listener(i, generation int, filtered bool) *listenerv3.Listener {
	hcm := &hcmv3.HttpConnectionManager{
		StatPrefix:     fmt.Sprint(generation),
		RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{ConfigSource: ads(), RouteConfigName: fmt.Sprint("r", i)}},
	}
	if filtered {
		hcm.HttpFilters = []*hcmv3.HttpFilter{{Name: fmt.Sprint("f", i), ConfigType: &hcmv3.HttpFilter_ConfigDiscovery{
			ConfigDiscovery: &corev3.ExtensionConfigSource{ConfigSource: ads(), TypeUrls: []string{"x"}},
		}}}
	}
	return &listenerv3.Listener{Name: fmt.Sprint("l", i), FilterChains: []*listenerv3.FilterChain{{
		Filters: []*listenerv3.Filter{{Name: "hcm", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: mustAny(hcm)}}},
	}}}
}

func filter(i, generation int) *corev3.TypedExtensionConfig {
	return &corev3.TypedExtensionConfig{Name: fmt.Sprint("f", i), TypedConfig: mustAny(durationpb.New(time.Duration(generation)))}
}

// part is what a resource of a world is made of.
type part struct {
	url  string
	name string
	// content is the generation, and for a route what it uses.
	content string
}

// parts are the resources made so far: many worlds are made of few, and to
// marshal them took longer than what the tests are about.
type parts map[part]*Resource

// resource is b's own resource for a part, as [Builder.Resource] gives it.
func (made parts) resource(t testing.TB, b *Builder, p part, build func() proto.Message) *Resource {
	t.Helper()
	first := made[p]
	if first == nil {
		r, err := b.Resource(p.name, build(), nil)
		if err != nil {
			t.Fatal(err)
		}
		made[p] = r
		return r
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	key := resourceKey(p.url, first.Name, first.Version)
	if b.resources[key] == nil {
		b.resources[key] = &Resource{Name: first.Name, Version: first.Version, Sources: first.Sources, wire: first.wire, needs: first.needs, filtered: first.filtered, resolves: first.resolves}
	}
	return b.resources[key]
}

// config makes the world's resources, with the help of made.
func (w world) config(t testing.TB, b *Builder, node string, made parts) *Config {
	t.Helper()
	var sets []*Set
	add := func(url, letter string, m map[int]int, build func(i, g int) proto.Message) {
		var list []*Resource
		for i, g := range m {
			p := part{url, letter + strconv.Itoa(i), strconv.Itoa(g)}
			if url == RouteType {
				p.content += fmt.Sprint(w.uses[i])
			}
			if _, filtered := w.filters[i]; url == ListenerType && filtered {
				p.content += " filtered"
			}
			list = append(list, made.resource(t, b, p, func() proto.Message { return build(i, g) }))
		}
		sets = append(sets, b.Set(url, list))
	}
	add(ClusterType, "c", w.clusters, func(i, g int) proto.Message { return cluster(i, g) })
	add(EndpointType, "c", w.endpoints, func(i, g int) proto.Message { return endpoints(i, g) })
	add(ListenerType, "l", w.listeners, func(i, g int) proto.Message {
		_, filtered := w.filters[i]
		return listener(i, g, filtered)
	})
	add(ExtensionType, "f", w.filters, func(i, g int) proto.Message { return filter(i, g) })
	add(RouteType, "r", w.routes, func(i, g int) proto.Message { return route(i, g, w.uses[i]) })
	return b.Config(node, sets...)
}

// bench is a server with a listener in memory.
type bench struct {
	t    testing.TB
	srv  *Server
	grpc *grpc.Server
	lis  *bufconn.Listener
	snap *Snapshot
	num  uint64
	// proxies of the next snapshot
	proxies map[string]*Config
	rego    map[string]int
	made    parts
	// shared, if set, is the one connection of all Envoys.
	shared *grpc.ClientConn
}

// identifyByName takes sidecar~... as an Envoy on the node "n", service~NAME as a
// service that may have RegoPolicies and QuotaPolicies, node~NAME as a node agent.
func identifyByName(_ context.Context, n *corev3.Node) (Client, error) {
	id := n.GetId()
	switch {
	case strings.HasPrefix(id, "service~"):
		return Client{ID: id, Kind: ServiceKind, Types: []string{RegoPolicyType, QuotaPolicyType}}, nil
	case strings.HasPrefix(id, "node~"):
		return Client{ID: id, Kind: ServiceKind, Types: []string{NodePlacementType}, Only: strings.TrimPrefix(id, "node~")}, nil
	case strings.HasPrefix(id, "dynamic~"):
		return Client{ID: id, Kind: SidecarKind, Dynamic: true, Envoy: true}, nil
	case strings.HasPrefix(id, "plain~"):
		return Client{ID: id, Kind: SidecarKind, Node: "n"}, nil
	}
	return Client{ID: id, Kind: SidecarKind, Node: "n", Envoy: true}, nil
}

func newBench(t testing.TB, o Options) *bench {
	if o.Identify == nil {
		o.Identify = identifyByName
	}
	b := &bench{t: t, srv: New(o), grpc: grpc.NewServer(), lis: bufconn.Listen(1 << 15), proxies: map[string]*Config{}, rego: map[string]int{}, made: parts{}}
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(b.grpc, b.srv)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = b.grpc.Serve(b.lis)
	}()
	t.Cleanup(func() {
		b.srv.Stop()
		b.grpc.GracefulStop()
		<-done
	})
	return b
}

func (b *bench) publish(worlds map[string]world) *Snapshot {
	b.t.Helper()
	build := NewBuilder(b.snap)
	proxies := map[string]*Config{}
	for id, w := range worlds {
		proxies[id] = w.config(b.t, build, "n", b.made)
	}
	var rego, quotas []*Resource
	for name, generation := range b.rego {
		r, err := build.Resource(name, &configpb.RegoPolicy{Name: name, Module: fmt.Sprint(generation)}, nil)
		if err != nil {
			b.t.Fatal(err)
		}
		rego = append(rego, r)
		if r, err = build.Resource(name, &configpb.QuotaPolicy{Name: name, Fingerprint: fmt.Sprint(generation)}, nil); err != nil {
			b.t.Fatal(err)
		}
		quotas = append(quotas, r)
	}
	place, err := build.Resource("n1", &configpb.NodePlacement{Node: "n1"}, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	other, err := build.Resource("n2", &configpb.NodePlacement{Node: "n2"}, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	b.num++
	b.snap = build.Snapshot(proxies, build.Config("", build.Set(RegoPolicyType, rego), build.Set(QuotaPolicyType, quotas), build.Set(NodePlacementType, []*Resource{place, other})), "")
	b.snap.Revision = b.num
	b.srv.Publish(b.snap)
	return b.snap
}

func (b *bench) dial() *grpc.ClientConn {
	b.t.Helper()
	conn, err := grpc.NewClient("passthrough:///bench",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return b.lis.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.t.Fatal(err)
	}
	return conn
}

// envoy is a delta client that does what Envoy does: it asks for clusters and
// listeners, then for what those refer to, and acknowledges.
type envoy struct {
	t    testing.TB
	id   string
	conn *grpc.ClientConn
	own  bool // conn is to be closed
	str  discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	end  context.CancelFunc
	done chan struct{}

	mu    sync.Mutex
	state map[string]map[string]*discoveryv3.Resource
	subs  map[string]map[string]bool
	// refuse returns why a response is not taken, "" to take it.
	refuse func(*discoveryv3.DeltaDiscoveryResponse) string
	// hold keeps acknowledgements back.
	hold  bool
	held  []*discoveryv3.DeltaDiscoveryRequest
	got   []*discoveryv3.DeltaDiscoveryResponse
	err   error
	fault []string
}

func (b *bench) envoy(id string) *envoy {
	b.t.Helper()
	e := &envoy{t: b.t, id: id, state: map[string]map[string]*discoveryv3.Resource{}, subs: map[string]map[string]bool{}}
	for _, url := range envoyTypes {
		e.state[url], e.subs[url] = map[string]*discoveryv3.Resource{}, map[string]bool{}
	}
	e.connect(b)
	return e
}

// connect opens a stream and brings along what the client has.
func (e *envoy) connect(b *bench) {
	e.t.Helper()
	e.conn = b.shared
	if e.conn == nil {
		e.conn = b.dial()
		e.own = true
	}
	ctx, end := context.WithCancel(context.Background())
	e.end, e.done = end, make(chan struct{})
	str, err := discoveryv3.NewAggregatedDiscoveryServiceClient(e.conn).DeltaAggregatedResources(ctx)
	if err != nil {
		e.t.Fatal(err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.str, e.held, e.err = str, nil, nil
	for _, url := range envoyTypes {
		versions := map[string]string{}
		for n, r := range e.state[url] {
			versions[n] = r.Version
		}
		if url == ClusterType || url == ListenerType {
			e.send(&discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: e.id}, TypeUrl: url, InitialResourceVersions: versions})
		} else if names := slices.Sorted(maps.Keys(e.subs[url])); len(names) > 0 {
			e.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: url, InitialResourceVersions: versions, ResourceNamesSubscribe: names})
		}
	}
	go e.run()
}

func (e *envoy) send(r *discoveryv3.DeltaDiscoveryRequest) {
	if err := e.str.Send(r); err != nil {
		e.err = err
	}
}

func (e *envoy) run() {
	defer close(e.done)
	for {
		r, err := e.str.Recv()
		if err != nil {
			e.mu.Lock()
			e.err = err
			e.mu.Unlock()
			return
		}
		e.mu.Lock()
		e.take(r)
		e.mu.Unlock()
	}
}

func (e *envoy) take(r *discoveryv3.DeltaDiscoveryResponse) {
	e.got = append(e.got, r)
	ack := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce}
	if e.refuse != nil {
		if why := e.refuse(r); why != "" {
			ack.ErrorDetail = &statuspb.Status{Code: int32(codes.InvalidArgument), Message: why}
		}
	}
	var follow []*discoveryv3.DeltaDiscoveryRequest
	if ack.ErrorDetail == nil {
		for _, res := range r.Resources {
			e.state[r.TypeUrl][res.Name] = res
		}
		for _, n := range r.RemovedResources {
			if r.TypeUrl == ClusterType || r.TypeUrl == ListenerType {
				delete(e.state[r.TypeUrl], n)
			}
		}
		switch r.TypeUrl {
		case ClusterType:
			follow = e.resubscribe(follow, EndpointType, ClusterType)
		case ListenerType:
			follow = e.resubscribe(e.resubscribe(follow, RouteType, ListenerType), ExtensionType, ListenerType)
		}
		if e.own { // a thousand on one connection are for memory, not for order
			e.check()
		}
	}
	if e.hold {
		e.held = append(e.held, ack)
	} else {
		e.send(ack)
	}
	for _, req := range follow {
		e.send(req)
	}
}

// resubscribe asks for what the resources of a type refer to now, after what is asked
// already.
func (e *envoy) resubscribe(asked []*discoveryv3.DeltaDiscoveryRequest, url, of string) []*discoveryv3.DeltaDiscoveryRequest {
	want := map[string]bool{}
	for n, r := range e.state[of] {
		switch name := strings.Replace(n, "l", "f", 1); {
		case url != ExtensionType:
			want[strings.Replace(n, "l", "r", 1)] = true
		case bytes.Contains(r.Resource.Value, []byte(name)):
			want[name] = true
		}
	}
	req := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: url}
	for n := range want {
		if !e.subs[url][n] {
			req.ResourceNamesSubscribe = append(req.ResourceNamesSubscribe, n)
		}
	}
	for n := range e.subs[url] {
		if !want[n] {
			req.ResourceNamesUnsubscribe = append(req.ResourceNamesUnsubscribe, n)
			delete(e.state[url], n)
		}
	}
	e.subs[url] = want
	if len(req.ResourceNamesSubscribe)+len(req.ResourceNamesUnsubscribe) == 0 {
		return asked
	}
	return append(asked, req)
}

// check is the invariant: every route in use refers to clusters that are there
// and have their endpoints.
func (e *envoy) check() {
	for name, r := range e.state[RouteType] {
		var rc routev3.RouteConfiguration
		if err := r.Resource.UnmarshalTo(&rc); err != nil {
			e.fault = append(e.fault, err.Error())
			continue
		}
		for _, vh := range rc.VirtualHosts {
			for _, rt := range vh.Routes {
				c := rt.GetRoute().GetCluster()
				if e.state[ClusterType][c] == nil || e.state[EndpointType][c] == nil {
					e.fault = append(e.fault, fmt.Sprintf("route %s refers to %s, which is missing or warming", name, c))
				}
			}
		}
	}
}

func (e *envoy) releaseAcks() { e.release(false) }

func (e *envoy) disconnect() {
	e.end()
	<-e.done
	if e.own {
		_ = e.conn.Close()
	}
}

// responses forgets and returns what was received, as "TYPE +set -removed".
func (e *envoy) responses() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var list []string
	for _, r := range e.got {
		s := r.TypeUrl[strings.LastIndex(r.TypeUrl, ".")+1:]
		for _, res := range r.Resources {
			s += " +" + res.Name
		}
		for _, n := range r.RemovedResources {
			s += " -" + n
		}
		list = append(list, s)
	}
	e.got = nil
	return list
}

// wantState compares what the client holds with a configuration.
func (e *envoy) wantState(c *Config) {
	e.t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, url := range envoyTypes {
		want := map[string]string{}
		for _, r := range c.Set(url).Resources() {
			want[r.Name] = r.Version
		}
		got := map[string]string{}
		for n, r := range e.state[url] {
			got[n] = r.Version
		}
		if !maps.Equal(got, want) {
			e.t.Errorf("%s: %s: has %v, want %v", e.id, url, got, want)
		}
	}
	for _, f := range e.fault {
		e.t.Errorf("%s: %s", e.id, f)
	}
}

func equal(t testing.TB, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n got  %q\n want %q", what, got, want)
	}
}

// bubble runs a test on fake time and checks that nothing outlives it.
func bubble(t *testing.T, f func(t *testing.T)) { synctest.Test(t, f) }

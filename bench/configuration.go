package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/structpb"
)

// The types that a proxy asks for.
const (
	typeCluster   = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	typeListener  = "type.googleapis.com/envoy.config.listener.v3.Listener"
	typeEndpoints = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	typeRoutes    = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
)

// settled is how long no proxy may have received anything before a state counts
// as distributed.
const settled = 2 * time.Second

// configuration measures pilot alone, with state-of-the-world ADS clients that
// follow clusters, listeners, endpoints and routes as a proxy does: connecting
// all of them, a change of a VirtualService, a change of an endpoint. Of each
// change the round with the median of CPU counts. There is no floor; the goals are
// times.
func configuration(ctx context.Context, o options) ([]row, error) {
	mesh := filepath.Join(o.dir, "mesh")
	if err := os.Mkdir(mesh, 0o700); err != nil {
		return nil, err
	}
	if err := writeMesh(mesh, o.services); err != nil {
		return nil, err
	}
	addr, err := freeAddress()
	if err != nil {
		return nil, err
	}
	server, err := launch(ctx, addr, filepath.Join(o.bin, "writ-pilot"), "-mesh", mesh, "-plaintext", addr)
	if err != nil {
		return nil, err
	}
	defer server.stop()
	f := &fleet{address: addr, seen: make([]time.Time, o.proxies)}
	ctx, cancel := context.WithCancel(ctx)
	defer func() { cancel(); f.wg.Wait() }()

	var rows []row
	for _, s := range []struct {
		name, goal string
		times      int
		do         func(ctx context.Context, round int) error
	}{
		{fmt.Sprintf("%d proxies connect, %d services: CPU", o.proxies, o.services), "1 s, 1 s CPU", 1, func(ctx context.Context, _ int) error { return f.connect(ctx, o.proxies) }},
		{"one VirtualService changes: CPU", "0.25 s, 0.1 s CPU", o.rounds, func(_ context.Context, round int) error {
			return writeVirtualService(mesh, fmt.Sprintf("%ds", 2+round))
		}},
		{"one endpoint changes: CPU", "0.05 s, 0.03 s CPU", o.rounds, func(_ context.Context, round int) error { return writeService(mesh, 1, 9+round) }},
	} {
		var measured []row
		for round := range s.times {
			r, err := f.distribute(ctx, server, func(ctx context.Context) error { return s.do(ctx, round) })
			if err != nil {
				return rows, fmt.Errorf("%s: %w", s.name, err)
			}
			r.name, r.note = s.name, r.note+"; goal "+s.goal
			measured = append(measured, r)
		}
		slices.SortFunc(measured, func(a, b row) int { return cmp.Compare(a.ours, b.ours) })
		rows = append(rows, measured[len(measured)/2])
	}
	return rows, nil
}

func writeMesh(dir string, services int) error {
	if err := os.WriteFile(filepath.Join(dir, "mesh.yaml"), []byte("trustDomain: cluster.local\n"), 0o600); err != nil {
		return err
	}
	for i := range services {
		if err := writeService(dir, i, 1); err != nil {
			return err
		}
	}
	return writeVirtualService(dir, "1s")
}

// writeService writes service i with three endpoints, the last one of which ends
// in the given number.
func writeService(dir string, i, last int) error {
	text := fmt.Sprintf(`apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: s%[1]d, namespace: default}
spec:
  hosts: [s%[1]d.example.internal]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
  endpoints:
  - {address: 10.%[2]d.%[3]d.101}
  - {address: 10.%[2]d.%[3]d.102}
  - {address: 10.%[2]d.%[3]d.%[4]d}
`, i, i/250, i%250, last)
	return replace(filepath.Join(dir, fmt.Sprintf("s%d.yaml", i)), text)
}

func writeVirtualService(dir, timeout string) error {
	return replace(filepath.Join(dir, "route.yaml"), fmt.Sprintf(`apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: s1, namespace: default}
spec:
  hosts: [s1.example.internal]
  http:
  - timeout: %s
    route: [{destination: {host: s1.example.internal}}]
`, timeout))
}

// replace writes a file in one step, as an operator's tool does.
func replace(path, text string) error {
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// fleet is a number of proxies.
type fleet struct {
	address string
	wg      sync.WaitGroup

	mu       sync.Mutex
	seen     []time.Time // when each proxy last received something
	messages int
	bytes    int
	failed   error
}

// distribute does something and waits until nothing comes any more. The time
// that is told is that from the deed to the last answer to the last proxy.
func (f *fleet) distribute(ctx context.Context, server *process, do func(context.Context) error) (row, error) {
	before, err := server.cpu()
	if err != nil {
		return row{}, err
	}
	f.mu.Lock()
	f.messages, f.bytes = 0, 0
	f.mu.Unlock()
	begin := time.Now()
	if err := do(ctx); err != nil {
		return row{}, err
	}
	last, err := f.settle(ctx, begin)
	if err != nil {
		return row{}, err
	}
	after, err := server.cpu()
	if err != nil {
		return row{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return row{ours: after - before, note: fmt.Sprintf("%.2f s to the last proxy, %d messages, %.1f MiB, %.0f MiB resident",
		last.Sub(begin).Seconds(), f.messages, float64(f.bytes)/(1<<20), server.rss())}, nil
}

// settle waits until every proxy has received something since begin and then
// none of them for a while; it returns when the last one did.
func (f *fleet) settle(ctx context.Context, begin time.Time) (time.Time, error) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return time.Time{}, ctx.Err()
		case <-tick.C:
		}
		f.mu.Lock()
		first, last, failed := slices.MinFunc(f.seen, time.Time.Compare), slices.MaxFunc(f.seen, time.Time.Compare), f.failed
		f.mu.Unlock()
		switch {
		case failed != nil:
			return time.Time{}, failed
		case first.After(begin) && time.Since(last) > settled:
			return last, nil
		case time.Since(begin) > time.Minute:
			return time.Time{}, errors.New("not every proxy got something within a minute")
		}
	}
}

func (f *fleet) connect(ctx context.Context, proxies int) error {
	for i := range proxies {
		conn, err := grpc.NewClient(f.address, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(256<<20)))
		if err != nil {
			return err
		}
		f.wg.Go(func() {
			defer func() { _ = conn.Close() }()
			if err := f.follow(ctx, conn, i); err != nil && ctx.Err() == nil {
				f.mu.Lock()
				f.failed = fmt.Errorf("proxy %d: %w", i, err)
				f.mu.Unlock()
			}
		})
	}
	return nil
}

// follow is the life of one proxy.
func (f *fleet) follow(ctx context.Context, conn *grpc.ClientConn, i int) error {
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(ctx)
	if err != nil {
		return err
	}
	names := make(map[string][]string) // what is asked for, by type
	send := func(url, version, nonce string) error {
		return stream.Send(&discoveryv3.DiscoveryRequest{Node: node(i), TypeUrl: url, ResourceNames: names[url], VersionInfo: version, ResponseNonce: nonce})
	}
	for _, url := range []string{typeCluster, typeListener} {
		if err := send(url, "", ""); err != nil {
			return err
		}
	}
	for {
		resp, err := stream.Recv()
		if err != nil {
			return err
		}
		f.received(i, resp)
		if err := send(resp.GetTypeUrl(), resp.GetVersionInfo(), resp.GetNonce()); err != nil {
			return err
		}
		url, wanted, err := references(resp)
		if err != nil {
			return err
		}
		if url != "" && !slices.Equal(wanted, names[url]) {
			names[url] = wanted
			if err := send(url, "", ""); err != nil {
				return err
			}
		}
	}
}

func (f *fleet) received(i int, resp *discoveryv3.DiscoveryResponse) {
	now, size := time.Now(), 0
	for _, r := range resp.GetResources() {
		size += len(r.GetValue())
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen[i] = now
	f.messages++
	f.bytes += size
}

// references are the resources that clusters or listeners refer to, sorted.
func references(resp *discoveryv3.DiscoveryResponse) (url string, names []string, err error) {
	for _, r := range resp.GetResources() {
		switch resp.GetTypeUrl() {
		case typeCluster:
			url = typeEndpoints
			c := &clusterv3.Cluster{}
			if err := r.UnmarshalTo(c); err != nil {
				return "", nil, err
			}
			if c.GetType() != clusterv3.Cluster_EDS {
				continue
			}
			name := c.GetEdsClusterConfig().GetServiceName()
			if name == "" {
				name = c.GetName()
			}
			names = append(names, name)
		case typeListener:
			url = typeRoutes
			l := &listenerv3.Listener{}
			if err := r.UnmarshalTo(l); err != nil {
				return "", nil, err
			}
			found, err := routesOf(l)
			if err != nil {
				return "", nil, err
			}
			names = append(names, found...)
		}
	}
	slices.Sort(names)
	return url, slices.Compact(names), nil
}

func routesOf(l *listenerv3.Listener) (names []string, err error) {
	for _, chain := range append(l.GetFilterChains(), l.GetDefaultFilterChain()) {
		for _, filter := range chain.GetFilters() {
			if !strings.HasSuffix(filter.GetTypedConfig().GetTypeUrl(), "v3.HttpConnectionManager") {
				continue
			}
			h := &hcmv3.HttpConnectionManager{}
			if err := filter.GetTypedConfig().UnmarshalTo(h); err != nil {
				return nil, err
			}
			if name := h.GetRds().GetRouteConfigName(); name != "" {
				names = append(names, name)
			}
		}
	}
	return names, nil
}

func node(i int) *corev3.Node {
	ip := fmt.Sprintf("10.200.%d.%d", i/250, i%250+1)
	text := structpb.NewStringValue
	return &corev3.Node{
		Id: fmt.Sprintf("sidecar~%s~p%d.default~default.svc.cluster.local", ip, i), Cluster: "bench",
		Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{
			"NAMESPACE": text("default"), "SERVICE_ACCOUNT": text("bench"), "INTERCEPTION_MODE": text("REDIRECT"),
		}},
		UserAgentName: "envoy",
	}
}

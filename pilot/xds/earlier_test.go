package xds

import (
	"context"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
)

// tied is a configuration of one listener: its routes are named after what they rely on
// in it, and name what they ask of its filter. By the number of the revision all of them
// can be told apart.
type tied struct {
	revision uint64
	// relies is what routes rely on, mode what they do not.
	relies, mode int
}

func (c tied) routes() string { return fmt.Sprint("r", c.relies) }

func (c tied) publish(b *bench) {
	b.t.Helper()
	build := NewBuilder(b.snap)
	set := func(url, name string, m proto.Message) *Set {
		r, err := build.Resource(name, m, nil)
		if err != nil {
			b.t.Fatal(err)
		}
		return build.Set(url, []*Resource{r})
	}
	hcm := &hcmv3.HttpConnectionManager{
		StatPrefix:     strconv.Itoa(c.mode),
		RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{ConfigSource: ads(), RouteConfigName: c.routes()}},
		HttpFilters: []*hcmv3.HttpFilter{{Name: "f", ConfigType: &hcmv3.HttpFilter_ConfigDiscovery{
			ConfigDiscovery: &corev3.ExtensionConfigSource{ConfigSource: ads(), TypeUrls: []string{"x"}},
		}}},
	}
	number := strconv.FormatUint(c.revision, 10)
	b.num, b.snap = c.revision, build.Snapshot(map[string]*Config{"sidecar~1": build.Config("n",
		set(ClusterType, "c"+c.routes(), &clusterv3.Cluster{Name: "c" + c.routes()}),
		set(ListenerType, "l", &listenerv3.Listener{Name: "l", FilterChains: []*listenerv3.FilterChain{{
			Filters: []*listenerv3.Filter{{Name: "hcm", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: mustAny(hcm)}}},
		}}}),
		set(RouteType, c.routes(), &routev3.RouteConfiguration{Name: c.routes(), VirtualHosts: []*routev3.VirtualHost{{Name: number, Domains: []string{"*"}}}}),
		set(ExtensionType, "f", filterWith(number)),
	)}, nil, "")
	b.snap.Revision = c.revision
	b.srv.Publish(b.snap)
}

// filterWith has what the routes of some revisions ask for.
func filterWith(revisions ...string) *corev3.TypedExtensionConfig {
	l := &structpb.ListValue{}
	for _, r := range revisions {
		l.Values = append(l.Values, structpb.NewStringValue(r))
	}
	return &corev3.TypedExtensionConfig{Name: "f", TypedConfig: mustAny(l)}
}

func revisionsOf(filter *anypb.Any) (list []string) {
	var f corev3.TypedExtensionConfig
	var l structpb.ListValue
	if filter.UnmarshalTo(&f) != nil || f.GetTypedConfig().UnmarshalTo(&l) != nil {
		return nil
	}
	for _, v := range l.GetValues() {
		list = append(list, v.GetStringValue())
	}
	return list
}

// bothOf gives a filter with what is in two, nil if the second has all or the first has
// more than there is room for.
func bothOf(room int) func(before, after *anypb.Any) (*anypb.Any, error) {
	return func(before, after *anypb.Any) (*anypb.Any, error) {
		old, list := revisionsOf(before), revisionsOf(after)
		n := len(list)
		for _, r := range old {
			if !slices.Contains(list, r) {
				list = append(list, r)
			}
		}
		if len(list) == n || len(old) >= room {
			return nil, nil
		}
		slices.Sort(list)
		return mustAny(filterWith(list...)), nil
	}
}

// warming is a delta client that keeps a listener until the routes and filters of the one
// in its place have come, as Envoy does, and then lets it drain.
type warming struct {
	t    *testing.T
	conn *grpc.ClientConn
	str  discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	end  context.CancelFunc
	done chan struct{}

	mu sync.Mutex
	// has are versions and contents by type and name, asked the names asked for.
	has   map[string]map[string]*discoveryv3.Resource
	asked map[string]map[string]bool
	// active counts for new connections, next when it is warm, those that drain for open ones.
	active, next *discoveryv3.Resource
	drain        []*discoveryv3.Resource
	refuse       func(url string) bool
	slow         bool
	acks         []*discoveryv3.DeltaDiscoveryRequest
	// since is the revision from which on one may be in force, and all says that each
	// request has to find what its routes ask for.
	since uint64
	all   bool
	// fresh: that holds for new connections only.
	fresh bool
}

func (w *warming) connect(b *bench) {
	w.conn = b.dial()
	ctx, end := context.WithCancel(context.Background())
	w.end, w.done = end, make(chan struct{})
	str, err := discoveryv3.NewAggregatedDiscoveryServiceClient(w.conn).DeltaAggregatedResources(ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.str, w.acks = str, nil
	for _, url := range []string{ClusterType, ListenerType, RouteType, ExtensionType} {
		versions := map[string]string{}
		for name, r := range w.has[url] {
			versions[name] = r.GetVersion()
		}
		names := slices.Sorted(maps.Keys(w.asked[url]))
		if len(names) > 0 || url == ClusterType || url == ListenerType {
			w.send(&discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: "sidecar~1"}, TypeUrl: url, InitialResourceVersions: versions, ResourceNamesSubscribe: names})
		}
	}
	go w.run(str, w.done)
}

func (w *warming) disconnect() {
	w.end()
	<-w.done
	_ = w.conn.Close()
}

func (w *warming) send(r *discoveryv3.DeltaDiscoveryRequest) { _ = w.str.Send(r) }

func (w *warming) run(str discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient, done chan struct{}) {
	defer close(done)
	for {
		r, err := str.Recv()
		if err != nil {
			return
		}
		w.mu.Lock()
		w.take(r)
		w.mu.Unlock()
	}
}

func (w *warming) take(r *discoveryv3.DeltaDiscoveryResponse) {
	url := r.GetTypeUrl()
	ack := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: url, ResponseNonce: r.GetNonce()}
	if w.refuse != nil && w.refuse(url) {
		ack.ErrorDetail = &statuspb.Status{Code: int32(codes.InvalidArgument), Message: "bad"}
	} else {
		for _, res := range r.GetResources() {
			if url == ListenerType || url == ClusterType || w.asked[url][res.GetName()] {
				w.has[url][res.GetName()] = res
			}
			if url == ListenerType {
				w.next = res
				if w.active.GetVersion() == res.GetVersion() {
					w.next = nil
				}
			}
		}
	}
	if url == ClusterType {
		for _, name := range r.GetRemovedResources() {
			delete(w.has[url], name)
		}
	}
	if w.slow {
		w.acks = append(w.acks, ack)
	} else {
		w.send(ack)
	}
	w.settle()
}

// settle takes a listener that is warm, and asks for what all of them need and no more.
func (w *warming) settle() {
	w.ask()
	if w.next != nil && w.warm(w.next) {
		if w.active != nil {
			w.drain = append(w.drain, w.active)
		}
		w.active, w.next = w.next, nil
		w.ask()
	}
	w.check()
}

func needed(l *discoveryv3.Resource) map[string][]string {
	out := map[string][]string{}
	if l == nil {
		return out
	}
	var m listenerv3.Listener
	if l.GetResource().UnmarshalTo(&m) != nil {
		return out
	}
	names, _ := listenerNeeds(&m)
	for _, name := range names {
		if name == "f" {
			out[ExtensionType] = append(out[ExtensionType], name)
		} else {
			out[RouteType] = append(out[RouteType], name)
		}
	}
	return out
}

func (w *warming) warm(l *discoveryv3.Resource) bool {
	for url, names := range needed(l) {
		for _, name := range names {
			if w.has[url][name] == nil {
				return false
			}
		}
	}
	return true
}

func (w *warming) ask() {
	want := map[string]map[string]bool{RouteType: {}, ExtensionType: {}}
	for _, l := range append([]*discoveryv3.Resource{w.active, w.next}, w.drain...) {
		for url, names := range needed(l) {
			for _, name := range names {
				want[url][name] = true
			}
		}
	}
	for _, url := range []string{RouteType, ExtensionType} {
		req := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: url}
		for name := range want[url] {
			if !w.asked[url][name] {
				req.ResourceNamesSubscribe = append(req.ResourceNamesSubscribe, name)
			}
		}
		for name := range w.asked[url] {
			if !want[url][name] {
				req.ResourceNamesUnsubscribe = append(req.ResourceNamesUnsubscribe, name)
				delete(w.has[url], name)
			}
		}
		w.asked[url] = want[url]
		if len(req.GetResourceNamesSubscribe())+len(req.GetResourceNamesUnsubscribe()) > 0 {
			w.send(req)
		}
	}
}

// check: what new connections meet is of a revision since the one that the client had
// entirely, whoever asks finds in the filter what his routes ask for, and the cluster
// that they go to.
func (w *warming) check() {
	for i, l := range append([]*discoveryv3.Resource{w.active}, w.drain...) {
		for _, name := range needed(l)[RouteType] {
			revision := w.routesOf(name)
			if w.has[ClusterType]["c"+name] == nil {
				w.t.Errorf("routes %s of revision %s (place %d) go to a cluster that is not there", name, revision, i)
			}
			if n, _ := strconv.ParseUint(revision, 10, 64); i == 0 && n < w.since {
				w.t.Errorf("new connections meet routes %s of revision %s, which was over since %d", name, revision, w.since)
			}
			if has := revisionsOf(w.has[ExtensionType]["f"].GetResource()); w.all && (i == 0 || !w.fresh) && !slices.Contains(has, revision) {
				w.t.Errorf("routes %s of revision %s (place %d) find only %v in the filter", name, revision, i, has)
			}
		}
	}
}

func (w *warming) routesOf(name string) string {
	var rc routev3.RouteConfiguration
	if err := w.has[RouteType][name].GetResource().UnmarshalTo(&rc); err != nil {
		w.t.Fatal(err)
	}
	return rc.GetVirtualHosts()[0].GetName()
}

func (w *warming) answer(slow bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range w.acks {
		w.send(a)
	}
	w.acks, w.slow = nil, slow
}

// drained ends the connections of one listener.
func (w *warming) drained(i int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.drain = slices.Delete(w.drain, i, i+1)
	w.settle()
}

func newWarming(t *testing.T) *warming {
	return &warming{
		t: t, all: true,
		has:   map[string]map[string]*discoveryv3.Resource{ClusterType: {}, ListenerType: {}, RouteType: {}, ExtensionType: {}},
		asked: map[string]map[string]bool{RouteType: {}, ExtensionType: {}},
	}
}

// TestRoutesOfAnEarlierListener: a listener whose routes the client still has from an
// earlier one comes after they were acknowledged anew.
func TestRoutesOfAnEarlierListener(t *testing.T) {
	for _, back := range []bool{false, true} {
		t.Run(fmt.Sprint("a client that came back: ", back), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				b, w := newBench(t, Options{Between: bothOf(8)}), newWarming(t)
				for i, relies := range []int{1, 2, 1} {
					away := i == 2 && back
					if away {
						w.disconnect()
					}
					tied{uint64(i + 1), relies, 0}.publish(b)
					if i == 0 || away {
						w.connect(b)
					}
					synctest.Wait()
					if c := b.srv.Clients()[0]; c.Acked != uint64(i+1) {
						t.Errorf("acknowledged: %+v", c)
					}
					w.mu.Lock()
					w.since, w.all = uint64(i+1), !back
					w.check()
					w.mu.Unlock()
				}
				w.disconnect()
			})
		})
	}
}

// TestEditsWhileAListenerDrains: a filter has no room for what ever more routes ask for,
// and those that count for new connections find theirs.
func TestEditsWhileAListenerDrains(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b, w := newBench(t, Options{Between: bothOf(3)}), newWarming(t)
		w.fresh = true
		for i := range uint64(12) {
			tied{i + 1, int(min(i, 1)), 0}.publish(b)
			if i == 0 {
				w.connect(b)
			}
			synctest.Wait()
			if c := b.srv.Clients()[0]; c.Acked != i+1 {
				t.Errorf("%d acknowledged: %+v", i+1, c)
			}
		}
		w.disconnect()
	})
}

// TestNewConnectionsMeetNoEarlierRoutes does random things, as
// TestAnySequenceEndsInTheNewestState does, to a client that warms listeners and lets
// them drain.
func TestNewConnectionsMeetNoEarlierRoutes(t *testing.T) {
	for seed := range uint64(100) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			bubble(t, func(t *testing.T) { warmingSequence(t, rand.New(rand.NewPCG(seed, 2))) })
		})
	}
}

func warmingSequence(t *testing.T, r *rand.Rand) {
	b, w := newBench(t, Options{Between: bothOf(math.MaxInt)}), newWarming(t)
	last := uint64(0)
	publish := func() {
		last++
		tied{last, r.IntN(3), r.IntN(2)}.publish(b)
	}
	publish()
	w.connect(b)
	for range 40 {
		switch r.IntN(9) {
		case 0, 1, 2:
			publish()
		case 3:
			w.answer(true)
		case 4:
			w.answer(false)
		case 5: // a revision is refused, as a whole or in part
			w.answer(false)
			synctest.Wait()
			url := []string{ListenerType, RouteType, ExtensionType}[r.IntN(3)]
			w.mu.Lock()
			w.refuse, w.all = func(of string) bool { return of == url }, false
			w.mu.Unlock()
			publish()
			synctest.Wait()
			w.mu.Lock()
			w.refuse = nil
			w.mu.Unlock()
		case 6:
			if r.IntN(3) == 0 {
				w.mu.Lock()
				w.all, w.slow = false, false // what it has is not known any more
				w.mu.Unlock()
				w.disconnect()
				w.connect(b)
			}
		case 7:
			w.mu.Lock()
			n := len(w.drain)
			w.mu.Unlock()
			if n > 0 {
				w.drained(r.IntN(n))
			}
		case 8:
			time.Sleep(time.Duration(r.IntN(7000)) * time.Millisecond) // fake time
		}
		if r.IntN(2) == 0 {
			synctest.Wait()
			acked := b.srv.Clients()
			w.mu.Lock()
			if len(acked) == 1 && acked[0].Acked > w.since {
				w.since = acked[0].Acked
			}
			w.mu.Unlock()
		}
	}
	w.answer(false)
	publish()
	synctest.Wait()
	for {
		w.mu.Lock()
		n := len(w.drain)
		w.mu.Unlock()
		if n == 0 {
			break
		}
		w.drained(0)
		synctest.Wait()
	}
	time.Sleep(time.Minute) // fake time
	synctest.Wait()
	if c := b.srv.Clients(); len(c) != 1 || c[0].Acked != last {
		t.Errorf("at the end of %d: %+v", last, c)
	}
	w.mu.Lock()
	for url, have := range w.has {
		want := map[string]string{}
		for _, r := range b.snap.Proxies["sidecar~1"].Set(url).Resources() {
			want[r.Name] = r.Version
		}
		got := map[string]string{}
		for name, r := range have {
			got[name] = r.GetVersion()
		}
		if !maps.Equal(got, want) {
			t.Errorf("%s: has %v, want %v", url, got, want)
		}
	}
	w.mu.Unlock()
	w.disconnect()
}

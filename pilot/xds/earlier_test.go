package xds

import (
	"context"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
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

	"github.com/writ-mesh/writ/internal/proctest"
)

// tied is a configuration of one listener: its routes are named after what they rely on
// in it, and name what they ask of its filter. By the number of the revision all of them
// can be told apart.
type tied struct {
	revision uint64
	// relies is what routes rely on, mode what they do not.
	relies, mode int
	// revoked is in the routes, and in those of listeners that drain.
	revoked int
}

// revokedIn gives routes with what is revoked, nil if they have it.
func revokedIn(revoked int) func(string, *anypb.Any) (*anypb.Any, error) {
	return func(_ string, routes *anypb.Any) (*anypb.Any, error) {
		var rc routev3.RouteConfiguration
		if err := routes.UnmarshalTo(&rc); err != nil {
			return nil, err
		}
		host := rc.GetVirtualHosts()[0]
		if host.GetRequestHeadersToRemove()[0] == strconv.Itoa(revoked) {
			return nil, nil
		}
		host.RequestHeadersToRemove[0] = strconv.Itoa(revoked)
		return mustAny(&rc), nil
	}
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
		set(RouteType, c.routes(), &routev3.RouteConfiguration{Name: c.routes(), VirtualHosts: []*routev3.VirtualHost{{
			Name: number, Domains: []string{"*"}, RequestHeadersToRemove: []string{strconv.Itoa(c.revoked)},
		}}}),
		set(ExtensionType, "f", filterWith(number)),
	)}, nil, "")
	b.snap.Revision, b.snap.Renew = c.revision, revokedIn(c.revoked)
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
	refuse       func(*discoveryv3.DeltaDiscoveryResponse) bool
	slow         bool
	acks         []*discoveryv3.DeltaDiscoveryRequest
	// since is the revision from which on one may be in force, and all says that each
	// request has to find what its routes ask for.
	since uint64
	all   bool
	// fresh: that holds for new connections only.
	fresh bool
	// outbound routes do not keep clusters once their listener drains.
	outbound bool
	// untold are versions of routes of which the server does not know what is in them.
	untold map[string]string
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
	for name, r := range w.has[RouteType] {
		w.untold[name] = r.GetVersion()
	}
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
	if w.refuse != nil && w.refuse(r) {
		ack.ErrorDetail = &statuspb.Status{Code: int32(codes.InvalidArgument), Message: "bad"}
		for _, res := range r.GetResources() {
			if url == RouteType {
				w.untold[res.GetName()] = w.has[url][res.GetName()].GetVersion()
			}
		}
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
			if w.has[ClusterType]["c"+name] == nil && (i == 0 || !w.outbound) {
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

// checkRevoked: what is revoked counts in routes of listeners that drain too, which the
// target does not have.
func (w *warming) checkRevoked(b *bench, revoked int) {
	target := b.snap.Proxies["sidecar~1"].Set(RouteType)
	for _, l := range append([]*discoveryv3.Resource{w.active}, w.drain...) {
		for _, name := range needed(l)[RouteType] {
			if target.Get(name) != nil {
				continue
			}
			var rc routev3.RouteConfiguration
			if err := w.has[RouteType][name].GetResource().UnmarshalTo(&rc); err != nil {
				w.t.Fatal(err)
			}
			if got := rc.GetVirtualHosts()[0].GetRequestHeadersToRemove()[0]; w.has[RouteType][name].GetVersion() != w.untold[name] && got != strconv.Itoa(revoked) {
				w.t.Errorf("routes %s have %s revoked, and %d is", name, got, revoked)
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
		t: t, all: true, untold: map[string]string{},
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
					tied{uint64(i + 1), relies, 0, 0}.publish(b)
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
			tied{i + 1, int(min(i, 1)), 0, 0}.publish(b)
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

// TestRevokedWhileAListenerDrains: routes of a listener that drains are sent with what is
// revoked since, and with nothing else that is new.
func TestRevokedWhileAListenerDrains(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b, w := newBench(t, Options{}), newWarming(t)
		w.all = false
		step := func(of tied) {
			t.Helper()
			of.publish(b)
			synctest.Wait()
			if c := b.srv.Clients()[0]; c.Acked != of.revision {
				t.Errorf("%d acknowledged: %+v", of.revision, c)
			}
		}
		want := func(name, revision, revoked string) {
			t.Helper()
			w.mu.Lock()
			defer w.mu.Unlock()
			var rc routev3.RouteConfiguration
			if err := w.has[RouteType][name].GetResource().UnmarshalTo(&rc); err != nil {
				t.Fatal(err)
			}
			host := rc.GetVirtualHosts()[0]
			if got := host.GetRequestHeadersToRemove()[0]; host.GetName() != revision || got != revoked {
				t.Errorf("routes %s of revision %s, %s is revoked; want %s, %s", name, host.GetName(), got, revision, revoked)
			}
		}
		tied{1, 1, 0, 0}.publish(b)
		w.connect(b)
		synctest.Wait()
		step(tied{2, 2, 0, 0})
		step(tied{3, 2, 0, 0})
		want("r1", "1", "0")
		step(tied{4, 2, 0, 1})
		want("r1", "1", "1")
		want("r2", "4", "1")

		// The client refuses them: all else goes on, and the next revision has them again.
		b.srv.Events()
		w.mu.Lock()
		w.refuse = func(r *discoveryv3.DeltaDiscoveryResponse) bool {
			return slices.ContainsFunc(r.GetResources(), func(r *discoveryv3.Resource) bool { return r.GetName() == "r1" })
		}
		w.mu.Unlock()
		step(tied{5, 2, 0, 2})
		want("r1", "1", "1")
		want("r2", "5", "2")
		if slices.ContainsFunc(b.srv.Events(), func(e Event) bool { return e.Kind == Refused }) {
			t.Error("the revision counts as refused")
		}
		w.mu.Lock()
		w.refuse = nil
		w.mu.Unlock()
		step(tied{6, 2, 0, 2})
		want("r1", "1", "2")

		// Of one that comes back the target's routes are known, and stay so.
		w.disconnect()
		w.connect(b)
		synctest.Wait()
		step(tied{7, 3, 0, 2})
		step(tied{8, 3, 0, 3})
		want("r1", "1", "2")
		want("r2", "6", "3")
		want("r3", "8", "3")
		w.drained(1)
		w.drained(0)
		step(tied{9, 3, 0, 4})
		want("r3", "9", "4")
		w.disconnect()
	})
}

// TestRevokedWhileAListenerDrainsStateOfTheWorld is the same for the other protocol.
func TestRevokedWhileAListenerDrainsStateOfTheWorld(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, Options{RemoveDelay: time.Hour})
		tied{1, 1, 0, 0}.publish(b)
		c := b.sotw("sidecar~1")
		defer c.end()
		routes := []string{"r1"}
		c.ask(ClusterType, "")
		c.ask(ListenerType, "")
		// exchange takes responses in whatever order types come.
		exchange := func(want ...string) {
			t.Helper()
			var got []string
			for range want {
				response, nonce := c.receive()
				got = append(got, response)
				switch of, _, _ := strings.Cut(response, " "); of {
				case "Cluster":
					c.ask(ClusterType, nonce)
				case "Listener":
					c.ask(ListenerType, nonce)
					c.ask(ExtensionType, "", "f")
					c.ask(RouteType, "", routes...)
				case "RouteConfiguration":
					c.ask(RouteType, nonce, routes...)
				default:
					c.ask(ExtensionType, nonce, "f")
				}
			}
			synctest.Wait()
			if slices.Sort(got); !slices.Equal(got, want) {
				t.Errorf("received %q, want %q", got, want)
			}
		}
		exchange("Cluster cr1", "Listener l", "RouteConfiguration r1", "TypedExtensionConfig f")
		routes = []string{"r1", "r2"}
		tied{2, 2, 0, 0}.publish(b)
		exchange("Cluster cr1 cr2", "Listener l", "RouteConfiguration r2", "TypedExtensionConfig f")
		tied{3, 2, 0, 1}.publish(b)
		exchange("RouteConfiguration r1", "RouteConfiguration r2", "TypedExtensionConfig f")
		if s := b.srv.Clients()[0]; s.Acked != 3 {
			t.Errorf("status: %+v", s)
		}
	})
}

// TestWhichRoutesHoldUpClusters: clusters that go stay for routes of a listener that
// drains, and not for any others that are still there.
func TestWhichRoutesHoldUpClusters(t *testing.T) {
	for _, named := range []bool{false, true} {
		t.Run(fmt.Sprint("named after their listener: ", named), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				b := newBench(t, Options{RemoveDelay: time.Second, NamedAfterListener: func(string) bool { return named }})
				w := newWarming(t)
				w.all, w.outbound = false, !named
				tied{1, 1, 0, 0}.publish(b)
				w.connect(b)
				synctest.Wait()
				tied{2, 2, 0, 0}.publish(b)
				time.Sleep(time.Minute) // fake time
				synctest.Wait()
				w.mu.Lock()
				has := slices.Sorted(maps.Keys(w.has[ClusterType]))
				w.mu.Unlock()
				if want := map[bool][]string{false: {"cr2"}, true: {"cr1", "cr2"}}[named]; !slices.Equal(has, want) {
					t.Errorf("clusters %v, want %v", has, want)
				}
				w.disconnect()
			})
		})
	}
}

// TestNewConnectionsMeetNoEarlierRoutes does random things, as
// TestAnySequenceEndsInTheNewestState does, to a client that warms listeners and lets
// them drain.
func TestNewConnectionsMeetNoEarlierRoutes(t *testing.T) {
	sequences := uint64(100)
	if proctest.Few() {
		sequences = 20
	}
	for seed := range sequences {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			bubble(t, func(t *testing.T) { warmingSequence(t, rand.New(rand.NewPCG(seed, 2))) })
		})
	}
}

func warmingSequence(t *testing.T, r *rand.Rand) {
	b, w := newBench(t, Options{Between: bothOf(math.MaxInt)}), newWarming(t)
	last, revoked := uint64(0), 0
	publish := func() {
		last++
		revoked = r.IntN(3)
		tied{last, r.IntN(3), r.IntN(2), revoked}.publish(b)
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
			w.refuse, w.all = func(r *discoveryv3.DeltaDiscoveryResponse) bool { return r.GetTypeUrl() == url }, false
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
			if !w.slow && w.active != nil {
				w.checkRevoked(b, revoked)
			}
			w.mu.Unlock()
		}
	}
	w.answer(false)
	publish()
	synctest.Wait()
	w.mu.Lock()
	w.checkRevoked(b, revoked)
	w.mu.Unlock()
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

package xds

import (
	"context"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-mesh/writ/internal/proctest"
)

// subscriber is a delta client of one type that acknowledges when told to.
type subscriber struct {
	t   testing.TB
	str discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	url string
	end func()
	// last is the response that is not answered.
	last *discoveryv3.DeltaDiscoveryResponse
}

func (b *bench) subscribe(id, url string, names ...string) *subscriber {
	b.t.Helper()
	conn := b.dial()
	ctx, cancel := context.WithCancel(context.Background())
	str, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := str.Send(&discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: id}, TypeUrl: url, ResourceNamesSubscribe: names}); err != nil {
		b.t.Fatal(err)
	}
	return &subscriber{t: b.t, str: str, url: url, end: func() { cancel(); _ = conn.Close() }}
}

// receive takes one response and describes it.
func (s *subscriber) receive() string {
	s.t.Helper()
	r, err := s.str.Recv()
	if err != nil {
		return status.Code(err).String()
	}
	s.last = r
	out := ""
	for _, res := range r.Resources {
		out += " +" + res.Name
	}
	for _, n := range r.RemovedResources {
		out += " -" + n
	}
	return out
}

func (s *subscriber) answer(why string) {
	s.t.Helper()
	req := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: s.url, ResponseNonce: s.last.Nonce}
	if why != "" {
		req.ErrorDetail = &statuspb.Status{Message: why}
	}
	if err := s.str.Send(req); err != nil {
		s.t.Fatal(err)
	}
	synctest.Wait()
}

func (s *subscriber) send(r *discoveryv3.DeltaDiscoveryRequest) {
	s.t.Helper()
	r.TypeUrl = s.url
	if err := s.str.Send(r); err != nil {
		s.t.Fatal(err)
	}
	synctest.Wait()
}

func (s *subscriber) want(response string) {
	s.t.Helper()
	if got := s.receive(); got != response {
		s.t.Errorf("received %q, want %q", got, response)
	}
}

func TestProxiesWaitForServices(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, Options{})
		b.rego["a"] = 1
		w := map[string]world{"sidecar~1": simple(1, 1)}
		b.publish(w)
		authz := b.subscribe("service~authz", RegoPolicyType, "*")
		defer authz.end()
		authz.want(" +a")
		authz.answer("")
		e := b.envoy("sidecar~1")
		defer e.disconnect()
		synctest.Wait()
		e.responses()

		b.rego["b"] = 1
		w["sidecar~1"].routes[0] = 2
		b.publish(w)
		synctest.Wait()
		equal(t, "before the service has acknowledged", e.responses(), nil)
		authz.want(" +b")
		authz.answer("")
		equal(t, "after", e.responses(), []string{"RouteConfiguration +r0"})

		// a service that does not answer holds proxies up for PoliciesWait only, also
		// where other edits follow
		b.rego["c"] = 1
		w["sidecar~1"].routes[0] = 3
		b.publish(w)
		time.Sleep(6 * time.Second) // fake time
		w["sidecar~1"].routes[0] = 4
		b.publish(w)
		time.Sleep(3999 * time.Millisecond) // fake time
		synctest.Wait()
		equal(t, "before the end of the wait", e.responses(), nil)
		time.Sleep(time.Millisecond) // fake time
		synctest.Wait()
		equal(t, "after the wait", e.responses(), []string{"RouteConfiguration +r0"})

		// and holds up no further edit until it has caught up
		b.rego["d"] = 1
		w["sidecar~1"].routes[0] = 5
		b.publish(w)
		synctest.Wait()
		equal(t, "while the service is late", e.responses(), []string{"RouteConfiguration +r0"})
		authz.want(" +c")
		authz.answer("")
		authz.want(" +d")
		authz.answer("")
		b.rego["e"] = 1
		w["sidecar~1"].routes[0] = 6
		b.publish(w)
		synctest.Wait()
		equal(t, "when it has caught up", e.responses(), nil)
		authz.want(" +e")
		authz.answer("")
		equal(t, "when it has acknowledged", e.responses(), []string{"RouteConfiguration +r0"})
	})
}

func TestServicesKeepPoliciesForRequestsUnderWay(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, Options{RemoveDelay: time.Second})
		b.rego["a"], b.rego["b"] = 1, 1
		b.publish(nil)
		authz := b.subscribe("service~authz", RegoPolicyType, "*")
		defer authz.end()
		authz.want(" +a +b")
		authz.answer("")
		delete(b.rego, "a")
		b.publish(nil)
		synctest.Wait()
		if c := b.srv.Clients()[0]; c.Acked != 2 {
			t.Errorf("acknowledged %d", c.Acked)
		}
		begin := time.Now()
		authz.want(" -a")
		if d := time.Since(begin); d != time.Second {
			t.Errorf("removed after %v", d)
		}
		authz.answer("")
	})
}

// What routes do not name is waited for briefly: a service that hangs keeps back nothing
// else, such as what is revoked.
func TestProxiesWaitLessForTheRest(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, Options{})
		w := map[string]world{"sidecar~1": simple(1, 1)}
		b.publish(w)
		e := b.envoy("sidecar~1")
		defer e.disconnect()
		synctest.Wait()
		e.responses()
		agent := b.subscribe("node~n1", NodePlacementType, "n1")
		defer agent.end()
		agent.want(" +n1")

		w["sidecar~1"].routes[0] = 2
		b.publish(w)
		time.Sleep(499 * time.Millisecond) // fake time
		synctest.Wait()
		equal(t, "before the end of the wait", e.responses(), nil)
		time.Sleep(time.Millisecond) // fake time
		synctest.Wait()
		equal(t, "after the wait", e.responses(), []string{"RouteConfiguration +r0"})
	})
}

// Who waits for policies does not wait as long for a service that hangs with something else.
func TestProxiesWaitForPoliciesOnly(t *testing.T) {
	for _, url := range []string{RegoPolicyType, QuotaPolicyType} {
		t.Run(url[strings.LastIndexByte(url, '.')+1:], func(t *testing.T) { waitForPolicies(t, url) })
	}
}

func waitForPolicies(t *testing.T, url string) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, Options{})
		w := map[string]world{"sidecar~1": simple(1, 1)}
		b.publish(w)
		decider := b.subscribe("service~decider", url, "*")
		defer decider.end()
		decider.want("")
		decider.answer("")
		e := b.envoy("sidecar~1")
		defer e.disconnect()
		synctest.Wait()
		e.responses()
		agent := b.subscribe("node~n1", NodePlacementType, "n1")
		defer agent.end()
		agent.want(" +n1")

		b.rego["a"] = 1
		w["sidecar~1"].routes[0] = 2
		b.publish(w)
		decider.want(" +a")
		time.Sleep(2 * time.Second) // fake time
		synctest.Wait()
		equal(t, "before the policy is acknowledged", e.responses(), nil)
		decider.answer("")
		equal(t, "after", e.responses(), []string{"RouteConfiguration +r0"})
	})
}

func TestNodeAgentGetsItsOwnPlacementOnly(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, Options{})
		b.publish(nil)
		own := b.subscribe("node~n1", NodePlacementType, "n1")
		defer own.end()
		own.want(" +n1")
		own.answer("")
		all := b.subscribe("node~n1", NodePlacementType, "*")
		defer all.end()
		all.want(" +n1")
		other := b.subscribe("node~n1", NodePlacementType, "n2")
		defer other.end()
		other.want(" -n2")
	})
}

func TestForeignTypesAreRefused(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, Options{PlacementWait: time.Second})
		b.publish(map[string]world{"sidecar~1": simple(1, 1), "sidecar~other": simple(1, 1)})
		for _, tc := range []struct{ id, url string }{
			{"service~authz", NodePlacementType},
			{"service~authz", ClusterType},
			{"node~n1", RegoPolicyType},
			{"sidecar~1", RegoPolicyType},
			{"sidecar~1", NodePlacementType},
			{"sidecar~unknown", ClusterType},
		} {
			s := b.subscribe(tc.id, tc.url, "*")
			s.want(codes.PermissionDenied.String())
			s.end()
		}
		synctest.Wait()
		if n := len(b.srv.Clients()); n != 0 {
			t.Errorf("%d clients are left", n)
		}
	})
}

func TestProxyOfAnotherNodeIsRefused(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, Options{})
		build := NewBuilder()
		snap := build.Snapshot(map[string]*Config{"sidecar~1": simple(1, 1).config(t, build, "elsewhere", parts{})}, nil, "")
		snap.Revision = 1
		b.srv.Publish(snap)
		s := b.subscribe("sidecar~1", ClusterType)
		defer s.end()
		s.want(codes.PermissionDenied.String())
	})
}

func TestUnknownProxyWaitsToBePlaced(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, Options{})
		b.publish(nil)
		e := b.envoy("sidecar~1")
		defer e.disconnect()
		synctest.Wait()
		snap := b.publish(map[string]world{"sidecar~1": simple(2, 1)})
		synctest.Wait()
		e.wantState(snap.Proxies["sidecar~1"])
	})
}

func TestRefusalIsReportedOnceAndNotRepeated(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, Options{})
		b.rego["a"] = 1
		b.publish(nil)
		authz := b.subscribe("service~authz", RegoPolicyType, "*")
		defer authz.end()
		authz.want(" +a")
		authz.answer("does not compile")
		var refused []Event
		for _, e := range b.srv.Events() {
			if e.Kind == Refused {
				refused = append(refused, e)
			}
		}
		if len(refused) != 1 || refused[0].Detail != "does not compile" || refused[0].Revision != 1 || refused[0].Resources[0].Name != "a" {
			t.Errorf("events: %+v", refused)
		}
		if c := b.srv.Clients()[0]; c.LastError != "does not compile" || c.Acked != 0 {
			t.Errorf("status: %+v", c)
		}
		// the next snapshot is tried, the same resource included
		b.rego["b"] = 1
		b.publish(nil)
		authz.want(" +a +b")
		authz.answer("")
		if c := b.srv.Clients()[0]; c.LastError != "" || c.Acked != 2 {
			t.Errorf("status: %+v", c)
		}
	})
}

func TestResubscribingSendsAgainAndMissingNamesAreTold(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, Options{})
		b.publish(map[string]world{"plain~1": simple(2, 1)})
		s := b.subscribe("plain~1", RouteType, "r0", "nothing")
		defer s.end()
		s.want(" +r0 -nothing")
		s.answer("")
		s.send(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"r0"}})
		s.want(" +r0")
		s.answer("")
		s.send(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesUnsubscribe: []string{"r0"}, ResourceNamesSubscribe: []string{"r1"}})
		s.want(" +r1")
	})
}

func TestPilotRestartWithOtherContentIsMakeBeforeBreak(t *testing.T) {
	bubble(t, func(t *testing.T) {
		first := newBench(t, Options{})
		first.publish(map[string]world{"sidecar~1": simple(2, 1)})
		e := first.envoy("sidecar~1")
		synctest.Wait()
		e.disconnect()
		e.responses()

		second := newBench(t, Options{RemoveDelay: time.Second})
		w := simple(1, 1)
		w.clusters[5], w.endpoints[5], w.uses[0], w.routes[0] = 1, 1, []int{5}, 2
		snap := second.publish(map[string]world{"sidecar~1": w})
		e.connect(second)
		defer e.disconnect()
		time.Sleep(10 * time.Second) // fake time
		synctest.Wait()
		equal(t, "after the restart", e.responses(), []string{
			"Cluster +c5", "ClusterLoadAssignment +c5", "Listener -l1", "RouteConfiguration +r0", "Cluster -c1",
		})
		e.wantState(snap.Proxies["sidecar~1"])
	})
}

func TestReconnectWithTheSameContentSendsNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, Options{})
		b.publish(map[string]world{"sidecar~1": simple(3, 1)})
		e := b.envoy("sidecar~1")
		synctest.Wait()
		e.disconnect()
		e.responses()
		e.connect(b)
		defer e.disconnect()
		synctest.Wait()
		equal(t, "after the reconnect", e.responses(), nil)
		if c := b.srv.Clients(); len(c) != 1 || c[0].Acked != 1 {
			t.Errorf("clients: %+v", c)
		}
	})
}

func TestDynamicProxyIsAdopted(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, Options{})
		b.publish(nil)
		e := b.envoy("dynamic~1")
		synctest.Wait()
		wanted := slices.ContainsFunc(b.srv.Events(), func(e Event) bool { return e.Kind == Wanted && e.Metadata.GetId() == "dynamic~1" })
		if !wanted {
			t.Fatal("the configuration was not asked for")
		}
		cfg := simple(2, 1).config(t, NewBuilder(), "", parts{})
		b.srv.Adopt("dynamic~1", cfg, b.num)
		synctest.Wait()
		e.wantState(cfg)
		e.disconnect()
		synctest.Wait()
		if n := len(b.srv.Adopted()); n != 0 {
			t.Errorf("%d configurations are kept after the disconnect", n)
		}
	})
}

// TestManyClients connects a thousand identical proxies, twice: their state is
// shared, and it is gone after they have gone.
func TestManyClients(t *testing.T) {
	const clients, size = 1000, 10
	b := newBench(t, Options{})
	build := NewBuilder()
	proxies := map[string]*Config{}
	for i := range clients {
		c := proxies["sidecar~0"]
		if i < 10 { // the others would be equal and share their sets too
			c = simple(size, 1).config(t, build, "n", parts{})
		}
		proxies[fmt.Sprint("sidecar~", i)] = c
	}
	b.num, b.snap = 1, build.Snapshot(proxies, nil, "")
	b.snap.Revision = b.num
	b.srv.Publish(b.snap)
	b.shared = b.dial() // the memory of a thousand connections is not ours
	defer func() { _ = b.shared.Close() }()
	comeAndGo(t, b, clients, size)
	goroutines, before := runtime.NumGoroutine(), heap()
	comeAndGo(t, b, clients, size)
	proctest.Until(t, time.Minute, "the goroutines end", func() bool { return runtime.NumGoroutine() <= goroutines+5 })
	if left := int64(heap()) - int64(before); left > 800<<10 {
		t.Errorf("%d KiB are left of %d clients", left>>10, clients)
	}
}

func comeAndGo(t *testing.T, b *bench, clients, size int) {
	t.Helper()
	var list []*envoy
	for i := range clients {
		list = append(list, b.envoy(fmt.Sprint("sidecar~", i)))
	}
	proctest.Until(t, time.Minute, "all have acknowledged", func() bool { return acked(b, b.num) == clients })
	distinct := map[*Resource]bool{}
	for ss := range b.srv.sessions {
		ss.mu.Lock()
		for url, c := range ss.types {
			if !sameList(c.told, ss.target.Set(url).list) {
				t.Errorf("%s: the state of %s is not shared", ss.client.ID, url)
			}
			for _, r := range c.told {
				distinct[r] = true
			}
		}
		ss.mu.Unlock()
	}
	if len(distinct) != 4*size {
		t.Errorf("%d resources in memory, want %d", len(distinct), 4*size)
	}
	for _, e := range list {
		e.disconnect()
	}
	proctest.Until(t, time.Minute, "all are gone", func() bool { return len(b.srv.Clients()) == 0 })
	b.srv.Events()
}

func acked(b *bench, revision uint64) int {
	n := 0
	for _, c := range b.srv.Clients() {
		if c.Acked == revision {
			n++
		}
	}
	return n
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func TestDiffAndApply(t *testing.T) {
	list := func(pairs ...string) []*Resource {
		var out []*Resource
		for _, p := range pairs {
			out = append(out, &Resource{Name: p[:1], Version: p[1:]})
		}
		return out
	}
	state := func(l []*Resource) map[string]string {
		m := map[string]string{}
		for _, r := range l {
			m[r.Name] = r.Version
		}
		return m
	}
	for _, tc := range []struct {
		name         string
		told, target []*Resource
		sel          selection
		want         map[string]string
	}{
		{"all", list("a1", "b1", "c1"), list("a1", "b2", "d1"), selection{wildcard: true, removals: true}, map[string]string{"a": "1", "b": "2", "d": "1"}},
		{"union", list("a1", "b1", "c1"), list("a1", "b2", "d1"), selection{wildcard: true}, map[string]string{"a": "1", "b": "2", "c": "1", "d": "1"}},
		{"names", list("a1"), list("a2", "b1", "c1"), selection{names: []string{"a", "c"}, removals: true}, map[string]string{"a": "2", "c": "1"}},
		{"only new", list("a1"), list("a2", "b1"), selection{wildcard: true, newOnly: true, removals: true}, map[string]string{"a": "1", "b": "1"}},
		{"unknown versions are sent again", list("a"), list("a1"), selection{wildcard: true}, map[string]string{"a": "1"}},
		{"nothing", nil, nil, selection{wildcard: true, removals: true}, map[string]string{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := state(apply(tc.told, diff(tc.told, tc.target, tc.sel), tc.target))
			if !maps.Equal(got, tc.want) {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}

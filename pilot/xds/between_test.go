package xds

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
)

// joined is a filter with the contents of both, in their order.
func joined(before, after *anypb.Any) (*anypb.Any, error) {
	var a, b corev3.TypedExtensionConfig
	if err := errors.Join(before.UnmarshalTo(&a), after.UnmarshalTo(&b)); err != nil {
		return nil, err
	}
	list := func(of *anypb.Any) []*structpb.Value {
		var l structpb.ListValue
		if of.UnmarshalTo(&l) == nil {
			return l.GetValues()
		}
		return []*structpb.Value{structpb.NewStringValue(fmt.Sprintf("%x", of.GetValue()))}
	}
	b.TypedConfig = mustAny(&structpb.ListValue{Values: append(list(a.GetTypedConfig()), list(b.GetTypedConfig())...)})
	return mustAny(&b), nil
}

// release sends the acknowledgements that were held, and says whether to hold more.
func (e *envoy) release(hold bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, a := range e.held {
		e.send(a)
	}
	e.held, e.hold = nil, hold
}

// joinedFilters counts what joined has put into the filter that an Envoy has.
func (e *envoy) joinedFilters() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	var f corev3.TypedExtensionConfig
	var l structpb.ListValue
	if e.state[ExtensionType]["f0"].GetResource().UnmarshalTo(&f) != nil || f.GetTypedConfig().UnmarshalTo(&l) != nil {
		return 0
	}
	return len(l.GetValues())
}

// TestFilterOfBothWhileRoutesChange: routes change only when the client has a filter
// for them, and the filter of before goes only when the client has the routes.
func TestFilterOfBothWhileRoutesChange(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, Options{Between: joined})
		w := simple(1, 1)
		w.filters[0] = 1
		b.publish(map[string]world{"sidecar~1": w})
		e := b.envoy("sidecar~1")
		defer e.disconnect()
		synctest.Wait()
		e.responses()
		step := func(want []string, filters int) {
			t.Helper()
			synctest.Wait()
			equal(t, "responses", e.responses(), want)
			if got := e.joinedFilters(); got != filters {
				t.Errorf("the filter is made of %d, want %d", got, filters)
			}
		}
		e.release(true)
		w.filters[0], w.routes[0] = 2, 2
		b.publish(map[string]world{"sidecar~1": w})
		step([]string{"TypedExtensionConfig +f0"}, 2)
		// Another revision before the routes of this one went out.
		w.filters[0], w.routes[0] = 3, 3
		snap := b.publish(map[string]world{"sidecar~1": w})
		step(nil, 2)
		e.release(true)
		step([]string{"TypedExtensionConfig +f0"}, 3)
		e.release(true)
		step([]string{"RouteConfiguration +r0"}, 3)
		e.release(true)
		step([]string{"TypedExtensionConfig +f0"}, 0)
		if c := b.srv.Clients()[0]; c.Acked != 1 {
			t.Errorf("acknowledged before the last filter is: %+v", c)
		}
		e.release(false)
		step(nil, 0)
		e.wantState(snap.Proxies["sidecar~1"])
		if c := b.srv.Clients()[0]; c.Acked != 3 {
			t.Errorf("not acknowledged: %+v", c)
		}

		// A filter alone changes at once, and routes alone.
		w.filters[0] = 4
		b.publish(map[string]world{"sidecar~1": w})
		step([]string{"TypedExtensionConfig +f0"}, 0)
		w.routes[0] = 4
		b.publish(map[string]world{"sidecar~1": w})
		step([]string{"RouteConfiguration +r0"}, 0)
	})
}

// TestFilterOfBothAfterRefusal: the routes that a refused filter held back find theirs
// until those of the next revision come.
func TestFilterOfBothAfterRefusal(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, Options{Between: joined})
		w := simple(1, 1)
		w.filters[0] = 1
		b.publish(map[string]world{"sidecar~1": w})
		e := b.envoy("sidecar~1")
		defer e.disconnect()
		synctest.Wait()
		e.responses()
		refuse := func(why string) {
			e.mu.Lock()
			defer e.mu.Unlock()
			e.refuse = func(*discoveryv3.DeltaDiscoveryResponse) string { return why }
		}
		refuse("bad")
		w.filters[0], w.routes[0] = 2, 2
		b.publish(map[string]world{"sidecar~1": w})
		synctest.Wait()
		equal(t, "responses", e.responses(), []string{"TypedExtensionConfig +f0", "TypedExtensionConfig +f0"})
		refuse("")
		w.filters[0], w.routes[0] = 3, 3
		snap := b.publish(map[string]world{"sidecar~1": w})
		synctest.Wait()
		equal(t, "responses", e.responses(), []string{"TypedExtensionConfig +f0", "RouteConfiguration +r0", "TypedExtensionConfig +f0"})
		e.wantState(snap.Proxies["sidecar~1"])
	})
}

// TestRefusedFilterHoldsItsRoutesBack: where a client does not take a filter, the routes
// that want it stay as they are, and all else goes on: routes that are not behind it, and
// those that find what they want in the filter that the client has.
func TestRefusedFilterHoldsItsRoutesBack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var asked int
		b := newBench(t, Options{Between: joined, Served: func(routes, filter *anypb.Any) (bool, error) {
			var r routev3.RouteConfiguration
			var f corev3.TypedExtensionConfig
			if err := errors.Join(routes.UnmarshalTo(&r), filter.UnmarshalTo(&f)); err != nil {
				return false, err
			}
			asked++
			return r.GetVirtualHosts()[0].GetName() == "3" && bytes.Equal(f.GetTypedConfig().GetValue(), mustAny(durationpb.New(1)).GetValue()), nil
		}})
		w := simple(2, 1)
		w.filters[0] = 1
		b.publish(map[string]world{"sidecar~1": w})
		e := b.envoy("sidecar~1")
		defer e.disconnect()
		synctest.Wait()
		e.responses()
		refuse := func(yes bool) {
			e.mu.Lock()
			defer e.mu.Unlock()
			e.refuse = nil
			if yes {
				e.refuse = func(resp *discoveryv3.DeltaDiscoveryResponse) string {
					if resp.TypeUrl == ExtensionType {
						return "bad"
					}
					return ""
				}
			}
		}
		step := func(filter, routes int, want ...string) *Snapshot {
			t.Helper()
			w.filters[0], w.routes[0], w.routes[1], w.listeners[1] = filter, routes, routes, routes
			snap := b.publish(map[string]world{"sidecar~1": w})
			time.Sleep(time.Minute) // fake time
			synctest.Wait()
			got := e.responses()
			slices.Sort(got)
			equal(t, "responses", got, want)
			return snap
		}
		refuse(true)
		// What stands in for both is refused, and the filter itself.
		step(2, 2, "Listener +l1", "RouteConfiguration +r1", "TypedExtensionConfig +f0", "TypedExtensionConfig +f0")
		if c := b.srv.Clients()[0]; c.Acked != 1 || c.LastError != "filter f0: bad" {
			t.Errorf("after a refusal: %+v", c)
		}
		// The third routes want what the first filter has.
		step(3, 3, "Listener +l1", "RouteConfiguration +r0 +r1", "TypedExtensionConfig +f0", "TypedExtensionConfig +f0")
		if asked != 2 {
			t.Errorf("%d questions, want one for each version", asked)
		}
		// A client that comes back has a filter that nobody knows.
		e.disconnect()
		e.connect(b)
		synctest.Wait()
		e.responses()
		step(4, 4, "Listener +l1", "RouteConfiguration +r1", "TypedExtensionConfig +f0")
		// One that comes back speaks of its routes first.
		e.disconnect()
		e.connect(b)
		time.Sleep(time.Minute) // fake time
		synctest.Wait()
		equal(t, "responses to a client that came back", e.responses(), []string{"TypedExtensionConfig +f0"})
		refuse(false)
		snap := step(5, 5, "Listener +l1", "RouteConfiguration +r0 +r1", "TypedExtensionConfig +f0")
		e.wantState(snap.Proxies["sidecar~1"])
		if c := b.srv.Clients()[0]; c.Acked != snap.Revision || c.LastError != "" {
			t.Errorf("after all is well: %+v", c)
		}
	})
}

// TestRefusedFilterKeepsTheListener: routes under a new name that ask for what the client
// refused stay away, so that it keeps the listener that goes with the filter it has.
func TestRefusedFilterKeepsTheListener(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, Options{Between: bothOf(8), Served: func(routes, filter *anypb.Any) (bool, error) {
			var r routev3.RouteConfiguration
			if err := routes.UnmarshalTo(&r); err != nil {
				return false, err
			}
			return slices.Contains(revisionsOf(filter), r.GetVirtualHosts()[0].GetName()), nil
		}})
		w := newWarming(t)
		tied{1, 1, 0, 0}.publish(b)
		w.connect(b)
		synctest.Wait()
		w.mu.Lock()
		w.refuse = func(r *discoveryv3.DeltaDiscoveryResponse) bool { return r.GetTypeUrl() == ExtensionType }
		w.mu.Unlock()
		tied{2, 2, 0, 0}.publish(b)
		time.Sleep(time.Minute) // fake time
		synctest.Wait()
		w.mu.Lock()
		if w.next == nil || w.has[RouteType]["r2"] != nil {
			t.Error("the listener whose filter was refused is in force")
		}
		w.refuse = nil
		w.mu.Unlock()
		tied{3, 2, 0, 0}.publish(b)
		synctest.Wait()
		w.mu.Lock()
		if w.next != nil || w.routesOf("r2") != "3" {
			t.Error("the listener is not in force")
		}
		w.mu.Unlock()
		if c := b.srv.Clients()[0]; c.Acked != 3 {
			t.Errorf("status: %+v", c)
		}
		w.disconnect()
	})
}

// TestEndpointsOfBothWhileListenersChange: what endpoints say for listeners goes when
// these have changed.
func TestEndpointsOfBothWhileListenersChange(t *testing.T) {
	bubble(t, func(t *testing.T) {
		named := func(r *anypb.Any) *endpointv3.ClusterLoadAssignment {
			var a endpointv3.ClusterLoadAssignment
			if err := r.UnmarshalTo(&a); err != nil {
				t.Error(err)
			}
			return &a
		}
		b := newBench(t, Options{BetweenEndpoints: func(before, after *anypb.Any) (*anypb.Any, error) {
			old, now := named(before), named(after)
			n := len(now.GetNamedEndpoints())
			maps.Copy(now.NamedEndpoints, old.GetNamedEndpoints())
			if len(now.GetNamedEndpoints()) == n {
				return nil, nil
			}
			return mustAny(now), nil
		}})
		w := simple(1, 1)
		b.publish(map[string]world{"sidecar~1": w})
		e := b.envoy("sidecar~1")
		defer e.disconnect()
		synctest.Wait()
		e.responses()
		step := func(hold bool, response string, generations ...string) {
			t.Helper()
			e.release(hold)
			synctest.Wait()
			var want []string
			if response != "" {
				want = []string{response}
			}
			equal(t, "responses", e.responses(), want)
			e.mu.Lock()
			has := slices.Sorted(maps.Keys(named(e.state[EndpointType]["c0"].GetResource()).GetNamedEndpoints()))
			e.mu.Unlock()
			equal(t, "endpoints", has, generations)
		}
		step(true, "", "1")
		w.endpoints[0], w.listeners[0] = 2, 2
		b.publish(map[string]world{"sidecar~1": w})
		step(true, "ClusterLoadAssignment +c0", "1", "2")
		step(true, "Listener +l0", "1", "2")
		step(true, "ClusterLoadAssignment +c0", "2")
		step(false, "", "2")
		if c := b.srv.Clients()[0]; c.Acked != 2 {
			t.Errorf("status: %+v", c)
		}
		// Endpoints alone go at once, also those of a cluster that is replaced.
		w.endpoints[0] = 3
		b.publish(map[string]world{"sidecar~1": w})
		step(false, "ClusterLoadAssignment +c0", "3")
		e.release(true)
		w.clusters[0], w.endpoints[0], w.listeners[0] = 4, 4, 4
		b.publish(map[string]world{"sidecar~1": w})
		synctest.Wait()
		equal(t, "responses", e.responses(), []string{"Cluster +c0", "ClusterLoadAssignment +c0"})
		step(true, "Listener +l0", "3", "4")
		step(false, "ClusterLoadAssignment +c0", "4")
	})
}

package xds

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"
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

// TestRefusedFilterHoldsRoutesBack: where a client does not take the filter, the routes
// that go with it stay away.
func TestRefusedFilterHoldsRoutesBack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, Options{Between: joined})
		w := simple(1, 1)
		w.filters[0] = 1
		b.publish(map[string]world{"sidecar~1": w})
		e := b.envoy("sidecar~1")
		defer e.disconnect()
		synctest.Wait()
		e.responses()
		e.mu.Lock()
		e.refuse = func(resp *discoveryv3.DeltaDiscoveryResponse) string {
			if resp.TypeUrl == ExtensionType {
				return "bad"
			}
			return ""
		}
		e.mu.Unlock()
		w.filters[0], w.routes[0] = 2, 2
		b.publish(map[string]world{"sidecar~1": w})
		synctest.Wait()
		for _, r := range e.responses() {
			if r == "RouteConfiguration +r0" {
				t.Error("the routes came")
			}
		}
		e.mu.Lock()
		e.refuse = nil
		e.mu.Unlock()
		w.filters[0], w.routes[0] = 3, 3
		snap := b.publish(map[string]world{"sidecar~1": w})
		synctest.Wait()
		e.wantState(snap.Proxies["sidecar~1"])
	})
}

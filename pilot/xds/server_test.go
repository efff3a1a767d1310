package xds

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestFirstAnswerIsComplete(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, Options{})
		e := b.envoy("sidecar~1")
		defer e.disconnect()
		synctest.Wait() // asks before there is anything
		snap := b.publish(map[string]world{"sidecar~1": simple(3, 1)})
		synctest.Wait()
		e.wantState(snap.Proxies["sidecar~1"])
		if c := b.srv.Clients(); len(c) != 1 || c[0].Acked != 1 {
			t.Errorf("clients: %+v", c)
		}
	})
}

func TestOnlyTheChangedRouteIsSent(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, Options{})
		w := map[string]world{"sidecar~1": simple(3, 1), "sidecar~2": simple(3, 1)}
		b.publish(w)
		e1, e2 := b.envoy("sidecar~1"), b.envoy("sidecar~2")
		defer e1.disconnect()
		defer e2.disconnect()
		synctest.Wait()
		e1.responses()
		e2.responses()
		w["sidecar~1"].routes[1] = 2
		snap := b.publish(w)
		synctest.Wait()
		equal(t, "the changed proxy", e1.responses(), []string{"RouteConfiguration +r1"})
		equal(t, "the other proxy", e2.responses(), nil)
		e1.wantState(snap.Proxies["sidecar~1"])
		for _, c := range b.srv.Clients() {
			if c.Acked != 2 {
				t.Errorf("%s acknowledged %d", c.ID, c.Acked)
			}
		}
	})
}

func TestMakeBeforeBreak(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, Options{RemoveDelay: 2 * time.Second})
		w := simple(1, 1)
		b.publish(map[string]world{"sidecar~1": w})
		e := b.envoy("sidecar~1")
		defer e.disconnect()
		synctest.Wait()
		e.responses()

		// route 0 moves from cluster 0 to the new cluster 1
		delete(w.clusters, 0)
		delete(w.endpoints, 0)
		w.clusters[1], w.endpoints[1], w.routes[0], w.uses[0] = 1, 1, 2, []int{1}
		snap := b.publish(map[string]world{"sidecar~1": w})
		synctest.Wait()
		equal(t, "before removal", e.responses(), []string{"Cluster +c1", "ClusterLoadAssignment +c1", "RouteConfiguration +r0"})
		if c := b.srv.Clients()[0]; c.Acked != 2 {
			t.Errorf("revision 2 is in effect and not acknowledged: %+v", c)
		}
		time.Sleep(2 * time.Second) // fake time
		synctest.Wait()
		equal(t, "removal", e.responses(), []string{"Cluster -c0"})
		e.wantState(snap.Proxies["sidecar~1"])
	})
}

package xds

import (
	"slices"
	"testing"
	"testing/synctest"
)

// TestReplacedClusterAfterReconnect: an Envoy that comes back and gets another version
// of a cluster warms it and waits for endpoints, also if those are the ones that it
// brought along, of which it speaks after the clusters.
func TestReplacedClusterAfterReconnect(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, Options{})
		w := simple(2, 1)
		b.publish(map[string]world{"sidecar~1": w})
		e := b.envoy("sidecar~1")
		synctest.Wait()
		e.disconnect()
		e.responses()
		w.clusters[0] = 2
		snap := b.publish(map[string]world{"sidecar~1": w})
		e.connect(b)
		defer e.disconnect()
		synctest.Wait()
		got := e.responses()
		if !slices.Contains(got, "Cluster +c0") || !slices.Contains(got, "ClusterLoadAssignment +c0") || slices.Contains(got, "ClusterLoadAssignment +c1") {
			t.Errorf("it gets %q", got)
		}
		e.wantState(snap.Proxies["sidecar~1"])
	})
}

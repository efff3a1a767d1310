package xds

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/writ-mesh/writ/internal/proctest"
)

// random makes a world in which every route refers to clusters that are there.
func random(r *rand.Rand) world {
	w := simple(0, 0)
	n := 1 + r.IntN(5)
	for i := range 6 {
		if i < n || r.IntN(2) == 0 {
			w.clusters[i], w.endpoints[i] = r.IntN(3), r.IntN(3)
		}
	}
	for i := range 1 + r.IntN(4) {
		w.listeners[i], w.routes[i] = r.IntN(3), r.IntN(3)
		if r.IntN(2) == 0 {
			w.filters[i] = r.IntN(3)
		}
		for range r.IntN(3) {
			w.uses[i] = append(w.uses[i], r.IntN(n))
		}
	}
	return w
}

// TestAnySequenceEndsInTheNewestState does random things to a server and its
// clients: publishing in quick succession, clients that are slow to acknowledge,
// refuse, disconnect and come back. At every response each client checks that its
// routes refer to clusters that are there and warm; in the end each has exactly
// the newest configuration.
func TestAnySequenceEndsInTheNewestState(t *testing.T) {
	made := parts{}
	sequences := uint64(200)
	if proctest.Few() {
		sequences = 40
	}
	for seed := range sequences {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			bubble(t, func(t *testing.T) { sequence(t, rand.New(rand.NewPCG(seed, 1)), made) })
		})
	}
}

func sequence(t *testing.T, r *rand.Rand, made parts) {
	b := newBench(t, Options{Between: joined})
	b.made = made
	ids := []string{"sidecar~a", "sidecar~b", "sidecar~c"}
	good := map[string]world{}
	for _, id := range ids {
		good[id] = random(r)
	}
	b.publish(good)
	clients := map[string]*envoy{}
	for _, id := range ids {
		clients[id] = b.envoy(id)
	}
	connected := map[string]bool{ids[0]: true, ids[1]: true, ids[2]: true}
	for range 30 {
		id := ids[r.IntN(len(ids))]
		e := clients[id]
		switch r.IntN(8) {
		case 0, 1, 2:
			next := map[string]world{}
			for _, id := range ids {
				next[id] = good[id]
				if r.IntN(2) == 0 {
					next[id] = random(r)
				}
			}
			good = next
			b.publish(good)
		case 3:
			e.mu.Lock()
			e.hold = true
			e.mu.Unlock()
		case 4:
			e.releaseAcks()
		case 5:
			refuseOnce(b, e, good, r)
		case 6:
			if connected[id] {
				e.disconnect()
			} else {
				e.mu.Lock()
				e.hold = false
				e.mu.Unlock()
				e.connect(b)
			}
			connected[id] = !connected[id]
		case 7:
			time.Sleep(time.Duration(r.IntN(7000)) * time.Millisecond) // fake time
		}
		if r.IntN(2) == 0 {
			synctest.Wait()
		}
	}
	for id, e := range clients {
		e.releaseAcks()
		if !connected[id] {
			e.connect(b)
		}
	}
	synctest.Wait()
	time.Sleep(30 * time.Second) // fake time
	synctest.Wait()
	for _, id := range ids {
		clients[id].wantState(b.snap.Proxies[id])
	}
	for _, c := range b.srv.Clients() {
		if c.Acked != b.snap.Revision {
			t.Errorf("%s acknowledged %d of %d", c.ID, c.Acked, b.snap.Revision)
		}
	}
	for _, e := range clients {
		e.disconnect()
	}
}

// refuseOnce makes a client that is up to date refuse the responses to one
// publication, after which the good configuration is published again, as pilot
// does. (One that has nothing yet gets what it can use of what it refuses.)
func refuseOnce(b *bench, e *envoy, good map[string]world, r *rand.Rand) {
	synctest.Wait()
	if !slices.ContainsFunc(b.srv.Clients(), func(c ClientStatus) bool { return c.ID == e.id && c.Acked == b.snap.Revision }) {
		return
	}
	e.mu.Lock()
	url := envoyTypes[r.IntN(len(envoyTypes))]
	e.refuse = func(resp *discoveryv3.DeltaDiscoveryResponse) string {
		if resp.TypeUrl == url && len(resp.Resources) > 0 {
			return "bad " + resp.Resources[0].Name
		}
		return ""
	}
	e.mu.Unlock()
	bad := map[string]world{}
	for id := range good {
		bad[id] = random(r)
	}
	b.publish(bad)
	synctest.Wait()
	e.mu.Lock()
	e.refuse = nil
	e.mu.Unlock()
	b.publish(good)
	synctest.Wait()
}

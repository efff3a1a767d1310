package xds

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
)

// sotwClient is a state-of-the-world client that subscribes as Envoy does.
type sotwClient struct {
	t    testing.TB
	str  discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesClient
	end  func()
	node *corev3.Node
}

func (b *bench) sotw(id string) *sotwClient {
	b.t.Helper()
	conn := b.dial()
	ctx, cancel := context.WithCancel(context.Background())
	str, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(ctx)
	if err != nil {
		b.t.Fatal(err)
	}
	return &sotwClient{t: b.t, str: str, end: func() { cancel(); _ = conn.Close() }, node: &corev3.Node{Id: id}}
}

func (c *sotwClient) ask(url, nonce string, names ...string) {
	c.t.Helper()
	if err := c.str.Send(&discoveryv3.DiscoveryRequest{Node: c.node, TypeUrl: url, ResponseNonce: nonce, ResourceNames: names}); err != nil {
		c.t.Fatal(err)
	}
}

func (c *sotwClient) receive() (string, string) {
	c.t.Helper()
	r, err := c.str.Recv()
	if err != nil {
		c.t.Fatal(err)
	}
	var names []string
	for _, a := range r.Resources {
		m, err := a.UnmarshalNew()
		if err != nil {
			c.t.Fatal(err)
		}
		named := m.(interface{ GetName() string })
		names = append(names, named.GetName())
	}
	slices.Sort(names)
	return r.TypeUrl[strings.LastIndex(r.TypeUrl, ".")+1:] + " " + strings.Join(names, " "), r.Nonce
}

func (c *sotwClient) want(response string) (nonce string) {
	c.t.Helper()
	got, nonce := c.receive()
	if got != response {
		c.t.Errorf("received %q, want %q", got, response)
	}
	return nonce
}

func TestStateOfTheWorld(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, Options{RemoveDelay: time.Second})
		w := simple(2, 1)
		b.publish(map[string]world{"plain~1": w})
		c := b.sotw("plain~1")
		defer c.end()
		c.ask(ClusterType, "")
		c.ask(ClusterType, c.want("Cluster c0 c1"))
		c.ask(ListenerType, "")
		c.ask(ListenerType, c.want("Listener l0 l1"))
		c.ask(RouteType, "", "r0", "r1")
		c.ask(RouteType, c.want("RouteConfiguration r0 r1"), "r0", "r1")
		synctest.Wait()
		if s := b.srv.Clients()[0]; s.Acked != 1 {
			t.Fatalf("status: %+v", s)
		}

		// a new cluster, a moved route, an old cluster that goes last
		delete(w.clusters, 1)
		w.clusters[2], w.endpoints[2], w.uses[0], w.routes[0] = 1, 1, []int{2}, 2
		b.publish(map[string]world{"plain~1": w})
		c.ask(ClusterType, c.want("Cluster c0 c1 c2"))
		c.ask(RouteType, c.want("RouteConfiguration r0"), "r0", "r1")
		c.ask(ClusterType, c.want("Cluster c0 c2"))
		synctest.Wait()
		if s := b.srv.Clients()[0]; s.Acked != 2 {
			t.Errorf("status: %+v", s)
		}

		// a stale nonce is not an acknowledgement
		w.routes[1] = 3
		b.publish(map[string]world{"plain~1": w})
		nonce := c.want("RouteConfiguration r1")
		c.ask(RouteType, "stale", "r0", "r1")
		synctest.Wait()
		if s := b.srv.Clients()[0]; s.Acked != 2 {
			t.Errorf("a stale nonce acknowledged: %+v", s)
		}
		c.ask(RouteType, nonce, "r0", "r1")
		synctest.Wait()
		if s := b.srv.Clients()[0]; s.Acked != 3 {
			t.Errorf("status: %+v", s)
		}
	})
}

func TestUnknownTypesAreIgnored(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, Options{})
		b.publish(map[string]world{"plain~1": simple(1, 1)})
		c := b.sotw("plain~1")
		defer c.end()
		for i := range 50 {
			c.ask(fmt.Sprintf("type.googleapis.com/unknown.Type%d", i), "")
		}
		c.ask(ClusterType, "")
		c.want("Cluster c0")
	})
}

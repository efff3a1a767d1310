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
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
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

// refuse is an answer to a response that the client does not take.
func (c *sotwClient) refuse(url, nonce string, names ...string) {
	c.t.Helper()
	if err := c.str.Send(&discoveryv3.DiscoveryRequest{
		TypeUrl: url, ResponseNonce: nonce, ResourceNames: names, ErrorDetail: &statuspb.Status{Code: int32(codes.InvalidArgument), Message: "bad"},
	}); err != nil {
		c.t.Fatal(err)
	}
}

// bring is a first request of a client that has something from an earlier stream.
func (c *sotwClient) bring(url string, names ...string) {
	c.t.Helper()
	if err := c.str.Send(&discoveryv3.DiscoveryRequest{Node: c.node, TypeUrl: url, VersionInfo: "1", ResourceNames: names}); err != nil {
		c.t.Fatal(err)
	}
}

// silent says that the server has nothing to say now.
func (c *sotwClient) silent() {
	c.t.Helper()
	got := make(chan string, 1)
	go func() {
		r, err := c.str.Recv()
		if err == nil {
			got <- r.GetTypeUrl()
		}
	}()
	synctest.Wait()
	select {
	case url := <-got:
		c.t.Fatalf("received %s", url)
	default:
	}
}

// TestWhatStaysIsNotLeftOut: what a response leaves out is taken away, also what the
// client refused and what waits for its routes.
func TestWhatStaysIsNotLeftOut(t *testing.T) {
	// two listeners, by the routes and the generation of each.
	publish := func(b *bench, l, m string, generation int, routes map[string]int) {
		b.t.Helper()
		build := NewBuilder(b.snap)
		var sets [2][]*Resource
		add := func(i int, name string, msg proto.Message) {
			r, err := build.Resource(name, msg, nil)
			if err != nil {
				b.t.Fatal(err)
			}
			sets[i] = append(sets[i], r)
		}
		for name, uses := range map[string]string{"l": l, "m": m} {
			hcm := &hcmv3.HttpConnectionManager{
				StatPrefix:     fmt.Sprint(generation),
				RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{ConfigSource: ads(), RouteConfigName: uses}},
			}
			add(0, name, &listenerv3.Listener{Name: name, FilterChains: []*listenerv3.FilterChain{{
				Filters: []*listenerv3.Filter{{Name: "hcm", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: mustAny(hcm)}}},
			}}})
		}
		for name, g := range routes {
			add(1, name, &routev3.RouteConfiguration{Name: name, VirtualHosts: []*routev3.VirtualHost{{Name: fmt.Sprint(g), Domains: []string{"*"}}}})
		}
		b.num++
		b.snap = build.Snapshot(map[string]*Config{"plain~1": build.Config("n", build.Set(ListenerType, sets[0]), build.Set(RouteType, sets[1]))}, nil, "")
		b.snap.Revision = b.num
		b.srv.Publish(b.snap)
	}
	begin := func(t *testing.T) (*bench, *sotwClient) {
		b := newBench(t, Options{})
		publish(b, "l1", "m1", 1, map[string]int{"l1": 1, "m1": 1})
		c := b.sotw("plain~1")
		c.ask(ListenerType, "")
		c.ask(ListenerType, c.want("Listener l m"))
		c.ask(RouteType, "", "l1", "m1")
		c.ask(RouteType, c.want("RouteConfiguration l1 m1"), "l1", "m1")
		synctest.Wait()
		return b, c
	}
	t.Run("a listener that waits", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			b, c := begin(t)
			defer c.end()
			publish(b, "l2", "m1", 2, map[string]int{"l2": 2, "m1": 1})
			c.refuse(ListenerType, c.want("Listener l m"))
			synctest.Wait()
			publish(b, "l1", "m1", 3, map[string]int{"l1": 3, "m1": 1})
			c.ask(RouteType, c.want("RouteConfiguration l1"), "l1", "m1")
			c.ask(ListenerType, c.want("Listener l m"))
			synctest.Wait()
			if s := b.srv.Clients()[0]; s.Acked != 3 {
				t.Errorf("status: %+v", s)
			}
		})
	})
	t.Run("a listener that was refused", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			b, c := begin(t)
			defer c.end()
			publish(b, "l1", "m2", 1, map[string]int{"l1": 1, "m2": 2})
			c.ask(ListenerType, c.want("Listener l m"))
			c.ask(RouteType, "", "l1", "m1", "m2")
			c.ask(RouteType, c.want("RouteConfiguration m2"), "l1", "m1", "m2")
			synctest.Wait()
			// m waits for its routes, and l is refused meanwhile
			publish(b, "l1", "m1", 3, map[string]int{"l1": 1, "m1": 3})
			var routes string
			for range 2 {
				switch got, nonce := c.receive(); got {
				case "Listener l m":
					c.refuse(ListenerType, nonce)
				case "RouteConfiguration m1":
					routes = nonce
				default:
					t.Errorf("received %q", got)
				}
			}
			synctest.Wait()
			c.ask(RouteType, routes, "l1", "m1", "m2")
			c.silent()
		})
	})
	t.Run("a cluster that goes last", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			b := newBench(t, Options{RemoveDelay: time.Second})
			b.publish(map[string]world{"plain~1": simple(2, 1)})
			c := b.sotw("plain~1")
			defer c.end()
			c.ask(ClusterType, "")
			c.ask(ClusterType, c.want("Cluster c0 c1"))
			synctest.Wait()
			b.publish(map[string]world{"plain~1": simple(2, 2)})
			c.refuse(ClusterType, c.want("Cluster c0 c1"))
			synctest.Wait()
			b.publish(map[string]world{"plain~1": simple(1, 3)})
			c.ask(ClusterType, c.want("Cluster c0 c1"))
			c.ask(ClusterType, c.want("Cluster c0"))
		})
	})
}

// TestOneThatReturnsHasEarlierRoutes: of a client that comes back nobody knows in which
// versions it has routes, and a listener that would find them there waits.
func TestOneThatReturnsHasEarlierRoutes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, Options{})
		tied{3, 1, 0, 0}.publish(b)
		c := b.sotw("sidecar~1")
		defer c.end()
		c.bring(ClusterType)
		c.ask(ClusterType, c.want("Cluster cr1"))
		c.bring(ListenerType)
		synctest.Wait()
		c.bring(ExtensionType, "f")
		c.bring(RouteType, "r1", "r2")
		c.ask(ExtensionType, c.want("TypedExtensionConfig f"), "f")
		c.ask(RouteType, c.want("RouteConfiguration r1"), "r1", "r2")
		c.ask(ListenerType, c.want("Listener l"))
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

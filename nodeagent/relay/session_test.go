package relay

import (
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/writ-mesh/writ/nodeagent/lastgood"
)

const edsURL = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"

type clock struct{ at time.Time }

func (c *clock) now() time.Time { return c.at }

func newConfig(t *testing.T) *lastgood.Config {
	t.Helper()
	return lastgood.NewStore(t.TempDir(), slog.New(slog.DiscardHandler)).Open(t.Context(), "proxy")
}

func body(t *testing.T, name string) *anypb.Any {
	t.Helper()
	a, err := anypb.New(&clusterv3.Cluster{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// res takes "name@version".
func res(t *testing.T, specs ...string) []*discoveryv3.Resource {
	t.Helper()
	var out []*discoveryv3.Resource
	for _, s := range specs {
		name, version, _ := strings.Cut(s, "@")
		out = append(out, &discoveryv3.Resource{Name: name, Version: version, Resource: body(t, name)})
	}
	return out
}

// kept shows what is kept of a type as "name@version", "-name" for what is gone.
func kept(c *lastgood.Config, url string) string {
	var out []string
	c.View(url, func(ty lastgood.Type, ok bool) {
		if !ok {
			out = []string{"unknown"}
		}
		for name, r := range ty.Resources {
			if r.IsGone() {
				out = append(out, "-"+name)
			} else {
				out = append(out, name+"@"+r.Version)
			}
		}
	})
	slices.Sort(out)
	return strings.Join(out, " ")
}

func wantKept(t *testing.T, c *lastgood.Config, url, want string) {
	t.Helper()
	if got := kept(c, url); got != want {
		t.Errorf("kept %q, want %q", got, want)
	}
}

// deltaStream drives a session as an Envoy and a pilot would.
type deltaStream struct {
	t *testing.T
	*deltaSession
}

func (d deltaStream) ask(url string, initial map[string]string, names ...string) *discoveryv3.DeltaDiscoveryRequest {
	return d.request(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: url, InitialResourceVersions: initial, ResourceNamesSubscribe: names})
}

func (d deltaStream) give(url, nonce string, removed []string, specs ...string) {
	d.response(&discoveryv3.DeltaDiscoveryResponse{TypeUrl: url, Nonce: nonce, RemovedResources: removed, Resources: res(d.t, specs...)})
}

func (d deltaStream) ack(url, nonce string) {
	d.request(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: url, ResponseNonce: nonce})
}

func (d deltaStream) nack(url, nonce string) {
	d.request(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: url, ResponseNonce: nonce, ErrorDetail: &statuspb.Status{Message: "no"}})
}

func TestDeltaKeepsWhatIsAcknowledged(t *testing.T) {
	c, clk := newConfig(t), &clock{time.Unix(0, 0)}
	d := deltaStream{t, newDelta(c, clk.now)}
	d.ask(clusterURL, nil, "*")
	d.give(clusterURL, "1", nil, "a@1", "b@1")
	wantKept(t, c, clusterURL, "unknown")
	d.ack(clusterURL, "1")
	wantKept(t, c, clusterURL, "a@1 b@1")
	d.give(clusterURL, "2", []string{"b"}, "a@2")
	d.nack(clusterURL, "2")
	wantKept(t, c, clusterURL, "a@1 b@1")
	d.ack(clusterURL, "2") // it was refused: too late
	wantKept(t, c, clusterURL, "a@1 b@1")
	d.give(clusterURL, "3", []string{"b"}, "a@3", "c@1")
	d.ack(clusterURL, "9") // never sent
	wantKept(t, c, clusterURL, "a@1 b@1")
	d.ack(clusterURL, "3")
	wantKept(t, c, clusterURL, "a@3 c@1")

	d.ask(edsURL, nil, "x", "y", "z")
	d.give(edsURL, "4", []string{"z"}, "x@1", "y@1")
	d.ack(edsURL, "4")
	wantKept(t, c, edsURL, "-z x@1 y@1")
	d.request(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: edsURL, ResourceNamesUnsubscribe: []string{"y"}})
	wantKept(t, c, edsURL, "-z x@1")
}

func TestDeltaNewStreamReplacesAnEarlierLife(t *testing.T) {
	c, clk := newConfig(t), &clock{time.Unix(0, 0)}
	d := deltaStream{t, newDelta(c, clk.now)}
	d.ask(clusterURL, nil, "*")
	d.give(clusterURL, "1", nil, "a@1", "old@1")
	d.ack(clusterURL, "1")
	d.ask(edsURL, nil, "a", "old")
	d.give(edsURL, "2", nil, "a@1", "old@1")
	d.ack(edsURL, "2")

	// The Envoy restarts; "old" went away meanwhile, and nobody says so.
	d = deltaStream{t, newDelta(c, clk.now)}
	d.ask(clusterURL, nil)
	wantKept(t, c, clusterURL, "a@1 old@1")
	d.give(clusterURL, "1", nil, "a@1")
	d.ack(clusterURL, "1")
	wantKept(t, c, clusterURL, "a@1")
	d.ask(edsURL, nil, "a")
	d.give(edsURL, "2", nil, "a@1")
	d.ack(edsURL, "2")
	wantKept(t, c, edsURL, "a@1 old@1")
	// What is asked for by name is tidied up when the stream is not young any more.
	clk.at = clk.at.Add(settled + time.Second)
	d.give(edsURL, "3", nil, "a@2")
	d.ack(edsURL, "3")
	wantKept(t, c, edsURL, "a@2")

	// It reconnects with what it has: that stays.
	d = deltaStream{t, newDelta(c, clk.now)}
	d.ask(clusterURL, map[string]string{"a": "1"}, "*")
	d.give(clusterURL, "1", nil, "b@1")
	d.ack(clusterURL, "1")
	wantKept(t, c, clusterURL, "a@1 b@1")
}

func TestDeltaAsksAgainForWhatIsNotKept(t *testing.T) {
	c, clk := newConfig(t), &clock{}
	d := deltaStream{t, newDelta(c, clk.now)}
	d.ask(clusterURL, nil, "*")
	d.give(clusterURL, "1", nil, "a@1", "b@1")
	d.ack(clusterURL, "1")

	d = deltaStream{t, newDelta(c, clk.now)}
	req := &discoveryv3.DeltaDiscoveryRequest{
		Node: &corev3.Node{Id: "x"}, TypeUrl: clusterURL, ResourceNamesSubscribe: []string{"*"}, ResponseNonce: "n",
		InitialResourceVersions: map[string]string{"a": "1", "b": "2", "c": "1"},
	}
	before := proto.CloneOf(req)
	sent := d.request(req)
	if !proto.Equal(req, before) {
		t.Error("the Envoy's own request was changed")
	}
	want := proto.CloneOf(before)
	want.InitialResourceVersions = map[string]string{"a": "1", "b": unknownVersion, "c": unknownVersion}
	if !proto.Equal(sent, want) {
		t.Errorf("sent %v, want %v", sent, want)
	}
}

func showDelta(r *discoveryv3.DeltaDiscoveryResponse) string {
	if r == nil {
		return "nothing"
	}
	var out []string
	for _, res := range r.GetResources() {
		out = append(out, res.GetName()+"@"+res.GetVersion())
	}
	for _, name := range r.GetRemovedResources() {
		out = append(out, "-"+name)
	}
	return "[" + strings.Join(out, " ") + "]"
}

func TestDeltaOffline(t *testing.T) {
	c, clk := newConfig(t), &clock{}
	d := deltaStream{t, newDelta(c, clk.now)}
	d.ask(clusterURL, nil, "*")
	d.give(clusterURL, "1", nil, "a@1", "b@1")
	d.ack(clusterURL, "1")
	d.ask(edsURL, nil, "a", "none")
	d.give(edsURL, "2", []string{"none"}, "a@1")
	d.ack(edsURL, "2")
	d.ask(listenerURL, nil, "*")
	d.give(listenerURL, "3", nil)
	d.ack(listenerURL, "3")
	type ask struct {
		url     string
		initial map[string]string
		names   []string
		want    string
	}
	for name, asks := range map[string][]ask{
		"an Envoy that starts": {
			{clusterURL, nil, []string{"*"}, "[a@1 b@1]"},
			{clusterURL, nil, nil, "nothing"}, // its acknowledgement
			{edsURL, nil, []string{"a"}, "[a@1]"},
			{edsURL, nil, []string{"none", "never-heard-of"}, "[-none]"},
			{listenerURL, nil, nil, "[]"},
			{"type.googleapis.com/envoy.config.route.v3.RouteConfiguration", nil, []string{"r"}, "nothing"},
		},
		"an Envoy with newer configuration": {
			{clusterURL, map[string]string{"a": "7", "c": "7"}, []string{"*"}, "nothing"},
			{edsURL, map[string]string{"a": "7"}, []string{"a"}, "nothing"},
			{listenerURL, map[string]string{"l": "1"}, nil, "nothing"},
		},
		"an Envoy that needs one thing more": {
			{edsURL, map[string]string{"b": "7"}, []string{"a", "b"}, "[a@1]"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDelta(c, clk.now)
			for i, a := range asks {
				got := d.offline(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: a.url, InitialResourceVersions: a.initial, ResourceNamesSubscribe: a.names})
				if showDelta(got) != a.want {
					t.Errorf("request %d: %s, want %s", i, showDelta(got), a.want)
				}
			}
		})
	}
}

func TestSotWKeepsAndAnswersOffline(t *testing.T) {
	c, clk := newConfig(t), &clock{time.Unix(0, 0)}
	live := newSotW(c, clk.now)
	give := func(url, nonce, version string, names ...string) {
		resp := &discoveryv3.DiscoveryResponse{TypeUrl: url, Nonce: nonce, VersionInfo: version}
		for _, n := range names {
			resp.Resources = append(resp.Resources, body(t, n))
		}
		live.response(resp)
	}
	ask := func(url, nonce string, names ...string) {
		live.request(&discoveryv3.DiscoveryRequest{TypeUrl: url, ResponseNonce: nonce, ResourceNames: names})
	}
	ask(clusterURL, "")
	give(clusterURL, "1", "v1", "a", "b")
	wantKept(t, c, clusterURL, "unknown")
	ask(clusterURL, "1")
	wantKept(t, c, clusterURL, "a@v1 b@v1")
	give(clusterURL, "2", "v2", "c")
	live.request(&discoveryv3.DiscoveryRequest{TypeUrl: clusterURL, ResponseNonce: "2", ErrorDetail: &statuspb.Status{}})
	wantKept(t, c, clusterURL, "a@v1 b@v1")
	give(clusterURL, "3", "v3", "a", "c")
	ask(clusterURL, "3")
	wantKept(t, c, clusterURL, "a@v3 c@v3")
	ask(edsURL, "", "a", "c")
	give(edsURL, "4", "v3", "a", "c")
	ask(edsURL, "4", "a", "c")

	show := func(r *discoveryv3.DiscoveryResponse) string {
		if r == nil {
			return "nothing"
		}
		out := r.GetVersionInfo() + ":"
		for _, b := range r.GetResources() {
			name, _ := nameOf(b.GetValue())
			out += " " + name
		}
		return out
	}
	off := newSotW(c, clk.now)
	for i, tc := range []struct {
		req  *discoveryv3.DiscoveryRequest
		want string
	}{
		{&discoveryv3.DiscoveryRequest{TypeUrl: clusterURL}, "kept-v3: a c"},
		{&discoveryv3.DiscoveryRequest{TypeUrl: clusterURL, ResponseNonce: "kept-1", VersionInfo: "kept-v3"}, "nothing"},
		{&discoveryv3.DiscoveryRequest{TypeUrl: edsURL, ResourceNames: []string{"c"}}, "kept-v3: c"},
		{&discoveryv3.DiscoveryRequest{TypeUrl: edsURL, ResourceNames: []string{"a", "c"}, ResponseNonce: "kept-2"}, "kept-v3: a c"},
		{&discoveryv3.DiscoveryRequest{TypeUrl: edsURL, ResourceNames: []string{"a"}, ResponseNonce: "kept-2"}, "nothing"}, // stale
		{&discoveryv3.DiscoveryRequest{TypeUrl: listenerURL}, "nothing"},
	} {
		if got := show(off.offline(tc.req)); got != tc.want {
			t.Errorf("request %d: %s, want %s", i, got, tc.want)
		}
	}
	off = newSotW(c, clk.now)
	if got := off.offline(&discoveryv3.DiscoveryRequest{TypeUrl: clusterURL, VersionInfo: "v9"}); got != nil {
		t.Errorf("an Envoy with configuration got %s", show(got))
	}
}

func TestUnansweredResponsesAreBounded(t *testing.T) {
	c, clk := newConfig(t), &clock{}
	d := deltaStream{t, newDelta(c, clk.now)}
	d.ask(clusterURL, nil, "*")
	s := newSotW(c, clk.now)
	s.request(&discoveryv3.DiscoveryRequest{TypeUrl: clusterURL})
	for i := range 10 * maxUnanswered {
		d.give(clusterURL, strings.Repeat("x", i+1), nil, "a@1")
		s.response(&discoveryv3.DiscoveryResponse{TypeUrl: clusterURL, Nonce: strings.Repeat("x", i+1)})
	}
	if n, m := len(d.types[clusterURL].pending.order), len(s.types[clusterURL].pending.order); n != maxUnanswered || m != maxUnanswered {
		t.Errorf("%d and %d responses are remembered", n, m)
	}
}

func TestIdentify(t *testing.T) {
	for _, tc := range []struct {
		name      string
		node      *corev3.Node
		corrected bool
	}{
		{"none", nil, false},
		{"right", &corev3.Node{Id: "proxy"}, false},
		{"wrong", &corev3.Node{Id: "other"}, true},
		{"empty", &corev3.Node{}, true},
	} {
		out, corrected := identify(tc.node, "proxy", "n1")
		if out.GetId() != "proxy" || corrected != tc.corrected || out.GetMetadata().GetFields()[metadataNode].GetStringValue() != "n1" {
			t.Errorf("%s: %v, %t", tc.name, out, corrected)
		}
	}
}

func FuzzNameOf(f *testing.F) {
	f.Add([]byte{0x0a, 1, 'x'})
	f.Add([]byte{0x12, 1, 'x', 0x0a, 200})
	f.Add([]byte{0x08, 1})
	f.Fuzz(func(t *testing.T, data []byte) {
		if name, ok := nameOf(data); ok && len(name) > len(data) {
			t.Fatalf("%q of %x", name, data)
		}
	})
}

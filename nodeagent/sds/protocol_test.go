package sds

import (
	"fmt"
	"slices"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/types/known/anypb"
)

func have(versions ...string) secrets {
	out := make(secrets)
	for i, name := range []string{NameDefault, NameRoot} {
		if i < len(versions) && versions[i] != "" {
			out[name] = secret{version: versions[i], body: &anypb.Any{TypeUrl: typeURL, Value: []byte(name + versions[i])}}
		}
	}
	return out
}

func sub(names ...string) *discoveryv3.DeltaDiscoveryRequest {
	return &discoveryv3.DeltaDiscoveryRequest{ResourceNamesSubscribe: names}
}

// show writes a response as "nonce: name@version ... -removed ...".
func show(r *discoveryv3.DeltaDiscoveryResponse) string {
	if r == nil {
		return "nothing"
	}
	s := r.GetNonce() + ":"
	for _, res := range r.GetResources() {
		s += " " + res.GetName() + "@" + res.GetVersion()
	}
	for _, name := range r.GetRemovedResources() {
		s += " -" + name
	}
	return s
}

func TestDelta(t *testing.T) {
	type step struct {
		req  *discoveryv3.DeltaDiscoveryRequest // nil: only the secrets change
		have secrets
		ev   event
		want string
	}
	ack := func(nonce string) *discoveryv3.DeltaDiscoveryRequest {
		return &discoveryv3.DeltaDiscoveryRequest{ResponseNonce: nonce}
	}
	nack := func(nonce string) *discoveryv3.DeltaDiscoveryRequest {
		return &discoveryv3.DeltaDiscoveryRequest{ResponseNonce: nonce, ErrorDetail: &statuspb.Status{Message: "no"}}
	}
	for name, steps := range map[string][]step{
		"push on change": {
			{sub(NameDefault), have("a"), none, "1: default@a"},
			{ack("1"), have("a"), acked, "nothing"},
			{nil, have("b"), none, "2: default@b"},
			{ack("2"), have("b"), acked, "nothing"},
		},
		"first request late": {
			{nil, have("a", "r"), none, "nothing"},
			{sub(NameRoot), have("a", "r"), none, "1: ROOTCA@r"},
		},
		"secret late": {
			{sub(NameDefault, NameRoot), have("", "r"), none, "1: ROOTCA@r"},
			{nil, have("a", "r"), none, "2: default@a"},
		},
		"unexpected names": {
			{sub("default/other", NameDefault), have("a"), none, "1: default@a -default/other"},
			{ack("1"), have("a"), acked, "nothing"},
			{sub("default/other"), have("a"), none, "2: -default/other"},
			{sub("*"), have("a", "r"), none, "3: -*"},
		},
		"without names": {
			{sub(), have("a", "r"), none, "nothing"},
			{nil, have("b", "s"), none, "nothing"},
		},
		"refused is not sent again": {
			{sub(NameDefault), have("a"), none, "1: default@a"},
			{nack("1"), have("a"), nacked, "nothing"},
			{nil, have("a"), none, "nothing"},
			{nil, have("b"), none, "2: default@b"},
		},
		"nonce of another time": {
			{sub(NameDefault), have("a"), none, "1: default@a"},
			{ack("7"), have("a"), none, "nothing"},
			{ack("1"), have("a"), acked, "nothing"},
			{ack("1"), have("a"), none, "nothing"},
		},
		"subscribe again": {
			{sub(NameDefault), have("a"), none, "1: default@a"},
			{sub(NameDefault), have("a"), none, "2: default@a"},
		},
		"unsubscribe": {
			{sub(NameDefault, NameRoot), have("a", "r"), none, "1: ROOTCA@r default@a"},
			{&discoveryv3.DeltaDiscoveryRequest{ResourceNamesUnsubscribe: []string{NameDefault}}, have("b", "s"), none, "2: ROOTCA@s"},
			{sub(NameDefault), have("b", "s"), none, "3: default@b"},
		},
		"reconnect with the same": {
			{&discoveryv3.DeltaDiscoveryRequest{
				ResourceNamesSubscribe:  []string{NameDefault, NameRoot},
				InitialResourceVersions: map[string]string{NameDefault: "a", NameRoot: "q"}, ResponseNonce: "9",
			}, have("a", "r"), none, "1: ROOTCA@r"},
			{nil, have("b", "r"), none, "2: default@b"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := new(delta)
			for i, s := range steps {
				if s.req != nil {
					if ev := d.request(s.req); ev != s.ev {
						t.Errorf("step %d: event %d, want %d", i, ev, s.ev)
					}
				}
				if got := show(d.respond(s.have)); got != s.want {
					t.Errorf("step %d: %s, want %s", i, got, s.want)
				}
			}
		})
	}
}

func TestStateOfTheWorld(t *testing.T) {
	type step struct {
		req  *discoveryv3.DiscoveryRequest
		have secrets
		ev   event
		want string
	}
	req := func(nonce string, names ...string) *discoveryv3.DiscoveryRequest {
		return &discoveryv3.DiscoveryRequest{ResponseNonce: nonce, ResourceNames: names}
	}
	nack := func(nonce string, names ...string) *discoveryv3.DiscoveryRequest {
		r := req(nonce, names...)
		r.ErrorDetail = &statuspb.Status{Message: "no"}
		return r
	}
	for name, steps := range map[string][]step{
		"push on change": {
			{req("", NameDefault), have("a"), none, "1 default=a"},
			{req("1", NameDefault), have("a"), acked, "nothing"},
			{nil, have("b"), none, "2 default=b"},
			{req("2", NameDefault), have("b"), acked, "nothing"},
		},
		"first request late": {
			{nil, have("a", "r"), none, "nothing"},
			{req("", NameRoot), have("a", "r"), none, "1 ROOTCA=r"},
		},
		"secret late": {
			{req("", NameDefault, NameRoot), have("", "r"), none, "1 ROOTCA=r"},
			{nil, have("a", "r"), none, "2 ROOTCA=r,default=a"},
		},
		"unexpected names are left out": {
			{req("", "x", NameDefault), have("a", "r"), none, "1 default=a"},
			{req("", "x"), have("a", "r"), none, "nothing"},
			{req(""), have("a", "r"), none, "nothing"},
			{nil, have("b", "s"), none, "nothing"},
		},
		"refused is not sent again": {
			{req("", NameDefault), have("a"), none, "1 default=a"},
			{nack("1", NameDefault), have("a"), nacked, "nothing"},
			{nil, have("b"), none, "2 default=b"},
		},
		"stale request": {
			{req("", NameDefault), have("a"), none, "1 default=a"},
			{nil, have("b"), none, "2 default=b"},
			{req("1", NameRoot), have("b", "r"), acked, "nothing"},
			{req("2", NameDefault), have("b", "r"), acked, "nothing"},
		},
		"names change with the acknowledgement": {
			{req("", NameDefault), have("a", "r"), none, "1 default=a"},
			{req("1", NameDefault, NameRoot), have("a", "r"), acked, "2 ROOTCA=r,default=a"},
			{req("2", NameRoot), have("a", "r"), acked, "3 ROOTCA=r"},
			{nil, have("b", "r"), none, "nothing"},
		},
		"reconnect with an old nonce": {
			{req("41", NameDefault), have("a"), none, "1 default=a"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := new(sotw)
			for i, s := range steps {
				if s.req != nil {
					if ev := m.request(s.req); ev != s.ev {
						t.Errorf("step %d: event %d, want %d", i, ev, s.ev)
					}
				}
				got := "nothing"
				if r := m.respond(s.have); r != nil {
					got = r.GetNonce() + " " + r.GetVersionInfo()
				}
				if got != s.want {
					t.Errorf("step %d: %s, want %s", i, got, s.want)
				}
			}
		})
	}
}

func TestUnansweredResponsesAreBounded(t *testing.T) {
	d := new(delta)
	d.request(sub(NameDefault))
	for i := range 10 * maxPending {
		if d.respond(have(fmt.Sprint(i))) == nil {
			t.Fatal("a change was not pushed")
		}
	}
	if len(d.nonces.pending) != maxPending {
		t.Fatalf("%d responses are waited for", len(d.nonces.pending))
	}
}

// FuzzDelta: whatever a client sends, it never gets a name that it does not
// subscribe to or that is not its own, and it always gets to the newest version.
func FuzzDelta(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5})
	f.Add([]byte{1, 1, 9, 4, 12, 3, 3, 0})
	f.Fuzz(func(t *testing.T, ops []byte) {
		names := []string{NameDefault, NameRoot, "x", "*"}
		d, held, version := new(delta), map[string]string{}, 0
		for _, op := range ops {
			name := names[int(op>>3)%len(names)]
			switch op % 4 {
			case 0:
				d.request(sub(name))
			case 1:
				d.request(&discoveryv3.DeltaDiscoveryRequest{ResourceNamesUnsubscribe: []string{name}})
				delete(held, name)
			case 2:
				d.request(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: fmt.Sprint(op >> 3)})
			case 3:
				version++
			}
			now := fmt.Sprint(version)
			resp := d.respond(have(now, now))
			for _, r := range resp.GetResources() {
				if !known(r.GetName()) || !d.wants(r.GetName()) {
					t.Fatalf("%s was sent", r.GetName())
				}
				held[r.GetName()] = r.GetVersion()
			}
			for _, n := range []string{NameDefault, NameRoot} {
				if d.wants(n) && held[n] != now {
					t.Fatalf("%s is at %q, want %q", n, held[n], now)
				}
			}
			if slices.ContainsFunc(resp.GetRemovedResources(), known) {
				t.Fatalf("removed: %v", resp.GetRemovedResources())
			}
		}
	})
}

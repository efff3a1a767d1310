package sds

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
)

// of gives secrets of versions, the certificate's signed by an authority.
func of(authority, leaf, root string) secrets {
	out := have(leaf, root)
	s := out[NameDefault]
	s.authority = authority
	out[NameDefault] = s
	return out
}

func TestStandingOfADeltaClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		moved := 0
		p := newPositions(func() { moved++ })
		want := func(root, active, want string) {
			t.Helper()
			if got := fmt.Sprint(p.standing(root, active)); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		}
		want("r1", "old", "{["+returning+"] [] []}")
		<-time.After(settle)
		synctest.Wait()
		if moved != 1 {
			t.Errorf("told %d times that the time to come back is over", moved)
		}
		want("r1", "old", "{[] [] []}")

		d, pos := new(delta), p.open("web")
		step := func(req *discoveryv3.DeltaDiscoveryRequest, s secrets) *discoveryv3.DeltaDiscoveryResponse {
			if req != nil {
				d.request(req)
			}
			resp := d.respond(s)
			p.update(pos, d.holds())
			return resp
		}
		resp := step(sub(NameDefault, NameRoot), of("old", "c1", "r1"))
		want("r1", "old", "{[web] [] []}") // it has been sent both and has said nothing
		step(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: resp.GetNonce()}, of("old", "c1", "r1"))
		want("r1", "old", "{[] [] [old]}")

		resp = step(nil, of("old", "c1", "r2"))
		want("r2", "old", "{[web] [] [old]}")
		step(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: resp.GetNonce(), ErrorDetail: &statuspb.Status{}}, of("old", "c1", "r2"))
		want("r2", "old", "{[web] [] [old]}") // refused
		resp = step(nil, of("old", "c1", "r3"))
		before := moved
		step(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: resp.GetNonce()}, of("old", "c1", "r3"))
		want("r3", "old", "{[] [] [old]}")
		if moved != before+1 {
			t.Errorf("told %d times of one change", moved-before)
		}

		want("r3", "new", "{[] [web] [old]}")
		resp = step(nil, of("new", "c2", "r3"))
		want("r3", "new", "{[] [web] [old]}") // until it has the next, it has the old one
		step(&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: resp.GetNonce()}, of("new", "c2", "r3"))
		want("r3", "new", "{[] [] [new]}")

		// A client that comes back says what it has.
		p.close(pos, false)
		want("r3", "new", "{[] [] [new]}")
		want("r4", "new", "{[web] [] [new]}")
		d, pos = new(delta), p.open("web")
		step(&discoveryv3.DeltaDiscoveryRequest{
			ResourceNamesSubscribe:  []string{NameDefault, NameRoot},
			InitialResourceVersions: map[string]string{NameDefault: "c1", NameRoot: "r3"},
		}, of("new", "c2", "r3"))
		want("r3", "new", "{[] [web] []}") // whose the old certificate is nobody knows any more
		d, pos = new(delta), p.open("web")
		step(&discoveryv3.DeltaDiscoveryRequest{
			ResourceNamesSubscribe:  []string{NameDefault, NameRoot},
			InitialResourceVersions: map[string]string{NameDefault: "c2", NameRoot: "r3"},
		}, of("new", "c2", "r3"))
		want("r3", "new", "{[] [web] [ new]}")
	})
}

// A stream that ends is remembered while its proxy may come back, and not when the
// proxy is gone.
func TestStandingOfClientsThatGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPositions(func() {})
		<-time.After(settle)
		d := new(delta)
		d.request(sub(NameRoot))
		d.respond(have("", "r1"))
		for _, gone := range []bool{false, true} {
			pos := p.open("web")
			p.update(pos, d.holds())
			p.close(pos, gone)
			if got := len(p.standing("r1", "").Behind); got != map[bool]int{false: 1, true: 0}[gone] {
				t.Errorf("gone %v: %d are waited for", gone, got)
			}
			<-time.After(settle)
			synctest.Wait()
			if got := p.standing("r1", ""); len(got.Behind) > 0 || len(p.all) > 0 {
				t.Errorf("gone %v: in the end %v", gone, got)
			}
		}
	})
}

func TestStandingOfAStateOfTheWorldClient(t *testing.T) {
	s := new(sotw)
	req := func(nonce string, names ...string) *discoveryv3.DiscoveryRequest {
		return &discoveryv3.DiscoveryRequest{ResponseNonce: nonce, ResourceNames: names}
	}
	has := func(name, want string) {
		t.Helper()
		got := "nothing"
		if h := s.holds()[name]; h != nil {
			got = h.has.version + " of " + h.has.authority
		}
		if got != want {
			t.Errorf("%s: it has %s, want %s", name, got, want)
		}
	}
	s.request(req("", NameDefault, NameRoot))
	resp := s.respond(of("old", "c1", "r1"))
	has(NameDefault, " of ")
	s.request(req(resp.GetNonce(), NameDefault, NameRoot))
	has(NameDefault, "c1 of old")
	has(NameRoot, "r1 of ")
	first := s.respond(of("new", "c2", "r1"))
	second := s.respond(of("new", "c2", "r2"))
	s.request(req(first.GetNonce(), NameDefault, NameRoot)) // the answer to the second says more
	has(NameRoot, "r1 of ")
	s.request(req(second.GetNonce(), NameDefault, NameRoot))
	has(NameDefault, "c2 of new")
	has(NameRoot, "r2 of ")
	s.request(req(second.GetNonce(), NameRoot))
	has(NameDefault, "nothing")
}

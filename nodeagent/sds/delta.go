package sds

import (
	"maps"
	"slices"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
)

// delta is the state of one stream of the incremental variant.
type delta struct {
	nonces nonces
	began  bool
	subs   map[string]*interest
	has    holdings
}

// holds is what the client has.
func (d *delta) holds() holdings { return d.has }

// interest is a subscription to one name.
type interest struct {
	// version is what the client has, or was sent and refused; empty is nothing.
	version string
	// force: send it whatever the client has, because it subscribed again.
	force bool
	// removed: the client knows that there is no such resource.
	removed bool
}

// request takes a request of the client in.
func (d *delta) request(req *discoveryv3.DeltaDiscoveryRequest) event {
	if d.subs == nil {
		d.subs, d.has = make(map[string]*interest), make(holdings)
	}
	// Unlike in the other variant, subscriptions count whatever the nonce says:
	// they are changes, and none may be lost.
	for _, name := range req.GetResourceNamesSubscribe() {
		if s := d.subs[name]; s != nil {
			s.force, s.removed = true, false
			continue
		}
		s := new(interest)
		if !d.began {
			s.version = req.GetInitialResourceVersions()[name]
		}
		d.subs[name] = s
		d.has.subscribed(name, s.version)
	}
	for _, name := range req.GetResourceNamesUnsubscribe() {
		delete(d.subs, name)
		delete(d.has, name)
	}
	d.began = true
	ev := d.nonces.answered(req.GetResponseNonce(), req.GetErrorDetail() != nil)
	d.has.answered(req.GetResponseNonce(), ev)
	return ev
}

// wants tells whether the client subscribes to name.
func (d *delta) wants(name string) bool { return d.subs[name] != nil }

// respond returns what the client has to be told, nil if nothing.
func (d *delta) respond(have secrets) *discoveryv3.DeltaDiscoveryResponse {
	resp := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: typeURL}
	for _, name := range slices.Sorted(maps.Keys(d.subs)) {
		s := d.subs[name]
		if !known(name) {
			if !s.removed {
				s.removed = true
				resp.RemovedResources = append(resp.RemovedResources, name)
			}
			continue
		}
		v, ok := have[name]
		if !ok {
			continue
		}
		if v.version == s.version && !s.force {
			d.has.same(name, v)
			continue
		}
		s.version, s.force = v.version, false
		resp.Resources = append(resp.Resources, &discoveryv3.Resource{Name: name, Version: v.version, Resource: v.body})
	}
	if len(resp.GetResources())+len(resp.GetRemovedResources()) == 0 {
		return nil
	}
	resp.Nonce = d.nonces.next()
	for _, r := range resp.GetResources() {
		d.has.sent(r.GetName(), resp.GetNonce(), have[r.GetName()])
	}
	return resp
}

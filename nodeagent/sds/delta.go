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
}

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
		d.subs = make(map[string]*interest)
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
	}
	for _, name := range req.GetResourceNamesUnsubscribe() {
		delete(d.subs, name)
	}
	d.began = true
	return d.nonces.answered(req.GetResponseNonce(), req.GetErrorDetail() != nil)
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
		if !ok || (v.version == s.version && !s.force) {
			continue
		}
		s.version, s.force = v.version, false
		resp.Resources = append(resp.Resources, &discoveryv3.Resource{Name: name, Version: v.version, Resource: v.body})
	}
	if len(resp.GetResources())+len(resp.GetRemovedResources()) == 0 {
		return nil
	}
	resp.Nonce = d.nonces.next()
	return resp
}

package sds

import (
	"maps"
	"slices"
	"strings"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
)

// sotw is the state of one stream of the state-of-the-world variant.
type sotw struct {
	nonces nonces
	began  bool
	names  []string
	// version is that of the last response.
	version string
	// force: answer though nothing is newer, because the names changed.
	force bool
	has   holdings
}

// holds is what the client has.
func (s *sotw) holds() holdings { return s.has }

// request takes a request of the client in.
func (s *sotw) request(req *discoveryv3.DiscoveryRequest) event {
	ev := s.nonces.answered(req.GetResponseNonce(), req.GetErrorDetail() != nil)
	s.has.answered(req.GetResponseNonce(), ev)
	// The first request of a stream counts whatever nonce of an earlier stream it
	// carries. Later ones that answer an older response are stale: the client
	// will answer the newest too, with the names that it wants by then.
	if s.began && !s.nonces.current(req.GetResponseNonce()) && req.GetResponseNonce() != "" {
		return ev
	}
	names := slices.Compact(slices.Sorted(slices.Values(req.GetResourceNames())))
	if !s.began || !slices.Equal(names, s.names) {
		s.force = true
	}
	s.began, s.names = true, names
	s.subscribed()
	return ev
}

// subscribed keeps what the client has in line with the names that it wants.
func (s *sotw) subscribed() {
	if s.has == nil {
		s.has = make(holdings)
	}
	maps.DeleteFunc(s.has, func(name string, _ *holding) bool { return !s.wants(name) })
	for _, name := range s.names {
		s.has.subscribed(name, "")
	}
}

// wants tells whether the client subscribes to name. Without names it subscribes
// to nothing: secrets have no wildcard.
func (s *sotw) wants(name string) bool { return slices.Contains(s.names, name) }

// respond returns what the client has to be told, nil if nothing.
func (s *sotw) respond(have secrets) *discoveryv3.DiscoveryResponse {
	resp := &discoveryv3.DiscoveryResponse{TypeUrl: typeURL}
	var versions []string
	for _, name := range s.names {
		if v, ok := have[name]; ok {
			versions = append(versions, name+"="+v.version)
			resp.Resources = append(resp.Resources, v.body)
		}
	}
	resp.VersionInfo = strings.Join(versions, ",")
	// Envoy refuses a response without the secret that it asked for, so there is
	// nothing to say until there is one.
	if len(resp.GetResources()) == 0 || (resp.GetVersionInfo() == s.version && !s.force) {
		return nil
	}
	s.version, s.force = resp.GetVersionInfo(), false
	resp.Nonce = s.nonces.next()
	for _, name := range s.names {
		if v, ok := have[name]; ok {
			s.has.sent(name, resp.GetNonce(), v)
		}
	}
	return resp
}

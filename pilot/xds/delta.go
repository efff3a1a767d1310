package xds

import (
	"context"
	"slices"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/delta/v3"
)

var (
	_ cache.ConfigWatcher = (*session)(nil)
	_ delta.Callbacks     = (*session)(nil)
)

// CreateDeltaWatch takes a question of a delta client.
func (s *session) CreateDeltaWatch(req *cache.DeltaRequest, sub cache.Subscription, responses chan cache.DeltaResponse) (func(), error) {
	url := req.GetTypeUrl()
	ignore, err := s.admit(url)
	if ignore || err != nil {
		return func() {}, err
	}
	w := &watch{sub: sub}
	w.send = func(p *push, c change, _ []*Resource) bool {
		r := s.deltaResponse(req, c)
		p.response, p.before = r.DeltaDiscoveryResponse, nil
		select {
		case responses <- r:
			return true
		default:
			return false
		}
	}
	s.mu.Lock()
	c, first := s.conversation(url)
	if first {
		c.begin(req.GetInitialResourceVersions())
		if !c.fresh {
			s.cameBack(url)
		}
		s.warmReplaced()
		c.want(req.GetResourceNamesSubscribe())
	} else {
		c.ask(req.GetResourceNamesSubscribe())
		c.forget(req.GetResourceNamesUnsubscribe())
	}
	c.open(w)
	s.advance()
	s.mu.Unlock()
	s.srv.progressed(s)
	return func() { s.cancelWatch(c, w) }, nil
}

func (s *session) cancelWatch(c *conversation, w *watch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.watch == w {
		c.watch = nil
	}
}

// cameBack takes note that a client has resources of a type from an earlier stream.
func (s *session) cameBack(url string) {
	s.returning = true
	if !s.client.Envoy {
		return
	}
	switch until := time.Now().Add(s.srv.opt.SubscribeWait); url {
	case RouteType:
		s.filtersUntil = until
	case ListenerType:
		s.routesUntil = until
	}
}

// begin takes over what the client kept from an earlier stream.
func (c *conversation) begin(versions map[string]string) {
	c.fresh = len(versions) == 0
	for name, version := range versions {
		c.told = append(c.told, &Resource{Name: name, Version: version})
	}
	slices.SortFunc(c.told, func(a, b *Resource) int { return strings.Compare(a.Name, b.Name) })
}

// forget handles names that a client unsubscribed from. One that has everything
// anyway has to be told whether the resource is still there.
func (c *conversation) forget(names []string) {
	if !c.wildcard {
		return // open drops them
	}
	told := slices.Clone(c.told)
	for i, r := range told {
		if slices.Contains(names, r.Name) {
			told[i] = unknown(r.Name)
		}
	}
	c.told = told
}

func (s *session) deltaResponse(req *cache.DeltaRequest, c change) *cache.DeltaPassthroughResponse {
	out := &discoveryv3.DeltaDiscoveryResponse{
		SystemVersionInfo: versionInfo(s.revision),
		TypeUrl:           req.GetTypeUrl(),
		Resources:         make([]*discoveryv3.Resource, len(c.set)),
		RemovedResources:  c.remove,
	}
	for i, r := range c.set {
		out.Resources[i] = r.wire
	}
	// The map must be there and be the client's own: go-control-plane writes to
	// it. What the client holds is kept in the conversation.
	return &cache.DeltaPassthroughResponse{DeltaRequest: req, DeltaDiscoveryResponse: out, NextVersionMap: map[string]string{}}
}

// OnDeltaStreamOpen is part of go-control-plane's callbacks.
func (s *session) OnDeltaStreamOpen(context.Context, int64, string) error { return nil }

// OnDeltaStreamClosed is part of go-control-plane's callbacks.
func (s *session) OnDeltaStreamClosed(int64, *corev3.Node) { s.close() }

// OnStreamDeltaRequest takes note of who asks, and of acknowledgements.
func (s *session) OnStreamDeltaRequest(_ int64, req *discoveryv3.DeltaDiscoveryRequest) error {
	if err := s.identify(req.GetNode()); err != nil {
		return err
	}
	s.answered(req.GetTypeUrl(), req.GetResponseNonce(), req.GetErrorDetail())
	return nil
}

// OnStreamDeltaResponse takes note of the nonce of a response.
func (s *session) OnStreamDeltaResponse(_ int64, req *discoveryv3.DeltaDiscoveryRequest, resp *discoveryv3.DeltaDiscoveryResponse) {
	s.sent(req.GetTypeUrl(), resp, resp.GetNonce())
}

func (s *session) sent(url string, response any, nonce string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.types[url]; c != nil {
		c.named(response, nonce)
	}
}

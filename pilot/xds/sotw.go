package xds

import (
	"context"
	"maps"
	"slices"
	"strconv"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/sotw/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

var _ sotw.Callbacks = (*session)(nil)

// CreateWatch takes a question of a state-of-the-world client.
func (s *session) CreateWatch(req *cache.Request, sub cache.Subscription, responses chan cache.Response) (func(), error) {
	url := req.GetTypeUrl()
	ignore, err := s.admit(url)
	if ignore || err != nil {
		return func() {}, err
	}
	w := &watch{sub: sub, whole: removalOf(url) != never}
	s.mu.Lock()
	c, first := s.conversation(url)
	if first {
		c.fresh = true
		if req.GetVersionInfo() != "" {
			s.returns(c, sub)
		}
	}
	// A response that was queued when this request came in is never sent.
	c.dropUnsent()
	w.send = func(p *push, ch change, all []*Resource) bool {
		r := s.response(req, c, ch, all)
		p.response = r.DiscoveryResponse
		select {
		case responses <- r:
			return true
		default:
			return false
		}
	}
	c.open(w)
	s.advance()
	s.mu.Unlock()
	s.srv.progressed(s)
	return func() { s.cancelWatch(c, w) }, nil
}

// returns takes note that a client has resources from an earlier stream. It does not say
// in which versions, and of some types not even which.
func (s *session) returns(c *conversation, sub cache.Subscription) {
	c.unnamed = sub.IsWildcard()
	for _, name := range slices.Sorted(maps.Keys(sub.SubscribedResources())) {
		c.told = append(c.told, unknown(name))
	}
	s.cameBack(c.url)
}

// response holds the changes for endpoints and routes, everything for other
// types, where leaving out means removal.
func (s *session) response(req *cache.Request, c *conversation, ch change, all []*Resource) *cache.PassthroughResponse {
	list := ch.set
	if removalOf(c.url) != never {
		list = all
	}
	sel := c.selection(false)
	out := &discoveryv3.DiscoveryResponse{VersionInfo: versionInfo(s.revision), TypeUrl: req.GetTypeUrl()}
	for _, r := range list {
		if r.wire != nil && sel.has(r.Name) {
			out.Resources = append(out.Resources, &anypb.Any{TypeUrl: r.wire.Resource.TypeUrl, Value: r.wire.Resource.Value})
		}
	}
	return &cache.PassthroughResponse{Request: req, DiscoveryResponse: out, ReturnedResources: map[string]string{}}
}

// OnStreamOpen is part of go-control-plane's callbacks.
func (s *session) OnStreamOpen(context.Context, int64, string) error { return nil }

// OnStreamClosed is part of go-control-plane's callbacks.
func (s *session) OnStreamClosed(int64, *corev3.Node) { s.close() }

// OnStreamRequest takes note of who asks, and of acknowledgements.
func (s *session) OnStreamRequest(_ int64, req *discoveryv3.DiscoveryRequest) error {
	if err := s.identify(req.GetNode()); err != nil {
		return err
	}
	s.answered(req.GetTypeUrl(), req.GetResponseNonce(), req.GetErrorDetail())
	return nil
}

// OnStreamResponse takes note of the nonce of a response.
func (s *session) OnStreamResponse(_ context.Context, _ int64, req *discoveryv3.DiscoveryRequest, resp *discoveryv3.DiscoveryResponse) {
	s.sent(req.GetTypeUrl(), resp, resp.GetNonce())
}

// versionInfo is what operators see in an Envoy's config dump.
func versionInfo(revision uint64) string { return strconv.FormatUint(revision, 10) }

package relay

import (
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/writ-mesh/writ/nodeagent/lastgood"
)

// The types whose responses always hold everything, and whose requests without
// names ask for everything.
const (
	listenerURL = "type.googleapis.com/envoy.config.listener.v3.Listener"
	clusterURL  = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
)

// sotwSession follows one stream of the state-of-the-world variant. request and
// response may be called concurrently.
type sotwSession struct {
	config *lastgood.Config
	now    func() time.Time
	began  time.Time

	mu     sync.Mutex
	types  map[string]*sotwType
	nonces uint64
}

type sotwType struct {
	names   []string
	pending unanswered[*discoveryv3.DiscoveryResponse]
	// last is the nonce of the newest answer from disk.
	last string
}

func newSotW(config *lastgood.Config, now func() time.Time) *sotwSession {
	return &sotwSession{config: config, now: now, began: now(), types: make(map[string]*sotwType)}
}

func (s *sotwSession) typeOf(url string) (t *sotwType, first bool) {
	t = s.types[url]
	if first = t == nil; first {
		t = new(sotwType)
		s.types[url] = t
	}
	return t, first
}

// request sees a request on its way to pilot.
func (s *sotwSession) request(req *discoveryv3.DiscoveryRequest) *discoveryv3.DiscoveryRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, _ := s.typeOf(req.GetTypeUrl())
	t.names = req.GetResourceNames()
	if resp := t.pending.take(req.GetResponseNonce()); resp != nil && req.GetErrorDetail() == nil {
		s.commit(t, resp)
	}
	return req
}

// response sees a response on its way to the proxy.
func (s *sotwSession) response(resp *discoveryv3.DiscoveryResponse) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.types[resp.GetTypeUrl()]; t != nil {
		t.pending.add(resp)
	}
}

// commit keeps what the proxy has acknowledged.
func (s *sotwSession) commit(t *sotwType, resp *discoveryv3.DiscoveryResponse) {
	url := resp.GetTypeUrl()
	s.config.Update(url, func(kept *lastgood.Type) {
		if full(url) {
			clear(kept.Resources)
		}
		for _, body := range resp.GetResources() {
			name, ok := nameOf(body.GetValue())
			if !ok {
				continue
			}
			r, err := lastgood.NewResource(&discoveryv3.Resource{Name: name, Version: resp.GetVersionInfo(), Resource: body})
			if err == nil {
				kept.Resources[name] = r
			}
		}
		if len(t.names) > 0 && s.now().Sub(s.began) > settled {
			maps.DeleteFunc(kept.Resources, func(name string, _ lastgood.Resource) bool { return !slices.Contains(t.names, name) })
		}
		kept.Version = resp.GetVersionInfo()
	})
}

func full(url string) bool { return url == listenerURL || url == clusterURL }

// nameOf reads the name of a resource without knowing its type: in every resource
// of the discovery protocol it is the string in field 1.
func nameOf(body []byte) (string, bool) {
	for len(body) > 0 {
		num, kind, n := protowire.ConsumeTag(body)
		if n < 0 {
			return "", false
		}
		body = body[n:]
		if num == 1 && kind == protowire.BytesType {
			v, m := protowire.ConsumeBytes(body)
			return string(v), m >= 0
		}
		m := protowire.ConsumeFieldValue(num, kind, body)
		if m < 0 {
			return "", false
		}
		body = body[m:]
	}
	return "", false
}

// offline answers a request from what is kept; nil is no answer.
func (s *sotwSession) offline(req *discoveryv3.DiscoveryRequest) *discoveryv3.DiscoveryResponse {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, first := s.typeOf(req.GetTypeUrl())
	same := slices.Equal(t.names, req.GetResourceNames())
	t.names = req.GetResourceNames()
	switch {
	case first && req.GetVersionInfo() != "":
		return nil // it has its configuration
	case len(t.names) == 0 && !full(req.GetTypeUrl()):
		return nil // it wants none
	case !first && (same || (t.last != "" && req.GetResponseNonce() != t.last)):
		return nil
	}
	resp := &discoveryv3.DiscoveryResponse{TypeUrl: req.GetTypeUrl()}
	known := false
	s.config.View(req.GetTypeUrl(), func(kept lastgood.Type, ok bool) {
		known = ok
		// Not a version of pilot's: when pilot is back it shall send its own.
		resp.VersionInfo = offlineNonce + kept.Version
		names := slices.Sorted(slices.Values(t.names))
		if len(names) == 0 {
			names = slices.Sorted(maps.Keys(kept.Resources))
		}
		for _, name := range slices.Compact(names) {
			if r, ok := kept.Resources[name]; ok && !r.IsGone() {
				if m, err := r.Message(); err == nil {
					resp.Resources = append(resp.Resources, m.GetResource())
				}
			}
		}
	})
	if !known || (len(resp.GetResources()) == 0 && !full(req.GetTypeUrl())) {
		return nil
	}
	s.nonces++
	resp.Nonce = offlineNonce + strconv.FormatUint(s.nonces, 10)
	t.last = resp.GetNonce()
	return resp
}

// starts tells whether req is from a proxy that has no configuration yet.
func (s *sotwSession) starts(req *discoveryv3.DiscoveryRequest) bool {
	return req.GetVersionInfo() == ""
}

func (*sotwSession) identify(req *discoveryv3.DiscoveryRequest, first bool, proxyID, node string) (corrected bool) {
	if first || req.GetNode() != nil {
		req.Node, corrected = identify(req.GetNode(), proxyID, node)
	}
	return corrected
}

package relay

import (
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/writ-mesh/writ/nodeagent/lastgood"
)

const (
	wildcard = "*"
	// unknownVersion is given to pilot for a resource whose bytes are not kept.
	unknownVersion = "unknown-to-agent"
	// settled is how long a stream must have been live before what it does not
	// subscribe to is forgotten: a proxy that starts asks little by little.
	settled = 30 * time.Second
	// offlineNonce begins the nonces of answers from disk.
	offlineNonce = "kept-"
)

// deltaSession follows one stream of the incremental variant. request and response
// may be called concurrently.
type deltaSession struct {
	config *lastgood.Config
	now    func() time.Time
	began  time.Time

	mu     sync.Mutex
	types  map[string]*deltaType
	nonces uint64
}

type deltaType struct {
	names map[string]bool // subscribed, without the wildcard
	all   bool
	// initial are the resources that the proxy had when the stream began.
	initial map[string]string
	// committed: something of this stream was acknowledged.
	committed bool
	pending   unanswered[*discoveryv3.DeltaDiscoveryResponse]
}

func newDelta(config *lastgood.Config, now func() time.Time) *deltaSession {
	return &deltaSession{config: config, now: now, began: now(), types: make(map[string]*deltaType)}
}

// subscribe applies a request's changes; first tells that it is the type's first
// on this stream.
func (d *deltaSession) subscribe(req *discoveryv3.DeltaDiscoveryRequest) (t *deltaType, first bool) {
	t = d.types[req.GetTypeUrl()]
	if first = t == nil; first {
		t = &deltaType{
			names: make(map[string]bool), initial: req.GetInitialResourceVersions(),
			// A first request without names means all, for types that are so used.
			all: len(req.GetResourceNamesSubscribe()) == 0,
		}
		d.types[req.GetTypeUrl()] = t
	}
	for _, name := range req.GetResourceNamesSubscribe() {
		if name == wildcard {
			t.all = true
		} else {
			t.names[name] = true
		}
	}
	for _, name := range req.GetResourceNamesUnsubscribe() {
		if name == wildcard {
			t.all = false
		}
		delete(t.names, name)
	}
	return t, first
}

// request sees a request on its way to pilot and returns what to send there.
func (d *deltaSession) request(req *discoveryv3.DeltaDiscoveryRequest) *discoveryv3.DeltaDiscoveryRequest {
	d.mu.Lock()
	defer d.mu.Unlock()
	t, first := d.subscribe(req)
	if resp := t.pending.take(req.GetResponseNonce()); resp != nil && req.GetErrorDetail() == nil {
		d.commit(t, resp)
	}
	if gone := req.GetResourceNamesUnsubscribe(); len(gone) > 0 && !t.all {
		d.config.Update(req.GetTypeUrl(), func(kept *lastgood.Type) {
			for _, name := range gone {
				delete(kept.Resources, name)
			}
		})
	}
	if first && len(t.initial) > 0 {
		return d.askForUnknown(req)
	}
	return req
}

// askForUnknown changes the versions that are not kept here.
func (d *deltaSession) askForUnknown(req *discoveryv3.DeltaDiscoveryRequest) *discoveryv3.DeltaDiscoveryRequest {
	versions := maps.Clone(req.GetInitialResourceVersions())
	d.config.View(req.GetTypeUrl(), func(kept lastgood.Type, _ bool) {
		for name, version := range versions {
			if r, ok := kept.Resources[name]; !ok || r.IsGone() || r.Version != version {
				versions[name] = unknownVersion
			}
		}
	})
	return &discoveryv3.DeltaDiscoveryRequest{
		Node: req.GetNode(), TypeUrl: req.GetTypeUrl(), InitialResourceVersions: versions,
		ResourceNamesSubscribe: req.GetResourceNamesSubscribe(), ResourceNamesUnsubscribe: req.GetResourceNamesUnsubscribe(),
		ResponseNonce: req.GetResponseNonce(), ErrorDetail: req.GetErrorDetail(),
		ResourceLocatorsSubscribe: req.GetResourceLocatorsSubscribe(), ResourceLocatorsUnsubscribe: req.GetResourceLocatorsUnsubscribe(),
	}
}

// response sees a response on its way to the proxy.
func (d *deltaSession) response(resp *discoveryv3.DeltaDiscoveryResponse) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if t := d.types[resp.GetTypeUrl()]; t != nil {
		t.pending.add(resp)
	}
}

// commit keeps what the proxy has acknowledged.
func (d *deltaSession) commit(t *deltaType, resp *discoveryv3.DeltaDiscoveryResponse) {
	first := !t.committed
	t.committed = true
	d.config.Update(resp.GetTypeUrl(), func(kept *lastgood.Type) {
		if first && t.all {
			// What the proxy did not have when the stream began and does not get
			// now is of an earlier life.
			maps.DeleteFunc(kept.Resources, func(name string, _ lastgood.Resource) bool { _, had := t.initial[name]; return !had })
		}
		for _, r := range resp.GetResources() {
			if r.GetResource() == nil {
				continue // only prolongs the life of what is there
			}
			if v, err := lastgood.NewResource(r); err == nil {
				kept.Resources[r.GetName()] = v
			}
		}
		for _, name := range resp.GetRemovedResources() {
			delete(kept.Resources, name)
			if t.names[name] {
				kept.Resources[name] = lastgood.Gone()
			}
		}
		if !t.all && d.now().Sub(d.began) > settled {
			maps.DeleteFunc(kept.Resources, func(name string, _ lastgood.Resource) bool { return !t.names[name] })
		}
		kept.Version = resp.GetSystemVersionInfo()
	})
}

// offline answers a request from what is kept; nil is no answer.
func (d *deltaSession) offline(req *discoveryv3.DeltaDiscoveryRequest) *discoveryv3.DeltaDiscoveryResponse {
	d.mu.Lock()
	defer d.mu.Unlock()
	t, first := d.subscribe(req)
	names := slices.Clone(req.GetResourceNamesSubscribe())
	resp := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: req.GetTypeUrl()}
	known := false
	d.config.View(req.GetTypeUrl(), func(kept lastgood.Type, ok bool) {
		known = ok
		resp.SystemVersionInfo = kept.Version
		if t.all && first && len(t.initial) == 0 {
			names = slices.AppendSeq(names, maps.Keys(kept.Resources))
		}
		slices.Sort(names)
		for _, name := range slices.Compact(names) {
			if _, had := t.initial[name]; had && first {
				continue
			}
			r, ok := kept.Resources[name]
			if !ok {
				continue
			}
			if r.IsGone() {
				resp.RemovedResources = append(resp.RemovedResources, name)
			} else if m, err := r.Message(); err == nil {
				resp.Resources = append(resp.Resources, m)
			}
		}
	})
	empty := len(resp.GetResources())+len(resp.GetRemovedResources()) == 0
	// A proxy that starts waits for the answer to "all", even if it is none.
	if empty && (!known || !first || !t.all || len(t.initial) > 0) {
		return nil
	}
	d.nonces++
	resp.Nonce = offlineNonce + strconv.FormatUint(d.nonces, 10)
	return resp
}

// starts tells whether req is from a proxy that has no configuration yet.
func (d *deltaSession) starts(req *discoveryv3.DeltaDiscoveryRequest) bool {
	return len(req.GetInitialResourceVersions()) == 0
}

// identify puts the attested node into a request that carries one, and into the
// first.
func (*deltaSession) identify(req *discoveryv3.DeltaDiscoveryRequest, first bool, proxyID, node string) (corrected bool) {
	if first || req.GetNode() != nil {
		req.Node, corrected = identify(req.GetNode(), proxyID, node)
	}
	return corrected
}

package xds

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/config"
	"github.com/envoyproxy/go-control-plane/pkg/server/delta/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/sotw/v3"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
)

var (
	errStopped   = grpcstatus.Error(codes.Unavailable, "pilot is stopping")
	errQueueFull = grpcstatus.Error(codes.ResourceExhausted, "more resource types than a client may ask for on one stream")
)

// Kind tells clients apart.
type Kind string

// The kinds of clients.
const (
	SidecarKind Kind = "sidecar"
	GatewayKind Kind = "gateway"
	ServiceKind Kind = "service"
)

// Client is who takes configuration on one stream.
type Client struct {
	// ID names the client in status and logs: a proxy's xDS node id, or
	// service~NAME, node~NAME. Proxies find their configuration by it.
	ID   string
	Kind Kind
	// NodeID is the xDS node id that the client gave.
	NodeID string
	// Node is the node whose agent speaks for the client; a proxy gets only a
	// configuration that is meant for that node.
	Node string
	// Dynamic proxies are taken as they come: their configuration is asked for
	// (Wanted) and may be for any node.
	Dynamic bool
	// Envoy is set for clients that subscribe to all that their clusters and
	// listeners refer to.
	Envoy bool
	// Version is the client's version, for status.
	Version string
	// Types are the types that a service may have; unused for proxies.
	Types []string
	// Only, if set, is the only resource that a service may have of each type.
	Only string
}

// EventKind says what happened.
type EventKind int

// The kinds of events.
const (
	// Connected: the client was identified.
	Connected EventKind = iota
	// Disconnected: its stream ended.
	Disconnected
	// Acked: it has acknowledged all of Revision.
	Acked
	// Refused: it did not accept Resources, sent as part of Revision.
	Refused
	// Wanted: it is a dynamic proxy without configuration; see Server.Adopt.
	Wanted
)

// Event is something that a client did.
type Event struct {
	Kind   EventKind
	Client Client
	// Session identifies the stream; two events of one stream have equal ones.
	Session  any
	Revision uint64
	// TypeURL, Detail (the client's words) and Resources (all of the response) belong to Refused.
	TypeURL   string
	Detail    string
	Resources []*Resource
	// Metadata is the xDS node of a dynamic proxy, with Wanted.
	Metadata *corev3.Node
}

// Observer counts. Its methods must not block.
type Observer interface {
	Pushed(typeURL string, set, removed int)
	Acked(typeURL string)
	Refused(typeURL string)
}

type noObserver struct{}

func (noObserver) Pushed(string, int, int) {}
func (noObserver) Acked(string)            {}
func (noObserver) Refused(string)          {}

// Options are what a Server needs. Zero durations mean the defaults.
type Options struct {
	// Identify says who calls, from the connection and the xDS node of the
	// first request, or returns a status error to refuse.
	Identify func(ctx context.Context, node *corev3.Node) (Client, error)
	// Old tells whether a client is of an earlier version, nil: none is. Older makes of a
	// resource what such clients get, the resource itself if that will do.
	Old   func(Client) bool
	Older func(resource *anypb.Any) (*anypb.Any, error)
	// Between gives a filter that stands in for the one before and the one after while
	// routes change, nil if that after will do; nil: it always will.
	Between func(before, after *anypb.Any) (*anypb.Any, error)
	// BetweenEndpoints does the same for endpoints, while listeners change.
	BetweenEndpoints func(before, after *anypb.Any) (*anypb.Any, error)
	// Served tells whether routes find in a filter what they ask of it: those that do go to
	// a client that refused another version of the filter; nil: none does.
	Served func(routes, filter *anypb.Any) (bool, error)
	// NamedAfterListener tells of a route configuration that another listener has another
	// name for it. What is left of others holds up no cluster that goes; nil: of all.
	NamedAfterListener func(routes string) bool
	Log                *slog.Logger
	Observer           Observer
	// RemoveDelay is how long clusters and policies that nothing refers to any
	// more are kept, for requests that are under way: 5 s. Negative: not at all.
	RemoveDelay time.Duration
	// ResolveDelay is what new clusters with host names get to resolve them
	// before routes refer to them: 250 ms. Negative: nothing.
	ResolveDelay time.Duration
	// SubscribeWait bounds the wait for an Envoy to ask for the endpoints of its new clusters: 5 s.
	SubscribeWait time.Duration
	// ServicesWait bounds how long proxies wait until the services of Writ have
	// acknowledged what is new to them: 500 ms. PoliciesWait is the same for RegoPolicies and
	// QuotaPolicies, whose content routes name: 10 s, in which authz compiles thousands of
	// them. A service that took longer is not waited for until it has caught up.
	ServicesWait, PoliciesWait time.Duration
	// PlacementWait is how long an unknown proxy may wait to be placed by a next snapshot: 5 s.
	PlacementWait time.Duration
}

func (o *Options) fill() {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Observer == nil {
		o.Observer = noObserver{}
	}
	o.RemoveDelay = cmp.Or(o.RemoveDelay, 5*time.Second)
	o.ResolveDelay = cmp.Or(o.ResolveDelay, 250*time.Millisecond)
	o.SubscribeWait = cmp.Or(o.SubscribeWait, 5*time.Second)
	o.ServicesWait = cmp.Or(o.ServicesWait, 500*time.Millisecond)
	o.PoliciesWait = max(cmp.Or(o.PoliciesWait, 10*time.Second), o.ServicesWait)
	o.PlacementWait = cmp.Or(o.PlacementWait, 5*time.Second)
}

// Server is the aggregated discovery service. Locks are taken in the order
// Server.mu, session.mu, Server.events.
type Server struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	opt Options

	// life ends with Stop; every stream ends with it.
	life context.Context
	stop context.CancelCauseFunc

	mu       sync.Mutex
	stopped  bool
	sessions map[*session]struct{}
	// snap is the newest snapshot; proxies are given it when released.
	snap *Snapshot
	// released is the snapshot that proxies are given.
	released *Snapshot
	// adopted are the configurations of dynamic proxies, for released.
	adopted map[string]*Config
	// release gives snap to proxies when services take too long.
	release *time.Timer

	events queue
}

// New returns a server that has nothing to give yet: clients wait for the first Publish.
func New(o Options) *Server {
	o.fill()
	life, stop := context.WithCancelCause(context.Background())
	return &Server{
		opt:      o,
		life:     life,
		stop:     stop,
		sessions: map[*session]struct{}{},
		adopted:  map[string]*Config{},
		events:   queue{ready: make(chan struct{}, 1)},
	}
}

// DeltaAggregatedResources serves one delta client.
func (s *Server) DeltaAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	ss := s.open(stream.Context())
	defer ss.end(nil)
	// Only clusters and listeners have the old form of the wildcard (an empty first request).
	err := delta.NewServer(ss.ctx, ss, ss, config.DeactivateLegacyWildcardForTypes(named())).DeltaStreamHandler(stream, "")
	return ss.reason(err)
}

// StreamAggregatedResources serves one state-of-the-world client.
func (s *Server) StreamAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	ss := s.open(stream.Context())
	defer ss.end(nil)
	err := sotw.NewServer(ss.ctx, ss, ss, config.DeactivateLegacyWildcardForTypes(named())).StreamHandler(stream, "")
	return ss.reason(err)
}

// named are the types of which a client only has what it names.
func named() []string { return []string{EndpointType, RouteType, ExtensionType} }

func (s *Server) open(ctx context.Context) *session {
	ctx, end := context.WithCancelCause(ctx)
	detach := context.AfterFunc(s.life, func() { end(errStopped) })
	context.AfterFunc(ctx, func() { detach() })
	return &session{srv: s, ctx: ctx, end: end, types: map[string]*conversation{}, since: time.Now()}
}

// reason is why the stream ends, as a status for the client.
func (s *session) reason(err error) error {
	if err != nil {
		return err
	}
	cause := context.Cause(s.ctx)
	if cause == nil || errors.Is(cause, context.Canceled) || errors.Is(cause, context.DeadlineExceeded) {
		return nil
	}
	return cause
}

// admit checks whether the client may ask for a type. Types of Envoy that are
// never given are ignored, as Envoy asks for them when its bootstrap says so.
func (s *session) admit(url string) (ignore bool, err error) {
	if s.client.Kind == ServiceKind {
		if !slices.Contains(s.client.Types, url) {
			return false, grpcstatus.Errorf(codes.PermissionDenied, "%s may not have resources of type %s", s.client.ID, url)
		}
		return false, nil
	}
	switch url {
	case NodePlacementType, RegoPolicyType, TokenIssuerType, QuotaPolicyType:
		return false, grpcstatus.Errorf(codes.PermissionDenied, "%s may not have resources of type %s", s.client.ID, url)
	}
	return !slices.Contains(envoyTypes[:], url), nil
}

// Publish gives every client what the snapshot has for it: services at once,
// proxies as soon as the services have acknowledged (so that no decider is asked
// about a policy that it has not got), at the latest after ServicesWait or PoliciesWait.
func (s *Server) Publish(snap *Snapshot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return
	}
	s.snap = snap
	for ss := range s.sessions {
		if ss.client.Kind == ServiceKind {
			ss.setTarget(s.serviceConfig(ss.client), snap)
		}
	}
	if len(s.unready()) == 0 {
		s.releaseLocked()
		return
	}
	if s.release != nil {
		return // edits that follow each other are not held up for longer
	}
	s.releaseAfter(s.opt.ServicesWait, func() {
		if s.goOn(RegoPolicyType, QuotaPolicyType); s.released != s.snap {
			s.releaseAfter(s.opt.PoliciesWait-s.opt.ServicesWait, func() { s.goOn() })
		}
	})
}

// releaseAfter calls f, with the lock, if proxies still wait then.
func (s *Server) releaseAfter(wait time.Duration, f func()) {
	var release *time.Timer
	release = time.AfterFunc(wait, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.release == release && !s.stopped {
			f()
		}
	})
	s.release = release
}

// goOn waits no more for the services that have not acknowledged, but for those that have
// not acknowledged what is of these types.
func (s *Server) goOn(but ...string) {
	var late []string
	for _, ss := range s.unready() {
		if !slices.ContainsFunc(but, func(url string) bool { return !ss.ready(url) }) {
			ss.late = true
			late = append(late, ss.client.ID)
		}
	}
	if len(late) > 0 {
		slices.Sort(late)
		s.opt.Log.Warn("proxies go on without waiting for services that have not acknowledged", slog.Any("revision", s.snap.Revision), slog.Any("services", late))
	}
	s.releaseIfReady()
}

// releaseIfReady gives proxies what they wait for if no service is waited for any more.
func (s *Server) releaseIfReady() {
	if s.snap != s.released && !s.stopped && len(s.unready()) == 0 {
		s.releaseLocked()
	}
}

// unready are the services that are waited for and have something to acknowledge.
func (s *Server) unready() []*session {
	var out []*session
	for ss := range s.sessions {
		if ss.client.Kind == ServiceKind && !ss.late && !ss.ready("") {
			out = append(out, ss)
		}
	}
	return out
}

// ready says that nothing of this type, of any type for "", that was sent is still to be
// acknowledged.
func (s *session) ready(typeURL string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for url, c := range s.types {
		if (typeURL == "" || typeURL == url) && !c.settled(s.target.Set(url).Resources()) && !c.failed() {
			return false
		}
	}
	return true
}

// progressed is called after each request of a client, without its lock.
func (s *Server) progressed(ss *session) {
	if ss.client.Kind != ServiceKind {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	ss.late = ss.late && !ss.ready("")
	s.releaseIfReady()
}

func (s *Server) releaseLocked() {
	if s.release != nil {
		s.release.Stop()
		s.release = nil
	}
	s.released = s.snap
	s.adopted = map[string]*Config{}
	for ss := range s.sessions {
		if ss.client.Kind != ServiceKind {
			s.place(ss)
		}
	}
}

// place gives a proxy what is meant for it, or asks for that.
func (s *Server) place(ss *session) {
	c := s.configOf(ss.client)
	switch {
	case c != nil && (ss.client.Dynamic || c.Node == ss.client.Node):
		if ss.placement != nil {
			ss.placement.Stop()
		}
		ss.setTarget(s.configFor(ss.client, c), s.released)
	case c != nil:
		ss.end(grpcstatus.Errorf(codes.PermissionDenied, "proxy %s is not placed on node %q", ss.client.ID, ss.client.Node))
	case ss.client.Dynamic:
		s.emit(Event{Kind: Wanted, Client: ss.client, Session: ss, Metadata: ss.node})
	}
}

func (s *Server) configOf(c Client) *Config {
	if s.released == nil {
		return nil
	}
	if cfg := s.released.Proxies[c.ID]; cfg != nil {
		return cfg
	}
	return s.adopted[c.ID]
}

// Adopt gives a dynamic proxy its configuration for the snapshot that is being
// served; it is forgotten when the proxy disconnects or another snapshot comes.
func (s *Server) Adopt(id string, c *Config, revision uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped || s.released == nil || s.released.Revision != revision {
		return
	}
	for ss := range s.sessions {
		if ss.client.ID == id && ss.client.Dynamic {
			s.adopted[id] = c
			ss.setTarget(s.configFor(ss.client, c), s.released)
		}
	}
}

// Adopted lists the configurations of the dynamic proxies that are connected.
func (s *Server) Adopted() []*Config {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Values(s.adopted))
}

// serviceConfig is the part of the snapshot that a service may have.
func (s *Server) serviceConfig(client Client) *Config {
	c := &Config{sets: map[string]*Set{}}
	for _, url := range client.Types {
		set := s.snap.Services.Set(url)
		if client.Only != "" {
			if r := set.Get(client.Only); r != nil {
				set = &Set{TypeURL: url, Hash: r.Version, list: []*Resource{r}}
			} else {
				set = nil
			}
		}
		if set != nil {
			c.sets[url] = set
		}
	}
	return c
}

// join takes a client in that has been identified.
func (s *Server) join(ss *session) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return errStopped
	}
	s.sessions[ss] = struct{}{}
	s.emit(Event{Kind: Connected, Client: ss.client, Session: ss})
	if ss.client.Kind == ServiceKind {
		if s.snap != nil {
			ss.setTarget(s.serviceConfig(ss.client), s.snap)
		}
		return nil
	}
	if s.released == nil || s.configOf(ss.client) == nil && !ss.client.Dynamic {
		s.awaitPlacement(ss)
	}
	if s.released != nil {
		s.place(ss)
	}
	return nil
}

// awaitPlacement lets a proxy wait that the mesh does not know: the
// snapshot that places it may be on its way.
func (s *Server) awaitPlacement(ss *session) {
	ss.placement = time.AfterFunc(s.opt.PlacementWait, func() {
		s.mu.Lock()
		known := s.released != nil
		placed := s.configOf(ss.client) != nil
		s.mu.Unlock()
		if known && !placed && !ss.client.Dynamic {
			ss.end(grpcstatus.Errorf(codes.PermissionDenied, "the mesh places no proxy %s on node %q", ss.client.ID, ss.client.Node))
		}
	})
}

// leave lets a client go.
func (s *Server) leave(ss *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.sessions[ss]; !ok {
		return
	}
	delete(s.sessions, ss)
	if ss.placement != nil {
		ss.placement.Stop()
	}
	last := true
	for other := range s.sessions {
		last = last && other.client.ID != ss.client.ID
	}
	if last {
		delete(s.adopted, ss.client.ID)
	}
	s.emit(Event{Kind: Disconnected, Client: ss.client, Session: ss})
	s.releaseIfReady()
}

// Stop ends every stream and refuses new ones.
func (s *Server) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = true
	if s.release != nil {
		s.release.Stop()
	}
	s.stop(errStopped)
}

// Stopped is closed by Stop.
func (s *Server) Stopped() <-chan struct{} { return s.life.Done() }

func (s *Server) emit(e Event) { s.events.put(e) }

// Ready has a value when Events has something.
func (s *Server) Ready() <-chan struct{} { return s.events.ready }

// Events returns what happened since the last call, oldest first.
func (s *Server) Events() []Event { return s.events.take() }

// queue hands events over without making clients wait for who reads them.
type queue struct {
	mu    sync.Mutex
	list  []Event
	ready chan struct{}
}

func (q *queue) put(e Event) {
	q.mu.Lock()
	q.list = append(q.list, e)
	q.mu.Unlock()
	select {
	case q.ready <- struct{}{}:
	default:
	}
}

func (q *queue) take() []Event {
	q.mu.Lock()
	defer q.mu.Unlock()
	list := q.list
	q.list = nil
	return list
}

// ClientStatus is what is known of one connected client.
type ClientStatus struct {
	Client
	// Acked is the revision that it has acknowledged entirely, 0 if none.
	Acked       uint64
	ConnectedAt time.Time
	LastError   string
	// Resources is how many it holds, by type URL.
	Resources map[string]uint32
}

// Clients lists the connected clients, sorted by ID, then by time of connection.
func (s *Server) Clients() []ClientStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]ClientStatus, 0, len(s.sessions))
	for ss := range s.sessions {
		list = append(list, ss.status())
	}
	slices.SortFunc(list, func(a, b ClientStatus) int {
		return cmp.Or(cmp.Compare(a.ID, b.ID), a.ConnectedAt.Compare(b.ConnectedAt))
	})
	return list
}

func (s *session) status() ClientStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := ClientStatus{Client: s.client, Acked: s.acked, ConnectedAt: s.since, LastError: s.lastError, Resources: map[string]uint32{}}
	for url, c := range s.types {
		st.Resources[url] = uint32(len(c.told))
	}
	return st
}

package xds

import (
	"context"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
)

// session is one stream of one client. It is the cache and the callbacks that
// go-control-plane's server of that stream works with.
type session struct {
	srv *Server
	ctx context.Context
	// end closes the stream with the given reason.
	end context.CancelCauseFunc

	mu       sync.Mutex
	client   Client
	known    bool // client is set
	closed   bool
	since    time.Time
	target   *Config // nil until the client's configuration is known
	revision uint64  // of target
	// renew is that of the target's snapshot, and renewals are what it gave.
	renew    func(name string, routes *anypb.Any) (*anypb.Any, error)
	renewals map[*Resource]*Resource
	types    map[string]*conversation
	// rewarm are clusters that were replaced before the client spoke of endpoints.
	rewarm []string
	// returning: the client has configuration already, from an earlier stream or
	// an earlier target, so that changes have to come in order.
	returning bool
	// acked is the revision that the client has entirely, valid if ackedAny.
	acked    uint64
	ackedAny bool
	// lastError is the client's last refusal; cleared when it acknowledges a revision entirely.
	lastError string

	// filtersUntil is how long a client that came back with routes may take to say which
	// filters it has; zero for others.
	filtersUntil time.Time
	// routesUntil is the same for one that came back with listeners and its routes.
	routesUntil time.Time

	// The deadlines below belong to the present target; zero if not running.
	warmAfter   time.Time // new clusters have had time to resolve their names
	needsUntil  time.Time // patience for subscriptions that have to come
	removeAfter time.Time // what nobody uses any more may go
	timer       *time.Timer

	// node is the xDS node of a dynamic proxy; set before the session is shared.
	node *corev3.Node
	// placement ends the stream of a proxy that stays unknown; guarded by Server.mu.
	placement *time.Timer
	// late: proxies do not wait for this service until it has caught up; guarded by
	// Server.mu.
	late bool
}

// identify learns who the client is from its first request.
func (s *session) identify(node *corev3.Node) error {
	s.mu.Lock()
	known, id := s.known, s.client.ID
	s.mu.Unlock()
	if known {
		if node != nil && node.GetId() != "" && s.client.NodeID != node.GetId() {
			return grpcstatus.Errorf(codes.InvalidArgument, "the node id changed from %q to %q on one stream", id, node.GetId())
		}
		return nil
	}
	client, err := s.srv.opt.Identify(s.ctx, node)
	if err != nil {
		return err
	}
	client.NodeID = node.GetId()
	s.mu.Lock()
	s.client, s.known = client, true
	if client.Dynamic {
		s.node = node
	}
	s.mu.Unlock()
	return s.srv.join(s)
}

// setTarget gives the client something new to get to.
func (s *session) setTarget(c *Config, of *Snapshot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.target == c && s.revision == of.Revision {
		return
	}
	s.returning = s.returning || s.target != nil && len(s.types) > 0
	s.types[RouteType].recognize(s.target.Set(RouteType))
	s.target, s.revision = c, of.Revision
	s.renew, s.renewals = of.Renew, nil
	s.warmAfter, s.needsUntil, s.removeAfter = time.Time{}, time.Time{}, time.Time{}
	for _, t := range s.types {
		t.refused, t.served = nil, nil
		t.goBack()
	}
	s.advance()
}

// conversation returns the one about a type; first says that it begins now.
func (s *session) conversation(url string) (c *conversation, first bool) {
	if c = s.types[url]; c != nil {
		return c, false
	}
	c = &conversation{url: url}
	s.types[url] = c
	return c, true
}

// answered handles an acknowledgement or a refusal; nonce is empty in a request that is neither.
func (s *session) answered(url, nonce string, failure *status.Status) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.types[url]
	if c == nil || nonce == "" {
		return
	}
	p := c.take(nonce)
	if p == nil {
		return
	}
	if failure == nil {
		s.srv.opt.Observer.Acked(url)
		c.keep(p)
		return
	}
	s.refuse(c, p, failure.GetMessage())
}

// refuse takes note of a refusal. If it concerns an earlier target, it says
// nothing about the present one, from which the client is sent the resources again.
func (s *session) refuse(c *conversation, p *push, detail string) {
	if p.renewed != nil {
		s.keepEarlier(c, p, detail)
		return
	}
	var target []*Resource
	if p.revision == s.revision {
		target = s.target.Set(c.url).Resources()
	}
	c.refuse(p, target)
	s.lastError = said(p, c.url, detail)
	s.srv.opt.Observer.Refused(c.url)
	s.srv.emit(Event{Kind: Refused, Client: s.client, Session: s, Revision: p.revision, TypeURL: c.url, Detail: detail, Resources: p.set})
}

// report tells when the client has acknowledged all of its target.
func (s *session) report() {
	if !s.complete() || s.ackedAny && s.acked == s.revision {
		return
	}
	s.acked, s.ackedAny, s.lastError = s.revision, true, ""
	s.srv.emit(Event{Kind: Acked, Client: s.client, Session: s, Revision: s.revision})
}

// complete says that the client has all that it has to have. An Envoy has to have
// everything, others what they are subscribed to.
func (s *session) complete() bool {
	if len(s.types) == 0 {
		return false
	}
	for url, c := range s.types {
		if !c.settled(s.wanted(url)) {
			return false
		}
	}
	if !s.client.Envoy {
		return true
	}
	for _, url := range []string{ClusterType, ListenerType} {
		if s.types[url] == nil && s.target.Set(url).Len() > 0 {
			return false
		}
	}
	return s.hasNeeded(ClusterType, EndpointType) && s.hasNeeded(ListenerType, RouteType) && s.hasNeeded(ListenerType, ExtensionType)
}

// hasNeeded says that the client holds what the resources of one type need of another.
func (s *session) hasNeeded(of, needed string) bool {
	set := s.target.Set(of)
	return set == nil || s.types[needed].has(set.needed, s.target.Set(needed))
}

// close ends what outlives a request. It is called once, when the stream has ended.
func (s *session) close() {
	s.mu.Lock()
	s.closed = true
	if s.timer != nil {
		s.timer.Stop()
	}
	for _, c := range s.types {
		c.watch = nil
	}
	known := s.known
	s.mu.Unlock()
	if known {
		s.srv.leave(s)
	}
}

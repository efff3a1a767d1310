package xds

import (
	"slices"
	"time"
)

// gate says how far listeners, routes and filters may change.
type gate int

const (
	// opened: the clusters are there.
	opened gate = iota
	// waiting: for an acknowledgement of clusters or endpoints.
	waiting
	// broken: the client refused clusters or endpoints; what it has stays, and
	// only what it newly asks for is given.
	broken
)

// advance does everything that can be done now for the client. It is called
// after every event (a request, a new target, a deadline) and derives the stage
// from the state, so that there is no stage to get out of step.
func (s *session) advance() {
	if s.target == nil || s.closed {
		return
	}
	now := time.Now()
	var wake time.Time
	if s.client.Kind == ServiceKind {
		wake = s.advanceService(now)
	} else {
		wake = s.advanceProxy(now)
	}
	s.report()
	s.arm(now, wake)
}

// advanceProxy takes an Envoy (or another xDS client) through make before break.
// It returns when to look again, zero if only the client's answer matters.
func (s *session) advanceProxy(now time.Time) time.Time {
	cds := s.types[ClusterType]
	s.push(cds, opened, false)
	s.pushTo(s.types[EndpointType], s.endpoints(), opened, false)
	g, wake := s.gate(now)
	if until := s.pushListeners(now, g); !until.IsZero() {
		wake = until
	}
	if until := s.pushFilters(g, now); !until.IsZero() {
		wake = until
	}
	if g != opened || !s.settled(ListenerType) || !s.settled(RouteType) || !s.settled(ExtensionType) || s.earlier() {
		return wake
	}
	return s.removeLast(now, ClusterType)
}

// pushFilters gives filters and routes: first filters that do for the routes of before
// as for those of after, then the routes, then the filters of the target. A filter that
// the client refuses holds back the routes that want it, and no others. One that comes
// back may speak of its routes before it speaks of its filters, which is waited for: it
// returns until when, zero if it is not.
func (s *session) pushFilters(g gate, now time.Time) (until time.Time) {
	filters, routes := s.types[ExtensionType], s.types[RouteType]
	wanted := s.filters()
	s.pushTo(filters, wanted, g, false)
	ofRoutes := g
	switch {
	case g != opened || !s.returning:
	case filters == nil:
		if now.Before(s.filtersUntil) && s.target.Set(ExtensionType).Len() > 0 {
			ofRoutes, until = waiting, s.filtersUntil
		}
	case !filters.fresh && !filters.quiet(wanted):
		ofRoutes = waiting
	}
	if routes != nil {
		routes.held = s.heldRoutes()
	}
	s.push(routes, ofRoutes, false)
	s.pushRenewed(routes)
	return until
}

// advanceService gives a service of Writ its resources: at once what is new, later
// removes what proxies may still ask it about.
func (s *session) advanceService(now time.Time) time.Time {
	var urls []string
	for url, c := range s.types {
		s.push(c, opened, removalOf(url) == atOnce)
		urls = append(urls, url)
	}
	return s.removeLast(now, urls...)
}

// gate decides whether listeners and routes may refer to the clusters of the target.
func (s *session) gate(now time.Time) (gate, time.Time) {
	cds, eds := s.types[ClusterType], s.types[EndpointType]
	if cds.failed() || eds.failed() {
		return broken, time.Time{}
	}
	if !s.settled(ClusterType) || !s.settled(EndpointType) {
		return waiting, time.Time{}
	}
	if now.Before(s.warmAfter) {
		return waiting, s.warmAfter
	}
	if !s.client.Envoy || cds == nil || s.hasNeeded(ClusterType, EndpointType) {
		s.needsUntil = time.Time{}
		return opened, time.Time{}
	}
	if s.needsUntil.IsZero() {
		s.needsUntil = now.Add(s.srv.opt.SubscribeWait)
	}
	if now.Before(s.needsUntil) {
		return waiting, s.needsUntil
	}
	return opened, time.Time{}
}

// removeLast removes what the target lacks, RemoveDelay after everything else was settled.
func (s *session) removeLast(now time.Time, urls ...string) time.Time {
	surplus := false
	for _, url := range urls {
		surplus = surplus || s.types[url].surplus(s.target.Set(url).Resources())
	}
	if !surplus {
		return time.Time{}
	}
	if s.removeAfter.IsZero() {
		s.removeAfter = now.Add(s.srv.opt.RemoveDelay)
	}
	if now.Before(s.removeAfter) {
		return s.removeAfter
	}
	for _, url := range urls {
		s.push(s.types[url], opened, true)
	}
	return time.Time{}
}

func (s *session) settled(url string) bool { return s.types[url].settled(s.wanted(url)) }

// wanted are the resources of a type that the client shall have now.
func (s *session) wanted(url string) []*Resource {
	target := s.target.Set(url).Resources()
	switch url {
	case ExtensionType:
		return s.filters()
	case EndpointType:
		return s.endpoints()
	case RouteType:
		if renewed, _ := s.renewed(); len(renewed) > 0 {
			return apply(target, change{set: renewed}, nil)
		}
	}
	return target
}

// push answers the client's open question if there is something to say.
func (s *session) push(c *conversation, g gate, removals bool) {
	if c == nil {
		return
	}
	s.pushTo(c, s.target.Set(c.url).Resources(), g, removals)
}

// pushTo is push with another target than that of the snapshot.
func (s *session) pushTo(c *conversation, target []*Resource, g gate, removals bool) {
	if c == nil || c.watch == nil {
		return
	}
	sel := c.selection(removals)
	sel.held = c.held
	first := c.fresh
	if !first || s.returning {
		switch g {
		case waiting:
			return
		case broken:
			if c.wildcard {
				return
			}
			sel.newOnly = true
		}
	}
	ch := diff(c.told, target, sel)
	if missing := c.missing(target); len(missing) > 0 {
		ch.remove = append(ch.remove, missing...)
		slices.Sort(ch.remove)
	}
	c.asked, c.fresh = nil, false
	if ch.empty() && !(first && c.wildcard) {
		c.told = shared(c.told, target)
		return
	}
	s.noteResolving(c, ch)
	s.warmAgain(c, ch)
	s.send(c, &push{revision: s.revision, set: ch.set, before: c.told}, ch, target)
}

// send answers the client's open question.
func (s *session) send(c *conversation, p *push, ch change, target []*Resource) {
	p.unnamed = c.unnamed
	c.told, c.unnamed = apply(c.told, ch, target), false
	c.pushes = append(c.pushes, p)
	w := c.watch
	c.watch = nil
	if !w.send(p, ch, c.told) {
		s.end(errQueueFull)
		return
	}
	s.srv.opt.Observer.Pushed(c.url, len(ch.set), len(ch.remove))
}

// noteResolving gives clusters that are new and have names to resolve a moment:
// Envoy acknowledges them before they can be used.
func (s *session) noteResolving(c *conversation, ch change) {
	if c.url != ClusterType || c.told == nil {
		return
	}
	for _, r := range ch.set {
		if r.resolves && find(c.told, r.Name) == nil {
			s.warmAfter = time.Now().Add(s.srv.opt.ResolveDelay)
			return
		}
	}
}

// warmAgain has the endpoints of clusters that are replaced sent once more, even
// if they are the same: Envoy warms the new version of a cluster and waits for
// endpoints, but its delta client does not ask for a name that it has asked for
// before (https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol,
// "How the client specifies what resources to return").
func (s *session) warmAgain(c *conversation, ch change) {
	if c.url != ClusterType {
		return
	}
	for _, r := range ch.set {
		if find(c.told, r.Name) != nil {
			s.rewarm = append(s.rewarm, r.Name)
		}
	}
	s.warmReplaced()
}

// warmReplaced does so as soon as the client speaks of endpoints, which on a stream
// that replaces another one is after it got clusters.
func (s *session) warmReplaced() {
	eds := s.types[EndpointType]
	if eds == nil || len(s.rewarm) == 0 {
		return
	}
	told := slices.Clone(eds.told)
	for i, r := range told {
		if slices.Contains(s.rewarm, r.Name) {
			told[i] = unknown(r.Name)
			told[i].wire = r.wire
		}
	}
	eds.told, s.rewarm = told, nil
}

// arm looks again at the given time.
func (s *session) arm(now, wake time.Time) {
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
	if wake.IsZero() {
		return
	}
	s.timer = time.AfterFunc(wake.Sub(now), func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.advance()
	})
}

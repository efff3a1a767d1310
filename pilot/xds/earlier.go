package xds

import (
	"log/slog"
	"slices"
	"time"
)

// A listener names its routes after what they rely on in it, so that another listener in
// its place has other routes, for which an Envoy waits before it takes it (decision 0042).
// Connections that are open stay with the listener and the routes of before until they
// have drained, and the Envoy keeps both so long.

// earlier says that the client has routes which the target does not give it: those of
// listeners that drain. They find in filters what they ask for, and the clusters that they
// go to. Routes of outbound listeners do not count: who is asked is a matter of the target.
func (s *session) earlier() bool {
	routes := s.types[RouteType]
	if routes == nil {
		return false
	}
	target := s.target.Set(RouteType)
	for _, r := range routes.told {
		if target.Get(r.Name) == nil && (s.srv.opt.NamedAfterListener == nil || s.srv.opt.NamedAfterListener(r.Name)) {
			return true
		}
	}
	return false
}

// pushListeners gives the listeners that may go now. It returns when to look again, zero
// if only the client's answer matters.
func (s *session) pushListeners(now time.Time, g gate) (until time.Time) {
	listeners := s.types[ListenerType]
	if listeners == nil {
		return time.Time{}
	}
	listeners.held = nil
	if target := s.target.Set(ListenerType); s.returning && !sameList(listeners.told, target.Resources()) {
		if listeners.held = s.unready(now); len(listeners.held) > 0 && s.types[RouteType] == nil {
			until = s.routesUntil
		}
	}
	if !listeners.incomplete(s.target.Set(ListenerType)) {
		s.push(listeners, g, removalOf(ListenerType) == atOnce)
	}
	return until
}

// incomplete says that a response would lack what the client has and shall keep: something
// that waits, or was refused, and of which the version is not known. If to leave it out is
// to take it away, everything waits.
func (c *conversation) incomplete(target *Set) bool {
	if c.watch == nil || !c.watch.whole {
		return false
	}
	if c.unnamed {
		return len(c.held) > 0
	}
	for _, r := range c.told {
		if r.Version != "" {
			continue
		}
		if wanted := target.Get(r.Name); wanted != nil {
			if _, refused := c.refused[wanted]; refused || c.held[r.Name] {
				return true
			}
		}
	}
	return false
}

// unready are listeners that have to wait for routes which the client has already, by an
// earlier listener, in an earlier version: with those it would take the listener at once.
// Of a client that came back, which routes it has is waited for.
func (s *session) unready(now time.Time) map[string]bool {
	told, routes := s.types[ListenerType].told, s.types[RouteType]
	target := s.target.Set(ListenerType)
	used := map[string]bool{}
	for _, l := range told {
		if same := target.Get(l.Name); same != nil && same.same(l) {
			l = same // of one that came along only the version is known
		}
		for _, name := range l.needs {
			used[name] = true
		}
	}
	wait := map[string]bool{}
	for _, l := range target.Resources() {
		if has := find(told, l.Name); has != nil && has.same(l) {
			continue
		}
		for _, name := range l.needs {
			if !used[name] && (routes == nil && now.Before(s.routesUntil) || routes.behind(name, s.target.Set(RouteType))) {
				wait[l.Name] = true
			}
		}
	}
	return wait
}

// behind says that the client has a resource, and not acknowledged as the target has it.
func (c *conversation) behind(name string, target *Set) bool {
	if c == nil {
		return false
	}
	told, wanted := find(c.told, name), target.Get(name)
	if told == nil || wanted == nil {
		return false
	}
	if !told.same(wanted) {
		return true
	}
	for _, p := range c.pushes {
		if find(p.set, name) != nil {
			return true
		}
	}
	return false
}

// renewed are the routes of listeners that drain which are to be new, and what each of
// them is in place of. Those of a client that came along are not known, and stay.
func (s *session) renewed() (renewed, earlier []*Resource) {
	c := s.types[RouteType]
	target := s.target.Set(RouteType)
	if c == nil || s.renew == nil || sameList(c.told, target.Resources()) {
		return nil, nil
	}
	for _, r := range c.told {
		if r.wire == nil || target.Get(r.Name) != nil {
			continue
		}
		if now := s.renewal(r); now != nil {
			renewed, earlier = append(renewed, now), append(earlier, r)
		}
	}
	return renewed, earlier
}

// recognize finds what a client brought along, of which only the version is known, in a
// target, before that is replaced.
func (c *conversation) recognize(target *Set) {
	if c == nil || sameList(c.told, target.Resources()) {
		return
	}
	var told []*Resource
	for i, r := range c.told {
		if r.wire != nil {
			continue
		}
		if is := target.Get(r.Name); is != nil && is.same(r) {
			if told == nil {
				told = slices.Clone(c.told) // which others may share
			}
			told[i] = is
		}
	}
	if told != nil {
		c.told = told
	}
}

// renewal is asked for once: every acknowledgement comes here.
func (s *session) renewal(r *Resource) *Resource {
	if now, known := s.renewals[r]; known {
		return now
	}
	body, err := s.renew(r.Name, r.wire.GetResource())
	if body == nil && r.Version == "" {
		body = r.wire.GetResource() // the client refused another one, in whole or in part
	}
	if err != nil {
		s.srv.opt.Log.Error("the routes of a listener that drains stay as they are", slog.String("routes", r.Name), slog.Any("error", err))
	}
	var now *Resource
	if err == nil && body != nil {
		now = r.with(body)
	}
	s.noteRenewal(r, now)
	return now
}

func (s *session) noteRenewal(r, now *Resource) {
	if s.renewals == nil {
		s.renewals = map[*Resource]*Resource{}
	}
	s.renewals[r] = now
}

// pushRenewed gives the routes of listeners that drain in a response of their own, so
// that one that the client refuses takes no other with it. They refer to nothing that has
// to be there before.
func (s *session) pushRenewed(c *conversation) {
	if c == nil || c.watch == nil {
		return
	}
	renewed, earlier := s.renewed()
	if len(renewed) == 0 {
		return
	}
	p := &push{revision: s.revision, set: renewed, renewed: earlier, before: c.told}
	s.send(c, p, change{set: renewed}, s.target.Set(RouteType).Resources())
}

// keepEarlier takes note that a client refused routes of listeners that drain, and has
// those of before until the next target. It is no reason to take the revision back.
func (s *session) keepEarlier(c *conversation, p *push, detail string) {
	s.srv.opt.Observer.Refused(c.url)
	s.srv.opt.Log.Error("a client refused routes of a listener that drains, and keeps them as they were", slog.String("client", s.client.ID), slog.String("detail", detail))
	told := slices.Clone(c.told)
	for i, r := range p.set {
		before := &Resource{Name: r.Name, Sources: r.Sources, wire: p.renewed[i].wire}
		for j := range told {
			if told[j] == r {
				told[j] = before
			}
		}
		for _, later := range c.pushes {
			if j := slices.Index(later.renewed, r); j >= 0 {
				later.renewed[j] = before
			}
		}
		if p.revision == s.revision {
			s.noteRenewal(before, nil)
		}
	}
	c.told = told
}

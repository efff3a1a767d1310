package xds

import "time"

// A listener names its routes after what they rely on in it, so that another listener in
// its place has other routes, for which an Envoy waits before it takes it (decision 0042).
// Connections that are open stay with the listener and the routes of before until they
// have drained, and the Envoy keeps both so long.

// earlier says that the client has routes which the target does not give it: those of
// listeners that drain. They find in filters what they ask for.
func (s *session) earlier() bool {
	routes := s.types[RouteType]
	if routes == nil {
		return false
	}
	target := s.target.Set(RouteType)
	for _, r := range routes.told {
		if target.Get(r.Name) == nil {
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
	listeners.wait = nil
	if target := s.target.Set(ListenerType); s.returning && !sameList(listeners.told, target.Resources()) {
		if listeners.wait = s.unready(now); len(listeners.wait) > 0 && s.types[RouteType] == nil {
			until = s.routesUntil
		}
	}
	s.push(listeners, g, removalOf(ListenerType) == atOnce)
	return until
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

package xds

import (
	"log/slog"

	"google.golang.org/protobuf/types/known/anypb"
)

// filters are what the client shall have of them now. While its routes are still to
// change, and while it has those of listeners that drain, they are such that those of
// before and those of after find theirs in them.
func (s *session) filters() []*Resource {
	if s.settled(RouteType) && !s.earlier() {
		return s.target.Set(ExtensionType).Resources()
	}
	return s.standIns(ExtensionType, s.srv.opt.Between)
}

// endpoints are the same for them: while its listeners are still to change, they say what
// those of before and those of after rely on.
func (s *session) endpoints() []*Resource {
	if s.settled(ListenerType) {
		return s.target.Set(EndpointType).Resources()
	}
	return s.standIns(EndpointType, s.srv.opt.BetweenEndpoints)
}

// standIns are the resources of a type on the way to those of the target.
func (s *session) standIns(url string, both func(before, after *anypb.Any) (*anypb.Any, error)) []*Resource {
	target := s.target.Set(url).Resources()
	c := s.types[url]
	if c == nil || !s.returning || both == nil || sameList(c.told, target) {
		return target
	}
	out, changed := make([]*Resource, len(target)), false
	for i, r := range target {
		out[i] = s.between(c, r, both)
		changed = changed || out[i] != r
	}
	if !changed {
		return target
	}
	return out
}

// between is what stands in for both, or after itself.
func (s *session) between(c *conversation, after *Resource, both func(before, after *anypb.Any) (*anypb.Any, error)) *Resource {
	before := find(c.told, after.Name)
	if before == nil || before.wire == nil || before.same(after) {
		return after
	}
	if _, refused := c.refused[after]; refused {
		return after
	}
	if before.standsFor == after {
		return before
	}
	body, err := both(before.wire.GetResource(), after.wire.GetResource())
	if stoodFor := before.standsFor; body == nil && err == nil && stoodFor != nil {
		// It may be full of what routes of listeners that drain ask for.
		body, err = both(stoodFor.wire.GetResource(), after.wire.GetResource())
	}
	if err != nil {
		s.srv.opt.Log.Error("a resource changes at once", slog.String("type", c.url), slog.String("resource", after.Name), slog.Any("error", err))
	}
	if err != nil || body == nil {
		return after
	}
	out := after.with(body)
	out.needs, out.standsFor = after.needs, after
	return out
}

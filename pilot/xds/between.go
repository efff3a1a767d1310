package xds

import (
	"log/slog"
)

// filters are what the client shall have of them now. While its routes are still to
// change, and while it has those of listeners that drain, they are such that those of
// before and those of after find theirs in them.
func (s *session) filters() []*Resource {
	target := s.target.Set(ExtensionType).Resources()
	c := s.types[ExtensionType]
	if c == nil || !s.returning || s.srv.opt.Between == nil || s.settled(RouteType) && !s.earlier() {
		return target
	}
	out, changed := make([]*Resource, len(target)), false
	for i, r := range target {
		out[i] = s.between(find(c.told, r.Name), r)
		changed = changed || out[i] != r
	}
	if !changed {
		return target
	}
	return out
}

// between is what stands in for both, or after itself.
func (s *session) between(before, after *Resource) *Resource {
	if before == nil || before.wire == nil || before.same(after) {
		return after
	}
	if _, refused := s.types[ExtensionType].refused[after]; refused {
		return after
	}
	if before.standsFor == after {
		return before
	}
	body, err := s.srv.opt.Between(before.wire.GetResource(), after.wire.GetResource())
	if stoodFor := before.standsFor; body == nil && err == nil && stoodFor != nil {
		// It may be full of what routes of listeners that drain ask for.
		body, err = s.srv.opt.Between(stoodFor.wire.GetResource(), after.wire.GetResource())
	}
	if err != nil {
		s.srv.opt.Log.Error("a filter changes at once", slog.String("filter", after.Name), slog.Any("error", err))
	}
	if err != nil || body == nil {
		return after
	}
	out := after.with(body)
	out.needs, out.standsFor = after.needs, after
	return out
}

package xds

import (
	"log/slog"
	"slices"
	"strings"
)

// keep takes note of the filters that the client has now.
func (c *conversation) keep(p *push) {
	if c.url != ExtensionType {
		return
	}
	if c.kept == nil {
		c.kept = map[string]*Resource{}
	}
	for _, r := range p.set {
		c.kept[r.Name] = r
	}
}

// goBack says that the client has the filters that it kept in place of those that it
// refused, so that what comes next can stand in for them too.
func (c *conversation) goBack() {
	if len(c.kept) == 0 { // as of all that are no filters
		return
	}
	for i, r := range c.told {
		if kept := c.kept[r.Name]; kept != nil && r.Version == "" {
			c.told = slices.Clone(c.told) // which others may share
			c.told[i] = kept
		}
	}
}

// heldRoutes are the route configurations that stay as the client has them: they are
// behind a filter that it refused, and ask for what is not in the one that it has
// instead. All else goes on.
func (s *session) heldRoutes() map[string]bool {
	filters := s.types[ExtensionType]
	if !s.returning || !filters.failed() {
		return nil
	}
	held := map[string]bool{}
	routes := s.target.Set(RouteType)
	for refused := range filters.refused {
		has := filters.kept[refused.Name]
		for _, l := range s.target.Set(ListenerType).Resources() {
			for _, name := range l.filtered[refused.Name] {
				if r := routes.Get(name); r != nil && !held[name] && !s.served(filters, r, has) {
					held[name] = true
				}
			}
		}
	}
	return held
}

// pair is routes and the filter that a client has, nil if that is not known.
type pair struct{ routes, filter *Resource }

// served says whether routes find in a filter what they ask of it. They are asked once:
// the routes of many policies are large, and every acknowledgement comes here.
func (s *session) served(filters *conversation, routes, filter *Resource) bool {
	if filter == nil || s.srv.opt.Served == nil {
		return false
	}
	key := pair{routes, filter}
	if served, known := filters.served[key]; known {
		return served
	}
	served, err := s.srv.opt.Served(routes.wire.GetResource(), filter.wire.GetResource())
	if err != nil {
		s.srv.opt.Log.Error("routes stay as they are", slog.String("routes", routes.Name), slog.Any("error", err))
	}
	served = served && err == nil
	if filters.served == nil {
		filters.served = map[pair]bool{}
	}
	filters.served[key] = served
	return served
}

// said is a refusal for the status. Of a filter Envoy says what is wrong and not which
// one it is.
func said(p *push, url, detail string) string {
	if url != ExtensionType {
		return detail
	}
	var names []string
	for _, r := range p.set {
		names = append(names, r.Name)
	}
	return "filter " + strings.Join(names, ", ") + ": " + detail
}

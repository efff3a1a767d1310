package pilot

import (
	"fmt"
	"runtime"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/security"
	"github.com/writ-mesh/writ/pilot/translate"
	"github.com/writ-mesh/writ/pilot/xds"
)

// compiled is one configuration, translated for everybody.
type compiled struct {
	mesh       *model.Mesh
	translator *translate.Translator
	snapshot   *xds.Snapshot
	digests    digests
	// builder makes configurations for dynamic proxies of this revision.
	builder *xds.Builder
	// placed maps the node ids of the proxies that the mesh places.
	placed map[string]*model.Proxy
	// failed says why proxies could not be translated for; they keep what they
	// have. Sorted, one for each reason.
	failed []string
}

// compile translates a mesh. What the builder knows from earlier revisions is
// shared. A proxy that cannot be translated for keeps its configuration of the
// revision before, which is nil before the first, so that what one author wrote
// cannot keep the changes of others from other proxies.
func compile(m *model.Mesh, b *xds.Builder, before *compiled) (*compiled, error) {
	policy, err := security.New(m)
	if err != nil {
		return nil, err
	}
	tr, err := translate.New(m, policy)
	if err != nil {
		return nil, err
	}
	c := &compiled{mesh: m, translator: tr, builder: b, placed: make(map[string]*model.Proxy, len(m.Proxies))}
	configs, errs := make([]*xds.Config, len(m.Proxies)), make([]error, len(m.Proxies))
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i, p := range m.Proxies {
		c.placed[p.ID] = p
		g.Go(func() error {
			configs[i], errs[i] = c.config(b, p)
			return nil
		})
	}
	_ = g.Wait() // the functions return no errors
	proxies := make(map[string]*xds.Config, len(configs))
	for i, p := range m.Proxies {
		if errs[i] != nil && before != nil {
			configs[i] = before.snapshot.Proxies[p.ID]
		}
		if configs[i] != nil {
			proxies[p.ID] = configs[i]
		}
	}
	c.failed = reasons(m.Proxies, errs)
	services, err := serviceConfig(b, m)
	if err != nil {
		return nil, err
	}
	if c.digests, err = digest(m); err != nil {
		return nil, err
	}
	c.snapshot = b.Snapshot(proxies, services, c.digests.all)
	return c, nil
}

// reasons says which proxies could not be translated for, once for each reason.
func reasons(proxies []*model.Proxy, errs []error) []string {
	by := map[string][]string{}
	for i, err := range errs {
		if err != nil {
			by[err.Error()] = append(by[err.Error()], proxies[i].ID)
		}
	}
	var out []string
	for why, ids := range by {
		who := ids[0]
		if len(ids) > 1 {
			who = fmt.Sprintf("%s and %d more", ids[0], len(ids)-1)
		}
		out = append(out, fmt.Sprintf("cannot be translated for %s, which keep what they have: %s", who, why))
	}
	slices.Sort(out)
	return out
}

// config translates for one proxy.
func (c *compiled) config(b *xds.Builder, p *model.Proxy) (*xds.Config, error) {
	s, err := c.translator.Proxy(p)
	if err != nil {
		return nil, err
	}
	var sets []*xds.Set
	for _, t := range []struct {
		url  string
		list []translate.Resource
	}{{xds.ClusterType, s.Clusters}, {xds.EndpointType, s.Endpoints}, {xds.ListenerType, s.Listeners}, {xds.RouteType, s.Routes}} {
		resources := make([]*xds.Resource, len(t.list))
		for i, r := range t.list {
			if resources[i], err = b.Resource(r.Name, r.Message, r.Sources); err != nil {
				return nil, fmt.Errorf("proxy %s: %w", p.ID, err)
			}
		}
		sets = append(sets, b.Set(t.url, resources))
	}
	return b.Config(p.Node, sets...), nil
}

package pilot

import (
	"fmt"
	"runtime"

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
}

// compile translates a mesh. What the builder knows from earlier revisions is shared.
func compile(m *model.Mesh, b *xds.Builder) (*compiled, error) {
	policy, err := security.New(m)
	if err != nil {
		return nil, err
	}
	tr, err := translate.New(m, policy)
	if err != nil {
		return nil, err
	}
	c := &compiled{mesh: m, translator: tr, builder: b, placed: make(map[string]*model.Proxy, len(m.Proxies))}
	configs := make([]*xds.Config, len(m.Proxies))
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i, p := range m.Proxies {
		c.placed[p.ID] = p
		g.Go(func() (err error) {
			configs[i], err = c.config(b, p)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	proxies := make(map[string]*xds.Config, len(configs))
	for i, p := range m.Proxies {
		proxies[p.ID] = configs[i]
	}
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

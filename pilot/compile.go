package pilot

import (
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/writ-mesh/writ/pilot/envoyfilter"
	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/security"
	"github.com/writ-mesh/writ/pilot/translate"
	"github.com/writ-mesh/writ/pilot/xds"
	pilotpb "github.com/writ-mesh/writ/proto/writ/pilot/v1"
)

// compiled is one configuration, translated for everybody.
type compiled struct {
	// mesh is as the source gave it; what was translated has what is not of the files
	// besides.
	mesh *model.Mesh
	besides
	policy     *security.Compiler
	translator *translate.Translator
	filters    *envoyfilter.Filters
	snapshot   *xds.Snapshot
	digests    digests
	// sharing makes configurations for dynamic proxies of this revision.
	sharing *sharing
	// offered finds what services have at an address; made when first asked for.
	offered func() map[netip.Addr][]offer
	// placed maps the node ids of the proxies that the mesh places.
	placed map[string]*model.Proxy
	// rego says where RegoPolicies are decided; made when first asked for.
	rego func() []*pilotpb.RegoPlacement
	// failed says why proxies could not be translated for; they keep what they
	// have. Sorted, one for each reason.
	failed []string
}

// besides is what configuration is made of that is not of the files. It is never
// changed, only replaced.
type besides struct {
	// revoked are certificates and identities, never nil.
	revoked *model.Revoked
	// tokens are revoked tokens, nil for none.
	tokens *model.RevokedTokens
	// fetched are entries of AccessLists.
	fetched map[string]model.Fetched
	// keys are key sets of token issuers.
	keys map[string]string
}

// in gives a copy of a mesh with it.
func (s besides) in(files *model.Mesh) *model.Mesh {
	with := *files
	with.Revoked = *s.revoked
	if s.tokens != nil {
		with.Tokens = *s.tokens
	}
	with.Fetched, with.KeySets = s.fetched, s.keys
	return &with
}

// same tells whether two come to the same configuration.
func (s besides) same(other besides) bool {
	return sameRevoked(s.revoked, other.revoked) && reflect.DeepEqual(s.tokens, other.tokens) && reflect.DeepEqual(s.fetched, other.fetched) && maps.Equal(s.keys, other.keys)
}

// compile translates a mesh. What the builder knows from earlier revisions is
// shared. A proxy that cannot be translated for keeps its configuration of the
// revision before, which is nil before the first, so that what one author wrote
// cannot keep the changes of others from other proxies.
func compile(files *model.Mesh, also besides, b *xds.Builder, before *compiled) (*compiled, error) {
	m := also.in(files)
	policy, err := security.New(m)
	if err != nil {
		return nil, err
	}
	sums, err := digest(m, before.sums())
	if err != nil {
		return nil, err
	}
	policy.After(before.compiler(), sums.policies)
	defer policy.Settle()
	tr, err := translate.New(m, policy)
	if err != nil {
		return nil, err
	}
	filters, err := envoyfilter.New(m)
	if err != nil {
		return nil, err
	}
	c := &compiled{
		mesh: files, besides: also, policy: policy, translator: tr, filters: filters, digests: sums, sharing: &sharing{builder: b}, placed: make(map[string]*model.Proxy, len(m.Proxies)),
		offered: sync.OnceValue(func() map[netip.Addr][]offer { return offersOf(m) }),
		rego:    sync.OnceValue(func() []*pilotpb.RegoPlacement { return regoPlacements(m, policy) }),
	}
	configs, errs := make([]*xds.Config, len(m.Proxies)), make([]error, len(m.Proxies))
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i, p := range m.Proxies {
		c.placed[p.ID] = p
		g.Go(func() error {
			configs[i], errs[i] = c.config(p)
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
	c.snapshot = b.Snapshot(proxies, services, c.digests.all)
	revoked := policy.Revocations()
	c.snapshot.Renew = func(name string, routes *anypb.Any) (*anypb.Any, error) {
		if !translate.NamedAfterListener(name) {
			return nil, nil
		}
		return revoked.Renew(routes)
	}
	return c, nil
}

// sums and compiler are nil for no configuration.
func (c *compiled) sums() *digests {
	if c == nil {
		return nil
	}
	return &c.digests
}

func (c *compiled) compiler() *security.Compiler {
	if c == nil {
		return nil
	}
	return c.policy
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

// sharing makes configurations of what the translator gives, and that which the
// translator gives to several proxies only once.
type sharing struct {
	builder *xds.Builder
	// sets are by *translate.Snapshot, each a function that gives them in the order
	// of listsOf.
	sets sync.Map
}

// typed are the resources of one type.
type typed struct {
	url  string
	list []translate.Resource
}

func listsOf(s *translate.Snapshot) [5]typed {
	return [...]typed{
		{xds.ClusterType, s.Clusters}, {xds.EndpointType, s.Endpoints}, {xds.ListenerType, s.Listeners}, {xds.RouteType, s.Routes}, {xds.ExtensionType, s.Extensions},
	}
}

// config translates for one proxy.
func (c *compiled) config(p *model.Proxy) (*xds.Config, error) {
	own, shared, err := c.translator.Parts(p)
	if err != nil {
		return nil, err
	}
	if own, shared, err = c.filters.Apply(p, own, shared); err != nil {
		return nil, fmt.Errorf("proxy %s: %w", p.ID, err)
	}
	common, err := c.sharing.setsOf(shared)
	if err != nil {
		return nil, fmt.Errorf("proxy %s: %w", p.ID, err)
	}
	var sets []*xds.Set
	for i, t := range listsOf(own) {
		resources, err := c.sharing.resources(t.list)
		if err != nil {
			return nil, fmt.Errorf("proxy %s: %w", p.ID, err)
		}
		sets = append(sets, c.sharing.builder.With(common[i], t.url, resources))
	}
	return c.sharing.builder.Config(p.Node, sets...), nil
}

// setsOf gives the sets of what proxies have in common.
func (s *sharing) setsOf(shared *translate.Snapshot) ([5]*xds.Set, error) {
	known, ok := s.sets.Load(shared)
	if !ok {
		known, _ = s.sets.LoadOrStore(shared, sync.OnceValues(func() (sets [5]*xds.Set, err error) {
			for i, t := range listsOf(shared) {
				resources, err := s.resources(t.list)
				if err != nil {
					return sets, err
				}
				sets[i] = s.builder.Set(t.url, resources)
			}
			return sets, nil
		}))
	}
	return known.(func() ([5]*xds.Set, error))() //nolint:forcetypeassert // stored here only
}

func (s *sharing) resources(list []translate.Resource) ([]*xds.Resource, error) {
	out := make([]*xds.Resource, len(list))
	for i, r := range list {
		var err error
		if out[i], err = s.builder.Resource(r.Name, r.Message, r.Sources); err != nil {
			return nil, err
		}
	}
	return out, nil
}

package translate

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/protobuf/proto"

	"github.com/writ-mesh/writ/pilot/model"
)

// Resource is one xDS resource.
type Resource struct {
	// Name is the name by which Envoy knows the resource.
	Name string
	// Message is shared between snapshots and must not be changed.
	Message proto.Message
	// Sources are the objects that shaped it, in a stable order without
	// duplicates. A rejection by Envoy is blamed on them.
	Sources []model.Ref
}

// Snapshot is everything that one proxy gets, each list sorted by name.
type Snapshot struct {
	Clusters, Endpoints, Listeners, Routes []Resource
}

// Translator translates one revision. It is safe for concurrent use.
type Translator struct {
	mesh   *model.Mesh
	policy Policy
	index  *index

	scopes   memo[scopeKey, *scope]
	clusters memo[clusterKey, *builtCluster]
	inbound  memo[string, *inboundPort]
}

// New indexes m. The error names the object that cannot be indexed.
func New(m *model.Mesh, policy Policy) (*Translator, error) {
	ix, err := newIndex(m)
	if err != nil {
		return nil, err
	}
	return &Translator{mesh: m, policy: policy, index: ix}, nil
}

// Proxy gives the resources of p. The error names the proxy and what cannot be
// translated for it.
func (t *Translator) Proxy(p *model.Proxy) (*Snapshot, error) {
	out := newCollector()
	var err error
	if p.Type == model.GatewayProxy {
		err = t.gateway(p, out)
	} else {
		err = t.sidecar(p, out)
	}
	if err != nil {
		return nil, fmt.Errorf("proxy %s: %w", p.ID, err)
	}
	return out.snapshot(), nil
}

func (t *Translator) sidecar(p *model.Proxy, out *collector) error {
	s, err := t.scope(p)
	if err != nil {
		return err
	}
	if err := t.inboundResources(p, s, out); err != nil {
		return err
	}
	return s.outbound(p, out)
}

// collector gathers the resources of one proxy; the first of a name stays.
type collector struct {
	clusters, endpoints, listeners, routes map[string]Resource
}

func newCollector() *collector {
	return &collector{
		clusters: map[string]Resource{}, endpoints: map[string]Resource{},
		listeners: map[string]Resource{}, routes: map[string]Resource{},
	}
}

func put(into map[string]Resource, r Resource) {
	if _, taken := into[r.Name]; !taken {
		into[r.Name] = r
	}
}

// cluster adds a cluster that is not made of a Service, such as one that a
// security filter calls.
func (c *collector) cluster(m *clusterv3.Cluster, sources []model.Ref) {
	put(c.clusters, Resource{Name: m.Name, Message: m, Sources: sources})
}

func (c *collector) add(o *collector) {
	for _, pair := range [][2]map[string]Resource{
		{c.clusters, o.clusters}, {c.endpoints, o.endpoints}, {c.listeners, o.listeners}, {c.routes, o.routes},
	} {
		for _, r := range pair[1] {
			put(pair[0], r)
		}
	}
}

func (c *collector) snapshot() *Snapshot {
	return &Snapshot{
		Clusters: sorted(c.clusters), Endpoints: sorted(c.endpoints),
		Listeners: sorted(c.listeners), Routes: sorted(c.routes),
	}
}

func sorted(m map[string]Resource) []Resource {
	out := make([]Resource, 0, len(m))
	for _, r := range m {
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b Resource) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// memo keeps what was built, one value per key for the life of a Translator.
type memo[K comparable, V any] struct{ m sync.Map }

// get builds the value outside of any lock; if two callers meet, both get the
// value of the one that stored first, so that pointers stay the same.
func (m *memo[K, V]) get(key K, build func() (V, error)) (V, error) {
	if v, ok := m.m.Load(key); ok {
		return v.(V), nil
	}
	v, err := build()
	if err != nil {
		return v, err
	}
	stored, _ := m.m.LoadOrStore(key, v)
	return stored.(V), nil
}

// sources is an ordered set of references.
type sources struct {
	list []model.Ref
	seen map[model.Ref]bool
}

func (s *sources) add(refs ...model.Ref) {
	for _, r := range refs {
		if r.Kind == "" || s.seen[r] {
			continue
		}
		if s.seen == nil {
			s.seen = map[model.Ref]bool{}
		}
		s.seen[r] = true
		s.list = append(s.list, r)
	}
}

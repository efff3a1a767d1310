package translate

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/protobuf/proto"

	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/security"
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
	// Extensions are filters that listeners refer to by name.
	Extensions []Resource
}

// Translator translates one revision. It is safe for concurrent use.
type Translator struct {
	mesh   *model.Mesh
	policy PolicyCompiler
	index  *index

	scopes     memo[scopeKey, *scope]
	clusters   memo[clusterKey, *builtCluster]
	inbound    memo[string, *inboundPort]
	redirected memo[string, *redirectedInbound]
}

// New indexes m. The error names the object that cannot be indexed.
func New(m *model.Mesh, policy PolicyCompiler) (*Translator, error) {
	ix, err := newIndex(m)
	if err != nil {
		return nil, err
	}
	return &Translator{mesh: m, policy: policy, index: ix}, nil
}

// Proxy gives the resources of p. The error names the proxy and what cannot be
// translated for it.
func (t *Translator) Proxy(p *model.Proxy) (*Snapshot, error) {
	own, shared, err := t.Parts(p)
	if err != nil {
		return nil, err
	}
	return own.with(shared), nil
}

// Parts gives what Proxy gives in two parts: the proxy's own resources, which go
// first where both have a name, and those that it has in common with others. That
// part is one and the same Snapshot for all of them, so that what is made of it
// need be made only once.
func (t *Translator) Parts(p *model.Proxy) (own, shared *Snapshot, err error) {
	s, err := t.scope(p)
	if err != nil {
		return nil, nil, fmt.Errorf("proxy %s: %w", p.ID, err)
	}
	out := newCollector()
	if p.Type == model.GatewayProxy {
		err = t.gateway(p, s, out)
	} else {
		s.explicitListener(p, out)
		err = t.inboundResources(p, s, out)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("proxy %s: %w", p.ID, err)
	}
	return out.snapshot(), s.shared, nil
}

// collector gathers the resources of one proxy; the first of a name stays.
type collector struct {
	clusters, endpoints, listeners, routes, extensions map[string]Resource
}

func newCollector() *collector {
	return &collector{
		clusters: map[string]Resource{}, endpoints: map[string]Resource{},
		listeners: map[string]Resource{}, routes: map[string]Resource{}, extensions: map[string]Resource{},
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

// filters adds filters that listeners refer to.
func (c *collector) filters(list []security.Extension) {
	for _, e := range list {
		put(c.extensions, Resource{Name: e.Config.Name, Message: e.Config, Sources: e.Sources})
	}
}

func (c *collector) snapshot() *Snapshot {
	return &Snapshot{
		Clusters: sorted(c.clusters), Endpoints: sorted(c.endpoints),
		Listeners: sorted(c.listeners), Routes: sorted(c.routes), Extensions: sorted(c.extensions),
	}
}

// with adds what other has. Where s or other has nothing, the slice is shared.
func (s *Snapshot) with(other *Snapshot) *Snapshot {
	return &Snapshot{
		Clusters: merged(s.Clusters, other.Clusters), Endpoints: merged(s.Endpoints, other.Endpoints),
		Listeners: merged(s.Listeners, other.Listeners), Routes: merged(s.Routes, other.Routes), Extensions: merged(s.Extensions, other.Extensions),
	}
}

// merged joins two lists that are sorted by name; of equal names a's stays.
func merged(a, b []Resource) []Resource {
	if len(a) == 0 {
		return b
	}
	if len(b) == 0 {
		return a
	}
	out := make([]Resource, 0, len(a)+len(b))
	for len(a) > 0 && len(b) > 0 {
		switch c := strings.Compare(a[0].Name, b[0].Name); {
		case c < 0:
			out, a = append(out, a[0]), a[1:]
		case c > 0:
			out, b = append(out, b[0]), b[1:]
		default:
			out, a, b = append(out, a[0]), a[1:], b[1:]
		}
	}
	return append(append(out, a...), b...)
}

func sorted(m map[string]Resource) []Resource {
	out := make([]Resource, 0, len(m))
	for _, r := range m {
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b Resource) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// memo keeps what was built, one value per key for the life of a Translator. What
// builds the values of one memo must not ask that memo.
type memo[K comparable, V any] struct{ m sync.Map }

// built is one value of a memo.
type built[V any] struct {
	mu    sync.Mutex
	done  bool
	value V
}

// get builds the value once: who comes meanwhile waits for it. What fails is not
// kept, because the error may name who asked.
func (m *memo[K, V]) get(key K, build func() (V, error)) (V, error) {
	known, ok := m.m.Load(key)
	if !ok {
		known, _ = m.m.LoadOrStore(key, &built[V]{})
	}
	b := known.(*built[V]) //nolint:forcetypeassert // only get stores
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.done {
		return b.value, nil
	}
	v, err := build()
	if err == nil {
		b.value, b.done = v, true
	}
	return v, err
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

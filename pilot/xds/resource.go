package xds

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/writ-mesh/writ/pilot/model"
)

// The resource types that are served.
const (
	ClusterType       = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	EndpointType      = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	ListenerType      = "type.googleapis.com/envoy.config.listener.v3.Listener"
	RouteType         = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	ExtensionType     = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"
	NodePlacementType = "type.googleapis.com/writ.config.v1.NodePlacement"
	RegoPolicyType    = "type.googleapis.com/writ.config.v1.RegoPolicy"
	TokenIssuerType   = "type.googleapis.com/writ.config.v1.TokenIssuer"
	QuotaPolicyType   = "type.googleapis.com/writ.config.v1.QuotaPolicy"
)

// envoyTypes is the order in which an Envoy is given the types.
var envoyTypes = [...]string{ClusterType, EndpointType, ListenerType, RouteType, ExtensionType}

// Resource is one immutable xDS resource, marshaled once and shared by every
// client that holds it.
type Resource struct {
	Name string
	// Version is the hash of the content; empty for what a client may or may not have.
	Version string
	// Sources are the objects that the resource was made of.
	Sources []model.Ref

	wire *discoveryv3.Resource
	// needs names what Envoy asks for before this resource works: the endpoints
	// of a cluster, the route configurations and filters of a listener.
	needs []string
	// filtered are the route configurations behind each filter that a listener needs.
	filtered map[string][]string
	// resolves says that Envoy looks a name up before the cluster is usable.
	resolves bool
	// standsFor is what the resource is the way to, nil for a resource of a snapshot.
	standsFor *Resource

	older older[Resource]
}

// same compares content. Pointers suffice between interned resources; versions
// are compared for what a client says that it holds.
func (r *Resource) same(o *Resource) bool {
	return r == o || r.Version != "" && r.Version == o.Version && r.Name == o.Name
}

// unknown stands for a resource that a client may hold in a version that is not known.
func unknown(name string) *Resource { return &Resource{Name: name} }

// Set is an immutable list of resources of one type, sorted by name.
type Set struct {
	TypeURL string
	// Hash identifies the content.
	Hash string

	list []*Resource
	// needed is what the resources of this set need (see Resource.needs), sorted, each once.
	needed []string

	older older[Set]
}

// Len is the number of resources.
func (s *Set) Len() int {
	if s == nil {
		return 0
	}
	return len(s.list)
}

// Resources lists the resources, sorted by name. The caller must not change the list.
func (s *Set) Resources() []*Resource {
	if s == nil {
		return nil
	}
	return s.list
}

// Get returns the resource of that name, or nil.
func (s *Set) Get(name string) *Resource {
	if s == nil {
		return nil
	}
	return find(s.list, name)
}

// Config is everything that one client shall have.
type Config struct {
	// Node is the node whose agent speaks for the client; empty if it speaks for itself.
	Node string

	sets  map[string]*Set
	older older[Config]
}

// Set returns the resources of a type, nil if there are none.
func (c *Config) Set(typeURL string) *Set {
	if c == nil {
		return nil
	}
	return c.sets[typeURL]
}

// with is a resource of the same name and origin with another content.
func (r *Resource) with(body *anypb.Any) *Resource {
	sum := sha256.Sum256(body.GetValue())
	out := &Resource{Name: r.Name, Version: hex.EncodeToString(sum[:12]), Sources: r.Sources}
	out.wire = &discoveryv3.Resource{Name: out.Name, Version: out.Version, Resource: body}
	return out
}

// Snapshot is what every client shall have at one revision. It is immutable once published.
type Snapshot struct {
	Revision uint64
	// Hash identifies the content of everything in it.
	Hash string
	// Proxies are by xDS node id.
	Proxies map[string]*Config
	// Renew gives what has to be new at once in routes of listeners that drain, which the
	// configurations do not have, nil if nothing has; nil: nothing ever has.
	Renew func(name string, routes *anypb.Any) (*anypb.Any, error)
	// Services holds the resources of Writ's own types.
	Services *Config
}

// Builder makes the parts of a snapshot, sharing what is equal between proxies
// and with earlier snapshots. Its methods may be called concurrently.
type Builder struct {
	mu        sync.Mutex
	messages  map[proto.Message]*Resource
	resources map[string]*Resource
	sets      map[string]*Set
	// extended are the sets that With made.
	extended map[extension]*Set
}

// extension is what With makes a set of: own names the resources.
type extension struct {
	shared *Set
	own    string
}

// NewBuilder returns a builder that shares resources with the given snapshots, nil ones ignored.
func NewBuilder(earlier ...*Snapshot) *Builder {
	b := &Builder{
		messages:  map[proto.Message]*Resource{},
		resources: map[string]*Resource{},
		sets:      map[string]*Set{},
		extended:  map[extension]*Set{},
	}
	for _, s := range earlier {
		if s == nil {
			continue
		}
		for _, c := range s.Proxies {
			b.Learn(c)
		}
		b.Learn(s.Services)
	}
	return b
}

// Learn makes the builder share what is in c.
func (b *Builder) Learn(c *Config) {
	if c == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for url, set := range c.sets {
		key := url + "\x00" + set.Hash
		if b.sets[key] != nil {
			continue
		}
		b.sets[key] = set
		for _, r := range set.list {
			b.resources[resourceKey(url, r.Name, r.Version)] = r
		}
	}
}

func resourceKey(url, name, version string) string { return url + "\x00" + name + "\x00" + version }

// Resource interns a message. The same message given twice is marshaled once.
// Its type URL is that of the message.
func (b *Builder) Resource(name string, m proto.Message, sources []model.Ref) (*Resource, error) {
	b.mu.Lock()
	r := b.messages[m]
	b.mu.Unlock()
	if r != nil && r.Name == name {
		return r, nil
	}
	value, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("marshal %s %q: %w", m.ProtoReflect().Descriptor().FullName(), name, err)
	}
	url := "type.googleapis.com/" + string(m.ProtoReflect().Descriptor().FullName())
	sum := sha256.Sum256(value)
	version := hex.EncodeToString(sum[:12])

	b.mu.Lock()
	defer b.mu.Unlock()
	key := resourceKey(url, name, version)
	if r = b.resources[key]; r == nil {
		r = newResource(url, name, version, value, m, sources)
		b.resources[key] = r
	}
	b.messages[m] = r
	return r, nil
}

func newResource(url, name, version string, value []byte, m proto.Message, sources []model.Ref) *Resource {
	r := &Resource{
		Name: name, Version: version, Sources: sources,
		wire: &discoveryv3.Resource{Name: name, Version: version, Resource: &anypb.Any{TypeUrl: url, Value: value}},
	}
	r.needs, r.filtered = needs(m)
	if c, ok := m.(*clusterv3.Cluster); ok {
		r.resolves = c.GetType() == clusterv3.Cluster_STRICT_DNS || c.GetType() == clusterv3.Cluster_LOGICAL_DNS
	}
	return r
}

// Set makes a set; of several resources with one name the first one stays.
func (b *Builder) Set(typeURL string, resources []*Resource) *Set {
	byName := func(a, c *Resource) int { return strings.Compare(a.Name, c.Name) }
	list := slices.Clone(resources)
	if !slices.IsSortedFunc(list, byName) {
		slices.SortStableFunc(list, byName)
	}
	list = slices.Clip(slices.CompactFunc(list, func(a, c *Resource) bool { return a.Name == c.Name }))
	sum := sha256.Sum256(contentOf(list))
	hash := hex.EncodeToString(sum[:16])

	b.mu.Lock()
	defer b.mu.Unlock()
	key := typeURL + "\x00" + hash
	if s := b.sets[key]; s != nil {
		return s
	}
	s := &Set{TypeURL: typeURL, Hash: hash, list: list}
	for _, r := range list {
		s.needed = append(s.needed, r.needs...)
	}
	slices.Sort(s.needed)
	s.needed = slices.Clip(slices.Compact(s.needed))
	b.sets[key] = s
	return s
}

// With makes a set of the resources and of those of shared, which may be nil; of
// several resources with one name the first one stays. A set of equal resources
// and one and the same shared is made once.
func (b *Builder) With(shared *Set, typeURL string, own []*Resource) *Set {
	if shared != nil && len(own) == 0 {
		return shared
	}
	key := extension{shared, string(contentOf(own))}
	b.mu.Lock()
	s := b.extended[key]
	b.mu.Unlock()
	if s != nil {
		return s
	}
	s = b.Set(typeURL, slices.Concat(own, shared.Resources()))
	b.mu.Lock()
	defer b.mu.Unlock()
	b.extended[key] = s
	return s
}

// contentOf is the same for lists of the same content only.
func contentOf(list []*Resource) []byte {
	var out []byte
	for _, r := range list {
		out = strconv.AppendInt(out, int64(len(r.Name)), 10)
		out = append(out, ':')
		out = append(out, r.Name...)
		out = append(out, r.Version...)
	}
	return out
}

// Config puts sets together. Node is the node whose agent speaks for the client.
func (b *Builder) Config(node string, sets ...*Set) *Config {
	c := &Config{Node: node, sets: make(map[string]*Set, len(sets))}
	for _, s := range sets {
		c.sets[s.TypeURL] = s
	}
	return c
}

// Snapshot puts configurations together. The revision is for the caller to set.
// Salt enters the hash: it tells apart what compiles to the same resources.
func (b *Builder) Snapshot(proxies map[string]*Config, services *Config, salt string) *Snapshot {
	h := sha256.New()
	fmt.Fprintf(h, "%d:%s", len(salt), salt)
	ids := make([]string, 0, len(proxies))
	for id := range proxies {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	write := func(id string, c *Config) {
		fmt.Fprintf(h, "%d:%s%d:%s", len(id), id, len(c.Node), c.Node)
		urls := make([]string, 0, len(c.sets))
		for url := range c.sets {
			urls = append(urls, url)
		}
		slices.Sort(urls)
		for _, url := range urls {
			fmt.Fprintf(h, "%s %s\n", url, c.sets[url].Hash)
		}
	}
	for _, id := range ids {
		write(id, proxies[id])
	}
	if services != nil {
		write("", services)
	}
	return &Snapshot{Hash: hex.EncodeToString(h.Sum(nil)[:16]), Proxies: proxies, Services: services}
}

// find looks a name up in a list sorted by name.
func find(list []*Resource, name string) *Resource {
	i, ok := slices.BinarySearchFunc(list, name, func(r *Resource, n string) int { return strings.Compare(r.Name, n) })
	if !ok {
		return nil
	}
	return list[i]
}
